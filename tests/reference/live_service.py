"""`metasearch serve --local` as a process, with Ray's token authentication on, and work that keeps it busy."""

import contextlib
import io
import re
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from reference.gateway import until
from reference.processes import METASEARCH, environment_without_ray, kill_with_descendants
from sklearn.datasets import load_digits

from coordinator.api.client import SearchClient
from coordinator.api.stubs import search_pb2 as pb

START_TIMEOUT_S = 400.0
_SERVING = re.compile(r"Serving on (127\.0\.0\.1:\d+)")
_DASHBOARD = re.compile(r"Ray dashboard: (http://\S+); it asks for a token")
ENDLESS = 1_000_000


@dataclass(frozen=True)
class LiveService:
    """A service on this machine.

    Attributes:
        folder: where it keeps everything.
        client: of its only tenant.
        dashboard_url: of the Ray dashboard.
        ray_token: what that asks for.
    """

    folder: Path
    client: SearchClient
    dashboard_url: str
    ray_token: str


@contextlib.contextmanager
def live_service(folder: Path, workers: int = 2) -> Iterator[LiveService]:
    """A service that runs in the block; its Ray is its own, and ends with it."""
    token = secrets.token_hex(32)
    said = folder / "said"
    scratch = Path(tempfile.mkdtemp(prefix="ms-", dir="/tmp"))  # names of sockets must be short
    environment = environment_without_ray() | {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": token,
        "RAY_TMPDIR": str(scratch),
        "RAY_worker_niceness": "0",
        "OMP_NUM_THREADS": "1",
    }
    arguments = ["serve", "--local", "--folder", str(folder), "--listen", "127.0.0.1:0", "--workers", str(workers)]
    with said.open("wb") as file:
        process = subprocess.Popen(
            [METASEARCH, *arguments], stdout=file, stderr=file, start_new_session=True, env=environment
        )
    coordinator_log = folder / "logs" / "coordinator.log"

    def found_in(path: Path, pattern: re.Pattern[str]) -> str | None:
        assert process.poll() is None, said.read_text()
        found = pattern.search(path.read_text()) if path.exists() else None
        return None if found is None else found[1]

    try:
        address = until(lambda: found_in(said, _SERVING), "its address", START_TIMEOUT_S)
        url = until(lambda: found_in(coordinator_log, _DASHBOARD), "the dashboard's address", START_TIMEOUT_S)
        with SearchClient(address, (folder / "token").read_text().strip()) as client:
            until(lambda: client.service_status().coordinator.workers == workers, "its workers", START_TIMEOUT_S)
            yield LiveService(folder, client, url, token)
    finally:
        kill_with_descendants(process)
        process.wait()
        shutil.rmtree(scratch, ignore_errors=True)


@dataclass(frozen=True)
class Work:
    """Names of jobs that a service was given.

    Attributes:
        trained: meta-training that has ended.
        adapted: tasks that were adapted to, and have ended.
        failed: a task with a class that its data does not have.
        few_shot: a handful of images that were labelled.
        endless: a task that is adapted to until it is cancelled.
        sweep: of another study, that runs.
    """

    trained: str
    adapted: tuple[str, ...]
    failed: str
    few_shot: str
    endless: str
    sweep: str


def submit_work(client: SearchClient, steps: int = ENDLESS) -> Work:
    """Jobs of every kind that a dashboard tells of: some end, a sweep and an adaptation of so many steps go on."""
    shapes = ["network.channels=4", "families.0.tasks_per_round=4"]
    digits = client.create_study("digits", preset="smoke", overrides=["rounds=6", *shapes]).name
    handfuls = client.create_study("handfuls", preset="few_shot_smoke").name
    trained = client.meta_train(digits).name
    adapted = tuple(client.submit(digits, "digits", num_ways=3, steps=40, seed=seed).name for seed in range(3))
    support = {name: digit_files(label, range(3)) for name, label in (("three", 3), ("five", 5), ("eight", 8))}
    few_shot = client.few_shot(handfuls, support, digit_files(3, range(5, 8)) + digit_files(8, range(5, 8))).name
    failed = client.submit(digits, "digits", classes=["1", "7", "eleven"]).name
    assert client.wait(failed).state == pb.JOB_STATE_FAILED
    for name in (trained, *adapted, few_shot):
        ended = client.wait(name)
        assert ended.state == pb.JOB_STATE_SUCCEEDED, ended
    endless = client.submit(digits, "digits", num_ways=3, steps=steps, train_per_class=20).name
    until(lambda: client.get_job(endless).progress.done > 5, "the endless job to run", START_TIMEOUT_S)
    space = {"inner.steps": {"choice": [2, 3, 4]}}
    sweep = client.sweep(digits, {"space": space, "trials": 200, "tasks": 2}).name
    until(lambda: client.get_job(sweep).progress.metrics["trials_running"], "a trial to run", START_TIMEOUT_S)
    return Work(trained, adapted, failed, few_shot, endless, sweep)


def digit_files(label: int, numbers: range) -> list[bytes]:
    """Some images of a digit, as PNG files."""
    digits = load_digits()
    images = digits.images[digits.target == label]
    files = []
    for number in numbers:
        file = io.BytesIO()
        Image.fromarray((images[number] * 15).astype(np.uint8)).save(file, "PNG")
        files.append(file.getvalue())
    return files
