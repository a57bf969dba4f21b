"""Files on any fsspec URL, written so that a reader never sees half of one. No tensors here, and no torch."""

import hashlib
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

import fsspec
from fsspec.implementations.local import LocalFileSystem

from common.errors import NotFoundError, UnavailableError

_COPY_BYTES = 1 << 20


class ArtifactFolder:
    """A folder on any fsspec URL, or a local path.

    Args:
        url: for example `runs/demo`, `s3://bucket/run`.

    Raises:
        UnavailableError: from every method, when the storage refuses.
    """

    def __init__(self, url: str | Path) -> None:
        self.url = str(url)
        self._fs, root = fsspec.core.url_to_fs(self.url)
        self._root = PurePosixPath(root)

    def path(self, name: str) -> str:
        """Where `name` is, for messages."""
        return str(self._root / name)

    def exists(self, name: str) -> bool:
        """Whether there is a file `name`."""
        with self._answering("look for", self.path(name)):
            found: bool = self._fs.exists(self.path(name))
        return found

    def write(self, name: str, data: bytes) -> None:
        """Creates or replaces a file; readers see the old or the new content, never a part."""
        path = self.path(name)
        with self._answering("write", path):
            if isinstance(self._fs, LocalFileSystem):
                _write_local(Path(path), [data])
            else:
                self._fs.pipe_file(path, data)  # object stores publish an object when its upload completes

    def read(self, name: str) -> bytes:
        """The content of a file.

        Raises:
            NotFoundError: there is none.
        """
        path = self.path(name)
        with self._answering("read", path):
            try:
                data: bytes = self._fs.cat_file(path)
            except FileNotFoundError:
                raise NotFoundError(f"there is no file {path}") from None
        return data

    def url_of(self, name: str) -> str:
        """A URL of a file, the same for other processes, and on other machines where the storage is shared."""
        return str(self._fs.unstrip_protocol(self.path(name)))

    def put_file(self, name: str, source: Path) -> None:
        """Creates or replaces a file by a copy of a local one; readers see the old or the new content, never a part."""
        path = self.path(name)
        with self._answering("write", path):
            if isinstance(self._fs, LocalFileSystem):
                with source.open("rb") as file:
                    _write_local(Path(path), iter(lambda: file.read(_COPY_BYTES), b""))
            else:
                self._fs.put_file(str(source), path)

    def read_range(self, name: str, offset: int, num_bytes: int) -> bytes:
        """A part of a file; short, even empty, at its end.

        Raises:
            NotFoundError: there is none.
        """
        path = self.path(name)
        with self._answering("read", path):
            try:
                data: bytes = self._fs.cat_file(path, start=offset, end=offset + num_bytes)
            except FileNotFoundError:
                raise NotFoundError(f"there is no file {path}") from None
        return data

    def digest(self, name: str) -> tuple[int, str]:
        """Size in bytes and SHA-256 (hexadecimal) of a file, read part by part.

        Raises:
            NotFoundError: there is none.
        """
        path, hasher, num_bytes = self.path(name), hashlib.sha256(), 0
        with self._answering("read", path):
            try:
                with self._fs.open(path, "rb") as file:
                    while part := file.read(_COPY_BYTES):
                        hasher.update(part)
                        num_bytes += len(part)
            except FileNotFoundError:
                raise NotFoundError(f"there is no file {path}") from None
        return num_bytes, hasher.hexdigest()

    def names(self, folder: str, suffix: str) -> list[str]:
        """Names of the files in `folder` that end in `suffix`, sorted, without folder and suffix."""
        with self._answering("list", self.path(folder)):
            try:
                entries = self._fs.ls(self.path(folder), detail=False)
            except FileNotFoundError:
                return []
        files = (PurePosixPath(entry).name for entry in entries)
        return sorted(name.removesuffix(suffix) for name in files if name.endswith(suffix))

    def remove(self, name: str) -> None:
        """Removes a file if it is there."""
        if self.exists(name):
            with self._answering("remove", self.path(name)):
                self._fs.rm_file(self.path(name))

    def remove_tree(self, name: str) -> None:
        """Removes a folder and all that is in it, if it is there."""
        path = self.path(name)
        with self._answering("remove", path):
            if self._fs.exists(path):
                self._fs.rm(path, recursive=True)

    def copy_tree(self, source: str, name: str) -> None:
        """Copies all files below a folder of the same storage into the folder `name`, in place of what is there.

        Args:
            source: the folder's path, as `path` gives it.
            name: of the copy.
        """
        target = self.path(name)
        with self._answering("copy", source):
            if self._fs.exists(target):
                self._fs.rm(target, recursive=True)
            for path in self._fs.find(source):
                copy = f"{target}/{PurePosixPath(path).relative_to(source)}"
                self._fs.makedirs(str(PurePosixPath(copy).parent), exist_ok=True)
                self._fs.copy(path, copy)

    @contextmanager
    def _answering(self, action: str, path: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UnavailableError(f"cannot {action} {path}: {error}; check space and permissions") from error


def _write_local(path: Path, parts: Iterable[bytes], mode: int = 0o644) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            for part in parts:
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(mode)
        Path(temporary).replace(path)
    finally:
        Path(temporary).unlink(missing_ok=True)  # gone once renamed; whatever interrupts, nothing half-written stays
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the new name survives a power loss too
    finally:
        os.close(folder)


def write_private(path: Path, data: bytes) -> None:
    """Creates or replaces a local file that only its owner can read, such as one with secrets."""
    _write_local(path, [data], mode=0o600)
