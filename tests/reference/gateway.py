"""A real gateway in a process of its own, and a coordinator that the test plays on the same job store."""

import contextlib
import hashlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from common.errors import UnauthenticatedError
from coordinator.api.auth import create_token
from coordinator.api.client import SearchClient
from coordinator.jobs import Failure, FailureReason, Job
from coordinator.local_service import READY
from coordinator.store.jobs import JobStore
from coordinator.store.records import PriorPointer, Quota
from coordinator.store.sqlite import SqliteLedger

ROOT = Path(__file__).parents[2]
READY_TIMEOUT_S = 60.0


def until(condition: Callable[[], Any], what: str, timeout_s: float = 30.0) -> Any:
    """Waits for a condition to hold, and returns its value."""
    end_s = time.monotonic() + timeout_s
    while not (found := condition()):
        assert time.monotonic() < end_s, f"waited {timeout_s} s for {what}"
        time.sleep(0.02)
    return found


class Gateway:
    """`metasearch serve` as a child process, with everything in one folder.

    Args:
        folder: for the store, artifacts, tokens, settings and log.
        settings: further `ServiceSettings`.
    """

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.folder = folder
        self.folder.mkdir(parents=True, exist_ok=True)
        self.store_path = folder / "jobs.sqlite"
        self.artifacts = folder / "artifacts"
        self.tokens = folder / "tokens.toml"
        self.settings_file = folder / "settings.json"
        self.log = folder / "gateway.log"
        self.scratch = folder / "scratch"
        self.scratch.mkdir(exist_ok=True)
        self.port = 0
        self._tokens: dict[tuple[str, str], str] = {}
        self._process: subprocess.Popen[str] | None = None
        self._settings = {
            "store": f"sqlite:{self.store_path}",
            "artifacts": str(self.artifacts),
            "tokens": str(self.tokens),
            "listen": "127.0.0.1:0",
            "drain_s": 5.0,
        } | settings
        self.drain_s = float(self._settings["drain_s"])

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Starts it, a second time on the same port, and waits for its ready line."""
        if not self.tokens.exists():
            self.token("nobody", "viewer")
        if self.port:
            self._settings["listen"] = self.address
        self.settings_file.write_text(json.dumps(self._settings))
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "coordinator.cli", "serve", "--settings", str(self.settings_file)],
                cwd=ROOT,
                env=os.environ | {"TMPDIR": str(self.scratch)},
                stdout=subprocess.PIPE,
                stderr=log,
                stdin=subprocess.DEVNULL,
                text=True,
            )
        lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        assert self._process.stdout is not None
        stdout = self._process.stdout
        threading.Thread(target=lambda: lines.put(stdout.readline()), daemon=True).start()
        line = lines.get(timeout=READY_TIMEOUT_S)
        assert line.startswith(READY), f"no ready line but {line!r}: {self.log.read_text()}"
        self.port = json.loads(line.removeprefix(READY))["port"]

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Ends it and returns its exit status."""
        assert self._process is not None
        if self._process.poll() is None:
            self._process.send_signal(number)
        try:
            return self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            raise
        finally:
            self._process.wait()
            assert self._process.stdout is not None
            self._process.stdout.close()

    def terminate(self) -> None:
        """Asks it to drain, and does not wait."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)

    def token(self, tenant: str, role: str = "submitter") -> str:
        """A token, made once per tenant and role. A running gateway knows it within a second or so."""
        if (tenant, role) not in self._tokens:
            self._tokens[tenant, role] = create_token(self.tokens, tenant, role, "for a test")
        return self._tokens[tenant, role]

    def add_tokens(self, tenants: Iterable[str]) -> None:
        """Tokens of submitters, all at once."""
        tables = []
        for tenant in tenants:
            self._tokens[tenant, "submitter"] = token = f"msk_of-{tenant}"
            digest = hashlib.sha256(token.encode()).hexdigest()
            tables.append(f'[[token]]\nsha256 = "{digest}"\ntenant = "{tenant}"\nrole = "submitter"\n')
        with self.tokens.open("a") as file:
            file.write("\n" + "\n".join(tables))

    def known_token(self, tenant: str, role: str = "submitter") -> str:
        """A token that the running gateway knows by now."""
        token = self.token(tenant, role)
        until(lambda: self.knows(token), "the gateway to read the tokens file")
        return token

    def knows(self, token: str) -> bool:
        with SearchClient(self.address, token) as client:
            try:
                list(client.list_studies())
            except UnauthenticatedError:
                return False
            return True

    def client(self, tenant: str, role: str = "submitter", **options: Any) -> SearchClient:
        return SearchClient(self.address, self.token(tenant, role), **options)

    def num_files(self) -> int:
        """Open file handles."""
        return len(list(Path(f"/proc/{self.pid}/fd").iterdir()))

    def rss_bytes(self, field: str = "VmRSS") -> int:
        """Memory in use; `VmHWM` for the most that it ever was."""
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) << 10
        raise AssertionError(f"no {field}")


@contextlib.contextmanager
def running(folder: Path, **settings: Any) -> Iterator[Gateway]:
    """A gateway that runs in the block."""
    gateway = Gateway(folder, **settings)
    gateway.start()
    try:
        yield gateway
    finally:
        gateway.stop()


class PlayedCoordinator:
    """Does to jobs what a coordinator does, when the test says so."""

    def __init__(self, gateway: Gateway) -> None:
        self.ledger = SqliteLedger(gateway.store_path)
        self.store = JobStore(self.ledger)
        self.epoch = self.store.take_charge("test")
        self.artifacts = gateway.artifacts

    def close(self) -> None:
        self.ledger.close()

    def job(self, tenant: str, name: str) -> Job:
        _, study, _, job_id = name.split("/")
        return self.store.get_job(tenant, study, job_id).job

    def first_prior(self, tenant: str, study: str, digest: str = "ab" * 32) -> None:
        pointer = PriorPointer(version=0, digest=digest, stem="priors/00000000", created_s=time.time())
        self.store.set_first_prior(self.epoch, tenant, study, pointer)

    def start(self, tenant: str, name: str, base_version: int = 0) -> Job:
        return self.store.start(self.epoch, self.job(tenant, name), time.time(), base_version, Quota())

    def progress(self, job: Job, done: int, total: int, accuracy: float) -> Job:
        progress = {"done": done, "total": total, "accuracy": accuracy, "genotype_json": "{}"}
        return self.store.report(self.epoch, job, progress)

    def confirm_cancel(self, job: Job) -> Job:
        return self.store.confirm_cancel(self.epoch, job, time.time())

    def requeue(self, job: Job, note: str) -> Job:
        return self.store.requeue(self.epoch, job, time.time(), 0.0, False, note)

    def fail(self, job: Job, reason: FailureReason = FailureReason.ADAPTATION_FAILED, message: str = "diverged") -> Job:
        return self.store.fail(self.epoch, job, time.time(), Failure(reason=reason, message=message))

    def succeed(
        self, job: Job, files: Mapping[str, bytes] | None = None, summary: Mapping[str, Any] | None = None
    ) -> Job:
        """Stores files as a worker does, and an adapt job's result; `summary` adds to it."""
        files = {"weights.safetensors": bytes(range(256)) * 10, "result.json": b"{}"} if files is None else files
        folder = self.artifacts / job.tenant / job.study / "jobs" / job.job_id / f"attempt-{job.epoch}-{job.attempt}"
        folder.mkdir(parents=True)
        for name, data in files.items():
            if ".." not in name:
                (folder / name).parent.mkdir(exist_ok=True)
                (folder / name).write_bytes(data)
        artifacts = [
            {"name": name, "num_bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
            for name, data in files.items()
        ]
        result = {"summary": {**adapt_summary(), **(summary or {})}, "artifacts": artifacts, "url": f"file://{folder}"}
        return self.store.succeed(self.epoch, job, time.time(), result)

    def succeed_round(self, job: Job, digest: str = "cd" * 32) -> Job:
        """A meta_train job's result."""
        result = {"summary": {"prior_version": 3, "prior_sha256": digest}}
        return self.store.succeed(self.epoch, job, time.time(), result)


def genotype(num_nodes: int = 2) -> dict[str, Any]:
    node = [{"source": 0, "primitive": "sep_conv_3x3"}, {"source": 1, "primitive": "skip_connect"}]
    return {"cells": {kind: [node] * num_nodes for kind in ("normal", "reduction")}}


def adapt_summary() -> dict[str, Any]:
    """As `workers.job` makes it."""
    return {
        "genotype": genotype(),
        "probability": 0.25,
        "top_genotypes": [{"genotype": genotype(), "probability": 0.25 / (1 + rank)} for rank in range(5)],
        "accuracy": 0.75,
        "num_params": 12_345,
        "num_macs": 678_900,
        "entropy_nats": {"normal": 1.5, "reduction": 1.25},
        "evaluations": [
            {"step": 0, "accuracy": 0.5, "loss_nats": 1.0},
            {"step": 4, "accuracy": 0.75, "loss_nats": 0.5},
        ],
        "prior_version": 0,
        "steps": 4,
        "seconds": 1.5,
    }
