"""What the coordinator does with jobs, turn by turn: start, follow, finish. No Ray here, and no clock of its own.

Nothing that matters lives here alone. Whoever takes charge next finds the jobs that were running in the store, puts
them back into the queue, and computes again what was not committed, to the same bytes.
"""

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from typing import Any, Protocol

from common.artifacts import load_prior, remove_prior, save_prior
from common.config import ClusterConfig, StudyConfig, validate
from common.errors import (
    AdaptationError,
    ConflictError,
    CorruptArtifactError,
    InvalidInputError,
    MetaSearchError,
    NotFoundError,
    QuotaError,
    UnavailableError,
)
from common.messages import AdaptRequest, AdaptResult, JobRequest, JobResult
from common.meta.prior import Prior, initial_prior
from common.storage import ArtifactFolder
from coordinator.fairness import MAX_BACK_OFF_S, pick
from coordinator.jobs import AdaptSpec, Failure, FailureReason, Job, JobState, MetaTrainSpec
from coordinator.outer import OuterStep
from coordinator.pool import MAX_IN_FLIGHT, Outcome
from coordinator.rounds import Round, architecture_metrics, plan
from coordinator.settings import ServiceSettings
from coordinator.store.jobs import JobStore, Plan, PriorPointer, SupersededError
from coordinator.study import load_catalogs
from workers.actor import WorkerStatus
from workers.data.arrays import ClassArrays

_KEPT_PRIORS = 8
_LOOK_EVERY_S = 1.0
_TASK_ATTEMPTS = ClusterConfig().max_attempts

_REASONS: tuple[tuple[type[MetaSearchError], FailureReason], ...] = (
    (InvalidInputError, FailureReason.INVALID_INPUT),
    (NotFoundError, FailureReason.NOT_FOUND),
    (CorruptArtifactError, FailureReason.CORRUPT_ARTIFACT),
    (AdaptationError, FailureReason.ADAPTATION_FAILED),
)


class Pool(Protocol):
    """Where calls run; see `coordinator.pool.RayPool`."""

    gpus_per_worker: float

    @property
    def num_workers(self) -> int:
        """Workers that it holds."""
        ...

    @property
    def num_pending(self) -> int:
        """Calls without an outcome yet."""
        ...

    def submit(self, key: str, request: AdaptRequest | JobRequest, prior: Prior) -> None:
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
        settings: lease, beat, back-off, quotas, artifacts.
        holder: names this coordinator, for people.
        now_s: seconds since 1970.
        monotonic_s: a clock that never jumps.
        logger: of the coordinator.
        capacity: what the cluster has, in words, for jobs that find no resources.

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
    ) -> None:
        self.store = store
        self.pool = pool
        self.settings = settings
        self.now_s = now_s
        self.logger = logger
        self._monotonic_s = monotonic_s
        self._capacity = capacity
        self.artifacts = ArtifactFolder(settings.artifacts)
        self.epoch = store.take_charge(holder)
        self.draining = False
        self._runs: dict[str, _Run] = {}
        self._owner_of: dict[str, str] = {}
        self._owed: list[tuple[str, Callable[[], None]]] = []
        self._priors: OrderedDict[str, Prior] = OrderedDict()
        self._configs: dict[tuple[str, str], StudyConfig] = {}
        self._changed: set[str] = set()
        self._changed_lock = threading.Lock()
        self._look_at_queue = True
        self._last: dict[str, float] = {}
        self.background = ThreadPoolExecutor(1, thread_name_prefix="catalogs")
        self._end_subscription = store.ledger.subscribe(self._heard)
        self._recovered = False

    # Seen from outside

    @property
    def running(self) -> list[Job]:
        """The jobs at hand."""
        return [run.job for run in self._runs.values()]

    def turn(self, timeout_s: float) -> None:
        """One turn: at most `timeout_s` of waiting. Storage that does not answer delays things and loses nothing."""
        try:
            if self._every("beat", self.settings.beat_s):
                self.store.beat(self.epoch, {"running": len(self._runs), "workers": self.pool.num_workers})
            if not self._recovered:
                self._recover()
                self._recovered = True
            self._pay()
            if self._every("lost", self.settings.lease_s / 3):
                self._recover()
            if not self.draining:
                self._start_jobs()
        except UnavailableError as error:
            # A job may have been started without our hearing of it: it goes back before another one starts, so that
            # jobs that move a prior keep their order.
            self._recovered = False
            if self._every("complaint", 5.0):
                self.logger.warning("%s", error)
        for outcome in self.pool.poll(timeout_s):
            owner = self._owner_of.pop(outcome.key, None)
            if owner is not None and owner in self._runs:
                self._guarded(self._runs[owner], lambda run, found=outcome: run.take(found))  # type: ignore[misc]
        for run in list(self._runs.values()):
            self._guarded(run, lambda run: run.look())
        self._follow()

    def drain(self) -> None:
        """Hands all running jobs over: they go back to the queue, and burn no attempt."""
        self.draining = True
        for run in list(self._runs.values()):
            run.give_up()
            self.owe(run.job, lambda job=run.job: self._hand_over(job, "the coordinator was drained"))  # type: ignore[misc]
            self.forget(run.job)

    @property
    def is_drained(self) -> bool:
        """Whether nothing is at hand any more, and the store knows."""
        return self.draining and not self._runs and not self._owed

    def close(self) -> None:
        """Ends what listens and reads in the background."""
        self._end_subscription()
        self.background.shutdown(wait=False, cancel_futures=True)

    # For runs

    def submit(self, run: "_Run", key: str, request: AdaptRequest | JobRequest, prior: Prior) -> None:
        """Hands a call of a run to the pool."""
        self._owner_of[key] = run.job.job_id
        self.pool.submit(key, request, prior)

    def abandon(self, key: str) -> None:
        """Takes a call back."""
        if self._owner_of.pop(key, None) is not None:
            self.pool.abandon(key)

    def owe(self, job: Job, commit: Callable[[], None]) -> None:
        """Commits now, or as soon as the store answers. What the store refuses is dropped: the job has moved on."""
        self._owed.append((job.job_id, commit))
        try:
            self._pay()
        except UnavailableError as error:
            self.logger.warning("%s", error)

    def forget(self, job: Job) -> None:
        """The job is no longer at hand."""
        self._runs.pop(job.job_id, None)
        self._look_at_queue = True

    def folder_of(self, job: Job) -> str:
        """Where the results of a job's present attempt go."""
        return f"{self._study_folder(job.tenant, job.study)}/jobs/{job.job_id}/attempt-{job.epoch}-{job.attempt}"

    def config_of(self, tenant: str, study: str) -> StudyConfig:
        """Configuration of a study."""
        if (tenant, study) not in self._configs:
            self._configs[tenant, study] = validate(self.store.get_study(tenant, study).config)
        return self._configs[tenant, study]

    def prior_of(self, tenant: str, study: str, version: int) -> Prior:
        """A version of the prior of a study."""
        pointer = self.store.get_prior(tenant, study, version)
        if pointer.digest not in self._priors:
            stem = f"{self._study_folder(tenant, study)}/{pointer.stem}"
            prior = load_prior(self.artifacts, stem, version)
            if prior.digest() != pointer.digest:
                raise CorruptArtifactError(f"{self.artifacts.path(stem)} is not the prior that the job store names")
            self._keep(prior)
        self._priors.move_to_end(pointer.digest)
        return self._priors[pointer.digest]

    def store_prior(
        self, tenant: str, study: str, prior: Prior, made_by: str, metrics: Mapping[str, float]
    ) -> PriorPointer:
        """Stores the files of a prior under its content's hash: two coordinators cannot overwrite each other's."""
        digest = prior.digest()
        stem = f"priors/{prior.version:08d}-{digest[:16]}"
        save_prior(self.artifacts, f"{self._study_folder(tenant, study)}/{stem}", prior)
        self._keep(prior)
        return PriorPointer(
            version=prior.version,
            digest=digest,
            stem=stem,
            created_s=self.now_s(),
            made_by=made_by,
            metrics={name: float(value) for name, value in metrics.items()},
        )

    def prune(self, tenant: str, study: str, keep_last: int) -> None:
        """Removes old versions, but none that a job at hand or in the queue starts from."""
        priors: Sequence[PriorPointer] = self.store.list_priors(tenant, study, 1000, "").items
        if len(priors) <= keep_last:
            return
        needed = self.store.needed_versions(tenant, study)
        for pointer in priors[keep_last:]:
            if pointer.version not in needed:
                self.store.forget_prior(self.epoch, tenant, study, pointer.version)
                remove_prior(self.artifacts, f"{self._study_folder(tenant, study)}/{pointer.stem}")

    # Within a turn

    def _recover(self) -> None:
        """Puts jobs that nobody runs back into the queue: of earlier coordinators, or lost on the way here."""
        owed = {job_id for job_id, _ in self._owed}
        for job in self.store.active():
            if job.job_id in self._runs or job.job_id in owed:
                continue
            note = f"coordinator {job.epoch} is gone" if job.epoch != self.epoch else "its start was not confirmed"
            self.store.requeue(self.epoch, job, self.now_s(), 0.0, uses_attempt=False, note=note)
            self._look_at_queue = True

    def _start_jobs(self) -> None:
        self._give_up_late()
        room = MAX_IN_FLIGHT * self.pool.num_workers
        if not (self._look_at_queue or self._every("queue", _LOOK_EVERY_S)):
            return
        refused: set[str] = set()
        while self.pool.num_pending < room and len(self._runs) < room:
            self._look_at_queue = False
            queues = self.store.queues()
            running: dict[str, int] = {}
            for job in self.running:
                running[job.tenant] = running.get(job.tenant, 0) + 1
            full = {t for t in queues if running.get(t, 0) >= self.settings.quota_of(t).max_running} | refused
            entry = pick(
                {tenant: entries for tenant, entries in queues.items() if tenant not in full},
                running,
                {tenant: self.settings.quota_of(tenant).weight for tenant in queues},
                frozenset((job.tenant, job.study) for job in self.running if job.spec.moves_prior),
                self.pool.gpus_per_worker > 0,
                self.now_s(),
            )
            if entry is None:
                return
            if self._start(self.store.get_job(entry.tenant, entry.study, entry.job_id).job):
                self._look_at_queue = True
            else:  # asking again at once would have the same answer
                refused.add(entry.tenant)

    def _start(self, job: Job) -> bool:
        """Starts a job, unless the store refuses."""
        problem: MetaSearchError | None = None
        version: int | None = None
        try:
            version = self._base_version(job)
        except (SupersededError, UnavailableError):
            raise
        except MetaSearchError as error:  # of its study: the job fails, as soon as it runs
            problem = error
        # A job that the queue offers has waited long enough, whatever a clock that was set back says.
        now_s = max(self.now_s(), job.not_before_s)
        quota = self.settings.quota_of(job.tenant)
        try:
            job = self.store.start(self.epoch, job, now_s, self.settings.lease_s, version, quota)
        except SupersededError:
            raise
        except (ConflictError, QuotaError) as error:  # cancelled or paused a moment ago
            self.logger.info("%s", error)
            return False
        self.logger.info("job %s starts, attempt %d", job.name, job.attempt)
        run: _Run = _AdaptRun(self, job) if isinstance(job.spec, AdaptSpec) else _TrainRun(self, job)
        self._runs[job.job_id] = run

        def begin(run: _Run) -> None:
            if problem is not None:
                raise problem
            run.begin()

        self._guarded(run, begin)
        return True

    def _base_version(self, job: Job) -> int:
        """The version that the job starts from, made first if the study has none."""
        head = self.store.head(job.tenant, job.study)
        if not head.digest:
            prior = initial_prior(self.config_of(job.tenant, job.study))
            pointer = self.store_prior(job.tenant, job.study, prior, "", {})
            self.store.set_first_prior(self.epoch, job.tenant, job.study, pointer)
        if isinstance(job.spec, AdaptSpec) and job.spec.prior_version is not None and not job.spec.contribute:
            return job.spec.prior_version
        return head.version

    def _give_up_late(self) -> None:
        """Fails queued jobs whose time is up."""
        if not self._every("deadlines", _LOOK_EVERY_S):
            return
        for entries in self.store.queues().values():
            for entry in entries:
                if entry.queue_deadline_s is None or entry.queue_deadline_s > self.now_s():
                    continue
                job = self.store.get_job(entry.tenant, entry.study, entry.job_id).job
                if job.attempt:
                    continue  # it was started in time, and is back through no fault of its own
                asked = "it asked for a GPU" if job.needs_gpu and not self.pool.gpus_per_worker else "workers were busy"
                message = f"it could not start before its deadline: {asked}; {self._capacity}"
                failure = Failure(reason=FailureReason.RESOURCE_UNAVAILABLE, message=message)
                try:
                    self.store.give_up(self.epoch, job, self.now_s(), failure)
                except SupersededError:
                    raise
                except ConflictError as error:
                    self.logger.info("%s", error)

    def _follow(self) -> None:
        """Renews leases, passes progress on, and does what users ask of running jobs."""
        with self._changed_lock:
            changed, self._changed = self._changed, set()
        steps = self._steps() if self._runs and self._every("status", _LOOK_EVERY_S) else None
        renew = self._every("leases", self.settings.lease_s / 3)
        for run in list(self._runs.values()):
            progress = None if steps is None else run.progress(steps)
            is_news = progress is not None and progress != run.last_progress
            if not (renew or is_news or run.job.job_id in changed):
                continue
            try:
                if renew or is_news:
                    found = self.store.extend(self.epoch, run.job, self.now_s(), self.settings.lease_s, progress)
                else:  # perhaps our own change
                    found = self.store.get_job(run.job.tenant, run.job.study, run.job.job_id).job
            except UnavailableError:
                with self._changed_lock:
                    self._changed |= changed
                return
            except SupersededError:
                raise
            except (ConflictError, NotFoundError) as error:
                self.logger.warning("%s; its work is dropped", error)
                run.give_up()
                self.forget(run.job)
                continue
            if progress is not None:
                run.last_progress = progress
            if found.state is JobState.CANCELLING:
                run.give_up()
                self._confirm_cancel(run.job)
                self.forget(run.job)
            elif found.suspended:
                run.pause()

    def _confirm_cancel(self, job: Job) -> None:
        self.owe(job, lambda: _ignore(self.store.confirm_cancel(self.epoch, job, self.now_s())))

    def _steps(self) -> dict[str, WorkerStatus]:
        return {status.task_id: status for status in self.pool.status(0.5) if status.task_id is not None}

    def _guarded(self, run: "_Run", action: Callable[["_Run"], None]) -> None:
        """What goes wrong in one job fails that job, with a reason, or sends it back; never the coordinator."""
        try:
            action(run)
        except SupersededError:
            raise
        except ConflictError as error:
            self.logger.warning("%s; %s goes back to the queue", error, run.job.name)
            self.send_back(run, str(error), uses_attempt=True)
        except UnavailableError as error:
            # Not the job's fault: it waits, and burns no attempt.
            self.logger.warning("job %s: %s", run.job.name, error)
            self.send_back(run, str(error), uses_attempt=False)
        except MetaSearchError as error:
            self.fail(run, Failure(reason=_reason(error), message=str(error)))
        except Exception:
            self.logger.exception("job %s failed in the coordinator", run.job.name)
            message = "the coordinator failed at it; its log says why"
            self.fail(run, Failure(reason=FailureReason.INTERNAL, message=message))

    def fail(self, run: "_Run", failure: Failure) -> None:
        """RUNNING -> FAILED."""
        run.give_up()
        job = run.job
        self.logger.warning("job %s failed: %s: %s", job.name, failure.reason, failure.message)

        def commit() -> None:
            if self.store.get_job(job.tenant, job.study, job.job_id).job.state is JobState.CANCELLING:
                self.store.confirm_cancel(self.epoch, job, self.now_s())
            else:
                self.store.fail(self.epoch, job, self.now_s(), failure)

        self.owe(job, commit)
        self.forget(job)

    def send_back(self, run: "_Run", note: str, uses_attempt: bool) -> None:
        """RUNNING -> QUEUED, with a wait that doubles each time."""
        run.give_up()
        job = run.job
        back_off_s = min(self.settings.back_off_s * 2 ** min(job.attempt - 1, 10), MAX_BACK_OFF_S)
        self.owe(
            job,
            lambda: _ignore(self.store.requeue(self.epoch, job, self.now_s(), back_off_s, uses_attempt, note[:500])),
        )
        self.forget(job)

    def _hand_over(self, job: Job, note: str) -> None:
        self.store.requeue(self.epoch, job, self.now_s(), 0.0, uses_attempt=False, note=note)

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

    def _keep(self, prior: Prior) -> None:
        self._priors[prior.digest()] = prior
        while len(self._priors) > _KEPT_PRIORS:
            self._priors.popitem(last=False)

    def _study_folder(self, tenant: str, study: str) -> str:
        return f"tenants/{tenant}/studies/{study}"

    def _every(self, name: str, seconds: float) -> bool:
        now_s = self._monotonic_s()
        if now_s - self._last.get(name, float("-inf")) < seconds:
            return False
        self._last[name] = now_s
        return True

    def _heard(self, topic: str | None) -> None:
        if topic is not None:
            with self._changed_lock:
                if topic in self._runs:
                    self._changed.add(topic)
                else:
                    self._look_at_queue = True


class _Run:
    """A job at hand."""

    config: StudyConfig
    """Of its study; from `begin` on."""

    def __init__(self, dispatcher: Dispatcher, job: Job) -> None:
        self.dispatcher = dispatcher
        self.job = job
        self.last_progress: Mapping[str, Any] = {}

    def begin(self) -> None:
        """Hands out the first calls."""
        raise NotImplementedError

    def take(self, outcome: Outcome) -> None:
        """Takes what became of a call."""
        raise NotImplementedError

    def progress(self, workers: Mapping[str, WorkerStatus]) -> Mapping[str, Any] | None:
        """How far it is; None where nothing is known."""
        raise NotImplementedError

    def pause(self) -> None:
        """Stops at the next good moment, and goes back to the queue."""
        raise NotImplementedError

    def look(self) -> None:
        """Called every turn, for what is not news of a call."""

    def give_up(self) -> None:
        """Takes all its calls back."""
        raise NotImplementedError


class _AdaptRun(_Run):
    """One call; with `contribute`, its update makes a new version of the prior."""

    def begin(self) -> None:
        spec, job = self.job.spec, self.job
        assert isinstance(spec, AdaptSpec) and job.base_version is not None
        self.config = self.dispatcher.config_of(job.tenant, job.study)
        self.prior = self.dispatcher.prior_of(job.tenant, job.study, job.base_version)
        inner = self.config.adapt if spec.steps is None else self.config.adapt.model_copy(update={"steps": spec.steps})
        self.url = self.dispatcher.artifacts.url_of(self.dispatcher.folder_of(job))
        request = JobRequest(
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
        )
        self.steps = inner.steps
        if spec.contribute:
            self.dispatcher.store.open_plan(
                self.dispatcher.epoch,
                job.tenant,
                job.study,
                Plan(
                    job_id=job.job_id,
                    base_version=job.base_version,
                    task_ids=(job.job_id,),
                    rule=self.config.outer.rule,
                ),
            )
        self.dispatcher.submit(self, job.job_id, request, self.prior)

    def take(self, outcome: Outcome) -> None:
        if outcome.error is not None:
            raise outcome.error
        if outcome.lost:
            self.dispatcher.send_back(self, outcome.lost, uses_attempt=True)
            return
        found: JobResult = outcome.result
        summary = dict(found.summary)
        result = {
            "summary": summary,
            "artifacts": [asdict(artifact) for artifact in found.artifacts],
            "url": self.url,
        }
        dispatcher, job = self.dispatcher, self.job
        if found.update is None:
            dispatcher.owe(
                job, lambda: _ignore(dispatcher.store.succeed(dispatcher.epoch, job, dispatcher.now_s(), result))
            )
            dispatcher.forget(job)
            return
        outer = OuterStep(self.prior, self.config)
        rejection = outer.absorb(found.update)
        if rejection is not None:
            raise AdaptationError(f"the update cannot enter the prior: {rejection.reason} ({rejection.detail})")
        following = outer.finish()
        summary["contributed_version"] = following.version
        metrics = dict(architecture_metrics(following, self.config))
        pointer = dispatcher.store_prior(job.tenant, job.study, following, job.job_id, metrics)
        dispatcher.owe(
            job,
            lambda: dispatcher.store.advance(
                dispatcher.epoch, job.tenant, job.study, pointer, job.attempt, dispatcher.now_s(), result
            ),
        )
        dispatcher.forget(job)

    def progress(self, workers: Mapping[str, WorkerStatus]) -> Mapping[str, Any] | None:
        status = workers.get(self.job.job_id)
        if status is None:
            return None
        found: dict[str, Any] = {"done": status.steps_done, "total": self.steps}
        if status.interim is not None:
            found["accuracy"] = status.interim.accuracy
            found["genotype_json"] = status.interim.genotype.to_json()
        return found

    def pause(self) -> None:
        self.dispatcher.send_back(self, "paused", uses_attempt=False)

    def give_up(self) -> None:
        self.dispatcher.abandon(self.job.job_id)


class _TrainRun(_Run):
    """Rounds, one after the other. One that is given up leaves no trace, and is computed again to the same bytes."""

    def __init__(self, dispatcher: Dispatcher, job: Job) -> None:
        super().__init__(dispatcher, job)
        self.keys: set[str] = set()

    def begin(self) -> None:
        spec = self.job.spec
        assert isinstance(spec, MetaTrainSpec)
        self.config = self.dispatcher.config_of(self.job.tenant, self.job.study)
        self.target = spec.until_version or self.config.rounds
        self.pausing = False
        self.metrics: Mapping[str, float] = {}
        head = self.dispatcher.store.head(self.job.tenant, self.job.study)
        self.prior = self.dispatcher.prior_of(self.job.tenant, self.job.study, head.version)
        self.round: Round | None = None
        self.started_s = self.dispatcher.now_s()
        # Images may have to be prepared first, which takes its time.
        self.catalogs: Future[list[ClassArrays]] = self.dispatcher.background.submit(load_catalogs, self.config)
        self._next()

    def _next(self) -> None:
        """Begins the next round, if its images are there and there is one."""
        job, dispatcher = self.job, self.dispatcher
        if self.prior.version >= self.target:
            result = {"summary": {"prior_version": self.prior.version, "prior_sha256": self.prior.digest()}}
            dispatcher.owe(
                job, lambda: _ignore(dispatcher.store.succeed(dispatcher.epoch, job, dispatcher.now_s(), result))
            )
            dispatcher.forget(job)
            return
        if not self.catalogs.done():
            self.round = None
            return
        round_plan = plan(self.prior, self.config, self.catalogs.result())
        self.requests = {request.task.task_id: request for request in round_plan.requests}
        dispatcher.store.open_plan(
            dispatcher.epoch,
            job.tenant,
            job.study,
            Plan(
                job_id=job.job_id,
                base_version=self.prior.version,
                task_ids=tuple(self.requests),
                rule=self.config.outer.rule,
            ),
        )
        self.round = Round(self.prior, round_plan, self.config)
        self.attempts = dict.fromkeys(self.requests, 0)
        self.started_s = dispatcher.now_s()
        for task_id in self.requests:
            self._submit(task_id)

    def _submit(self, task_id: str) -> None:
        key = f"{self.job.job_id}/{task_id}"
        self.keys.add(key)
        self.dispatcher.submit(self, key, self.requests[task_id], self.prior)

    def take(self, outcome: Outcome) -> None:
        self.keys.discard(outcome.key)
        task_id = outcome.key.removeprefix(f"{self.job.job_id}/")
        if outcome.error is not None:
            raise outcome.error
        if outcome.lost:
            self.attempts[task_id] += 1
            if self.attempts[task_id] >= max(self.config.cluster.max_attempts, _TASK_ATTEMPTS):
                raise AdaptationError(
                    f"task {task_id} was started {self.attempts[task_id]} times without a result; the last time "
                    f"{outcome.lost}"
                )
            self._submit(task_id)
            return
        assert self.round is not None
        result: AdaptResult = outcome.result
        rejection = self.round.absorb(result)
        if rejection is not None:
            self.dispatcher.logger.warning(
                "rejected %s: %s (%s)", rejection.task_id, rejection.reason, rejection.detail
            )
        if self.round.is_complete:
            self._finish_round()

    def _finish_round(self) -> None:
        assert self.round is not None
        job, dispatcher = self.job, self.dispatcher
        following, metrics = self.round.finish()
        metrics["round_seconds"] = dispatcher.now_s() - self.started_s
        pointer = dispatcher.store_prior(job.tenant, job.study, following, job.job_id, metrics)
        # An outage here sends the job back to the queue; whoever runs it then finds version + 1, or makes it again.
        dispatcher.store.advance(dispatcher.epoch, job.tenant, job.study, pointer, job.attempt, dispatcher.now_s())
        self.prior, self.metrics, self.round = following, metrics, None
        dispatcher.logger.info(
            "job %s: version %d of %d, loss %.3f", job.name, following.version, self.target, metrics["train_loss_last"]
        )
        dispatcher.prune(job.tenant, job.study, self.config.checkpoint.keep_last)
        if self.pausing and following.version < self.target:
            dispatcher.send_back(self, "paused", uses_attempt=False)
            return
        self._next()

    def look(self) -> None:
        if self.round is None and self.catalogs.done():
            self._next()

    def progress(self, workers: Mapping[str, WorkerStatus]) -> Mapping[str, Any] | None:
        return {"done": self.prior.version, "total": self.target, "metrics": dict(self.metrics)}

    def pause(self) -> None:
        self.pausing = True
        if self.round is None:
            self.dispatcher.send_back(self, "paused", uses_attempt=False)

    def give_up(self) -> None:
        for key in self.keys:
            self.dispatcher.abandon(key)
        self.keys.clear()


def _reason(error: MetaSearchError) -> FailureReason:
    return next((reason for kind, reason in _REASONS if isinstance(error, kind)), FailureReason.INTERNAL)


def _ignore(value: object) -> None:
    del value
