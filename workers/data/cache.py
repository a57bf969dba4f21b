"""Node-local cache of class arrays: every source is decoded once per machine and image size, then memory-mapped.

Entries appear whole or not at all, whoever else builds or dies at the same time, and are checked once per process.
"""

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path

from common.errors import CorruptArtifactError, NotFoundError, UnavailableError
from workers.data.arrays import ClassArrays, ClassImages
from workers.data.stored import open_stored, verify_stored, write_stored

CACHE_VARIABLE = "METASEARCH_CACHE"


def cache_root() -> Path:
    """Where this machine keeps decoded data sets: `METASEARCH_CACHE`, else `~/.cache/metasearch`."""
    configured = os.environ.get(CACHE_VARIABLE)
    return Path(configured).expanduser() if configured else Path.home() / ".cache" / "metasearch"


def cached(
    root: Path,
    name: str,
    image_size: int,
    parameters: Mapping[str, object],
    build: Callable[[], Iterable[ClassImages]],
    origin: str,
) -> ClassArrays:
    """The cache entry for these arguments, built where it is missing, truncated or altered.

    Args:
        root: folder of the cache; created where missing.
        name: name of the source; starts the entry's folder name.
        image_size: height and width in pixels.
        parameters: all else that decides the contents, as JSON can hold it.
        build: yields the classes; called only where there is no sound entry.
        origin: what error messages call the data.

    Raises:
        UnavailableError: the cache cannot be written to (permissions, full disk).
        InvalidInputError: the classes that `build` yields are not sound.
    """
    # The same file resized by another version of Pillow may differ in a last bit.
    key = {"image_size": image_size, "pillow": version("pillow"), "parameters": parameters}
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
    folder = root / f"{name}-{image_size}px-{digest}"
    arrays = _sound(folder)
    if arrays is not None:
        return arrays
    try:
        root.mkdir(parents=True, exist_ok=True)
        with locked(folder.with_name(f"{folder.name}.lock")):
            arrays = _sound(folder)  # another process may have built it while this one waited
            if arrays is not None:
                return arrays
            _build(folder, build, origin)
    except OSError as error:
        raise UnavailableError(
            f"{origin}: cannot write to the cache {root} ({error}); "
            f"make room, or set {CACHE_VARIABLE} to another folder"
        ) from error
    arrays = _sound(folder)
    if arrays is None:
        raise UnavailableError(f"{origin}: {folder} was altered right after it was written; check the disk")
    return arrays


def _build(folder: Path, build: Callable[[], Iterable[ClassImages]], origin: str) -> None:
    # One fixed name is enough under the lock, and what a killed process left behind goes with the next build.
    growing = folder.with_name(f"{folder.name}.building")
    shutil.rmtree(growing, ignore_errors=True)
    growing.mkdir()
    try:
        write_stored(growing, build(), origin)
        shutil.rmtree(folder, ignore_errors=True)
        growing.replace(folder)
    finally:
        shutil.rmtree(growing, ignore_errors=True)


def _sound(folder: Path) -> ClassArrays | None:
    try:
        return _verified(folder, _signature(folder))
    except (NotFoundError, CorruptArtifactError):
        return None


@lru_cache(maxsize=16)
def _verified(folder: Path, signature: tuple[tuple[str, int, int], ...]) -> ClassArrays:
    """Opens an entry and reads it once; again only after a file's size or time has changed (`signature`)."""
    del signature
    arrays = open_stored(folder)
    verify_stored(arrays)
    return arrays


def _signature(folder: Path) -> tuple[tuple[str, int, int], ...]:
    """Name, size in bytes and time of change in ns of every file of an entry."""
    try:
        with os.scandir(folder) as entries:
            stats = [(entry.name, entry.stat()) for entry in entries]
    except (FileNotFoundError, NotADirectoryError):
        raise NotFoundError(f"{folder} does not exist") from None
    return tuple(sorted((name, stat.st_size, stat.st_mtime_ns) for name, stat in stats))


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Waits until no other process of this machine holds the lock file `path`. It dies with its holder."""
    with path.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
