"""Which queued job starts next, worked out by hand; and shares over many picks."""

from collections import Counter
from collections.abc import Mapping, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.fairness import MAX_BACK_OFF_S, more_calls, pick
from coordinator.store.records import QueueEntry

NOW_S = 1_000_000.0


def entry(tenant: str, job_id: str, study: str = "digits", **fields: object) -> QueueEntry:
    return QueueEntry.model_validate({"tenant": tenant, "study": study, "job_id": job_id, **fields})


def choose(
    queues: Mapping[str, Sequence[QueueEntry]],
    running: Mapping[str, int] | None = None,
    weights: Mapping[str, float] | None = None,
    busy: Sequence[tuple[str, str]] = (),
    has_gpu: bool = False,
    now_s: float = NOW_S,
) -> str | None:
    found = pick(queues, running or {}, weights or {}, frozenset(busy), has_gpu, now_s)
    return None if found is None else found.job_id


def test_nothing_queued_starts_nothing() -> None:
    assert choose({}) is None
    assert choose({"a": []}) is None


def test_the_tenant_with_the_fewest_running_jobs_per_share_is_next() -> None:
    queues = {"a": [entry("a", "a1")], "b": [entry("b", "b1")]}
    assert choose(queues, {"a": 1}) == "b1"
    assert choose(queues, {"a": 3, "b": 2}) == "b1"
    assert choose(queues, {"a": 3, "b": 2}, {"a": 2.0}) == "a1", "3 / 2 < 2 / 1"
    assert choose(queues, {"a": 4, "b": 2}, {"a": 2.0, "b": 1.0}) == "a1", "ties go by name"


@pytest.mark.parametrize("first_to_finish", [0, -1], ids=["oldest ends first", "youngest ends first"])
def test_over_many_picks_each_tenant_has_its_share_of_the_workers(first_to_finish: int) -> None:
    weights = {"large": 4.0, "middle": 2.0, "small": 1.0}
    queues = {tenant: [entry(tenant, f"{tenant}-{n}") for n in range(1000)] for tenant in weights}
    running: list[str] = []
    held: Counter[str] = Counter()
    for turn in range(1400):
        if len(running) == 14:
            running.pop(first_to_finish if turn % 3 else 0)
        found = pick(queues, Counter(running), weights, frozenset(), False, NOW_S)
        assert found is not None
        queues[found.tenant].remove(found)
        running.append(found.tenant)
        if len(running) == 14:
            held.update(running)
    assert {tenant: held[tenant] / held.total() for tenant in weights} == pytest.approx(
        {"large": 4 / 7, "middle": 2 / 7, "small": 1 / 7}, abs=0.02
    )


def test_a_tenant_alone_has_everything() -> None:
    assert choose({"small": [entry("small", "s1")]}, {"small": 1000}, {"small": 0.01}) == "s1"


def test_inside_a_tenant_the_order_of_the_queue_decides() -> None:
    # The store hands entries out by priority, then by submission.
    assert choose({"a": [entry("a", "urgent"), entry("a", "older"), entry("a", "younger")]}) == "urgent"


def test_a_job_waits_out_its_back_off_and_others_pass_it() -> None:
    queue = {"a": [entry("a", "failed", not_before_s=NOW_S + 5), entry("a", "fresh")]}
    assert choose(queue) == "fresh"
    assert choose(queue, now_s=NOW_S + 5) == "failed"
    assert choose({"a": queue["a"][:1]}) is None


def test_a_clock_that_was_set_back_holds_no_job_up() -> None:
    queue = {"a": [entry("a", "failed", not_before_s=NOW_S + 1)]}
    assert choose(queue, now_s=NOW_S - 86_400) == "failed"
    assert choose({"a": [entry("a", "longest", not_before_s=NOW_S + MAX_BACK_OFF_S)]}) is None


def test_gpu_jobs_are_passed_by_where_there_is_no_gpu() -> None:
    queue = {"a": [entry("a", "on a gpu", needs_gpu=True), entry("a", "anywhere")]}
    assert choose(queue) == "anywhere"
    assert choose(queue, has_gpu=True) == "on a gpu"
    assert choose({"a": queue["a"][:1], "b": [entry("b", "b1")]}, {"b": 7}) == "b1"


def test_jobs_that_move_a_prior_run_one_by_one_per_study() -> None:
    queue = {
        "a": [
            entry("a", "next round", moves_prior=True),
            entry("a", "elsewhere", "letters", moves_prior=True),
            entry("a", "plain"),
        ]
    }
    assert choose(queue) == "next round"
    assert choose(queue, busy=[("a", "digits")]) == "elsewhere"
    assert choose(queue, busy=[("a", "digits"), ("a", "letters")]) == "plain"
    assert choose(queue, busy=[("b", "digits")]) == "next round", "another tenant's study of that name is another study"


@pytest.mark.parametrize(
    "obstacle", [{"not_before_s": NOW_S + 5}, {"needs_gpu": True}], ids=["in back-off", "waits for a GPU"]
)
def test_a_job_that_moves_the_prior_is_never_passed_by_a_later_one(obstacle: dict[str, object]) -> None:
    queue = {
        "a": [
            entry("a", "first", moves_prior=True, **obstacle),
            entry("a", "second", moves_prior=True),
            entry("a", "other study", "letters", moves_prior=True),
        ]
    }
    assert choose(queue) == "other study"
    assert choose({"a": queue["a"][:2]}) is None
    assert choose({"a": [*queue["a"][:2], entry("a", "plain")]}) == "plain"


ENTRIES = st.lists(
    st.builds(
        entry,
        tenant=st.just("a"),
        job_id=st.uuids().map(str),
        study=st.sampled_from(["digits", "letters"]),
        moves_prior=st.booleans(),
        needs_gpu=st.booleans(),
        not_before_s=st.sampled_from([0.0, NOW_S - 1, NOW_S + 1]),
    ),
    max_size=8,
)


@given(ENTRIES, st.booleans())
def test_picking_until_nothing_is_left_keeps_the_order_of_every_studys_prior(
    entries: list[QueueEntry], has_gpu: bool
) -> None:
    waiting, started = list(entries), []
    busy: set[tuple[str, str]] = set()
    now_s = NOW_S
    for _ in range(3 * len(entries) + 3):
        found = pick({"a": waiting}, {}, {}, frozenset(busy), has_gpu, now_s)
        if found is None:  # all that run end, and time passes
            busy.clear()
            now_s += 1
            continue
        assert found.not_before_s <= now_s and (has_gpu or not found.needs_gpu)
        assert not (found.moves_prior and (found.tenant, found.study) in busy)
        waiting.remove(found)
        started.append(found)
        if found.moves_prior:
            busy.add((found.tenant, found.study))
    for study in ("digits", "letters"):
        submitted, ran = (
            [e.job_id for e in found if e.moves_prior and e.study == study] for found in (entries, started)
        )
        assert ran == submitted[: len(ran)]
    if has_gpu:
        assert not waiting


def test_where_there_is_room_for_one_kind_of_job_alone_the_first_of_them_is_next() -> None:
    queues = {
        "a": [entry("a", "a1"), entry("a", "a2", is_quick=True)],
        "b": [entry("b", "b1", is_quick=True, not_before_s=NOW_S + 1), entry("b", "b2")],
    }
    running = {"a": 5}

    def found(**room: bool) -> str | None:
        next_one = pick(queues, running, {}, frozenset(), False, NOW_S, **room)
        return None if next_one is None else next_one.job_id

    assert found() == "b2"
    assert found(takes_long=False) == "a2", "the quick one of b waits for another attempt"
    assert found(takes_quick=False) == "b2"
    assert found(takes_quick=False, takes_long=False) is None


@pytest.mark.parametrize(
    ("mine", "others", "room", "expected"),
    [
        (0, [], 7, 7),
        (3, [], 7, 4),
        (0, [(0, True)], 8, 4),
        (4, [(4, True)], 8, 0),
        # The other has nothing more to submit: what it leaves is taken,
        (4, [(1, False)], 8, 3),
        (0, [(0, False), (0, True)], 9, 4),
        # and given back once it wants it again, as calls end.
        (7, [(1, True)], 8, 0),
        (1, [(7, True)], 8, 0),
        (1, [(6, True)], 8, 1),
        # Nobody is left without a single call.
        (0, [(8, True)], 8, 1),
        (0, [(0, True), (0, True)], 1, 1),
        (0, [], -1, 1),
    ],
)
def test_runs_with_many_calls_share_the_room(
    mine: int, others: list[tuple[int, bool]], room: int, expected: int
) -> None:
    assert more_calls(mine, others, room) == expected


@given(
    waiting=st.lists(st.integers(0, 40), min_size=1, max_size=5),
    room=st.integers(1, 30),
    endings=st.lists(st.integers(0, 4), max_size=60),
)
def test_whatever_ends_the_room_is_kept_and_used(waiting: list[int], room: int, endings: list[int]) -> None:
    calls = [0] * len(waiting)

    def submit() -> None:
        for index in range(len(waiting)):
            others = [(calls[i], waiting[i] > 0) for i in range(len(waiting)) if i != index]
            number = min(more_calls(calls[index], others, room), waiting[index])
            calls[index] += number
            waiting[index] -= number

    for ending in (*endings, 0):
        submit()
        submit()  # that one has no more to submit was not known to those before it
        assert sum(calls) < room + len(calls), "each may have a single call"
        hungry = sum(number > 0 for number in waiting)
        assert not hungry or sum(calls) > room - 2 * len(calls), "but for the rest of two divisions"
        index = ending % len(calls)
        calls[index] = max(calls[index] - 1, 0)
