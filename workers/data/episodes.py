"""Learning tasks drawn from a source, and the images of a task."""

import difflib
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64

from common.config import Split, TaskFamily
from common.errors import InvalidInputError
from common.streams import derived_seed, stream
from common.tasks import LearningTask
from workers.data.arrays import ClassArrays, Images
from workers.data.sources import load_arrays
from workers.data.splits import classes_of

Labels = Int64[np.ndarray, " image"]


@dataclass(frozen=True, eq=False)
class Episode:
    """The images of a task, class by class in the order of `task.classes`; no image is in both halves.

    Attributes:
        train_images: uint8 (num_train, height, width, channels), channels 1 or 3.
        train_labels: int64 (num_train,), indices into `task.classes`.
        test_images: uint8 (num_test, height, width, channels).
        test_labels: int64 (num_test,).
    """

    train_images: Images
    train_labels: Labels
    test_images: Images
    test_labels: Labels


def sample_task(
    arrays: ClassArrays, family: TaskFamily, split: Split, task_id: str, seed: int, least_train_images: int = 1
) -> LearningTask:
    """Draws a task: `family.num_ways` classes of a split, uniformly across its groups.

    Args:
        arrays: the source that `family.data` names.
        family: the kind of task.
        split: which classes may be drawn.
        task_id: names the task; with `seed` it decides everything that is random.
        seed: the study's seed.
        least_train_images: that a class must have beyond its `test_per_class`; `train_per_class` where a task is of no
            use with fewer.

    Raises:
        InvalidInputError: the split has too few classes with enough images.
    """
    of_split = classes_of(arrays, split, family.data)
    least = family.test_per_class + least_train_images
    eligible = [index for index in of_split if arrays.num_images(index) >= least]
    if len(eligible) < family.num_ways:
        raise InvalidInputError(
            f"source {family.data.source!r} has {len(of_split)} classes in split {split!r}, {len(eligible)} of them "
            f"with {least} images or more, of which test_per_class is {family.test_per_class}; num_ways is "
            f"{family.num_ways}: lower num_ways or the images per class, or change {_chooses(split, family)}"
        )
    drawn = stream(seed, task_id, "classes").choice(len(eligible), family.num_ways, replace=False)
    return LearningTask(
        task_id=task_id,
        data=family.data,
        classes=tuple(arrays.class_names[eligible[position]] for position in drawn),
        image_size=family.image_size,
        train_per_class=family.train_per_class,
        test_per_class=family.test_per_class,
        seed=derived_seed(seed, task_id, "images"),
    )


def _chooses(split: Split, family: TaskFamily) -> str:
    """The field that decides how many classes a split has."""
    if family.data.class_split != "fraction":
        return "data.class_split"
    return "data.validation_fraction" if split == "validation" else "data.unseen_fraction"


def load_episode(task: LearningTask) -> Episode:
    """The images of a task, through the node-local cache.

    Raises:
        InvalidInputError: see `episode_of`, and what is wrong with the source.
        NotFoundError: the source's files do not exist.
        UnavailableError: the source could not be downloaded, or the cache not be written.
    """
    return episode_of(load_arrays(task.data, task.image_size), task)


def episode_of(arrays: ClassArrays, task: LearningTask) -> Episode:
    """The images of a task out of a source. Equal tasks give equal images in equal order.

    Test images are set aside first; classes with fewer than `train_per_class` images beyond them give what is left.

    Raises:
        InvalidInputError: a class is unknown or listed twice, or has no training image left.
    """
    indices = _class_indices(arrays, task)
    train: list[Images] = []
    test: list[Images] = []
    for name, index in zip(task.classes, indices, strict=True):
        count = arrays.num_images(index)
        if count <= task.test_per_class:
            raise InvalidInputError(
                f"class {name!r} of {task.data.source!r} has {count} images, test_per_class is {task.test_per_class}, "
                f"so none is left to train on; set test_per_class to at most {count - 1}, or leave the class out"
            )
        # Keyed by the class's name: its images do not depend on which other classes the task has.
        order = stream(task.seed, "images", name).permutation(count)
        last = None if task.train_per_class is None else task.test_per_class + task.train_per_class
        images = arrays.of_class(index)
        test.append(images[order[: task.test_per_class]])
        train.append(images[order[task.test_per_class : last]])
    return Episode(np.concatenate(train), _labels(train), np.concatenate(test), _labels(test))


def _class_indices(arrays: ClassArrays, task: LearningTask) -> list[int]:
    by_name = {name: index for index, name in enumerate(arrays.class_names)}
    for name in task.classes:
        if name not in by_name:
            close = difflib.get_close_matches(name, by_name, n=3, cutoff=0.5) or list(by_name)[:3]
            raise InvalidInputError(
                f"source {task.data.source!r} has no class {name!r}; it has {', '.join(map(repr, close))}"
                f"{' and more' if len(by_name) > len(close) else ''}"
            )
    if len(set(task.classes)) < len(task.classes):
        twice = next(name for name in task.classes if task.classes.count(name) > 1)
        raise InvalidInputError(f"class {twice!r} is listed twice in task {task.task_id!r}; remove one")
    return [by_name[name] for name in task.classes]


def _labels(images: list[Images]) -> Labels:
    return np.repeat(np.arange(len(images), dtype=np.int64), [len(part) for part in images])
