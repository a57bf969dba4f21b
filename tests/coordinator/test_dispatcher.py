"""Every failure that the coordinator must survive, one by one: real job store, real computation, nothing left to time.

The pool is a queue in this process. A fault is put between two steps of the coordinator: before or after any commit,
before any read, before or after any file it writes; so "killed between" and "not answered" are tried everywhere.
"""

import hashlib
import itertools
import json
import logging
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from reference.recorded_metrics import RecordedMetrics
from safetensors.numpy import load as load_tensors

from common.artifacts import PriorStore, load_prior
from common.config import DatasetRef, validate
from common.errors import (
    AdaptationError,
    CorruptArtifactError,
    DataUnavailableError,
    InvalidInputError,
    MetaSearchError,
    UnavailableError,
)
from common.few_shot_config import FewShotConfig
from common.limits import Limits
from common.loading import load
from common.messages import AdaptRequest, AdaptResult, FewShotRequest, JobRequest, JobResult, LocalUpdate
from common.meta.prior import Prior, initial_prior
from common.storage import ArtifactFolder
from common.tasks import DatasetFile, FewShotTask, TaskChoice
from coordinator import outer, study
from coordinator.calls import Outcome
from coordinator.dispatcher import Dispatcher
from coordinator.jobs import AdaptSpec, FailureReason, FewShotSpec, Job, JobState, MetaTrainSpec
from coordinator.local import LocalExecutor
from coordinator.scaling import Load
from coordinator.service_metrics import ServiceMetrics
from coordinator.settings import ServiceSettings
from coordinator.store.fenced import SupersededError
from coordinator.store.jobs import JobStore
from coordinator.store.ledger import Add, Expect, Put, Stored, Transaction
from coordinator.store.records import Quota, Study
from coordinator.store.sqlite import SqliteLedger
from workers.actor import WorkerStatus
from workers.data.handful import Handful
from workers.few_shot_job import run_few_shot
from workers.job import run_job
from workers.runner import TaskRunner

pytestmark = pytest.mark.usefixtures("one_thread")

ROUNDS = 2
CONFIG = load(
    "smoke",
    [f"rounds={ROUNDS}", "network.channels=2", "inner.steps=1", "adapt.steps=2", "families.0.tasks_per_round=2"],
    environment={},
)
CHOICE = TaskChoice(
    data=DatasetRef(source="digits"), classes=("1", "7", "4"), image_size=16, train_per_class=8, test_per_class=4
)
ADAPT = AdaptSpec(choice=CHOICE)
CONTRIBUTE = AdaptSpec(choice=CHOICE, contribute=True)
TRAIN = MetaTrainSpec()
MANY_TASKS = ("families.0.tasks_per_round=12", "cluster.tasks_per_partial_sum=1")
TENANT, STUDY, HANDFULS = "lab", "digits", "handfuls"
FEW_SHOT = CONFIG.model_copy(update={"few_shot": FewShotConfig(test_steps=1)})
DAY_S = 86_400.0
RUNNER = TaskRunner(torch.device("cpu"))


class Killed(BaseException):
    """The coordinator's process is gone at this very place."""


class Clock:
    """Both clocks of a machine; only the wall clock can be set."""

    def __init__(self) -> None:
        self.wall_s = 1_700_000_000.0
        self.monotonic_s = 0.0

    def tick(self, seconds: float) -> None:
        self.wall_s += seconds
        self.monotonic_s += seconds


class Faults:
    """Counts the steps of a coordinator, and lets some of them go wrong.

    Attributes:
        names: of the steps so far.
        rules: asked at every step, before and after it; whatever they return is raised.
    """

    def __init__(self) -> None:
        self.names: list[str] = []
        self.rules: list[Callable[[int, str, str], BaseException | None]] = []

    def around(self, name: str, action: Callable[[], Any]) -> Any:
        number = len(self.names)
        self.names.append(name)
        self._check(number, name, "before")
        result = action()
        self._check(number, name, "after")
        return result

    def at(self, step: int, when: str, error: BaseException, length: int = 1) -> None:
        """`error` at some steps in a row."""
        self.rules.append(lambda n, name, moment: error if step <= n < step + length and moment == when else None)

    def _check(self, number: int, name: str, moment: str) -> None:
        for rule in self.rules:
            error = rule(number, name, moment)
            if error is not None:
                raise error


class FaultyLedger:
    """A ledger between a coordinator and the real one. Its news arrive at once: nothing here depends on threads."""

    def __init__(self, inner: SqliteLedger, faults: Faults, listeners: list[Callable[[str | None], None]]) -> None:
        self.inner = inner
        self.faults = faults
        self.listeners = listeners

    def commit(self, transaction: Transaction) -> Expect | Add | None:
        def commit() -> Expect | Add | None:
            blocked = self.inner.commit(transaction)
            if blocked is None and transaction.changes:
                for listener in list(self.listeners):
                    listener(transaction.topic)
            return blocked

        found: Expect | Add | None = self.faults.around(f"commit {purpose(transaction)}", commit)
        return found

    def get(self, *keys: str) -> list[Stored | None]:
        found: list[Stored | None] = self.faults.around(f"get {keys[0].split('/')[0]}", lambda: self.inner.get(*keys))
        return found

    def scan(self, prefix: str, after: str = "", limit: int = 1000, reverse: bool = False) -> list[Stored]:
        found: list[Stored] = self.faults.around(
            f"scan {prefix.split('/')[0]}", lambda: self.inner.scan(prefix, after, limit, reverse)
        )
        return found

    def subscribe(self, listener: Callable[[str | None], None]) -> Callable[[], None]:
        self.listeners.append(listener)
        return lambda: self.listeners.remove(listener)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


def purpose(transaction: Transaction) -> str:
    """What a commit is for, in a word."""
    puts = {change.key.split("/")[0]: change.record for change in transaction.changes if isinstance(change, Put)}
    if "prior" in puts:
        return "advance" if "job" in puts else "first prior"
    if "job" in puts:
        return str(puts["job"]["state"])
    if "head" in puts:
        return "plan"
    return next(iter(puts), "delete")


class FakePool:
    """Runs calls for real, in this process, one per poll, oldest first; or does what `script` says instead."""

    gpus_per_worker = 0.0
    num_workers = 2
    num_by_state: Mapping[str, int] = {"running": 2, "starting": 0, "wanted": 2, "lent": 0, "leaving": 0}
    num_replaced = 0
    max_workers = 2

    def __init__(self, compute: Callable[[Any, Prior], Any], log: list[str]) -> None:
        self.compute = compute
        self.calls: OrderedDict[str, tuple[Any, Prior]] = OrderedDict()
        self.script: Callable[[str, Any, Prior], Outcome | None] = lambda key, request, prior: None
        self.held: Callable[[str], bool] = lambda key: False
        self.log = log
        self.abandoned: list[str] = []
        self.statuses: list[WorkerStatus] = []
        self.expected = Load()

    @property
    def num_pending(self) -> int:
        return len(self.calls) - self.num_quick

    @property
    def num_quick(self) -> int:
        return sum(isinstance(request, FewShotRequest) for request, _ in self.calls.values())

    def expect(self, load: Load) -> None:
        self.expected = load

    def submit(self, key: str, request: AdaptRequest | JobRequest | FewShotRequest, prior: Prior) -> None:
        assert key not in self.calls
        self.calls[key] = (request, prior)

    def poll(self, timeout_s: float) -> list[Outcome]:
        key = next((key for key in self.calls if not self.held(key)), None)
        if key is None:
            return []
        request, prior = self.calls.pop(key)
        self.log.append(key)
        scripted = self.script(key, request, prior)
        if scripted is not None:
            return [scripted]
        try:
            return [Outcome(key, self.compute(request, prior))]
        except MetaSearchError as error:
            return [Outcome(key, error=error)]

    def abandon(self, key: str) -> None:
        if self.calls.pop(key, None) is not None:
            self.abandoned.append(key)

    def status(self, timeout_s: float = 2.0) -> list[WorkerStatus]:
        return self.statuses


class Immediate:
    """An executor without threads."""

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(function(*arguments))
        except MetaSearchError as error:
            future.set_exception(error)
        return future

    def shutdown(self, **options: bool) -> None:
        pass


@dataclass
class Memory:
    """What was computed is not computed again: equal requests from equal priors have equal results (see test_job)."""

    results: dict[Any, tuple[Any, dict[str, bytes]]]

    def __call__(self, request: AdaptRequest | JobRequest | FewShotRequest, prior: Prior) -> Any:
        if isinstance(request, FewShotRequest):
            return run_few_shot(RUNNER, prior, request)
        if isinstance(request, AdaptRequest):
            key: Any = (request.task.task_id, prior.digest())
            if key not in self.results:
                self.results[key] = (RUNNER.run(prior, request), {})
            return self.results[key][0]
        plain = replace(request, job_id="", attempt=0, result_url="", config=None)  # type: ignore[arg-type]
        key = (repr(plain), prior.digest())
        folder = ArtifactFolder(request.result_url)
        if key not in self.results:
            result = run_job(RUNNER, prior, request)
            files = {name: folder.read(name) for name in ("weights.safetensors", "result.json", "manifest.json")}
            self.results[key] = (result, files)
            return result
        result, files = self.results[key]
        for name, data in files.items():
            folder.write(name, data)
        update = None if result.update is None else replace(result.update, task_id=request.job_id)
        return replace(result, job_id=request.job_id, update=update)


class Scene:
    """A service without processes: one store, one folder of artifacts, one clock; coordinators come and go."""

    def __init__(self, folder: Path, compute: Callable[[Any, Prior], Any], **settings: Any) -> None:
        self.folder = folder
        self.clock = Clock()
        self.faults = Faults()
        self.compute = compute
        self.ledger = SqliteLedger(folder / "jobs.sqlite")
        self.listeners: list[Callable[[str | None], None]] = []
        self.users = JobStore(FaultyLedger(self.ledger, Faults(), self.listeners))  # type: ignore[arg-type]
        self.settings = ServiceSettings(store="sqlite:unused", artifacts=str(folder / "artifacts"), **settings)
        self.ran: list[str] = []
        self.recorded = RecordedMetrics()
        self.num_jobs = 0
        for name, config in ((STUDY, CONFIG), ("letters", CONFIG), (HANDFULS, FEW_SHOT)):
            self.users.create_study(
                Study(tenant=TENANT, study=name, config=config.model_dump(mode="json"), created_s=self.clock.wall_s)
            )

    def submit(self, spec: AdaptSpec | MetaTrainSpec | FewShotSpec, **fields: Any) -> Job:
        self.num_jobs += 1
        plain = {"tenant": TENANT, "study": STUDY, "job_id": f"{self.num_jobs:04d}", "created_s": self.clock.wall_s}
        job = Job(**{**plain, "spec": spec, **fields})
        return self.users.create_job(job, None, Quota())

    def coordinator(self) -> Dispatcher:
        """A new coordinator, which takes charge as soon as the store lets it."""
        ledger = FaultyLedger(self.ledger, self.faults, self.listeners)
        logger = logging.getLogger("test")
        while True:
            try:
                dispatcher = Dispatcher(
                    JobStore(ledger),  # type: ignore[arg-type]
                    FakePool(self.compute, self.ran),
                    self.settings,
                    "test",
                    lambda: self.clock.wall_s,
                    lambda: self.clock.monotonic_s,
                    logger,
                    "the cluster has 2 CPUs and 0 GPUs, and 2 workers",
                    ServiceMetrics(self.recorded),
                )
            except UnavailableError:
                self.clock.tick(0.5)
                continue
            dispatcher.background = Immediate()  # type: ignore[assignment]
            return dispatcher

    def run(self, dispatcher: Dispatcher, until: Callable[[], bool], turns: int = 400, tick_s: float = 0.5) -> None:
        for _ in range(turns):
            if until():
                return
            self.clock.tick(tick_s)
            dispatcher.turn(0.0)
        raise AssertionError(f"after {turns} turns: {[(job.job_id, job.state, job.note) for job in self.jobs()]}")

    def turns(self, dispatcher: Dispatcher, count: int, tick_s: float = 0.5) -> None:
        for _ in range(count):
            self.clock.tick(tick_s)
            dispatcher.turn(0.0)

    def finish(self, dispatcher: Dispatcher) -> None:
        """Runs until every job has ended."""
        self.run(dispatcher, self.all_ended)

    def all_ended(self) -> bool:
        return all(job.state.is_terminal for job in self.jobs())

    def jobs(self, name: str = STUDY) -> list[Job]:
        return sorted(self.users.list_jobs(TENANT, name, 1000, "").items, key=lambda job: job.job_id)

    def job(self, job: Job) -> Job:
        return self.users.get_job(job.tenant, job.study, job.job_id).job

    def states(self, job: Job) -> list[JobState]:
        return [view.job.state for view in self.users.events(job.job_id, 0)]

    def priors(self) -> list[tuple[int, str, str]]:
        """Version, digest and maker of all kept versions, ascending."""
        pointers = self.users.list_priors(TENANT, STUDY, 1000, "").items
        return [(pointer.version, pointer.digest, pointer.made_by) for pointer in reversed(pointers)]

    def counts(self) -> Mapping[str, int]:
        return self.users.counts([TENANT])[TENANT]

    def prior_files(self) -> list[Path]:
        return sorted((self.folder / "artifacts").rglob("priors/*.safetensors"))


@pytest.fixture(scope="module")
def memory() -> Memory:
    return Memory({})


@pytest.fixture
def make(tmp_path: Path, memory: Memory) -> Iterator[Callable[..., Scene]]:
    scenes: list[Scene] = []

    def build(**settings: Any) -> Scene:
        folder = tmp_path / str(len(scenes))
        folder.mkdir()
        scenes.append(Scene(folder, memory, **settings))
        return scenes[-1]

    yield build
    for scene in scenes:
        scene.ledger.close()


@pytest.fixture
def scene(make: Callable[..., Scene]) -> Scene:
    return make()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> str:
    """SHA-256 of the study's prior as `metasearch train` makes it: no service, one task after the other."""
    store = PriorStore(tmp_path_factory.mktemp("trained"))
    executor = LocalExecutor(torch.device("cpu"))
    return study.run(study.begin(store, CONFIG), CONFIG, executor, store, [], lambda: 0.0).digest()


def after_contributions(count: int) -> list[str]:
    """Digests of versions 0..count where equal contributions follow each other: run_job and one outer step each."""
    prior = initial_prior(CONFIG)
    digests = [prior.digest()]
    for number in range(count):
        request = JobRequest(
            job_id=f"j{number}",
            attempt=1,
            choice=CHOICE,
            file=None,
            config=CONFIG,
            inner=CONFIG.adapt,
            version=number,
            derivation="top2_pairs",
            limits=Limits(),
            result_url=f"memory://contributions/{number}",
            returns_update=True,
        )
        update = run_job(RUNNER, prior, request).update
        assert update is not None
        prior = outer.step(prior, [update], CONFIG)
        digests.append(prior.digest())
    return digests


def check_consistent(scene: Scene) -> None:
    """What must hold whatever happened: each result once, each version once, no counter off, no artifact missing."""
    for job in scene.jobs():
        states = scene.states(job)
        assert sum(state.is_terminal for state in states) == 1 and states[-1] is job.state
        if job.state is JobState.SUCCEEDED and isinstance(job.spec, AdaptSpec):
            assert job.result is not None
            folder = ArtifactFolder(str(job.result["url"]))
            for artifact in job.result["artifacts"]:  # type: ignore[union-attr]
                data = folder.read(artifact["name"])  # type: ignore[index, arg-type, call-overload]
                assert hashlib.sha256(data).hexdigest() == artifact["sha256"]  # type: ignore[index, call-overload]
    versions = [version for version, _, _ in scene.priors()]
    assert versions == list(range(versions[-1] - len(versions) + 1, versions[-1] + 1)) if versions else True
    assert {name: scene.counts()[name] for name in ("queued", "running")} == {"queued": 0, "running": 0}
    assert scene.users.active() == [] and scene.users.queues() == {}


# Without disturbance


def assert_is_a_run(job: Job, trained: str) -> None:
    """Whether a meta_train job's folder holds what `metasearch train` leaves, as its artifacts say."""
    folder = ArtifactFolder(job.result["url"])  # type: ignore[index, arg-type]
    contents = {}
    for artifact in job.result["artifacts"]:  # type: ignore[index]
        contents[artifact["name"]] = folder.read(artifact["name"])  # type: ignore[index, call-overload]
        assert hashlib.sha256(contents[artifact["name"]]).hexdigest() == artifact["sha256"]  # type: ignore[index, call-overload]
    assert validate(json.loads(contents["config.json"])) == CONFIG
    rounds = [json.loads(line) for line in contents["rounds.jsonl"].splitlines()]
    assert [each["prior_version"] for each in rounds] == list(range(1, ROUNDS + 1))
    assert all("train_loss_last" in each for each in rounds)
    assert load_prior(folder, f"{ROUNDS:08d}", ROUNDS).digest() == trained


def test_jobs_end_in_the_results_that_the_same_work_without_a_service_has(scene: Scene, trained: str) -> None:
    train, adapt = scene.submit(TRAIN), scene.submit(ADAPT)
    scene.finish(scene.coordinator())
    found = scene.job(train)
    assert found.result["summary"] == {"prior_version": ROUNDS, "prior_sha256": trained}  # type: ignore[index]
    assert_is_a_run(found, trained)
    assert found.progress["done"] == found.progress["total"] == ROUNDS
    result = scene.job(adapt).result
    assert result is not None
    files = {artifact["name"] for artifact in result["artifacts"]}  # type: ignore[index, union-attr, call-overload]
    assert files == {"weights.safetensors", "result.json"}
    weights = load_tensors(ArtifactFolder(str(result["url"])).read("weights.safetensors"))
    assert {"body", "alpha", "head/16", "classifier/weight"} <= set(weights)
    check_consistent(scene)
    recorded = scene.recorded
    assert recorded.counters["jobs_started", "meta_train"] == recorded.counters["jobs_started", "adapt"] == 1
    assert len(recorded.observed["job_seconds", "adapt"]) == len(recorded.observed["job_seconds", "meta_train"]) == 1
    assert len(recorded.observed["round_seconds",]) == ROUNDS
    assert recorded.gauges["prior_version", TENANT, STUDY] == ROUNDS
    assert recorded.gauges["tasks_accepted", TENANT, STUDY] == 2
    assert recorded.counters["updates_accepted",] == 2 * ROUNDS
    assert recorded.gauges["workers", "running"] == 2
    assert not any(name in ("retries", "jobs_failed", "updates_rejected") for name, *_ in recorded.counters)


def test_contributions_enter_the_prior_in_the_order_of_submission_and_once_each(scene: Scene) -> None:
    jobs = [scene.submit(CONTRIBUTE) for _ in range(3)]
    scene.finish(scene.coordinator())
    digests = after_contributions(3)
    assert scene.priors() == [(0, digests[0], "")] + [
        (number + 1, digests[number + 1], job.job_id) for number, job in enumerate(jobs)
    ]
    for number, job in enumerate(jobs):
        summary = scene.job(job).result["summary"]  # type: ignore[index]
        assert (summary["prior_version"], summary["contributed_version"]) == (number, number + 1)  # type: ignore
    check_consistent(scene)
    assert scene.recorded.counters["updates_accepted",] == 3
    assert scene.recorded.gauges["prior_version", TENANT, STUDY] == 3
    assert ("alpha_entropy", TENANT, STUDY, "normal") in scene.recorded.gauges


def test_limits_hold_in_the_result(scene: Scene) -> None:
    free = scene.submit(ADAPT)
    dispatcher = scene.coordinator()
    scene.finish(dispatcher)
    free_params = scene.job(free).result["summary"]["num_params"]  # type: ignore[index, call-overload]
    limits = Limits(max_params=free_params - 1)
    limited = scene.submit(AdaptSpec(choice=CHOICE, limits=limits))
    impossible = scene.submit(AdaptSpec(choice=CHOICE, limits=Limits(max_params=1)))
    scene.finish(dispatcher)
    assert scene.job(limited).result["summary"]["num_params"] < free_params  # type: ignore
    failure = scene.job(impossible).failure
    assert failure is not None and failure.reason is FailureReason.INVALID_INPUT


def test_steps_and_prior_version_are_those_that_the_job_names(scene: Scene) -> None:
    scene.submit(CONTRIBUTE)
    dispatcher = scene.coordinator()
    scene.finish(dispatcher)
    named = scene.submit(AdaptSpec(choice=CHOICE, steps=3, prior_version=0))
    latest = scene.submit(ADAPT)
    missing = scene.submit(AdaptSpec(choice=CHOICE, prior_version=7))
    scene.finish(dispatcher)
    summary = scene.job(named).result["summary"]  # type: ignore[index]
    assert (summary["steps"], summary["prior_version"]) == (3, 0)  # type: ignore[index, call-overload]
    assert scene.job(latest).result["summary"]["prior_version"] == 1  # type: ignore[index, call-overload]
    failure = scene.job(missing).failure
    assert failure is not None and failure.reason is FailureReason.NOT_FOUND and "priors/7" in failure.message


# Workers


def test_a_job_whose_worker_is_lost_waits_and_runs_again(make: Callable[..., Scene]) -> None:
    scene = make(back_off_s=8.0)
    job = scene.submit(ADAPT)
    dispatcher = scene.coordinator()
    losses = iter(["the worker died", "the worker gave no result for 60 s"])
    dispatcher.pool.script = lambda key, request, prior: next(  # type: ignore[attr-defined]
        (Outcome(key, lost=reason) for reason in losses), None
    )
    scene.run(dispatcher, lambda: scene.job(job).attempt == 1 and scene.job(job).state is JobState.QUEUED)
    first = scene.job(job)
    assert first.note == "the worker died" and first.failures == 1
    assert first.not_before_s - scene.clock.wall_s == 8.0
    scene.run(dispatcher, lambda: scene.job(job).attempt == 2 and scene.job(job).state is JobState.QUEUED)
    second = scene.job(job)
    assert second.note == "the worker gave no result for 60 s"
    assert second.not_before_s - scene.clock.wall_s == 16.0, "the wait doubles"
    scene.finish(dispatcher)
    done = scene.job(job)
    assert done.state is JobState.SUCCEEDED and done.attempt == 3
    assert str(done.result["url"]).endswith("attempt-1-3")  # type: ignore[index]
    check_consistent(scene)
    assert scene.recorded.counters["retries", "worker_lost"] == 2
    assert scene.recorded.counters["jobs_started", "adapt"] == 3


def test_attempts_that_are_used_up_fail_the_job_with_the_last_reason(scene: Scene) -> None:
    job = scene.submit(ADAPT, max_attempts=2)
    other = scene.submit(ADAPT)
    dispatcher = scene.coordinator()
    dispatcher.pool.script = lambda key, request, prior: (  # type: ignore[attr-defined]
        Outcome(key, lost="the worker died") if key == job.job_id else None
    )
    scene.finish(dispatcher)
    failure = scene.job(job).failure
    assert failure is not None and failure.reason is FailureReason.ATTEMPTS_EXHAUSTED
    assert failure.message == "started 2 times without a result; the last time: the worker died"
    assert scene.job(other).state is JobState.SUCCEEDED
    assert scene.recorded.counters["jobs_failed", "adapt", "ATTEMPTS_EXHAUSTED"] == 1
    assert scene.recorded.counters["retries", "worker_lost"] == 1, "the last loss is a failure, not a retry"


def test_a_round_goes_on_when_workers_are_lost_and_makes_the_same_prior(scene: Scene, trained: str) -> None:
    job = scene.submit(TRAIN)
    dispatcher = scene.coordinator()
    lost: set[str] = set()

    def lose_each_once(key: str, request: object, prior: Prior) -> Outcome | None:
        if key in lost:
            return None
        lost.add(key)
        return Outcome(key, lost="the worker died")

    dispatcher.pool.script = lose_each_once  # type: ignore[attr-defined]
    scene.finish(dispatcher)
    assert scene.job(job).result["summary"]["prior_sha256"] == trained  # type: ignore[index, call-overload]
    assert scene.job(job).attempt == 1, "the job itself did not have to start again"
    assert scene.recorded.counters["retries", "worker_lost"] == len(lost) == 2 * ROUNDS


def preempted(key: str, times: int, seen: list[str]) -> Outcome | None:
    """A call's outcome, whose worker is taken away so many times."""
    seen.append(key)
    if seen.count(key) > times:
        return None
    return Outcome(key, lost="the worker had to leave its node", uses_attempt=False)


def test_a_job_whose_workers_are_taken_away_uses_up_no_attempt(scene: Scene) -> None:
    job = scene.submit(ADAPT, max_attempts=1)
    dispatcher = scene.coordinator()
    seen: list[str] = []
    dispatcher.pool.script = lambda key, request, prior: preempted(key, 3, seen)  # type: ignore[attr-defined]
    scene.finish(dispatcher)
    done = scene.job(job)
    assert (done.state, done.failures) == (JobState.SUCCEEDED, 0)
    assert done.attempt == 4 and str(done.result["url"]).endswith("attempt-1-4"), "each with a folder of its own"  # type: ignore[index]
    check_consistent(scene)


def test_a_round_whose_workers_are_taken_away_makes_the_same_prior(scene: Scene, trained: str) -> None:
    job = scene.submit(TRAIN, max_attempts=1)
    dispatcher = scene.coordinator()
    seen: list[str] = []
    dispatcher.pool.script = lambda key, request, prior: preempted(key, 6, seen)  # type: ignore[attr-defined]
    scene.finish(dispatcher)
    assert len(seen) == 7 * len(set(seen)), "oftener than a task may fail"
    assert scene.job(job).result["summary"]["prior_sha256"] == trained  # type: ignore[index, call-overload]
    assert scene.job(job).attempt == 1


def test_jobs_wait_in_the_queue_for_workers_and_are_what_the_pool_is_to_expect(scene: Scene) -> None:
    for spec in (ADAPT, ADAPT, CONTRIBUTE, CONTRIBUTE, TRAIN):
        scene.submit(spec)
    dispatcher = scene.coordinator()
    pool: Any = dispatcher.pool
    pool.num_workers, pool.max_workers = 0, 8
    scene.turns(dispatcher, 4)
    assert {job.state for job in scene.jobs()} == {JobState.QUEUED}
    assert pool.expected == Load(num_calls=3), "of those that move one prior, the first"
    pool.num_workers, pool.held = 1, lambda key: True
    scene.turns(dispatcher, 1, tick_s=1.0)
    assert pool.expected == Load(num_calls=1) and len(dispatcher.running) == 2
    pool.num_workers, pool.held = 8, lambda key: False
    scene.finish(dispatcher)
    scene.turns(dispatcher, 3)
    assert pool.expected == Load()


def test_a_job_that_starts_is_no_longer_expected_from_that_turn_on(scene: Scene) -> None:
    scene.submit(ADAPT)
    dispatcher = scene.coordinator()
    pool: Any = dispatcher.pool
    pool.num_workers, pool.max_workers, pool.held = 0, 8, lambda key: True
    scene.turns(dispatcher, 2)
    assert pool.expected == Load(num_calls=1)
    pool.num_workers = 1
    scene.submit(ADAPT)  # which makes the dispatcher look at the queue
    scene.turns(dispatcher, 1, tick_s=0.0)
    assert len(dispatcher.running) == 2
    assert pool.expected == Load(), "else they would be counted twice, and a worker too many would be added"


def test_no_more_jobs_are_expected_of_a_tenant_than_may_run_or_than_there_may_be_workers(tmp_path: Path) -> None:
    for limit, expected in ((2, 2), (50, 4)):
        folder = tmp_path / str(limit)
        folder.mkdir()
        scene = Scene(folder, Memory({}), quota=Quota(max_running=limit))
        for _ in range(9):
            scene.submit(ADAPT)
        dispatcher = scene.coordinator()
        pool: Any = dispatcher.pool
        pool.num_workers, pool.max_workers = 0, 4
        scene.turns(dispatcher, 2)
        assert pool.expected == Load(num_calls=expected)


def test_a_round_whose_task_kills_every_worker_fails_with_its_name(scene: Scene) -> None:
    job = scene.submit(TRAIN)
    dispatcher = scene.coordinator()
    dispatcher.pool.script = lambda key, request, prior: (  # type: ignore[attr-defined]
        Outcome(key, lost="the worker died") if key.endswith("task-01") else None
    )
    scene.finish(dispatcher)
    failure = scene.job(job).failure
    assert failure is not None and failure.reason is FailureReason.ADAPTATION_FAILED
    assert "family-0/task-01 was started 4 times without a result" in failure.message
    assert [version for version, _, _ in scene.priors()] == [0]
    check_consistent(scene)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (InvalidInputError("wrong class"), FailureReason.INVALID_INPUT),
        (CorruptArtifactError("file does not have its SHA-256"), FailureReason.CORRUPT_ARTIFACT),
        (AdaptationError("out of memory even with batches of 2"), FailureReason.ADAPTATION_FAILED),
        (MetaSearchError("something else"), FailureReason.INTERNAL),
    ],
)
def test_what_a_worker_raises_on_purpose_fails_the_job_at_once_with_that_reason(
    scene: Scene, error: MetaSearchError, reason: FailureReason
) -> None:
    job, other = scene.submit(ADAPT), scene.submit(ADAPT)
    dispatcher = scene.coordinator()
    dispatcher.pool.script = lambda key, request, prior: (  # type: ignore[attr-defined]
        Outcome(key, error=error) if key == job.job_id else None
    )
    scene.finish(dispatcher)
    found = scene.job(job)
    assert found.failure is not None and (found.failure.reason, found.failure.message) == (reason, str(error))
    assert found.attempt == 1
    assert scene.job(other).state is JobState.SUCCEEDED


# Updates that must not touch the prior


def spoilt(update: LocalUpdate, how: str) -> LocalUpdate:
    body = update.differences["body"].copy()
    if how == "nan":
        body[3] = np.nan
    elif how == "infinite":
        body[3] = np.inf
    elif how == "short":
        body = body[:-1]
    elif how == "other version":
        return replace(update, version=update.version + 1)
    elif how == "no examples":
        return replace(update, num_examples=0)
    return replace(update, differences={**update.differences, "body": body})


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("nan", "not_finite"),
        ("infinite", "not_finite"),
        ("short", "wrong_shape"),
        ("other version", "wrong_version"),
        ("no examples", "bad_weight"),
    ],
)
def test_a_bad_contribution_fails_and_leaves_the_prior_as_it_was(scene: Scene, how: str, reason: str) -> None:
    bad, good = scene.submit(CONTRIBUTE), scene.submit(CONTRIBUTE)
    dispatcher = scene.coordinator()

    def spoil(key: str, request: JobRequest, prior: Prior) -> Outcome | None:
        if key != bad.job_id:
            return None
        result: JobResult = scene.compute(request, prior)
        assert result.update is not None
        return Outcome(key, replace(result, update=spoilt(result.update, how)))

    dispatcher.pool.script = spoil  # type: ignore[attr-defined]
    scene.finish(dispatcher)
    failure = scene.job(bad).failure
    assert failure is not None and failure.reason is FailureReason.ADAPTATION_FAILED
    assert f"the update cannot enter the prior: {reason}" in failure.message
    assert scene.recorded.counters["updates_rejected", reason] == 1
    assert scene.recorded.counters["jobs_failed", "adapt", "ADAPTATION_FAILED"] == 1
    digests = after_contributions(1)
    assert scene.priors() == [(0, digests[0], ""), (1, digests[1], good.job_id)]
    check_consistent(scene)


def test_a_bad_update_of_a_round_is_left_out_and_too_many_fail_the_job(scene: Scene) -> None:
    one = scene.submit(MetaTrainSpec(until_version=1))
    dispatcher = scene.coordinator()

    def spoil(key: str, request: AdaptRequest, prior: Prior) -> Outcome | None:
        wrong = "task-00" if prior.version == 0 else "task"
        if wrong not in key:
            return None
        result: AdaptResult = scene.compute(request, prior)
        assert result.update is not None
        return Outcome(key, replace(result, update=spoilt(result.update, "nan")))

    dispatcher.pool.script = spoil  # type: ignore[attr-defined]
    scene.finish(dispatcher)
    assert scene.job(one).state is JobState.SUCCEEDED
    pointer = scene.users.get_prior(TENANT, STUDY, 1)
    assert (pointer.metrics["tasks_accepted"], pointer.metrics["tasks_rejected"]) == (1, 1)

    all_of_them = scene.submit(MetaTrainSpec(until_version=2))
    scene.finish(dispatcher)
    failure = scene.job(all_of_them).failure
    assert failure is not None and failure.reason is FailureReason.ADAPTATION_FAILED
    assert "0 of 2 updates to version 1 are acceptable" in failure.message and "not_finite" in failure.message
    assert [version for version, _, _ in scene.priors()] == [0, 1]
    assert scene.recorded.counters["updates_rejected", "not_finite"] == 3
    assert scene.recorded.counters["updates_accepted",] == 1


# The coordinator killed, and storage that does not answer, at every step there is


@pytest.fixture
def watched_files(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Faults]]:
    """The coordinator's writes of files are steps too, of the scene in the list."""
    current: list[Faults] = []
    real_write = ArtifactFolder.write

    def write(folder: ArtifactFolder, name: str, data: bytes) -> None:
        if current and "/priors/" in f"/{name}":
            current[0].around(f"write {Path(name).suffix}", lambda: real_write(folder, name, data))
        else:
            real_write(folder, name, data)

    monkeypatch.setattr(ArtifactFolder, "write", write)
    yield current


def begin_scene(make: Callable[..., Scene], watched_files: list[Faults]) -> Scene:
    scene = make()
    watched_files[:] = [scene.faults]
    scene.submit(MetaTrainSpec(until_version=1))
    scene.submit(CONTRIBUTE)
    scene.submit(ADAPT)
    return scene


def outcome_of(scene: Scene) -> tuple[Any, ...]:
    """All that a user can see and that must not depend on faults."""
    check_consistent(scene)
    summaries = []
    for job in scene.jobs():
        assert job.result is not None, job
        summary = {**job.result["summary"], "seconds": None}  # type: ignore[dict-item]
        summaries.append((job.job_id, job.state, json.dumps(summary, sort_keys=True)))
    return scene.priors(), summaries


def undisturbed(make: Callable[..., Scene], watched_files: list[Faults]) -> tuple[tuple[Any, ...], list[str]]:
    scene = begin_scene(make, watched_files)
    scene.finish(scene.coordinator())
    return outcome_of(scene), scene.faults.names


CHANGES = ("commit", "write")


def test_the_steps_that_are_disturbed_are_those_that_matter(
    make: Callable[..., Scene], watched_files: list[Faults]
) -> None:
    _, names = undisturbed(make, watched_files)
    assert {
        "commit epoch",
        "commit beat",
        "commit first prior",
        "commit running",
        "commit plan",
        "write .safetensors",
        "write .json",
        "commit advance",
        "commit succeeded",
    } <= set(names)


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_coordinator_killed_at_any_step_costs_nothing(
    make: Callable[..., Scene], watched_files: list[Faults], when: str
) -> None:
    expected, names = undisturbed(make, watched_files)
    for step in [step for step, name in enumerate(names) if name.startswith(CHANGES) and name != "commit beat"]:
        scene = begin_scene(make, watched_files)
        scene.faults.at(step, when, Killed())
        with pytest.raises(Killed):
            scene.finish(scene.coordinator())
        scene.finish(scene.coordinator())
        assert outcome_of(scene) == expected, f"{when} step {step}, {names[step]}"
        assert all(job.failures == 0 for job in scene.jobs()), "it is not the jobs' fault"
        scene.ledger.close()


def test_coordinators_killed_one_after_the_other_get_ahead(
    make: Callable[..., Scene], watched_files: list[Faults]
) -> None:
    expected, _ = undisturbed(make, watched_files)
    scene = begin_scene(make, watched_files)
    killed = 0
    while not scene.all_ended():
        # Each lives for a few steps more than the one before.
        scene.faults.rules = []
        scene.faults.at(len(scene.faults.names) + 12 + 2 * killed, "after", Killed())
        try:
            scene.finish(scene.coordinator())
        except Killed:
            killed += 1
        assert killed < 100
    assert killed > 5
    assert outcome_of(scene) == expected


@pytest.mark.parametrize(("when", "length"), [("before", 1), ("after", 1), ("before", 9)])
def test_a_store_that_does_not_answer_at_any_step_costs_nothing(
    make: Callable[..., Scene], watched_files: list[Faults], when: str, length: int
) -> None:
    expected, names = undisturbed(make, watched_files)
    # Before: every call. After: only where something was changed that the coordinator does not hear of.
    steps = [
        step
        for step, name in enumerate(names)
        if name.startswith(CHANGES if when == "after" or length > 1 else ("commit", "write", "get", "scan"))
    ]
    seen: set[tuple[str, str, str]] = set()
    for step in steps:
        # A read between the same two steps is the same place.
        place = (names[step - 1], names[step], names[step + 1] if step + 1 < len(names) else "")
        if place in seen:
            continue
        seen.add(place)
        scene = begin_scene(make, watched_files)
        scene.faults.at(step, when, UnavailableError("no answer"), length)
        scene.finish(scene.coordinator())
        assert outcome_of(scene) == expected, f"{when} step {step}, {names[step]}"
        assert all(job.failures == 0 for job in scene.jobs()), "it is not the jobs' fault"
        scene.ledger.close()


def test_nothing_starts_while_the_store_is_away_and_everything_after(scene: Scene) -> None:
    job = scene.submit(ADAPT)
    dispatcher = scene.coordinator()
    away = [True]
    scene.faults.rules.append(
        lambda number, name, moment: UnavailableError("no answer") if away[0] and moment == "before" else None
    )
    scene.turns(dispatcher, 20)
    assert scene.ran == [] and scene.job(job).state is JobState.QUEUED
    away[0] = False
    scene.finish(dispatcher)
    assert scene.job(job).state is JobState.SUCCEEDED


def test_a_result_that_comes_while_the_store_is_away_is_kept_and_not_computed_again(scene: Scene) -> None:
    jobs = [scene.submit(ADAPT), scene.submit(CONTRIBUTE)]
    dispatcher = scene.coordinator()
    scene.run(dispatcher, lambda: len(dispatcher.running) == 2 or len(scene.ran) > 0, tick_s=0.01)
    away = [True]
    scene.faults.rules.append(
        lambda number, name, moment: UnavailableError("no answer") if away[0] and moment == "before" else None
    )
    scene.turns(dispatcher, 100)  # fifty seconds: jobs at hand are held against the store several times
    assert sorted(scene.ran) == [job.job_id for job in jobs]
    away[0] = False
    scene.finish(dispatcher)
    assert sorted(scene.ran) == [job.job_id for job in jobs]
    assert all(scene.job(job).attempt == 1 for job in jobs)
    check_consistent(scene)


# Storage of artifacts


@pytest.mark.parametrize("spec", [CONTRIBUTE, MetaTrainSpec(until_version=1)], ids=["contribute", "meta_train"])
def test_artifact_storage_that_refuses_writes_delays_jobs_and_fails_none(
    scene: Scene, spec: AdaptSpec | MetaTrainSpec
) -> None:
    job = scene.submit(spec)
    dispatcher = scene.coordinator()
    scene.run(dispatcher, lambda: bool(scene.ran), tick_s=0.01)  # version 0 is there, and work has begun
    artifacts, aside = scene.folder / "artifacts", scene.folder / "aside"
    if scene.job(job).state is JobState.RUNNING:
        artifacts.rename(aside)
        artifacts.write_text("a file where a folder should be")
        scene.turns(dispatcher, 40)
        assert not scene.job(job).state.is_terminal
        assert scene.job(job).failures == 0
        artifacts.unlink()
        aside.rename(artifacts)
    scene.finish(dispatcher)
    assert scene.job(job).state is JobState.SUCCEEDED
    assert [(version, maker) for version, _, maker in scene.priors()] == [(0, ""), (1, job.job_id)]
    check_consistent(scene)


def test_artifact_storage_that_refuses_from_the_start_delays_the_first_prior(scene: Scene) -> None:
    job = scene.submit(ADAPT)
    artifacts = scene.folder / "artifacts"
    artifacts.write_text("a file where a folder should be")
    dispatcher = scene.coordinator()
    scene.turns(dispatcher, 20)
    assert scene.job(job).state is JobState.QUEUED and scene.priors() == []
    artifacts.unlink()
    scene.finish(dispatcher)
    assert scene.job(job).state is JobState.SUCCEEDED


def test_a_worker_that_cannot_store_its_results_tries_again_without_using_attempts_up(scene: Scene) -> None:
    job = scene.submit(ADAPT, max_attempts=1)
    dispatcher = scene.coordinator()
    refusals = iter([UnavailableError("cannot write weights.safetensors: no space left")] * 5)
    dispatcher.pool.script = lambda key, request, prior: next(  # type: ignore[attr-defined]
        (Outcome(key, error=error) for error in refusals), None
    )
    scene.finish(dispatcher)
    done = scene.job(job)
    assert done.state is JobState.SUCCEEDED and done.attempt == 6 and done.failures == 0


@pytest.mark.parametrize("spec", [ADAPT, TRAIN], ids=["adapt", "meta_train"])
def test_data_that_cannot_be_had_uses_attempts_up(
    scene: Scene, spec: AdaptSpec | MetaTrainSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = DataUnavailableError("cannot fetch https://data.example/sets/a.zip (timed out)")

    def load(config: Any) -> Any:
        raise problem

    monkeypatch.setattr("coordinator.train_run.load_catalogs", load)
    job = scene.submit(spec, max_attempts=3)
    dispatcher = scene.coordinator()
    dispatcher.pool.script = lambda key, request, prior: Outcome(key, error=problem)  # type: ignore[attr-defined]
    scene.finish(dispatcher)
    done = scene.job(job)
    assert done.state is JobState.FAILED and done.attempt == done.failures == 3
    assert done.failure is not None and done.failure.reason is FailureReason.ATTEMPTS_EXHAUSTED
    assert "cannot fetch https://data.example/sets/a.zip" in done.failure.message
    assert scene.recorded.counters["retries", "data_unavailable"] == 2


def damage(path: Path, how: str) -> None:
    data = path.read_bytes()
    if how == "truncated":
        path.write_bytes(data[: len(data) // 2])
    elif how == "altered":
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    elif how == "missing":
        path.unlink()
    else:
        manifest = path.with_suffix(".json")
        manifest.write_text(manifest.read_text()[:-9])


@pytest.mark.parametrize("how", ["truncated", "altered", "missing", "manifest"])
@pytest.mark.parametrize("spec", [ADAPT, CONTRIBUTE, TRAIN], ids=["adapt", "contribute", "meta_train"])
def test_a_damaged_prior_fails_the_jobs_that_need_it_and_no_others(
    scene: Scene, how: str, spec: AdaptSpec | MetaTrainSpec
) -> None:
    scene.submit(ADAPT)
    scene.finish(scene.coordinator())
    (path,) = scene.prior_files()
    damage(path, how)
    job, other = scene.submit(spec), scene.submit(ADAPT, study="letters")
    scene.run(scene.coordinator(), lambda: scene.all_ended() and scene.job(other).state.is_terminal)
    failure = scene.job(job).failure
    assert failure is not None and failure.reason is FailureReason.CORRUPT_ARTIFACT
    assert path.stem in failure.message
    assert scene.job(other).state is JobState.SUCCEEDED


def test_a_prior_that_was_exchanged_for_another_valid_one_is_noticed(scene: Scene) -> None:
    scene.submit(ADAPT)
    scene.finish(scene.coordinator())
    (path,) = scene.prior_files()
    other = load("smoke", ["network.channels=2", "seed=5"], environment={})
    made = PriorStore(scene.folder / "other")
    made.save(initial_prior(other))
    for suffix in (".safetensors", ".json"):
        path.with_suffix(suffix).write_bytes((scene.folder / f"other/priors/{0:08d}{suffix}").read_bytes())
    job = scene.submit(ADAPT)
    scene.finish(scene.coordinator())
    failure = scene.job(job).failure
    assert failure is not None and failure.reason is FailureReason.CORRUPT_ARTIFACT


def test_a_study_that_cannot_be_read_fails_its_own_jobs_only(scene: Scene) -> None:
    broken = {**CONFIG.model_dump(mode="json"), "rounds": -1}
    scene.users.create_study(Study(tenant=TENANT, study="broken", config=broken, created_s=0.0))
    jobs = [scene.submit(spec, study="broken") for spec in (ADAPT, TRAIN)]
    good = scene.submit(ADAPT)
    scene.run(scene.coordinator(), lambda: all(scene.job(job).state.is_terminal for job in (*jobs, good)))
    for job in jobs:
        failure = scene.job(job).failure
        assert failure is not None and failure.reason is FailureReason.INVALID_INPUT and "rounds" in failure.message
    assert scene.job(good).state is JobState.SUCCEEDED


# Two coordinators


def test_a_coordinator_that_was_replaced_is_told_so_and_changes_nothing(scene: Scene, trained: str) -> None:
    jobs = [scene.submit(TRAIN), scene.submit(ADAPT)]
    first = scene.coordinator()
    scene.run(first, lambda: len(scene.ran) >= 1, tick_s=0.01)
    assert first.running
    second = scene.coordinator()
    before = records(scene)
    with pytest.raises(SupersededError, match="coordinator 1 was replaced by coordinator 2"):
        scene.turns(first, 20)
    assert records(scene) == before
    scene.finish(second)
    assert scene.recorded.counters["retries", "coordinator_lost"] >= 1
    assert scene.job(jobs[0]).result["summary"]["prior_sha256"] == trained  # type: ignore[index, call-overload]
    assert all(scene.job(job).failures == 0 for job in jobs)
    check_consistent(scene)


@pytest.mark.parametrize("steps", [0, 3, 6, 9])
def test_a_coordinator_that_comes_back_from_a_partition_late_changes_nothing(scene: Scene, steps: int) -> None:
    """The first is cut off with its results in hand; it hears nothing until the second has ended all jobs."""
    jobs = [scene.submit(CONTRIBUTE), scene.submit(CONTRIBUTE), scene.submit(ADAPT)]
    first = scene.coordinator()
    scene.turns(first, steps, tick_s=0.01)
    scene.finish(scene.coordinator())
    before = records(scene)
    with pytest.raises(SupersededError):
        scene.turns(first, 20)
    assert records(scene) == before
    digests = after_contributions(2)
    assert [digest for _, digest, _ in scene.priors()] == digests
    assert [scene.job(job).state for job in jobs] == [JobState.SUCCEEDED] * 3
    check_consistent(scene)


def records(scene: Scene) -> Sequence[Stored]:
    return scene.ledger.scan("", "", 100_000)


# Clocks


@pytest.mark.parametrize("jump_s", [DAY_S, -DAY_S], ids=["a day on", "a day back"])
@pytest.mark.parametrize("turns", [1, 3, 5, 8])
def test_a_clock_that_jumps_loses_no_job_and_holds_none_up(scene: Scene, jump_s: float, turns: int) -> None:
    deadline_s = scene.clock.wall_s + 2 * DAY_S
    jobs = [
        scene.submit(CONTRIBUTE, queue_deadline_s=deadline_s),
        scene.submit(ADAPT, queue_deadline_s=deadline_s),
        scene.submit(MetaTrainSpec(until_version=2), queue_deadline_s=deadline_s),
    ]
    dispatcher = scene.coordinator()
    losses = iter(["the worker died"] * 2)
    dispatcher.pool.script = lambda key, request, prior: next(  # type: ignore[attr-defined]
        (Outcome(key, lost=reason) for reason in losses), None
    )
    scene.turns(dispatcher, turns, tick_s=0.1)
    scene.clock.wall_s += jump_s
    scene.run(dispatcher, scene.all_ended, turns=100)
    assert [scene.job(job).state for job in jobs] == [JobState.SUCCEEDED] * 3
    assert [version for version, _, _ in scene.priors()] == [0, 1, 2]
    check_consistent(scene)


def test_a_clock_that_is_set_on_fails_only_jobs_that_never_started_and_whose_deadline_it_passes(scene: Scene) -> None:
    """What holds, and what does not: a deadline is a time of day, so a clock that is wrong by more than it is late."""
    running = scene.submit(ADAPT, queue_deadline_s=scene.clock.wall_s + 60)
    dispatcher = scene.coordinator()
    dispatcher.pool.held = lambda key: True  # type: ignore[attr-defined]
    scene.run(dispatcher, lambda: len(dispatcher.running) == 1)
    for _ in range(3):  # fills the pool
        scene.submit(ADAPT)
    scene.run(dispatcher, lambda: len(dispatcher.running) == 4)
    waiting = scene.submit(ADAPT, queue_deadline_s=scene.clock.wall_s + DAY_S / 2)
    patient = scene.submit(ADAPT, queue_deadline_s=scene.clock.wall_s + 2 * DAY_S)
    scene.clock.wall_s += DAY_S
    scene.turns(dispatcher, 5)
    assert scene.job(waiting).state is JobState.FAILED
    assert scene.job(patient).state is JobState.QUEUED
    assert scene.job(running).state is JobState.RUNNING
    dispatcher.pool.held = lambda key: False  # type: ignore[attr-defined]
    scene.finish(dispatcher)
    assert scene.job(running).state is scene.job(patient).state is JobState.SUCCEEDED


# What users ask of jobs


def test_a_queued_job_that_is_cancelled_never_starts(scene: Scene) -> None:
    job = scene.submit(ADAPT)
    scene.users.cancel_job(TENANT, STUDY, job.job_id, scene.clock.wall_s)
    dispatcher = scene.coordinator()
    scene.turns(dispatcher, 5)
    assert scene.states(job) == [JobState.QUEUED, JobState.CANCELLED] and scene.ran == []
    check_consistent(scene)


@pytest.mark.parametrize("spec", [ADAPT, CONTRIBUTE, TRAIN], ids=["adapt", "contribute", "meta_train"])
def test_a_running_job_that_is_cancelled_is_taken_off_its_worker(scene: Scene, spec: AdaptSpec | MetaTrainSpec) -> None:
    job = scene.submit(spec)
    dispatcher = scene.coordinator()
    dispatcher.pool.held = lambda key: True  # type: ignore[attr-defined]
    scene.run(dispatcher, lambda: dispatcher.pool.num_pending > 0)
    scene.users.cancel_job(TENANT, STUDY, job.job_id, scene.clock.wall_s)
    scene.turns(dispatcher, 1, tick_s=0.0)
    assert scene.states(job) == [JobState.QUEUED, JobState.RUNNING, JobState.CANCELLING, JobState.CANCELLED]
    assert dispatcher.pool.num_pending == 0 and dispatcher.pool.abandoned  # type: ignore[attr-defined]
    assert [version for version, _, _ in scene.priors()] == [0]
    check_consistent(scene)


@pytest.mark.parametrize(
    "spec", [ADAPT, CONTRIBUTE, MetaTrainSpec(until_version=1)], ids=["adapt", "contribute", "train"]
)
def test_a_cancel_that_comes_between_result_and_commit_wins(scene: Scene, spec: AdaptSpec | MetaTrainSpec) -> None:
    job = scene.submit(spec)
    dispatcher = scene.coordinator()

    def cancel_first(number: int, name: str, moment: str) -> None:
        if name in ("commit succeeded", "commit advance") and moment == "before":
            scene.users.cancel_job(TENANT, STUDY, job.job_id, scene.clock.wall_s)

    scene.faults.rules.append(cancel_first)
    scene.run(dispatcher, scene.all_ended, turns=40, tick_s=0.1)
    assert scene.job(job).state is JobState.CANCELLED
    assert scene.job(job).result is None
    if not isinstance(spec, MetaTrainSpec):
        assert [version for version, _, _ in scene.priors()] == [0]
    check_consistent(scene)


def test_a_cancel_while_the_coordinator_is_dead_is_confirmed_by_the_next(scene: Scene) -> None:
    job = scene.submit(ADAPT)
    dispatcher = scene.coordinator()
    dispatcher.pool.held = lambda key: True  # type: ignore[attr-defined]
    scene.run(dispatcher, lambda: dispatcher.pool.num_pending > 0)
    scene.users.cancel_job(TENANT, STUDY, job.job_id, scene.clock.wall_s)
    scene.finish(scene.coordinator())
    assert scene.job(job).state is JobState.CANCELLED
    check_consistent(scene)


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_training_that_was_paused_ends_in_the_prior_of_an_undisturbed_run(
    scene: Scene, trained: str, turns: int
) -> None:
    job = scene.submit(TRAIN)
    dispatcher = scene.coordinator()
    scene.turns(dispatcher, turns)
    scene.users.suspend_job(TENANT, STUDY, job.job_id, True)
    scene.run(dispatcher, lambda: not dispatcher.running)
    paused = scene.job(job)
    if paused.state is JobState.QUEUED:
        version = scene.users.head(TENANT, STUDY).version
        scene.turns(dispatcher, 20)
        assert scene.users.head(TENANT, STUDY).version == version, "nothing runs while it is paused"
        scene.users.suspend_job(TENANT, STUDY, job.job_id, False)
    scene.finish(dispatcher)
    assert scene.job(job).result["summary"]["prior_sha256"] == trained  # type: ignore[index, call-overload]
    assert scene.job(job).failures == 0
    was_paused = paused.state is JobState.QUEUED and paused.attempt > 0
    assert scene.recorded.counters.get(("retries", "paused"), 0) == was_paused


def test_a_paused_contribution_goes_on_from_the_prior_that_others_have_moved(scene: Scene) -> None:
    paused = scene.submit(CONTRIBUTE, max_attempts=1)
    dispatcher = scene.coordinator()
    dispatcher.pool.held = lambda key: True  # type: ignore[attr-defined]
    scene.run(dispatcher, lambda: dispatcher.pool.num_pending > 0)
    scene.users.suspend_job(TENANT, STUDY, paused.job_id, True)
    scene.run(dispatcher, lambda: not dispatcher.running)
    dispatcher.pool.held = lambda key: False  # type: ignore[attr-defined]
    other = scene.submit(CONTRIBUTE)
    scene.run(dispatcher, lambda: scene.job(other).state.is_terminal)
    scene.users.suspend_job(TENANT, STUDY, paused.job_id, False)
    scene.finish(dispatcher)
    digests = after_contributions(2)
    assert scene.priors() == [(0, digests[0], ""), (1, digests[1], other.job_id), (2, digests[2], paused.job_id)]
    assert scene.job(paused).failures == 0


def test_a_contribution_overtaken_by_an_urgent_one_is_made_from_the_new_prior(scene: Scene) -> None:
    slow = scene.submit(CONTRIBUTE, max_attempts=2)
    dispatcher = scene.coordinator()
    losses = iter(["the worker died"])
    dispatcher.pool.script = lambda key, request, prior: next(  # type: ignore[attr-defined]
        (Outcome(key, lost=reason) for reason in losses), None
    )
    scene.run(dispatcher, lambda: scene.job(slow).note == "the worker died", tick_s=0.01)
    urgent = scene.submit(CONTRIBUTE, priority=9)
    scene.finish(dispatcher)
    assert [maker for _, _, maker in scene.priors()] == ["", urgent.job_id, slow.job_id]
    assert scene.job(slow).failures == 1


def test_a_contribution_whose_start_was_not_confirmed_is_not_overtaken(scene: Scene) -> None:
    first, second = scene.submit(CONTRIBUTE), scene.submit(CONTRIBUTE)
    dispatcher = scene.coordinator()
    unheard = ["commit running"]

    def lose_an_answer(number: int, name: str, moment: str) -> BaseException | None:
        if moment == "after" and name in unheard:
            unheard.remove(name)
            return UnavailableError("no answer")
        return None

    scene.faults.rules.append(lose_an_answer)
    scene.finish(dispatcher)
    assert unheard == []
    assert [maker for _, _, maker in scene.priors()] == ["", first.job_id, second.job_id]


# Queue


def test_a_gpu_job_without_a_gpu_fails_at_its_deadline_and_says_what_there_is(scene: Scene) -> None:
    job = scene.submit(ADAPT, needs_gpu=True, queue_deadline_s=scene.clock.wall_s + 30)
    patient = scene.submit(ADAPT)
    dispatcher = scene.coordinator()
    scene.run(dispatcher, lambda: scene.job(patient).state.is_terminal)
    scene.turns(dispatcher, 20)
    assert scene.job(job).state is JobState.QUEUED
    scene.run(dispatcher, lambda: scene.job(job).state.is_terminal)
    failure = scene.job(job).failure
    assert failure is not None and failure.reason is FailureReason.RESOURCE_UNAVAILABLE
    assert "it asked for a GPU; the cluster has 2 CPUs and 0 GPUs, and 2 workers" in failure.message
    assert 30 <= scene.job(job).finished_s - job.created_s <= 32  # type: ignore[operator]
    assert scene.recorded.counters["jobs_failed", "adapt", "RESOURCE_UNAVAILABLE"] == 1


def test_a_deadline_that_passes_while_a_started_job_is_back_in_the_queue_does_not_fail_it(scene: Scene) -> None:
    job = scene.submit(ADAPT, queue_deadline_s=scene.clock.wall_s + 5)
    dispatcher = scene.coordinator()
    dispatcher.pool.held = lambda key: True  # type: ignore[attr-defined]
    scene.run(dispatcher, lambda: dispatcher.pool.num_pending > 0)
    scene.turns(dispatcher, 20)  # it is at work when its deadline passes, and then the coordinator dies
    scene.finish(scene.coordinator())
    assert scene.job(job).state is JobState.SUCCEEDED


def test_a_tenant_runs_as_many_jobs_as_it_may_and_holds_up_no_other(make: Callable[..., Scene]) -> None:
    scene = make(quotas={TENANT: Quota(max_running=1)})
    scene.users.create_study(Study(tenant="other", study=STUDY, config=CONFIG.model_dump(mode="json"), created_s=0.0))
    mine = [scene.submit(ADAPT) for _ in range(3)]
    other = [scene.submit(ADAPT, tenant="other") for _ in range(2)]
    dispatcher = scene.coordinator()
    dispatcher.pool.held = lambda key: True  # type: ignore[attr-defined]
    scene.turns(dispatcher, 5)
    assert sorted(job.job_id for job in dispatcher.running) == [mine[0].job_id, *(job.job_id for job in other)]
    dispatcher.pool.held = lambda key: False  # type: ignore[attr-defined]
    scene.run(dispatcher, lambda: scene.all_ended() and all(scene.job(job).state.is_terminal for job in other))


def test_a_start_that_the_store_refuses_does_not_keep_the_coordinator_busy(make: Callable[..., Scene]) -> None:
    scene = make(quotas={TENANT: Quota(max_running=1)})
    # By the store's count one runs already, of which the coordinator knows nothing.
    scene.ledger.commit(Transaction(adds=[Add(f"running/{TENANT}", 1)]))
    scene.users.create_study(Study(tenant="other", study=STUDY, config=CONFIG.model_dump(mode="json"), created_s=0.0))
    job, other = scene.submit(ADAPT), scene.submit(ADAPT, tenant="other")
    dispatcher = scene.coordinator()
    scene.run(dispatcher, lambda: scene.job(other).state.is_terminal)
    assert scene.job(job).state is JobState.QUEUED
    scene.ledger.commit(Transaction(adds=[Add(f"running/{TENANT}", -1)]))
    scene.finish(dispatcher)


# Housekeeping


def test_pruning_keeps_the_versions_that_jobs_start_from(scene: Scene) -> None:
    dispatcher = scene.coordinator()
    scene.submit(CONTRIBUTE)
    scene.finish(dispatcher)
    at_work = scene.submit(AdaptSpec(choice=CHOICE, prior_version=0))
    dispatcher.pool.held = lambda key: key == at_work.job_id  # type: ignore[attr-defined]
    scene.run(dispatcher, lambda: dispatcher.pool.num_pending > 0)
    in_queue = scene.submit(AdaptSpec(choice=CHOICE, prior_version=1), not_before_s=scene.clock.wall_s + 50)
    train = scene.submit(MetaTrainSpec(until_version=7))
    scene.run(dispatcher, lambda: scene.job(train).state.is_terminal, tick_s=0.1)
    assert CONFIG.checkpoint.keep_last == 3
    assert [version for version, _, _ in scene.priors()] == [0, 1, 5, 6, 7]
    assert [int(path.name[:8]) for path in scene.prior_files()] == [0, 1, 5, 6, 7]
    dispatcher.pool.held = lambda key: False  # type: ignore[attr-defined]
    scene.finish(dispatcher)
    assert scene.job(at_work).state is scene.job(in_queue).state is JobState.SUCCEEDED
    scene.submit(MetaTrainSpec(until_version=8))
    scene.finish(dispatcher)
    assert [version for version, _, _ in scene.priors()] == [6, 7, 8]


def test_draining_hands_everything_over_and_burns_no_attempt(scene: Scene, trained: str) -> None:
    jobs = [scene.submit(TRAIN, max_attempts=1), scene.submit(ADAPT, max_attempts=1)]
    for _ in range(6):  # six coordinators, each drained after a while
        dispatcher = scene.coordinator()
        scene.turns(dispatcher, 1)
        dispatcher.drain()
        scene.turns(dispatcher, 2)
        assert dispatcher.is_drained and dispatcher.pool.num_pending == 0
        assert all(scene.job(job).state in (JobState.QUEUED, JobState.SUCCEEDED) for job in jobs)
    assert any(scene.job(job).attempt > 1 for job in jobs)
    assert scene.recorded.counters["retries", "drained"] == sum(scene.job(job).attempt for job in jobs) - sum(
        scene.job(job).state is JobState.SUCCEEDED for job in jobs
    )
    assert scene.recorded.gauges["draining",] == 1
    scene.finish(scene.coordinator())
    assert scene.recorded.gauges["draining",] == 0
    assert scene.job(jobs[0]).result["summary"]["prior_sha256"] == trained  # type: ignore[index, call-overload]
    assert all(scene.job(job).failures == 0 for job in jobs)
    check_consistent(scene)


def test_a_drain_while_the_store_is_away_is_done_once_the_store_knows(scene: Scene) -> None:
    job = scene.submit(ADAPT)
    dispatcher = scene.coordinator()
    dispatcher.pool.held = lambda key: True  # type: ignore[attr-defined]
    scene.run(dispatcher, lambda: dispatcher.pool.num_pending > 0)
    away = [True]
    scene.faults.rules.append(
        lambda number, name, moment: UnavailableError("no answer") if away[0] and moment == "before" else None
    )
    dispatcher.drain()
    scene.turns(dispatcher, 5)
    assert not dispatcher.is_drained
    away[0] = False
    scene.turns(dispatcher, 1)
    assert dispatcher.is_drained and scene.job(job).state is JobState.QUEUED


def test_progress_of_workers_reaches_the_job(scene: Scene) -> None:
    job = scene.submit(ADAPT)
    dispatcher = scene.coordinator()
    dispatcher.pool.held = lambda key: True  # type: ignore[attr-defined]
    scene.run(dispatcher, lambda: dispatcher.pool.num_pending > 0)
    dispatcher.pool.statuses = [WorkerStatus("service/host/9/w", 1, "cpu", job.job_id, 1)]  # type: ignore[attr-defined]
    scene.turns(dispatcher, 4)
    assert scene.job(job).progress == {"done": 1, "total": CONFIG.adapt.steps, "worker": "w"}
    (before,) = scene.ledger.get(f"job/{TENANT}/{STUDY}/{job.job_id}")
    scene.turns(dispatcher, 60)
    (after,) = scene.ledger.get(f"job/{TENANT}/{STUDY}/{job.job_id}")
    assert before is not None and after is not None
    assert after.revision == before.revision, "nothing is written while there is nothing new"


def test_workers_that_take_long_to_answer_are_asked_less_often(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    job = scene.submit(ADAPT)
    dispatcher = scene.coordinator()
    dispatcher.pool.held = lambda key: True  # type: ignore[attr-defined]
    asked_s: list[float] = []

    def answer_slowly(timeout_s: float) -> list[WorkerStatus]:
        asked_s.append(scene.clock.monotonic_s)
        scene.clock.tick(2.0)
        return [WorkerStatus("w", 1, "cpu", job.job_id, min(len(asked_s), 3))]

    monkeypatch.setattr(dispatcher.pool, "status", answer_slowly)
    scene.run(dispatcher, lambda: len(asked_s) == 4)
    assert all(later - earlier >= 20.0 for earlier, later in itertools.pairwise(asked_s)), "a tenth of the time at most"
    assert scene.job(job).progress["done"] == 3


@pytest.mark.parametrize("spec", [ADAPT, TRAIN])
def test_what_is_asked_of_a_running_job_is_done_although_the_news_was_lost(scene: Scene, spec: Any) -> None:
    jobs = [scene.submit(spec), scene.submit(ADAPT), scene.submit(ADAPT)]
    dispatcher = scene.coordinator()
    dispatcher.pool.held = lambda key: True  # type: ignore[attr-defined]
    scene.turns(dispatcher, 3)
    assert {scene.job(job).state for job in jobs} == {JobState.RUNNING}
    scene.listeners.clear()
    scene.users.cancel_job(TENANT, STUDY, jobs[0].job_id, scene.clock.wall_s)
    scene.users.suspend_job(TENANT, STUDY, jobs[1].job_id, True)
    scene.turns(dispatcher, 4)
    assert scene.job(jobs[0]).state is JobState.CANCELLING, "nobody has told"
    scene.turns(dispatcher, 20)
    assert [scene.job(job).state for job in jobs] == [JobState.CANCELLED, JobState.QUEUED, JobState.RUNNING]
    assert dispatcher.pool.abandoned.count(jobs[1].job_id) == 1  # type: ignore[attr-defined]
    scene.users.suspend_job(TENANT, STUDY, jobs[1].job_id, False)
    dispatcher.pool.held = lambda key: False  # type: ignore[attr-defined]
    scene.finish(dispatcher)
    check_consistent(scene)


def test_a_job_that_is_not_ours_any_more_is_dropped(scene: Scene) -> None:
    jobs = [scene.submit(ADAPT), scene.submit(ADAPT)]
    dispatcher = scene.coordinator()
    dispatcher.pool.held = lambda key: True  # type: ignore[attr-defined]
    scene.turns(dispatcher, 3)
    held = scene.job(jobs[0])
    # As after a restored backup: another attempt has begun, of which this coordinator knows nothing.
    scene.users.requeue(dispatcher.epoch, held, scene.clock.wall_s, 50.0, True, "restored")
    scene.turns(dispatcher, 3)
    assert dispatcher.pool.abandoned == [jobs[0].job_id]  # type: ignore[attr-defined]
    assert [job.job_id for job in dispatcher.running] == [jobs[1].job_id]
    assert scene.job(jobs[0]).note == "restored", "and left as it is"


def test_reading_that_takes_long_is_done_less_often(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    scene.submit(ADAPT)
    dispatcher = scene.coordinator()
    dispatcher.pool.held = lambda key: True  # type: ignore[attr-defined]
    read_s: dict[str, list[float]] = {"active": [], "late": []}

    def slowly(owner: Any, name: str) -> None:
        def answer(*arguments: Any) -> Any:
            read_s[name].append(scene.clock.monotonic_s)
            scene.clock.tick(3.0)
            return []

        monkeypatch.setattr(owner, name, answer)

    scene.turns(dispatcher, 3)
    slowly(dispatcher.store, "active")
    slowly(dispatcher._queue, "late")
    scene.turns(dispatcher, 300, tick_s=3.0)
    for name, times in read_s.items():
        gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
        assert len(gaps) > 2 and min(gaps) >= 150.0, f"{name}: a fiftieth of the time at most"


# A handful of images


def handful(scene: Scene, **changes: Any) -> FewShotSpec:
    """A job whose pixels are where the gateway puts them: noise, of three classes."""
    noise = np.random.default_rng(0).integers(0, 256, (7, 16, 16, 1), np.uint8)
    data = Handful(noise[:3], noise[3:]).to_bytes()
    ArtifactFolder(str(scene.folder)).write("images.npz", data)
    task = FewShotTask(
        classes=("a", "b", "c"),
        labels=(0, 1, 2),
        support_names=("x", "y", "z"),
        query_names=tuple("pqrs"),
        image_size=16,
    )
    file = DatasetFile(url=f"file://{scene.folder}/images.npz", sha256=hashlib.sha256(data).hexdigest(), suffix=".npz")
    return FewShotSpec(**{"task": task, "file": file, "num_bytes": len(data), **changes})


def end(scene: Scene, dispatcher: Dispatcher, *jobs: Job) -> None:
    scene.run(dispatcher, lambda: all(scene.job(job).state.is_terminal for job in jobs))


def likely(job: Job) -> list[list[float]]:
    assert job.state is JobState.SUCCEEDED and job.result is not None, job
    return [found["probabilities"] for found in job.result["summary"]["predictions"]]  # type: ignore[index, call-overload, union-attr]


def test_a_few_shot_job_starts_although_long_ones_hold_all_workers(scene: Scene) -> None:
    dispatcher = scene.coordinator()
    pool: FakePool = dispatcher.pool  # type: ignore[assignment]
    long_jobs = [scene.submit(ADAPT) for _ in range(6)]
    pool.held = lambda key: key in {job.job_id for job in long_jobs}
    scene.turns(dispatcher, 3)
    assert pool.num_pending == 4, "two for each worker"
    quick = [scene.submit(handful(scene), study=HANDFULS, priority=8) for _ in range(2)]
    end(scene, dispatcher, *quick)
    assert pool.num_pending == 4, "and no long one more"
    assert likely(scene.job(quick[0])) == likely(scene.job(quick[1]))
    pool.held = lambda key: False
    scene.finish(dispatcher)
    check_consistent(scene)


def test_submitted_jobs_get_half_of_the_room_from_training_and_keep_it(scene: Scene) -> None:
    dispatcher = scene.coordinator()
    pool: FakePool = dispatcher.pool  # type: ignore[assignment]
    pool.held = lambda key: True
    config = load("smoke", ["rounds=1", "network.channels=2", "inner.steps=1", *MANY_TASKS], environment={})
    plain = config.model_dump(mode="json")
    scene.users.create_study(Study(tenant=TENANT, study="wide", config=plain, created_s=scene.clock.wall_s))
    train = scene.submit(TRAIN, study="wide")
    scene.turns(dispatcher, 2)
    assert len(pool.calls) == 3, "two for each of two workers, but one for whoever comes"
    for _ in range(6):
        scene.submit(ADAPT)
    scene.turns(dispatcher, 2)
    assert sum("/" not in key for key in pool.calls) == 1
    pool.held = lambda key: "/" not in key  # tasks of training end, jobs do not
    scene.turns(dispatcher, 5)
    assert not scene.job(train).state.is_terminal
    jobs = sum("/" not in key for key in pool.calls)
    assert (jobs, len(pool.calls) - jobs) == (2, 2), "half of the room for each"
    pool.held = lambda key: False
    scene.run(dispatcher, lambda: scene.all_ended() and scene.job(train).state is JobState.SUCCEEDED)


def test_few_shot_jobs_fill_the_room_that_they_have_and_no_more(scene: Scene) -> None:
    dispatcher = scene.coordinator()
    pool: FakePool = dispatcher.pool  # type: ignore[assignment]
    pool.held = lambda key: True
    for _ in range(6):
        scene.submit(ADAPT)
        scene.submit(handful(scene), study=HANDFULS, priority=8)
    scene.turns(dispatcher, 3)
    assert (pool.num_pending, pool.num_quick) == (4, 4)


def test_a_few_shot_job_whose_worker_is_lost_runs_again_to_the_same_answer(scene: Scene) -> None:
    dispatcher = scene.coordinator()
    pool: FakePool = dispatcher.pool  # type: ignore[assignment]
    undisturbed = scene.submit(handful(scene), study=HANDFULS)
    end(scene, dispatcher, undisturbed)
    lost = iter([True, True])
    pool.script = lambda key, request, prior: Outcome(key, lost="the worker died") if next(lost, False) else None
    disturbed = scene.submit(handful(scene), study=HANDFULS)
    end(scene, dispatcher, disturbed)
    found = scene.job(disturbed)
    assert (found.attempt, found.failures) == (3, 2)
    assert likely(found) == likely(scene.job(undisturbed))


def test_a_few_shot_job_that_is_cancelled_is_taken_back(scene: Scene) -> None:
    dispatcher = scene.coordinator()
    pool: FakePool = dispatcher.pool  # type: ignore[assignment]
    pool.held = lambda key: True
    job = scene.submit(handful(scene), study=HANDFULS)
    scene.turns(dispatcher, 2)
    scene.users.cancel_job(TENANT, HANDFULS, job.job_id, scene.clock.wall_s)
    end(scene, dispatcher, job)
    assert scene.job(job).state is JobState.CANCELLED and pool.abandoned == [job.job_id]


def test_steps_statistics_and_version_of_a_few_shot_job_are_those_that_it_names(scene: Scene) -> None:
    dispatcher = scene.coordinator()
    plain = scene.submit(handful(scene), study=HANDFULS)
    other = scene.submit(handful(scene, steps=0, statistics="inductive", prior_version=0), study=HANDFULS)
    missing = scene.submit(handful(scene, prior_version=3), study=HANDFULS)
    end(scene, dispatcher, plain, other, missing)
    summaries = [scene.job(job).result["summary"] for job in (plain, other)]  # type: ignore[index]
    assert [(each["steps"], each["statistics"]) for each in summaries] == [(1, "transductive"), (0, "inductive")]  # type: ignore[index, call-overload]
    failure = scene.job(missing).failure
    assert failure is not None and failure.reason is FailureReason.NOT_FOUND


def test_images_that_are_gone_fail_the_few_shot_job_and_name_them(scene: Scene) -> None:
    job = scene.submit(handful(scene), study=HANDFULS)
    (scene.folder / "images.npz").unlink()
    end(scene, scene.coordinator(), job)
    failure = scene.job(job).failure
    assert failure is not None and failure.reason is FailureReason.NOT_FOUND and "images.npz" in failure.message
