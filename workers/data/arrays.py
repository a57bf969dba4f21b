"""Images sorted by class: the one shape in which every source hands over its data."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Shaped, UInt8

from common.errors import InvalidInputError

Images = UInt8[np.ndarray, "image height width channel"]

Part = Literal["meta_train", "validation", "unseen"]
"""A part of a source's classes. No class is in two."""


class ClassImages(NamedTuple):
    """All images of one class, uint8 (image, height, width, channel), the group the class belongs to, and the part that
    the source's publishers put it in, if they did."""

    name: str
    group: str
    images: Images
    part: Part | None = None


@dataclass(frozen=True)
class ClassRecord:
    """What identifies a stored class: its names, how many images it has, the SHA-256 of their pixels, and the part that
    its publishers put it in."""

    name: str
    group: str
    count: int
    sha256: str
    part: Part | None = None

    @property
    def row(self) -> dict[str, str | int]:
        """As it is stored; a part that is not known is left out."""
        return {key: value for key, value in asdict(self).items() if value is not None}


@dataclass(frozen=True, eq=False)
class ClassArrays:
    """Images of at least two classes.

    Attributes:
        parts: one array per class, uint8 (num_images(class), height, width, channel), read only. Either arrays in
            memory or a sequence that maps a class's file when it is asked for, so that a data set larger than
            memory costs nothing until it is used.
        records: name, group, number of images and digest per class.
        image_shape: height, width and channels (1 or 3) of every image.
        fingerprint: SHA-256 over all of `records` and `image_shape`; equal contents have equal fingerprints.
    """

    parts: Sequence[Images]
    records: tuple[ClassRecord, ...]
    image_shape: tuple[int, int, int]
    fingerprint: str

    @property
    def num_classes(self) -> int:
        """How many classes there are."""
        return len(self.records)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, unique."""
        return tuple(record.name for record in self.records)

    @property
    def groups(self) -> tuple[str, ...]:
        """Group of each class, for example its script; the class's own name in sources without groups."""
        return tuple(record.group for record in self.records)

    def num_images(self, class_index: int) -> int:
        """How many images a class has; reads no image."""
        return self.records[class_index].count

    def of_class(self, class_index: int) -> Images:
        """All images of a class."""
        return self.parts[class_index]


def in_memory(classes: Iterable[ClassImages], origin: str) -> ClassArrays:
    """Class arrays from images in memory.

    Args:
        classes: at least two, names unique.
        origin: what error messages call the data.

    Raises:
        InvalidInputError: no or one class, a name twice, a class without images, wrong type or shape.
    """
    entries = tuple(classes)
    records = tuple(record_of(entry, origin) for entry in entries)
    check_records(records, origin)
    shapes = {entry.images.shape[1:] for entry in entries}
    if len(shapes) > 1:
        raise InvalidInputError(f"{origin}: images have shapes {sorted(shapes)}; give all the same")
    shape = image_shape_of(entries[0])
    return ClassArrays(tuple(entry.images for entry in entries), records, shape, fingerprint_of(records, shape))


def by_label(
    images: Images, labels: Shaped[np.ndarray, " image"], names: Sequence[str] | None = None
) -> Iterator[ClassImages]:
    """Sorts labelled images into classes.

    Args:
        images: uint8 (image, height, width, channel).
        labels: one per image. Classes come in the order of the sorted labels.
        names: names by label, where labels are indices; the label itself as text where not given.
    """
    for label in np.unique(labels):
        name = str(label) if names is None else names[int(label)]
        yield ClassImages(name, name, images[labels == label])


def record_of(entry: ClassImages, origin: str) -> ClassRecord:
    """Checks the images of a class and takes their digest.

    Raises:
        InvalidInputError: the class has no images, or they are not uint8 with one or three channels.
    """
    images = entry.images
    if images.dtype != np.uint8:
        raise InvalidInputError(
            f"{origin}: images of class {entry.name!r} are {images.dtype}; convert them to uint8, values 0 to 255"
        )
    if images.ndim != 4 or images.shape[3] not in (1, 3):
        raise InvalidInputError(
            f"{origin}: images of class {entry.name!r} have shape {images.shape}; "
            "give (images, height, width, channels) with 1 or 3 channels"
        )
    if len(images) == 0:
        raise InvalidInputError(f"{origin}: class {entry.name!r} has no images; add some or remove the class")
    sha256 = hashlib.sha256(np.ascontiguousarray(images).data).hexdigest()
    return ClassRecord(entry.name, entry.group, len(images), sha256, entry.part)


def check_records(records: Sequence[ClassRecord], origin: str) -> None:
    """Checks what only all classes together show.

    Raises:
        InvalidInputError: fewer than two classes, or two of one name.
    """
    if len(records) < 2:
        names = f" ({records[0].name!r})" if records else ""
        raise InvalidInputError(f"{origin} has {len(records)} class{names}; at least 2 are needed, add another")
    seen: set[str] = set()
    for record in records:
        if record.name in seen:
            raise InvalidInputError(f"{origin}: class {record.name!r} is there twice; rename one")
        seen.add(record.name)


def image_shape_of(entry: ClassImages) -> tuple[int, int, int]:
    """Height, width and channels of the images of a class."""
    height, width, channels = entry.images.shape[1:]
    return height, width, channels


def fingerprint_of(records: Sequence[ClassRecord], image_shape: tuple[int, int, int]) -> str:
    """SHA-256 in hexadecimal over names, groups, counts, digests and the shape of the images."""
    rows = [list(record.row.values()) for record in records]
    return hashlib.sha256(json.dumps([list(image_shape), rows]).encode()).hexdigest()
