"""Workers that wait for room make Ray's autoscaler add nodes, and are ended so that it removes them. With its fake
provider, whose nodes are processes of this machine, and the service's own supervisor."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from reference.ray_hosts import FAKE_HEAD, Jobs, RayHosts, autoscaling_config, until

from common.config import DatasetRef
from common.loading import load
from common.tasks import TaskChoice
from coordinator.jobs import AdaptSpec, Job, JobState, MetaTrainSpec

pytestmark = [pytest.mark.deploy, pytest.mark.ray, pytest.mark.timeout(1500)]

NODES = 3
IDLE_S = 6.0
START_S = 420.0
CHOICE = TaskChoice(
    data=DatasetRef(source="digits"), classes=("1", "7"), image_size=16, train_per_class=8, test_per_class=4
)
CONFIG = load("smoke", ["rounds=2", "families.0.tasks_per_round=12", "inner.steps=60"], environment={})


@pytest.fixture(params=[False, True], ids=["autoscaler v1", "autoscaler v2"])
def hosts(request: pytest.FixtureRequest, tmp_path: Path, shared_image_cache: Path) -> Iterator[RayHosts]:
    environment = {"AUTOSCALER_UPDATE_INTERVAL_S": "1", "RAY_FAKE_CLUSTER": "1"}
    if request.param:
        environment |= {"RAY_enable_autoscaler_v2": "1", "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD}
        environment |= {"RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD}
    file = tmp_path / "autoscaling.json"
    cluster = RayHosts((f"--autoscaling-config={file}",), environment)
    file.write_text(autoscaling_config(cluster.address, {"CPU": 1}, NODES, IDLE_S, is_v2=request.param))
    with cluster:
        yield cluster


def test_a_cluster_grows_from_no_nodes_with_the_jobs_and_shrinks_once_it_is_idle(
    hosts: RayHosts, tmp_path: Path
) -> None:
    jobs = Jobs(tmp_path, CONFIG.model_dump(mode="json"))
    sizes = ("--min-workers", "0", "--max-workers", str(NODES), "--gpus-per-worker", "0")
    hosts.start_supervisor(jobs.settings, *sizes, "--idle-s", str(IDLE_S), "--drain")
    try:
        until(lambda: jobs.store.epoch() > 0, START_S)
        assert len(hosts.alive()) == 1 and jobs.num_workers() == 0, "the head alone"

        start_s = time.monotonic()
        single = jobs.submit(AdaptSpec(choice=CHOICE, steps=2))
        until(lambda: jobs.num_workers() == 1, START_S)
        first_s = time.monotonic() - start_s
        until(lambda: jobs.look(single).state is JobState.SUCCEEDED, START_S)
        assert len(hosts.alive()) == 2, "one job needs one node"

        start_s = time.monotonic()
        many: list[Job] = [jobs.submit(MetaTrainSpec())]
        many += [jobs.submit(AdaptSpec(choice=CHOICE, steps=200)) for _ in range(2 * NODES)]
        until(lambda: jobs.num_workers() == NODES, START_S)
        all_s = time.monotonic() - start_s
        assert len(hosts.alive()) == 1 + NODES
        until(lambda: all(jobs.look(job).state.is_terminal for job in many), START_S)
        done_s = time.monotonic() - start_s

        start_s = time.monotonic()
        until(lambda: jobs.num_workers() == 0, START_S)
        ended_s = time.monotonic() - start_s
        until(lambda: len(hosts.alive()) == 1, START_S)
        gone_s = time.monotonic() - start_s
    except (TimeoutError, AssertionError):
        print(hosts.logs())
        raise
    found = [jobs.look(job) for job in (single, *many)]
    assert {(job.state, job.attempt) for job in found} == {(JobState.SUCCEEDED, 1)}
    assert ended_s >= IDLE_S / 2 and ray.cluster_resources().get("CPU", 0.0) == 0.0
    print(
        f"\n0 -> 1 workers after {first_s:.1f} s, 1 -> {NODES} after {all_s:.1f} s, jobs done after {done_s:.1f} s; "
        f"idle: {NODES} -> 0 workers after {ended_s:.1f} s, nodes gone after {gone_s:.1f} s"
    )
