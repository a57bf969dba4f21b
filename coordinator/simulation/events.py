"""Simulated time: a clock that the coordinator's work moves on, and what happens elsewhere meanwhile."""

import heapq
from collections import defaultdict
from collections.abc import Callable
from itertools import count


class Clock:
    """Seconds since the simulation began. It moves on while the coordinator computes (`charge`) or waits."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.busy_s: defaultdict[str, float] = defaultdict(float)
        """Seconds that the coordinator computed, by what for."""

    def charge(self, activity: str, seconds: float) -> None:
        """The coordinator computes."""
        self.now_s += seconds
        self.busy_s[activity] += seconds

    def wait_until(self, time_s: float) -> None:
        """The coordinator waits."""
        self.now_s = max(self.now_s, time_s)


class Events:
    """What will happen, in order of time; at equal times in the order in which it was said."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Callable[[float], None]]] = []
        self._numbers = count()

    def at(self, time_s: float, action: Callable[[float], None]) -> None:
        """Calls `action` with the time, once it has come."""
        heapq.heappush(self._heap, (time_s, next(self._numbers), action))

    @property
    def next_s(self) -> float:
        """When something happens next; infinity where nothing does."""
        return self._heap[0][0] if self._heap else float("inf")

    def run_until(self, time_s: float) -> None:
        """All that has happened by then, and what follows from it."""
        while self.next_s <= time_s:
            happened_s, _, action = heapq.heappop(self._heap)
            action(happened_s)
