"""Which queued job starts next: a fair share for every tenant, priority and order of submission inside one; and how
many calls a study in training may have at the workers. Pure."""

from collections.abc import Iterable, Iterator, Mapping, Sequence

from coordinator.store.records import QueueEntry

MAX_BACK_OFF_S = 60.0
"""Longest wait after a failure. A job that would have to wait for longer does so by a clock that was set back since."""


def pick(
    queues: Mapping[str, Iterable[QueueEntry]],
    running: Mapping[str, int],
    weights: Mapping[str, float],
    busy_studies: frozenset[tuple[str, str]],
    has_gpu: bool,
    now_s: float,
    takes_quick: bool = True,
    takes_long: bool = True,
) -> QueueEntry | None:
    """The job to start next, None if none can.

    Args:
        queues: by tenant, in order of priority, then submission.
        running: jobs that each tenant has running.
        weights: share of each tenant; 1 where not given.
        busy_studies: (tenant, study) whose prior is being moved by a job that runs.
        has_gpu: whether workers have a GPU.
        now_s: the time.
        takes_quick: there is room for quick jobs.
        takes_long: there is room for others.

    Returns:
        The first eligible job of the tenant with the fewest running jobs per share; ties go by name. A job that moves
        the prior of a study is not eligible before earlier ones of that study have ended, even ones that wait for
        another attempt: so the prior's course does not depend on who fails when.
    """
    best: tuple[float, str, QueueEntry] | None = None
    for tenant, entries in queues.items():
        entry = _first_eligible(entries, busy_studies, has_gpu, now_s, takes_quick, takes_long)
        if entry is not None:
            load = running.get(tenant, 0) / weights.get(tenant, 1.0)
            if best is None or (load, tenant) < best[:2]:
                best = (load, tenant, entry)
    return None if best is None else best[2]


def num_eligible(
    entries: Iterable[QueueEntry], busy_studies: frozenset[tuple[str, str]], has_gpu: bool, now_s: float
) -> tuple[int, int]:
    """How many of a tenant's queued jobs would start if there were workers for all of them; arguments as of `pick`.

    Returns:
        Quick jobs, and others.
    """
    found = [entry.is_quick for entry in _eligible(entries, busy_studies, has_gpu, now_s)]
    return sum(found), len(found) - sum(found)


def more_calls(mine: int, others: Sequence[tuple[int, bool]], room: int) -> int:
    """Calls that a run may submit now, of the runs that have many to make.

    Each has an equal part of the room. What those leave of theirs that have nothing more to submit, as at the end of a
    round, is divided equally among the others, until they want it again. None is left without a single call.

    Args:
        mine: calls that it has submitted, and that have no outcome yet.
        others: the same of the other runs, and whether they have more to submit.
        room: calls that all of them may have.
    """
    part = max(room // (len(others) + 1), 1)
    left = sum(max(part - calls, 0) for calls, has_more in others if not has_more)
    share = part + left // (1 + sum(has_more for _, has_more in others))
    free = room - mine - sum(calls for calls, _ in others)
    return max(min(share - mine, free), 1 - mine, 0)


def _first_eligible(
    entries: Iterable[QueueEntry],
    busy_studies: frozenset[tuple[str, str]],
    has_gpu: bool,
    now_s: float,
    takes_quick: bool,
    takes_long: bool,
) -> QueueEntry | None:
    eligible = _eligible(entries, busy_studies, has_gpu, now_s)
    return next((entry for entry in eligible if (takes_quick if entry.is_quick else takes_long)), None)


def _eligible(
    entries: Iterable[QueueEntry], busy_studies: frozenset[tuple[str, str]], has_gpu: bool, now_s: float
) -> Iterator[QueueEntry]:
    blocked = set(busy_studies)
    for entry in entries:
        study = (entry.tenant, entry.study)
        waits = now_s < entry.not_before_s <= now_s + MAX_BACK_OFF_S
        can_start = not waits and (has_gpu or not entry.needs_gpu)
        if entry.moves_prior:
            can_start = can_start and study not in blocked
            blocked.add(study)
        if can_start:
            yield entry
