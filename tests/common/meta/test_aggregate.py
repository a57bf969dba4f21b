"""Means of many vectors: right to many digits, and bitwise the same in any order."""

import tracemalloc
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.config import OuterConfig
from common.meta import aggregate
from common.meta.aggregate import MAX_MAGNITUDE, MAX_PENDING, MAX_VECTORS, FixedPointMean, aggregator
from common.nn.native import library as library_module
from common.nn.native.library import Library
from common.streams import stream

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


# Sums of parts


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_sums_of_any_parts_in_any_order_give_the_same_bits(data):
    count = data.draw(st.integers(1, 3 * MAX_PENDING))
    vectors = random_vectors(count, 5, "parts")
    weights = data.draw(st.lists(st.floats(1e-3, 8.0), min_size=count, max_size=count))
    parts = data.draw(st.lists(st.integers(0, 3), min_size=count, max_size=count))  # part 0 is added one by one
    total = FixedPointMean(5)
    apart = {part: FixedPointMean(5) for part in data.draw(st.permutations(sorted(set(parts) - {0})))}
    for vector, weight, part in zip(vectors, weights, parts, strict=True):
        apart.get(part, total).add(vector, weight)
    for mean in apart.values():
        total.merge(mean.sum())
    assert total.result().tobytes() == mean_by("mean", vectors, weights).tobytes()


def test_the_limit_of_vectors_holds_for_sums_of_parts():
    zero = np.zeros(1, np.float32)
    part, total = FixedPointMean(1), FixedPointMean(1)
    for _ in range(MAX_VECTORS // 2):
        part.add(zero, 1.0)
    for _ in range(2):
        total.merge(part.sum())
    with pytest.raises(AssertionError, match="more vectors"):
        total.merge(part.sum())
    with pytest.raises(AssertionError, match="more vectors"):
        total.add(zero, 1.0)


def test_the_largest_values_do_not_overflow_in_sums_of_parts():
    total = FixedPointMean(2)
    largest = np.float32([MAX_MAGNITUDE, -MAX_MAGNITUDE])
    for _ in range(4):
        part = FixedPointMean(2)
        for _ in range(MAX_VECTORS // 4 - 1):
            part.add(largest, 1.0)
        total.merge(part.sum())
    assert total.result().tolist() == [MAX_MAGNITUDE, -MAX_MAGNITUDE]


# The library


def builds() -> list[Path]:
    """The builds that this processor can run."""
    features = library_module._processor_features()
    runnable = [variant for variant, needed in library_module._VARIANTS if needed <= features]
    folder = Path(library_module.__file__).parent
    return [path for variant in runnable for path in folder.glob(f"_cell_{variant}.*.so")]


def by_numpy(vectors, weights, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(aggregate, "find", lambda: (None, "not here"))
        return added(vectors, weights).tobytes()


def added(vectors, weights):
    total = FixedPointMean(len(vectors[0]))
    for vector, weight in zip(vectors, weights, strict=True):
        total.add(vector, weight)
    return total.sum().totals


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("path", builds(), ids=lambda path: path.name.split(".")[0])
def test_the_library_adds_to_the_same_bits_as_numpy(path, dtype, monkeypatch):
    library = Library(path)
    monkeypatch.setattr(aggregate, "find", lambda: (library, ""))
    generator = stream(3, "library")
    for count in (1, 7, 8, 9, 21):
        for size in (1, 15, 5000):
            # Weights whose product with a value has more digits than a double, so that a fused addition would differ.
            weights = generator.uniform(0.1, 8.0, size=count).tolist()
            scales = 10.0 ** generator.uniform(-9, 2, size=(count, size))
            vectors = [row.astype(dtype) for row in scales * generator.uniform(-1, 1, size=(count, size))]
            assert added(vectors, weights).tobytes() == by_numpy(vectors, weights, monkeypatch)


@pytest.mark.parametrize("path", builds(), ids=lambda path: path.name.split(".")[0])
def test_the_library_rounds_halves_to_even_and_knows_the_limits(path, monkeypatch):
    library = Library(path)
    monkeypatch.setattr(aggregate, "find", lambda: (library, ""))
    unit = 2.0**-40
    values = (
        np.array([0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 0.0, -0.0, 0.5000001, 2.0**50, -(2.0**50), 2.0**49 + 0.5]) * unit
    )
    expected = [0, 2, 2, 0, -2, -2, 0, 0, 1, 2**50, -(2**50), 2**49]
    assert added([values], [1.0]).tolist() == expected
    assert by_numpy([values], [1.0], monkeypatch) == np.array(expected).tobytes()


@pytest.mark.parametrize("path", builds(), ids=lambda path: path.name.split(".")[0])
def test_the_library_divides_to_the_same_bits_as_numpy(path):
    library = Library(path)
    generator = stream(3, "division")
    limits = [0, 1, -1, 2**53 + 1, -(2**53) - 1, 2**63 - 1, -(2**63)]
    for divisor in (1.0, 3.0, 2.0**40, 2.0**40 * 7.3):
        for size in (len(limits), 5000):
            totals = generator.integers(-(2**62), 2**62, size=size) >> generator.integers(0, 62, size=size)
            totals[: len(limits)] = limits
            expected = totals / divisor
            library.divide_fixed_point(totals, divisor)
            assert totals.tobytes() == expected.tobytes()


@pytest.mark.parametrize("native", [True, False])
def test_types_may_differ_and_vectors_may_have_gaps(native, monkeypatch):
    if not native:
        monkeypatch.setattr(aggregate, "find", lambda: (None, "not here"))
    plain = random_vectors(4, 50, "types")
    gaps = np.zeros(100, np.float32)
    gaps[::2] = plain[0]
    half = np.float16([0.25] * 50)
    mixed = [gaps[::2], plain[1].astype(np.float64), plain[2].astype(">f4"), half, plain[3]]
    same = [*plain[:3], half.astype(np.float32), plain[3]]
    assert mean_by("mean", mixed).tobytes() == mean_by("mean", same).tobytes()


@pytest.mark.parametrize("native", [True, False])
def test_memory_does_not_grow_with_the_number_of_vectors(native, monkeypatch):
    if not native:
        monkeypatch.setattr(aggregate, "find", lambda: (None, "not here"))
    size = 100_000

    def peak_bytes(count):
        tracemalloc.start()
        total = FixedPointMean(size)
        for number in range(count):
            total.add(np.full(size, number, np.float32), 1.0)
        total.result()
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return peak

    few, many = peak_bytes(2 * MAX_PENDING), peak_bytes(10 * MAX_PENDING)
    assert many < few + 4 * size
    # The totals, the result or the next vector, and the vectors that wait.
    assert many < size * (8 + 8 + 4 * (MAX_PENDING + 1))
