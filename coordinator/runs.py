"""The jobs that a coordinator has at hand: the calls that each makes, and what becomes of their outcomes. Adapting."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from logging import Logger
from typing import Any, ClassVar, Protocol

from common.config import StudyConfig
from common.errors import AdaptationError, UnavailableError
from common.log_fields import log_fields
from common.messages import ArtifactInfo, JobRequest, JobResult
from common.meta.prior import Prior
from common.metrics import RetryCause
from common.storage import ArtifactFolder
from coordinator.calls import Call, Outcome
from coordinator.jobs import AdaptSpec, Job
from coordinator.outer import OuterStep
from coordinator.priors import ATTEMPT, StudyPriors
from coordinator.rounds import architecture_metrics
from coordinator.service_metrics import ServiceMetrics
from coordinator.store.jobs import JobStore
from coordinator.store.records import Plan
from workers.actor import WorkerStatus
from workers.evaluate import CHECKPOINTS


class Workers(Protocol):
    """Where calls run."""

    @property
    def max_workers(self) -> int:
        """The most workers that there may be."""
        ...


class Desk(Protocol):
    """What runs need of their dispatcher.

    Attributes:
        epoch: of the coordinator.
        store: of jobs.
        priors: of all studies.
        background: for what takes long and needs no worker.
        logger: of the coordinator.
        metrics: hears of what is done.
        now_s: seconds since 1970.
        monotonic_s: a clock that never jumps.
    """

    epoch: int
    store: JobStore
    priors: StudyPriors
    background: ThreadPoolExecutor
    logger: Logger
    metrics: ServiceMetrics
    now_s: Callable[[], float]
    monotonic_s: Callable[[], float]

    def more_calls(self, run: "Run") -> int:
        """Calls that a run which has many to make may submit now."""
        ...

    @property
    def pool(self) -> Workers:
        """The workers."""
        ...

    def submit(self, run: "Run", key: str, request: Call, prior: Prior | None) -> None:
        """Hands a call of a run to the workers."""
        ...

    def abandon(self, key: str) -> None:
        """Takes a call back."""
        ...

    def owe(self, job: Job, commit: Callable[[], object]) -> None:
        """Commits now, or as soon as the store answers."""
        ...

    def forget(self, job: Job) -> None:
        """The job is no longer at hand."""
        ...

    def send_back(self, run: "Run", note: str, uses_attempt: bool, cause: RetryCause) -> None:
        """RUNNING -> QUEUED."""
        ...


class Run(ABC):
    """A job at hand."""

    holds_worker: ClassVar[bool] = False
    """Whether each of its calls is a job to a worker, see `PendingCall.is_job`."""
    config: StudyConfig
    """Of its study; from `begin` on."""

    def __init__(self, desk: Desk, job: Job) -> None:
        self.desk = desk
        self.job = job
        self.last_progress: Mapping[str, Any] = {}

    @abstractmethod
    def begin(self) -> None:
        """Hands out the first calls."""

    @abstractmethod
    def take(self, outcome: Outcome) -> None:
        """Takes what became of a call."""

    @abstractmethod
    def progress(self, workers: Mapping[str, WorkerStatus]) -> Mapping[str, Any] | None:
        """How far it is; None where nothing is known."""

    @abstractmethod
    def pause(self) -> None:
        """Stops at the next good moment, and goes back to the queue."""

    @abstractmethod
    def give_up(self) -> None:
        """Takes all its calls back."""

    def succeed(self, result: Mapping[str, Any]) -> None:
        """RUNNING -> SUCCEEDED, with the result."""
        self.conclude(lambda: self.desk.store.succeed(self.desk.epoch, self.job, self.desk.now_s(), result))

    def conclude(self, commit: Callable[[], object]) -> None:
        """RUNNING -> SUCCEEDED, by a commit of the store."""

        def commit_and_tidy() -> None:
            commit()
            with log_fields(job=self.job.job_id):
                self.desk.logger.info("%s has succeeded", self.job.name)
            self.desk.metrics.succeeded(self.job, self.desk.now_s())
            self.tidy()

        self.desk.owe(self.job, commit_and_tidy)
        self.desk.forget(self.job)

    def tidy(self) -> None:  # noqa: B027 some leave nothing behind
        """Called once the job has succeeded and the store knows: removes what it was to be resumed from."""


class CallRun(Run):
    """A job of one call, or of one after the other, each under the job's id. The last one's result is the job's.

    A kind of job says what it asks for (`asked`) and how far it is (`progress`). What differs from the usual course
    otherwise is a method of its own: `found`, where a call may end before the job does; `pause`, where a call cannot be
    given up at any moment.
    """

    prior: Prior | None = None
    """What the calls start from; None where they need no prior."""

    def begin(self) -> None:
        """See `Run`."""
        self.config = self.desk.priors.config_of(self.job.tenant, self.job.study)
        self.url = self.desk.priors.url_of(self.job)
        self.request = self.asked()
        self.call()

    @abstractmethod
    def asked(self) -> Call:
        """The request, from `job`, `config` and `url`, the folder of this attempt. Sets `prior` where one is needed."""

    def call(self) -> None:
        """Hands the request out, for the first time or again."""
        self.desk.submit(self, self.job.job_id, self.request, self.prior)

    def take(self, outcome: Outcome) -> None:
        """See `Run`."""
        if outcome.error is not None:
            raise outcome.error
        if outcome.lost:
            self.desk.send_back(self, outcome.lost, outcome.uses_attempt, outcome.retry_cause)
            return
        self.found(outcome.result)

    def found(self, result: Any) -> None:
        """Takes what a call has returned; here, the end of the job."""
        self.succeed(result_of(result.summary, result.artifacts, self.url))

    leaves_checkpoints: ClassVar[bool] = False
    """Whether calls leave checkpoints in the attempt's folder."""

    def tidy(self) -> None:
        """See `Run`: the folders of earlier attempts, and the checkpoints of this one.

        Another attempt could not need them, as there will be none. A worker that was believed dead may still write to
        its folder, and then leaves files there that nobody reads.
        """
        if self.job.attempt > 1 or self.leaves_checkpoints:
            self.desk.background.submit(_remove_remains, self.url, self.desk.logger)

    def base_prior(self) -> Prior:
        """The prior of the version that the job runs on."""
        assert self.job.base_version is not None
        return self.desk.priors.load(self.job.tenant, self.job.study, self.job.base_version)

    def pause(self) -> None:
        """See `Run`: at once."""
        self.desk.send_back(self, "paused", uses_attempt=False, cause=RetryCause.PAUSED)

    def give_up(self) -> None:
        """See `Run`."""
        self.desk.abandon(self.job.job_id)


def result_of(summary: Mapping[str, Any], artifacts: Sequence[ArtifactInfo], url: str) -> dict[str, Any]:
    """The result of a job that has left artifacts in a folder."""
    return {"summary": dict(summary), "artifacts": [asdict(artifact) for artifact in artifacts], "url": url}


def _remove_remains(url: str, logger: Logger) -> None:
    """Removes what a job that has succeeded leaves beside its result's folder, and its checkpoints there."""
    job_url, _, own = url.rpartition("/")
    try:
        ArtifactFolder(url).remove_tree(CHECKPOINTS)
        folder = ArtifactFolder(job_url)
        for name in folder.names("", ""):
            if name.startswith(ATTEMPT) and name != own:
                folder.remove_tree(name)
    except UnavailableError as error:  # they take room, and do no harm
        logger.warning("%s", error)


class AdaptRun(CallRun):
    """With `contribute`, its update makes a new version of the prior."""

    holds_worker = True
    prior: Prior

    def asked(self) -> JobRequest:
        """See `CallRun`."""
        spec, job = self.job.spec, self.job
        assert isinstance(spec, AdaptSpec) and job.base_version is not None
        self.prior = self.base_prior()
        inner = self.config.adapt if spec.steps is None else self.config.adapt.model_copy(update={"steps": spec.steps})
        self.steps = inner.steps + (spec.fine_tune_steps or 0)
        if spec.contribute:
            # Read now: once there is a result, the store may be away.
            self.intake = self.desk.priors.carried(job.tenant, job.study, job.base_version)
            self.desk.store.open_plan(
                self.desk.epoch,
                job.tenant,
                job.study,
                Plan(
                    job_id=job.job_id,
                    base_version=job.base_version,
                    task_ids=(job.job_id,),
                    rule=self.config.outer.rule,
                ),
            )
        return JobRequest(
            job_id=job.job_id,
            attempt=job.attempt,
            choice=spec.choice,
            file=spec.file,
            config=self.config,
            inner=inner,
            version=job.base_version,
            derivation=spec.derivation,
            limits=spec.limits,
            result_url=self.url,
            returns_update=spec.contribute,
            fine_tune_steps=spec.fine_tune_steps,
        )

    def found(self, result: JobResult) -> None:
        """See `CallRun`."""
        if result.update is None:
            super().found(result)
            return
        desk, job = self.desk, self.job
        outer = OuterStep(self.prior, self.config)
        rejection = outer.absorb(result.update)
        if rejection is not None:
            desk.metrics.rejected(rejection.reason)
            raise AdaptationError(f"the update cannot enter the prior: {rejection.reason} ({rejection.detail})")
        following = outer.finish()
        metrics = dict(architecture_metrics(following, self.config))
        pointer = desk.priors.save(job.tenant, job.study, following, job.job_id, metrics, self.intake)
        stored = result_of({**result.summary, "contributed_version": following.version}, result.artifacts, self.url)

        def commit() -> None:
            desk.store.advance(desk.epoch, job.tenant, job.study, pointer, job.attempt, desk.now_s(), stored)
            desk.metrics.accepted(1)
            desk.metrics.measured(job, {"prior_version": following.version, **metrics})

        self.conclude(commit)

    def progress(self, workers: Mapping[str, WorkerStatus]) -> Mapping[str, Any] | None:
        """See `Run`; counts steps."""
        status = workers.get(self.job.job_id)
        if status is None:
            return None
        return {"done": status.steps_done, "total": self.steps, "worker": status.short_name, **interim_of(status)}


def interim_of(status: WorkerStatus) -> dict[str, Any]:
    """What a worker has found so far, for `progress`."""
    if status.interim is None:
        return {}
    return {"accuracy": status.interim.accuracy, "genotype_json": status.interim.genotype.to_json()}
