"""Runs what pods of deploy/kubernetes run, as processes of this machine, and as confined as there: user 1000, without
privileges, with nothing to write to but volumes. Addresses and folders differ, and the test does what operators do."""

import os
import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from reference.kept import wait_until
from reference.manifests import rendered
from reference.pods import Pod, pods
from reference.ports import free_ports
from reference.processes import descendants, environment_without_ray, kill_with_descendants
from reference.redis_server import RedisServer

from coordinator.api.auth import create_token
from coordinator.settings import open_ledger
from coordinator.store.jobs import JobStore
from workers.data.cache import CACHE_VARIABLE

_BIN = Path(sys.executable).parent
_TOKEN = "0123456789abcdef" * 4
# Binds what is written to, makes the rest read-only, and is then user 1000. Python may be in the home of root.
_CONFINE = """
set -e
tmp=$1 shared=$2 python=$3 kept=$4; shift 4
if [[ $python == /root/* ]]; then
    mount --bind "$python" "$kept"
    mount --types tmpfs --options mode=755 tmpfs /root
    mkdir --parents "$python"
    mount --bind "$kept" "$python"
fi
mount --bind "$shared" "$shared"
mount --bind "$tmp" /tmp
mount -o remount,bind,ro /
exec setpriv --reuid=1000 --regid=1000 --clear-groups --no-new-privs --bounding-set=-all -- "$@"
"""


class PodProcesses:
    """The pods of a cluster as processes, each with a folder of its own for /tmp; they mount `shared` together.

    Args:
        folder: for everything; short, as Ray puts sockets there, and not below /tmp, which pods have to themselves.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.shared = folder / "shared"
        self.objects = rendered("base")
        self.templates = pods(self.objects)
        for name in ("redis", "python"):
            (folder / name).mkdir()
        self.redis = RedisServer(folder / "redis", "always")
        self.store = JobStore(open_ledger(self.redis.url))
        names = ("grpc", "health", "gcs", "client", "dashboard", *(f"{kind}{i}" for kind in "mlga" for i in range(2)))
        self.port = dict(zip(names, free_ports(len(names)), strict=True))
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._make_volumes()

    def _make_volumes(self) -> None:
        for name in ("artifacts", "cache", "tokens", "tls"):
            (self.shared / name).mkdir(parents=True)
        # What create-secrets.sh is given.
        self.certificate = self.shared / "tls" / "tls.crt"
        command = (
            "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 1 -subj /CN=localhost"
        )
        names = ["-addext", "subjectAltName=IP:127.0.0.1"]
        files = ["-keyout", str(self.shared / "tls" / "tls.key"), "-out", str(self.certificate)]
        subprocess.run([*command.split(), *names, *files], check=True, capture_output=True)
        self.token = create_token(self.shared / "tokens" / "tokens.toml", "lab", "admin", "")
        data = next(each["data"] for each in self.objects if "service.toml" in each.get("data", {}))
        text = data["service.toml"].replace("/var/lib/metasearch/", f"{self.shared}/")
        text = text.replace("/etc/metasearch/", f"{self.shared}/").replace(
            "0.0.0.0:7171", f"127.0.0.1:{self.port['grpc']}"
        )
        (self.shared / "service.toml").write_text(text.replace("0.0.0.0:7172", f"127.0.0.1:{self.port['health']}"))
        for path in (self.shared, *self.shared.rglob("*")):
            os.chown(path, 1000, 1000)

    def start(self, name: str, command: Sequence[str], pod: Pod) -> None:
        """Runs a pod's main process."""
        self._running[name] = self._confined(name, command, pod)

    def run(self, name: str, command: Sequence[str], timeout_s: float) -> int:
        """Runs something in a pod of Ray that is there, to its end."""
        return self._confined(name, command, self.templates[name]).wait(timeout_s)

    def _confined(self, name: str, command: Sequence[str], pod: Pod) -> subprocess.Popen[bytes]:
        name = name.replace("/", "-")
        tmp = self.folder / name
        tmp.mkdir(exist_ok=True)
        os.chown(tmp, 1000, 1000)
        environment = environment_without_ray() | self._environment(pod)
        folders = [tmp, self.shared, sys.base_prefix, self.folder / "python"]
        with (self.folder / f"{name}.log").open("ab") as log:
            return subprocess.Popen(
                ["unshare", "--mount", "--propagation", "private", "bash", "-c", _CONFINE, "_", *folders, *command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env=environment,
            )

    def _environment(self, pod: Pod) -> Mapping[str, str]:
        found = {name: value for name, value in pod.environment.items() if isinstance(value, str)}
        found |= {
            "HOME": "/home/ray",
            "PATH": f"{_BIN}:{os.environ['PATH']}",
            "METASEARCH_SERVICE_STORE": self.redis.url,
        }
        # What the operator adds to the pods of a cluster with a token.
        found |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": _TOKEN, "RAY_ADDRESS": f"127.0.0.1:{self.port['gcs']}"}
        found.pop("METASEARCH_SERVICE_METRICS_LISTEN", None)  # its port may be taken here
        return found | ({CACHE_VARIABLE: str(self.shared / "cache")} if CACHE_VARIABLE in found else {})

    def start_metasearch(self, name: str) -> None:
        """The gateway, or the supervisor."""
        pod = self.templates[name]
        arguments = [argument.replace("/etc/metasearch", str(self.shared)) for argument in pod.main["args"]]
        arguments = [re.sub("ray://.*", f"ray://127.0.0.1:{self.port['client']}", each) for each in arguments]
        self.start(name, [*pod.main["command"], *arguments], pod)

    def start_ray(self, name: str, number: int) -> None:
        """A node of Ray; the ports that all have in common are another for each."""
        pod = self.templates[name]
        spec = pod.owner["spec"]
        group = spec["headGroupSpec"] if name == "ray-head" else spec["workerGroupSpecs"][0]
        own = {"client": "ray-client-server-port", "dashboard": "dashboard-port", "gcs": "port"}
        changes = {option: str(self.port[port]) for port, option in own.items()} if name == "ray-head" else {}
        changes |= {"metrics-export-port": str(self.port[f"m{number}"]), "min-worker-port": "0", "max-worker-port": "0"}
        changes |= {"dashboard-agent-listen-port": str(self.port[f"l{number}"])}
        changes |= {"dashboard-agent-grpc-port": str(self.port[f"g{number}"])}
        changes |= {"runtime-env-agent-port": str(self.port[f"a{number}"]), "object-store-memory": "100000000"}
        # Of the dashboard the agents alone, which answer probes: it takes as long to start as all the rest.
        light = {"dashboard-host": "127.0.0.1", "include-dashboard": "false"}
        changes |= light if name == "ray-head" else {"num-cpus": "1"}
        parameters = group["rayStartParams"] | changes
        kind = ["--head"] if name == "ray-head" else [f"--address=127.0.0.1:{self.port['gcs']}"]
        options = [f"--{option}" if value == "true" else f"--{option}={value}" for option, value in parameters.items()]
        self.start(name, ["ray", "start", *kind, "--block", "--node-ip-address=127.0.0.1", *options], pod)

    def start_cluster(self) -> None:
        """A head, then a pod of workers. On a busy machine Ray may give up, and is started again."""
        for name, number in (("ray-head", 0), ("ray-worker/cpu", 1)):
            self.start_ray(name, number)
            wait_until(lambda name=name, number=number: self._is_up(name, number), 600)  # type: ignore[misc]

    def _is_up(self, name: str, number: int) -> bool:
        if self.ended(name):
            self.start_ray(name, number)
        return self.is_well(number)

    def is_well(self, number: int) -> bool:
        """What the kubelet asks."""
        path = self.templates["ray-head"].main["readinessProbe"]["httpGet"]["path"]
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port[f'l{number}']}{path}", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def node_id(self, name: str) -> str:
        """Of the Ray node in a pod."""
        for pid in descendants(self._running[name].pid):
            with suppress(OSError):
                for argument in Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0"):
                    if argument.startswith("--node_id="):
                        return argument.partition("=")[2]
        raise AssertionError(f"{name} has no raylet\n{self.logs()}")

    def keep(self, name: str) -> None:
        """Starts the gateway or the supervisor again, if it has ended, as a kubelet does."""
        if self._running[name].poll() is not None:
            self.start_metasearch(name)

    def has(self, name: str, titles: tuple[str, ...]) -> bool:
        """Whether a process runs in a pod whose title begins with one of these."""
        for pid in descendants(self._running[name].pid):
            with suppress(OSError):
                if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(tuple(map(str.encode, titles))):
                    return True
        return False

    def end(self, name: str, timeout_s: float) -> int:
        """SIGTERM, as a kubelet does it; the exit status."""
        process = self._running[name]
        process.send_signal(signal.SIGTERM)
        return process.wait(timeout_s)

    def ended(self, name: str) -> bool:
        return self._running[name].poll() is not None

    def kill(self, name: str) -> None:
        """The node is gone, with all that was on it."""
        kill_with_descendants(self._running[name])
        self._running[name].wait()

    def close(self) -> None:
        for process in self._running.values():
            kill_with_descendants(process)
            process.wait()
        self.store.ledger.close()
        self.redis.stop()

    def logs(self) -> str:
        return "\n".join(
            f"--- {log.name}\n{log.read_text(errors='replace')[-1500:]}" for log in self.folder.glob("*.log")
        )
