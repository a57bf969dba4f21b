"""The MNIST family: idx files, compressed or not, wherever they already are."""

import gzip
import math
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from common.errors import InvalidInputError
from workers.data.arrays import ClassImages, by_label
from workers.data.images import resize_all

NATIVE_SIZE = 28

_MAX_BYTES = 1 << 31
_UINT8 = 8


def find_idx(folders: Sequence[Path]) -> tuple[Path, ...] | None:
    """The first folder's training images, training labels, test images and test labels, if one holds all four."""
    for folder in folders:
        files = []
        for part in ("train", "t10k"):
            for what in ("images-idx3", "labels-idx1"):
                names = (f"{part}-{what}-ubyte", f"{part}-{what}-ubyte.gz")
                files += [folder / name for name in names if (folder / name).is_file()][:1]
        if len(files) == 4:
            return tuple(files)
    return None


def read_idx_classes(files: Sequence[Path], names: Sequence[str], image_size: int) -> Iterator[ClassImages]:
    """Merges training and test images and sorts them by class.

    Args:
        files: as `find_idx` returns them.
        names: class names by label.
        image_size: height and width of the results in pixels; one channel.

    Raises:
        InvalidInputError: a file is truncated or not what it should be.
    """
    images = np.concatenate([read_idx(files[0], 3), read_idx(files[2], 3)])
    labels = np.concatenate([read_idx(files[1], 1), read_idx(files[3], 1)])
    if len(images) != len(labels) or labels.max(initial=0) >= len(names):
        raise InvalidInputError(
            f"{files[0].parent} has {len(images)} images, {len(labels)} labels up to {labels.max(initial=0)} "
            f"for {len(names)} classes; fetch its files again"
        )
    return by_label(resize_all(images[..., None], image_size), labels, names)


def read_idx(path: Path, num_dimensions: int) -> NDArray[np.uint8]:
    """The uint8 array of an idx file; `.gz` is unpacked on the way.

    Raises:
        InvalidInputError: truncated, too long, or not unsigned bytes of that many dimensions.
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            header = file.read(4 + 4 * num_dimensions)
            if header[:4] != bytes((0, 0, _UINT8, num_dimensions)) or len(header) != 4 + 4 * num_dimensions:
                raise InvalidInputError(f"{path} is no idx file of {num_dimensions} dimensions; fetch it again")
            shape = [int(length) for length in np.frombuffer(header[4:], ">u4")]
            num_bytes = math.prod(shape)
            if num_bytes > _MAX_BYTES:
                raise InvalidInputError(f"{path} says it has {num_bytes} bytes, at most {_MAX_BYTES} are read")
            data = file.read(num_bytes + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise InvalidInputError(f"{path} cannot be read ({error}); fetch it again") from None
    if len(data) != num_bytes:
        raise InvalidInputError(f"{path} is truncated or too long: {num_bytes} bytes expected; fetch it again")
    return np.frombuffer(data, np.uint8).reshape(shape)
