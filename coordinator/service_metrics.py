"""What a coordinator has to say of its work, in the words of the catalogue. No Ray here, and no clock."""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Protocol

from common.metrics import (
    DRAINING,
    JOB_KINDS,
    JOB_SECONDS,
    JOBS_FAILED,
    JOBS_RUNNING,
    JOBS_STARTED,
    RETRIES,
    UPDATES_ACCEPTED,
    UPDATES_REJECTED,
    WORKERS,
    WORKERS_REPLACED,
    MetricRecorder,
    NothingRecorded,
    RetryCause,
    StudyLabels,
    record_round,
)
from coordinator.jobs import FailureReason, Job


class Staff(Protocol):
    """The workers of a pool."""

    @property
    def num_by_state(self) -> Mapping[str, int]:
        """Workers by state, see `common.metrics.WORKERS`."""
        ...

    @property
    def num_replaced(self) -> int:
        """Workers that had to be replaced so far."""
        ...


class ServiceMetrics:
    """See the module.

    Args:
        recorder: takes the figures.
    """

    def __init__(self, recorder: MetricRecorder | None = None) -> None:
        self._recorder = recorder or NothingRecorded()
        self._studies = StudyLabels()
        self._num_replaced = 0

    def started(self, job: Job) -> None:
        """An attempt at a job starts."""
        self._recorder.add(JOBS_STARTED, kind=job.spec.kind)

    def succeeded(self, job: Job, now_s: float) -> None:
        """A job has succeeded, and the store knows."""
        self._recorder.observe(JOB_SECONDS, max(now_s - job.created_s, 0.0), kind=job.spec.kind)

    def failed(self, job: Job, reason: FailureReason) -> None:
        """A job has failed, and the store knows."""
        self._recorder.add(JOBS_FAILED, kind=job.spec.kind, reason=str(reason))

    def retried(self, cause: RetryCause) -> None:
        """A job goes back to the queue, or a task of a round is run again."""
        self._recorder.add(RETRIES, cause=str(cause))

    def rejected(self, reason: str) -> None:
        """An update does not count."""
        self._recorder.add(UPDATES_REJECTED, reason=reason)

    def accepted(self, count: int) -> None:
        """Updates have entered a prior, and the store knows."""
        self._recorder.add(UPDATES_ACCEPTED, count)

    def measured(self, job: Job, values: Mapping[str, float]) -> None:
        """A version of the prior of a job's study: what its round measured, or less where there was none."""
        record_round(self._recorder, values, self._studies.of(job.tenant, job.study))

    def look(self, jobs: Iterable[Job], staff: Staff, draining: bool) -> None:
        """How things stand now."""
        running = Counter(job.spec.kind for job in jobs)
        for kind in JOB_KINDS:
            self._recorder.set(JOBS_RUNNING, running[kind], kind=kind)  # type: ignore[index]
        for state, count in staff.num_by_state.items():
            self._recorder.set(WORKERS, count, state=state)
        self._recorder.add(WORKERS_REPLACED, staff.num_replaced - self._num_replaced)
        self._num_replaced = staff.num_replaced
        self._recorder.set(DRAINING, float(draining))
