"""The pool on a real Ray cluster with real worker processes, some of which are killed or stopped."""

import logging
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from common.artifacts import PriorStore
from common.config import ClusterConfig, StudyConfig
from common.errors import AdaptationError, InvalidInputError
from common.loading import load
from common.messages import AdaptResult
from common.meta.prior import Prior, initial_prior
from coordinator import study
from coordinator.local import LocalExecutor
from coordinator.outer import OuterStep
from coordinator.pool import MAX_IN_FLIGHT, RayPool
from coordinator.rounds import plan
from workers.device import choose_device

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]

ROUNDS = 3


@pytest.fixture(scope="module")
def config(shared_image_cache: None) -> StudyConfig:
    return load("smoke", [f"rounds={ROUNDS}", "families.0.tasks_per_round=4"], environment={})


@pytest.fixture(scope="module")
def undisturbed_digest(config: StudyConfig, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Of the study run in this process, one task after the other."""
    store = PriorStore(tmp_path_factory.mktemp("undisturbed"))
    return study.run(
        study.begin(store, config), config, LocalExecutor(choose_device()), store, [], time.monotonic
    ).digest()


@pytest.fixture
def make_pool() -> Iterator[Callable[..., RayPool]]:
    pools: list[RayPool] = []

    def make(num_workers: int = 2, **cluster: object) -> RayPool:
        name = f"test-{os.getpid()}-{time.monotonic_ns()}"
        settings = ClusterConfig.model_validate({"task_timeout_s": 120.0, **cluster})
        pools.append(RayPool(name, num_workers, 0.0, settings, time.monotonic, logging.getLogger("test")))
        return pools[-1]

    yield make
    for pool in pools:
        pool.close()


def run_study(
    config: StudyConfig,
    pool: RayPool,
    folder: Path,
    on_result: Callable[[AdaptResult, object], None] = lambda result, rejection: None,
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


def test_workers_killed_in_every_round_are_replaced_and_the_prior_is_the_same(
    config: StudyConfig, undisturbed_digest: str, make_pool: Callable[..., RayPool], tmp_path: Path
) -> None:
    pool = make_pool(2)
    killed: list[int] = []

    def kill_a_busy_worker(result: AdaptResult, rejection: object) -> None:
        # After the first result of each round: the others are in flight on the workers.
        if len(killed) < ROUNDS and result.task_id.startswith(f"round-{len(killed):05d}"):
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

    def stop_a_worker(result: AdaptResult, rejection: object) -> None:
        if not stopped:
            stopped.append(pool.status()[0].pid)
            os.kill(stopped[0], signal.SIGSTOP)  # alive, but it never answers again

    assert run_study(config, pool, tmp_path, stop_a_worker).digest() == undisturbed_digest
    assert pool.num_replaced == 1


def test_a_task_that_kills_every_worker_is_given_up_with_advice(
    config: StudyConfig, make_pool: Callable[..., RayPool]
) -> None:
    pool = make_pool(1, max_attempts=2, task_timeout_s=0.001)
    prior = initial_prior(config)
    requests = plan(prior, config, study.load_catalogs(config)).requests
    with pytest.raises(AdaptationError, match=r"started 2 times .* cluster.max_attempts"):
        list(pool.run(prior, requests[:1]))


def test_an_error_of_a_task_arrives_as_what_it_was(config: StudyConfig, make_pool: Callable[..., RayPool]) -> None:
    pool = make_pool(1)
    prior = initial_prior(config)
    request = plan(prior, config, study.load_catalogs(config)).requests[0]
    unknown = replace(request, task=request.task.model_copy(update={"classes": ("0", "no such class")}))
    with pytest.raises(InvalidInputError, match="no such class"):
        list(pool.run(prior, [unknown]))
    assert len(list(pool.run(prior, [request]))) == 1, "the pool is of use after an error"


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
        assert result.update is not None
        assert step.absorb(result.update) is None
    assert step.num_accepted == len(requests)


def test_a_prior_enters_the_object_store_once_per_version(
    config: StudyConfig, make_pool: Callable[..., RayPool], monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

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
