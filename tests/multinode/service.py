"""The service on hosts of their own: a Ray head without workloads, two GPU hosts; one for the gateway, store, clients.

Logical GPUs: Ray counts them, and the workers compute on the processor.
"""

import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from multinode.hosts import Network
from reference.kept import KeptProcesses, wait_until
from reference.processes import WORKER, environment_without_ray

from common.errors import MetaSearchError, UnavailableError
from coordinator.api.auth import create_token
from coordinator.api.client import SearchClient
from coordinator.settings import ServiceSettings, open_ledger
from coordinator.store.jobs import JobStore
from workers.data.cache import CACHE_VARIABLE

BIN = Path(sys.executable).parent
TENANT = "lab"
HEAD, GATEWAY, STORE, CLIENT = "head", "gateway", "store", "client"
GPU_HOSTS = ("gpu-a", "gpu-b")
HOSTS = (HEAD, *GPU_HOSTS, GATEWAY, STORE, CLIENT)
RAYLET = "raylet/raylet"
DETECTION = {
    "RAY_health_check_initial_delay_ms": "2000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "3000",
    "RAY_health_check_failure_threshold": "4",
}
"""How soon Ray takes a silent host for lost."""
_HEAD_IS_MISSED_S = {False: 20, True: 120}
"""How long hosts wait for a head: one that comes back is a new cluster, or, where its state survives, the same."""
_RAY_PORT, _REDIS_PORT, _GATEWAY_PORT = 6379, 6379, 7171
_STARTS_WITHIN_S = 600.0


class HostedService(KeptProcesses):
    """Its processes, each on its host, started again when they end. Files are shared, as on a network file system.

    Args:
        network: has all hosts above.
        head_survives: keep Ray's cluster state in Redis, so that a head that comes back is the same cluster.
    """

    def __init__(self, network: Network, head_survives: bool = False) -> None:
        self.network, self.hosts = network, network.hosts
        shared = network.folder / "shared"
        for name in ("redis", "artifacts", "logs"):
            (shared / name).mkdir(parents=True)
        (shared / "ray-token").write_text("0123456789abcdef" * 4)
        environment = environment_without_ray() | {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(shared / "ray-token"),
            CACHE_VARIABLE: "/tmp/ray/images",  # every host has its own
            **DETECTION,
            "RAY_agent_register_timeout_ms": "60000",  # all start on one machine
            "RAY_gcs_rpc_server_reconnect_timeout_s": str(_HEAD_IS_MISSED_S[head_survives]),
        }
        redis_address = f"{self.hosts[STORE].address}:{_REDIS_PORT}"
        if head_survives:
            environment["RAY_REDIS_ADDRESS"] = redis_address
        super().__init__(shared / "logs", environment, back_off_s=1.0)
        self.settings = ServiceSettings(
            store=f"redis://{redis_address}/1",
            artifacts=str(shared / "artifacts"),
            tokens=shared / "tokens.toml",
            listen=f"{self.hosts[GATEWAY].address}:{_GATEWAY_PORT}",
            insecure=True,  # the network is ours alone
            back_off_s=0.2,
        )
        self.token = create_token(self.settings.tokens, TENANT, "admin", "hosts")
        self._file = shared / "settings.json"
        self._file.write_text(self.settings.model_dump_json())
        self._redis_folder = shared / "redis"
        self.ray_address = f"{self.hosts[HEAD].address}:{_RAY_PORT}"

    def start(self) -> None:
        """Starts everything; returns once the gateway answers and a worker runs on each GPU host."""
        self._start(STORE, "redis", self._redis_command())
        alone = ("--head", f"--port={_RAY_PORT}", "--include-dashboard=false", "--num-cpus=0", "--num-gpus=0")
        self._start(HEAD, "ray-head", self._ray_command(HEAD, *alone))
        metasearch = (sys.executable, "-m", "coordinator.cli")
        self._start(GATEWAY, "gateway", (*metasearch, "serve", "--settings", str(self._file)))
        self.keep()
        self.store = wait_for_store(self.settings.store)
        self._wait_for_ray("ray-head")
        for name in GPU_HOSTS:  # one after the other: Ray gives up on processes that take long to start
            join = self._ray_command(name, f"--address={self.ray_address}", "--num-cpus=1", "--num-gpus=1")
            self._start(name, f"ray-{name}", join)
            self._wait_for_ray(f"ray-{name}")
        options = ("--gpus-per-worker", "1", "--task-timeout-s", "25", "--drain")
        coordinate = (*metasearch, "coordinate", "--settings", str(self._file), "--address", self.ray_address, *options)
        self._start(HEAD, "supervisor", coordinate)
        wait_until(self.is_whole, _STARTS_WITHIN_S)
        wait_until(self.answers, _STARTS_WITHIN_S)

    def is_whole(self) -> bool:
        """Whether a coordinator is in charge that has a worker on each GPU host."""
        _, beat = self.store.last_beat()
        is_fresh = beat.get("epoch") == self.store.epoch()
        return is_fresh and beat.get("workers") == len(GPU_HOSTS) and self._all_work()

    def _all_work(self) -> bool:
        """Whether each GPU host has a worker's process, idle or at a call."""
        titles = {name: self.hosts[name].processes().values() for name in GPU_HOSTS}
        return all(any(title.startswith(WORKER) for title in found) for found in titles.values())

    def coordinator_host(self) -> str:
        """Where the coordinator in charge is."""
        (stored,) = self.store.ledger.get("epoch")
        return "" if stored is None else str(stored.record["holder"]).split("/")[0]

    def kill_raylet(self, name: str) -> None:
        """SIGKILL to what makes a host part of the cluster; its processes end with it."""
        for pid in self.hosts[name].pids(RAYLET):
            os.kill(pid, signal.SIGKILL)

    def kill_head(self) -> None:
        """SIGKILL to all of Ray on the head; the supervisor there lives on."""
        for pid, title in self.hosts[HEAD].processes().items():
            if "coordinator.cli" not in title:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    def client(self, patience_s: float = 150.0) -> SearchClient:
        """A client of the gateway."""
        return SearchClient(self.settings.listen, self.token, patience_s=patience_s)

    def answers(self) -> bool:
        """Whether the gateway serves."""
        try:
            with SearchClient(self.settings.listen, self.token, timeout_s=2.0, patience_s=0.0) as client:
                list(client.list_studies())
        except MetaSearchError:
            return False
        return True

    def num_finished(self) -> int:
        """Jobs that succeeded so far; -1 while the store does not answer."""
        try:
            return self.store.ledger.counter("finished/succeeded")
        except UnavailableError:
            return -1

    def close(self) -> None:
        """Ends all processes."""
        super().close()
        if hasattr(self, "store"):
            self.store.ledger.close()

    def _start(self, host: str, name: str, command: Sequence[str]) -> None:
        self.start_process(name, self.hosts[host].command(*command))

    def _wait_for_ray(self, name: str) -> None:
        log = self.network.folder / "shared" / "logs" / f"{name}.log"
        wait_until(lambda: "Ray runtime started" in log.read_text(), _STARTS_WITHIN_S)

    def _ray_command(self, host: str, *options: str) -> list[str]:
        return [
            *(str(BIN / "ray"), "start", "--block", "--disable-usage-stats"),
            *(f"--node-ip-address={self.hosts[host].address}", "--object-store-memory=200000000", *options),
        ]

    def _redis_command(self) -> list[str]:
        return [
            *(
                "redis-server",
                "--bind",
                self.hosts[STORE].address,
                "--port",
                str(_REDIS_PORT),
                "--protected-mode",
                "no",
            ),
            *("--dir", str(self._redis_folder), "--appendonly", "yes", "--appendfsync", "always", "--save", ""),
        ]


def wait_for_store(url: str) -> JobStore:
    """The job store, as soon as it answers."""
    found: list[JobStore] = []

    def answers() -> bool:
        found.append(JobStore(open_ledger(url)))
        return True

    wait_until(answers, _STARTS_WITHIN_S)
    return found[0]
