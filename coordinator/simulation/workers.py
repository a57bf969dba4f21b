"""Simulated workers as the coordinator sees them, and what is counted of their time."""

from collections import deque
from dataclasses import dataclass, field

from common.messages import AdaptRequest, JobRequest
from coordinator.calls import Call, PendingCall, depth


@dataclass(eq=False)
class Work:
    """A call at a worker, and when it computes."""

    call: PendingCall
    starts_s: float
    ends_s: float
    has_ended: bool = False


@dataclass(eq=False)
class SimulatedWorker:
    """What was handed out to it and has not come back, oldest first; and when it has nothing more to compute."""

    index: int
    host: int
    incarnation: int = 0
    runs: bool = False
    in_flight: deque[Work] = field(default_factory=deque)
    free_s: float = 0.0

    @property
    def depth(self) -> float:
        """See `coordinator.calls.depth`."""
        return depth(len(self.in_flight), bool(self.in_flight) and self.in_flight[0].call.is_job)


@dataclass
class Tally:
    """What workers and the network have done; seconds of computing within the window alone."""

    window_s: tuple[float, float]
    useful_s: float = 0.0
    wasted_s: float = 0.0
    outward_bytes: float = 0.0
    num_calls: int = 0
    num_deaths: int = 0
    waited_s: float = 0.0
    """Results, from their arrival until the coordinator took them."""

    def overlap(self, starts_s: float, ends_s: float) -> float:
        """Seconds between two times that are within the window."""
        return max(min(ends_s, self.window_s[1]) - max(starts_s, self.window_s[0]), 0.0)


def has_update(request: Call) -> bool:
    """Whether the result of a call carries one task's update."""
    return isinstance(request, AdaptRequest) or (isinstance(request, JobRequest) and request.returns_update)
