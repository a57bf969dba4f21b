"""The pool on a real Ray cluster with real worker processes, some of which are killed or stopped."""

import hashlib
import logging
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import ray

from common.artifacts import PriorStore
from common.config import ClusterConfig, DatasetRef, ScheduleConfig, StudyConfig
from common.errors import AdaptationError, ConflictError, InvalidInputError
from common.evaluate_config import load_evaluate_config
from common.few_shot_config import FewShotConfig
from common.limits import Limits
from common.loading import load
from common.messages import (
    AdaptResult,
    EvaluateRequest,
    FewShotRequest,
    JobRequest,
    PartialSum,
    PartialSumRequest,
    Update,
)
from common.meta.prior import Prior, initial_prior
from common.space.released import DARTS_V2
from common.storage import ArtifactFolder
from common.tasks import DatasetFile, FewShotTask, TaskChoice
from coordinator import study
from coordinator.calls import Outcome
from coordinator.local import LocalExecutor
from coordinator.nodes import Nodes
from coordinator.outer import OuterStep
from coordinator.pool import MAX_IN_FLIGHT, MAX_OUTCOMES, RayPool
from coordinator.rounds import Result, plan, request_of
from workers.actor import SearchWorker, WorkerStatus
from workers.data.handful import Handful
from workers.device import choose_device
from workers.runner import TaskRunner

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]

ROUNDS = 3


@pytest.fixture(scope="module")
def config(shared_image_cache: Path) -> StudyConfig:
    return load("smoke", [f"rounds={ROUNDS}", "families.0.tasks_per_round=4"], environment={})


@pytest.fixture(scope="module")
def undisturbed_digest(config: StudyConfig, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Of the study run in this process, one task after the other, each with an update of its own."""
    config = config.model_copy(update={"cluster": config.cluster.model_copy(update={"tasks_per_partial_sum": 1})})
    store = PriorStore(tmp_path_factory.mktemp("undisturbed"))
    return study.run(
        study.begin(store, config), config, LocalExecutor(choose_device()), store, [], time.monotonic
    ).digest()


@pytest.fixture
def make_pool() -> Iterator[Callable[..., RayPool]]:
    pools: list[RayPool] = []

    def make(
        num_workers: int = 2,
        nodes: Callable[[], Nodes | None] = lambda: None,
        worker_class: type = SearchWorker,
        **cluster: object,
    ) -> RayPool:
        name = f"test-{os.getpid()}-{time.monotonic_ns()}"
        settings = ClusterConfig.model_validate({"task_timeout_s": 120.0, **cluster})
        log = logging.getLogger("test")
        pools.append(
            RayPool(name, num_workers, 0.0, settings, time.monotonic, log, worker_class=worker_class, nodes=nodes)
        )
        return pools[-1]

    yield make
    for pool in pools:
        pool.close()


def run_study(
    config: StudyConfig,
    pool: RayPool,
    folder: Path,
    on_result: Callable[[Result, object], None] = lambda result, rejection: None,
) -> Prior:
    store = PriorStore(folder)
    return study.run(study.begin(store, config), config, pool, store, [], time.monotonic, on_result=on_result)


@pytest.mark.parametrize("num_workers", [1, 2])
def test_any_number_of_workers_makes_the_prior_that_one_process_makes(
    config: StudyConfig, undisturbed_digest: str, make_pool: Callable[..., RayPool], tmp_path: Path, num_workers: int
) -> None:
    pool = make_pool(num_workers)
    assert run_study(config, pool, tmp_path).digest() == undisturbed_digest
    assert pool.num_replaced == 0


def test_workers_that_train_one_network_per_task_make_the_prior_that_one_process_makes(
    make_pool: Callable[..., RayPool], tmp_path: Path
) -> None:
    single = ("relaxation.kind=single_path", "relaxation.path_per=task", "outer.theta_average=users")
    config = load("smoke", ["rounds=1", "families.0.tasks_per_round=4", *single], environment={})
    store = PriorStore(tmp_path / "here")
    here = study.run(study.begin(store, config), config, LocalExecutor(choose_device()), store, [], time.monotonic)
    assert run_study(config, make_pool(2), tmp_path / "there").digest() == here.digest()


@pytest.mark.parametrize(("num_workers", "tasks_per_result"), [(1, 2), (2, 1)])
def test_workers_killed_in_every_round_are_replaced_and_the_prior_is_the_same(
    config: StudyConfig,
    undisturbed_digest: str,
    make_pool: Callable[..., RayPool],
    tmp_path: Path,
    num_workers: int,
    tasks_per_result: int,
) -> None:
    pool = make_pool(num_workers)
    killed: list[int] = []

    def kill_a_busy_worker(result: Result, rejection: object) -> None:
        assert len(result.task_ids) == tasks_per_result
        # After the first result of each round: the others are in flight on the workers.
        if len(killed) < ROUNDS and result.task_ids[0].startswith(f"round-{len(killed):05d}"):
            pid = pool.status()[-1].pid
            os.kill(pid, signal.SIGKILL)
            killed.append(pid)

    assert run_study(config, pool, tmp_path, kill_a_busy_worker).digest() == undisturbed_digest
    assert len(killed) == ROUNDS
    assert pool.num_replaced >= 1
    assert not {status.pid for status in pool.status()} & set(killed)


def test_a_worker_that_hangs_is_replaced_and_its_task_runs_again(
    config: StudyConfig, undisturbed_digest: str, make_pool: Callable[..., RayPool], tmp_path: Path
) -> None:
    pool = make_pool(2, task_timeout_s=15.0)
    stopped: list[int] = []

    def stop_a_worker(result: Result, rejection: object) -> None:
        if not stopped:
            stopped.append(pool.status()[0].pid)
            os.kill(stopped[0], signal.SIGSTOP)  # alive, but it never answers again

    assert run_study(config, pool, tmp_path, stop_a_worker).digest() == undisturbed_digest
    assert pool.num_replaced == 1


def test_without_rounds_killed_workers_cost_no_task_and_the_log_makes_the_same_prior_again(
    config: StudyConfig, make_pool: Callable[..., RayPool], tmp_path: Path
) -> None:
    from reference.replay import replayed  # not above: Ray's workers import this module, and find no `reference`

    config = config.model_copy(update={"schedule": ScheduleConfig(mode="buffered")})
    pool = make_pool(2)
    killed: list[int] = []

    def kill_a_busy_worker(result: Result, rejection: object) -> None:
        # None answers if the one that was killed had made this result before, and the other is still starting.
        if len(killed) < 2 and (statuses := pool.status()):
            killed.append(statuses[-1].pid)
            os.kill(killed[-1], signal.SIGKILL)

    last = run_study(config, pool, tmp_path, kill_a_busy_worker)
    assert len(killed) == 2
    assert pool.num_replaced >= 1
    intakes = [PriorStore(tmp_path).load_intake(version) for version in range(1, ROUNDS + 1)]
    assert sorted(number for intake in intakes for number, _ in intake.accepted) == list(range(4 * ROUNDS))
    catalogs, runner = study.load_catalogs(config), TaskRunner(choose_device())

    def update_of(number: int, prior: Prior) -> Update:
        update = runner.run(prior, request_of(number, prior, config, catalogs)).update
        assert update is not None
        return update

    assert replayed(initial_prior(config), config, intakes, update_of)[-1].digest() == last.digest()


def test_a_worker_that_hangs_holds_no_round_up_beyond_its_deadline(
    config: StudyConfig, make_pool: Callable[..., RayPool], tmp_path: Path
) -> None:
    schedule = ScheduleConfig(deadline_s=1.0, quorum_fraction=0.5)
    cluster = config.cluster.model_copy(update={"tasks_per_partial_sum": 1})
    config = config.model_copy(update={"schedule": schedule, "cluster": cluster, "rounds": 2})
    pool = make_pool(2)
    stopped: list[int] = []
    late: list[float] = []

    def stop_a_worker(result: Result, rejection: object) -> None:
        if not stopped:
            stopped.append(pool.status()[0].pid)
            os.kill(stopped[0], signal.SIGSTOP)

    store = PriorStore(tmp_path)
    last = study.run(
        study.begin(store, config),
        config,
        pool,
        store,
        [],
        time.monotonic,
        on_result=stop_a_worker,
        on_round=lambda prior, metrics: late.append(metrics["tasks_late"]),
    )
    assert last.version == 2
    assert 1 <= late[0] <= 2, "of four tasks"
    assert len(store.load_intake(1).accepted) == 4 - late[0]


def test_a_task_that_kills_every_worker_is_given_up_with_advice(
    config: StudyConfig, make_pool: Callable[..., RayPool]
) -> None:
    pool = make_pool(1, max_attempts=2, task_timeout_s=0.001)
    prior = initial_prior(config)
    requests = plan(prior, config, study.load_catalogs(config)).requests
    with pytest.raises(AdaptationError, match=r"started 2 times .* cluster.max_attempts"):
        list(pool.run(prior, requests[:1]))


class Reluctant:
    """Fails at its first two starts."""

    starts = Path(os.devnull)

    def __init__(self, name: str) -> None:
        with self.starts.open("a") as file:
            file.write(f"{time.monotonic()}\n")
        if len(self.starts.read_text().splitlines()) <= 2:
            raise RuntimeError("the driver is not ready")

    def status(self) -> WorkerStatus:
        return WorkerStatus("reluctant", os.getpid(), "cpu", None, 0)

    def adapt(self, request: object, prior: Prior) -> str:
        return "adapted"


def test_a_worker_that_cannot_start_is_tried_again_after_growing_pauses(
    config: StudyConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    worker_class = type("ReluctantHere", (Reluctant,), {"starts": tmp_path / "starts"})
    settings = ClusterConfig.model_validate({})
    name = f"test-reluctant-{os.getpid()}"
    ahead_s = 0.0

    def pause(seconds: float) -> None:
        nonlocal ahead_s
        ahead_s += seconds

    def now_s() -> float:
        return time.monotonic() + ahead_s

    log = logging.getLogger("test")
    pool = RayPool(name, 1, 0.0, settings, now_s, log, worker_class=worker_class, pause=pause)
    try:
        prior = initial_prior(config)
        requests = plan(prior, config, study.load_catalogs(config)).requests
        assert list(pool.run(prior, requests[:1])) == ["adapted"]
    finally:
        pool.close()
    assert len((tmp_path / "starts").read_text().splitlines()) == 3
    assert 0 < ahead_s <= 3, "it waits by the clock that it was given"
    assert "next try in 1 s" in caplog.text and "next try in 2 s" in caplog.text


def test_an_error_of_a_task_arrives_as_what_it_was(config: StudyConfig, make_pool: Callable[..., RayPool]) -> None:
    pool = make_pool(1)
    prior = initial_prior(config)
    request = plan(prior, config, study.load_catalogs(config)).requests[0]
    unknown = replace(request, task=request.task.model_copy(update={"classes": ("0", "no such class")}))
    with pytest.raises(InvalidInputError, match="no such class"):
        list(pool.run(prior, [unknown]))
    assert len(list(pool.run(prior, [request]))) == 1, "the pool is of use after an error"


def test_an_error_within_a_bundle_names_its_task(config: StudyConfig, make_pool: Callable[..., RayPool]) -> None:
    pool = make_pool(1)
    prior = initial_prior(config)
    requests = plan(prior, config, study.load_catalogs(config)).requests
    unknown = replace(requests[1], task=requests[1].task.model_copy(update={"classes": ("0", "no such class")}))
    broken = replace(requests[1], tau="not a number")  # type: ignore[arg-type]
    named = f"^task {requests[1].task.task_id}: "
    with pytest.raises(InvalidInputError, match=f"{named}.*no such class"):
        list(pool.run(prior, [PartialSumRequest((requests[0], unknown), config)]))
    with pytest.raises(AdaptationError, match=named):
        list(pool.run(prior, [PartialSumRequest((requests[0], broken), config)]))
    (partial,) = pool.run(prior, [PartialSumRequest(requests[:2], config)])
    assert isinstance(partial, PartialSum) and len(partial.statistics) == 2, "the pool is of use after an error"


def test_no_worker_holds_more_than_two_requests(config: StudyConfig, make_pool: Callable[..., RayPool]) -> None:
    pool = make_pool(2)
    prior = initial_prior(config)
    requests = [
        replace(request, task=request.task.model_copy(update={"task_id": f"{request.task.task_id}/{copy}"}))
        for request in plan(prior, config, study.load_catalogs(config)).requests
        for copy in range(3)
    ]
    most = 0
    for _ in pool.run(prior, requests):
        most = max(most, *(len(worker.in_flight) for worker in pool._workers))
    assert most == MAX_IN_FLIGHT


def test_closing_the_results_early_leaves_a_pool_that_works(
    config: StudyConfig, make_pool: Callable[..., RayPool]
) -> None:
    pool = make_pool(2)
    prior = initial_prior(config)
    requests = plan(prior, config, study.load_catalogs(config)).requests
    results = pool.run(prior, requests)
    next(results)
    results.close()
    step = OuterStep(prior, config)
    for result in pool.run(prior, requests):
        assert isinstance(result, AdaptResult) and result.update is not None
        assert step.absorb(result.update) is None
    assert step.num_accepted == len(requests)


def test_a_prior_enters_the_object_store_once_per_version(
    config: StudyConfig, make_pool: Callable[..., RayPool], monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = make_pool(1)
    prior = initial_prior(config)
    requests = plan(prior, config, study.load_catalogs(config)).requests
    puts: list[Prior] = []
    real_put = ray.put

    def counting_put(value: Prior) -> object:
        puts.append(value)
        return real_put(value)

    monkeypatch.setattr(ray, "put", counting_put)
    for _ in range(2):
        list(pool.run(prior, requests[:2]))
    assert len(puts) == 1


class Obedient:
    """Adapts once it is told to."""

    told = Path(os.devnull)

    def __init__(self, name: str) -> None:
        self._name = name

    def status(self) -> WorkerStatus:
        return WorkerStatus(self._name, os.getpid(), "cpu", None, 0)

    def adapt(self, request: object, prior: Prior) -> str:
        while not self.told.exists():
            time.sleep(0.01)
        return "adapted"


@pytest.mark.parametrize(("limit", "expected"), [(MAX_OUTCOMES, [2, 0]), (1, [1, 1])])
def test_a_poll_returns_what_has_ended_on_all_workers_up_to_a_limit(
    config: StudyConfig,
    make_pool: Callable[..., RayPool],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    limit: int,
    expected: list[int],
) -> None:
    monkeypatch.setattr("coordinator.pool.MAX_OUTCOMES", limit)
    pool = make_pool(2, worker_class=type("ObedientHere", (Obedient,), {"told": tmp_path / "told"}))
    deadline_s = time.monotonic() + PATIENCE_S
    while pool.num_workers < 2:
        assert time.monotonic() < deadline_s
        assert pool.poll(0.0) == []
        time.sleep(0.05)
    prior = initial_prior(config)
    for request in plan(prior, config, study.load_catalogs(config)).requests[:2]:
        pool.submit(request.task.task_id, request, prior)
    assert pool.poll(0.0) == []
    (tmp_path / "told").touch()
    calls = [ref for worker in pool._workers for ref, _ in worker.in_flight]
    ready, _ = ray.wait(calls, num_returns=2, timeout=PATIENCE_S)
    assert len(ready) == 2
    assert [len(pool.poll(0.0)) for _ in range(2)] == expected


# Calls one by one, as the service makes them


@pytest.fixture(scope="module")
def prior(config: StudyConfig) -> Prior:
    return initial_prior(config)


def job(config: StudyConfig, job_id: str, folder: Path, steps: int = 2, **changes: object) -> JobRequest:
    """A job on digits; with `ENDLESS` steps it is at work until it is given up."""
    choice = TaskChoice(
        data=DatasetRef(source="digits"), classes=("1", "7"), image_size=16, train_per_class=8, test_per_class=4
    )
    plain = JobRequest(
        job_id=job_id,
        attempt=1,
        choice=choice,
        file=None,
        config=config,
        inner=config.adapt.model_copy(update={"steps": steps}),
        version=0,
        derivation="top2_pairs",
        limits=Limits(),
        result_url=str(folder / job_id),
        returns_update=False,
    )
    return replace(plain, **changes)  # type: ignore[arg-type]


ENDLESS = 1_000_000
PATIENCE_S = 60.0


def collect(pool: RayPool, count: int) -> dict[str, Outcome]:
    """Polls until so many calls have ended."""
    found: dict[str, Outcome] = {}
    deadline_s = time.monotonic() + PATIENCE_S
    while len(found) < count:
        assert time.monotonic() < deadline_s, f"only {sorted(found)} ended"
        found |= {outcome.key: outcome for outcome in pool.poll(0.1)}
    return found


def wait_until_at_work(pool: RayPool, key: str) -> WorkerStatus:
    """Polls until a worker says that it has begun with a call; returns what it says."""
    deadline_s = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline_s:
        assert pool.poll(0.05) == []
        for status in pool.status():
            if status.task_id == key and status.steps_done > 2:
                return status
    raise AssertionError(f"nobody began {key}")


def test_jobs_and_tasks_come_back_under_their_keys(
    config: StudyConfig, prior: Prior, make_pool: Callable[..., RayPool], tmp_path: Path
) -> None:
    pool = make_pool(2)
    task = plan(prior, config, study.load_catalogs(config)).requests[0]
    pool.submit("a job", job(config, "a job", tmp_path), prior)
    pool.submit("a task", task, prior)
    pool.submit("wrong", job(config, "wrong", tmp_path, version=5), prior)
    assert pool.num_pending == 3
    found = collect(pool, 3)
    assert pool.num_pending == 0 and pool.poll(60.0) == [], "nothing to wait for"
    assert {artifact.name for artifact in found["a job"].result.artifacts} == {"weights.safetensors", "result.json"}
    assert (tmp_path / "a job/manifest.json").exists()
    assert found["a task"].result.task_id == task.task.task_id
    assert isinstance(found["wrong"].error, ConflictError) and found["wrong"].result is None


def test_a_running_job_shows_its_steps_and_the_best_so_far(
    config: StudyConfig, prior: Prior, make_pool: Callable[..., RayPool], tmp_path: Path
) -> None:
    pool = make_pool(1)
    pool.submit("endless", job(config, "endless", tmp_path, ENDLESS), prior)
    status = wait_until_at_work(pool, "endless")
    assert status.interim is not None and set(status.interim.genotype.cells) == {"normal", "reduction"}
    pool.give_up()
    assert pool.num_pending == 0


def test_a_worker_killed_at_a_call_loses_that_call_alone(
    config: StudyConfig, prior: Prior, make_pool: Callable[..., RayPool], tmp_path: Path
) -> None:
    pool = make_pool(1)
    pool.submit("endless", job(config, "endless", tmp_path, ENDLESS), prior)
    pool.submit("behind it", job(config, "behind it", tmp_path), prior)
    os.kill(wait_until_at_work(pool, "endless").pid, signal.SIGKILL)
    found = collect(pool, 2)
    assert found["endless"] == Outcome("endless", lost="the worker died")
    assert found["behind it"].result.job_id == "behind it"
    assert pool.num_replaced == 1


def test_a_call_that_takes_too_long_is_lost_and_its_worker_replaced(
    config: StudyConfig, prior: Prior, make_pool: Callable[..., RayPool], tmp_path: Path
) -> None:
    pool = make_pool(1, task_timeout_s=2.0)
    pool.submit("endless", job(config, "endless", tmp_path, ENDLESS), prior)
    assert collect(pool, 1) == {"endless": Outcome("endless", lost="the worker gave no result for 2 s")}
    assert pool.num_replaced == 1 and pool.num_pending == 0


def test_a_bundle_has_the_time_of_all_its_tasks_and_shows_the_one_at_hand(
    config: StudyConfig, prior: Prior, make_pool: Callable[..., RayPool]
) -> None:
    pool = make_pool(1, task_timeout_s=5.0)
    quick, endless = plan(prior, config, study.load_catalogs(config)).requests[:2]
    endless = replace(endless, inner=endless.inner.model_copy(update={"steps": ENDLESS}))
    pool.submit("both", PartialSumRequest((quick, endless), config), prior)
    assert wait_until_at_work(pool, endless.task.task_id).steps_done > 2
    assert collect(pool, 1) == {"both": Outcome("both", lost="the worker gave no result for 10 s")}


def test_a_call_that_is_abandoned_frees_its_worker_and_has_no_outcome(
    config: StudyConfig, prior: Prior, make_pool: Callable[..., RayPool], tmp_path: Path
) -> None:
    pool = make_pool(1)
    for key, steps in (("at work", ENDLESS), ("next", ENDLESS), ("third", 2), ("fourth", ENDLESS)):
        pool.submit(key, job(config, key, tmp_path, steps), prior)
    pid = wait_until_at_work(pool, "at work").pid
    pool.abandon("fourth")  # waits here
    pool.abandon("next")  # waits at the worker
    pool.abandon("at work")
    pool.abandon("unknown")
    assert pool.num_pending == 1
    assert set(collect(pool, 1)) == {"third"}
    assert pool.num_pending == 0 and pool.num_replaced == 0, "no worker was at fault"
    (status,) = pool.status(PATIENCE_S)
    assert status.pid != pid and status.task_id is None
    assert not (tmp_path / "next").exists(), "it never began"


def test_a_worker_that_died_while_idle_costs_at_most_the_call_that_finds_it(
    config: StudyConfig, prior: Prior, make_pool: Callable[..., RayPool], tmp_path: Path
) -> None:
    pool = make_pool(1)
    pool.submit("first", job(config, "first", tmp_path), prior)
    collect(pool, 1)
    os.kill(pool.status(PATIENCE_S)[0].pid, signal.SIGKILL)
    pool.submit("second", job(config, "second", tmp_path), prior)
    pool.submit("third", job(config, "third", tmp_path), prior)
    found = collect(pool, 2)
    assert found["second"] == Outcome("second", lost="the worker died")
    assert found["third"].result.job_id == "third"


def test_a_worker_without_room_gets_no_calls_until_there_is_some(
    config: StudyConfig, prior: Prior, make_pool: Callable[..., RayPool], tmp_path: Path
) -> None:
    cpus = int(ray.cluster_resources()["CPU"])
    pool = make_pool(cpus + 1)
    deadline_s = time.monotonic() + PATIENCE_S
    while pool.num_workers < cpus and time.monotonic() < deadline_s:
        pool.poll(0.1)
        time.sleep(0.1)
    assert pool.num_workers == cpus, "one waits for room"
    for number in range(2 * MAX_IN_FLIGHT * cpus):
        pool.submit(f"job {number}", job(config, f"job {number}", tmp_path), prior)
    found = collect(pool, 2 * MAX_IN_FLIGHT * cpus)
    assert all(outcome.result is not None for outcome in found.values())
    assert pool.num_workers == cpus and pool.num_replaced == 0
    assert pool.num_by_state == {"running": cpus, "starting": 1, "wanted": cpus + 1, "lent": 0, "leaving": 0}


def test_a_pool_grows_and_shrinks_with_the_cluster(
    config: StudyConfig, prior: Prior, make_pool: Callable[..., RayPool], tmp_path: Path
) -> None:
    pool = make_pool(1)
    pool.submit("endless", job(config, "endless", tmp_path, ENDLESS), prior)
    pid = wait_until_at_work(pool, "endless").pid
    pool.resize(2)
    pool.submit("beside it", job(config, "beside it", tmp_path), prior)
    pool.submit("after that", job(config, "after that", tmp_path), prior)
    assert set(collect(pool, 2)) == {"beside it", "after that"}, "on the new worker: none waits behind a job"
    pool.resize(0)
    assert [status.pid for status in pool.status(PATIENCE_S)] == [pid], "the one at work stays"
    pool.resize(1)
    assert [status.pid for status in pool.status(PATIENCE_S)] == [pid]
    assert pool.num_replaced == 0


# A node that is about to be taken away: said to be, as this cluster has but one


class Announced:
    """Announces once that a node is drained, and what it had is elsewhere from then on."""

    def __init__(self) -> None:
        self.waiting: Nodes | None = None

    def node_of(self, pid: int, left_s: float | None, pool: RayPool) -> None:
        (node,) = {status.node_id for status in pool.status(PATIENCE_S) if status.pid == pid}
        self.waiting = Nodes(draining={node: left_s})

    def __call__(self) -> Nodes | None:
        waiting, self.waiting = self.waiting, None
        return waiting


def test_a_worker_that_has_to_leave_ends_what_it_works_on_and_hands_over_the_rest(
    config: StudyConfig, prior: Prior, make_pool: Callable[..., RayPool], tmp_path: Path
) -> None:
    announced = Announced()
    pool = make_pool(1, announced)
    evaluation = EvaluateRequest(
        "sliced",
        1,
        DARTS_V2,
        load_evaluate_config("smoke", ["epochs=1000", "train_per_class=10", "test_per_class=5"]),
        DatasetRef(source="digits"),
        None,
        str(tmp_path / "sliced"),
        1e6,
    )
    pool.submit("sliced", evaluation, None)
    pool.submit("behind it", job(config, "behind it", tmp_path), prior)
    pid = wait_until_at_work(pool, "sliced").pid
    announced.node_of(pid, None, pool)
    found = collect(pool, 2)
    assert found["sliced"].result.summary is None and found["sliced"].result.epochs_done < 1000, "handed over"
    assert found["behind it"].result.job_id == "behind it"
    pool.poll(0.0)
    (status,) = pool.status(PATIENCE_S)
    assert status.pid != pid and pool.num_replaced == 0, "it was at no fault"


def test_a_worker_told_to_end_costs_no_attempt_of_what_it_was_given(
    config: StudyConfig, prior: Prior, make_pool: Callable[..., RayPool], tmp_path: Path
) -> None:
    pool = make_pool(1)
    for key, steps in (("at work", 200), ("behind it", 2)):
        pool.submit(key, job(config, key, tmp_path, steps), prior)
    os.kill(wait_until_at_work(pool, "at work").pid, signal.SIGTERM)
    found: dict[str, Outcome] = {}
    while len(found) < 2:
        for key, outcome in collect(pool, 1).items():
            if outcome.lost:
                assert not outcome.uses_attempt
                pool.submit(key, job(config, key, tmp_path), prior)
            else:
                found[key] = outcome
    assert all(outcome.error is None for outcome in found.values())
    assert pool.num_replaced == 0


# Quick calls, which few-shot jobs make


def handful(config: StudyConfig, key: str, folder: Path, steps: int) -> FewShotRequest:
    """A few-shot job on noise of two classes."""
    noise = np.random.default_rng(0).integers(0, 256, (6, 16, 16, 1), np.uint8)
    data = Handful(noise[:2], noise[2:]).to_bytes()
    ArtifactFolder(folder).write("images.npz", data)
    few_shot = FewShotConfig(test_steps=steps, theta_lr=1e-6)
    return FewShotRequest(
        job_id=key,
        attempt=1,
        task=FewShotTask(
            classes=("a", "b"),
            labels=(0, 1),
            support_names=("x", "y"),
            query_names=("p", "q", "r", "s"),
            image_size=16,
        ),
        file=DatasetFile(url=f"file://{folder}/images.npz", sha256=hashlib.sha256(data).hexdigest(), suffix=".npz"),
        config=config.model_copy(update={"few_shot": few_shot}),
        version=0,
        seed=0,
        result_url=str(folder / key),
    )


@pytest.fixture(scope="module")
def few_shot_prior(config: StudyConfig) -> Prior:
    return initial_prior(config.model_copy(update={"few_shot": FewShotConfig()}))


def test_quick_calls_go_between_the_steps_of_long_ones_and_share_their_fate(
    config: StudyConfig, prior: Prior, few_shot_prior: Prior, make_pool: Callable[..., RayPool], tmp_path: Path
) -> None:
    pool = make_pool(1)
    for key in ("endless", "behind it"):
        pool.submit(key, job(config, key, tmp_path, ENDLESS), prior)
    pid = wait_until_at_work(pool, "endless").pid
    for number in range(3):
        pool.submit(f"quick {number}", handful(config, f"quick {number}", tmp_path, steps=1), few_shot_prior)
    assert (pool.num_pending, pool.num_quick) == (2, 3), "they take no room of the others"
    found = collect(pool, 3)
    answers = {key: outcome.result.summary["predictions"] for key, outcome in found.items()}
    assert sorted(answers) == ["quick 0", "quick 1", "quick 2"] and answers["quick 0"] == answers["quick 2"]
    after = wait_until_at_work(pool, "endless")
    assert after.pid == pid and pool.num_quick == 0, "the long call went on"

    pool.submit("given up", handful(config, "given up", tmp_path, steps=1000), few_shot_prior)
    pool.poll(0.05)
    pool.abandon("given up")
    assert pool.num_quick == 0 and wait_until_at_work(pool, "endless").pid == pid, "nor is its worker replaced"

    pool.submit("hopeless", handful(config, "hopeless", tmp_path, steps=1000), few_shot_prior)
    assert pool.poll(0.05) == []
    os.kill(pid, signal.SIGKILL)
    lost = collect(pool, 2)
    assert {key: outcome.lost for key, outcome in lost.items()} == dict.fromkeys(
        ("endless", "hopeless"), "the worker died"
    )
    assert pool.num_pending == 1 and pool.num_replaced == 1, "what was behind it waits for the new worker"
