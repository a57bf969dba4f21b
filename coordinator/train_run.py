"""Meta-training as a job at hand: round after round, or without rounds."""

from abc import abstractmethod
from collections import Counter, deque
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

from common.config import ClusterConfig, StudyConfig
from common.errors import AdaptationError
from common.intake import Intake
from common.log_fields import log_fields
from common.messages import AdaptRequest, PartialSum, PartialSumRequest, Rejection, span_of
from common.meta.prior import Prior
from common.metrics import RetryCause
from common.storage import ArtifactFolder
from coordinator.buffered import BufferedAggregation
from coordinator.calls import Outcome
from coordinator.jobs import Job, MetaTrainSpec
from coordinator.rounds import Result, Round, bundled, plan, rejected_by, request_of, task_id_of
from coordinator.runs import Desk, Run, result_of
from coordinator.store.records import Plan
from coordinator.study import load_catalogs
from workers.actor import WorkerStatus
from workers.data.arrays import ClassArrays
from workers.results import store_results

_TASK_ATTEMPTS = ClusterConfig().max_attempts


class TrainRun(Run):
    """Versions of the prior, one after the other, each kept by one commit. What is given up leaves no trace."""

    def __init__(self, desk: Desk, job: Job) -> None:
        super().__init__(desk, job)
        self.keys: set[str] = set()

    def begin(self) -> None:
        """See `Run`."""
        spec = self.job.spec
        assert isinstance(spec, MetaTrainSpec)
        self.config = self.desk.priors.config_of(self.job.tenant, self.job.study)
        self.target = spec.until_version or self.config.rounds
        self.pausing = False
        self.metrics: Mapping[str, float] = {}
        self.losses: Counter[str] = Counter()
        head = self.desk.store.head(self.job.tenant, self.job.study)
        self.prior = self.desk.priors.load(self.job.tenant, self.job.study, head.version)
        self.desk.metrics.measured(self.job, {"prior_version": head.version})
        self.started_s = self.desk.monotonic_s()
        # Images may have to be prepared first, which takes its time.
        self.catalogs: Future[list[ClassArrays]] = self.desk.background.submit(load_catalogs, self.config)
        self._next()

    def _next(self) -> None:
        """Hands out tasks towards the next version, if there is one, and as soon as there are images."""
        if self.prior.version >= self.target:
            self._end()
        elif self.catalogs.done():
            self._hand_out(self.catalogs.result())

    @property
    @abstractmethod
    def is_at_work(self) -> bool:
        """Whether something would be lost if it stopped now."""

    @property
    @abstractmethod
    def has_more(self) -> bool:
        """Whether it would submit more calls if it might."""

    @abstractmethod
    def _hand_out(self, catalogs: list[ClassArrays]) -> None:
        """Submits what there is to do."""

    @abstractmethod
    def _again(self, name: str) -> AdaptRequest | PartialSumRequest:
        """What was submitted under a name, and is lost, to be submitted again."""

    @abstractmethod
    def _absorb(self, result: Result) -> Rejection | None:
        """Takes a result, or says why not."""

    @abstractmethod
    def _step_if_due(self) -> None:
        """Makes the next version, if there is enough to make it of; then goes on."""

    def _submit(self, name: str, request: AdaptRequest | PartialSumRequest) -> None:
        key = f"{self.job.job_id}/{name}"
        self.keys.add(key)
        self.desk.submit(self, key, request, self.prior)

    def take(self, outcome: Outcome) -> None:
        """See `Run`."""
        self.keys.discard(outcome.key)
        name = outcome.key.removeprefix(f"{self.job.job_id}/")
        if outcome.error is not None:
            raise outcome.error
        if outcome.lost:
            self.losses[name] += outcome.uses_attempt
            if self.losses[name] >= max(self.config.cluster.max_attempts, _TASK_ATTEMPTS):
                raise AdaptationError(
                    f"task {name} was started {self.losses[name]} times without a result; the last time {outcome.lost}"
                )
            self.desk.metrics.retried(outcome.retry_cause)
            self._submit(name, self._again(name))
            return
        result: Result = outcome.result
        for rejection in rejected_by(result, self._absorb(result)):
            self.desk.metrics.rejected(rejection.reason)
            with log_fields(round=self.prior.version + 1):
                self.desk.logger.warning("rejected %s: %s (%s)", rejection.task_id, rejection.reason, rejection.detail)
        self._step_if_due()

    def look(self) -> None:
        """Called every turn, for what is not news of a call: images that are there, a round that is late, room."""
        if self.is_at_work:
            self._step_if_due()
        else:
            self._next()

    def _open(self, task_ids: tuple[str, ...], base_versions: tuple[int, ...] = ()) -> None:
        """Stores what makes the next version."""
        plan_of_it = Plan(
            job_id=self.job.job_id,
            base_version=self.prior.version,
            task_ids=task_ids,
            rule=self.config.outer.rule,
            base_versions=base_versions,
        )
        self.desk.store.open_plan(self.desk.epoch, self.job.tenant, self.job.study, plan_of_it)

    def _keep(self, following: Prior, metrics: dict[str, float], intake: Intake | None) -> None:
        """Makes a new version the latest, and goes on with it."""
        job, desk = self.job, self.desk
        metrics["round_seconds"] = desk.monotonic_s() - self.started_s
        pointer = desk.priors.save(job.tenant, job.study, following, job.job_id, metrics, intake)
        # An outage here sends the job back to the queue; whoever runs it then finds version + 1, or makes another.
        desk.store.advance(desk.epoch, job.tenant, job.study, pointer, job.attempt, desk.now_s())
        self.prior, self.metrics = following, metrics
        self.started_s = desk.monotonic_s()
        desk.metrics.accepted(int(metrics["tasks_accepted"]))
        desk.metrics.measured(job, metrics)
        with log_fields(round=following.version):
            desk.logger.info(
                "%s: version %d of %d, loss %.3f", job.name, following.version, self.target, metrics["train_loss_last"]
            )
        desk.priors.prune(desk.epoch, job.tenant, job.study, self.config.checkpoint.keep_last)
        if self.pausing and following.version < self.target:
            desk.send_back(self, "paused", uses_attempt=False, cause=RetryCause.PAUSED)
            return
        self._next()

    def _end(self) -> None:
        """Leaves what `metasearch train` leaves in a run's folder, but with one version of the prior: the last."""
        job, desk, version = self.job, self.desk, self.prior.version
        url = desk.priors.url_of(job)
        files = desk.priors.run_files(job.tenant, job.study, version)
        artifacts = store_results(ArtifactFolder(url), files, None)
        self.succeed(result_of({"prior_version": version, "prior_sha256": self.prior.digest()}, artifacts, url))

    def progress(self, workers: Mapping[str, WorkerStatus]) -> Mapping[str, Any] | None:
        """See `Run`."""
        return {"done": self.prior.version, "total": self.target, "metrics": dict(self.metrics)}

    def pause(self) -> None:
        """See `Run`."""
        self.pausing = True
        if not self.is_at_work:
            self.desk.send_back(self, "paused", uses_attempt=False, cause=RetryCause.PAUSED)

    def give_up(self) -> None:
        """See `Run`."""
        for key in self.keys:
            self.desk.abandon(key)
        self.keys.clear()


class RoundsRun(TrainRun):
    """In synchronous rounds; see `coordinator.rounds`. One that is given up is computed again to the same bytes."""

    round: Round | None = None

    def __init__(self, desk: Desk, job: Job) -> None:
        super().__init__(desk, job)
        self.waiting: deque[str] = deque()

    @property
    def is_at_work(self) -> bool:
        """See `TrainRun`."""
        return self.round is not None

    @property
    def has_more(self) -> bool:
        """See `TrainRun`."""
        return bool(self.waiting)

    def _hand_out(self, catalogs: list[ClassArrays]) -> None:
        round_plan = plan(self.prior, self.config, catalogs)
        asked = [replace(request, job_id=self.job.job_id) for request in round_plan.requests]
        bundles = bundled(asked, self.config, self.desk.pool.max_workers)
        self.requests = {span_of(request.task_ids): request for request in bundles}
        self.waiting = deque(self.requests)
        self._open(tuple(request.task.task_id for request in round_plan.requests))
        self.round = Round(self.prior, round_plan, self.config)
        self.started_s = self.desk.monotonic_s()
        self._fill()

    def _fill(self) -> None:
        """Submits as many tasks as there is room for, beside what others have submitted."""
        for _ in range(min(self.desk.more_calls(self), len(self.waiting))):
            name = self.waiting.popleft()
            self._submit(name, self.requests[name])

    def _again(self, name: str) -> AdaptRequest | PartialSumRequest:
        return self.requests[name]

    def _absorb(self, result: Result) -> Rejection | None:
        assert self.round is not None
        return self.round.absorb(result)

    def _step_if_due(self) -> None:
        assert self.round is not None
        if not (self.round.is_complete or (self._is_late and self.round.has_quorum)):
            self._fill()
            return
        self.give_up()  # the tasks that are late
        intake = self.round.intake
        following, metrics = self.round.finish()
        self.round = None
        self._keep(following, metrics, intake)

    @property
    def _is_late(self) -> bool:
        deadline_s = self.config.schedule.deadline_s
        return deadline_s is not None and self.desk.monotonic_s() - self.started_s >= deadline_s


class BufferedRun(TrainRun):
    """In buffered mode; see `coordinator.buffered`. Another attempt begins anew what had no effect yet."""

    course: BufferedAggregation | None = None

    @property
    def is_at_work(self) -> bool:
        """See `TrainRun`."""
        return self.course is not None

    @property
    def has_more(self) -> bool:
        """See `TrainRun`."""
        return self.course is not None

    def _hand_out(self, catalogs: list[ClassArrays]) -> None:
        config = self.config
        if self.course is None:
            done = self.desk.priors.done_tasks(self.job.tenant, self.job.study, self.prior.version)
            self.course = BufferedAggregation(
                self.prior,
                config,
                lambda number, prior: replace(request_of(number, prior, config, catalogs), job_id=self.job.job_id),
                done,
                self.target,
            )
            self.started_s = self.desk.monotonic_s()
        for request in self.course.hand_out(self.desk.more_calls(self)):
            self._submit(request.task.task_id, request)

    def _again(self, name: str) -> AdaptRequest:
        assert self.course is not None
        return self.course.hand_out_again(name)

    def _absorb(self, result: Result) -> Rejection | None:
        assert self.course is not None and not isinstance(result, PartialSum)
        return self.course.absorb(result)

    def _step_if_due(self) -> None:
        assert self.course is not None
        if not self.course.is_full:
            self._next()  # there may be room for more tasks
            return
        following, metrics, intake = self.course.step()
        self._open(
            tuple(task_id_of(number, self.config) for number, _ in intake.accepted),
            tuple(version for _, version in intake.accepted),
        )
        self._keep(following, metrics, intake)


def train_run_of(config: StudyConfig) -> type[TrainRun]:
    """What runs the meta-training of a study."""
    return BufferedRun if config.schedule.mode == "buffered" else RoundsRun
