"""Means of many vectors: right to many digits, and bitwise the same in any order."""

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.config import OuterConfig
from common.streams import stream
from coordinator.aggregate import MAX_MAGNITUDE, MAX_VECTORS, FixedPointMean, aggregator

RULES = ["mean", "clipped_mean", "median", "trimmed_mean"]


def mean_by(rule, vectors, weights=None, **settings_of_rule):
    config = OuterConfig.model_validate({"rule": rule, **settings_of_rule})
    total = aggregator(len(vectors[0]), config)
    for position, vector in enumerate(vectors):
        total.add(vector, 1.0 if weights is None else weights[position])
    return total.result()


def random_vectors(count, size, *keys, scale=1.0):
    return [(scale * row).astype(np.float32) for row in stream(3, *keys).normal(size=(count, size))]


@pytest.mark.parametrize("scale", [3.0, 1e-6])
@pytest.mark.parametrize("count", [1, 2, 7, 100])
def test_mean_has_the_precision_of_float64(count, scale):
    vectors = random_vectors(count, 1000, "precision", scale=scale)
    expected = np.stack(vectors).astype(np.float64).mean(axis=0)
    # Each vector is rounded to the nearest multiple of 2^-40; float64 sums themselves err by less than 1e-13 here.
    assert np.abs(mean_by("mean", vectors) - expected).max() < 2.0**-41 + 1e-13


def test_mean_keeps_differences_far_below_the_resolution_of_float32_at_one():
    tiny = [np.full(3, 2.0**-30, np.float32), np.full(3, 3 * 2.0**-30, np.float32)]
    assert mean_by("mean", tiny).tolist() == [2.0**-29] * 3


def test_weighted_mean_by_hand():
    vectors = [np.float32([1.0, -4.0]), np.float32([5.0, 8.0])]
    # (1 * 1 + 3 * 5) / 4 and (1 * -4 + 3 * 8) / 4
    assert mean_by("mean", vectors, [0.5, 1.5]).tolist() == [4.0, 5.0]


def test_weighted_mean_equals_numpy_for_any_weights():
    vectors = random_vectors(9, 200, "weighted")
    weights = stream(3, "weights").uniform(0.1, 5.0, size=9).tolist()
    expected = np.average(np.stack(vectors).astype(np.float64), axis=0, weights=weights)
    # Weights count in units of 2^-20, so to 5e-6 of the smallest one here.
    assert np.abs(mean_by("mean", vectors, weights) - expected).max() < 1e-5


def test_the_smallest_weight_still_counts():
    assert mean_by("mean", [np.float32([0.25])], [1e-12]).tolist() == [0.25]


def test_the_largest_values_do_not_overflow():
    total = FixedPointMean(2)
    largest = np.float32([MAX_MAGNITUDE, -MAX_MAGNITUDE])
    for _ in range(MAX_VECTORS - 1):
        total.add(largest, 1.0)
    assert total.result().tolist() == [MAX_MAGNITUDE, -MAX_MAGNITUDE]


def test_more_vectors_than_the_range_is_made_for_are_refused():
    total = FixedPointMean(1)
    for _ in range(MAX_VECTORS):
        total.add(np.zeros(1, np.float32), 1.0)
    with pytest.raises(AssertionError, match="more vectors"):
        total.add(np.zeros(1, np.float32), 1.0)


@pytest.mark.parametrize("count", [1, 2, 5, 8])
def test_median_equals_numpy(count):
    vectors = random_vectors(count, 300, "median")
    expected = np.median(np.stack(vectors).astype(np.float64), axis=0)
    assert np.array_equal(mean_by("median", vectors), expected)


@pytest.mark.parametrize(("count", "trimmed"), [(1, 0), (3, 0), (4, 1), (8, 2), (9, 2)])
def test_trimmed_mean_drops_the_share_of_smallest_and_largest_values_of_each_coordinate(count, trimmed):
    vectors = random_vectors(count, 300, "trimmed")
    values = np.sort(np.stack(vectors).astype(np.float64), axis=0)[trimmed : count - trimmed]
    assert np.allclose(
        mean_by("trimmed_mean", vectors, trim_fraction=0.25), values.mean(axis=0), rtol=1e-14, atol=1e-15
    )


@pytest.mark.parametrize(("rule", "expected"), [("mean", 250.75), ("median", 2.0), ("trimmed_mean", 2.0)])
def test_only_the_mean_follows_an_outlier(rule, expected):
    vectors = [np.float32([value]) for value in (1.0, 1000.0, 3.0, -1.0)]
    assert mean_by(rule, vectors, trim_fraction=0.25).tolist() == [expected]


@pytest.mark.parametrize("rule", RULES)
def test_vectors_longer_than_one_chunk_are_aggregated_to_the_end(rule):
    vectors = random_vectors(3, 40_000, "long")
    whole = mean_by(rule, vectors)
    for span in (slice(0, 100), slice(16_300, 16_500), slice(39_900, 40_000)):
        assert np.array_equal(whole[span], mean_by(rule, [vector[span] for vector in vectors]))


@pytest.mark.parametrize("rule", RULES)
def test_arguments_are_left_as_they_were(rule):
    vectors = random_vectors(4, 50, "unchanged")
    before = [vector.tobytes() for vector in vectors]
    mean_by(rule, vectors)
    assert [vector.tobytes() for vector in vectors] == before


FLOATS = st.floats(-MAX_MAGNITUDE / 8, MAX_MAGNITUDE / 8, width=32)


@pytest.mark.parametrize("rule", RULES)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_order_gives_the_same_bits(rule, data):
    vectors = data.draw(st.lists(st.lists(FLOATS, min_size=3, max_size=3), min_size=1, max_size=8))
    arrays = [np.float32(vector) for vector in vectors]
    robust = rule in ("median", "trimmed_mean")
    weight = st.just(1.0) if robust else st.floats(1e-3, 8.0)
    weights = data.draw(st.lists(weight, min_size=len(arrays), max_size=len(arrays)))
    order = data.draw(st.permutations(range(len(arrays))))
    expected = mean_by(rule, arrays, weights)
    shuffled = mean_by(rule, [arrays[place] for place in order], [weights[place] for place in order])
    assert shuffled.tobytes() == expected.tobytes()


@pytest.mark.parametrize("rule", RULES)
def test_zeros_of_both_signs_give_the_same_bits_in_any_order(rule):
    zeros = [np.float32([0.0]), np.float32([-0.0]), np.float32([0.0])]
    bits = {mean_by(rule, order, trim_fraction=0.4).tobytes() for order in permutations(zeros)}
    assert len(bits) == 1
