"""A real Redis server for tests, on a free loopback port, with its append-only file in a folder of its own."""

import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import Literal

import pytest
import redis

EXECUTABLE = "redis-server"
_STARTS_WITHIN_S = 20.0
_ATTEMPTS = 5


class RedisServer:
    """A server process. Data survive `restart`, and end with the folder.

    Args:
        folder: for its data and its log.
        appendfsync: `always` syncs before every answer, `everysec` once a second.
        options: further ones of the server, as on its command line.
    """

    def __init__(
        self, folder: Path, appendfsync: Literal["always", "everysec"] = "everysec", options: tuple[str, ...] = ()
    ) -> None:
        self.folder = folder
        self._appendfsync = appendfsync
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None
        for attempt in range(_ATTEMPTS):
            self.port = _free_port()
            try:
                self.start()
                return
            except RuntimeError:  # another process took the port meanwhile
                if attempt == _ATTEMPTS - 1:
                    raise

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        """Starts it on its port and data, and waits until it has loaded them and answers."""
        command = [
            EXECUTABLE,
            *("--port", str(self.port)),
            *("--bind", "127.0.0.1"),
            *("--dir", str(self.folder)),
            *("--logfile", str(self.folder / "redis.log")),
            *("--appendonly", "yes"),
            *("--appendfsync", self._appendfsync),
            *("--save", ""),
            *("--daemonize", "no"),
            *self._options,
        ]
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        deadline_s = time.monotonic() + _STARTS_WITHIN_S
        while not self.answers():
            if self._process.poll() is not None:
                raise RuntimeError(f"redis-server ended with {self._process.returncode}; see {self.folder}/redis.log")
            if time.monotonic() > deadline_s:
                self.stop()
                raise RuntimeError(f"redis-server did not answer on port {self.port}")
            time.sleep(0.01)

    def answers(self) -> bool:
        """Whether this very process serves reads and writes."""
        try:
            with redis.Redis(port=self.port, socket_timeout=0.5, socket_connect_timeout=0.5, retry=None) as client:
                # One that loads its data gives information, but no pong.
                return bool(
                    self._process and client.info("server")["process_id"] == self._process.pid and client.ping()
                )
        except redis.RedisError:
            return False

    def flush(self) -> None:
        """Forgets everything."""
        with redis.Redis(port=self.port) as client:
            client.flushall()

    def end(self, kill: bool = False) -> None:
        """SIGTERM, or SIGKILL, and waits for its end."""
        if self._process is not None and self._process.poll() is None:
            self.resume()
            self._process.send_signal(signal.SIGKILL if kill else signal.SIGTERM)
            self._process.wait(10)

    def restart(self, kill: bool = False) -> None:
        """Ends it, and starts it again on the same port and data."""
        self.end(kill)
        self.start()

    def pause(self) -> None:
        """Connections stay, answers do not come."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self._process.pid, os.WSTOPPED)

    def resume(self) -> None:
        """After `pause`."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def stop(self) -> None:
        """For good."""
        self.end(kill=True)


def require_redis() -> None:
    """Skips the test where there is no redis-server."""
    if shutil.which(EXECUTABLE) is None:
        pytest.skip(f"{EXECUTABLE} is not installed")


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
