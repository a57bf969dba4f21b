"""Every source of images by name, and the one way to load them."""

import difflib
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path

from common.config import DatasetRef
from common.data_config import MINI_IMAGENET
from common.errors import InvalidInputError, NotFoundError
from workers.data import archives, digits, downloads, folders, glyphs, idx, mini_imagenet
from workers.data.arrays import ClassArrays, ClassImages
from workers.data.cache import cache_root, cached
from workers.data.prepare import open_prepared, prepared_sizes
from workers.data.scripts import SCRIPTS

FILE_SUFFIXES = (".zip", ".npz", *archives.TAR_SUFFIXES)


@dataclass(frozen=True)
class Source:
    """A named source.

    Attributes:
        name: what `DatasetRef.source` says.
        description: one line for users.
        downloads: True where files are fetched from the internet if nothing on this machine holds them.
        native_size: height and width in pixels of the original images; None where they vary.
        num_classes: None where it depends on the user's files.
        load: class arrays of a reference at an image size in pixels.
        needs_root: True where only the user can have its files.
    """

    name: str
    description: str
    downloads: bool
    native_size: int | None
    num_classes: int | None
    load: Callable[[DatasetRef, int], ClassArrays]
    needs_root: bool = False


def load_arrays(ref: DatasetRef, image_size: int) -> ClassArrays:
    """The images of a source at `image_size` x `image_size` pixels; decoded once per machine, then memory-mapped.

    Raises:
        InvalidInputError: no such source, or its files are not what they should be; the message names the file.
        NotFoundError: a path, or a folder that the source needs, does not exist.
        UnavailableError: a download failed, or the cache cannot be written to.
        CorruptArtifactError: a prepared folder was altered.
    """
    if image_size < 1:
        raise InvalidInputError(f"image_size must be >= 1 pixel, got {image_size}; set image_size")
    if ref.source in SOURCES:
        return SOURCES[ref.source].load(ref, image_size)
    path = Path(ref.source).expanduser()
    if path.exists():
        return _load_path(path.resolve(), image_size)
    if os.sep in ref.source or ref.source.lower().endswith(FILE_SUFFIXES):
        raise NotFoundError(f"there is no file or folder {ref.source}")
    close = difflib.get_close_matches(ref.source, SOURCES, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    raise InvalidInputError(
        f"no source {ref.source!r}; {hint}use one of {', '.join(SOURCES)}, "
        "or the path of an image folder, zip, tar or npz file"
    )


def _load_path(path: Path, image_size: int) -> ClassArrays:
    name, build, files = path.name.lower(), partial(archives.read_archive, path, image_size), [path]
    if path.is_dir():
        if prepared_sizes(path):
            return open_prepared(path, image_size)
        classes = folders.files_by_class(path)
        build = partial(folders.read_folder, classes, image_size)
        files = [file for of_class in classes.values() for file in of_class]
    elif name.endswith(".npz"):
        build = partial(archives.read_npz, path, image_size)
    elif not name.endswith(FILE_SUFFIXES):
        raise InvalidInputError(f"{path} is neither a folder nor one of {', '.join(FILE_SUFFIXES)}; pack it as one")
    # The path is part of the key: error messages and users know the data by it.
    parameters = {"path": str(path), "files": folders.signature_of(files, path)}
    return cached(cache_root(), "files", image_size, parameters, build, str(path))


def _load_digits(ref: DatasetRef, image_size: int) -> ClassArrays:
    return _cached("digits", image_size, {"scikit-learn": version("scikit-learn")}, digits.read_digits)


def _load_glyphs(ref: DatasetRef, image_size: int) -> ClassArrays:
    parameters = {"renderer": glyphs.RENDERER_VERSION, "matplotlib": version("matplotlib"), "numpy": version("numpy")}
    return _cached("glyphs", image_size, parameters, lambda size: glyphs.render_glyphs(image_size=size))


def _load_idx(name: str, ref: DatasetRef, image_size: int) -> ClassArrays:
    files = downloads.idx_files(name, _root(ref), _downloads(name))
    parameters = {"files": folders.signature_of(files, files[0].parent)}
    names = downloads.IDX_SETS[name].class_names
    return _cached(name, image_size, parameters, lambda size: idx.read_idx_classes(files, names, size))


def _load_cifar(name: str, ref: DatasetRef, image_size: int) -> ClassArrays:
    # torchvision accepts files of one digest only, so the name alone decides the contents.
    root = _root(ref) or _downloads(name)
    return _cached(name, image_size, {}, lambda size: downloads.read_cifar(name, root, size))


def _load_svhn(ref: DatasetRef, image_size: int) -> ClassArrays:
    root = _root(ref) or _downloads("svhn")
    return _cached("svhn", image_size, {}, lambda size: downloads.read_svhn(root, size))


def _load_omniglot(ref: DatasetRef, image_size: int) -> ClassArrays:
    root = _root(ref) or _downloads("omniglot")
    alphabets = downloads.omniglot_alphabets(root)
    parameters = {"root": str(root), "alphabets": folders.signature_of(alphabets, root), "has_parts": True}
    return _cached("omniglot", image_size, parameters, lambda size: downloads.read_omniglot(alphabets, size))


def _load_mini_imagenet(ref: DatasetRef, image_size: int) -> ClassArrays:
    files = mini_imagenet.find_mini_imagenet(_root(ref) or _downloads(MINI_IMAGENET))
    parameters = {"root": str(files.folder), "files": folders.signature_of(files.paths, files.folder)}
    return _cached(MINI_IMAGENET, image_size, parameters, lambda size: mini_imagenet.read_mini_imagenet(files, size))


def _load_imagenet(ref: DatasetRef, image_size: int) -> ClassArrays:
    root = _root(ref)
    if root is None:
        raise InvalidInputError(
            "source 'imagenet' needs data.root: run metasearch data prepare on a folder of CLASS/*.JPEG, "
            "and set data.root to its result"
        )
    return open_prepared(root, image_size)


def _cached(
    name: str, image_size: int, parameters: Mapping[str, object], read: Callable[[int], Iterable[ClassImages]]
) -> ClassArrays:
    return cached(cache_root(), name, image_size, parameters, lambda: read(image_size), name)


def _root(ref: DatasetRef) -> Path | None:
    return None if ref.root is None else Path(ref.root).expanduser().resolve()


def _downloads(name: str) -> Path:
    return cache_root() / "downloads" / name


SOURCES: Mapping[str, Source] = {
    source.name: source
    for source in (
        Source(
            "glyphs",
            f"characters of {len(SCRIPTS)} scripts, drawn as by hand from the fonts of matplotlib",
            downloads=False,
            native_size=glyphs.NATIVE_SIZE,
            num_classes=sum(len(script.codes) for script in SCRIPTS),
            load=_load_glyphs,
        ),
        Source("digits", "handwritten digits that scikit-learn ships", False, digits.NATIVE_SIZE, 10, _load_digits),
        Source("mnist", "handwritten digits", True, idx.NATIVE_SIZE, 10, partial(_load_idx, "mnist")),
        Source("fashion-mnist", "clothes, gray", True, idx.NATIVE_SIZE, 10, partial(_load_idx, "fashion-mnist")),
        Source("kmnist", "cursive Japanese characters", True, idx.NATIVE_SIZE, 10, partial(_load_idx, "kmnist")),
        Source("cifar10", "animals and vehicles, colour", True, 32, 10, partial(_load_cifar, "cifar10")),
        Source("cifar100", "a hundred kinds of things, colour", True, 32, 100, partial(_load_cifar, "cifar100")),
        Source("svhn", "house numbers, colour", True, 32, 10, _load_svhn),
        Source("omniglot", "handwritten characters of 50 alphabets", True, 105, 1623, _load_omniglot),
        Source(
            MINI_IMAGENET,
            "100 kinds of things for few-shot learning, colour; needs root",
            downloads=False,
            native_size=mini_imagenet.NATIVE_SIZE,
            num_classes=100,
            load=_load_mini_imagenet,
            needs_root=True,
        ),
        Source(
            "imagenet",
            "a folder made by `metasearch data prepare`; needs root",
            downloads=False,
            native_size=None,
            num_classes=None,
            load=_load_imagenet,
            needs_root=True,
        ),
    )
}
"""All sources by name, in the order in which they are listed."""
