"""Real processes, killed at random under load: no job is lost, no result is given twice, no update is applied twice.

`METASEARCH_CHAOS=long` runs many jobs and several faults of each kind (minutes) and prints a report as JSON.
"""

import json
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from chaos.deployment import NUM_WORKERS, TENANT, Deployment
from reference.audit import all_priors, check_lineage, count_losses, undisturbed_digest
from reference.kept import wait_until
from reference.load import Load
from reference.processes import COORDINATOR, WORKER
from reference.redis_server import require_redis

from common.loading import load
from coordinator.api.stubs import search_pb2 as pb

LONG = os.environ.get("METASEARCH_CHAOS") == "long"
SEED = int(os.environ.get("METASEARCH_CHAOS_SEED", "0"))
MIN_JOBS = 200 if LONG else 40
NUM_CLIENTS = 6
ROUNDS = 150 if LONG else 25
PAUSE_S = 20.0 if LONG else 3.0
BLOCKED_S = 10.0 if LONG else 2.0
EACH = 3 if LONG else 1
RECOVERY_TIMEOUT_S = 180.0
RARE = ("coordinator hangs", "cluster lost")
"""Once, in the long form."""
SETTINGS = ["network.channels=2", "families.0.tasks_per_round=2", "inner.steps=1", "checkpoint.keep_last=1000"]
TRAIN, ADAPT = "studies/train", "studies/adapt"

pytestmark = [pytest.mark.chaos, pytest.mark.ray, pytest.mark.timeout(1500 if LONG else 300)]


@pytest.fixture(scope="module")
def deployment(shared_image_cache: Path) -> Iterator[Deployment]:
    require_redis()
    deployment = Deployment()
    try:
        deployment.start()
        with deployment.client() as client:
            client.create_study("train", preset="smoke", overrides=[*SETTINGS, f"rounds={ROUNDS}"])
            client.create_study("adapt", preset="smoke", overrides=SETTINGS)
        yield deployment
    except BaseException:
        print(deployment.logs())
        raise
    finally:
        deployment.close()


def test_nothing_is_lost_and_nothing_done_twice_whatever_is_killed(deployment: Deployment, tmp_path: Path) -> None:
    start_s = time.monotonic()
    with deployment.client() as client:
        train = client.meta_train(TRAIN, max_attempts=100)
    load_ = Load(deployment.client, ADAPT, MIN_JOBS, NUM_CLIENTS, SEED)
    wait_until(lambda: deployment.num_finished() > 0, 90)
    faults = faults_of(deployment)
    order = [name for name in faults for _ in range(1 if name in RARE else EACH)]
    random.Random(SEED).shuffle(order)
    recovery_s: dict[str, list[float]] = {}
    for name in order:
        before = deployment.num_finished()
        back = faults[name]()
        since_s = time.monotonic()
        # Back: the part itself, and jobs end again.
        wait_until(lambda back=back, before=before: back() and deployment.num_finished() > before, RECOVERY_TIMEOUT_S)  # type: ignore[misc]
        recovery_s.setdefault(name, []).append(round(time.monotonic() - since_s, 2))
        print(f"{name}: {recovery_s[name][-1]} s, {deployment.num_finished()} jobs done", flush=True)
    load_.finish(240)
    with deployment.client() as client:
        trained = client.wait(train.name)
    report = audit(deployment, load_, trained, tmp_path)
    report["recovery_s"] = recovery_s
    report["seconds"] = round(time.monotonic() - start_s, 1)
    print(json.dumps(report, indent=2))
    assert report["jobs_lost"] == report["results_duplicated"] == report["updates_applied_twice"] == 0
    assert report["meta_train_sha256_equal"]


def test_a_rolling_restart_under_load_loses_and_duplicates_nothing(deployment: Deployment, tmp_path: Path) -> None:
    load_ = Load(deployment.client, ADAPT, 20, NUM_CLIENTS, SEED)
    started_s = time.monotonic()
    for name, port in zip(("gateway-a", "gateway-b"), deployment.gateway_ports, strict=True):
        assert deployment.replace_gracefully(name, 40) == 0
        wait_until(lambda port=port: deployment.answers(port), 60)  # type: ignore[misc]
        print(f"{name}: restarted after {time.monotonic() - started_s:.1f} s", flush=True)
    epoch = deployment.store.epoch()
    assert deployment.replace_gracefully("supervisor", 60) == 0
    wait_until(lambda: deployment.store.epoch() > epoch, RECOVERY_TIMEOUT_S)
    print(f"supervisor: restarted after {time.monotonic() - started_s:.1f} s", flush=True)
    load_.finish(120)
    report = audit(deployment, load_, None, tmp_path)
    print(json.dumps(report))
    assert report["jobs_lost"] == report["results_duplicated"] == report["updates_applied_twice"] == 0
    failures = [deployment.store.get_job(TENANT, "adapt", name.rpartition("/")[2]).job.failures for name in load_.names]
    assert sum(failures) == 0, "draining uses no attempt up"


# Faults: each returns how to tell that the part is back.


def faults_of(deployment: Deployment) -> dict[str, Callable[[], Callable[[], bool]]]:
    choices = random.Random(SEED + 1)
    faults: dict[str, Callable[[], Callable[[], bool]]] = {
        "worker killed": lambda: kill_worker(deployment, choices, signal.SIGKILL),
        "coordinator killed": lambda: kill_coordinator(deployment),
        "gateway killed": lambda: kill_gateway(deployment, choices.randrange(2)),
        "supervisor killed": lambda: kill_supervisor(deployment),
        "redis restarted": lambda: restart_redis(deployment),
        f"redis paused {PAUSE_S:g} s": lambda: pause_redis(deployment),
        f"artifacts refused {BLOCKED_S:g} s": lambda: refuse_artifacts(deployment),
    }
    if LONG:
        faults["worker hangs"] = lambda: kill_worker(deployment, choices, signal.SIGSTOP)
        faults["coordinator hangs"] = lambda: kill_coordinator(deployment, signal.SIGSTOP)
        faults["cluster lost"] = lambda: kill_cluster(deployment)
    return faults


def kill_worker(deployment: Deployment, choices: random.Random, number: signal.Signals) -> Callable[[], bool]:
    wait_until(lambda: len(deployment.pids(WORKER)) == NUM_WORKERS, RECOVERY_TIMEOUT_S)
    pid = choices.choice(deployment.pids(WORKER))
    with suppress(ProcessLookupError):
        os.kill(pid, number)
    return lambda: pid not in deployment.pids(WORKER) and len(deployment.pids(WORKER)) == NUM_WORKERS


def kill_coordinator(deployment: Deployment, number: signal.Signals = signal.SIGKILL) -> Callable[[], bool]:
    wait_until(lambda: bool(deployment.pids(COORDINATOR)), RECOVERY_TIMEOUT_S)
    epoch = deployment.store.epoch()
    for pid in deployment.pids(COORDINATOR):
        os.kill(pid, number)
    return lambda: deployment.store.epoch() > epoch


def kill_gateway(deployment: Deployment, index: int) -> Callable[[], bool]:
    deployment.kill(("gateway-a", "gateway-b")[index])
    return lambda: deployment.answers(deployment.gateway_ports[index])


def kill_supervisor(deployment: Deployment) -> Callable[[], bool]:
    before = deployment.num_restarts
    deployment.kill("supervisor")
    return lambda: deployment.num_restarts > before


def restart_redis(deployment: Deployment) -> Callable[[], bool]:
    deployment.redis.restart(kill=True)
    return deployment.redis.answers


def pause_redis(deployment: Deployment) -> Callable[[], bool]:
    deployment.redis.pause()
    time.sleep(PAUSE_S)
    deployment.redis.resume()
    return deployment.redis.answers


def refuse_artifacts(deployment: Deployment) -> Callable[[], bool]:
    deployment.exchange_artifacts()
    time.sleep(BLOCKED_S)
    deployment.exchange_artifacts()
    return lambda: True


def kill_cluster(deployment: Deployment) -> Callable[[], bool]:
    epoch = deployment.store.epoch()
    deployment.kill_cluster()
    return lambda: deployment.store.epoch() > epoch


# What came of it


def audit(deployment: Deployment, load_: Load, trained: pb.Job | None, folder: Path) -> dict[str, object]:
    """Counts what must be zero, and makes every prior of a contribution again."""
    store = deployment.store
    report: dict[str, object] = {**count_losses(store, TENANT, "adapt", load_.names)}
    report |= {
        "jobs_unasked_for": int(str(report["jobs"])) - len(load_.names) if trained is not None else 0,
        "clients_asked_again": load_.asked_again,
        "epochs": store.epoch(),
        "processes_restarted": deployment.num_restarts,
    }
    assert report["jobs_unasked_for"] == report["updates_lost"] == 0
    assert store.counts([TENANT])[TENANT]["queued"] == store.counts([TENANT])[TENANT]["running"] == 0
    check_lineage(store, TENANT, "adapt", load("smoke", SETTINGS, environment={}), folder / "lineage")
    if trained is not None:
        config = load("smoke", [*SETTINGS, f"rounds={ROUNDS}"], environment={})
        undisturbed = undisturbed_digest(config, ROUNDS, folder / "undisturbed")
        report["meta_train_versions"] = trained.meta_train_result.prior_version
        report["meta_train_sha256_equal"] = trained.meta_train_result.prior_sha256 == undisturbed
        made = list(reversed(all_priors(store, TENANT, "train")))
        assert [pointer.version for pointer in made] == list(range(ROUNDS + 1))
    return report
