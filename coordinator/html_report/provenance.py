"""The files of a folder, and whether each is what its manifest says."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from common.errors import UnavailableError

State = Literal["intact", "altered", "missing", "unlisted", "withheld"]

MANIFEST = "manifest.json"
SECRETS = frozenset({"token", "tokens.toml"})  # of a demo's service
_READ_BYTES = 1 << 20
PRIOR_STEM = re.compile(r"(\d{8})(?:-[0-9a-f]+)?\Z")  # of the files of a prior's version


@dataclass(frozen=True)
class StoredFile:
    """A file of the folder.

    Attributes:
        name: below the folder.
        num_bytes: its size now; what the manifest says of a file that is missing.
        sha256: computed now; None for a file that is missing or withheld.
        state: what comparing it with its manifest says. A secret is withheld: not read, not hashed.
    """

    name: str
    num_bytes: int
    sha256: str | None
    state: State


@dataclass(frozen=True)
class Manifest:
    """What a manifest says of a file."""

    num_bytes: int
    sha256: str


def stored_files(folder: Path, listed: Mapping[str, Manifest], leave_out: Path | None) -> tuple[StoredFile, ...]:
    """Every file below the folder, and those that a manifest, or `listed`, names and that are not there.

    Manifests are read last: a run that goes on removes the manifest of an old prior first, so that none is missed.
    """
    omitted = None if leave_out is None else leave_out.resolve()
    found: dict[str, StoredFile] = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and path.resolve() != omitted):
        name = path.relative_to(folder).as_posix()
        try:
            num_bytes = path.stat().st_size
            is_secret = path.name in SECRETS
            found[name] = StoredFile(
                name, num_bytes, None if is_secret else sha256(path), "withheld" if is_secret else "unlisted"
            )
        except FileNotFoundError:
            continue
        except OSError as error:
            raise UnavailableError(f"cannot read {path}: {error}; check permissions, or remove it") from None
    expected = dict(listed)
    for name in found:
        expected |= _manifest(folder / name, folder)
    for name, entry in expected.items():
        file = found.get(name)
        if file is None:
            found[name] = StoredFile(name, entry.num_bytes, None, "missing")
        elif file.sha256 is not None:
            is_intact = (entry.num_bytes, entry.sha256) == (file.num_bytes, file.sha256)
            found[name] = replace(file, state="intact" if is_intact else "altered")
    return tuple(found[name] for name in sorted(found))


def _manifest(path: Path, folder: Path) -> dict[str, Manifest]:
    """What a file says of others, if it is a manifest: a job's, or a prior's."""
    is_prior = path.suffix == ".json" and PRIOR_STEM.match(path.stem) is not None
    if path.name != MANIFEST and not is_prior:
        return {}
    below = path.parent.relative_to(folder)
    try:
        content = json.loads(path.read_text("utf-8"))
        listed = [{**content, "name": f"{path.stem}.safetensors"}] if is_prior else content["artifacts"]
        return {
            (below / str(each["name"])).as_posix(): Manifest(int(each["num_bytes"]), str(each["sha256"]))
            for each in listed
        }
    except (OSError, ValueError, TypeError, KeyError):
        return {}  # not a manifest of ours; files that it might speak for count as unlisted


def sha256(path: Path) -> str:
    """Of a file's content, hexadecimal."""
    hasher = hashlib.sha256()
    with path.open("rb") as file:
        for part in iter(lambda: file.read(_READ_BYTES), b""):
            hasher.update(part)
    return hasher.hexdigest()
