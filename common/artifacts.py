"""Priors in a folder: tensors as safetensors, a JSON manifest with their SHA-256.

A run's folder:
    config.json                    the resolved configuration
    priors/00000012.safetensors    version 12 of the prior, and
    priors/00000012.json           its manifest, written last: a version without one does not exist
    tasks/00000012.json            which tasks the version took in, where the schedule leaves it to chance
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from common.config import Frozen, StudyConfig, validate
from common.errors import ConflictError, CorruptArtifactError, InvalidInputError, NotFoundError
from common.intake import Intake
from common.meta.prior import Prior
from common.storage import ArtifactFolder

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


class PriorStore:
    """The versions of one study's prior and its configuration, in one folder."""

    _CONFIG = "config.json"
    _FOLDER = "priors"
    _TASKS = "tasks"

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
        """Stores a version; see `save_prior`."""
        return save_prior(self.folder, self._stem(prior.version), prior)

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

    def save_intake(self, version: int, intake: Intake) -> None:
        """Stores what a version took in, before the version itself; that of every version stays."""
        self.folder.write(self._intake(version), intake.model_dump_json().encode())

    def load_intake(self, version: int) -> Intake:
        """What a version took in.

        Raises:
            CorruptArtifactError: that is not known, or was altered.
        """
        path = self.folder.path(self._intake(version))
        try:
            return Intake.model_validate_json(self.folder.read(self._intake(version)))
        except NotFoundError:
            raise CorruptArtifactError(f"{path} is missing, so which tasks are left is not known") from None
        except ValidationError:
            raise CorruptArtifactError(f"{path} does not say which tasks a version took in") from None

    def prune(self, keep_last: int) -> None:
        """Removes all but the last versions, manifests first."""
        for version in self.versions()[:-keep_last]:
            self._remove(version)

    def discard_after(self, version: int) -> None:
        """Removes all versions above `version`."""
        for later in [found for found in self.versions() if found > version]:
            self._remove(later)
        for name in self.folder.names(self._TASKS, ".json"):
            if int(name) > version:
                self.folder.remove(self._intake(int(name)))

    def _load(self, version: int) -> Prior:
        return load_prior(self.folder, self._stem(version), version)

    def _newest_intact(self, before: int) -> int | None:
        for version in reversed([found for found in self.versions() if found < before]):
            try:
                self._load(version)
            except CorruptArtifactError:
                continue
            return version
        return None

    def _remove(self, version: int) -> None:
        remove_prior(self.folder, self._stem(version))

    def _intake(self, version: int) -> str:
        return f"{self._TASKS}/{version:08d}.json"

    def _stem(self, version: int) -> str:
        return f"{self._FOLDER}/{version:08d}"


def save_prior(folder: ArtifactFolder, stem: str, prior: Prior) -> PriorManifest:
    """Stores a prior as `stem`.safetensors, then `stem`.json, the manifest that makes it exist."""
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
    folder.write(f"{stem}.safetensors", data)
    folder.write(f"{stem}.json", manifest.model_dump_json(indent=2).encode())
    return manifest


def load_prior(folder: ArtifactFolder, stem: str, version: int) -> Prior:
    """The prior that `save_prior` stored.

    Raises:
        NotFoundError: there is no manifest of that name.
        CorruptArtifactError: tensors or manifest are truncated or altered, or of another version.
    """
    manifest_path, path = folder.path(f"{stem}.json"), folder.path(f"{stem}.safetensors")
    try:
        manifest = PriorManifest.model_validate_json(folder.read(f"{stem}.json"))
    except ValidationError:
        raise CorruptArtifactError(f"{manifest_path} is not a manifest") from None
    if manifest.format != MANIFEST_FORMAT:
        raise CorruptArtifactError(f"{path} has format {manifest.format}, this program reads {MANIFEST_FORMAT}")
    try:
        data = folder.read(f"{stem}.safetensors")
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
        raise CorruptArtifactError(f"{manifest_path} was altered")
    return prior


def remove_prior(folder: ArtifactFolder, stem: str) -> None:
    """Removes a prior, the manifest first, if it is there."""
    folder.remove(f"{stem}.json")
    folder.remove(f"{stem}.safetensors")


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


def _ranges(versions: list[int]) -> str:
    return ", ".join(str(version) for version in versions)
