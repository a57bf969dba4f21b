"""Whole sources: published test images, drawn ones, validation; nothing is in two parts."""

import dataclasses

import numpy as np
import pytest

from common.config import DatasetRef
from common.errors import InvalidInputError
from common.evaluate_config import EvaluateConfig
from workers.data.arrays import ClassArrays, ClassImages, in_memory
from workers.data.whole import PUBLISHED_TEST_COUNTS, WholeSource, channel_statistics, load_whole, split_whole


def numbered(*counts: int, channels: int = 1) -> ClassArrays:
    """Classes whose images have even pixels: 100 x class + position."""
    return in_memory(
        [
            ClassImages(
                f"class {label}",
                f"class {label}",
                np.broadcast_to(
                    (100 * label + np.arange(count, dtype=np.uint8))[:, None, None, None], (count, 4, 4, channels)
                ).astype(np.uint8),
            )
            for label, count in enumerate(counts)
        ],
        "test",
    )


def contents(whole: WholeSource) -> dict[str, list[tuple[int, int]]]:
    parts = {name: getattr(whole, name) for name in ("train", "validation", "test")}
    return {name: list(zip(part.labels.tolist(), part.positions.tolist(), strict=True)) for name, part in parts.items()}


def test_the_last_images_of_a_class_are_the_published_test_images() -> None:
    found = contents(split_whole(numbered(5, 7), (2, 3), EvaluateConfig(), "test"))
    assert found["test"] == [(0, 3), (0, 4), (1, 4), (1, 5), (1, 6)]
    assert found["train"] == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2), (1, 3)]
    assert found["validation"] == []


@pytest.mark.parametrize("counts", [None, (10, 5)])
def test_parts_are_disjoint_and_together_everything(counts: tuple[int, ...] | None) -> None:
    config = EvaluateConfig(validation_fraction=0.25, test_fraction=0.2)
    found = contents(split_whole(numbered(40, 25), counts, config, "test"))
    everything = found["train"] + found["validation"] + found["test"]
    assert sorted(everything) == [(label, at) for label, count in ((0, 40), (1, 25)) for at in range(count)]
    if counts is None:
        assert (len(found["test"]), len(found["validation"])) == (8 + 5, 8 + 5)
    else:
        assert (len(found["test"]), len(found["validation"])) == (15, round(7.5) + 5)


def test_the_split_seed_alone_chooses() -> None:
    arrays = numbered(40, 25)
    first = contents(split_whole(arrays, None, EvaluateConfig(seed=0), "test"))
    assert contents(split_whole(arrays, None, EvaluateConfig(seed=1), "test")) == first
    assert contents(split_whole(arrays, None, EvaluateConfig(split_seed=1), "test"))["test"] != first["test"]


def test_fewer_images_per_class_are_some_of_the_same_parts() -> None:
    arrays = numbered(40, 25)
    whole = contents(split_whole(arrays, (10, 5), EvaluateConfig(), "test"))
    some = contents(split_whole(arrays, (10, 5), EvaluateConfig(train_per_class=6, test_per_class=3), "test"))
    assert len(some["train"]) == 12 and set(some["train"]) < set(whole["train"])
    assert len(some["test"]) == 6 and set(some["test"]) < set(whole["test"])


def test_images_are_read_as_they_are_asked_for() -> None:
    train = split_whole(numbered(5, 7), (2, 3), EvaluateConfig(), "test").train
    assert train.num_images == 7 and train.num_bytes == 7 * 16
    assert train.gather(np.array([4, 0, 3]))[:, 0, 0, 0].tolist() == [101, 0, 100]


def test_statistics_are_those_of_all_pixels() -> None:
    arrays = numbered(5, 7, channels=3)
    train = split_whole(arrays, (2, 3), EvaluateConfig(), "test").train
    values = np.array([0, 1, 2, 100, 101, 102, 103]) / 255
    mean, deviation = channel_statistics(train)
    assert mean == pytest.approx([values.mean()] * 3) and deviation == pytest.approx([values.std()] * 3)


def test_an_even_channel_is_not_divided_by_zero() -> None:
    arrays = numbered(5, 7)
    train = split_whole(arrays, (2, 3), EvaluateConfig(), "test").train
    same = dataclasses.replace(train, labels=train.labels[:1], positions=train.positions[:1])
    assert channel_statistics(same) == ((0.0,), (1 / 255,))


@pytest.mark.parametrize(
    ("counts", "changes", "words"),
    [
        ((5, 3), {}, "class 'class 0' has 5 images, which leaves none for train"),
        (None, {"test_fraction": 0.01}, "leaves none for test"),
        (None, {"validation_fraction": 0.01}, "leaves none for validation"),
        ((5,), {}, "has 2 classes, 1 were published"),
    ],
)
def test_a_class_that_is_left_without_images_is_named(counts, changes, words: str) -> None:
    with pytest.raises(InvalidInputError, match=words):
        split_whole(numbered(5, 7), counts, EvaluateConfig(**changes), "origin")


def test_published_counts_are_those_of_the_papers() -> None:
    totals = {name: sum(counts) for name, counts in PUBLISHED_TEST_COUNTS.items()}
    assert totals == {
        "mnist": 10_000,
        "fashion-mnist": 10_000,
        "kmnist": 10_000,
        "cifar10": 10_000,
        "cifar100": 10_000,
        "svhn": 26_032,
    }


def test_digits_come_without_test_images_of_their_own() -> None:
    whole = load_whole(DatasetRef(source="digits"), EvaluateConfig(image_size=8))
    assert not whole.test_is_published and whole.arrays.image_shape == (8, 8, 1)
    assert whole.train.num_images + whole.test.num_images == 1797
