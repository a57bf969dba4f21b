"""How many workers there should be, given what there is to do and where they find room. Pure."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from common.config import ClusterConfig

QUICK_PER_WORKER = 2
"""Quick calls that a worker has at once, between the steps of its other work."""


@dataclass(frozen=True)
class Load:
    """What there is to do, begun or not.

    Attributes:
        num_calls: calls to workers, and jobs that would start if there were more of them.
        num_quick: the same of few-shot jobs.
    """

    num_calls: int = 0
    num_quick: int = 0

    @property
    def num_workers(self) -> int:
        """Workers that it keeps busy: one for each call. Quick calls need none of their own where others compute."""
        return max(self.num_calls, math.ceil(self.num_quick / QUICK_PER_WORKER))


class Scaling:
    """The number of workers that a pool should hold; see `ClusterConfig` for its three ways.

    Where it is a range, workers are added as soon as there is work for them, whether the cluster has room or not: those
    that wait for room make an autoscaler add nodes. They are ended once there has been less work for `idle_s`: the
    number is the most that were needed at any time of the last `idle_s`. So work that comes and goes faster than that
    adds and ends nothing.

    Args:
        config: the number, or its range.
    """

    def __init__(self, config: ClusterConfig) -> None:
        self._config = config
        self._peaks: tuple[tuple[float, int], ...] = ()

    def target(self, load: Load, room: int, now_s: float) -> int:
        """The number from now on.

        Args:
            load: what there is to do.
            room: workers that find room on the cluster as it is.
            now_s: a monotonic clock.
        """
        config = self._config
        if config.max_workers is None:
            return room if config.num_workers is None else config.num_workers
        self._peaks = with_demand(self._peaks, now_s, load.num_workers, config.idle_s)
        return min(max(self._peaks[0][1], config.least_workers), config.max_workers)

    def first(self, room: int) -> int:
        """The number to begin with, where there is nothing to do yet."""
        return self.target(Load(), room, -math.inf)

    def most(self, held: int) -> int:
        """The most workers that there may be as long as the cluster does not change; now it has `held`."""
        return held if self._config.max_workers is None else self._config.max_workers


def with_demand(
    peaks: tuple[tuple[float, int], ...], now_s: float, num_needed: int, window_s: float
) -> tuple[tuple[float, int], ...]:
    """Remembers how many workers were needed in the last `window_s`, as far as it matters for the most of them.

    Args:
        peaks: (time, number) that was found so far; numbers fall, times grow. The first is the most.
        now_s: not before the last of `peaks`.
        num_needed: now.
        window_s: seconds after which a number no longer counts.

    Returns:
        The same, with what is needed now as the last.
    """
    # What was followed by as much or more no longer decides.
    kept = tuple((at_s, number) for at_s, number in peaks if now_s - at_s < window_s and number > num_needed)
    return (*kept, (now_s, num_needed))


def room_for(nodes: Iterable[Mapping[str, float]], gpus_per_worker: float) -> int:
    """How many workers, of one CPU each, find room on nodes.

    Args:
        nodes: the resources of each, by Ray's names. What several nodes have left over together is room for none.
        gpus_per_worker: GPUs of each.
    """
    return sum(
        math.floor(min(node.get("CPU", 0.0), node.get("GPU", 0.0) / gpus_per_worker if gpus_per_worker else math.inf))
        for node in nodes
    )
