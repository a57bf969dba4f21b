"""What a job store holds, counted: for those who watch the service from outside."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from coordinator.jobs import TERMINAL
from coordinator.store.jobs import JobStore

_UNKNOWN_KIND = "unknown"  # of entries that an earlier version wrote


@dataclass(frozen=True)
class Waiting:
    """The jobs of one kind in the queue.

    Attributes:
        num_jobs: how many.
        oldest_s: when the oldest was submitted, seconds since 1970; None where there is none, or nothing says.
    """

    num_jobs: int
    oldest_s: float | None


@dataclass(frozen=True)
class Overview:
    """See the module.

    Attributes:
        waiting: by kind of job, of kinds that wait.
        num_paused: jobs that would wait, were they not paused.
        num_running: jobs that run, in whoever's hands.
        num_finished: by state, since the store was made.
        num_beats: signs of life of coordinators, since the store was made.
        epoch: of the coordinator in charge, 0 before the first.
    """

    waiting: Mapping[str, Waiting]
    num_paused: int
    num_running: int
    num_finished: Mapping[str, int]
    num_beats: int
    epoch: int


def overview(store: JobStore) -> Overview:
    """Counts; reads an entry for each job that has not ended.

    Raises:
        UnavailableError: the store does not answer.
    """
    depths: Counter[str] = Counter()
    oldest: dict[str, float] = {}
    for stored in store.records("queue/"):
        kind = stored.record.get("kind", _UNKNOWN_KIND)
        depths[kind] += 1
        created_s = stored.record.get("created_s")
        if created_s is not None:
            oldest[kind] = min(oldest.get(kind, created_s), created_s)
    return Overview(
        waiting={kind: Waiting(count, oldest.get(kind)) for kind, count in depths.items()},
        num_paused=sum(1 for _ in store.records("paused/")),
        num_running=sum(1 for _ in store.records("active/")),
        num_finished={str(state): store.ledger.counter(f"finished/{state}") for state in sorted(TERMINAL)},
        num_beats=store.last_beat()[0],
        epoch=store.epoch(),
    )
