"""A whole service of real processes on this machine, each of which can be killed, with what keeps it up as it would be
in production: processes that end are started again."""

import ctypes
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from reference.ports import free_ports
from reference.processes import descendants, environment_without_ray, kill_with_descendants
from reference.redis_server import RedisServer

from common.errors import MetaSearchError, UnavailableError
from coordinator.api.auth import create_token
from coordinator.api.client import SearchClient
from coordinator.settings import ServiceSettings, open_ledger
from coordinator.store.jobs import JobStore

BIN = Path(sys.executable).parent
NUM_WORKERS = 2
WORKER, COORDINATOR = "ray::SearchWorker", "ray::ServiceCoordinator"
TENANT = "lab"
_EXCHANGE = 2
_POLL_S = 0.05


class Deployment:
    """Redis, a Ray cluster, two gateways, a supervisor; the coordinator and the workers are theirs.

    Args:
        ray_environment: of the Ray cluster, which then has a dashboard.

    Attributes:
        gateway_metrics: HOST:PORT where each gateway tells Prometheus its metrics.
        metrics_file: where Ray lists the addresses that tell its own.
        dashboard_url: of the Ray dashboard, where there is one.
    """

    def __init__(self, ray_environment: Mapping[str, str] | None = None) -> None:
        # Short: Ray puts sockets there, whose paths are limited to 107 bytes.
        self.folder = Path(tempfile.mkdtemp(prefix="chaos-", dir="/tmp"))
        for name in ("redis", "artifacts", "ray", "logs"):
            (self.folder / name).mkdir()
        # Everything listens on the loopback only, so Ray needs no token.
        self._environment = environment_without_ray()
        self._environment |= {"RAY_AUTH_MODE": "disabled", **(ray_environment or {})}
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._commands: dict[str, Sequence[str]] = {}
        self._resting: set[str] = set()
        self._lock = threading.RLock()
        self.num_restarts = 0
        self.redis = RedisServer(self.folder / "redis", "always")
        self.settings = ServiceSettings(
            store=self.redis.url,
            artifacts=str(self.folder / "artifacts"),
            tokens=self.folder / "tokens.toml",
            back_off_s=0.2,
        )
        self.token = create_token(self.settings.tokens, TENANT, "admin", "chaos")
        file = self.folder / "settings.json"
        file.write_text(self.settings.model_dump_json())
        self.store = JobStore(open_ledger(self.redis.url))
        ports = free_ports(11)
        self.gateway_ports = ports[:2]
        self.gateway_metrics = [f"127.0.0.1:{port}" for port in ports[8:10]]
        self.metrics_file = self.folder / "ray" / "prom_metrics_service_discovery.json"
        self.dashboard_url = f"http://127.0.0.1:{ports[10]}"
        command = [sys.executable, "-m", "coordinator.cli"]
        for name, port, metrics in zip(
            ("gateway-a", "gateway-b"), self.gateway_ports, self.gateway_metrics, strict=True
        ):
            listen = ("--listen", f"127.0.0.1:{port}", "--metrics-listen", metrics)
            self._commands[name] = [*command, "serve", "--settings", str(file), *listen]
        address = f"127.0.0.1:{ports[2]}"
        self._commands["supervisor"] = [
            *(*command, "coordinate", "--settings", str(file), "--address", address, "--drain"),
            *("--workers", str(NUM_WORKERS), "--task-timeout-s", "25"),
        ]
        self._commands["ray"] = [
            *(str(BIN / "ray"), "start", "--head", "--block", "--disable-usage-stats", f"--dashboard-port={ports[10]}"),
            f"--include-dashboard={'false' if ray_environment is None else 'true'}",
            *("--num-cpus=2", "--num-gpus=0", "--object-store-memory=200000000", "--node-ip-address=127.0.0.1"),
            *(f"--port={ports[2]}", f"--ray-client-server-port={ports[3]}", f"--temp-dir={self.folder / 'ray'}"),
            *(f"--dashboard-agent-listen-port={ports[4]}", f"--dashboard-agent-grpc-port={ports[5]}"),
            *(f"--runtime-env-agent-port={ports[6]}", f"--metrics-export-port={ports[7]}"),
        ]
        self._stopping = threading.Event()
        self._keeper = threading.Thread(target=self._keep, daemon=True)

    def start(self, timeout_s: float = 90.0) -> None:
        """Starts everything; returns once a coordinator is in charge and gateways answer."""
        for name in ("ray", "gateway-a", "gateway-b"):
            self.start_process(name)
        self._keeper.start()
        wait_until(lambda: any("raylet" in name for name in self.names_below("ray").values()), timeout_s)
        self.start_process("supervisor")
        wait_until(lambda: self.store.epoch() > 0 and len(self.pids(WORKER)) == NUM_WORKERS, timeout_s)
        for port in self.gateway_ports:
            wait_until(lambda port=port: self.answers(port), timeout_s)  # type: ignore[misc]

    def close(self) -> None:
        """Ends everything that was started here, and nothing else."""
        self._stopping.set()
        if self._keeper.is_alive():
            self._keeper.join()
        for process in self._processes.values():
            kill_with_descendants(process)
            process.wait()
        self.store.ledger.close()
        self.redis.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def client(self, patience_s: float = 150.0) -> SearchClient:
        """A client that knows both gateways and goes to whichever answers."""
        addresses = ",".join(f"127.0.0.1:{port}" for port in self.gateway_ports)
        return SearchClient(f"ipv4:{addresses}", self.token, patience_s=patience_s)

    def answers(self, port: int) -> bool:
        """Whether a gateway serves."""
        try:
            with SearchClient(f"127.0.0.1:{port}", self.token, timeout_s=2.0, patience_s=0.0) as client:
                list(client.list_studies())
        except MetaSearchError:
            return False
        return True

    # Processes

    def start_process(self, name: str) -> None:
        """Starts one of the processes that are kept up."""
        with self._lock, (self.folder / "logs" / f"{name}.log").open("ab") as log:
            self._processes[name] = subprocess.Popen(
                self._commands[name],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env=self._environment,
            )
            self._resting.discard(name)

    def kill(self, name: str) -> None:
        """SIGKILL; it will be started again."""
        self._processes[name].kill()

    def kill_cluster(self) -> None:
        """SIGKILL to all of Ray at once: the whole cluster is lost, and a new one comes up."""
        with self._lock:
            kill_with_descendants(self._processes["ray"])

    def replace_gracefully(self, name: str, timeout_s: float) -> int:
        """SIGTERM, waits for its end, starts it again; returns its exit code."""
        code = self.stop_gracefully(name, timeout_s)
        self.start_process(name)
        return code

    def stop_gracefully(self, name: str, timeout_s: float) -> int:
        """SIGTERM, and waits for its end; nothing starts it again but `start_process`. Returns its exit code."""
        with self._lock:
            self._resting.add(name)
        process = self._processes[name]
        process.send_signal(signal.SIGTERM)
        return process.wait(timeout_s)

    def pids(self, title: str) -> list[int]:
        """Processes below Ray whose title begins so."""
        return sorted(pid for pid, name in self.names_below("ray").items() if name.startswith(title))

    def names_below(self, name: str) -> Mapping[int, str]:
        """Titles of the living processes below one."""
        found: dict[int, str] = {}
        for pid in descendants(self._processes[name].pid):
            with suppress(OSError):
                title = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                if title:  # a zombie has none
                    found[pid] = title
        return found

    def log(self, name: str) -> str:
        """All that a process has said."""
        return (self.folder / "logs" / f"{name}.log").read_text(errors="replace")

    def logs(self) -> str:
        """The last lines of each log, for a test that failed."""
        parts = []
        for path in sorted((self.folder / "logs").iterdir()):
            lines = path.read_text(errors="replace").splitlines()
            parts.append(f"--- {path.name}\n" + "\n".join(lines[-15:]))
        return "\n".join(parts)

    def _keep(self) -> None:
        while not self._stopping.wait(_POLL_S):
            with self._lock:
                for name, process in list(self._processes.items()):
                    if process.poll() is not None and name not in self._resting and not self._stopping.is_set():
                        self.num_restarts += 1
                        kill_with_descendants(process)
                        self.start_process(name)

    # Storage

    def exchange_artifacts(self) -> None:
        """Puts a file where the folder of artifacts is, or the folder back: atomically, so nothing lands in between."""
        blocker = self.folder / "blocker"
        if not blocker.exists():
            blocker.write_text("a file where a folder should be")
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.renameat2(-100, os.fsencode(self.folder / "artifacts"), -100, os.fsencode(blocker), _EXCHANGE) != 0:
            raise OSError(ctypes.get_errno(), "renameat2")

    def num_finished(self) -> int:
        """Jobs that succeeded so far; -1 while the store does not answer."""
        try:
            return self.store.ledger.counter("finished/succeeded")
        except UnavailableError:
            return -1


def wait_until(condition: Callable[[], bool], timeout_s: float) -> float:
    """Waits, and returns for how long."""
    start_s = time.monotonic()
    while True:
        with suppress(UnavailableError):
            if condition():
                return time.monotonic() - start_s
        if time.monotonic() - start_s > timeout_s:
            raise TimeoutError(f"not within {timeout_s:g} s")
        time.sleep(_POLL_S)
