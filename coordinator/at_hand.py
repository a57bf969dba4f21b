"""The jobs that one coordinator runs, and how they share the workers."""

from collections.abc import Iterator

from coordinator.fairness import more_calls
from coordinator.job_queue import Running
from coordinator.jobs import Job
from coordinator.pool import MAX_IN_FLIGHT
from coordinator.runs import Run
from coordinator.train_run import TrainRun


class AtHand:
    """Jobs in the order in which they started. What each turn needs of them costs the same however many there are.

    Attributes:
        counted: the jobs as the queue sees them.
    """

    def __init__(self) -> None:
        self.counted = Running()
        self._runs: dict[str, Run] = {}
        self._training: dict[str, TrainRun] = {}
        self._num_holding = 0

    def __len__(self) -> int:
        return len(self._runs)

    def __contains__(self, job_id: str) -> bool:
        return job_id in self._runs

    def __iter__(self) -> Iterator[Run]:
        """Those of now: others may start and end meanwhile."""
        return iter(list(self._runs.values()))

    @property
    def jobs(self) -> list[Job]:
        """All of them."""
        return [run.job for run in self._runs.values()]

    @property
    def training(self) -> list[TrainRun]:
        """Those that meta-train a study."""
        return list(self._training.values())

    def get(self, job_id: str | None) -> Run | None:
        """One of them, if it is at hand."""
        return None if job_id is None else self._runs.get(job_id)

    def add(self, run: Run) -> None:
        """A job has started."""
        self._runs[run.job.job_id] = run
        self.counted.add(run.job)
        self._num_holding += run.holds_worker
        if isinstance(run, TrainRun):
            self._training[run.job.job_id] = run

    def remove(self, job_id: str) -> None:
        """A job is no longer at hand, if it was."""
        run = self._runs.pop(job_id, None)
        if run is not None:
            self.counted.remove(run.job)
            self._num_holding -= run.holds_worker
            self._training.pop(job_id, None)

    def more_calls(self, run: TrainRun, num_workers: int) -> int:
        """Calls that meta-training may submit now, see `fairness.more_calls`. Jobs start where workers have room: all
        studies together leave one call more than jobs have, up to half of the room."""
        others = [(len(each.keys), each.has_more) for each in self._training.values() if each is not run]
        room = MAX_IN_FLIGHT * num_workers - min(self._num_holding + 1, num_workers)
        return more_calls(len(run.keys), others, room)
