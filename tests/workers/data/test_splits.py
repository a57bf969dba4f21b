import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.config import DatasetRef
from common.errors import InvalidInputError
from common.streams import stream
from workers.data.arrays import ClassArrays, ClassImages, in_memory
from workers.data.splits import PARTS, classes_of, split_counts, split_digest


def source(groups: list[str]) -> ClassArrays:
    image = np.zeros((1, 2, 2, 1), np.uint8)
    return in_memory([ClassImages(f"{group}/{index}", group, image) for index, group in enumerate(groups)], "x")


def shares(unseen: float, seed: int, validation: float = 0.0) -> DatasetRef:
    return DatasetRef(source="x", unseen_fraction=unseen, validation_fraction=validation, split_seed=seed)


def published(counts: tuple[int, int, int]) -> ClassArrays:
    """So many classes of each part, named in the order of the alphabet, listed backwards."""
    image = np.zeros((1, 2, 2, 1), np.uint8)
    parts = [part for part, count in zip(PARTS, counts, strict=True) for _ in range(count)]
    entries = [ClassImages(f"n{index:04d}", f"n{index:04d}", image, part) for index, part in enumerate(parts)]
    return in_memory(entries[::-1], "x")


def names(arrays: ClassArrays, split: str, data: DatasetRef) -> list[str]:
    return sorted(arrays.class_names[index] for index in classes_of(arrays, split, data))


GROUPS = st.lists(st.sampled_from("abcdefgh"), min_size=2, max_size=30)


@given(groups=GROUPS, fraction=st.floats(0, 1), share=st.floats(0, 1), seed=st.integers(0, 99))
def test_splits_are_disjoint_by_group_and_cover_all(
    groups: list[str], fraction: float, share: float, seed: int
) -> None:
    arrays, data = source(groups), shares(fraction, seed, share * (1 - fraction) * 0.999)
    parts = {part: classes_of(arrays, part, data) for part in PARTS}
    listed = sorted(index for part in parts.values() for index in part)
    assert listed == list(classes_of(arrays, "all", data)) == list(range(len(groups)))
    of_groups = [{groups[index] for index in part} for part in parts.values()]
    assert sum(len(part) for part in of_groups) == len(set(groups))


@given(groups=GROUPS, fraction=st.floats(0, 1), seed=st.integers(0, 99))
def test_unseen_classes_are_those_of_the_first_groups_of_the_permutation(
    groups: list[str], fraction: float, seed: int
) -> None:
    known = sorted(set(groups))
    count = round(fraction * len(known))
    if len(known) >= 2 and 0 < fraction < 1:
        count = min(max(count, 1), len(known) - 1)
    elif len(known) >= 2:
        count = min(count, len(known) - (fraction < 1))
    unseen = [known[position] for position in stream(seed, "unseen groups").permutation(len(known))[:count]]
    expected = tuple(index for index, group in enumerate(groups) if group in unseen)
    assert classes_of(source(groups), "unseen", shares(fraction, seed)) == expected
    # Validation classes are taken out of what is left.
    assert classes_of(source(groups), "unseen", shares(fraction, seed, (1 - fraction) / 2)) == expected


@given(groups=GROUPS, fraction=st.floats(0.001, 0.999), seed=st.integers(0, 99))
def test_both_splits_have_a_group_where_there_are_two(groups: list[str], fraction: float, seed: int) -> None:
    arrays = source(groups)
    num_unseen = len({groups[index] for index in classes_of(arrays, "unseen", shares(fraction, seed))})
    num_groups = len(set(groups))
    if num_groups >= 2:
        assert 1 <= num_unseen <= num_groups - 1
        assert abs(num_unseen - fraction * num_groups) <= 1


@pytest.mark.parametrize(
    ("fraction", "expected"), [(0.0, 0), (0.01, 1), (0.25, 2), (0.3, 3), (0.5, 5), (0.99, 9), (1.0, 10)]
)
def test_share_of_unseen_groups(fraction: float, expected: int) -> None:
    arrays = source([str(index) for index in range(10)])
    assert len(classes_of(arrays, "unseen", shares(fraction, 0))) == expected


def test_seed_chooses_the_groups_and_nothing_else_does() -> None:
    groups = [str(index) for index in range(10)]
    choices = {classes_of(source(groups), "unseen", shares(0.3, seed)) for seed in range(20)}
    assert len(choices) > 10
    assert classes_of(source(groups), "unseen", shares(0.3, 7)) == classes_of(source(groups), "unseen", shares(0.3, 7))
    # The order in which a source lists its classes does not matter.
    forwards = {groups[index] for index in classes_of(source(groups), "unseen", shares(0.3, 7))}
    backwards = {groups[::-1][index] for index in classes_of(source(groups[::-1]), "unseen", shares(0.3, 7))}
    assert forwards == backwards


@pytest.mark.parametrize(("validation", "expected"), [(0.0, 0), (0.01, 1), (0.25, 2), (0.6, 6), (0.7, 6)])
def test_share_of_validation_groups(validation: float, expected: int) -> None:
    arrays = source([str(index) for index in range(10)])
    assert len(classes_of(arrays, "validation", shares(0.3, 0, validation))) == expected


def test_published_parts_are_taken_as_they_are() -> None:
    arrays, data = published((64, 16, 20)), DatasetRef(source="mini_imagenet")
    assert data.class_split == "published"
    assert split_counts(arrays, data) == {"meta_train": 64, "validation": 16, "unseen": 20}
    assert names(arrays, "validation", data) == [f"n{index:04d}" for index in range(64, 80)]
    assert split_counts(published((3, 1, 2)), data) == {"meta_train": 3, "validation": 1, "unseen": 2}


def test_the_papers_split_moves_the_last_validation_classes() -> None:
    arrays = published((64, 16, 20))
    data = DatasetRef(source="mini_imagenet", class_split="paper")
    assert names(arrays, "meta_train", data) == [f"n{index:04d}" for index in range(64)]
    assert names(arrays, "validation", data) == [f"n{index:04d}" for index in range(64, 76)]
    assert names(arrays, "unseen", data) == [f"n{index:04d}" for index in range(76, 100)]


def test_the_papers_split_is_refused_for_other_classes() -> None:
    with pytest.raises(InvalidInputError, match="64 / 16 / 20 classes, here are 64 / 16 / 19"):
        classes_of(published((64, 16, 19)), "unseen", DatasetRef(source="mini_imagenet", class_split="paper"))


def test_characters_of_omniglot_are_split_across_alphabets() -> None:
    image = np.zeros((1, 1, 1, 1), np.uint8)
    entries = [ClassImages(f"{index % 50}/{index}", str(index % 50), image, "meta_train") for index in range(1623)]
    arrays = in_memory(entries, "x")
    data = DatasetRef(source="omniglot", class_split="characters")
    assert split_counts(arrays, data) == {"meta_train": 1100, "validation": 100, "unseen": 423}
    groups = {arrays.groups[index] for index in classes_of(arrays, "unseen", data)}
    assert len(groups) == 50
    other = data.model_copy(update={"split_seed": 1})
    assert classes_of(arrays, "unseen", data) != classes_of(arrays, "unseen", other)
    with pytest.raises(InvalidInputError, match="1623 characters, here are 1622"):
        classes_of(in_memory(entries[:-1], "x"), "unseen", data)


def test_source_without_published_parts_cannot_be_split_by_them() -> None:
    with pytest.raises(InvalidInputError, match="class 'a/0' of 'omniglot' is in no published part"):
        classes_of(source(["a", "b"]), "unseen", DatasetRef(source="omniglot", class_split="published"))


def test_digest_is_of_the_split_and_not_of_the_order_of_classes() -> None:
    groups = [str(index) for index in range(10)]
    digests = {split_digest(source(groups), shares(0.3, seed)) for seed in range(5)}
    assert len(digests) == 5
    image = np.zeros((1, 2, 2, 1), np.uint8)
    forwards = in_memory([ClassImages(name, name, image) for name in groups], "x")
    backwards = in_memory([ClassImages(name, name, image) for name in groups[::-1]], "x")
    assert split_digest(forwards, shares(0.3, 0)) == split_digest(backwards, shares(0.3, 0))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"source": "glyphs", "class_split": "published"}, "is of mini_imagenet and omniglot, source is 'glyphs'"),
        ({"source": "omniglot", "class_split": "paper"}, "is of mini_imagenet, source is 'omniglot'"),
        ({"unseen_fraction": 0.7, "validation_fraction": 0.4}, "more than all classes"),
    ],
)
def test_split_that_cannot_be_is_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DatasetRef.model_validate(fields)
