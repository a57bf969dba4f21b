"""The hosts that other tests of this folder are run on are what they claim to be."""

import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from multinode.hosts import Network, require_hosts

_PORT = 7000

pytestmark = [pytest.mark.multinode, pytest.mark.timeout(120)]


@pytest.fixture
def network() -> Iterator[Network]:
    require_hosts()
    network = Network(["a", "b"])
    yield network
    network.close()


def test_hosts_have_networks_processes_names_and_folders_of_their_own(network: Network) -> None:
    a, b = network.hosts["a"], network.hosts["b"]
    for space in ("net", "pid", "mnt", "uts", "ipc"):
        spaces = {Path(f"/proc/{pid}/ns/{space}").readlink() for pid in (a.pid, b.pid, os.getpid())}
        assert len(spaces) == 3, space
    assert a.run("hostname").strip() == "a"
    assert a.run("ip", "-brief", "-4", "address", "show", "dev", "eth0").split()[2] == f"{a.address}/24"
    a.run("touch", "/tmp/ray/mine", "/dev/shm/mine")
    assert a.run("ls", "/tmp/ray").split() == ["mine"] and b.run("ls", "/tmp/ray", "/dev/shm").count("mine") == 0
    assert not Path("/dev/shm/mine").exists()
    assert a.run("sh", "-c", "echo /proc/[0-9]*").split()[0] == "/proc/1"
    assert not any(line.split(":")[1].strip().startswith(("br0", "port")) for line in _links())


def test_a_cut_cable_loses_frames_silently_and_a_healed_one_carries_them(network: Network) -> None:
    with _answering(network):
        assert _round_trip_s(network, 5.0) is not None
        network.cut("b")
        assert _round_trip_s(network, 1.0) is None
        network.heal("b")
        assert _round_trip_s(network, 10.0) is not None


def test_a_slow_cable_delays_both_ways_and_loses_frames_but_not_what_tcp_carries(network: Network) -> None:
    with _answering(network):
        network.slow_down("b", delay_ms=100.0, loss_fraction=0.05)
        took_s = min(found for _ in range(5) if (found := _round_trip_s(network, 20.0)) is not None)
        assert 0.2 <= took_s < 1.0
        assert _transfer(network, 200_000) == 200_000
        network.heal("b")
        took_s = min(found for _ in range(5) if (found := _round_trip_s(network, 20.0)) is not None)
        assert took_s < 0.1


def test_hosts_end_with_the_process_that_made_them_even_if_it_is_killed() -> None:
    require_hosts()
    code = (
        "from multinode.hosts import Network; import time;"
        "network = Network(['a']); host = network.hosts['a'];"
        "import subprocess; subprocess.Popen(host.command('sleep', '1000'));"
        "print(host.pid, network.folder, flush=True); time.sleep(1000)"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join((str(Path(__file__).parents[1]), *sys.path))}
    maker = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment)
    assert maker.stdout is not None
    with maker.stdout:
        pid, folder = maker.stdout.readline().split()
    space = Path(f"/proc/{pid}/ns/pid").readlink()
    maker.kill()
    maker.wait()
    until_s = time.monotonic() + 10
    while any(_space(process) == space for process in Path("/proc").glob("[0-9]*")):
        assert time.monotonic() < until_s, "processes of the host live on"
        time.sleep(0.05)
    Network(["c"]).close()
    assert not Path(folder).exists(), "what is left of files goes with the next network"


def _space(process: Path) -> Path | None:
    with suppress(OSError):
        return (process / "ns/pid").readlink()
    return None


def _links() -> list[str]:
    return subprocess.run(["ip", "-oneline", "link"], check=True, capture_output=True, text=True).stdout.splitlines()


@contextlib.contextmanager
def _answering(network: Network) -> Iterator[None]:
    """In the block, a server on host b sends back what it gets."""
    with network.hosts["b"].inside():
        server = socket.create_server((network.hosts["b"].address, _PORT), backlog=16)
    thread = threading.Thread(target=_serve, args=(server,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown(socket.SHUT_RDWR)
        thread.join(10)
        server.close()


def _serve(server: socket.socket) -> None:
    with suppress(OSError):
        while True:
            connection, _ = server.accept()
            with connection, suppress(OSError):
                connection.settimeout(30)
                while data := connection.recv(1 << 16):
                    connection.sendall(data)


def _connect(network: Network, timeout_s: float) -> socket.socket:
    with network.hosts["a"].inside():
        return socket.create_connection((network.hosts["b"].address, _PORT), timeout_s)


def _round_trip_s(network: Network, timeout_s: float) -> float | None:
    """Of a byte, on a connection that is there."""
    try:
        with _connect(network, timeout_s) as connection:
            start_s = time.monotonic()
            connection.sendall(b"?")
            return time.monotonic() - start_s if connection.recv(1) else None
    except OSError:
        return None


def _transfer(network: Network, num_bytes: int) -> int:
    with _connect(network, 30.0) as connection:
        connection.settimeout(60.0)
        threading.Thread(target=lambda: connection.sendall(b"x" * num_bytes), daemon=True).start()
        received = 0
        while received < num_bytes:
            received += len(connection.recv(1 << 16))
        return received
