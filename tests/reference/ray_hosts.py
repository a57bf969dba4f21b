"""A Ray cluster of several nodes on this machine, each a process of `ray start --block`, as in a container; and the
service's supervisor on it. Nodes can be drained, told to end, or killed."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ray
from ray.core.generated import autoscaler_pb2
from reference.processes import METASEARCH, descendants, environment_without_ray, kill_with_descendants

from coordinator.cluster import NAMESPACE
from coordinator.jobs import Job, JobSpec
from coordinator.settings import ServiceSettings, open_ledger
from coordinator.store.jobs import JobStore
from coordinator.store.records import Quota, Study

RAY = str(Path(sys.executable).parent / "ray")
PATIENCE = {"RAY_health_check_timeout_ms": "30000"}  # a busy machine is slow to answer
START_S = 600.0
_FREE_PORTS = ("dashboard-agent-listen", "dashboard-agent-grpc", "runtime-env-agent", "metrics-export")
_POLL_S = 0.1


class RayHosts:
    """The cluster, and this process as its driver.

    Args:
        head: further arguments of the head's `ray start`; it has no CPUs for workers, unless these give it some.
        environment: further variables of the nodes.
    """

    def __init__(self, head: tuple[str, ...] = (), environment: Mapping[str, str] | None = None) -> None:
        # Short: Ray puts sockets there, whose paths are limited to 107 bytes.
        self.folder = Path(tempfile.mkdtemp(prefix="elastic-", dir="/tmp"))
        self._environment = {**environment_without_ray(), **PATIENCE, "RAY_AUTH_MODE": "disabled"}
        self._node_environment = {**self._environment, **(environment or {})}
        self._processes: list[subprocess.Popen[bytes]] = []
        self.port = free_port()
        self.address = f"{ray.util.get_node_ip_address()}:{self.port}"
        self._head = head

    def __enter__(self) -> "RayHosts":
        try:
            ports = (
                f"--port={self.port}",
                *(f"--{name}-port={free_port()}" for name in ("dashboard", "ray-client-server")),
            )
            folder = f"--temp-dir={self.folder / 'ray'}"
            arguments = ("--head", "--include-dashboard=false", folder, *ports, *self._head)
            self._start_node("head", 0, self._is_connected, *arguments)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        ray.shutdown()
        for process in reversed(self._processes):
            kill_with_descendants(process)
            process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def add_node(self, num_cpus: int = 1) -> "Host":
        """Another node; returns once it has joined."""
        known = self.alive()
        name, address = f"node-{len(self._processes)}", f"--address={self.address}"
        process = self._start_node(name, num_cpus, lambda: bool(self.alive() - known), address)
        (node_id,) = self.alive() - known
        return Host(process, node_id)

    def alive(self) -> set[str]:
        """Ids of the nodes that live."""
        return {node["NodeID"] for node in ray.nodes() if node["Alive"]}

    def stop_processes(self, marks: Sequence[str]) -> None:
        """SIGSTOP, for good, to all of its processes whose command line has one of these in it."""
        for process in self._processes:
            for pid in descendants(process.pid):
                if any(mark in _title(pid) for mark in marks):
                    os.kill(pid, signal.SIGSTOP)

    def start_supervisor(self, settings: ServiceSettings, *arguments: str) -> None:
        """`metasearch coordinate` on the head."""
        file = self.folder / "settings.json"
        file.write_text(settings.model_dump_json())
        command = [METASEARCH, "coordinate", "--settings", str(file), "--address", self.address, *arguments]
        self._start("supervisor", command, self._environment)

    def logs(self) -> str:
        """The last lines of each log, for a test that failed."""
        parts = []
        for path in sorted(self.folder.glob("*.log")):
            parts.append(f"--- {path.name}\n" + "\n".join(path.read_text(errors="replace").splitlines()[-15:]))
        return "\n".join(parts)

    def _start_node(
        self, name: str, num_cpus: int, is_up: Callable[[], bool], *arguments: str
    ) -> subprocess.Popen[bytes]:
        ports = [f"--{port}-port=0" for port in (*_FREE_PORTS, "node-manager", "object-manager")]
        sizes = [f"--num-cpus={num_cpus}", "--num-gpus=0", "--object-store-memory=100000000"]
        workers = ["--min-worker-port=0", "--max-worker-port=0"]
        command = [RAY, "start", "--block", "--disable-usage-stats", *sizes, *ports, *workers, *arguments]
        deadline_s = time.monotonic() + START_S
        while time.monotonic() < deadline_s:
            process = self._start(name, command, self._node_environment)
            # On a busy machine Ray gives up on its own processes after 30 s: then once more.
            until(lambda: process.poll() is not None or is_up(), START_S)  # noqa: B023 it is called here
            if process.poll() is None:
                return process
            kill_with_descendants(process)
        raise TimeoutError(f"{name} did not come up; its log:\n{self.logs()}")

    def _start(self, name: str, command: list[str], environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
        with (self.folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, env=environment
            )
        self._processes.append(process)
        return process

    def _is_connected(self) -> bool:
        try:
            ray.init(self.address, namespace=NAMESPACE, log_to_driver=False, logging_level="ERROR")
        except (ConnectionError, RuntimeError):  # it is not up yet
            ray.shutdown()
            return False
        return True


class Host:
    """A node, and the process of `ray start` that holds it."""

    def __init__(self, process: subprocess.Popen[bytes], node_id: str) -> None:
        self.process = process
        self.node_id = node_id

    def tell_to_end(self) -> None:
        """SIGTERM to `ray start --block`, as a container runtime sends it: Ray drains the node first."""
        self.process.send_signal(signal.SIGTERM)

    def drain(self, within_s: float) -> None:
        """As a notice of preemption does; it stays until something ends it."""
        deadline_ms = int((time.time() + within_s) * 1000)
        reason = autoscaler_pb2.DrainNodeReason.DRAIN_NODE_REASON_PREEMPTION
        client = ray._raylet.GcsClient(address=ray.get_runtime_context().gcs_address)
        accepted, why_not = client.drain_node(self.node_id, reason, "preemption", deadline_ms)
        assert accepted, why_not

    def end(self) -> None:
        """Ends whatever is left of it."""
        kill_with_descendants(self.process)
        self.process.wait()

    def stop_raylet(self, number: signal.Signals) -> None:
        """SIGTERM is what `ray stop` does, without any drain."""
        (raylet,) = [pid for pid in descendants(self.process.pid) if _title(pid).split(" ")[0].endswith("/raylet")]
        os.kill(raylet, number)


class Jobs:
    """The job store, as a gateway uses it."""

    def __init__(self, folder: Path, config: dict[str, Any]) -> None:
        self.settings = ServiceSettings(
            store=f"sqlite:{folder / 'jobs.sqlite'}", artifacts=str(folder / "artifacts"), back_off_s=0.2
        )
        self.store = JobStore(open_ledger(self.settings.store))
        self.store.create_study(Study(tenant="lab", study="digits", config=config, created_s=time.time()))
        self._num_jobs = 0

    def submit(self, spec: JobSpec, **fields: Any) -> Job:
        self._num_jobs += 1
        job = Job(
            tenant="lab", study="digits", job_id=f"{self._num_jobs:04d}", spec=spec, created_s=time.time(), **fields
        )
        return self.store.create_job(job, None, Quota())

    def look(self, job: Job) -> Job:
        """As it is now."""
        return self.store.get_job(job.tenant, job.study, job.job_id).job

    def num_workers(self) -> int:
        """That run, as the coordinator's last beat says."""
        return int(self.store.last_beat()[1].get("workers", 0))


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as found:
        found.bind(("", 0))
        return int(found.getsockname()[1])


def until(condition: Callable[[], object], timeout_s: float) -> float:
    """Waits, and returns for how long."""
    start_s = time.monotonic()
    while not condition():
        if time.monotonic() - start_s > timeout_s:
            raise TimeoutError(f"not within {timeout_s:g} s")
        time.sleep(_POLL_S)
    return time.monotonic() - start_s


def autoscaling_config(address: str, resources: Mapping[str, float], most: int, idle_s: float, is_v2: bool) -> str:
    """What `ray start --autoscaling-config` takes for Ray's fake provider, whose nodes are processes of this machine.

    Args:
        address: of the head.
        resources: of each node that it adds.
        most: nodes beside the head.
        idle_s: after which an idle one is removed.
        is_v2: for the second generation of the autoscaler.
    """
    provider: dict[str, Any] = {
        "type": "external",  # by name it wants a file that Ray's wheels do not have
        "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
        "gcs_address": address,
        "use_node_id_as_ip": True,
        "disable_node_updaters": True,
        "disable_launch_config_check": True,
    }
    if is_v2:
        provider |= {"launch_multiple": True, "head_node_id": FAKE_HEAD}
    commands = ("initialization", "setup", "head_setup", "worker_setup", "head_start_ray", "worker_start_ray")
    return json.dumps(
        {
            "cluster_name": "elastic",
            "max_workers": most,
            "provider": provider,
            "available_node_types": {
                "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
                "worker": {"resources": dict(resources), "node_config": {}, "min_workers": 0, "max_workers": most},
            },
            "head_node_type": "ray.head.default",
            "upscaling_speed": 20.0,
            "idle_timeout_minutes": idle_s / 60,
            "auth": {},
            "docker": {},
            "file_mounts": {},
            "cluster_synced_files": [],
            "file_mounts_sync_continuously": False,
            "rsync_exclude": [],
            "rsync_filter": [],
            **{f"{name}_commands": [] for name in commands},
        }
    )


FAKE_HEAD = "fffffffffffffffffffffffffffffffffffffffffffffffffff00000"


def _title(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""
