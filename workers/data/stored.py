"""Class arrays on disk: a folder with one .npy per class, `00000.npy` onwards, and a manifest that is written last.

Files are memory-mapped when a class is asked for, so all processes of a machine share one copy in the page cache.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np

from common.errors import CorruptArtifactError, InvalidInputError, NotFoundError
from workers.data.arrays import (
    ClassArrays,
    ClassImages,
    ClassRecord,
    Images,
    check_records,
    fingerprint_of,
    image_shape_of,
    record_of,
)

MANIFEST_NAME = "manifest.json"
FORMAT_VERSION = 1


def write_stored(folder: Path, classes: Iterable[ClassImages], origin: str) -> None:
    """Writes classes one by one, holding no more than one in memory, then the manifest.

    Args:
        folder: exists and is empty.
        classes: images all of one shape.
        origin: what error messages call the data.

    Raises:
        InvalidInputError: fewer than two classes, a name twice, a class without images, wrong type or shape.
    """
    records: list[ClassRecord] = []
    shape: tuple[int, int, int] | None = None
    for entry in classes:
        records.append(record_of(entry, origin))
        shape = shape or image_shape_of(entry)
        if image_shape_of(entry) != shape:
            raise InvalidInputError(
                f"{origin}: images of class {entry.name!r} have shape {image_shape_of(entry)}, others {shape}; "
                "give all the same"
            )
        write_class(folder, len(records) - 1, entry.images)
    check_records(records, origin)
    assert shape is not None, "check_records lets no empty list through"
    write_manifest(folder, records, shape)


def write_class(folder: Path, class_index: int, images: Images) -> None:
    """Writes the file of a class; it appears whole or not at all."""
    growing = folder / f"{class_file(class_index)}.growing"
    with growing.open("wb") as file:
        np.save(file, images, allow_pickle=False)
    growing.replace(folder / class_file(class_index))


def write_manifest(folder: Path, records: Sequence[ClassRecord], image_shape: tuple[int, int, int]) -> None:
    """Writes the manifest, which makes a folder of class files complete; it appears whole or not at all."""
    manifest = {
        "format": FORMAT_VERSION,
        "image_shape": list(image_shape),
        "fingerprint": fingerprint_of(records, image_shape),
        "classes": [record.row for record in records],
    }
    growing = folder / f"{MANIFEST_NAME}.growing"
    growing.write_text(json.dumps(manifest, indent=1, ensure_ascii=False), "utf-8")
    growing.replace(folder / MANIFEST_NAME)


def open_stored(folder: Path) -> ClassArrays:
    """Class arrays over the files of `folder`; reads the manifest only.

    Raises:
        NotFoundError: there is no manifest.
        CorruptArtifactError: the manifest is truncated, altered or of another format.
    """
    path = folder / MANIFEST_NAME
    if not path.is_file():
        raise NotFoundError(f"{folder} has no {MANIFEST_NAME}; it is not a folder of prepared images")
    try:
        manifest: dict[str, Any] = json.loads(path.read_text("utf-8"))
        version = manifest["format"]
        height, width, channels = manifest["image_shape"]
        shape = (int(height), int(width), int(channels))
        records = tuple(ClassRecord(**row) for row in manifest["classes"])
        fingerprint = manifest["fingerprint"]
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptArtifactError(f"{path} is not a manifest ({error}); remove {folder} and build it again") from None
    if version != FORMAT_VERSION or fingerprint != fingerprint_of(records, shape):
        raise CorruptArtifactError(f"{path} is altered or of another format; remove {folder} and build it again")
    return ClassArrays(_ClassFiles(folder, records, shape), records, shape, fingerprint)


def verify_stored(arrays: ClassArrays) -> None:
    """Reads every image once and compares digests.

    Raises:
        CorruptArtifactError: a file is missing, truncated or altered.
    """
    for index, record in enumerate(arrays.records):
        if hashlib.sha256(np.ascontiguousarray(arrays.of_class(index)).data).hexdigest() != record.sha256:
            raise CorruptArtifactError(f"images of class {record.name!r} are altered; build them again")


def class_file(class_index: int) -> str:
    """File name of a class; class names themselves may hold characters that file systems do not take."""
    return f"{class_index:05d}.npy"


def map_images(path: Path, count: int, image_shape: tuple[int, int, int]) -> Images:
    """Memory-maps a class file, read only.

    Raises:
        CorruptArtifactError: missing, truncated, or not `count` uint8 images of that shape.
    """
    try:
        images: Images = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise CorruptArtifactError(f"{path} cannot be read ({error}); remove its folder and build it again") from None
    if images.dtype != np.uint8 or images.shape != (count, *image_shape):
        raise CorruptArtifactError(
            f"{path} holds {images.dtype} {images.shape}, the manifest says uint8 {(count, *image_shape)}; "
            "remove its folder and build it again"
        )
    return images


@dataclass(frozen=True)
class _ClassFiles(Sequence[Images]):
    """Maps a file at every access and keeps none open: a thousand classes would use up the file descriptors."""

    folder: Path
    records: tuple[ClassRecord, ...]
    image_shape: tuple[int, int, int]

    def __len__(self) -> int:
        return len(self.records)

    @overload
    def __getitem__(self, index: int) -> Images: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Images]: ...
    def __getitem__(self, index: int | slice) -> Images | Sequence[Images]:
        if isinstance(index, slice):
            return [self[position] for position in range(*index.indices(len(self)))]
        position = range(len(self))[index]
        return map_images(self.folder / class_file(position), self.records[position].count, self.image_shape)
