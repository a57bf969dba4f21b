"""What the service has at hand, asked for again and again: from the protocol's messages to the rows of a table."""

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice

from common.errors import NotFoundError
from coordinator.api.client import SearchClient
from coordinator.api.connection import TERMINAL_STATES
from coordinator.api.stubs import search_pb2 as pb
from coordinator.job_table import JobRow, ServiceView

MAX_ROWS = 200
_ALL_STUDIES = "studies/-"
_NUM_ENDED = 20
_NUM_STUDIES = 20  # of which jobs that had ended before are asked for
_LOOK_BACK = 50  # jobs of each
_WINDOW_S = 120.0  # in which progress is measured


@dataclass
class Pace:
    """How far a job was, when: tells how long the rest will take."""

    samples: deque[tuple[float, int]] = field(default_factory=deque)

    def note(self, now_s: float, done: int) -> None:
        """How far it is now; one that has begun anew is measured anew."""
        if self.samples and done < self.samples[-1][1]:
            self.samples.clear()
        self.samples.append((now_s, done))
        while len(self.samples) > 2 and now_s - self.samples[1][0] >= _WINDOW_S:
            self.samples.popleft()

    def left_s(self, total: int) -> float | None:
        """Seconds until `total`; None where it did not get on."""
        (first_s, first), (last_s, last) = self.samples[0], self.samples[-1]
        if last <= first or last_s <= first_s:
            return None
        return (last_s - first_s) / (last - first) * max(total - last, 0)


class LiveJobs:
    """Follows the jobs of a tenant, at a few calls each time it is asked.

    Args:
        client: of the service.
        study: studies/{study} to show alone, or None for all.
        clock_s: a monotonic clock, for signs of life.
    """

    def __init__(self, client: SearchClient, study: str | None, clock_s: Callable[[], float]) -> None:
        self._client = client
        self._study = study
        self._clock_s = clock_s
        self._going: dict[str, pb.Job] = {}
        self._ended: dict[str, pb.Job] | None = None
        self._paces: dict[str, Pace] = {}
        self._beat: tuple[int, int] | None = None
        self._beat_s = 0.0

    def poll(self) -> ServiceView:
        """The jobs as they are now: those that run, those that wait, those that ended last.

        Raises:
            UnavailableError: the service does not answer.
            MetaSearchError: it refuses.
        """
        status = self._client.service_status()
        now_s = status.time.ToMicroseconds() / 1e6
        before = self._going
        if self._ended is None:
            self._ended = {job.name: job for job in self._ended_before()}
        found = (job for job in self._client.list_jobs(_ALL_STUDIES) if self._is_shown(job.name))
        self._going = {job.name: job for job in islice(found, MAX_ROWS)}
        self._note_ended(name for name in before if name not in self._going)
        self._note_pace(now_s)
        beat = (status.coordinator.epoch, status.coordinator.beats)
        if beat != self._beat:
            self._beat, self._beat_s = beat, self._clock_s()
        return ServiceView(
            address=self._client.address,
            jobs_running=status.jobs_running,
            jobs_queued=status.jobs_queued,
            epoch=status.coordinator.epoch,
            workers=status.coordinator.workers,
            beat_age_s=self._clock_s() - self._beat_s,
            rows=tuple(self._row(job, now_s) for job in (*self._going.values(), *self._ended.values())),
        )

    def _is_shown(self, name: str) -> bool:
        return self._study is None or name.startswith(f"{self._study}/")

    def _ended_before(self) -> Sequence[pb.Job]:
        studies = [self._study] if self._study else [found.name for found in self._client.list_studies()]
        jobs: list[pb.Job] = []
        for study in studies[:_NUM_STUDIES]:
            youngest = islice(self._client.list_jobs(study), _LOOK_BACK)
            jobs += [job for job in youngest if job.state in TERMINAL_STATES]
        return _youngest(jobs)

    def _note_ended(self, names: Iterable[str]) -> None:
        assert self._ended is not None
        for name in names:
            try:
                job = self._client.get_job(name)
            except NotFoundError:
                continue
            if job.state in TERMINAL_STATES:
                self._ended[name] = job
            else:  # missed between two pages, or beyond the last
                self._going[name] = job
        self._ended = {job.name: job for job in _youngest(self._ended.values())}

    def _note_pace(self, now_s: float) -> None:
        for name in self._paces.keys() - self._going.keys():
            del self._paces[name]
        for name, job in self._going.items():
            if job.state != pb.JOB_STATE_RUNNING or not job.progress.total:
                self._paces.pop(name, None)
                continue
            if name not in self._paces:
                self._paces[name] = Pace()
                # Training goes on where the study is, and a later attempt may go on where one before was.
                if job.attempt == 1 and job.spec.WhichOneof("kind") != "meta_train":
                    self._paces[name].note(job.start_time.ToMicroseconds() / 1e6, 0)
            self._paces[name].note(now_s, job.progress.done)

    def _row(self, job: pb.Job, now_s: float) -> JobRow:
        is_over = job.state in TERMINAL_STATES
        pace = self._paces.get(job.name)
        since = job.end_time if is_over else job.create_time
        return JobRow(
            name=job.name,
            kind=job.spec.WhichOneof("kind") or "",
            state="paused" if job.paused and job.state == pb.JOB_STATE_QUEUED else word_of(job.state),
            done=job.progress.done,
            total=job.progress.total,
            eta_s=None if pace is None else pace.left_s(job.progress.total),
            accuracy=accuracy_of(job),
            attempt=job.attempt,
            age_s=max(now_s - since.ToMicroseconds() / 1e6, 0.0),
            worker="" if is_over or job.state == pb.JOB_STATE_QUEUED else job.progress.worker,
            note=job.failure.message or job.note,
        )


def word_of(state: pb.JobState) -> str:
    """A state in a word: running, queued, ..."""
    return pb.JobState.Name(state).removeprefix("JOB_STATE_").lower()


def accuracy_of(job: pb.Job) -> float | None:
    """What a job has reached: of its result, else the best so far."""
    result = job.WhichOneof("result")
    if result in ("adapt_result", "evaluate_result"):
        return float(getattr(job, result).accuracy)
    if result == "sweep_result" and job.sweep_result.metric == "accuracy":
        return next(trial.value for trial in job.sweep_result.trials if trial.number == job.sweep_result.best)
    return job.progress.accuracy if job.progress.HasField("accuracy") else None


def _youngest(jobs: Iterable[pb.Job]) -> Sequence[pb.Job]:
    return sorted(jobs, key=lambda job: job.end_time.ToMicroseconds(), reverse=True)[:_NUM_ENDED]
