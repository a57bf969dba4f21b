"""A worker actor and the calls that its pool has given it."""

import heapq
import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import RayActorError

from coordinator.calls import PendingCall, depth
from workers.actor import WorkerStatus


@dataclass(eq=False)
class HeldWorker:
    """A worker actor and what it was given, oldest first; it works on the first.

    Beside that it has quick calls, each with the time at which it was given; they go between steps of the others.

    `starting` is a call to it that is answered once it runs; None from then on. Until then it is given nothing: an
    actor that finds no room, as after the loss of a node, waits for it without end. One that fails is started again
    at `restart_at_s`.

    `withdrawal` is a question to it, whether it lets go of a call that it has not begun, and that call. `leaves_at_s`
    is the time at which its node is taken away; `math.inf` of a node that waits for it. `is_placed` says whether its
    node was seen among those of the cluster.
    """

    name: str
    handle: Any
    starting: Any
    restart_at_s: float | None = None
    node_id: str | None = None
    in_flight: deque[tuple[Any, PendingCall]] = field(default_factory=deque)
    head_since_s: float = 0.0
    quick: deque[tuple[Any, PendingCall, float]] = field(default_factory=deque)
    withdrawal: tuple[Any, Any] | None = None
    leaves_at_s: float | None = None
    is_placed: bool = False

    @property
    def is_idle(self) -> bool:
        """Whether it has no calls."""
        return not (self.in_flight or self.quick)

    @property
    def depth(self) -> float:
        """See `coordinator.calls.depth`."""
        return depth(len(self.in_flight), bool(self.in_flight) and self.in_flight[0][1].is_job)

    @property
    def is_starting(self) -> bool:
        """Whether it is not known yet that it runs."""
        return self.starting is not None

    @property
    def at_hand(self) -> list[Any]:
        """References to the results that may come next."""
        return [ref for ref, _ in list(self.in_flight)[:1]] + [ref for ref, _, _ in self.quick]

    @property
    def begun(self) -> list[PendingCall]:
        """Calls that are lost with it. Those behind the first were not begun, as far as is known."""
        return [call for _, call in list(self.in_flight)[:1]] + [call for _, call, _ in self.quick]

    def time_up(self, now_s: float, limit_s: float) -> float | None:
        """The seconds that a call was allowed, where it has exceeded them.

        Args:
            now_s: the time.
            limit_s: of a task, and of a quick call.
        """
        if self.quick and now_s - self.quick[0][2] > limit_s:
            return limit_s
        if not self.in_flight:
            return None
        limit_s *= self.in_flight[0][1].num_tasks
        return limit_s if now_s - self.head_since_s > limit_s else None

    def ask_back(self) -> None:
        """Asks for a call that it has not begun, if it has one; `given_back` has the answer, once it is there."""
        if self.withdrawal is None and len(self.in_flight) > 1:
            ref, _ = self.in_flight[-1]
            self.withdrawal = (self.handle.withdraw.remote(ref.task_id().hex()), ref)

    def given_back(self, agreed: bool) -> PendingCall | None:
        """Takes the answer to `ask_back`: the call, if it had not begun and is still wanted."""
        assert self.withdrawal is not None
        _, asked = self.withdrawal
        self.withdrawal = None
        for position, (ref, call) in enumerate(self.in_flight):
            if agreed and ref == asked:
                del self.in_flight[position]
                return call
        return None

    def leave(self, now_s: float, left_s: float | None) -> None:
        """Its node is about to be taken away, in so many seconds."""
        self.leaves_at_s = math.inf if left_s is None else now_s + left_s
        self.ask_back()  # first, or it would begin what is next
        self.handle.hand_over.remote()


def least_busy(
    workers: Sequence[HeldWorker], load: Callable[[HeldWorker], tuple[float, ...]], most: float
) -> Iterator[HeldWorker]:
    """The worker with the lowest load, again and again, until each has `most`. Whoever takes one gives it a call before
    asking for the next.

    Args:
        workers: the first of those with the same load is the first to come.
        load: of a worker; calls first.
        most: calls of one.
    """
    loads = [(*load(worker), position) for position, worker in enumerate(workers)]
    places = [place for place in loads if place[0] < most]
    heapq.heapify(places)
    while places:
        worker = workers[int(places[0][-1])]
        yield worker
        place = (*load(worker), places[0][-1])
        if place[0] < most:
            heapq.heapreplace(places, place)
        else:
            heapq.heappop(places)


def spare(workers: list[HeldWorker], number: int) -> list[HeldWorker]:
    """Workers to end first, where there are `number` too many: none at work.

    Those that find no room, then those on nodes where the fewest are at work, so that whole nodes become free.
    """
    at_work: dict[str | None, int] = {}
    for worker in workers:
        at_work[worker.node_id] = at_work.get(worker.node_id, 0) + (not worker.is_idle)
    idle = [worker for worker in workers if worker.is_idle]
    idle.sort(key=lambda worker: (not worker.is_starting, at_work[worker.node_id], worker.node_id or ""))
    return idle[: max(number, 0)]


def donors(workers: list[HeldWorker]) -> list[HeldWorker]:
    """Workers to ask back for a call, so that none is without calls while another has some that it has not begun.

    Those first whose work is youngest, as the calls behind it would wait longest.
    """
    running = [worker for worker in workers if not worker.is_starting and worker.leaves_at_s is None]
    num_idle = sum(not worker.in_flight for worker in running)
    num_idle -= sum(worker.withdrawal is not None for worker in workers)  # what is on its way
    laden = [worker for worker in running if worker.withdrawal is None and len(worker.in_flight) > 1]
    laden.sort(key=lambda worker: -worker.head_since_s)
    return laden[: max(num_idle, 0)]


def statuses_of(handles: Sequence[Any], timeout_s: float) -> list[WorkerStatus]:
    """What those actors that answer in time are doing."""
    refs = [handle.status.remote() for handle in handles]
    ready, _ = ray.wait(refs, num_returns=len(refs), timeout=timeout_s)
    found = []
    for ref in ready:
        try:
            found.append(ray.get(ref))
        except RayActorError:
            continue
    return found
