"""Mini-ImageNet (Vinyals et al. 2016): 100 classes of 600 images, from whichever files of it a user has. No pickles.

A folder holds one of

    train.csv, val.csv, test.csv, images/           the split files of Ravi and Larochelle (2017), and the images
    train/, val/, test/                             with a folder of images per class in each
    train.npz, val.npz, test.npz                    with the arrays `images` and `labels` in each
    train_data.hdf5, val_data.hdf5, test_data.hdf5  as torchmeta packs them: a data set per class below `datasets`

The files say which classes are for meta-training, for validation and unseen; no list of them is kept here.
"""

import csv
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

from common.errors import InvalidInputError, NotFoundError, UnavailableError
from workers.data.archives import read_npz
from workers.data.arrays import ClassImages, Part
from workers.data.folders import files_by_class
from workers.data.images import decode_squares, resize_all, stack_images

NATIVE_SIZE = 84
IMAGES = "images"

PUBLISHED_PARTS: Mapping[str, Part] = {"train": "meta_train", "val": "validation", "test": "unseen"}
"""What publishers call the parts, and what they are here."""

Layout = Literal["csv", "folders", "npz", "hdf5"]

_LAYOUTS: Mapping[Layout, tuple[str, ...]] = {
    "csv": (*(f"{name}.csv" for name in PUBLISHED_PARTS), IMAGES),
    "npz": tuple(f"{name}.npz" for name in PUBLISHED_PARTS),
    "hdf5": tuple(f"{name}_data.hdf5" for name in PUBLISHED_PARTS),
    "folders": tuple(PUBLISHED_PARTS),
}
_PICKLES = ("*.pkl", "*.pickle")
_COLUMNS = ("filename", "label")

FilesByClass = Mapping[Part, Mapping[str, Sequence[Path]]]


@dataclass(frozen=True)
class MiniImagenetFiles:
    """Files of one layout that are all there.

    Attributes:
        layout: how they are laid out.
        folder: that holds them.
        paths: files and folders that change when the contents do.
    """

    layout: Layout
    folder: Path
    paths: tuple[Path, ...]


def find_mini_imagenet(folder: Path) -> MiniImagenetFiles:
    """The first layout that is complete in `folder`; reads nothing.

    Raises:
        NotFoundError: there is none; the message says what to get, and where to put it.
        InvalidInputError: there are only pickles.
    """
    missing: dict[Layout, list[str]] = {
        layout: [name for name in names if not (folder / name).exists()] for layout, names in _LAYOUTS.items()
    }
    for layout, names in _LAYOUTS.items():
        if not missing[layout]:
            paths = [folder / name for name in names]
            if layout == "folders":
                paths += [child for path in paths for child in sorted(path.iterdir()) if child.is_dir()]
            return MiniImagenetFiles(layout, folder, tuple(paths))
    for layout, names in _LAYOUTS.items():
        # What only the images' folder says nothing about is no beginning of a layout.
        if any(name not in missing[layout] for name in names if name != IMAGES):
            raise NotFoundError(f"{folder} lacks {', '.join(missing[layout])} of Mini-ImageNet; put them there")
    pickles = sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern))
    if pickles:
        raise InvalidInputError(
            f"{folder} holds {pickles[0]}, a pickle: reading one could run any program, so none is read; convert it "
            "to train.npz, val.npz and test.npz with the arrays images and labels, as README.md shows, or use the "
            "split files with the images"
        )
    raise NotFoundError(
        f"there is no Mini-ImageNet in {folder}, and it cannot be downloaded: get train.csv, val.csv and test.csv of "
        "github.com/twitter-research/meta-learning-lstm (data/miniImagenet), and put them there beside a folder "
        f"{IMAGES} with the images that they name, which are of ImageNet (ILSVRC 2012); or folders train, val and test "
        "with a folder per class; or train.npz, val.npz and test.npz; or torchmeta's train_data.hdf5, val_data.hdf5 "
        "and test_data.hdf5. Then set data.root to the folder"
    )


def read_mini_imagenet(files: MiniImagenetFiles, image_size: int) -> Iterator[ClassImages]:
    """Its classes, those for meta-training first, by name; three channels.

    Larger images than `image_size` are scaled to it by their short side, and the middle of the long one is kept.

    Raises:
        InvalidInputError: a file is not what it should be, or a class is in two parts.
        NotFoundError: an image that a split file names is not there.
        UnavailableError: HDF5 files, and h5py is not installed.
    """
    if files.layout in ("csv", "folders"):
        return _read_images(_by_part(files), image_size)
    return _read_packed(files, image_size)


def _by_part(files: MiniImagenetFiles) -> FilesByClass:
    """The image files of every class."""
    found: dict[Part, Mapping[str, Sequence[Path]]] = {}
    part_of: dict[str, str] = {}
    for name, part in PUBLISHED_PARTS.items():
        path = files.folder / name
        found[part] = files_by_class(path) if files.layout == "folders" else _listed(path.with_suffix(".csv"))
        for label in found[part]:
            if label in part_of:
                raise InvalidInputError(
                    f"{files.folder}: class {label!r} is in both {part_of[label]} and {name}; leave it in one"
                )
            part_of[label] = name
    return found


def _listed(path: Path) -> Mapping[str, Sequence[Path]]:
    """The image files of every class of a split file."""
    images = path.parent / IMAGES
    by_class: dict[str, list[Path]] = defaultdict(list)
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.DictReader(file, skipinitialspace=True)
            columns = [column.strip() for column in rows.fieldnames or ()]
            if sorted(columns) != sorted(_COLUMNS):
                raise InvalidInputError(
                    f"{path} has the columns {', '.join(columns) or 'none'}; a split file has {' and '.join(_COLUMNS)}"
                )
            rows.fieldnames = columns
            for row in rows:
                name, label = (str(row[column] or "").strip() for column in _COLUMNS)
                parts = PurePosixPath(name).parts
                if not label or not parts or None in row or name.startswith("/") or ".." in parts:
                    raise InvalidInputError(
                        f"line {rows.line_num} of {path} must have a file below {IMAGES} and a class, got {row!r}"
                    )
                by_class[label].append(_existing(images, name, label, path))
    except (UnicodeDecodeError, csv.Error) as error:
        raise InvalidInputError(f"{path} is not a split file ({error}); fetch it again") from None
    if not by_class:
        raise InvalidInputError(f"{path} names no images; fetch it again")
    return {label: sorted(by_class[label]) for label in sorted(by_class)}


def _existing(images: Path, name: str, label: str, listed_in: Path) -> Path:
    """The image file, directly in the folder or in one of its class."""
    for path in (images / name, images / label / name):
        if path.is_file():
            return path
    raise NotFoundError(f"{listed_in} names {name}, which is not in {images}; put all images there")


def _read_images(found: FilesByClass, image_size: int) -> Iterator[ClassImages]:
    for part, classes in found.items():
        for name, paths in classes.items():
            squares = [decode_squares(path, str(path), (image_size,), channels=3)[0] for path in paths]
            yield ClassImages(name, name, stack_images(squares), part)


def _read_packed(files: MiniImagenetFiles, image_size: int) -> Iterator[ClassImages]:
    for path, part in zip(files.paths, PUBLISHED_PARTS.values(), strict=True):
        classes = read_npz(path, image_size) if files.layout == "npz" else _read_hdf5(path, image_size)
        for entry in classes:
            yield entry._replace(part=part)


def _read_hdf5(path: Path, image_size: int) -> Iterator[ClassImages]:
    try:
        import h5py
    except ImportError:
        raise UnavailableError(f"{path} needs h5py; install it: pip install 'meta-arch-search[hdf5]'") from None
    try:
        with h5py.File(path, "r") as file:
            classes = file["datasets"]
            for name in sorted(classes):
                images = classes[name][()]
                if images.dtype != "uint8" or images.ndim != 4 or images.shape[3] != 3 or 0 in images.shape:
                    raise InvalidInputError(
                        f"{path}: class {name!r} holds {images.dtype} {images.shape}; it must be uint8 "
                        "(images, height, width, 3)"
                    )
                yield ClassImages(name, name, resize_all(images, image_size))
    except (OSError, KeyError, TypeError, AttributeError) as error:
        raise InvalidInputError(
            f"{path} is not a file of torchmeta's, with a data set per class below 'datasets' ({error}); fetch it again"
        ) from None
