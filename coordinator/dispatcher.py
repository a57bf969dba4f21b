"""What the coordinator does with jobs, turn by turn: start, follow, finish. Ray is behind the pool; clocks are given.

Nothing that matters lives here alone. Whoever takes charge next finds the jobs that were running in the store, puts
them back into the queue, and computes again what was not committed, to the same bytes.
"""

import logging
import math
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Protocol

from common.errors import (
    AdaptationError,
    ConflictError,
    CorruptArtifactError,
    DataUnavailableError,
    InvalidInputError,
    MetaSearchError,
    NotFoundError,
    QuotaError,
    UnavailableError,
)
from common.log_fields import log_fields
from common.meta.prior import Prior
from common.metrics import RetryCause
from coordinator.at_hand import AtHand
from coordinator.calls import Call, Outcome
from coordinator.evaluate_run import EvaluateRun
from coordinator.fairness import MAX_BACK_OFF_S
from coordinator.few_shot_run import FewShotRun
from coordinator.job_queue import JobQueue, Room
from coordinator.jobs import (
    ACTIVE,
    AdaptSpec,
    EvaluateSpec,
    Failure,
    FailureReason,
    FewShotSpec,
    Job,
    JobSpec,
    JobState,
    MetaTrainSpec,
    SweepSpec,
)
from coordinator.priors import StudyPriors
from coordinator.runs import AdaptRun, Run
from coordinator.scaling import Load
from coordinator.service_metrics import ServiceMetrics, Staff
from coordinator.settings import ServiceSettings
from coordinator.store.fenced import SupersededError
from coordinator.store.jobs import JobStore
from coordinator.sweep_run import SweepRun
from coordinator.train_run import RoundsRun, TrainRun, train_run_of
from workers.actor import WorkerStatus

_LOOK_EVERY_S = 1.0
_CHECK_EVERY_S = 10.0
_MEASURE_EVERY_S = 2.0
# What takes long is done less often, so that it has this share of the time at most: of a thousand workers, asking each
# how far it is and storing that takes a second or so. Demand is looked at when jobs have started, too, however often.
_MOST_OF_TIME = {"status": 0.1, "check": 0.02, "deadlines": 0.02, "demand": 0.02}

# Beside these, meta-training, whose kind is the study's.
_KINDS: Mapping[type[JobSpec], type[Run]] = {
    AdaptSpec: AdaptRun,
    EvaluateSpec: EvaluateRun,
    SweepSpec: SweepRun,
    FewShotSpec: FewShotRun,
}

_REASONS: tuple[tuple[type[MetaSearchError], FailureReason], ...] = (
    (InvalidInputError, FailureReason.INVALID_INPUT),
    (NotFoundError, FailureReason.NOT_FOUND),
    (CorruptArtifactError, FailureReason.CORRUPT_ARTIFACT),
    (AdaptationError, FailureReason.ADAPTATION_FAILED),
)


class Pool(Staff, Room, Protocol):
    """Where calls run; see `coordinator.pool.RayPool`."""

    def expect(self, load: Load) -> None:
        """Says what is not submitted for want of workers."""
        ...

    def submit(self, key: str, request: Call, prior: Prior | None) -> None:
        """Queues a call."""
        ...

    def poll(self, timeout_s: float) -> list[Outcome]:
        """Returns what has ended, after `timeout_s` at the latest."""
        ...

    def abandon(self, key: str) -> None:
        """Forgets a call."""
        ...

    def status(self, timeout_s: float = ...) -> list[WorkerStatus]:
        """What the workers that answer in time are doing."""
        ...


class Dispatcher:
    """The jobs that one coordinator runs.

    Args:
        store: of jobs.
        pool: of workers.
        settings: beat, back-off, quotas, artifacts.
        holder: names this coordinator, for people.
        now_s: seconds since 1970.
        monotonic_s: a clock that never jumps.
        logger: of the coordinator.
        capacity: what the cluster has, in words, for jobs that find no resources.
        metrics: hears of what is done.

    Raises:
        SupersededError: from every method, once another coordinator is in charge.
    """

    def __init__(
        self,
        store: JobStore,
        pool: Pool,
        settings: ServiceSettings,
        holder: str,
        now_s: Callable[[], float],
        monotonic_s: Callable[[], float],
        logger: logging.Logger,
        capacity: str = "",
        metrics: ServiceMetrics | None = None,
    ) -> None:
        self.store = store
        self.pool = pool
        self.settings = settings
        self.now_s = now_s
        self.logger = logger
        self.metrics = metrics or ServiceMetrics()
        self.monotonic_s = monotonic_s
        self._queue = JobQueue(store, pool, settings, now_s, capacity)
        self.priors = StudyPriors(store, settings.artifacts, now_s)
        self.epoch = store.take_charge(holder)
        self.draining = False
        self._runs = AtHand()
        self._owner_of: dict[str, str] = {}
        self._owed: list[tuple[str, Callable[[], object]]] = []
        self._changed: set[str] = set()
        self._changed_lock = threading.Lock()
        self._look_at_queue = True
        self._last: dict[str, float] = {}
        self._took_s: dict[str, float] = {}
        self.background = ThreadPoolExecutor(1, thread_name_prefix="catalogs")
        self._end_subscription = store.ledger.subscribe(self._heard)
        self._recovered = False

    # Seen from outside

    @property
    def running(self) -> list[Job]:
        """The jobs at hand."""
        return self._runs.jobs

    def turn(self, timeout_s: float) -> None:
        """One turn: at most `timeout_s` of waiting. Storage that does not answer delays things and loses nothing."""
        try:
            if self._every("beat", self.settings.beat_s):
                self.store.beat(self.epoch, {"running": len(self._runs), "workers": self.pool.num_workers})
            if not self._recovered:
                self._check()
                self._recovered = True
            self._pay()
            if self._every("check", _CHECK_EVERY_S):
                self._check()
            if not self.draining:
                started = self._start_jobs()
                # Those that started are calls now: counted as waiting, too, they would have more workers added.
                if self._every("demand", _LOOK_EVERY_S) or started:
                    with self._timed("demand"):
                        self.pool.expect(self._queue.demand(self._runs.counted))
        except UnavailableError as error:
            # A job may have been started without our hearing of it: it goes back before another one starts, so that
            # jobs that move a prior keep their order.
            self._recovered = False
            if self._every("complaint", 5.0):
                self.logger.warning("%s", error)
        for outcome in self.pool.poll(timeout_s):
            run = self._runs.get(self._owner_of.pop(outcome.key, None))
            if run is not None:
                self._guarded(run, lambda run, found=outcome: run.take(found))  # type: ignore[misc]
        for training in self._runs.training:
            self._guarded(training, lambda _, looking=training: looking.look())  # type: ignore[misc]
        self._follow()
        if self._every("metrics", _MEASURE_EVERY_S):
            self.metrics.look(self.running, self.pool, self.draining)

    def drain(self) -> None:
        """Hands all running jobs over: they go back to the queue, and burn no attempt."""
        self.draining = True
        for run in self._runs:
            run.give_up()
            self.owe(run.job, lambda job=run.job: self._hand_over(job, "the coordinator was drained"))  # type: ignore[misc]
            self.forget(run.job)
        self.metrics.look(self.running, self.pool, self.draining)

    @property
    def is_drained(self) -> bool:
        """Whether nothing is at hand any more, and the store knows."""
        return self.draining and not self._runs and not self._owed

    def close(self) -> None:
        """Ends what listens and reads in the background."""
        self._end_subscription()
        self.background.shutdown(wait=False, cancel_futures=True)

    # For runs

    def more_calls(self, run: Run) -> int:
        """Calls that meta-training may submit now, see `AtHand.more_calls`."""
        assert isinstance(run, TrainRun)
        return self._runs.more_calls(run, self.pool.num_workers)

    def submit(self, run: Run, key: str, request: Call, prior: Prior | None) -> None:
        """Hands a call of a run to the pool."""
        self._owner_of[key] = run.job.job_id
        self.pool.submit(key, request, prior)

    def abandon(self, key: str) -> None:
        """Takes a call back."""
        if self._owner_of.pop(key, None) is not None:
            self.pool.abandon(key)

    def owe(self, job: Job, commit: Callable[[], object]) -> None:
        """Commits now, or as soon as the store answers. What the store refuses is dropped: the job has moved on."""
        self._owed.append((job.job_id, commit))
        try:
            self._pay()
        except UnavailableError as error:
            self.logger.warning("%s", error)

    def forget(self, job: Job) -> None:
        """The job is no longer at hand."""
        self._runs.remove(job.job_id)
        self._look_at_queue = True

    # Within a turn

    def _check(self) -> None:
        """Holds the jobs that run against those at hand.

        Those that nobody has at hand go back into the queue: of earlier coordinators, or lost on the way here. Of
        those at hand, news may have been lost.
        """
        with self._timed("check"):
            active = {job.job_id: job for job in self.store.active()}
        at_hand = list(self._runs)
        owed = {job_id for job_id, _ in self._owed}
        for job in active.values():
            if job.job_id in self._runs or job.job_id in owed:
                continue
            note = f"coordinator {job.epoch} is gone" if job.epoch != self.epoch else "its start was not confirmed"
            self._requeue(job, 0.0, False, note, RetryCause.COORDINATOR_LOST)
            self._look_at_queue = True
        for run in at_hand:
            self._heed(run, active.get(run.job.job_id))

    def _start_jobs(self) -> bool:
        """Starts what may start and finds room; returns whether anything did."""
        self._give_up_late()
        if not (self._look_at_queue or self._every("queue", _LOOK_EVERY_S)):
            return False
        started = False
        refused: set[str] = set()
        while openings := self._queue.openings(self._runs.counted):
            self._look_at_queue = False
            job = self._queue.next_job(self._runs.counted, openings, refused)
            if job is None:
                break
            if self._start(job):
                started = self._look_at_queue = True
            else:  # asking again at once would have the same answer
                refused.add(job.tenant)
        return started

    def _start(self, job: Job) -> bool:
        """Starts a job, unless the store refuses."""
        problem: MetaSearchError | None = None
        version: int | None = None
        kind = _KINDS.get(type(job.spec), RoundsRun)
        try:
            version = self._base_version(job)
            if isinstance(job.spec, MetaTrainSpec):
                kind = train_run_of(self.priors.config_of(job.tenant, job.study))
        except (SupersededError, UnavailableError):
            raise
        except MetaSearchError as error:  # of its study: the job fails, as soon as it runs
            problem = error
        # A job that the queue offers has waited long enough, whatever a clock that was set back says.
        now_s = max(self.now_s(), job.not_before_s)
        quota = self.settings.quota_of(job.tenant)
        try:
            job = self.store.start(self.epoch, job, now_s, version, quota)
        except SupersededError:
            raise
        except (ConflictError, QuotaError) as error:  # cancelled or paused a moment ago
            self.logger.info("%s", error)
            return False
        with log_fields(job=job.job_id, attempt=job.attempt):
            self.logger.info("%s starts: %s", job.name, job.spec.kind)
        self.metrics.started(job)
        run = kind(self, job)
        self._runs.add(run)

        def begin(run: Run) -> None:
            if problem is not None:
                raise problem
            run.begin()

        self._guarded(run, begin)
        return True

    def _base_version(self, job: Job) -> int:
        """The version that the job starts from, made first if the study has none."""
        head = self.store.head(job.tenant, job.study)
        if not head.digest:
            self.priors.make_first(self.epoch, job.tenant, job.study)
        if isinstance(job.spec, AdaptSpec | FewShotSpec) and not job.spec.moves_prior:
            return head.version if job.spec.prior_version is None else job.spec.prior_version
        return head.version

    def _give_up_late(self) -> None:
        """Fails queued jobs whose time is up."""
        if not self._every("deadlines", _LOOK_EVERY_S):
            return
        with self._timed("deadlines"):
            late = list(self._queue.late())
        for job, failure in late:
            try:
                self.store.give_up(self.epoch, job, self.now_s(), failure)
            except SupersededError:
                raise
            except ConflictError as error:
                self.logger.info("%s", error)
            else:
                self.metrics.failed(job, failure.reason)

    def _follow(self) -> None:
        """Passes progress on, and does what users ask of running jobs."""
        with self._changed_lock:
            changed, self._changed = self._changed, set()
        try:
            if self._runs and self._every("status", _LOOK_EVERY_S):
                with self._timed("status"):
                    self._report()
            for run in filter(None, map(self._runs.get, changed)):
                try:  # perhaps our own change
                    found = self.store.get_job(run.job.tenant, run.job.study, run.job.job_id).job
                except NotFoundError:
                    found = None
                self._heed(run, found)
        except UnavailableError:
            with self._changed_lock:
                self._changed |= changed

    def _report(self) -> None:
        """Stores how far jobs are, where that is news."""
        steps = {status.task_id: status for status in self.pool.status(0.5) if status.task_id is not None}
        for run in self._runs:
            progress = run.progress(steps)
            if progress is None or progress == run.last_progress:
                continue
            try:
                found = self.store.report(self.epoch, run.job, progress)
            except SupersededError:
                raise
            except (ConflictError, NotFoundError):
                self._heed(run, None)
                continue
            run.last_progress = progress
            self._heed(run, found)

    def _heed(self, run: Run, found: Job | None) -> None:
        """Does what is asked of a running job, as the store has it; drops the work where it is not ours any more."""
        mine = (run.job.epoch, run.job.attempt)
        if found is None or found.state not in ACTIVE or (found.epoch, found.attempt) != mine:
            self.logger.warning("job %s is no longer held in attempt %d; its work is dropped", run.job.name, mine[1])
            run.give_up()
            self.forget(run.job)
        elif found.state is JobState.CANCELLING:
            run.give_up()
            self._confirm_cancel(run.job)
            self.forget(run.job)
        elif found.suspended:
            run.pause()

    def _confirm_cancel(self, job: Job) -> None:
        self.owe(job, lambda: self.store.confirm_cancel(self.epoch, job, self.now_s()))

    def _guarded(self, run: Run, action: Callable[[Run], None]) -> None:
        """What goes wrong in one job fails that job, with a reason, or sends it back; never the coordinator."""
        with log_fields(job=run.job.job_id):
            self._survive(run, action)

    def _survive(self, run: Run, action: Callable[[Run], None]) -> None:
        try:
            action(run)
        except SupersededError:
            raise
        except ConflictError as error:
            self.logger.warning("%s; %s goes back to the queue", error, run.job.name)
            self.send_back(run, str(error), uses_attempt=True, cause=RetryCause.CONFLICT)
        except DataUnavailableError as error:
            self.logger.warning("job %s: %s", run.job.name, error)
            self.send_back(run, str(error), uses_attempt=True, cause=RetryCause.DATA_UNAVAILABLE)
        except UnavailableError as error:
            # Not the job's fault: it waits, and burns no attempt.
            self.logger.warning("job %s: %s", run.job.name, error)
            self.send_back(run, str(error), uses_attempt=False, cause=RetryCause.STORAGE_UNAVAILABLE)
        except MetaSearchError as error:
            self.fail(run, Failure(reason=_reason(error), message=str(error)))
        except Exception:
            self.logger.exception("job %s failed in the coordinator", run.job.name)
            message = "the coordinator failed at it; its log says why"
            self.fail(run, Failure(reason=FailureReason.INTERNAL, message=message))

    def fail(self, run: Run, failure: Failure) -> None:
        """RUNNING -> FAILED."""
        run.give_up()
        job = run.job
        self.logger.warning("job %s failed: %s: %s", job.name, failure.reason, failure.message)

        def commit() -> None:
            if self.store.get_job(job.tenant, job.study, job.job_id).job.state is JobState.CANCELLING:
                self.store.confirm_cancel(self.epoch, job, self.now_s())
            else:
                self.store.fail(self.epoch, job, self.now_s(), failure)
                self.metrics.failed(job, failure.reason)

        self.owe(job, commit)
        self.forget(job)

    def send_back(self, run: Run, note: str, uses_attempt: bool, cause: RetryCause) -> None:
        """RUNNING -> QUEUED, with a wait that doubles each time."""
        run.give_up()
        job = run.job
        back_off_s = min(self.settings.back_off_s * 2 ** min(job.attempt - 1, 10), MAX_BACK_OFF_S)
        self.owe(job, lambda: self._requeue(job, back_off_s, uses_attempt, note[:500], cause))
        self.forget(job)

    def _hand_over(self, job: Job, note: str) -> None:
        self._requeue(job, 0.0, False, note, RetryCause.DRAINED)

    def _requeue(self, job: Job, back_off_s: float, uses_attempt: bool, note: str, cause: RetryCause) -> None:
        after = self.store.requeue(self.epoch, job, self.now_s(), back_off_s, uses_attempt, note)
        if after.failure is not None:
            self.metrics.failed(after, after.failure.reason)
        elif after.state is JobState.QUEUED:
            self.metrics.retried(cause)

    def _pay(self) -> None:
        while self._owed:
            _, commit = self._owed[0]
            try:
                commit()
            except SupersededError:
                raise
            except (ConflictError, NotFoundError) as error:
                self.logger.warning("too late: %s", error)
                self._recovered = False  # being cancelled, perhaps: then nobody else ends it
            self._owed.pop(0)

    def _every(self, name: str, seconds: float) -> bool:
        """Whether it is time for something that is done that often, or less often where it takes long (`_timed`)."""
        now_s = self.monotonic_s()
        if name in self._took_s:
            seconds = max(seconds, self._took_s[name] / _MOST_OF_TIME[name])
        if now_s - self._last.get(name, -math.inf) < seconds:
            return False
        self._last[name] = now_s
        return True

    @contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        """Remembers how long it takes."""
        began_s = self.monotonic_s()
        try:
            yield
        finally:
            self._took_s[name] = self.monotonic_s() - began_s

    def _heard(self, topic: str | None) -> None:
        if topic is not None:
            with self._changed_lock:
                if topic in self._runs:
                    self._changed.add(topic)
                else:
                    self._look_at_queue = True


def _reason(error: MetaSearchError) -> FailureReason:
    return next((reason for kind, reason in _REASONS if isinstance(error, kind)), FailureReason.INTERNAL)
