"""What is assumed of a cluster: how long tasks take, how often workers die, what the network carries."""

import math
from statistics import NormalDist
from typing import Literal

from pydantic import Field

from common.config import Frozen, NonNegativeFloat, PositiveFloat
from common.streams import derived_seed

_NORMAL = NormalDist()


class TaskTimes(Frozen):
    """Seconds that a worker computes for one task of meta-training."""

    distribution: Literal["constant", "lognormal", "pareto"] = "lognormal"
    mean_s: PositiveFloat = 221.0
    """The paper's: 8 GPU-days for 130 rounds of 24 tasks."""
    sigma: NonNegativeFloat = 0.5
    """Of the logarithm, under lognormal."""
    tail_index: float = Field(2.1, gt=1.0)
    """Under pareto: the share of tasks above x falls as x to the minus this; up to 2 the variance is infinite."""
    most_of_mean: float = Field(20.0, gt=1.0)
    """No task takes more than so many times the mean."""

    def draw(self, seed: int, key: str) -> float:
        """Seconds of the task `key`: a function of both."""
        share = (derived_seed(seed, key, "seconds") + 0.5) / 2.0**63
        return min(self._quantile(share), self.most_of_mean * self.mean_s)

    def _quantile(self, share: float) -> float:
        """Below which the given share of tasks is, 0 to 1."""
        if self.distribution == "constant":
            return self.mean_s
        if self.distribution == "lognormal":
            return self.mean_s * math.exp(self.sigma * _NORMAL.inv_cdf(share) - self.sigma**2 / 2)
        least = self.mean_s * (self.tail_index - 1) / self.tail_index
        return least * float((1 - share) ** (-1 / self.tail_index))


class Failures(Frozen):
    """Deaths of workers."""

    deaths_per_hour: NonNegativeFloat = 0.02
    """Of each worker: one in about two days."""
    restart_s: NonNegativeFloat = 30.0
    """From the coordinator's hearing of it until the next worker runs."""

    def draw(self, seed: int, worker: int, incarnation: int) -> float:
        """Seconds that a worker lives."""
        if not self.deaths_per_hour:
            return math.inf
        share = (derived_seed(seed, worker, incarnation, "life") + 0.5) / 2.0**63
        return -math.log(share) * 3600.0 / self.deaths_per_hour


class Network(Frozen):
    """What connects hosts."""

    latency_s: NonNegativeFloat = 0.001
    """Of a call, one way."""
    bytes_per_s: PositiveFloat = 1.25e9
    """Of a host's interface, each way: 10 Gbit/s."""
    workers_per_host: int = Field(8, ge=1)
    """They share one copy of a prior."""


class Broadcast:
    """A prior on its way to all hosts that ask for it.

    Each pulls it once, from one of those that have it by then, as in Ray: so those that have it double with every
    transfer, and the k-th asker troubles the first owner with probability 1/k.
    """

    def __init__(self, put_s: float, num_bytes: float, network: Network) -> None:
        self._put_s = put_s
        self._transfer_s = num_bytes / network.bytes_per_s
        self._latency_s = network.latency_s
        self._num_bytes = num_bytes
        self._ready_s: dict[int, float] = {}

    def pull(self, host: int, now_s: float) -> tuple[float, float]:
        """When a host has it that asks now, and the bytes that its owner has to send for that, on average."""
        if host in self._ready_s:
            return self._ready_s[host], 0.0
        place = len(self._ready_s) + 1
        # So many transfers one after the other must be over before there is a copy for this one.
        earliest_s = self._put_s + math.floor(math.log2(place)) * self._transfer_s
        self._ready_s[host] = max(now_s, earliest_s) + self._transfer_s + self._latency_s
        return self._ready_s[host], self._num_bytes / place


class Link:
    """The coordinator host's interface, inwards: what arrives together comes one after the other."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self._free_s = 0.0
        self.num_bytes = 0.0

    def send(self, now_s: float, num_bytes: float) -> float:
        """When bytes that are sent now have arrived."""
        self.num_bytes += num_bytes
        self._free_s = max(self._free_s, now_s) + num_bytes / self._network.bytes_per_s
        return self._free_s + self._network.latency_s
