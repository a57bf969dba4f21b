"""A whole service of real processes on this machine, each of which can be killed, with what keeps it up as it would be
in production: processes that end are started again."""

import ctypes
import os
import shutil
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from reference.kept import KeptProcesses, wait_until
from reference.ports import free_ports
from reference.processes import WORKER, environment_without_ray
from reference.redis_server import RedisServer

from common.errors import MetaSearchError, UnavailableError
from coordinator.api.auth import create_token
from coordinator.api.client import SearchClient
from coordinator.settings import ServiceSettings, open_ledger
from coordinator.store.jobs import JobStore

BIN = Path(sys.executable).parent
NUM_WORKERS = 2
TENANT = "lab"
_EXCHANGE = 2


class Deployment(KeptProcesses):
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
        super().__init__(
            self.folder / "logs", environment_without_ray() | {"RAY_AUTH_MODE": "disabled", **(ray_environment or {})}
        )
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

    def start(self, timeout_s: float = 90.0) -> None:
        """Starts everything; returns once a coordinator is in charge and gateways answer."""
        for name in ("ray", "gateway-a", "gateway-b"):
            self.start_process(name)
        self.keep()
        wait_until(lambda: any("raylet" in name for name in self.names_below("ray").values()), timeout_s)
        self.start_process("supervisor")
        wait_until(lambda: self.store.epoch() > 0 and len(self.pids(WORKER)) == NUM_WORKERS, timeout_s)
        for port in self.gateway_ports:
            wait_until(lambda port=port: self.answers(port), timeout_s)  # type: ignore[misc]

    def close(self) -> None:
        """Ends everything that was started here, and nothing else."""
        super().close()
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

    def kill_cluster(self) -> None:
        """All of Ray is lost at once, and a new cluster comes up."""
        self.kill_all_of("ray")

    def pids(self, titles: tuple[str, ...]) -> list[int]:
        """Processes below Ray whose title begins with one of these."""
        return sorted(pid for pid, name in self.names_below("ray").items() if name.startswith(titles))

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
