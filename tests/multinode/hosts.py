"""Hosts of their own on this machine: each a set of namespaces with its own network, processes, name and Ray folder.

They are cabled to a switch that is a namespace too, so nothing changes in the machine's own network. Nothing has a name
that could clash, and nothing stays: a host's first process ends with the process that made it, however that ended, and
Linux then kills all others of the host and removes its interfaces.
"""

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import pytest

SUBNET = "10.97.0"
_FOLDERS = "hosts-"
_BRIDGE = "br0"
_CLONE_NEWNET = 0x4000_0000
_PR_SET_PDEATHSIG = 1
_READY_WITHIN_S = 20.0
_TOOLS = ("ip", "nsenter", "unshare", "mount")
_WIRE = Path(__file__).with_name("wire.py")
# The first process of a host: it only adopts and forgets what its children leave behind.
_INIT = """
import pathlib, signal, socket, subprocess, sys
name, folder = sys.argv[1:]
socket.sethostname(name)
for source, target in (("ray", "/tmp/ray"), ("hosts", "/etc/hosts")):
    subprocess.run(["mount", "--bind", f"{folder}/{source}", target], check=True)
subprocess.run(["mount", "-t", "tmpfs", "shm", "/dev/shm"], check=True)
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
pathlib.Path(folder, "ready").touch()
while True:
    signal.pause()
"""


def require_hosts() -> None:
    """Skips the test where such hosts cannot be made."""
    if os.geteuid() != 0:
        pytest.skip("hosts out of namespaces need root")
    missing = [tool for tool in _TOOLS if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"hosts out of namespaces need {', '.join(missing)}, of the packages iproute2 and util-linux")
    kinds = ("link add probe type bridge", "link add probe0 type veth peer name probe1", "tuntap add probe2 mode tap")
    probe = " && ".join(f"ip {kind}" for kind in kinds)
    command = ["unshare", "--net", "--mount", "--uts", "--pid", "--fork", "sh", "-c", probe]
    found = subprocess.run(command, capture_output=True, text=True)
    if found.returncode != 0:
        pytest.skip(f"namespaces, or bridges, cables and taps in them, are not permitted here: {found.stderr.strip()}")


class Host:
    """A host: what is started there sees its own processes, interfaces and shared memory alone.

    Attributes:
        name: of the host.
        address: IPv4, empty for the switch.
        folder: its files, visible from everywhere under the same path.
    """

    def __init__(self, name: str, address: str, folder: Path, known: str) -> None:
        self.name, self.address, self.folder = name, address, folder
        for part in ("ray", "logs"):
            (folder / part).mkdir(parents=True)
        (folder / "hosts").write_text(known)
        Path("/tmp/ray").mkdir(exist_ok=True)  # what the host's own is mounted over
        spaces = ("--net", "--mount", "--uts", "--ipc", "--pid", "--fork", "--mount-proc", "--kill-child=KILL")
        self._outer = subprocess.Popen(
            ["unshare", *spaces, "--", sys.executable, "-c", _INIT, name, str(folder)],
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=_end_with_parent,
        )
        until_s = time.monotonic() + _READY_WITHIN_S
        while not (folder / "ready").exists():
            if self._outer.poll() is not None or time.monotonic() > until_s:
                self.close()
                raise RuntimeError(f"host {name} did not come up")
            time.sleep(0.01)
        self.pid = _child(self._outer.pid)

    def command(self, *arguments: str) -> list[str]:
        """The command line that runs `arguments` there."""
        spaces = ("--net", "--mount", "--uts", "--ipc", "--pid")
        return ["nsenter", f"--target={self.pid}", *spaces, "--", *arguments]

    def run(self, *arguments: str) -> str:
        """Runs a command there to its end, and returns what it printed."""
        return subprocess.run(self.command(*arguments), check=True, capture_output=True, text=True).stdout

    @contextlib.contextmanager
    def inside(self) -> Iterator[None]:
        """In the block, this thread and those that it starts are on the host's network."""
        with Path("/proc/thread-self/ns/net").open() as own, Path(f"/proc/{self.pid}/ns/net").open() as its:
            _enter_network(its.fileno())
            try:
                yield
            finally:
                _enter_network(own.fileno())

    def processes(self) -> Mapping[int, str]:
        """Titles of what runs there, by the numbers that this process knows them under; not the host's first one."""
        found: dict[int, str] = {}
        with suppress(OSError):  # the host is gone
            space = Path(f"/proc/{self.pid}/ns/pid").readlink()
            for process in Path("/proc").glob("[0-9]*"):
                with suppress(OSError):  # it has ended meanwhile
                    if (process / "ns/pid").readlink() == space and int(process.name) != self.pid:
                        title = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
                        if title:  # a zombie has none
                            found[int(process.name)] = title
        return found

    def pids(self, title: str) -> list[int]:
        """Of the processes there whose title has these words."""
        return sorted(pid for pid, found in self.processes().items() if title in found)

    def close(self) -> None:
        """Ends the host and all that runs there."""
        self._outer.kill()
        self._outer.wait()


class Network:
    """Hosts on one switch. The network itself is perfect, until a cable is cut or slowed down.

    Args:
        names: of the hosts.
    """

    def __init__(self, names: Sequence[str]) -> None:
        _sweep()
        # Short: Ray puts sockets there, whose paths are limited to 107 bytes.
        self.folder = Path(tempfile.mkdtemp(prefix=f"{_FOLDERS}{os.getpid()}-", dir="/tmp"))
        addresses = {name: f"{SUBNET}.{number}" for number, name in enumerate(names, 1)}
        known = "127.0.0.1 localhost\n" + "".join(f"{address} {name}\n" for name, address in addresses.items())
        self._wires: dict[str, subprocess.Popen[bytes]] = {}
        self._all: list[Host] = []
        self.hosts: dict[str, Host] = {}
        try:
            self._switch = self._host("switch", "", known)
            self._ip("link", "add", _BRIDGE, "type", "bridge")
            self._ip("link", "set", _BRIDGE, "up")
            for name, address in addresses.items():
                host = self.hosts[name] = self._host(name, address, known)
                port = self._port(name)
                self._ip("link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", str(host.pid))
                self._ip("link", "set", port, "master", _BRIDGE, "up")
                host.run("ip", "address", "add", f"{address}/24", "dev", "eth0")
                for interface in ("lo", "eth0"):
                    host.run("ip", "link", "set", interface, "up")
        except BaseException:
            self.close()
            raise

    def cut(self, name: str) -> None:
        """What a host sends, and what is sent to it, vanishes without a trace."""
        self._ip("link", "set", self._port(name), "nomaster")

    def slow_down(self, name: str, delay_ms: float, loss_fraction: float, seed: int = 0) -> None:
        """Frames of a host, in either direction, come later or not at all.

        As the queueing discipline `netem` has it, which needs a module that not every kernel has: here the cable goes
        through a process that holds frames back.
        """
        taps = (f"near{self._number(name)}", f"far{self._number(name)}")
        folder = self._switch.folder
        with (folder / "logs" / f"wire-{name}.log").open("ab") as log:
            self._wires[name] = subprocess.Popen(
                self._on_switch(sys.executable, str(_WIRE), *taps, str(delay_ms), str(loss_fraction), str(seed)),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                preexec_fn=_end_with_parent,
            )
        stdout = self._wires[name].stdout
        assert stdout is not None
        if not stdout.readline():  # it prints a line once its ends are there
            raise RuntimeError(f"the wire of {name} did not start; see {log.name}")
        stub = f"stub{self._number(name)}"
        self._ip("link", "add", stub, "type", "bridge")
        self._ip("link", "set", stub, "up")
        for tap, bridge in zip(taps, (stub, _BRIDGE), strict=True):
            self._ip("link", "set", tap, "master", bridge, "up")
        self._ip("link", "set", self._port(name), "master", stub)

    def heal(self, name: str) -> None:
        """The host's cable is perfect again."""
        self._ip("link", "set", self._port(name), "master", _BRIDGE)
        if name in self._wires:
            self._end_wire(name)
            self._ip("link", "delete", f"stub{self._number(name)}")

    def close(self) -> None:
        """Ends everything, and removes all files."""
        for name in list(self._wires):
            self._end_wire(name)
        for host in self._all:
            host.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _host(self, name: str, address: str, known: str) -> Host:
        host = Host(name, address, self.folder / name, known)
        self._all.append(host)
        return host

    def _number(self, name: str) -> int:
        return list(self.hosts).index(name)

    def _port(self, name: str) -> str:
        return f"port{self._number(name)}"

    def _end_wire(self, name: str) -> None:
        wire = self._wires.pop(name)
        wire.kill()
        wire.wait()
        assert wire.stdout is not None
        wire.stdout.close()

    def _ip(self, *arguments: str) -> None:
        subprocess.run(self._on_switch("ip", *arguments), check=True, capture_output=True)

    def _on_switch(self, *command: str) -> list[str]:
        """On its network only: process numbers stay those of this machine."""
        return ["nsenter", f"--net=/proc/{self._switch.pid}/ns/net", "--", *command]


def _enter_network(namespace: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(namespace, _CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "this thread cannot change its network")


def _end_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _child(pid: int) -> int:
    return int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])


def _sweep() -> None:
    """Removes the files of networks whose process was killed; of the rest Linux has taken care."""
    for folder in Path("/tmp").glob(f"{_FOLDERS}*"):
        if not Path(f"/proc/{folder.name.removeprefix(_FOLDERS).split('-')[0]}").exists():
            shutil.rmtree(folder, ignore_errors=True)
