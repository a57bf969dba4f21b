"""The command line under test: called in this process, or killed with all that it started."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from coordinator import cli

METASEARCH = str(Path(sys.executable).parent / "metasearch")

WORKER_AT_WORK = ("ray::adapt ", "ray::job ")
"""How the title of a process begins while a worker in it has a call, see `PendingCall.title`."""
WORKER = ("ray::SearchWorker", *WORKER_AT_WORK)
COORDINATOR = ("ray::ServiceCoordinator", "ray::run the jobs of the service")

Run = Callable[..., tuple[int, str, str]]
"""Calls the command line: (exit code, standard output, standard error)."""


def command_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """The command line in this process, on a wide terminal without colours."""
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("TERM", "dumb")

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["metasearch", *arguments])
        with pytest.raises(SystemExit) as exit_info:
            cli.main()
        captured = capsys.readouterr()
        return int(exit_info.value.code or 0), captured.out, captured.err

    return run


def environment_without_ray() -> dict[str, str]:
    """This process's environment, without what it says of a Ray cluster; the workers' share of the cores stays."""
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("RAY_") or name == "RAY_worker_niceness"
    }


def descendants(pid: int) -> list[int]:
    """Every process below `pid`."""
    parents: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            fields = stat.read_text().rpartition(")")[2].split()
            parents.setdefault(int(fields[1]), []).append(int(stat.parent.name))
    found: list[int] = []
    waiting = [pid]
    while waiting:
        children = parents.get(waiting.pop(), [])
        found += children
        waiting += children
    return found


def kill_with_descendants(process: subprocess.Popen[Any]) -> None:
    """SIGKILL to a process and to every one below it; does not wait."""
    for pid in descendants(process.pid):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.kill()
