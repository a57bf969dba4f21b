import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.data.arrays import ClassArrays, ClassImages, in_memory
from workers.data.splits import classes_of


def source(groups: list[str]) -> ClassArrays:
    image = np.zeros((1, 2, 2, 1), np.uint8)
    return in_memory([ClassImages(f"{group}/{index}", group, image) for index, group in enumerate(groups)], "x")


GROUPS = st.lists(st.sampled_from("abcdefgh"), min_size=2, max_size=30)


@given(groups=GROUPS, fraction=st.floats(0, 1), seed=st.integers(0, 99))
def test_splits_are_disjoint_by_group_and_cover_all(groups: list[str], fraction: float, seed: int) -> None:
    arrays = source(groups)
    seen = classes_of(arrays, "meta_train", fraction, seed)
    unseen = classes_of(arrays, "unseen", fraction, seed)
    assert sorted(seen + unseen) == list(classes_of(arrays, "all", fraction, seed)) == list(range(len(groups)))
    assert not {groups[index] for index in seen} & {groups[index] for index in unseen}


@given(groups=GROUPS, fraction=st.floats(0.001, 0.999), seed=st.integers(0, 99))
def test_both_splits_have_a_group_where_there_are_two(groups: list[str], fraction: float, seed: int) -> None:
    arrays = source(groups)
    num_unseen = len({groups[index] for index in classes_of(arrays, "unseen", fraction, seed)})
    num_groups = len(set(groups))
    if num_groups >= 2:
        assert 1 <= num_unseen <= num_groups - 1
        assert abs(num_unseen - fraction * num_groups) <= 1


@pytest.mark.parametrize(
    ("fraction", "expected"), [(0.0, 0), (0.01, 1), (0.25, 2), (0.3, 3), (0.5, 5), (0.99, 9), (1.0, 10)]
)
def test_share_of_unseen_groups(fraction: float, expected: int) -> None:
    arrays = source([str(index) for index in range(10)])
    assert len(classes_of(arrays, "unseen", fraction, 0)) == expected


def test_seed_chooses_the_groups_and_nothing_else_does() -> None:
    groups = [str(index) for index in range(10)]
    choices = {classes_of(source(groups), "unseen", 0.3, seed) for seed in range(20)}
    assert len(choices) > 10
    assert classes_of(source(groups), "unseen", 0.3, 7) == classes_of(source(groups), "unseen", 0.3, 7)
    # The order in which a source lists its classes does not matter.
    forwards = {groups[index] for index in classes_of(source(groups), "unseen", 0.3, 7)}
    backwards = {groups[::-1][index] for index in classes_of(source(groups[::-1]), "unseen", 0.3, 7)}
    assert forwards == backwards
