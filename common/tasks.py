"""What there is to learn: a data set, some of its classes, an image size. No tensors."""

from pydantic import Field

from common.config import DatasetRef, Frozen


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
