"""What there is to learn: a data set, some of its classes, an image size. No tensors."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field, StringConstraints, ValidationError, field_validator

from common.config import DatasetRef, Frozen, explain
from common.errors import InvalidInputError


class LearningTask(Frozen):
    """An image classification task. Equal tasks have equal images, in equal order."""

    task_id: str = Field(min_length=1)
    """Names the task's random numbers and its update; unique within a study."""
    data: DatasetRef
    classes: tuple[str, ...] = Field(min_length=2)
    """Names of the classes; a label is an index into them."""
    image_size: int = Field(ge=4)
    """Height and width in pixels."""
    train_per_class: int | None = Field(None, ge=1)
    """Training images per class; classes with fewer give what they have. All that are not test images if None."""
    test_per_class: int = Field(20, ge=1)
    """Held-out images per class, disjoint from the training images."""
    seed: int = 0
    """Chooses the images."""


class TaskChoice(Frozen):
    """What a user says about a task; `workers.data.choice` makes a `LearningTask` of it."""

    data: DatasetRef
    classes: tuple[str, ...] | int | None = None
    """Names of two or more classes; or how many to draw, from unseen ones where meta-training had the source; None
    draws as many as the study's first family of tasks has."""
    image_size: int = Field(ge=4)
    """Height and width in pixels; chooses the head."""
    train_per_class: int | None = Field(None, ge=1)
    """Training images per class; all that are not held out if None."""
    test_per_class: int = Field(20, ge=1)
    """Held-out images per class."""
    seed: int = Field(0, ge=0)
    """Chooses images, and classes where they are drawn."""

    @field_validator("classes")
    @classmethod
    def _two_or_more(cls, classes: tuple[str, ...] | int | None) -> tuple[str, ...] | int | None:
        # Not as constraints of the types: pydantic would then complain once for each member of the union.
        if classes is not None and (classes if isinstance(classes, int) else len(classes)) < 2:
            raise ValueError("a task needs at least 2 classes")
        if isinstance(classes, tuple) and len(set(classes)) < len(classes):
            twice = next(name for name in classes if classes.count(name) > 1)
            raise ValueError(f"class {twice!r} is listed twice; remove one")
        return classes


class FewShotTask(Frozen):
    """A handful of labelled images, and images that are to be labelled; their pixels are in a file."""

    classes: tuple[str, ...] = Field(min_length=2)
    """Names of the classes; a label is an index into them."""
    labels: tuple[int, ...] = Field(min_length=1)
    """Of the support images."""
    support_names: tuple[str, ...]
    """Of the support images, for people."""
    query_names: tuple[str, ...] = ()
    """Of the images that are to be labelled, unique."""
    image_size: int = Field(ge=4)
    """Height and width in pixels."""


class DatasetFile(Frozen):
    """A file of images that a worker must fetch before it can load it."""

    url: str = Field(min_length=1)
    """Any fsspec URL."""
    sha256: Annotated[str, StringConstraints(pattern="^[0-9a-fA-F]{64}$", to_lower=True)] | None = None
    """Of the file. With it, a file is fetched once per machine whatever its address, and checked."""
    suffix: str
    """How the file's name would end, which says what it is: `.zip`, `.npz`, `.tar.gz`, ..."""


def validate_choice(tree: Mapping[str, Any]) -> TaskChoice:
    """A `TaskChoice` from plain values.

    Raises:
        InvalidInputError: names every wrong field, its value and what is allowed.
    """
    try:
        return TaskChoice.model_validate(tree)
    except ValidationError as error:
        raise InvalidInputError("task: " + explain(error)) from None
