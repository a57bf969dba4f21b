"""Image folders: one subfolder per class, its images at any depth below."""

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from common.errors import InvalidInputError, NotFoundError
from workers.data.arrays import ClassImages
from workers.data.images import IMAGE_SUFFIXES, decode_squares, is_gray, stack_images


def files_by_class(folder: Path) -> Mapping[str, tuple[Path, ...]]:
    """The image files of every class, both sorted by name. Hidden files and files of other kinds are passed over.

    Raises:
        NotFoundError: there is no such folder.
        InvalidInputError: fewer than two subfolders, or one without images.
    """
    if not folder.is_dir():
        raise NotFoundError(f"there is no folder {folder}")
    classes = {
        child.name: tuple(sorted(image_files(child)))
        for child in sorted(folder.iterdir())
        if child.is_dir() and not child.name.startswith(".")
    }
    if len(classes) < 2:
        raise InvalidInputError(
            f"{folder} has {len(classes)} subfolders; an image folder has one for each class, at least 2"
        )
    for name, files in classes.items():
        if not files:
            raise InvalidInputError(f"{folder}: class {name!r} has no images; add some or remove its folder")
    return classes


def signature_of(files: Iterable[Path], base: Path) -> list[tuple[str, int, int]]:
    """Path below `base`, size in bytes and time of change in ns of each file: changes when a file does."""
    stats = ((path, path.stat()) for path in files)
    return [(path.relative_to(base).as_posix(), stat.st_size, stat.st_mtime_ns) for path, stat in stats]


def read_folder(classes: Mapping[str, tuple[Path, ...]], image_size: int) -> Iterator[ClassImages]:
    """Decodes a folder class by class. One channel where no image has colour, else three.

    Raises:
        InvalidInputError: a file is not a readable image.
    """
    gray = all(is_gray(path) for files in classes.values() for path in files)
    channels = 1 if gray else 3
    for name, files in classes.items():
        squares = [decode_squares(path, str(path), (image_size,), channels)[0] for path in files]
        yield ClassImages(name, name, stack_images(squares))


def image_files(folder: Path) -> Iterator[Path]:
    """Image files at any depth, in no order. Hidden files and folders are passed over."""
    for where, subfolders, names in os.walk(folder, followlinks=False):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        for name in names:
            path = Path(where, name)
            if not name.startswith(".") and path.suffix.lower() in IMAGE_SUFFIXES:
                yield path
