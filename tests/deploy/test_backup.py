"""The runbook's way to back up and to restore: real processes, and what came back is whole and goes on."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from chaos.deployment import BIN, TENANT, Deployment
from contracts.invariants import check_invariants
from reference.kept import wait_until
from reference.redis_server import require_redis

from coordinator.api.stubs import search_pb2 as pb
from coordinator.jobs import JobState

RESTORE = Path(__file__).parents[2] / "deploy" / "restore-redis.sh"
SETTINGS = [
    "network.channels=2",
    "families.0.tasks_per_round=2",
    "inner.steps=1",
    "rounds=40",
    "checkpoint.keep_last=100",
]
TASK = {"num_ways": 3, "steps": 2, "train_per_class": 8, "test_per_class": 4}

pytestmark = [pytest.mark.deploy, pytest.mark.ray, pytest.mark.timeout(600)]


@pytest.fixture
def deployment(shared_image_cache: Path) -> Iterator[Deployment]:
    require_redis()
    if shutil.which("rsync") is None:
        pytest.skip("rsync is not installed")
    found = Deployment()
    try:
        found.start()
        yield found
    except BaseException:
        print(found.logs())
        raise
    finally:
        found.close()


def run(*command: str | Path, allowed: tuple[int, ...] = (0,)) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode in allowed, done.stderr
    return done.stdout


def copy(source: Path, to: Path, *options: str, allowed: tuple[int, ...] = (0,)) -> None:
    """Artifacts without files that are being written, as deploy/README.md says."""
    run("rsync", "--archive", "--exclude=.*", *options, f"{source}/", to, allowed=allowed)
    assert not list(to.rglob(".*"))


def snapshot(deployment: Deployment, file: Path) -> None:
    """A snapshot of Redis, by commands that the service's own user may give."""
    redis_cli = ("redis-cli", "-u", deployment.redis.url)
    before = run(*redis_cli, "lastsave")
    run(*redis_cli, "bgsave")
    wait_until(lambda: run(*redis_cli, "lastsave") != before, 60)
    shutil.copy(deployment.redis.folder / "dump.rdb", file)


def verified(deployment: Deployment) -> dict[str, object]:
    """What `metasearch verify` says of a deployment's store and artifacts."""
    store, artifacts = deployment.settings.store, deployment.settings.artifacts
    found: dict[str, object] = json.loads(
        run(BIN / "metasearch", "verify", "--store", store, "--artifacts", artifacts, "--json")
    )
    return found


def test_what_was_backed_up_under_load_is_restored_whole_and_goes_on(deployment: Deployment, tmp_path: Path) -> None:
    backup, artifacts = tmp_path / "backup", deployment.folder / "artifacts"
    backup.mkdir()
    with deployment.client() as client:
        client.create_study("train", preset="smoke", overrides=SETTINGS)
        client.create_study("adapt", preset="smoke", overrides=SETTINGS)
        train = client.meta_train("studies/train", max_attempts=100)
        jobs = [client.submit("studies/adapt", "digits", **TASK, seed=seed).name for seed in range(30)]
        wait_until(lambda: deployment.num_finished() >= 5, 120)

        # Back up: artifacts while all runs; then the coordinator hands its work over, for as long as the rest takes.
        vanished = 24  # files that are not needed any more were removed meanwhile
        copy(artifacts, backup / "artifacts", allowed=(0, vanished))
        deployment.stop_gracefully("supervisor", 60)
        snapshot(deployment, backup / "jobs.rdb")
        copy(artifacts, backup / "artifacts", "--delete")
        at_backup = {job.name: job.state for job in deployment.store.list_jobs(TENANT, "adapt", 1000, "").items}
        unfinished = [name for name, state in at_backup.items() if state is JobState.QUEUED]
        assert unfinished, "the backup is of a service at work"
        deployment.start_process("supervisor")

        # Life goes on, and then everything is lost.
        later = client.submit("studies/adapt", "digits", **TASK, seed=99).name
        client.wait(later)
    for name in ("supervisor", "gateway-a", "gateway-b"):
        deployment.stop_gracefully(name, 60)
    deployment.redis.end(kill=True)
    shutil.rmtree(deployment.redis.folder)
    shutil.rmtree(artifacts)

    # Restore, to the same places.
    print(run(RESTORE, backup / "jobs.rdb", deployment.redis.folder))
    run("rsync", "--archive", f"{backup / 'artifacts'}/", artifacts)
    deployment.redis.start()
    whole = verified(deployment)
    assert whole["problems"] == [] and int(str(whole["num_priors"])) > 0 and int(str(whole["num_files"])) > 0
    check_invariants(deployment.store)
    for name in ("gateway-a", "gateway-b", "supervisor"):
        deployment.start_process(name)
    with deployment.client() as client:
        ended = [client.wait(name) for name in jobs]
        assert {job.state for job in ended} == {pb.JOB_STATE_SUCCEEDED}
        assert client.wait(train.name).meta_train_result.prior_version == 40
        names = {job.name for job in client.list_jobs("studies/adapt")}
    assert names == set(jobs), "what was submitted after the backup is gone, and nothing else"
    assert verified(deployment)["problems"] == []
    check_invariants(deployment.store)


def test_a_snapshot_is_not_put_over_data(tmp_path: Path) -> None:
    require_redis()
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "appendonly.aof").write_text("precious")
    (tmp_path / "jobs.rdb").write_bytes(b"")
    done = subprocess.run(
        [RESTORE, tmp_path / "jobs.rdb", tmp_path / "data"], capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 4 and "is not empty" in done.stderr
    assert (tmp_path / "data" / "appendonly.aof").read_text() == "precious"


def test_a_damaged_snapshot_is_refused_with_what_redis_says(tmp_path: Path) -> None:
    require_redis()
    (tmp_path / "jobs.rdb").write_bytes(os.urandom(200))
    done = subprocess.run(
        [RESTORE, tmp_path / "jobs.rdb", tmp_path / "data"], capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 7 and "Fatal error loading the DB" in done.stderr
