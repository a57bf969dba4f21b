"""Hosts and the network between them break under load: no job is lost, no update counts twice, the prior comes out as
if nothing had happened. How long it takes to get over each fault is printed as a table, and as JSON, which also goes
into the file that `METASEARCH_MULTINODE_REPORT` names."""

import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import pytest
from contracts.invariants import check_invariants
from multinode.hosts import Network, require_hosts
from multinode.recovery import Fault, Observer, Recovery, table
from multinode.service import CLIENT, DETECTION, GPU_HOSTS, HEAD, HOSTS, RAYLET, STORE, TENANT, HostedService
from reference.audit import check_lineage, count_losses, undisturbed_digest
from reference.load import Load, Training
from reference.redis_server import require_redis

from common.loading import load

MIN_JOBS = 50
NUM_CLIENTS = 3
SETTINGS = ["network.channels=2", "families.0.tasks_per_round=4", "inner.steps=2", "checkpoint.keep_last=100000"]
ROUNDS_OF_A_JOB = 50
MANY = 100_000
TRAIN, ADAPT = "studies/train", "studies/adapt"
SLOW_S, STORE_CUT_S = 30.0, 20.0
DELAY_MS, LOSS_FRACTION = 200.0, 0.05
REPORT_VARIABLE = "METASEARCH_MULTINODE_REPORT"

pytestmark = [pytest.mark.multinode, pytest.mark.ray, pytest.mark.timeout(1500)]


@pytest.fixture
def network() -> Iterator[Network]:
    require_hosts()
    require_redis()
    network = Network(HOSTS)
    with network.hosts[CLIENT].inside():  # this test is a client, with all threads that it starts
        yield network
    network.close()


def test_no_fault_of_hosts_or_network_loses_or_repeats_anything(network: Network, tmp_path: Path) -> None:
    with running(network, head_survives=False) as service:
        break_under_load(service, faults_of(service), tmp_path)


def test_a_head_whose_state_is_in_redis_comes_back_to_the_same_cluster(network: Network, tmp_path: Path) -> None:
    with running(network, head_survives=True) as service:
        before = {name: service.hosts[name].pids(RAYLET) for name in (HEAD, *GPU_HOSTS)}

        def head_is_back() -> bool:
            return bool(set(service.hosts[HEAD].pids(RAYLET)) - set(before[HEAD]))

        break_under_load(service, [Fault("head killed, its state kept", service.kill_head, head_is_back)], tmp_path)
        after = {name: service.hosts[name].pids(RAYLET) for name in GPU_HOSTS}
        assert after == {name: before[name] for name in GPU_HOSTS}, "the GPU hosts stayed in the cluster"


def faults_of(service: HostedService) -> list[Fault]:
    """All that can happen to hosts and their network, one after the other."""
    network, store = service.network, service.store
    epoch = store.epoch()
    faulty = next(name for name in GPU_HOSTS if name != service.coordinator_host())

    def host_is_missed() -> bool:
        return store.last_beat()[1].get("workers") == len(GPU_HOSTS) - 1

    return [
        Fault("GPU host cut off", lambda: network.cut(faulty), host_is_missed, lambda: network.heal(faulty)),
        Fault(
            f"GPU host slow: {DELAY_MS:g} ms, {LOSS_FRACTION:.0%} lost",
            lambda: network.slow_down(faulty, DELAY_MS, LOSS_FRACTION),
            repair=lambda: network.heal(faulty),
            lasts_s=SLOW_S,
        ),
        Fault("raylet killed", lambda: service.kill_raylet(faulty), host_is_missed),
        Fault("store cut off", lambda: network.cut(STORE), repair=lambda: network.heal(STORE), lasts_s=STORE_CUT_S),
        Fault("head killed", service.kill_head, lambda: store.epoch() > epoch),
    ]


@contextmanager
def running(network: Network, head_survives: bool) -> Iterator[HostedService]:
    """The whole service, with two studies."""
    start_s = time.monotonic()
    service = HostedService(network, head_survives)
    try:
        service.start()
        with service.client() as client:
            client.create_study("train", preset="smoke", overrides=[*SETTINGS, f"rounds={MANY}"])
            client.create_study("adapt", preset="smoke", overrides=SETTINGS)
        print(
            f"\nup after {time.monotonic() - start_s:.0f} s, the coordinator on {service.coordinator_host()}",
            flush=True,
        )
        yield service
    except BaseException:
        print(service.logs())
        raise
    finally:
        service.close()


def break_under_load(service: HostedService, faults: Sequence[Fault], folder: Path) -> None:
    """Breaks one thing after the other while clients have jobs run and a prior is trained; then counts, and reports."""
    start_s = time.monotonic()
    observer = Observer(service, "train", "adapt")
    training = Training(service.client, TRAIN, ROUNDS_OF_A_JOB)
    load_ = Load(service.client, ADAPT, MIN_JOBS, NUM_CLIENTS)
    recoveries: list[Recovery] = []
    try:
        for fault in faults:
            recoveries.append(observer.watch(fault))
            print(f"{table(recoveries[-1:])}\n{service.num_finished()} jobs, version {observer.version()}", flush=True)
        load_.finish(300)
        version, digest = training.finish(300)
    finally:
        observer.close()
    store = service.store
    config = load("smoke", [*SETTINGS, f"rounds={MANY}"], environment={})
    report = {
        "recovery": [asdict(found) for found in recoveries],
        "detection": DETECTION,
        "at_work": observer.at_work,
        "training_jobs": len(training.names),
        "versions": version,
        "sha256": digest,
        "sha256_undisturbed": undisturbed_digest(config, version, folder / "undisturbed"),
        **count_losses(store, TENANT, "adapt", load_.names),
        "clients_asked_again": len(load_.asked_again) + len(training.asked_again),
        "epochs": store.epoch(),
        "processes_restarted": service.num_restarts,
        "seconds": round(time.monotonic() - start_s, 1),
    }
    check_invariants(store)
    check_lineage(store, TENANT, "adapt", load("smoke", SETTINGS, environment={}), folder / "lineage")
    text = json.dumps(report, indent=2)
    print(f"{table(recoveries)}\n{text}", flush=True)
    if os.environ.get(REPORT_VARIABLE):
        Path(os.environ[REPORT_VARIABLE]).write_text(text)
    assert report["jobs_lost"] == report["results_duplicated"] == 0
    assert report["updates_lost"] == report["updates_applied_twice"] == 0
    assert report["sha256"] == report["sha256_undisturbed"]
    assert all(seen.total() > 0 for seen in observer.at_work.values()), "workers of both GPU hosts had work"
