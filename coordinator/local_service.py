"""Everything on this machine: a gateway and a supervisor with a local Ray, as child processes that are kept alive."""

import ctypes
import json
import logging
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from common.errors import UnavailableError
from common.storage import write_private
from common.telemetry import METRICS
from coordinator.api.auth import create_token
from coordinator.settings import ServiceSettings, load_settings

DEFAULT_FOLDER = Path("runs/service")
TOKEN_FILE = "token"
_READY_TIMEOUT_S = 60.0
_RESTART_S = 1.0
_PR_SET_PDEATHSIG = 1
READY = "metasearch gateway ready: "
DASHBOARD = "Ray dashboard:"


def local_token(settings: ServiceSettings, folder: Path) -> str:
    """The token of the local service: made once, readable by its owner only."""
    path = folder / TOKEN_FILE
    if not path.exists() or not settings.tokens.exists():
        token = create_token(settings.tokens, "local", "admin", "made by metasearch serve --local")
        write_private(path, token.encode())
    return path.read_text("utf-8").strip()


def local_settings(folder: Path, file: Path | None = None, **changes: Any) -> ServiceSettings:
    """Settings of a service that keeps everything in one folder, as far as they do not say otherwise.

    Raises:
        InvalidInputError: names every wrong field.
    """
    given = {name: value for name, value in changes.items() if value is not None}
    given.setdefault("store", f"sqlite:{folder / 'jobs.sqlite'}")
    given.setdefault("artifacts", str(folder / "artifacts"))
    given.setdefault("tokens", folder / "tokens.toml")
    return load_settings(file, given)


class LocalService:
    """The processes of a service on this machine.

    Args:
        settings: of the service; the store and artifacts must be local.
        logger: hears of restarts.
        log_folder: gateway.log and coordinator.log go there.
        workers: worker actors; all that there is room for where not given.
        address: of a Ray cluster to use; None starts a local one.
    """

    def __init__(
        self,
        settings: ServiceSettings,
        logger: logging.Logger,
        log_folder: Path,
        workers: int | None = None,
        address: str | None = None,
    ) -> None:
        self._settings = settings
        self._log = logger
        self._folder = log_folder
        self._extra = ["--local"] if address is None else ["--address", address, "--drain"]
        self._extra += [] if workers is None else ["--workers", str(workers)]
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        self.port = 0
        log_folder.mkdir(parents=True, exist_ok=True)
        self._file = log_folder / "settings.json"
        self._file.write_text(settings.model_dump_json(indent=2), "utf-8")

    def start(self) -> None:
        """Starts both; returns once the gateway answers.

        Raises:
            UnavailableError: the gateway did not start; the message is its own.
        """
        self._start("gateway")
        self._start("coordinator")

    def dashboard_lines(self) -> list[str]:
        """Where the Ray dashboard is, as the coordinator's log says."""
        return self._last_line("coordinator", DASHBOARD)

    def metrics_lines(self) -> list[str]:
        """Where Prometheus finds metrics, as far as the logs say by now: of the gateway, of Ray."""
        return [line for name in ("gateway", "coordinator") for line in self._last_line(name, METRICS)]

    def _last_line(self, name: str, beginning: str) -> list[str]:
        text = (self._folder / f"{name}.log").read_text("utf-8", errors="replace")
        found = [line for line in text.splitlines() if beginning in line]
        return [found[-1][found[-1].index(beginning) :]] if found else []

    def watch(self) -> None:
        """Restarts children that end, until interrupted."""
        while True:
            for name, child in list(self._children.items()):
                if child.poll() is not None:
                    self._log.warning("the %s ended with %d; starting it again", name, child.returncode)
                    time.sleep(_RESTART_S)
                    self._start(name)
            time.sleep(0.2)

    def stop(self) -> None:
        """Drains and ends both."""
        for child in self._children.values():
            if child.poll() is None:
                child.send_signal(signal.SIGTERM)
        until_s = time.monotonic() + self._settings.drain_s + 20
        for child in self._children.values():
            try:
                child.wait(max(until_s - time.monotonic(), 0.1))
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()

    def _start(self, name: str) -> None:
        command = [sys.executable, "-m", "coordinator.cli"]
        if name == "gateway":
            port = [] if not self.port else ["--listen", f"{self._settings.listen.rpartition(':')[0]}:{self.port}"]
            command += ["serve", "--settings", str(self._file), *port]
        else:
            command += ["coordinate", "--settings", str(self._file), *self._extra]
        with (self._folder / f"{name}.log").open("ab") as log:
            # A group of its own: Ctrl-C reaches the parent, which then drains its children in order.
            self._children[name] = subprocess.Popen(
                command,
                stdout=subprocess.PIPE if name == "gateway" else log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                preexec_fn=_end_with_parent,
            )
        if name == "gateway":
            child = self._children[name]
            assert child.stdout is not None
            with child.stdout:
                self.port = self._wait_for_port(child)

    def _wait_for_port(self, child: subprocess.Popen[bytes]) -> int:
        assert child.stdout is not None
        until_s = time.monotonic() + _READY_TIMEOUT_S
        text = b""
        while time.monotonic() < until_s and child.poll() is None:
            if select.select([child.stdout], [], [], 0.2)[0]:
                block = os.read(child.stdout.fileno(), 4096)
                text += block
                # Whole lines only: whoever closes the pipe in the middle of one ends its writer.
                for line in text.decode(errors="replace").split("\n")[:-1]:
                    if line.startswith(READY):
                        return int(json.loads(line.removeprefix(READY))["port"])
                if not block:
                    break
        child.wait(5)
        lines = (self._folder / "gateway.log").read_text("utf-8", errors="replace").strip().splitlines()
        raise UnavailableError(f"the gateway did not start: {lines[-1] if lines else 'see its log'}")


def _end_with_parent() -> None:
    """Has Linux send SIGTERM to this process when its parent is gone, however that ended."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
