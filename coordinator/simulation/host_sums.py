"""Partial sums per host: what hosts keep of a round until nothing more of it can come to them."""

from collections import Counter
from collections.abc import Iterator

from common.config import StudyConfig
from common.messages import AdaptResult, PartialSum, PartialSumRequest, statistics_of
from common.meta.sums import UpdateSums
from coordinator.calls import Outcome, PendingCall

Group = tuple[str, int]
"""The job and the version that calls of one round have in common."""


class HostSums:
    """Which calls of rounds wait, are at hosts, or have ended there and are kept."""

    def __init__(self) -> None:
        self._num_waiting: Counter[Group] = Counter()
        self._num_at_host: Counter[tuple[int, Group]] = Counter()
        self._held: dict[tuple[int, Group], list[PendingCall]] = {}
        self._changed: set[tuple[int, Group]] = set()

    def waits(self, call: PendingCall, change: int) -> None:
        """A call waits for a worker from now on, or no longer."""
        group = _group_of(call)
        self._num_waiting[group] += change
        if not self._num_waiting[group]:
            self._changed |= {place for place in self._held if place[1] == group}

    def at_host(self, host: int, call: PendingCall, change: int) -> None:
        """A call is at a worker of a host from now on, or no longer."""
        place = (host, _group_of(call))
        self._num_at_host[place] += change
        self._changed.add(place)

    def keep(self, host: int, call: PendingCall) -> None:
        """A call has ended, and its host keeps the update."""
        self._held.setdefault((host, _group_of(call)), []).append(call)

    def forget(self, key: str) -> None:
        """Drops what is kept of a call."""
        for held in self._held.values():
            held[:] = [call for call in held if call.key != key]

    def complete(self) -> Iterator[list[PendingCall]]:
        """The calls of each host and round that have ended there, where none of that round can come any more."""
        for host, group in sorted(self._changed):
            if not (self._num_waiting[group] or self._num_at_host[host, group]):
                calls = self._held.pop((host, group), [])
                if calls:
                    yield calls
        self._changed.clear()


def outcomes_of_sum(calls: list[PendingCall], whole: PartialSum) -> list[Outcome]:
    """One sum for all calls: under the key of the last, and sums of nothing before it under those of the others."""
    nothing = PartialSum(whole.version, {}, (), {})
    return [Outcome(call.key, whole if call is calls[-1] else nothing) for call in calls]


def as_partial_sum(call: PendingCall, result: AdaptResult | PartialSum, config: StudyConfig) -> PartialSum:
    """What a host adds up: a worker's sum, or that of its one task."""
    if isinstance(result, PartialSum):
        return result
    assert call.prior is not None and result.update is not None, "an update, which starts from a prior"
    sums = UpdateSums(call.prior, config)
    rejection = sums.absorb(result.update)
    statistics = {result.task_id: statistics_of(result)} if rejection is None else {}
    return PartialSum(call.prior.version, statistics, (rejection,) if rejection else (), sums.sums())


def _group_of(call: PendingCall) -> Group:
    request = call.request
    first = request.requests[0] if isinstance(request, PartialSumRequest) else request
    return call.key.split("/")[0], getattr(first, "version", 0)
