"""Digits: the real 8 x 8 handwriting that scikit-learn ships, 10 classes of about 180 images."""

from collections.abc import Iterator

import numpy as np

from workers.data.arrays import ClassImages, by_label
from workers.data.images import resize_square

NATIVE_SIZE = 8
_MAX_LEVEL = 16


def read_digits(image_size: int) -> Iterator[ClassImages]:
    """The digits 0 to 9, enlarged to `image_size` pixels, one channel."""
    from sklearn.datasets import load_digits

    levels, labels = load_digits(return_X_y=True)
    pixels = np.rint(levels * (255 / _MAX_LEVEL)).astype(np.uint8).reshape(-1, NATIVE_SIZE, NATIVE_SIZE, 1)
    return by_label(np.stack([resize_square(image, image_size) for image in pixels]), labels)
