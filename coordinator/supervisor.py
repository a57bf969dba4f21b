"""Makes sure that a coordinator exists and lives, also after the whole Ray cluster was lost. Holds nothing itself."""

import contextlib
import logging
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError

from common.config import ClusterConfig
from common.errors import UnavailableError
from common.telemetry import METRICS
from coordinator.cluster import NAMESPACE, connect, disconnect, metrics_urls
from coordinator.service_actor import ACTOR_NAME, start_service_coordinator
from coordinator.settings import ServiceSettings, open_ledger
from coordinator.store.jobs import JobStore

_MISSED_BEATS = 10
_STATUS_TIMEOUT_S = 5.0
_STARTING_S = 60.0
_LOOK_S = 0.5
_RECONNECT_S = 2.0

SILENT, AWAY = "silent", "away"
"""States of a coordinator that says nothing: asked without an answer; not there to be asked, for Ray is starting it."""


class Vigil:
    """Judges whether the coordinator lives: by its beats, and by what it says of itself.

    One that ran and falls silent hangs, or its host is cut off: it gets the patience of a running one. One that Ray is
    starting, or starting again, gets more.

    Args:
        patience_s: without a beat, of one that runs.
        starting_s: the same of one that starts.
        now_s: seconds of a monotonic clock.
    """

    def __init__(self, patience_s: float, starting_s: float, now_s: float) -> None:
        self._patience_s = patience_s
        self._starting_s = starting_s
        self._beats = -1
        self.renew(now_s)

    def renew(self, now_s: float) -> None:
        """Another coordinator, or whether it beats cannot be seen: the time counts anew."""
        self._alive_s = now_s
        self._has_run = False

    def is_over(self, state: str, beats: int, now_s: float) -> bool:
        """Whether the coordinator has to be replaced.

        Args:
            state: that it says it is in; `SILENT` where it says nothing, `AWAY` where Ray has none that could.
            beats: how many there were, of all coordinators so far.
            now_s: seconds of the clock.
        """
        if state != SILENT:
            self._has_run = state not in (AWAY, "starting")
        if beats != self._beats:
            self._beats, self._alive_s = beats, now_s
        return now_s - self._alive_s > (self._patience_s if self._has_run else self._starting_s)


class Supervisor:
    """Watches over the coordinator actor.

    Args:
        settings: of the service.
        cluster: workers to hold.
        address: of the Ray cluster; None starts a local one, which ends with this process.
        logger: of the process.
    """

    def __init__(
        self, settings: ServiceSettings, cluster: ClusterConfig, address: str | None, logger: logging.Logger
    ) -> None:
        self._settings = settings
        self._cluster = cluster
        self._address = address
        self._log = logger
        self._stop = threading.Event()
        self._handle: Any = None

    def stop(self) -> None:
        """Ends `run`, from a signal handler or another thread."""
        self._stop.set()

    def run(self, drain: bool) -> None:
        """Watches until `stop`; with `drain`, then has the coordinator hand its work over and ends it.

        Raises:
            UnavailableError: there is no cluster at the address, at the very start.
        """
        first = True
        while not self._stop.is_set():
            try:
                with _own_signal_handlers():
                    connection = connect(self._address, job_name="metasearch service")
            except UnavailableError as error:
                if first:
                    raise
                self._log.warning("%s; trying again", error)
                self._stop.wait(_RECONNECT_S)
                continue
            if connection.dashboard_url:
                token = "; it asks for a token, `ray get-auth-token` prints it" if connection.needs_token else ""
                self._log.info("Ray dashboard: %s%s", connection.dashboard_url, token)
            first = False
            try:
                self._log.info("%s %s", METRICS, ", ".join(metrics_urls()))
                self._watch()
                if drain:
                    self._drain()
            except (RayError, ConnectionError, RuntimeError, UnavailableError) as error:
                self._log.error("the Ray cluster is gone (%s); connecting anew", str(error).splitlines()[0])
                self._stop.wait(_RECONNECT_S)
            finally:
                with contextlib.suppress(Exception):
                    disconnect()

    def _watch(self) -> None:
        store: JobStore | None = None
        patience_s = _MISSED_BEATS * self._settings.beat_s
        vigil = Vigil(patience_s, max(patience_s, _STARTING_S), time.monotonic())
        try:
            while not self._stop.wait(_LOOK_S):
                self._handle = start_service_coordinator(self._settings, self._cluster)
                state = self._state()
                # One that was superseded is left alone for as long as the other beats: to replace it would start a
                # war of two clusters over one store, in which no job ever ends.
                if state in ("failed", "drained"):
                    self._replace(f"it is {state}")
                    vigil.renew(time.monotonic())
                    continue
                try:
                    store = store or JobStore(open_ledger(self._settings.store))
                    beats, _ = store.last_beat()
                except UnavailableError as error:
                    self._log.warning("%s", error)
                    store = None
                    vigil.renew(time.monotonic())
                    continue
                if vigil.is_over(state, beats, time.monotonic()):
                    self._replace(f"it does not beat, and is {state}")
                    vigil.renew(time.monotonic())
        finally:
            if store is not None:
                store.ledger.close()

    def _state(self) -> str:
        try:
            return str(ray.get(self._handle.status.remote(), timeout=_STATUS_TIMEOUT_S)["state"])
        except GetTimeoutError:
            return SILENT
        except RayError:
            return AWAY

    def _replace(self, reason: str) -> None:
        self._log.warning("the coordinator is replaced: %s", reason)
        with contextlib.suppress(RayError):
            ray.kill(self._handle, no_restart=True)
        while not self._stop.wait(0.1):
            try:
                ray.get_actor(ACTOR_NAME, namespace=NAMESPACE)
            except ValueError:
                return

    def _drain(self) -> None:
        if self._handle is None:
            return
        self._log.info("draining the coordinator, at most %.0f s", self._settings.drain_s)
        self._handle.drain.remote()
        until_s = time.monotonic() + self._settings.drain_s
        while time.monotonic() < until_s:
            if self._state() != "running":
                break
            time.sleep(0.1)
        ray.kill(self._handle, no_restart=True)


@contextlib.contextmanager
def _own_signal_handlers() -> Iterator[None]:
    """Ray takes SIGTERM for itself when it connects, and would end the process at once: nothing would be drained."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in before.items():
                signal.signal(number, handler)
