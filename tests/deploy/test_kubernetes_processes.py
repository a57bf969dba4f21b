"""The service as deploy/kubernetes describes it, as confined processes of this machine: it works, and is replaced."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from reference.kept import wait_until
from reference.pod_processes import PodProcesses
from reference.processes import COORDINATOR, WORKER

from coordinator.api.client import SearchClient, Tls
from coordinator.api.stubs import search_pb2 as pb
from coordinator.jobs import JobState

HEAD, WORKER_POD = "ray-head", "ray-worker/cpu"

pytestmark = [
    pytest.mark.deploy,
    pytest.mark.ray,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(
        os.geteuid() != 0 or not all(map(shutil.which, ("unshare", "setpriv", "openssl", "redis-server"))),
        reason="needs root, util-linux, openssl and redis-server",
    ),
]


@pytest.fixture(scope="module")
def cluster() -> Iterator[PodProcesses]:
    folder = Path(tempfile.mkdtemp(prefix="kube-", dir="/var/tmp"))
    folder.chmod(0o755)
    processes = PodProcesses(folder)
    try:
        processes.start_cluster()
        processes.start_metasearch("supervisor")
        processes.start_metasearch("gateway")

        def is_up() -> bool:
            processes.keep("supervisor")  # it ends where Ray's client server refuses it
            return processes.store.epoch() > 0

        wait_until(is_up, 120)
        yield processes
    except BaseException:
        print(processes.logs())
        raise
    finally:
        processes.close()
        shutil.rmtree(folder, ignore_errors=True)


def client_of(cluster: PodProcesses) -> SearchClient:
    tls = Tls(cluster.certificate.read_bytes())
    return SearchClient(f"127.0.0.1:{cluster.port['grpc']}", cluster.token, tls, patience_s=60.0)


def test_coordinator_is_on_the_head_and_workers_are_not(cluster: PodProcesses) -> None:
    wait_until(lambda: cluster.has(WORKER_POD, WORKER), 120)
    assert cluster.has(HEAD, COORDINATOR) and not cluster.has(WORKER_POD, COORDINATOR)
    assert not cluster.has(HEAD, WORKER)


def test_probes_find_the_gateway_well(cluster: PodProcesses) -> None:
    main = cluster.templates["gateway"].main
    with grpc.insecure_channel(f"127.0.0.1:{cluster.port['health']}") as channel:
        stub = health_pb2_grpc.HealthStub(channel)

        def is_well(probe: str) -> bool:
            request = health_pb2.HealthCheckRequest(service=main[probe]["grpc"]["service"])
            try:
                return bool(stub.Check(request, timeout=5).status == health_pb2.HealthCheckResponse.SERVING)
            except grpc.RpcError:
                return False

        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            wait_until(lambda probe=probe: is_well(probe), 60)  # type: ignore[misc]


def test_a_job_is_done_where_nothing_but_volumes_can_be_written(cluster: PodProcesses) -> None:
    with client_of(cluster) as client:
        client.create_study("mine", preset="smoke")
        job = client.submit("studies/mine", "digits", steps=2)
        assert client.wait(job.name).state == pb.JOB_STATE_SUCCEEDED


def test_workers_leave_a_pod_that_ends(cluster: PodProcesses) -> None:
    pod = cluster.templates[WORKER_POD]
    shell, option, script = pod.main["lifecycle"]["preStop"]["exec"]["command"]
    # All of Ray on this machine would be stopped.
    before, stop, after = script.rpartition("ray stop --grace-period=20")
    assert stop and not after.strip()
    assert before.count("seconds=120") == 1
    soon = before.replace("seconds=120", "seconds=15")  # what a worker is at may take until then
    # A node is told by its address, which both pods have in common here.
    soon = soon.replace("ray drain-node", f"ray drain-node --node-id={cluster.node_id(WORKER_POD)}")
    with client_of(cluster) as client:
        job = client.submit("studies/mine", "digits", steps=100_000)
        wait_until(lambda: client.get_job(job.name).progress.done > 0, 120)
        assert cluster.run(WORKER_POD, [shell, option, soon], 60) == 0, cluster.logs()
        assert not cluster.has(WORKER_POD, WORKER)
        waiting = cluster.store.get_job("lab", "mine", job.name.rpartition("/")[2]).job
        assert (waiting.state, waiting.failures) == (JobState.QUEUED, 0), "it was handed over"
        client.cancel(job.name)


def test_a_new_cluster_gets_a_coordinator_of_a_new_epoch(cluster: PodProcesses) -> None:
    epoch = cluster.store.epoch()
    cluster.kill(HEAD)
    cluster.kill(WORKER_POD)
    cluster.start_cluster()
    wait_until(lambda: cluster.store.epoch() > epoch and cluster.has(HEAD, COORDINATOR), 180)
    wait_until(lambda: cluster.has(WORKER_POD, WORKER), 120)


def test_a_supervisor_that_is_replaced_takes_its_coordinator_along(cluster: PodProcesses) -> None:
    epoch = cluster.store.epoch()
    grace_s = cluster.templates["supervisor"].spec["terminationGracePeriodSeconds"]
    assert cluster.end("supervisor", grace_s) == 0
    wait_until(lambda: not cluster.has(HEAD, COORDINATOR), 10)
    cluster.start_metasearch("supervisor")
    wait_until(lambda: cluster.store.epoch() > epoch and cluster.has(HEAD, COORDINATOR), 120)


def test_a_gateway_ends_within_its_time(cluster: PodProcesses) -> None:
    assert cluster.end("gateway", cluster.templates["gateway"].spec["terminationGracePeriodSeconds"]) == 0
