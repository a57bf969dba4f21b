"""Artifacts on any fsspec URL: tensors as safetensors, a JSON manifest with their SHA-256, written so that a reader
never sees half of one. The only place that stores or loads tensors.

A run's folder:
    config.json                    the resolved configuration
    priors/00000012.safetensors    version 12 of the prior, and
    priors/00000012.json           its manifest, written last: a version without one does not exist
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

import fsspec
import numpy as np
from fsspec.implementations.local import LocalFileSystem
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from common.config import Frozen, StudyConfig, validate
from common.errors import ConflictError, CorruptArtifactError, InvalidInputError, NotFoundError, UnavailableError
from common.meta.prior import Prior

MANIFEST_FORMAT = 1


class PriorManifest(Frozen):
    """What is stored beside a prior's tensors."""

    format: int
    version: int
    tau: str
    """Hexadecimal floating point, exact."""
    alpha_stopped: bool
    digest: str
    """Of the prior: see `Prior.digest`."""
    num_bytes: int
    sha256: str
    """Of the tensor file."""


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
                _write_local(Path(path), data)
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

    @contextmanager
    def _answering(self, action: str, path: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UnavailableError(f"cannot {action} {path}: {error}; check space and permissions") from error


class PriorStore:
    """The versions of one study's prior and its configuration, in one folder."""

    _CONFIG = "config.json"
    _FOLDER = "priors"

    def __init__(self, url: str | Path) -> None:
        self.folder = ArtifactFolder(url)

    def save_config(self, config: StudyConfig) -> None:
        """Stores the resolved configuration."""
        self.folder.write(self._CONFIG, config.to_json().encode())

    def has_config(self) -> bool:
        """Whether a study has begun here."""
        return self.folder.exists(self._CONFIG)

    def load_config(self) -> StudyConfig:
        """The stored configuration.

        Raises:
            NotFoundError: no study has begun here.
            CorruptArtifactError: the file is not a configuration.
        """
        if not self.has_config():
            raise NotFoundError(f"{self.folder.url} holds no study; start one with metasearch train")
        data = self.folder.read(self._CONFIG)
        try:
            return validate(json.loads(data))
        except (ValueError, InvalidInputError) as error:
            raise CorruptArtifactError(f"{self.folder.path(self._CONFIG)} is not a configuration: {error}") from None

    def versions(self) -> list[int]:
        """Versions whose manifest exists, ascending; their content is not looked at."""
        return [int(name) for name in self.folder.names(self._FOLDER, ".json") if name.isdecimal()]

    def save(self, prior: Prior) -> PriorManifest:
        """Stores a version; the tensors first, then the manifest that makes it exist."""
        data = save_tensors({name: np.ascontiguousarray(vector) for name, vector in prior.vectors.items()})
        manifest = PriorManifest(
            format=MANIFEST_FORMAT,
            version=prior.version,
            tau=prior.tau.hex(),
            alpha_stopped=prior.alpha_stopped,
            digest=prior.digest(),
            num_bytes=len(data),
            sha256=hashlib.sha256(data).hexdigest(),
        )
        self.folder.write(self._tensors(prior.version), data)
        self.folder.write(self._manifest(prior.version), manifest.model_dump_json(indent=2).encode())
        return manifest

    def load(self, version: int | None = None) -> Prior:
        """A version of the prior, the latest where none is named.

        Raises:
            NotFoundError: there is no such version.
            CorruptArtifactError: tensors or manifest are truncated or altered; the message names the newest earlier
                version that is intact.
        """
        versions = self.versions()
        if not versions:
            raise NotFoundError(f"{self.folder.url} holds no prior")
        wanted = versions[-1] if version is None else version
        if wanted not in versions:
            raise NotFoundError(f"{self.folder.url} has no prior version {wanted}; it has {_ranges(versions)}")
        try:
            return self._load(wanted)
        except CorruptArtifactError as error:
            intact = self._newest_intact(before=wanted)
            offer = (
                "no earlier version is intact" if intact is None else f"use --from-version {intact}, which is intact"
            )
            raise CorruptArtifactError(f"prior version {wanted} is corrupt: {error}; {offer}") from None

    def prune(self, keep_last: int) -> None:
        """Removes all but the last versions, manifests first."""
        for version in self.versions()[:-keep_last]:
            self.folder.remove(self._manifest(version))
            self.folder.remove(self._tensors(version))

    def discard_after(self, version: int) -> None:
        """Removes all versions above `version`."""
        for later in [found for found in self.versions() if found > version]:
            self.folder.remove(self._manifest(later))
            self.folder.remove(self._tensors(later))

    def _load(self, version: int) -> Prior:
        try:
            manifest = PriorManifest.model_validate_json(self.folder.read(self._manifest(version)))
        except ValidationError:
            raise CorruptArtifactError(f"{self.folder.path(self._manifest(version))} is not a manifest") from None
        path = self.folder.path(self._tensors(version))
        if manifest.format != MANIFEST_FORMAT:
            raise CorruptArtifactError(f"{path} has format {manifest.format}, this program reads {MANIFEST_FORMAT}")
        try:
            data = self.folder.read(self._tensors(version))
        except NotFoundError:
            raise CorruptArtifactError(f"{path} is missing") from None
        if len(data) != manifest.num_bytes:
            raise CorruptArtifactError(f"{path} has {len(data)} bytes, its manifest says {manifest.num_bytes}")
        if hashlib.sha256(data).hexdigest() != manifest.sha256:
            raise CorruptArtifactError(f"{path} does not have the SHA-256 of its manifest")
        try:
            vectors = load_tensors(data)
            prior = Prior(manifest.version, float.fromhex(manifest.tau), vectors, manifest.alpha_stopped)
        except (SafetensorError, ValueError, OverflowError) as error:
            raise CorruptArtifactError(f"{path}: {error}") from None
        if manifest.version != version or prior.digest() != manifest.digest:
            raise CorruptArtifactError(f"{self.folder.path(self._manifest(version))} was altered")
        return prior

    def _newest_intact(self, before: int) -> int | None:
        for version in reversed([found for found in self.versions() if found < before]):
            try:
                self._load(version)
            except CorruptArtifactError:
                continue
            return version
        return None

    def _tensors(self, version: int) -> str:
        return f"{self._FOLDER}/{version:08d}.safetensors"

    def _manifest(self, version: int) -> str:
        return f"{self._FOLDER}/{version:08d}.json"


def check_same_config(stored: StudyConfig, given: StudyConfig) -> None:
    """Refuses to go on with a study under another configuration.

    `cluster` and `checkpoint` may differ: they do not change what is computed.

    Raises:
        ConflictError: names the first field that differs.
    """
    differing = _first_difference(stored.model_dump(mode="json"), given.model_dump(mode="json"), "")
    if differing is not None:
        name, before, after = differing
        raise ConflictError(
            f"the run was started with {name} = {before!r}, now it is {after!r}; resume without it, or start a new run"
        )


def _first_difference(stored: Any, given: Any, where: str) -> tuple[str, Any, Any] | None:
    if isinstance(stored, dict) and isinstance(given, dict):
        for key in sorted(stored.keys() | given.keys()):
            name = f"{where}.{key}" if where else key
            if name in ("cluster", "checkpoint"):
                continue
            found = _first_difference(stored.get(key), given.get(key), name)
            if found is not None:
                return found
        return None
    return None if stored == given else (where, stored, given)


def _write_local(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    finally:
        Path(temporary).unlink(missing_ok=True)  # gone once renamed; whatever interrupts, nothing half-written stays
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the new name survives a power loss too
    finally:
        os.close(folder)


def _ranges(versions: list[int]) -> str:
    return ", ".join(str(version) for version in versions)
