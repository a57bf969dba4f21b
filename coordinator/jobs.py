"""Jobs as values: what can be asked for, the states a job goes through, and every legal move between them.

Pure: no store, no clock. A move that the table does not have raises ConflictError.

    QUEUED ──> RUNNING ──> SUCCEEDED | FAILED
      ^  │       │  └──> CANCELLING ──> CANCELLED
      │  │       v
      │  └──> CANCELLED | FAILED
      └──────────┘ its coordinator or worker is gone, drained, paused
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import Field, JsonValue

from common.config import DatasetRef, Frozen
from common.errors import ConflictError
from common.evaluate_config import EvaluateConfig
from common.few_shot_config import BatchStatistics
from common.limits import Limits
from common.space.genotype import DerivationRule, Genotype
from common.sweep_plan import SweepPlan
from common.tasks import DatasetFile, FewShotTask, TaskChoice


class JobState(StrEnum):
    """Where a job is."""

    QUEUED = "queued"
    RUNNING = "running"
    CANCELLING = "cancelling"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_terminal(self) -> bool:
        """Whether the state is the last one."""
        return self in TERMINAL


TERMINAL = frozenset({JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED})
ACTIVE = frozenset({JobState.RUNNING, JobState.CANCELLING})

TRANSITIONS = frozenset(
    {
        (JobState.QUEUED, JobState.RUNNING),
        (JobState.QUEUED, JobState.CANCELLED),
        (JobState.QUEUED, JobState.FAILED),
        (JobState.RUNNING, JobState.RUNNING),
        (JobState.RUNNING, JobState.QUEUED),
        (JobState.RUNNING, JobState.SUCCEEDED),
        (JobState.RUNNING, JobState.FAILED),
        (JobState.RUNNING, JobState.CANCELLING),
        (JobState.CANCELLING, JobState.CANCELLED),
    }
)
"""All there are; everything else is refused."""


class FailureReason(StrEnum):
    """Why a job failed."""

    INVALID_INPUT = "INVALID_INPUT"
    NOT_FOUND = "NOT_FOUND"
    CORRUPT_ARTIFACT = "CORRUPT_ARTIFACT"
    ADAPTATION_FAILED = "ADAPTATION_FAILED"
    ATTEMPTS_EXHAUSTED = "ATTEMPTS_EXHAUSTED"
    RESOURCE_UNAVAILABLE = "RESOURCE_UNAVAILABLE"
    DEADLINE_EXCEEDED = "DEADLINE_EXCEEDED"
    INTERNAL = "INTERNAL"


class AdaptSpec(Frozen):
    """Adapt a prior of the study to one task."""

    kind: Literal["adapt"] = "adapt"
    choice: TaskChoice
    """The task; with `file`, `choice.data.source` is only its name."""
    file: DatasetFile | None = None
    """A data file that workers fetch."""
    prior_version: int | None = Field(None, ge=0)
    """The latest when the job starts, where not given."""
    steps: int | None = Field(None, ge=1, le=1_000_000)
    """Inner steps; the study's `adapt.steps` where not given."""
    derivation: DerivationRule = "top2_pairs"
    limits: Limits = Limits()
    """The returned genotype respects them."""
    fine_tune_steps: int | None = Field(None, ge=1, le=1_000_000)
    """Steps with the derived network alone, which is then stored, ready to use; none is stored where not given."""
    contribute: bool = False
    """Let the task's update enter the prior: one more version, made by this job."""

    @property
    def moves_prior(self) -> bool:
        """Whether it makes versions of the prior. Such jobs of a study run one by one, in the order of submission."""
        return self.contribute


class MetaTrainSpec(Frozen):
    """Run rounds of the study."""

    kind: Literal["meta_train"] = "meta_train"
    until_version: int | None = Field(None, ge=1)
    """Version to stop at; the study's `rounds` where not given."""

    @property
    def moves_prior(self) -> bool:
        """See `AdaptSpec.moves_prior`."""
        return True


class EvaluateSpec(Frozen):
    """Train the full network of a genotype from scratch, and test it. The study's prior has no part in it."""

    kind: Literal["evaluate"] = "evaluate"
    genotype: Genotype
    config: EvaluateConfig
    """The resolved recipe."""
    data: DatasetRef
    """The images; with `file`, `data.source` is only their name."""
    file: DatasetFile | None = None
    """A data file that workers fetch."""

    @property
    def moves_prior(self) -> bool:
        """See `AdaptSpec.moves_prior`."""
        return False


class SweepSpec(Frozen):
    """Try many configurations of the study, or train several architectures. The study's prior has no part in it."""

    kind: Literal["sweep"] = "sweep"
    plan: SweepPlan
    """Without `study`, which is the job's."""

    @property
    def moves_prior(self) -> bool:
        """See `AdaptSpec.moves_prior`."""
        return False


class FewShotSpec(Frozen):
    """Learn classes from a handful of images by a few-shot study's prior, and label others."""

    kind: Literal["few_shot"] = "few_shot"
    task: FewShotTask
    file: DatasetFile | None = None
    """The task's pixels, see `workers.data.handful`; every job that was queued has one."""
    num_bytes: int = Field(0, ge=0)
    """Of `file`."""
    prior_version: int | None = Field(None, ge=0)
    """The latest when the job starts, where not given."""
    steps: int | None = Field(None, ge=0, le=1_000)
    """Inner steps; the study's `few_shot.test_steps` where not given."""
    statistics: BatchStatistics | None = None
    """The study's `few_shot.evaluation` where not given."""
    seed: int = Field(0, ge=0)
    """Of the noise, where architectures are sampled."""

    @property
    def moves_prior(self) -> bool:
        """See `AdaptSpec.moves_prior`."""
        return False


JobSpec = Annotated[AdaptSpec | MetaTrainSpec | EvaluateSpec | SweepSpec | FewShotSpec, Field(discriminator="kind")]


class Failure(Frozen):
    """Why a job failed, for programs and for people."""

    reason: FailureReason
    message: str


class Job(Frozen):
    """A request to the service and what became of it. Times are seconds since 1970, UTC."""

    tenant: str
    study: str
    job_id: str
    spec: JobSpec
    state: JobState = JobState.QUEUED
    priority: int = Field(4, ge=0, le=9)
    """9 goes first."""
    needs_gpu: bool = False
    """Only run on workers with a GPU."""
    suspended: bool = False
    """Paused: not started; a running one goes back to the queue after its present round or task."""
    attempt: int = 0
    """Times that it was started."""
    failures: int = 0
    """Of those, the ones that used up one of `max_attempts`: drain and pause do not."""
    max_attempts: int = Field(4, ge=1, le=100)
    epoch: int = 0
    """Of the coordinator that runs it."""
    base_version: int | None = None
    """Version of the prior that it runs on; fixed when it first starts, unless it moves the prior."""
    created_s: float
    started_s: float | None = None
    finished_s: float | None = None
    not_before_s: float = 0.0
    queue_deadline_s: float | None = None
    """A job that has not started by then fails."""
    progress: Mapping[str, JsonValue] = {}
    result: Mapping[str, JsonValue] | None = None
    failure: Failure | None = None
    note: str = ""
    """What happened last, for people."""

    @property
    def name(self) -> str:
        """Its resource name."""
        return f"studies/{self.study}/jobs/{self.job_id}"


def started(job: Job, epoch: int, now_s: float, base_version: int | None) -> Job:
    """QUEUED -> RUNNING.

    Raises:
        ConflictError: paused, too early, out of attempts, or not queued.
    """
    if job.state is not JobState.QUEUED:
        raise _illegal(job, JobState.RUNNING)
    if job.suspended:
        raise ConflictError(f"{job.name} is paused")
    if now_s < job.not_before_s:
        raise ConflictError(f"{job.name} waits for {job.not_before_s - now_s:.1f} s after a failure")
    if job.failures >= job.max_attempts:
        raise ConflictError(f"{job.name} has used up its {job.max_attempts} attempts")
    return _moved(
        job,
        JobState.RUNNING,
        attempt=job.attempt + 1,
        epoch=epoch,
        started_s=job.started_s or now_s,
        base_version=base_version if job.spec.moves_prior or job.base_version is None else job.base_version,
        note="",
    )


def reported(job: Job, epoch: int, attempt: int, progress: Mapping[str, Any]) -> Job:
    """RUNNING -> RUNNING: how far it is. A job that is being cancelled stays so."""
    if job.state is not JobState.CANCELLING:
        check_holder(job, epoch, attempt, JobState.RUNNING)
    elif (job.epoch, job.attempt) != (epoch, attempt):
        raise _lost(job, epoch, attempt)
    return job.model_copy(update={"progress": progress})


def requeued(job: Job, epoch: int, attempt: int, now_s: float, back_off_s: float, uses_attempt: bool, note: str) -> Job:
    """RUNNING -> QUEUED; RUNNING -> FAILED once attempts are used up; CANCELLING -> CANCELLED.

    Args:
        job: that stops running.
        epoch: of the coordinator that ran it.
        attempt: that it was.
        now_s: the time.
        back_off_s: how long it waits before it may start again.
        uses_attempt: False for drain, preemption and pause.
        note: why.
    """
    if (job.epoch, job.attempt) != (epoch, attempt) or job.state not in ACTIVE:
        raise _lost(job, epoch, attempt)
    if job.state is JobState.CANCELLING:
        return _moved(job, JobState.CANCELLED, finished_s=now_s, note=note)
    failures = job.failures + uses_attempt
    if failures >= job.max_attempts:
        message = f"started {job.attempt} times without a result; the last time: {note}"
        failure = Failure(reason=FailureReason.ATTEMPTS_EXHAUSTED, message=message)
        return _moved(job, JobState.FAILED, failures=failures, failure=failure, finished_s=now_s, note=note)
    return _moved(job, JobState.QUEUED, failures=failures, not_before_s=now_s + back_off_s, note=note)


def succeeded(job: Job, epoch: int, attempt: int, now_s: float, result: Mapping[str, Any]) -> Job:
    """RUNNING -> SUCCEEDED. The result's artifacts are stored already."""
    check_holder(job, epoch, attempt, JobState.SUCCEEDED)
    progress = {**job.progress, "done": job.progress["total"]} if "total" in job.progress else job.progress
    return _moved(job, JobState.SUCCEEDED, finished_s=now_s, result=result, progress=progress, note="")


def failed(job: Job, epoch: int, attempt: int, now_s: float, failure: Failure) -> Job:
    """RUNNING -> FAILED, for a reason that another attempt would meet again."""
    check_holder(job, epoch, attempt, JobState.FAILED)
    return _moved(job, JobState.FAILED, finished_s=now_s, failure=failure)


def cancelled(job: Job, now_s: float) -> Job:
    """What a user's cancel does: QUEUED -> CANCELLED, RUNNING -> CANCELLING. A second cancel changes nothing."""
    if job.state in (JobState.CANCELLED, JobState.CANCELLING):
        return job
    if job.state is JobState.QUEUED:
        return _moved(job, JobState.CANCELLED, finished_s=now_s, note="cancelled before it started")
    return _moved(job, JobState.CANCELLING, note="cancel was asked for")


def cancel_confirmed(job: Job, epoch: int, attempt: int, now_s: float) -> Job:
    """CANCELLING -> CANCELLED, once its worker has let go."""
    if job.state is not JobState.CANCELLING:
        raise _illegal(job, JobState.CANCELLED)
    if (job.epoch, job.attempt) != (epoch, attempt):
        raise _lost(job, epoch, attempt)
    return _moved(job, JobState.CANCELLED, finished_s=now_s, note="cancelled while it ran")


def given_up(job: Job, now_s: float, failure: Failure) -> Job:
    """QUEUED -> FAILED: its deadline passed before it could start."""
    if job.queue_deadline_s is None or now_s < job.queue_deadline_s:
        raise ConflictError(f"{job.name} has no deadline that has passed")
    if job.state is not JobState.QUEUED:
        raise _illegal(job, JobState.FAILED)
    return _moved(job, JobState.FAILED, finished_s=now_s, failure=failure)


def suspended(job: Job, suspended: bool) -> Job:
    """Pauses a job, or lets it go on. No change of state."""
    if job.state.is_terminal or job.state is JobState.CANCELLING:
        raise ConflictError(f"{job.name} is {job.state}; only queued and running jobs can be paused or resumed")
    note = "paused" if suspended else "resumed"
    return job if job.suspended == suspended else job.model_copy(update={"suspended": suspended, "note": note})


def _moved(job: Job, to: JobState, **changes: Any) -> Job:
    if (job.state, to) not in TRANSITIONS:
        raise _illegal(job, to)
    return job.model_copy(update={"state": to, **changes})


def check_holder(job: Job, epoch: int, attempt: int, to: JobState) -> None:
    """Whether the job runs in that attempt of that coordinator, which wants to change it.

    Raises:
        ConflictError: it does not.
    """
    if job.state is not JobState.RUNNING:
        raise _illegal(job, to)
    if (job.epoch, job.attempt) != (epoch, attempt):
        raise _lost(job, epoch, attempt)


def _illegal(job: Job, to: JobState) -> ConflictError:
    return ConflictError(f"{job.name} is {job.state}; from there it cannot become {to}")


def _lost(job: Job, epoch: int, attempt: int) -> ConflictError:
    return ConflictError(
        f"{job.name} is {job.state} in attempt {job.attempt} of coordinator {job.epoch}; attempt {attempt} of "
        f"coordinator {epoch} no longer holds it"
    )
