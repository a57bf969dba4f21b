"""The nodes of the connected Ray cluster: what each has, which are about to be taken away, and why one is gone."""

import logging
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError

_LOOK_EVERY_S = 1.0
_ASK_S = 2.0
_SIGTERM = "The process receives a SIGTERM"
_MILLISECOND_S = 1e-3
# `NodeDeathInfo.Reason` of Ray's protocol: told to end, its drain's deadline over, removed by the autoscaler.
_TAKEN_AWAY = frozenset({1, 3, 4})


@dataclass(frozen=True)
class Nodes:
    """The nodes at one moment.

    Attributes:
        resources: by node id, what each node has that takes new actors.
        draining: by node id, the seconds that are left to each of the others; None where there is no limit.
    """

    resources: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    draining: Mapping[str, float | None] = field(default_factory=dict)


def look() -> Nodes:
    """The nodes now. Waits for Ray's control store."""
    # Ray has no public way to ask; its own libraries ask this one. Deadlines are in ms since 1970, 0 for none.
    deadlines: dict[str, int] = ray._private.state.state.get_draining_nodes()
    now_s = time.time()
    draining = {
        node: max(deadline * _MILLISECOND_S - now_s, 0.0) if deadline else None for node, deadline in deadlines.items()
    }
    alive = {node["NodeID"]: node["Resources"] for node in ray.nodes() if node["Alive"]}  # type: ignore[no-untyped-call]
    return Nodes({node: resources for node, resources in alive.items() if node not in draining}, draining)


class NodeWatch:
    """Looks at the nodes about once a second, on a thread: where Ray's control store is away, nobody waits for it.

    Args:
        logger: hears of looks that failed.
        look_at: what to look with.
    """

    def __init__(self, logger: logging.Logger, look_at: Callable[[], Nodes] = look) -> None:
        self._logger = logger
        self._look_at = look_at
        self._stop = threading.Event()
        self._latest: Nodes | None = None
        self._thread = threading.Thread(target=self._run, name="nodes", daemon=True)
        self._thread.start()

    def latest(self) -> Nodes | None:
        """What was seen last, None before the first look and after one that failed."""
        return self._latest

    def close(self) -> None:
        """Ends it; a look that waits may take longer."""
        self._stop.set()

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self._latest = self._look_at()
            except Exception as error:  # noqa: BLE001 the edge: whatever Ray raises, the next look may succeed
                if self._latest is not None:
                    self._logger.warning("the cluster's nodes cannot be seen: %s", str(error).split("\n", 1)[0])
                self._latest = None
            self._stop.wait(_LOOK_EVERY_S)


def was_taken_away(error: RayError, node_id: str | None) -> bool:
    """Whether a worker was lost because it, or its node, was told to end, and through no fault of its work.

    Args:
        error: of a call to it.
        node_id: of its node, where known.
    """
    if isinstance(error, RayActorError) and (error.preempted or _SIGTERM in str(error)):
        return True
    found = [node for node in _known_within(_ASK_S) if node["NodeID"] == node_id] if node_id is not None else []
    return any(not node["Alive"] and node["DeathReason"] in _TAKEN_AWAY for node in found)


def _known_within(timeout_s: float) -> list[dict[str, Any]]:
    """All nodes that there were, none if Ray's control store does not answer in time: it may keep one for a minute."""
    found: list[dict[str, Any]] = []

    def ask() -> None:
        with suppress(Exception):  # the edge: whatever Ray raises, nothing is known then
            found.extend(ray.nodes())  # type: ignore[no-untyped-call]

    thread = threading.Thread(target=ask, name="nodes", daemon=True)
    thread.start()
    thread.join(timeout_s)
    return list(found)
