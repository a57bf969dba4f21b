"""The service of docker-compose.yml, each container as a process of this machine, from its start to its end.

The gateway runs in an environment of its own that has neither torch nor Ray. The tests build on each other.
"""

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from reference.containers import ORDER, Containers
from reference.processes import descendants
from reference.redis_server import require_redis

from common.artifacts import PriorStore
from common.errors import MetaSearchError, UnauthenticatedError
from common.loading import load
from coordinator import study
from coordinator.api.client import SearchClient
from coordinator.api.connection import Tls
from coordinator.api.stubs import search_pb2 as pb
from coordinator.local import LocalExecutor
from workers.device import choose_device

pytestmark = [pytest.mark.deploy, pytest.mark.ray, pytest.mark.timeout(3600)]

WELL_WITHIN_S = 600.0  # a node takes 10 s on an idle machine, and minutes on one that others use too
ENDED = dict.fromkeys(ORDER, 0) | {"ray-head": 1, "ray-worker": 1}  # Ray's answer to SIGTERM, after it drained the node
STUDY = "studies/digits"
ROUNDS = 200  # enough for a coordinator to be stopped meanwhile
SETTINGS = [f"rounds={ROUNDS}", "network.channels=2", "families.0.tasks_per_round=2"]


@pytest.fixture(scope="module")
def containers(gateway_programs: Path, shared_image_cache: Path) -> Iterator[Containers]:
    require_redis()
    found = Containers({"gateway": gateway_programs})
    try:
        found.run("gateway", *TOKEN_COMMAND, "viewer")  # a gateway without any token does not start
        found.start_all(WELL_WITHIN_S)
        yield found
    finally:
        found.close()


TOKEN_COMMAND = ("metasearch", "token", "create", "--tenant", "lab", "--role")


@pytest.fixture(scope="module")
def token(containers: Containers) -> str:
    return containers.run("gateway", *TOKEN_COMMAND, "submitter")


@pytest.fixture
def client(containers: Containers, token: str) -> Iterator[SearchClient]:
    with SearchClient(containers.address, token, Tls(containers.secret("tls_ca")), patience_s=60.0) as found:
        yield found


def test_a_job_over_tls_with_a_token_succeeds(containers: Containers, client: SearchClient) -> None:
    containers.wait(lambda: knows(client), "the gateway to read the token", 30)
    client.create_study("digits", preset="smoke", overrides=SETTINGS)
    job = client.wait(client.submit(STUDY, "digits", num_ways=3, steps=2, test_per_class=5).name)
    assert job.state == pb.JOB_STATE_SUCCEEDED, job


def knows(client: SearchClient) -> bool:
    try:
        list(client.list_studies())
    except UnauthenticatedError:
        return False
    return True


def test_nobody_gets_in_without_a_token_or_in_plain_text(containers: Containers, token: str) -> None:
    for tls, given in ((Tls(containers.secret("tls_ca")), "msk_wrong"), (None, token)):
        with SearchClient(containers.address, given, tls, 5.0, 0.0) as stranger, pytest.raises(MetaSearchError):
            list(stranger.list_studies())


def test_ray_asks_for_the_token(containers: Containers) -> None:
    environment = containers.environment("ray-worker") | {"RAY_AUTH_TOKEN": "f" * 64}
    environment.pop("RAY_AUTH_TOKEN_PATH")
    asked = ["ray", "status", f"--address=127.0.0.1:{containers.ports['gcs']}"]
    assert subprocess.run(asked, env=environment, capture_output=True, timeout=120).returncode != 0
    assert "Healthy" in containers.run("ray-worker", *asked) or "Active" in containers.run("ray-worker", *asked)


def test_a_restarted_coordinator_goes_on_with_what_it_handed_over(
    containers: Containers, client: SearchClient, tmp_path: Path
) -> None:
    name = client.meta_train(STUDY).name
    containers.wait(lambda: client.get_job(name).progress.done >= 1, "a round", 180)
    assert containers.stop("coordinator") == 0, containers.log("coordinator")
    assert containers.health("coordinator") == 1
    handed_over = client.get_job(name)
    assert handed_over.state == pb.JOB_STATE_QUEUED and handed_over.progress.done < ROUNDS
    containers.start("coordinator")
    containers.wait_until_well("coordinator", WELL_WITHIN_S)
    job = client.wait(name)
    assert job.state == pb.JOB_STATE_SUCCEEDED and job.meta_train_result.prior_version == ROUNDS, job
    assert job.meta_train_result.prior_sha256 == undisturbed(tmp_path)


def undisturbed(folder: Path) -> str:
    """The prior's digest when nothing interrupts the rounds."""
    config = load("smoke", SETTINGS, environment={})
    store = PriorStore(folder)
    start = study.begin(store, config)
    return study.run(start, config, LocalExecutor(choose_device()), store, [], lambda: 0.0).digest()


def test_a_coordinator_whose_ray_node_dies_ends_so_that_it_is_started_again(containers: Containers) -> None:
    process = containers.processes["coordinator"]
    raylets = [pid for pid in descendants(process.pid) if title(pid).endswith("/raylet")]
    assert len(raylets) == 1
    os.kill(raylets[0], signal.SIGKILL)
    process.wait(WELL_WITHIN_S)
    containers.start("coordinator")
    containers.wait_until_well("coordinator", WELL_WITHIN_S)


def title(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0].decode()


def test_each_container_ends_within_its_grace_period_and_its_health_check_notices(containers: Containers) -> None:
    for name in reversed(ORDER):
        assert containers.health(name) == 0, f"{name} before\n{containers.log(f'{name}.health')}"
        assert containers.stop(name) == ENDED[name], f"{name}\n{containers.log(name)}"
        assert containers.health(name) == 1, f"{name} after"


def test_what_was_acknowledged_is_there_after_all_were_started_again(
    containers: Containers, client: SearchClient
) -> None:
    containers.start_all(WELL_WITHIN_S)
    states = {job.state for job in client.list_jobs(STUDY)}
    assert states == {pb.JOB_STATE_SUCCEEDED}
    job = client.wait(client.submit(STUDY, "digits", num_ways=3, steps=1, test_per_class=5).name)
    assert job.adapt_result.prior_version == ROUNDS, "from the prior of before"
