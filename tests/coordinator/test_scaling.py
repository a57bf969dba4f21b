"""How many workers there should be: never out of its range, at once where there is work, without flapping."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.config import ClusterConfig
from common.errors import InvalidInputError
from common.loading import load as load_config
from coordinator.scaling import Load, Scaling, room_for, with_demand

IDLE_S = 60.0
COURSES = st.lists(st.tuples(st.floats(0.0, 200.0), st.integers(0, 20)), min_size=1, max_size=40)
"""Seconds since the look before, and the calls that there are."""


def ranged(least: int, most: int) -> Scaling:
    return Scaling(ClusterConfig(min_workers=least, max_workers=most, gpus_per_worker=0, idle_s=IDLE_S))


def followed(scaling: Scaling, course: list[tuple[float, int]]) -> list[tuple[float, int, int]]:
    """(time, calls, workers) at each look."""
    now_s, found = 0.0, []
    for pause_s, num_calls in course:
        now_s += pause_s
        found.append((now_s, num_calls, scaling.target(Load(num_calls), 0, now_s)))
    return found


@given(COURSES, st.integers(0, 5), st.integers(5, 12))
def test_the_number_is_the_most_that_was_needed_lately_within_its_range(course, least, most):
    looks = followed(ranged(least, most), course)
    for position, (now_s, _, target) in enumerate(looks):
        lately = [calls for at_s, calls, _ in looks[: position + 1] if now_s - at_s < IDLE_S]
        assert target == min(max(max(lately), least), most)


@given(COURSES)
def test_workers_are_added_at_once_and_ended_only_after_less_was_needed_for_the_whole_time(course):
    looks = followed(ranged(0, 12), course)
    before = 0
    for position, (now_s, calls, target) in enumerate(looks):
        assert target >= min(calls, 12), "nobody waits for the decision"
        if target < before:
            needed = [n for at_s, n, _ in looks[: position + 1] if now_s - at_s < IDLE_S]
            assert max(needed) < before
        before = target


@given(st.lists(st.integers(0, 9), min_size=2, max_size=60))
def test_work_that_comes_and_goes_faster_than_that_ends_nothing(calls):
    targets = [target for _, _, target in followed(ranged(1, 9), [(IDLE_S / 60, number) for number in calls])]
    assert targets == sorted(targets), "within idle_s it only grows"


@given(COURSES)
def test_what_is_remembered_stays_small(course):
    peaks: tuple[tuple[float, int], ...] = ()
    now_s = 0.0
    for pause_s, number in course:
        now_s += pause_s
        peaks = with_demand(peaks, now_s, number, IDLE_S)
    numbers = [number for _, number in peaks]
    assert numbers == sorted(set(numbers), reverse=True) and len(peaks) <= 21


def test_without_work_a_range_falls_to_its_low_end_and_grows_again_from_nothing():
    scaling = ranged(0, 4)
    assert scaling.first(room=0) == 0
    assert scaling.target(Load(num_calls=1), 0, 10.0) == 1, "no room is needed: an autoscaler makes it"
    assert scaling.target(Load(num_calls=9), 1, 20.0) == 4
    assert scaling.target(Load(), 4, 20.0 + IDLE_S - 0.1) == 4
    assert scaling.target(Load(), 4, 20.0 + IDLE_S) == 0
    assert scaling.most(held=0) == 4


def test_quick_calls_want_a_worker_for_two_and_none_beside_those_that_compute():
    assert Load(num_quick=1).num_workers == 1
    assert Load(num_quick=5).num_workers == 3
    assert Load(num_calls=3, num_quick=5).num_workers == 3


def test_without_a_range_the_number_is_what_was_given_or_what_there_is_room_for():
    fixed, following = Scaling(ClusterConfig(num_workers=3)), Scaling(ClusterConfig())
    for room in (0, 2, 5):
        assert fixed.target(Load(num_calls=9), room, 0.0) == fixed.first(room) == 3
        assert following.target(Load(num_calls=9), room, 0.0) == following.first(room) == room
    assert fixed.most(held=3) == 3 and following.most(held=2) == 2


@pytest.mark.parametrize(
    ("nodes", "gpus_per_worker", "room"),
    [
        ([], 0.0, 0),
        ([{"CPU": 2.0}, {"CPU": 3.5}], 0.0, 5),
        ([{"CPU": 16.0, "GPU": 4.0}, {"CPU": 2.0, "GPU": 4.0}], 1.0, 6),
        ([{"CPU": 16.0, "GPU": 1.0}, {"CPU": 16.0, "GPU": 1.0}], 0.6, 2),  # not 3: no worker is on two nodes
        ([{"CPU": 8.0}, {"GPU": 8.0}], 1.0, 0),
        ([{"CPU": 4.0, "GPU": 1.0}], 0.25, 4),
    ],
)
def test_workers_find_room_on_single_nodes(nodes, gpus_per_worker, room):
    assert room_for(nodes, gpus_per_worker) == room


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["cluster.min_workers=1"], r"min_workers is 1, the low end of a range; give max_workers too"),
        (
            ["cluster.max_workers=4", "cluster.num_workers=2"],
            r"num_workers is 2 and max_workers 4; give num_workers for a fixed number",
        ),
        (
            ["cluster.max_workers=4", "cluster.min_workers=5", "cluster.gpus_per_worker=1"],
            r"min_workers is 5, max_workers 4; lower min_workers",
        ),
        (
            ["cluster.max_workers=4", "cluster.min_workers=0"],
            r"max_workers is 4, gpus_per_worker is not given; .* set gpus_per_worker, to 0 for workers without a GPU",
        ),
        (["cluster.max_workers=0"], r"cluster.max_workers: .* greater than or equal to 1 \(got 0\)"),
    ],
)
def test_a_range_that_cannot_be_is_refused_with_what_to_do(overrides, message):
    with pytest.raises(InvalidInputError, match=message):
        load_config("smoke", overrides, environment={})


def test_a_few_workers_of_a_configuration_are_a_fixed_number_or_a_shorter_range():
    assert ClusterConfig(gpus_per_worker=1).with_workers(1) == ClusterConfig(gpus_per_worker=1, num_workers=1)
    wide = ClusterConfig(min_workers=4, max_workers=8, gpus_per_worker=1)
    assert wide.with_workers(1) == ClusterConfig(min_workers=1, max_workers=1, gpus_per_worker=1)
    from_nothing = ClusterConfig(min_workers=0, max_workers=8, gpus_per_worker=1)
    assert from_nothing.with_workers(2) == ClusterConfig(min_workers=0, max_workers=2, gpus_per_worker=1)
    assert math.isclose(wide.with_workers(3).idle_s, 60.0)
