"""Processes that are started again when they end, as a service manager does; waiting for what they do."""

import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from reference.processes import descendants, kill_with_descendants

from common.errors import UnavailableError

_POLL_S = 0.05


class KeptProcesses:
    """Real processes, each under a name, of which each can be killed.

    Args:
        logs: folder for what they print, a file for each.
        environment: of all of them.
        back_off_s: after which one that ended is started again.
    """

    def __init__(self, logs: Path, environment: Mapping[str, str], back_off_s: float = 0.0) -> None:
        self.num_restarts = 0
        self._logs = logs
        self._environment = environment
        self._back_off_s = back_off_s
        self._commands: dict[str, Sequence[str]] = {}
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._ended_s: dict[str, float] = {}
        self._resting: set[str] = set()
        self._lock = threading.RLock()
        self._stopping = threading.Event()
        self._keeper = threading.Thread(target=self._keep, daemon=True)

    def keep(self) -> None:
        """From now on those that end are started again."""
        self._keeper.start()

    def close(self) -> None:
        """Ends everything that was started here, and nothing else."""
        self._stopping.set()
        if self._keeper.is_alive():
            self._keeper.join()
        for process in self._processes.values():
            kill_with_descendants(process)
            process.wait()

    def start_process(self, name: str, command: Sequence[str] | None = None) -> None:
        """Starts a process, by its command of the last time unless another is given."""
        with self._lock, (self._logs / f"{name}.log").open("ab") as log:
            if command is not None:
                self._commands[name] = command
            self._processes[name] = subprocess.Popen(
                self._commands[name],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env=self._environment,
            )
            self._ended_s.pop(name, None)
            self._resting.discard(name)

    def kill(self, name: str) -> None:
        """SIGKILL; it will be started again."""
        self._processes[name].kill()

    def kill_all_of(self, name: str) -> None:
        """SIGKILL to it and to all below it at once."""
        with self._lock:
            kill_with_descendants(self._processes[name])

    def replace_gracefully(self, name: str, timeout_s: float) -> int:
        """SIGTERM, waits for its end, starts it again; returns its exit code."""
        code = self.stop_gracefully(name, timeout_s)
        self.start_process(name)
        return code

    def stop_gracefully(self, name: str, timeout_s: float) -> int:
        """SIGTERM, and waits for its end; nothing starts it again but `start_process`. Returns its exit code."""
        with self._lock:
            self._resting.add(name)
        process = self._processes[name]
        process.send_signal(signal.SIGTERM)
        return process.wait(timeout_s)

    def names_below(self, name: str) -> Mapping[int, str]:
        """Titles of the living processes below one."""
        found: dict[int, str] = {}
        for pid in descendants(self._processes[name].pid):
            with suppress(OSError):
                title = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                if title:  # a zombie has none
                    found[pid] = title
        return found

    def log(self, name: str) -> str:
        """All that a process has said."""
        return (self._logs / f"{name}.log").read_text(errors="replace")

    def logs(self) -> str:
        """The last lines of each log, for a test that failed."""
        parts = []
        for path in sorted(self._logs.iterdir()):
            lines = path.read_text(errors="replace").splitlines()
            parts.append(f"--- {path.name}\n" + "\n".join(lines[-15:]))
        return "\n".join(parts)

    def _keep(self) -> None:
        while not self._stopping.wait(_POLL_S):
            with self._lock:
                for name, process in list(self._processes.items()):
                    if process.poll() is None or name in self._resting or self._stopping.is_set():
                        continue
                    if time.monotonic() - self._ended_s.setdefault(name, time.monotonic()) >= self._back_off_s:
                        self.num_restarts += 1
                        kill_with_descendants(process)
                        self.start_process(name)


def wait_until(condition: Callable[[], bool], timeout_s: float) -> float:
    """Waits, and returns for how long."""
    start_s = time.monotonic()
    while True:
        with suppress(UnavailableError):
            if condition():
                return time.monotonic() - start_s
        if time.monotonic() - start_s > timeout_s:
            raise TimeoutError(f"not within {timeout_s:g} s")
        time.sleep(_POLL_S)
