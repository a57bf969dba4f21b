"""Zip and tar archives of image folders, and npz files: files from strangers, read in memory and never unpacked.

An archive may hold nothing but plain files and folders below itself, within limits that are checked before a byte is
decompressed.
"""

import bz2
import gzip
import io
import lzma
import math
import re
import stat
import struct
import tarfile
import tokenize
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any, Protocol, cast

import numpy as np

from common.errors import InvalidInputError
from workers.data.arrays import ClassImages, by_label
from workers.data.images import IMAGE_SUFFIXES, Square, decode_squares, resize_all, stack_images

TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")

_BROKEN = (
    *(OSError, EOFError, ValueError, OverflowError, SyntaxError, MemoryError),
    RuntimeError,  # encrypted, of no known compression, or nested too deeply
    *(zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, struct.error, tokenize.TokenError),
)
"""What the readers of archives and arrays raise at contents that are wrong."""

_MAX_HEADER_BYTES = 1 << 20
"""Of a tar's member, long names included; a thousand times what people need."""
_MAX_ARRAY_HEADER_BYTES = 10_000  # as in numpy, which looks at it too late
_MIN_MEMBER_BYTES = 64
"""What the entry of an image takes in an archive at least, compressed."""
_MAX_RATIO = 200
_FREE_MEMBERS, _FREE_BYTES = 1000, 256 << 20
"""What is never taken for a bomb, however small the archive."""


@dataclass(frozen=True)
class ArchiveLimits:
    """What an archive may at most hold; more is taken for a decompression bomb."""

    max_members: int = 2_000_000
    """Files and folders."""
    max_member_bytes: int = 256 << 20
    """One file, unpacked."""
    max_total_bytes: int = 64 << 30
    """All files, unpacked."""
    max_pixel_bytes: int = 8 << 30
    """All images, decoded and resized: they are in memory until sorted by class."""


DEFAULT_LIMITS = ArchiveLimits()


@dataclass(frozen=True)
class Member:
    """An entry of an archive: its name, size in bytes when unpacked, and whether it is a folder."""

    name: str
    num_bytes: int
    is_folder: bool


def read_archive(path: Path, image_size: int, limits: ArchiveLimits = DEFAULT_LIMITS) -> Iterator[ClassImages]:
    """Decodes a zip or tar archive: a folder per class, with or without one folder around all of them.

    Args:
        path: the archive, compressed or not.
        image_size: height and width of the results in pixels.
        limits: what is refused.

    Returns:
        Classes sorted by name, their images sorted by name; one channel where no image has colour, else three.

    Raises:
        InvalidInputError: broken archive; a member that is a link or device, lies outside, is too large or is not a
            readable image; an image outside class folders; a class without images.
    """
    decoded: dict[str, list[tuple[str, Square]]] = defaultdict(list)
    num_bytes = 0
    for class_name, name, data in archived_images(path, limits):
        image = decode_squares(data, f"{path}: {name}", (image_size,))[0]
        num_bytes += image.nbytes
        if num_bytes > limits.max_pixel_bytes:
            raise InvalidInputError(
                f"{path} holds more than {limits.max_pixel_bytes} bytes of images at {image_size} px; "
                "unpack it and pass the folder"
            )
        decoded[class_name].append((name, image))
    colour = any(image.shape[2] == 3 for images in decoded.values() for _, image in images)
    return _sorted_classes(decoded, 3 if colour else 1)


def archived_images(path: Path, limits: ArchiveLimits = DEFAULT_LIMITS) -> Iterator[tuple[str, str, bytes]]:
    """Class, name and content of every image file of a zip or tar archive, in the archive's order.

    Raises:
        InvalidInputError: as `read_archive`, but for images that are not readable.
    """
    try:
        with closing(_open(path)) as archive:
            class_of = assign_classes(_checked(archive.members(), path, limits), path)
            for name, data in archive.contents(class_of):
                yield class_of[name], name, data
    except _BROKEN as error:
        raise InvalidInputError(f"{path} is not a readable archive ({error}); pack it again") from None


def check_archive(path: Path, limits: ArchiveLimits = DEFAULT_LIMITS) -> None:
    """Looks at what an archive or npz file says it holds; decodes no image.

    Raises:
        InvalidInputError: broken, too large, fewer than two classes; a link, a device, pickled objects, a path outside.
    """
    try:
        if path.name.lower().endswith(".npz"):
            _check_npz(path, limits)
            return
        with closing(_open(path)) as archive:
            classes = set(assign_classes(_checked(archive.members(), path, limits), path).values())
    except _BROKEN as error:
        raise InvalidInputError(f"{path} is not a readable archive ({error}); pack it again") from None
    if len(classes) < 2:
        raise InvalidInputError(f"{path} has {len(classes)} folders of images; it has one for each class, at least 2")


def _check_npz(path: Path, limits: ArchiveLimits) -> None:
    with zipfile.ZipFile(path) as archive:
        max_bytes = min(limits.max_pixel_bytes, _max_unpacked(path, limits))
        total = sum(info.file_size for info in archive.infolist())
        if total > max_bytes:
            raise InvalidInputError(f"{path} unpacks to {total} bytes, at most {max_bytes} are read")
        names = archive.namelist()
        for key in ("images", "labels"):
            if f"{key}.npy" not in names or key in names:
                found = ", ".join(name.removesuffix(".npy") for name in names[:10]) or "none"
                raise InvalidInputError(
                    f"{path} has no array {key!r} but {found}; save it with numpy.savez(path, images=..., labels=...)"
                )
            with archive.open(f"{key}.npy") as member:
                shape, dtype = _array_header(member)
            if dtype.hasobject:
                raise InvalidInputError(
                    f"{path} is not a readable npz file of plain arrays ({key!r} holds pickled objects); save it with "
                    "numpy.savez(path, images=..., labels=...), without objects"
                )
            promised = math.prod(shape) * dtype.itemsize
            if promised > archive.getinfo(f"{key}.npy").file_size or min(shape, default=0) < 0:
                raise InvalidInputError(
                    f"{path} is not a readable npz file of plain arrays ({key!r} promises {promised} bytes and holds "
                    "fewer); save it again"
                )


def _array_header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and type of an array in numpy's format; reads no more than a header has."""
    version = np.lib.format.read_magic(file)
    size = file.read(2 if version == (1, 0) else 4)
    num_bytes = int.from_bytes(size, "little")
    if num_bytes > _MAX_ARRAY_HEADER_BYTES:
        raise ValueError(f"an array's header has {num_bytes} bytes")
    header = io.BytesIO(size + file.read(num_bytes))
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(header)
    return shape, dtype


def assign_classes(members: Iterable[Member], path: Path) -> Mapping[str, str]:
    """The class of every image of an archive: the outermost folder that does not hold all images.

    Raises:
        InvalidInputError: an image lies outside class folders, or a folder beside classes has no images.
    """
    parts_of: dict[str, tuple[str, ...]] = {}
    images: list[str] = []
    for member in members:
        parts = PurePosixPath(member.name).parts
        if "__MACOSX" in parts or any(part.startswith(".") for part in parts):
            continue
        parts_of[member.name] = parts if member.is_folder else parts[:-1]  # the folders that it is or lies in
        if not member.is_folder and PurePosixPath(member.name).suffix.lower() in IMAGE_SUFFIXES:
            images.append(member.name)
    depth = 0
    while (
        images
        and all(len(parts_of[name]) > depth + 1 for name in images)
        and len({parts_of[name][depth] for name in images}) == 1
    ):
        depth += 1
    for name in images:
        if len(parts_of[name]) <= depth:
            raise InvalidInputError(f"{path}: image {name!r} lies outside the class folders; move it into one")
    class_of = {name: parts_of[name][depth] for name in images}
    top = parts_of[images[0]][:depth] if images else ()
    folders = {parts[depth] for parts in parts_of.values() if len(parts) > depth and parts[:depth] == top}
    for folder in sorted(folders - set(class_of.values())):
        raise InvalidInputError(f"{path}: class {folder!r} has no images; add some or remove its folder")
    return class_of


def read_npz(path: Path, image_size: int, limits: ArchiveLimits = DEFAULT_LIMITS) -> Iterator[ClassImages]:
    """Reads `images` uint8 (image, height, width[, channel]) and `labels` (image,), integers or text, from an npz file.

    Raises:
        InvalidInputError: broken file, pickled objects, a key missing, wrong type or shape, or too large.
    """
    try:
        _check_npz(path, limits)
        with np.load(path, allow_pickle=False) as file:
            images, labels = file["images"], file["labels"]
    except _BROKEN as error:
        raise InvalidInputError(
            f"{path} is not a readable npz file of plain arrays ({error}); save it with "
            "numpy.savez(path, images=..., labels=...), without objects"
        ) from None
    images = images[..., None] if images.ndim == 3 else images
    if images.dtype != np.uint8:
        raise InvalidInputError(f"{path}: images are {images.dtype}; convert them to uint8, values 0 to 255")
    if images.ndim != 4 or images.shape[3] not in (1, 3) or 0 in images.shape:
        raise InvalidInputError(
            f"{path}: images have shape {images.shape}; give (images, height, width) or "
            "(images, height, width, channels) with 1 or 3 channels"
        )
    if labels.dtype.kind not in "iuU" or labels.shape != images.shape[:1]:
        raise InvalidInputError(
            f"{path}: labels are {labels.dtype} {labels.shape}; give one integer or text for each of the "
            f"{len(images)} images"
        )
    return by_label(resize_all(images, image_size), labels)


class _Archive(Protocol):
    def members(self) -> Iterator[Member]: ...
    def contents(self, names: Mapping[str, str]) -> Iterator[tuple[str, bytes]]: ...
    def close(self) -> None: ...


def _open(path: Path) -> _Archive:
    return _Tar(path) if path.name.lower().endswith(TAR_SUFFIXES) else _Zip(path)


def _checked(members: Iterator[Member], path: Path, limits: ArchiveLimits) -> Iterator[Member]:
    total = 0
    max_members = min(limits.max_members, path.stat().st_size // _MIN_MEMBER_BYTES + _FREE_MEMBERS)
    max_total_bytes = _max_unpacked(path, limits)
    for index, member in enumerate(members):
        parts = re.split(r"[/\\]", member.name)
        if member.name.startswith(("/", "\\")) or ".." in parts or re.match(r"[A-Za-z]:", member.name):
            raise InvalidInputError(f"{path}: member {member.name!r} points outside the archive; pack it again")
        total += member.num_bytes
        if index >= max_members:
            raise InvalidInputError(f"{path} has more than {max_members} members; unpack it, pass the folder")
        if not 0 <= member.num_bytes <= limits.max_member_bytes:
            raise InvalidInputError(
                f"{path}: member {member.name!r} unpacks to {member.num_bytes} bytes, at most "
                f"{limits.max_member_bytes} are read; remove it"
            )
        if total > max_total_bytes:
            raise InvalidInputError(
                f"{path} unpacks to more than {max_total_bytes} bytes; unpack it and pass the folder"
            )
        yield member


def _max_unpacked(path: Path, limits: ArchiveLimits) -> int:
    return min(limits.max_total_bytes, _MAX_RATIO * path.stat().st_size + _FREE_BYTES)


def _sorted_classes(decoded: dict[str, list[tuple[str, Square]]], channels: int) -> Iterator[ClassImages]:
    for name in sorted(decoded):
        images = stack_images([image for _, image in sorted(decoded.pop(name), key=lambda pair: pair[0])])
        yield ClassImages(name, name, images if images.shape[3] == channels else images.repeat(3, axis=3))


class _Zip:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = zipfile.ZipFile(path)

    def members(self) -> Iterator[Member]:
        for info in self._file.infolist():
            kind = stat.S_IFMT(info.external_attr >> 16)
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise InvalidInputError(_special(self._path, info.filename))
            if info.flag_bits & 1:
                raise InvalidInputError(
                    f"{self._path}: member {info.filename!r} is encrypted; pack it without password"
                )
            yield Member(info.filename, info.file_size, info.is_dir())

    def contents(self, names: Mapping[str, str]) -> Iterator[tuple[str, bytes]]:
        # zipfile stops at the size that the directory promised, which has been checked.
        for name in names:
            yield name, self._file.read(name)

    def close(self) -> None:
        self._file.close()


class _Tar:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = _open_compressed(path)

    def members(self) -> Iterator[Member]:
        for _, info in self._infos():
            yield Member(info.name, info.size, info.isdir())

    def contents(self, names: Mapping[str, str]) -> Iterator[tuple[str, bytes]]:
        # In the archive's order: a compressed tar can only be read forwards.
        for archive, info in self._infos():
            if info.name in names and info.isfile():
                file = archive.extractfile(info)
                assert file is not None, "a plain file can be read"
                with file:
                    yield info.name, file.read(info.size)

    def close(self) -> None:
        self._file.close()

    def _infos(self) -> Iterator[tuple[tarfile.TarFile, tarfile.TarInfo]]:
        self._file.seek(0)
        bounded = _Bounded(self._file, _MAX_HEADER_BYTES)
        with tarfile.TarFile(fileobj=cast("IO[bytes]", bounded)) as archive:
            while (info := archive.next()) is not None:
                cast("Any", archive).members.clear()  # it would remember them all
                if not (info.isfile() or info.isdir()) or info.issparse():
                    raise InvalidInputError(_special(self._path, info.name))
                bounded.budget = max(info.size, 0)  # for whoever reads the content
                yield archive, info
                bounded.budget = _MAX_HEADER_BYTES


class _Bounded:
    """What tarfile reads goes through it: names and maps have whatever size their headers promise."""

    def __init__(self, file: IO[bytes], budget: int) -> None:
        self._file = file
        self.budget = budget
        self.seek, self.tell = file.seek, file.tell

    def read(self, num_bytes: int = -1) -> bytes:
        if not 0 <= num_bytes <= self.budget:
            raise ValueError("a member's header is too large")
        self.budget -= num_bytes
        return self._file.read(num_bytes)


def _open_compressed(path: Path) -> IO[bytes]:
    with path.open("rb") as file:
        magic = file.read(6)
    if magic.startswith(b"\x1f\x8b"):
        return cast("IO[bytes]", gzip.open(path))
    if magic.startswith(b"BZh"):
        return bz2.open(path)
    return lzma.open(path) if magic.startswith(b"\xfd7zXZ\0") else path.open("rb")


def _special(path: Path, name: str) -> str:
    return f"{path}: member {name!r} is a link or device; pack plain files only"
