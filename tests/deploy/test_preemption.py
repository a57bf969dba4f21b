"""Nodes join and leave while there is work, in every way that they do: nothing is lost, and no attempt is used up."""

import logging
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from reference.ray_hosts import Host, Jobs, RayHosts, until

from common.artifacts import PriorStore
from common.config import ClusterConfig, DatasetRef, StudyConfig
from common.evaluate_config import load_evaluate_config
from common.loading import load
from common.space.released import DARTS_V2
from common.tasks import TaskChoice
from coordinator import study
from coordinator.jobs import AdaptSpec, EvaluateSpec, Job, JobState, MetaTrainSpec
from coordinator.local import LocalExecutor
from coordinator.nodes import NodeWatch
from coordinator.pool import RayPool
from coordinator.rounds import Result
from coordinator.scaling import Scaling
from workers.device import choose_device

pytestmark = [pytest.mark.deploy, pytest.mark.ray, pytest.mark.timeout(1800)]

DRAIN_S = 8.0
START_S = 420.0
CHOICE = TaskChoice(
    data=DatasetRef(source="digits"), classes=("1", "7"), image_size=16, train_per_class=8, test_per_class=4
)


@pytest.fixture(scope="module")
def config(shared_image_cache: Path) -> StudyConfig:
    sizes = ["rounds=3", "families.0.tasks_per_round=8", "inner.steps=60", "cluster.tasks_per_partial_sum=1"]
    return load("smoke", sizes, environment={})


@pytest.fixture(scope="module")
def undisturbed(config: StudyConfig, tmp_path_factory: pytest.TempPathFactory) -> str:
    store = PriorStore(tmp_path_factory.mktemp("undisturbed"))
    executor = LocalExecutor(choose_device())
    return study.run(study.begin(store, config), config, executor, store, [], time.monotonic).digest()


@pytest.fixture(scope="module")
def hosts(shared_image_cache: Path) -> Iterator[RayHosts]:
    with RayHosts(environment={"RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": str(DRAIN_S)}) as cluster:
        yield cluster


def test_nodes_that_join_and_leave_during_a_round_take_part_in_it_and_change_nothing(
    hosts: RayHosts, config: StudyConfig, undisturbed: str, tmp_path: Path
) -> None:
    first = hosts.add_node()
    cluster = ClusterConfig(task_timeout_s=300.0, gpus_per_worker=0)
    log = logging.getLogger("test")
    watch = NodeWatch(log)
    pool = RayPool("elastic", 1, 0.0, cluster, time.monotonic, log, scaling=Scaling(cluster), nodes=watch.latest)
    joined: list[Host] = []
    left: list[Host] = []
    at_work: dict[str, set[str]] = {}

    def has_grown() -> bool:
        """What a poll does between two results, but for taking results."""
        pool._follow()
        pool._look_at_starting()
        return pool.num_workers == 2

    def on_result(result: Result, rejection: object) -> None:
        round_name = result.task_ids[0].split("/")[0]
        at_work.setdefault(round_name, set()).update(each.node_id for each in pool.status() if each.task_id)
        if not joined:
            joined.append(hosts.add_node())
            until(has_grown, START_S)
        elif not left and len(at_work) == 2:
            left.append(first)
            first.tell_to_end()

    store = PriorStore(tmp_path)
    try:
        prior = study.begin(store, config)
        last = study.run(prior, config, pool, store, [], time.monotonic, on_result=on_result)
        assert last.digest() == undisturbed
        assert joined[0].node_id in at_work["round-00000"], "it took part in the round that ran when it joined"
        assert first.node_id not in at_work["round-00002"] and joined[0].node_id in at_work["round-00002"]
        assert pool.num_replaced == 0
        print("\nthe drained node ended", until(lambda: first.node_id not in hosts.alive(), DRAIN_S + 60), "s later")
    finally:
        pool.close()
        watch.close()
        for host in (first, *joined):
            host.end()
    until(lambda: len(hosts.alive()) == 1, 120.0)


def test_jobs_of_the_service_outlive_their_nodes_without_using_up_attempts(
    hosts: RayHosts, config: StudyConfig, undisturbed: str, tmp_path: Path
) -> None:
    jobs = Jobs(tmp_path, config.model_dump(mode="json"))
    hosts.start_supervisor(jobs.settings, "--gpus-per-worker", "0", "--drain")
    recipe = load_evaluate_config("smoke", ["epochs=400", "train_per_class=10", "test_per_class=5"])
    images = DatasetRef(source="digits")
    ways: dict[str, Callable[[Host], None]] = {
        "SIGTERM to ray start --block": lambda host: host.tell_to_end(),
        "a notice of preemption": lambda host: host.drain(DRAIN_S),
        "ray stop": lambda host: host.stop_raylet(signal.SIGTERM),
    }
    try:
        until(lambda: jobs.store.epoch() > 0, START_S)
        here = hosts.add_node()
        until(lambda: jobs.num_workers() == 1, START_S)
        work = [
            jobs.submit(EvaluateSpec(genotype=DARTS_V2, config=recipe, data=images), max_attempts=1),
            jobs.submit(AdaptSpec(choice=CHOICE, steps=1500), max_attempts=1),
            jobs.submit(MetaTrainSpec(), max_attempts=1),
        ]
        for way, take_away in ways.items():
            until(lambda: any(jobs.look(job).progress.get("done") for job in work if is_running(jobs, job)), START_S)
            before = [jobs.look(job).attempt for job in work]
            there = hosts.add_node()
            until(lambda: jobs.num_workers() == 2, START_S)
            take_away(here)
            gone_s = until(lambda gone=here: gone.node_id not in hosts.alive(), DRAIN_S + 60)  # type: ignore[misc]
            here.end()
            until(lambda: jobs.num_workers() == 1, START_S)
            after = [jobs.look(job).attempt for job in work]
            print(f"\n{way}: gone after {gone_s:.1f} s; attempts {before}, then {after}")
            here = there
        until(lambda: all(jobs.look(job).state.is_terminal for job in work), START_S)
    except (TimeoutError, AssertionError):
        print(hosts.logs())
        raise
    found = [jobs.look(job) for job in work]
    assert [(job.state, job.failures, job.failure) for job in found] == [(JobState.SUCCEEDED, 0, None)] * 3
    assert found[2].result is not None and found[2].result["summary"]["prior_sha256"] == undisturbed


def is_running(jobs: Jobs, job: Job) -> bool:
    return jobs.look(job).state is JobState.RUNNING
