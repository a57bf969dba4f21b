"""`metasearch top` against a real gateway: in a terminal, and without one."""

import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from reference.gateway import Gateway, PlayedCoordinator
from reference.processes import Run, command_line

from coordinator.api.client import SearchClient

TENANT = "nobody"
TIMEOUT_S = 60.0
_CONTROL = re.compile(r"\x1b(?:\[[0-9;?]*[a-zA-Z]|[()][A-Z0-9]|[=>])")


class Terminal:
    """The command in a terminal of its own, and what it has drawn there."""

    def __init__(self, *arguments: str, environment: dict[str, str], columns: int = 110, lines: int = 20) -> None:
        self._master, inside = pty.openpty()
        fcntl.ioctl(inside, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        self.before = termios.tcgetattr(inside)
        self._inside = inside
        unset = ("COLUMNS", "LINES", "NO_COLOR")
        inherited = {name: value for name, value in os.environ.items() if name not in unset}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "coordinator.cli", "top", *arguments],
            stdin=inside,
            stdout=inside,
            stderr=inside,
            env=inherited | {"TERM": "xterm-256color"} | environment,
            start_new_session=True,
        )
        self.text = ""

    def wait_for(self, pattern: str) -> None:
        """Until what was drawn since the last time has it."""
        until_s = time.monotonic() + TIMEOUT_S
        while not (found := re.search(pattern, _CONTROL.sub("", self.text), re.DOTALL)):
            assert time.monotonic() < until_s, f"no {pattern!r} in {_CONTROL.sub('', self.text)[-3000:]}"
            self._read(0.1)
        assert found
        self.text = ""

    def press(self, keys: bytes) -> None:
        os.write(self._master, keys)

    def end(self) -> int:
        """Waits for the end; returns the exit status."""
        until_s = time.monotonic() + TIMEOUT_S
        while self.process.poll() is None:
            assert time.monotonic() < until_s, "it does not end"
            self._read(0.1)
        return self.process.returncode

    def is_as_before(self) -> bool:
        """Whether the terminal shows keys again, line by line, on its usual screen."""
        self._read(0.0)
        return termios.tcgetattr(self._inside) == self.before and "\x1b[?1049l" in self.text

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self._master)
        os.close(self._inside)

    def _read(self, timeout_s: float) -> None:
        if select.select([self._master], [], [], timeout_s)[0]:
            self.text += os.read(self._master, 65536).decode(errors="replace")


@pytest.fixture
def open_top(own_gateway: Gateway) -> Iterator[Callable[..., Terminal]]:
    made: list[Terminal] = []
    access = {"METASEARCH_ADDRESS": own_gateway.address, "METASEARCH_TOKEN": own_gateway.token(TENANT, "viewer")}

    def make(*arguments: str) -> Terminal:
        made.append(Terminal(*arguments, environment=access))
        return made[-1]

    yield make
    for terminal in made:
        terminal.close()


def test_it_draws_jobs_as_they_change_survives_a_restart_of_the_gateway_and_quits(
    own_gateway: Gateway, open_top: Callable[..., Terminal]
) -> None:
    own_gateway.known_token(TENANT)
    with own_gateway.client(TENANT) as client:
        job = client.submit(client.create_study("mine", preset="smoke").name, "digits", steps=20).name
    coordinator = PlayedCoordinator(own_gateway)
    terminal = open_top("--interval", "0.2")
    job_id = job.rpartition("/")[2]
    terminal.wait_for(rf"serving.*no coordinator yet.*{job_id} mine +adapt +○ queued")

    coordinator.store.beat(coordinator.epoch, {"running": 1, "workers": 2})
    started = coordinator.start(TENANT, job)
    progress = {"done": 5, "total": 20, "accuracy": 0.75, "worker": "worker-1"}
    coordinator.store.report(coordinator.epoch, started, progress)
    terminal.wait_for(rf"1 running, 0 queued; coordinator 1, 2 workers.*{job_id} .*● running.* 25% .*0\.750.*worker-1")

    assert own_gateway.stop() == 0
    terminal.wait_for(r"no answer since \d+ s, trying again.*● running")
    own_gateway.start()
    coordinator.succeed(started)
    terminal.wait_for(r"serving.*0 running, 0 queued.*✓ succeeded")
    terminal.press(b"xq")
    assert terminal.end() == 0
    assert terminal.is_as_before()
    coordinator.close()

    for number in (signal.SIGINT, signal.SIGTERM):
        terminal = open_top("--study", "mine")
        terminal.wait_for("✓ succeeded")
        os.killpg(terminal.process.pid, number)
        assert terminal.end() == 0
        assert terminal.is_as_before() and "Traceback" not in terminal.text


@pytest.fixture
def metasearch(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, gateway: Gateway, tenant: str, tmp_path: Path
) -> Run:
    monkeypatch.setenv("METASEARCH_ADDRESS", gateway.address)
    monkeypatch.setenv("METASEARCH_TOKEN", gateway.token(tenant))
    monkeypatch.chdir(tmp_path)
    return command_line(capsys, monkeypatch)


def test_without_a_terminal_the_table_is_printed_once(
    metasearch: Run, client: SearchClient, coordinator: PlayedCoordinator, tenant: str
) -> None:
    mine, yours = (client.create_study(name, preset="smoke").name for name in ("mine", "yours"))
    ended, runs, waits = (client.submit(mine, "digits").name for _ in range(3))
    elsewhere = client.submit(yours, "digits").name
    coordinator.succeed(coordinator.start(tenant, ended))
    coordinator.progress(coordinator.start(tenant, runs), 2, 8, 0.5)
    code, out, err = metasearch("top")
    assert code == 0, err
    ids = [name.rpartition("/")[2] for name in (runs, waits, elsewhere, ended)]
    assert [line.split()[0] for line in out.splitlines()[3:]] == ids
    assert "q quits" not in out and "\x1b" not in out

    code, _, err = metasearch("top", "--study", "theirs")
    assert code == 3 and "there is no studies/theirs" in err
    code, out, err = metasearch("top", "--study", "mine", "--json")
    assert code == 0, err
    view: dict[str, Any] = json.loads(out)
    assert [row["name"] for row in view["rows"]] == [runs, waits, ended]
    assert (view["jobs_running"], view["jobs_queued"]) == (1, 2)
    first, _, last = view["rows"]
    assert (first["state"], first["done"], first["total"], first["accuracy"]) == ("running", 2, 8, 0.5)
    assert first["eta_s"] > 0, "by the time since it was started"
    assert (last["state"], last["accuracy"], last["eta_s"]) == ("succeeded", 0.75, None)
