"""All of a source's images, split for training a network from scratch: training, validation and test images."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from jaxtyping import Int64

from common.config import DatasetRef
from common.errors import InvalidInputError
from common.evaluate_config import EvaluateConfig
from common.streams import stream
from workers.data.arrays import ClassArrays, Images
from workers.data.sources import load_arrays

# How many of a class's images, its last ones, are the test images that its publishers set apart; class by class. The
# sources of these names read training images first.
PUBLISHED_TEST_COUNTS: Mapping[str, tuple[int, ...]] = MappingProxyType(
    {
        "mnist": (980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009),
        "fashion-mnist": (1000,) * 10,
        "kmnist": (1000,) * 10,
        "cifar10": (1000,) * 10,
        "cifar100": (100,) * 100,
        "svhn": (1744, 5099, 4149, 2882, 2523, 2384, 1977, 2019, 1660, 1595),
    }
)

_MAX_STATISTICS_IMAGES = 50_000
_STATISTICS_CHUNK = 1000


@dataclass(frozen=True, eq=False)
class LabelledImages:
    """Some images of a source, which are read when they are asked for.

    Attributes:
        arrays: the source.
        labels: int64 (num_images,), index of the class of each image.
        positions: int64 (num_images,), its index within the class.
    """

    arrays: ClassArrays
    labels: Int64[np.ndarray, " image"]
    positions: Int64[np.ndarray, " image"]

    @property
    def num_images(self) -> int:
        """Images in all."""
        return len(self.labels)

    @property
    def num_bytes(self) -> int:
        """Of all pixels."""
        return self.num_images * int(np.prod(self.arrays.image_shape))

    def gather(self, indices: Int64[np.ndarray, " batch"]) -> Images:
        """The images at `indices`, uint8 (batch, height, width, channels)."""
        gathered = np.empty((len(indices), *self.arrays.image_shape), np.uint8)
        labels, positions = self.labels[indices], self.positions[indices]
        for label in np.unique(labels):
            where = labels == label
            gathered[where] = self.arrays.of_class(int(label))[positions[where]]
        return gathered


@dataclass(frozen=True, eq=False)
class WholeSource:
    """A source, split; no image is in two parts.

    Attributes:
        arrays: the source.
        train: what a network learns from.
        validation: kept out of training; without images where none are wanted.
        test: what it is tested on.
        test_is_published: whether the test images are those that the source's publishers set apart, or some of them.
    """

    arrays: ClassArrays
    train: LabelledImages
    validation: LabelledImages
    test: LabelledImages
    test_is_published: bool


def load_whole(data: DatasetRef, config: EvaluateConfig) -> WholeSource:
    """The images of a source through the node-local cache, split as the recipe has it.

    Raises:
        InvalidInputError: see `split_whole`; and see `workers.data.sources.load_arrays`, also for the other errors.
    """
    arrays = load_arrays(data, config.loaded_size)
    return split_whole(arrays, PUBLISHED_TEST_COUNTS.get(data.source), config, data.source)


def split_whole(
    arrays: ClassArrays, test_counts: tuple[int, ...] | None, config: EvaluateConfig, origin: str
) -> WholeSource:
    """Splits every class: test images first, then validation images; the rest, or some of it, is trained on.

    Args:
        arrays: the source.
        test_counts: how many of each class's last images are test images by publication; None draws `test_fraction`.
        config: the shares, and the seed that chooses.
        origin: what error messages call the data.

    Raises:
        InvalidInputError: a class is left without training, test or wanted validation images.
    """
    if test_counts is not None and len(test_counts) != arrays.num_classes:
        raise InvalidInputError(
            f"{origin} has {arrays.num_classes} classes, {len(test_counts)} were published; give the whole of it"
        )
    parts: dict[str, list[np.ndarray]] = {"train": [], "validation": [], "test": []}
    for index, name in enumerate(arrays.class_names):
        total = arrays.num_images(index)
        random = stream(config.split_seed, "whole source", index)
        if test_counts is None:
            order = random.permutation(total)
            num_test = round(config.test_fraction * total)
        else:
            num_test = test_counts[index]
            order = np.concatenate(
                [total - num_test + random.permutation(num_test), random.permutation(total - num_test)]
            )
        rest = order[num_test:]
        num_validation = round(config.validation_fraction * len(rest))
        found = {
            "test": order[:num_test][: config.test_per_class],
            "validation": rest[:num_validation],
            "train": rest[num_validation:][: config.train_per_class],
        }
        for part, positions in found.items():
            if not len(positions) and (part != "validation" or config.validation_fraction > 0):
                raise InvalidInputError(
                    f"{origin}: class {name!r} has {total} images, which leaves none for {part}; add images, or change "
                    "test_fraction or validation_fraction"
                )
            parts[part].append(np.sort(positions))
    train, validation, test = (_labelled(arrays, parts[part]) for part in ("train", "validation", "test"))
    return WholeSource(arrays, train, validation, test, test_is_published=test_counts is not None)


def channel_statistics(images: LabelledImages) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel's pixels, which are from 0 to 1.

    Of more than 50,000 images an even selection stands for all: sums of integers, the same in any order.
    """
    count = min(images.num_images, _MAX_STATISTICS_IMAGES)
    chosen = np.linspace(0, images.num_images - 1, count).round().astype(np.int64)
    total = np.zeros(images.arrays.image_shape[2], np.int64)
    squares = total.copy()
    for first in range(0, count, _STATISTICS_CHUNK):
        pixels = images.gather(chosen[first : first + _STATISTICS_CHUNK]).reshape(-1, len(total)).astype(np.int64)
        total += pixels.sum(axis=0)
        squares += np.square(pixels).sum(axis=0)
    num_pixels = count * images.arrays.image_shape[0] * images.arrays.image_shape[1]
    mean = total / num_pixels
    deviation = np.sqrt(np.maximum(squares / num_pixels - np.square(mean), 0))
    # A channel that never changes would be divided by 0; then by one step of its 256.
    return tuple(float(each) / 255 for each in mean), tuple(float(max(each, 1.0)) / 255 for each in deviation)


def _labelled(arrays: ClassArrays, positions: list[np.ndarray]) -> LabelledImages:
    labels = np.repeat(np.arange(len(positions)), [len(each) for each in positions])
    return LabelledImages(arrays, labels.astype(np.int64), np.concatenate(positions).astype(np.int64))
