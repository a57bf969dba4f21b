"""Silhouettes, spreads and neighbours of families, worked out by hand."""

import numpy as np
import pytest

from coordinator.paper.clusters import clusters


def points(*values):
    return [np.array([value, 0.0, 0.0]) for value in values]


def test_silhouettes_of_two_pairs_on_a_line():
    found = clusters({"near": points(0, 1), "far": points(10, 12)})
    # Of each point: 1 - (distance to its partner) / (mean distance to the other family).
    near, far = (1 - 1 / 11, 1 - 1 / 10), (1 - 2 / 9.5, 1 - 2 / 11.5)
    assert found.silhouettes == pytest.approx({"near": np.mean(near), "far": np.mean(far)})
    assert found.silhouette == pytest.approx(np.mean(near + far))
    assert found.components.explained == pytest.approx((1, 0))


def test_mixed_families_have_a_silhouette_below_zero():
    assert clusters({"a": points(0, 10), "b": points(1, 9)}).silhouette < 0


def test_spreads_are_relative_and_neighbours_are_by_means():
    found = clusters({"a": points(0, 2), "b": points(3, 9), "c": points(40, 44)})
    # Distances from the means: 1, 3 and 2, on average 2.
    assert found.spreads == pytest.approx({"a": 0.5, "b": 1.5, "c": 1.0})
    assert found.nearest == {"a": "b", "b": "a", "c": "b"}
    assert found.families == ("a", "a", "b", "b", "c", "c")
