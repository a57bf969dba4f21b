"""Data files from elsewhere, fetched once per machine."""

import hashlib
import os
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from common.errors import (
    CorruptArtifactError,
    DataUnavailableError,
    InvalidInputError,
    NotFoundError,
    UnavailableError,
)
from common.tasks import DatasetFile
from workers.data.cache import CACHE_VARIABLE, locked
from workers.data.sources import FILE_SUFFIXES

FOLDER = "fetched"


def fetch(file: DatasetFile, root: Path) -> Path:
    """A local path of the file, whose name ends in `file.suffix`.

    It lies at `root/fetched/<sha256><suffix>`, or under the SHA-256 of its URL where its own is not known; then a
    change at the URL goes unnoticed. A local file without SHA-256 is used where it is.

    Args:
        file: what to fetch.
        root: folder of the cache; created where missing.

    Raises:
        InvalidInputError: the suffix is not one of `FILE_SUFFIXES`, or the URL is not one.
        NotFoundError: there is no such file.
        DataUnavailableError: the storage refused or did not answer.
        UnavailableError: the cache cannot be written to.
        CorruptArtifactError: the file does not have the SHA-256 that it should have.
    """
    if file.suffix not in FILE_SUFFIXES:
        raise InvalidInputError(f"suffix must be one of {', '.join(FILE_SUFFIXES)}, got {file.suffix!r}")
    storage, path = _storage_of(file.url)
    if file.sha256 is None and isinstance(storage, LocalFileSystem) and path.endswith(file.suffix):
        if not Path(path).is_file():
            raise NotFoundError(f"there is no file {path}")
        return Path(path)
    name = file.sha256 or hashlib.sha256(file.url.encode()).hexdigest()
    target = root / FOLDER / f"{name}{file.suffix}"
    if target.exists():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with locked(target.with_name(f"{target.name}.lock")):
            if not target.exists():  # another process may have fetched it while this one waited
                _fetch(file, storage, path, target)
    except OSError as error:
        raise UnavailableError(
            f"cannot write to the cache {root} ({error}); make room, or set {CACHE_VARIABLE} to another folder"
        ) from error
    return target


def _storage_of(url: str) -> tuple[Any, str]:
    try:
        storage, path = fsspec.core.url_to_fs(url)
    except ImportError as error:
        raise DataUnavailableError(f"cannot fetch {url}: {error}") from error
    except ValueError as error:
        raise InvalidInputError(f"{url} is not a URL that can be fetched: {error}") from None
    return storage, path


def _fetch(file: DatasetFile, storage: Any, path: str, target: Path) -> None:
    # One fixed name is enough under the lock, and what a killed process left behind is overwritten.
    growing = target.with_name(f"{target.name}.fetching")
    try:
        _download(file.url, storage, path, growing)
        with growing.open("rb") as copy:
            digest = hashlib.file_digest(copy, "sha256").hexdigest()
            os.fsync(copy.fileno())  # a file under its final name is trusted from then on
        if file.sha256 is not None and digest != file.sha256:
            raise CorruptArtifactError(
                f"{file.url} has SHA-256 {digest}, not {file.sha256}; correct sha256, or restore the file"
            )
        growing.replace(target)
    finally:
        growing.unlink(missing_ok=True)


def _download(url: str, storage: Any, path: str, growing: Path) -> None:
    # get_file streams whatever the storage; open() needs servers that answer range requests.
    try:
        storage.get_file(path, str(growing))
    except FileNotFoundError:
        raise NotFoundError(f"there is no file {url}") from None
    except Exception as error:  # every kind of storage has exceptions of its own, without a common base
        raise DataUnavailableError(
            f"cannot fetch {url} ({type(error).__name__}: {error}); "
            f"check its address and permissions, and the room in {growing.parent}"
        ) from error
    if growing.is_dir():
        growing.rmdir()
        raise InvalidInputError(f"{url} is a folder; pack it as one of {', '.join(FILE_SUFFIXES)}")
