"""Reads files of a folder into plain values; what is wrong with one is said by its name."""

import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from common.config import StudyConfig, validate
from common.errors import CorruptArtifactError, InvalidInputError, UnavailableError
from common.space.genotype import Genotype

RESULT = "result.json"
TIME = "%Y-%m-%d %H:%M:%S"


def plain_facts(content: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Values of a result by dotted name; what is not there is left out."""
    return {
        name: value
        for key in names
        if key in content
        for name, value in flattened(content[key], key)
        if value is not None
    }


def flattened(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Leaves of a tree of tables and lists of tables, by dotted name; lists of plain values stay whole."""
    if isinstance(value, Mapping) and value:
        for key in value:
            yield from flattened(value[key], f"{name}.{key}" if name else str(key))
    elif isinstance(value, list | tuple) and value and all(isinstance(each, Mapping) for each in value):
        for index, each in enumerate(value):
            yield from flattened(each, f"{name}.{index}")
    else:
        yield name, value


def genotype_of(content: Any) -> Genotype:
    """A genotype from plain values."""
    return Genotype.from_json(json.dumps(content))


def read_config(path: Path) -> StudyConfig:
    """A study's configuration.

    Raises:
        CorruptArtifactError: it is none of this version.
    """
    try:
        return validate(read_json(path))
    except InvalidInputError as error:
        raise CorruptArtifactError(
            f"{path} is not a configuration of this version: {error}; restore it, or use the version that wrote it"
        ) from None


def read_json(path: Path) -> dict[str, Any]:
    """A file that holds a JSON object.

    Raises:
        UnavailableError: it cannot be read.
        CorruptArtifactError: it holds something else.
    """
    try:
        content = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise UnavailableError(f"cannot read {path}: {error}; check permissions") from None
    except ValueError as error:
        raise CorruptArtifactError(f"{path} is not JSON: {error}; restore it, or compute it again") from None
    if not isinstance(content, dict):
        raise CorruptArtifactError(f"{path} must hold a JSON object; restore it, or compute it again")
    return content


def modified(path: Path) -> str:
    """When a file was last written."""
    return datetime.fromtimestamp(path.stat().st_mtime, UTC).strftime(f"{TIME} UTC")
