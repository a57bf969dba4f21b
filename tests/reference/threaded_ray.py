"""As much of Ray as a pool of workers uses, with actors that are threads of this process, and nodes that are numbers.

Nodes can be added, drained and lost at any moment, and cost no process. What Ray itself does then is tested with Ray.
"""

import itertools
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, TaskCancelledError

from coordinator import held_worker, launcher, nodes, pool, prior_refs
from coordinator.nodes import Nodes

TOLD_TO_END = 1  # `NodeDeathInfo.Reason` of Ray's protocol
_GROUP_OF = {"status": "status", "withdraw": "status", "hand_over": "status"}
_POLL_S = 0.002


class Ref:
    """A reference to a result; also the id of the call."""

    _ids = itertools.count()

    def __init__(self) -> None:
        self.id = f"call {next(self._ids)}"
        self.done = threading.Event()
        self.result: Any = None
        self.error: Exception | None = None
        self.is_cancelled = False

    def task_id(self) -> "Ref":
        return self

    def hex(self) -> str:
        return self.id

    def settle(self, result: Any = None, error: Exception | None = None) -> None:
        if not self.done.is_set():
            self.result, self.error = result, error
            self.done.set()


_Calls = queue.Queue[tuple[str, tuple[Any, ...], Ref]]


@dataclass
class Node:
    """A machine with room for some workers."""

    node_id: str
    num_slots: int = 1
    actors: "list[Actor]" = field(default_factory=list)
    drained_at_s: float | None = None
    is_alive: bool = True
    death_reason: int = 0


class Actor:
    """An object whose methods are called one after the other, by a thread for each concurrency group."""

    def __init__(self, make: Callable[[str], Any]) -> None:
        self._make = make
        self._refs: list[Ref] = []
        self._queues: dict[str, _Calls] = {"main": queue.Queue(), "status": queue.Queue()}
        self.is_dead = False

    def start(self, node_id: str) -> None:
        target = self._make(node_id)
        for calls in self._queues.values():
            threading.Thread(target=self._run, args=(target, calls), daemon=True).start()

    def kill(self) -> None:
        self.is_dead = True
        for ref in self._refs:
            ref.settle(error=ActorDiedError())

    def __getattr__(self, method: str) -> Any:
        if method.startswith("_"):
            raise AttributeError(method)
        return _Method(self, method)

    def call(self, method: str, arguments: tuple[Any, ...]) -> Ref:
        ref = Ref()
        self._refs.append(ref)
        if self.is_dead:
            ref.settle(error=ActorDiedError())
        self._queues[_GROUP_OF.get(method, "main")].put((method, arguments, ref))
        return ref

    def _run(self, target: Any, calls: _Calls) -> None:
        while not self.is_dead:
            method, arguments, ref = calls.get()
            if ref.is_cancelled:
                ref.settle(error=TaskCancelledError())
                continue
            target.call_id = ref.id if method not in _GROUP_OF else target.call_id
            try:
                ref.settle(getattr(target, method)(*arguments))
            except Exception as error:  # noqa: BLE001 whatever it is, it belongs to the caller
                ref.settle(error=error)


@dataclass
class _Method:
    actor: Actor
    name: str

    def options(self, **options: Any) -> "_Method":
        return self

    def remote(self, *arguments: Any) -> Ref:
        return self.actor.call(self.name, arguments)


class ThreadedRay:
    """A cluster. `Worker` is what its actors are.

    Attributes:
        nodes: by id.
        waiting: actors without room.
    """

    def __init__(self, worker: Callable[[str, str], Any]) -> None:
        self._worker = worker
        self.cluster: dict[str, Node] = {}
        self.waiting: list[Actor] = []

    def put_in_place(self, patch: pytest.MonkeyPatch) -> None:
        """The pool and its parts use this instead of Ray."""
        for module in (held_worker, launcher, nodes, pool, prior_refs):
            patch.setattr(module, "ray", self)

    # What happens to nodes

    def add(self, node_id: str, num_slots: int = 1) -> None:
        self.cluster[node_id] = Node(node_id, num_slots)

    def drain(self, node_id: str, within_s: float | None) -> None:
        self.cluster[node_id].drained_at_s = float("inf") if within_s is None else time.monotonic() + within_s

    def lose(self, node_id: str, reason: int) -> None:
        node = self.cluster[node_id]
        node.is_alive, node.death_reason = False, reason
        for actor in list(node.actors):
            actor.kill()

    def look(self) -> Nodes:
        """As `coordinator.nodes.look`."""
        alive = [node for node in self.cluster.values() if node.is_alive]
        left = {node.node_id: node.drained_at_s for node in alive if node.drained_at_s is not None}
        now_s = time.monotonic()
        draining = {name: None if at_s == float("inf") else max(at_s - now_s, 0.0) for name, at_s in left.items()}
        return Nodes({node.node_id: {"CPU": node.num_slots} for node in alive if node.node_id not in left}, draining)

    # What the pool calls

    def remote(self, **options: Any) -> Any:
        return lambda worker_class: self

    def options(self, name: str, **options: Any) -> Any:
        return _Starts(self, name)

    def start(self, name: str) -> Actor:
        actor = Actor(lambda node_id: self._worker(name, node_id))
        self.waiting.append(actor)
        self._place()
        return actor

    def wait(self, refs: Sequence[Ref], num_returns: int = 1, timeout: float = 60.0) -> tuple[list[Ref], list[Ref]]:
        until_s = time.monotonic() + timeout
        while True:
            self._place()
            ready = [ref for ref in refs if ref.done.is_set()][:num_returns]
            if len(ready) == num_returns or time.monotonic() >= until_s:
                return ready, [ref for ref in refs if ref not in ready]
            time.sleep(_POLL_S)

    def get(self, ref: Ref) -> Any:
        assert ref.done.wait(60.0)
        if ref.error is not None:
            raise ref.error
        return ref.result

    def put(self, value: Any) -> Any:
        return value

    def cancel(self, ref: Ref) -> None:
        ref.is_cancelled = True

    def kill(self, actor: Actor) -> None:
        actor.kill()
        for actors in (self.waiting, *(node.actors for node in self.cluster.values())):
            if actor in actors:
                actors.remove(actor)

    def nodes(self) -> list[dict[str, Any]]:
        return [
            {"NodeID": node.node_id, "Alive": node.is_alive, "DeathReason": node.death_reason}
            for node in self.cluster.values()
        ]

    def _place(self) -> None:
        for node in self.cluster.values():
            while self.waiting and node.is_alive and node.drained_at_s is None and len(node.actors) < node.num_slots:
                actor = self.waiting.pop(0)
                node.actors.append(actor)
                actor.start(node.node_id)


@dataclass
class _Starts:
    cluster: ThreadedRay
    name: str

    def remote(self, *arguments: Any) -> Actor:
        return self.cluster.start(self.name)
