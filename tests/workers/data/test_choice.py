"""From what a user says about a task to the task itself."""

from pathlib import Path
from typing import Any

import pytest

from common.config import DatasetRef
from common.errors import InvalidInputError
from common.loading import load
from common.tasks import TaskChoice, validate_choice
from workers.data.choice import task_of
from workers.data.episodes import load_episode
from workers.data.sources import load_arrays
from workers.data.splits import classes_of

CONFIG = load("smoke", environment={})  # digits, half of them unseen, three ways, 16 pixels
DATA = CONFIG.families[0].data


def choice(**fields: Any) -> TaskChoice:
    return validate_choice({"data": DATA, "image_size": 16, **fields})


def unseen_digits() -> set[str]:
    arrays = load_arrays(DATA, 16)
    return {arrays.class_names[index] for index in classes_of(arrays, "unseen", DATA)}


def test_named_classes_are_taken_in_their_order():
    task = task_of(choice(classes=["7", "1"], train_per_class=5, test_per_class=3), CONFIG, "a task")
    assert (task.task_id, task.classes, task.image_size) == ("a task", ("7", "1"), 16)
    assert (task.train_per_class, task.test_per_class) == (5, 3)
    episode = load_episode(task)
    assert len(episode.train_images) == 10 and len(episode.test_images) == 6


def test_a_number_of_classes_is_drawn_from_those_that_the_study_has_not_seen():
    drawn = {task_of(choice(classes=2, seed=seed), CONFIG, "t").classes for seed in range(30)}
    assert len(drawn) > 3, "other seeds draw other classes"
    assert all(len(classes) == 2 for classes in drawn)
    assert {name for classes in drawn for name in classes} == unseen_digits()
    assert len(unseen_digits()) == 5


def test_any_class_of_a_source_that_the_study_did_not_learn_from_may_be_drawn(tmp_path: Path, write_images):
    folder = write_images(tmp_path / "pets", {"ant": 4, "bee": 4, "cat": 4, "dog": 4})
    data = DatasetRef(source=str(folder), unseen_fraction=0.5)
    drawn = {task_of(choice(data=data, classes=2, test_per_class=2, seed=seed), CONFIG, "t") for seed in range(30)}
    assert {name for task in drawn for name in task.classes} == {"ant", "bee", "cat", "dog"}


@pytest.mark.parametrize(("num_classes", "expected"), [(2, 2), (3, 3), (5, 3)])
def test_without_a_wish_there_are_as_many_classes_as_the_study_has_ways(
    tmp_path: Path, write_images, num_classes: int, expected: int
):
    folder = write_images(tmp_path / "pets", {f"class {index}": 3 for index in range(num_classes)})
    task = task_of(choice(data=DatasetRef(source=str(folder)), test_per_class=1), CONFIG, "t")
    assert len(task.classes) == expected


def test_all_images_that_are_not_held_out_are_trained_on_by_default():
    task = task_of(choice(classes=2, test_per_class=10), CONFIG, "t")
    arrays = load_arrays(DATA, 16)
    total = sum(arrays.num_images(arrays.class_names.index(name)) for name in task.classes)
    assert len(load_episode(task).train_images) == total - 20


@pytest.mark.parametrize("classes", [["1", "7"], 2])
def test_seed_and_task_id_choose_the_images(classes: object):
    def seed_of(seed: int, task_id: str = "t") -> int:
        return task_of(choice(classes=classes, seed=seed), CONFIG, task_id).seed

    assert seed_of(3) == seed_of(3)
    assert len({seed_of(3), seed_of(4), seed_of(3, "u")}) == 3


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"image_size": 32}, ["image_size 32", "16"]),
        ({"classes": 6}, ["num_ways is 6", "5 classes"]),
        ({"classes": 2, "test_per_class": 10_000}, ["test_per_class is 10000"]),
        ({"data": {"source": "digitz"}}, ["digitz", "did you mean 'digits'"]),
    ],
)
def test_what_the_study_or_the_source_cannot_do_is_named(fields: dict[str, Any], words: list[str]):
    with pytest.raises(InvalidInputError) as error:
        task_of(choice(**fields), CONFIG, "t")
    assert all(word in str(error.value) for word in words)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"classes": 1}, ["classes: a task needs at least 2 classes", "got 1"]),
        ({"classes": ["1"]}, ["classes: a task needs at least 2 classes"]),
        ({"classes": ["7", "1", "1"]}, ["classes: class '1' is listed twice"]),
        ({"classes": []}, ["classes: a task needs at least 2 classes"]),
        ({"image_size": 0}, ["image_size", "4", "got 0"]),
        ({"train_per_class": 0}, ["train_per_class", "got 0"]),
        ({"test_per_class": 0}, ["test_per_class", "got 0"]),
        ({"seed": -1}, ["seed", "got -1"]),
        ({"ways": 5}, ["ways: no such field"]),
    ],
)
def test_what_is_out_of_range_is_named(fields: dict[str, Any], words: list[str]):
    with pytest.raises(InvalidInputError) as error:
        choice(**fields)
    assert str(error.value).startswith("task: ")
    assert all(word in str(error.value) for word in words), str(error.value)
