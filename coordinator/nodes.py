"""The nodes of the connected Ray cluster: what each has, which are about to be taken away, and why one is gone."""

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import ray
from ray.exceptions import RayActorError, RayError

_LOOK_EVERY_S = 1.0
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
    if node_id is None:
        return False
    try:
        found = next((node for node in ray.nodes() if node["NodeID"] == node_id), None)  # type: ignore[no-untyped-call]
    except Exception:  # noqa: BLE001 the edge: the control store is away, and nothing is known
        return False
    return found is not None and not found["Alive"] and found["DeathReason"] in _TAKEN_AWAY
