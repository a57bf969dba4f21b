"""The containers of docker-compose.yml as processes of this machine: its commands, on other paths and ports."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from reference.compose import ROOT, SECRETS, SETTINGS, Service, services
from reference.ports import free_ports
from reference.processes import environment_without_ray, kill_with_descendants

BIN = Path(sys.executable).parent
OBJECT_STORE_BYTES = 200_000_000
LOOPBACK = "127.0.0.1"
REDIS_CONF = "/etc/redis/redis.conf"
ORDER = ("redis", "ray-head", "ray-worker", "coordinator", "gateway")
"""As `depends_on` has it."""
_POLL_S = 0.1
_ASK_S = 2.0  # a health check is a process, which takes from the start that it asks about


class Containers:
    """All that make up the service, each of which can be ended and started.

    Args:
        programs: folders where a service's programs are, for those that have others than this environment's.
    """

    def __init__(self, programs: Mapping[str, Path]) -> None:
        # Short: Ray puts sockets there, whose paths are limited to 107 bytes.
        self.folder = Path(tempfile.mkdtemp(prefix="compose-", dir="/tmp"))
        self.services: Mapping[str, Service] = {
            name: services({"RAY_OBJECT_STORE_BYTES": str(OBJECT_STORE_BYTES)})[name] for name in ORDER
        }
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self._programs = programs
        names = ["redis", "gcs", "client", "dashboard", "gateway", "gateway-metrics"]
        names += [
            f"{kind}/{node}" for kind in ("agent", "metrics") for node in ("ray-head", "ray-worker", "coordinator")
        ]
        self.ports = dict(zip(names, free_ports(len(names)), strict=True))
        for name in ("artifacts", "gateway", "redis", "logs"):
            (self.folder / name).mkdir()
        subprocess.run(
            [ROOT / "deploy" / "make-secrets"], env=os.environ | {"SECRETS": str(self.folder / "secrets")}, check=True
        )
        self._copy(self.folder / "secrets" / "store_url", self.folder / "secrets" / "store_url")
        self._copy(ROOT / self.services["gateway"].mounts[SETTINGS], self.folder / "service.toml")
        redis_conf = self._copy(ROOT / self.services["redis"].mounts[REDIS_CONF], self.folder / "redis.conf")
        redis_conf.write_text(redis_conf.read_text() + f"port {self.ports['redis']}\nbind {LOOPBACK}\n")

    @property
    def address(self) -> str:
        """Of the gateway."""
        return f"{LOOPBACK}:{self.ports['gateway']}"

    def secret(self, name: str) -> bytes:
        """What a secret holds."""
        return (self.folder / "secrets" / name).read_bytes()

    def command(self, name: str) -> list[str]:
        """What a container runs, here."""
        words = [self._here(name, word) for word in self.services[name].command]
        if "start" in words or "with-ray-node" in words:
            more = [f"--node-ip-address={LOOPBACK}"]
            if name == "ray-head":
                more += [f"--temp-dir={self.folder / 'ray'}", f"--ray-client-server-port={self.ports['client']}"]
            if name == "ray-worker":
                more.append("--num-cpus=1")
            at = words.index("--") if "--" in words else len(words)
            words[at:at] = more
        return words

    def health_command(self, name: str) -> list[str]:
        """What says whether a container is well, here."""
        words = [self._here(name, word) for word in self.services[name].health_command]
        if name == "redis":
            words[-1] = words[-1].replace("redis-cli", f"redis-cli -p {self.ports['redis']}")
        elif name == "gateway":
            words.append(f"--server={self.address}")
        elif name.startswith("ray-"):
            words.append(f"--raylet=http://{LOOPBACK}:{self.ports[f'agent/{name}']}/api/local_raylet_healthz")
            if "--head" in words:
                words.append(f"--gcs=http://{LOOPBACK}:{self.ports['dashboard']}/api/gcs_healthz")
        return words

    def environment(self, name: str) -> dict[str, str]:
        """The variables of a container, beside those of this machine."""
        here = {key: value for key, value in environment_without_ray().items() if not key.startswith("METASEARCH_SE")}
        own = {key: self._here(name, value) for key, value in self.services[name].environment.items()}
        folders = [str(self._programs.get(name, BIN)), str(ROOT / "deploy"), here["PATH"]]
        here |= {"METASEARCH_CACHE": os.environ["METASEARCH_CACHE"], "PATH": ":".join(folders)}
        if name in self._programs:
            here.pop("PYTHONPATH", None)  # it has the package installed
        else:
            here["PYTHONPATH"] = str(ROOT)
        return here | own

    def run(self, name: str, *words: str) -> str:
        """Another command in a container's place; returns what it printed."""
        done = subprocess.run(
            words, env=self.environment(name), cwd=self.folder, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def start(self, name: str) -> None:
        """Starts a container's process."""
        assert name not in self.processes or self.processes[name].poll() is not None, f"{name} runs"
        with (self.folder / "logs" / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                self.command(name),
                cwd=self.folder,
                env=self.environment(name),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def start_all(self, timeout_s: float) -> None:
        """Starts all, each once those that it depends on are well, and waits until all are."""
        for name in ORDER:
            self.start(name)
            self.wait_until_well(name, timeout_s)

    def health(self, name: str) -> int:
        """The exit status of a container's health check."""
        limit_s = 60.0  # longer than the container's own limit: this machine may be busy
        with (self.folder / "logs" / f"{name}.health.log").open("ab") as log:
            return subprocess.run(
                self.health_command(name), env=self.environment(name), stdout=log, stderr=log, timeout=limit_s
            ).returncode

    def wait_until_well(self, name: str, timeout_s: float) -> None:
        """Until the health check passes; one that ends is started again, as its restart policy says."""

        def is_well() -> bool:
            if self.processes[name].poll() is not None:
                assert self.services[name].tree["restart"] == "unless-stopped"
                self.start(name)
            return self.health(name) == 0

        self.wait(is_well, f"{name} to be well", timeout_s, _ASK_S)

    def wait(self, condition: Callable[[], bool], what: str, timeout_s: float, every_s: float = _POLL_S) -> None:
        """Waits for a condition; shows the logs where it does not come."""
        until_s = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < until_s, f"waited {timeout_s:g} s for {what}\n{self.logs()}"
            time.sleep(every_s)

    def stop(self, name: str) -> int:
        """SIGTERM, and the exit status; `TimeoutExpired` when the container's grace period was not enough."""
        process = self.processes[name]
        process.send_signal(signal.SIGTERM)
        return process.wait(self.services[name].grace_s)

    def log(self, name: str, num_lines: int = 15) -> str:
        """The last lines of a log."""
        text = (self.folder / "logs" / f"{name}.log").read_text(errors="replace")
        return "\n".join(text.splitlines()[-num_lines:])

    def logs(self) -> str:
        """The last lines of all logs, for a test that failed."""
        return "\n".join(f"--- {path.stem}\n{self.log(path.stem)}" for path in sorted((self.folder / "logs").iterdir()))

    def close(self) -> None:
        """Ends what was started here, and nothing else."""
        for process in self.processes.values():
            kill_with_descendants(process)
            process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _copy(self, source: Path, target: Path) -> Path:
        target.write_text(self._here("", source.read_text()))
        return target

    def _here(self, name: str, text: str) -> str:
        """What a text of a container is on this machine."""
        changes = {
            SECRETS: f"{self.folder}/secrets/",
            SETTINGS: str(self.folder / "service.toml"),
            REDIS_CONF: str(self.folder / "redis.conf"),
            "dir /data": f"dir {self.folder}/redis",
            "/var/lib/metasearch": str(self.folder / "gateway"),
            "redis:6379": f"{LOOPBACK}:{self.ports['redis']}",
            "ray-head:6379": f"{LOOPBACK}:{self.ports['gcs']}",
            "0.0.0.0:7171": self.address,
            "0.0.0.0:9464": f"{LOOPBACK}:{self.ports['gateway-metrics']}",
            "--port=6379": f"--port={self.ports['gcs']}",
            "--dashboard-host=0.0.0.0": f"--dashboard-host={LOOPBACK}",
            "--dashboard-port=8265": f"--dashboard-port={self.ports['dashboard']}",
        }
        if f"agent/{name}" in self.ports:
            changes["--dashboard-agent-listen-port=52365"] = (
                f"--dashboard-agent-listen-port={self.ports[f'agent/{name}']}"
            )
            changes["--metrics-export-port=8080"] = f"--metrics-export-port={self.ports[f'metrics/{name}']}"
        if text == "/artifacts":
            return str(self.folder / "artifacts")
        for there, here in changes.items():
            text = text.replace(there, here)
        return text
