"""Meta-training jobs that do not wait for every task: one commit per version, whoever is killed; room for others."""

import json
import logging
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
from reference.priors import random_update, result_of, smoke_config
from reference.replay import replayed

from common.config import DatasetRef, StudyConfig
from common.intake import DoneTasks, Intake
from common.messages import AdaptRequest, JobRequest, JobResult, LocalUpdate
from common.meta.prior import Prior, initial_prior
from common.storage import ArtifactFolder
from common.streams import stream
from common.tasks import TaskChoice
from coordinator.calls import Outcome
from coordinator.dispatcher import Dispatcher
from coordinator.jobs import AdaptSpec, Job, JobSpec, JobState, MetaTrainSpec
from coordinator.pool import MAX_IN_FLIGHT
from coordinator.rounds import task_id_of
from coordinator.scaling import Load
from coordinator.settings import ServiceSettings
from coordinator.store.jobs import JobStore
from coordinator.store.ledger import Put, Transaction
from coordinator.store.records import Plan, Quota, Study
from coordinator.store.sqlite import SqliteLedger

pytestmark = pytest.mark.usefixtures("one_thread", "shared_image_cache")

ROUNDS, TASKS = 2, 3
SMALL = (f"rounds={ROUNDS}", "network.channels=2", "checkpoint.keep_last=2")
BUFFERED = smoke_config(*SMALL, "schedule.mode=buffered")
QUORUM = smoke_config(
    *SMALL, "schedule.deadline_s=30", "schedule.quorum_fraction=0.6", "cluster.tasks_per_partial_sum=1"
)
TRAIN = MetaTrainSpec()
CHOICE = TaskChoice(
    data=DatasetRef(source="digits"), classes=("1", "7", "4"), image_size=16, train_per_class=8, test_per_class=4
)


class Killed(BaseException):
    """The coordinator's process is gone at this very place."""


def learnt(task_id: str, prior: Prior) -> LocalUpdate:
    """What a task learns, without any training: its own for each task and each version that it begins from."""
    return random_update(prior, task_id, seed=prior.version, scale=0.01)


class ChancePool:
    """Workers whose calls end in an order drawn by chance; some are lost, and some never end."""

    gpus_per_worker = 0.0
    num_workers = 2
    max_workers = 2
    num_by_state: Mapping[str, int] = {"running": 2, "starting": 0, "wanted": 2, "lent": 0, "leaving": 0}
    num_replaced = 0

    def __init__(self, seed: int) -> None:
        self.random = stream(seed, "pool")
        self.calls: OrderedDict[str, tuple[Any, Prior]] = OrderedDict()
        self.begun: list[str] = []
        self.abandoned: list[str] = []
        self.most_pending = 0
        self.loses: Callable[[str], bool] = lambda key: False
        self.hangs: Callable[[str], bool] = lambda key: False

    @property
    def num_pending(self) -> int:
        return len(self.calls)

    def expect(self, load: Load) -> None:
        """There are no more workers than these."""

    def submit(self, key: str, request: Any, prior: Prior) -> None:
        assert key not in self.calls and request.version == prior.version
        self.calls[key] = (request, prior)
        self.begun.append(key)
        self.most_pending = max(self.most_pending, len(self.calls))

    def poll(self, timeout_s: float) -> list[Outcome]:
        keys = [key for key in self.calls if not self.hangs(key)]
        if not keys:
            return []
        key = keys[self.random.integers(len(keys))]
        request, prior = self.calls.pop(key)
        if self.loses(key):
            return [Outcome(key, lost="the worker died")]
        if isinstance(request, JobRequest):
            update = learnt(request.job_id, prior) if request.returns_update else None
            return [Outcome(key, JobResult(request.job_id, update, {}, ()))]
        assert isinstance(request, AdaptRequest)
        return [Outcome(key, result_of(learnt(request.task.task_id, prior), request.task.task_id))]

    def abandon(self, key: str) -> None:
        if self.calls.pop(key, None) is not None:
            self.abandoned.append(key)

    def status(self, timeout_s: float = 2.0) -> list[Any]:
        return []


class FragileLedger:
    """A ledger whose coordinator dies before or after one of its commits."""

    def __init__(self, inner: SqliteLedger, kill_at: int | None = None, when: str = "before") -> None:
        self.inner, self.kill_at, self.when = inner, kill_at, when
        self.purposes: list[str] = []

    def commit(self, transaction: Transaction) -> Any:
        puts = {change.key.split("/")[0] for change in transaction.changes if isinstance(change, Put)}
        self.purposes.append(next((name for name in ("prior", "head", "job") if name in puts), "other"))
        is_last = len(self.purposes) - 1 == self.kill_at
        if is_last and self.when == "before":
            raise Killed
        found = self.inner.commit(transaction)
        if is_last:
            raise Killed
        return found

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


class Immediate:
    """An executor without threads."""

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(function(*arguments))
        return future

    def shutdown(self, **options: bool) -> None:
        pass


class Scene:
    """A service without processes, for one study; coordinators come and go."""

    def __init__(self, folder: Path, config: StudyConfig) -> None:
        self.config = config
        self.now_s = 0.0
        self.ledger = SqliteLedger(folder / "jobs.sqlite")
        self.store = JobStore(self.ledger)
        self.settings = ServiceSettings(store="sqlite:unused", artifacts=str(folder / "artifacts"))
        self.num_jobs = 0
        self.store.create_study(
            Study(tenant="lab", study="digits", config=config.model_dump(mode="json"), created_s=0.0)
        )

    def submit(self, spec: JobSpec) -> Job:
        self.num_jobs += 1
        job = Job(tenant="lab", study="digits", job_id=f"{self.num_jobs:04d}", created_s=0.0, spec=spec)
        return self.store.create_job(job, None, Quota())

    def coordinator(self, pool: ChancePool, ledger: Any = None) -> Dispatcher:
        clock = lambda: self.now_s  # noqa: E731
        store = JobStore(self.ledger if ledger is None else ledger)
        dispatcher = Dispatcher(store, pool, self.settings, "test", clock, clock, logging.getLogger("test"))
        dispatcher.background = Immediate()  # type: ignore[assignment]
        return dispatcher

    def run(self, dispatcher: Dispatcher, until: Callable[[], bool] | None = None, turns: int = 300) -> None:
        """To the end of all jobs, or to what is waited for."""
        for _ in range(turns):
            if self.all_ended() if until is None else until():
                return
            self.now_s += 1.0
            dispatcher.turn(0.0)
        raise AssertionError(f"after {turns} turns: {[(job.job_id, job.state, job.note) for job in self.jobs()]}")

    def jobs(self) -> list[Job]:
        return list(self.store.list_jobs("lab", "digits", 1000, "").items)

    def all_ended(self) -> bool:
        return all(job.state.is_terminal for job in self.jobs())

    def job(self, job: Job) -> Job:
        return self.store.get_job("lab", "digits", job.job_id).job

    @property
    def version(self) -> int:
        return self.store.head("lab", "digits").version

    def intakes(self) -> list[Intake]:
        found = [record.intake for record in self.store.rounds("lab", "digits")]
        return [intake for intake in found if intake is not None]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[[StudyConfig], Scene]]:
    scenes: list[Scene] = []

    def build(config: StudyConfig) -> Scene:
        folder = tmp_path / str(len(scenes))
        folder.mkdir()
        scenes.append(Scene(folder, config))
        return scenes[-1]

    yield build
    for scene in scenes:
        scene.ledger.close()


def check_log(scene: Scene, tasks_each: int) -> None:
    """Whether every task entered once at most, and the log alone makes the prior that the store names."""
    intakes = scene.intakes()
    assert [len(intake.accepted) for intake in intakes] == ROUNDS * [tasks_each]
    used = [number for intake in intakes for number, _ in intake.accepted]
    assert len(set(used)) == len(used), "none twice"
    config = scene.config
    again = replayed(
        initial_prior(config), config, intakes, lambda number, prior: learnt(task_id_of(number, config), prior)
    )
    kept = {pointer.version: pointer.digest for pointer in scene.store.list_priors("lab", "digits", 99, "").items}
    assert kept == {prior.version: prior.digest() for prior in again if prior.version in kept}
    assert scene.store.head("lab", "digits").plan is None
    (job,) = scene.jobs()
    assert job.state is JobState.SUCCEEDED
    assert job.result["summary"] == {"prior_version": ROUNDS, "prior_sha256": again[-1].digest()}  # type: ignore[index]


# Buffered mode


def test_versions_are_made_of_whichever_tasks_come_first_and_the_log_makes_them_again(make: Callable[..., Scene]):
    scene, pool = make(BUFFERED), ChancePool(3)
    scene.submit(TRAIN)
    scene.run(scene.coordinator(pool))
    check_log(scene, TASKS)
    assert scene.intakes()[-1].done == DoneTasks(below=ROUNDS * TASKS)
    assert len(pool.begun) == ROUNDS * TASKS and pool.abandoned == [], "nothing is computed in vain"
    assert max(began < version for version, intake in enumerate(scene.intakes()) for _, began in intake.accepted)


def test_the_job_leaves_the_log_in_its_folder(make: Callable[..., Scene]):
    scene = make(BUFFERED)
    job = scene.submit(TRAIN)
    scene.run(scene.coordinator(ChancePool(0)))
    folder = ArtifactFolder(scene.job(job).result["url"])  # type: ignore[index, arg-type]
    lines = [json.loads(line) for line in folder.read("tasks.jsonl").splitlines()]
    assert [line.pop("prior_version") for line in lines] == list(range(1, ROUNDS + 1))
    assert [Intake.model_validate(line) for line in lines] == scene.intakes()


def test_a_full_buffer_is_the_plan_that_its_version_closes(make: Callable[..., Scene]):
    scene = make(BUFFERED)
    scene.submit(TRAIN)
    ledger = FragileLedger(scene.ledger)
    scene.run(scene.coordinator(ChancePool(0), ledger), until=lambda: scene.version == 1)
    ledger.purposes.clear()
    ledger.kill_at, ledger.when = 0, "after"
    plans: list[Plan | None] = []
    while not plans:
        try:
            scene.run(scene.coordinator(ChancePool(0), ledger))
        except Killed:
            if ledger.purposes[-1] == "head":
                plans.append(scene.store.head("lab", "digits").plan)
            ledger.kill_at += 1
            ledger.purposes.clear()
    (plan,) = plans
    assert plan is not None and (plan.base_version, len(plan.task_ids), len(plan.base_versions)) == (1, TASKS, TASKS)
    scene.run(scene.coordinator(ChancePool(5)))
    check_log(scene, TASKS)


def test_lost_workers_cost_no_task(make: Callable[..., Scene]):
    scene, pool = make(BUFFERED), ChancePool(1)
    pool.loses = lambda key: key.endswith(("0", "2")) and pool.begun.count(key) == 1
    scene.submit(TRAIN)
    scene.run(scene.coordinator(pool))
    check_log(scene, TASKS)
    assert scene.intakes()[-1].done == DoneTasks(below=ROUNDS * TASKS)
    assert len(pool.begun) > ROUNDS * TASKS


def test_a_task_that_kills_every_worker_fails_the_job_by_its_name(make: Callable[..., Scene]):
    scene, pool = make(BUFFERED), ChancePool(1)
    pool.loses = lambda key: key.endswith("round-00001/family-0/task-02")
    job = scene.submit(TRAIN)
    scene.run(scene.coordinator(pool))
    failure = scene.job(job).failure
    assert failure is not None
    assert "task round-00001/family-0/task-02 was started 4 times without a result" in failure.message


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_coordinator_killed_at_any_commit_loses_no_task_and_counts_none_twice(make: Callable[..., Scene], when: str):
    scene = make(BUFFERED)
    scene.submit(TRAIN)
    ledger = FragileLedger(scene.ledger)
    scene.run(scene.coordinator(ChancePool(0), ledger))
    steps = [step for step, purpose in enumerate(ledger.purposes) if purpose != "other"]
    assert {ledger.purposes[step] for step in steps} == {"prior", "head", "job"}
    for step in steps:
        scene = make(BUFFERED)
        scene.submit(TRAIN)
        with pytest.raises(Killed):
            scene.run(scene.coordinator(ChancePool(0), FragileLedger(scene.ledger, step, when)))
        scene.run(scene.coordinator(ChancePool(step)))
        check_log(scene, TASKS)
        assert scene.intakes()[-1].done == DoneTasks(below=ROUNDS * TASKS)


def test_training_that_is_paused_goes_on_with_the_tasks_that_had_no_effect(make: Callable[..., Scene]):
    scene = make(BUFFERED)
    job = scene.submit(TRAIN)
    dispatcher = scene.coordinator(ChancePool(2))
    scene.run(dispatcher, until=lambda: bool(dispatcher.running))
    scene.store.suspend_job("lab", "digits", job.job_id, True)
    scene.run(dispatcher, until=lambda: scene.job(job).state is JobState.QUEUED)
    assert 0 < scene.version < ROUNDS
    scene.store.suspend_job("lab", "digits", job.job_id, False)
    scene.run(dispatcher)
    check_log(scene, TASKS)
    assert scene.intakes()[-1].done == DoneTasks(below=ROUNDS * TASKS)


def test_contributions_in_between_take_no_task_from_the_study(make: Callable[..., Scene]):
    scene = make(BUFFERED)
    specs = (MetaTrainSpec(until_version=1), AdaptSpec(choice=CHOICE, contribute=True), MetaTrainSpec(until_version=3))
    jobs = [scene.submit(spec) for spec in specs]
    scene.run(scene.coordinator(ChancePool(4)))
    assert [scene.job(job).state for job in jobs] == 3 * [JobState.SUCCEEDED]
    first, contributed, last = scene.intakes()
    assert contributed == Intake(accepted=(), done=first.done)
    assert sorted(number for intake in (first, last) for number, _ in intake.accepted) == list(range(2 * TASKS))


def test_a_study_without_rounds_leaves_room_for_other_jobs(make: Callable[..., Scene]):
    scene, pool = make(BUFFERED), ChancePool(0)
    scene.submit(TRAIN)
    dispatcher = scene.coordinator(pool)
    scene.run(dispatcher, until=lambda: scene.version == 1)
    room = MAX_IN_FLIGHT * pool.num_workers
    assert pool.most_pending == room - 1
    pool.hangs = lambda key: True
    other = scene.submit(AdaptSpec(choice=CHOICE))
    scene.run(dispatcher, until=lambda: scene.job(other).state is JobState.RUNNING)
    assert other.job_id in pool.calls


# Quorum and deadline


def test_a_late_task_is_taken_off_its_worker_and_counted(make: Callable[..., Scene]):
    scene, pool = make(QUORUM), ChancePool(0)
    pool.hangs = lambda key: key.endswith("task-01")
    scene.submit(TRAIN)
    scene.run(scene.coordinator(pool))
    check_log(scene, 2)
    assert pool.abandoned == [f"0001/round-{version:05d}/family-0/task-01" for version in range(ROUNDS)]
    metrics = scene.store.get_prior("lab", "digits", ROUNDS).metrics
    assert (metrics["tasks_accepted"], metrics["tasks_late"]) == (2, 1)
    assert 30 <= metrics["round_seconds"] < 33


def test_without_a_quorum_a_round_waits_beyond_its_deadline(make: Callable[..., Scene]):
    scene, pool = make(QUORUM), ChancePool(0)
    pool.hangs = lambda key: not key.endswith("task-00") and scene.now_s < 100
    scene.submit(TRAIN)
    scene.run(scene.coordinator(pool))
    metrics = next(iter(scene.store.rounds("lab", "digits"))).metrics
    assert metrics["round_seconds"] > 90
    assert metrics["tasks_accepted"] == 2


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_coordinator_killed_at_any_commit_of_a_round_with_a_deadline_makes_each_version_once(
    make: Callable[..., Scene], when: str
):
    def run(scene: Scene, ledger: FragileLedger | None = None) -> None:
        pool = ChancePool(0)
        pool.hangs = lambda key: key.endswith("task-02")
        scene.run(scene.coordinator(pool, ledger))

    scene = make(QUORUM)
    scene.submit(TRAIN)
    ledger = FragileLedger(scene.ledger)
    run(scene, ledger)
    for step in [step for step, purpose in enumerate(ledger.purposes) if purpose in ("prior", "head")]:
        scene = make(QUORUM)
        scene.submit(TRAIN)
        with pytest.raises(Killed):
            run(scene, FragileLedger(scene.ledger, step, when))
        run(scene)
        check_log(scene, 2)
