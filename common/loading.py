"""Where a study's configuration comes from.

Read order, later wins: preset or file, then `METASEARCH_SET_` environment variables, then `--set` on the command line.
"""

import json
import os
import tomllib
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from types import MappingProxyType
from typing import Any

from common.config import StudyConfig, validate
from common.errors import InvalidInputError, NotFoundError
from common.latency import read_table

ENVIRONMENT_PREFIX = "METASEARCH_SET_"


def preset_names() -> tuple[str, ...]:
    """Names of the presets that come with the package."""
    return tuple(
        sorted(
            entry.name.removesuffix(".toml")
            for entry in files("common.presets").iterdir()
            if entry.name.endswith(".toml")
        )
    )


def load(
    preset_or_file: str | Path,
    overrides: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
    fields: Mapping[str, object] = MappingProxyType({}),
) -> StudyConfig:
    """The configuration of a study from a preset, a TOML or JSON file, environment variables and overrides.

    Args:
        preset_or_file: name of a preset, or path of a TOML or JSON file, such as a run's config.json. A file may start
            from a preset: `preset = "demo"`.
        overrides: `a.b=value`, the value in TOML syntax (a bare word is taken as text).
        environment: variables to look at, `os.environ` where not given. `METASEARCH_SET_INNER__STEPS=5` sets
            `inner.steps`.
        fields: values by dotted name, which win over everything else.

    Raises:
        NotFoundError: neither a preset nor a file has that name.
        InvalidInputError: the file cannot be parsed, or a field is unknown, out of range or of the wrong type.
    """
    tree = _read(preset_or_file)
    for name, text in sorted((os.environ if environment is None else environment).items()):
        if name.startswith(ENVIRONMENT_PREFIX):
            path = name.removeprefix(ENVIRONMENT_PREFIX).lower().split("__")
            _assign(tree, path, _parse_value(text), origin=name)
    apply_overrides(tree, overrides)
    for field, value in fields.items():
        assign_field(tree, field, value)
    _read_tables_(tree)
    return validate(tree)


def with_adapt_overrides(config: StudyConfig, overrides: Sequence[str]) -> StudyConfig:
    """A study's configuration with changes of how a new task is adapted to, and of nothing that made its prior.

    Args:
        config: of the study.
        overrides: `adapt.b=value`, as `load` takes them; a latency table may be named by its file.

    Raises:
        InvalidInputError: an override is of another field, unknown, out of range or of the wrong type.
        NotFoundError: there is no such latency table.
    """
    for override in overrides:
        if not override.strip().startswith("adapt."):
            raise InvalidInputError(f"--set changes fields of adapt here, for example adapt.steps=5, got {override!r}")
    tree = config.model_dump(mode="json")
    apply_overrides(tree, overrides)
    _read_tables_(tree)
    return validate(tree)


def preset_tree(name: str) -> dict[str, Any]:
    """The plain values of a preset.

    Raises:
        NotFoundError: there is no preset of that name.
    """
    if name not in preset_names():
        raise NotFoundError(f"no preset {name!r}; presets are {', '.join(preset_names())}")
    return _read(name)


def apply_overrides(tree: dict[str, Any], overrides: Sequence[str]) -> None:
    """Changes fields of plain values in place: `a.b=value`, as `load` takes them.

    Raises:
        InvalidInputError: an override has no `=`, or names no field.
    """
    for override in overrides:
        path_text, separator, text = override.partition("=")
        if not separator or not path_text:
            raise InvalidInputError(f"--set takes FIELD=VALUE, for example inner.steps=5, got {override!r}")
        _assign(tree, path_text.strip().split("."), _parse_value(text.strip()), origin=f"--set {override}")


def assign_field(tree: dict[str, Any], field: str, value: object) -> None:
    """Sets a field of plain values in place, by its dotted name; elements of lists go by number: `families.0.num_ways`.

    Raises:
        InvalidInputError: a part of the name is a plain value, or no element of a list.
    """
    _assign(tree, field.split("."), value, origin=field)


def read_tree(name: str | Path) -> dict[str, Any]:
    """The plain values of a preset or a TOML file, as `load` reads them; nothing is checked.

    Raises:
        NotFoundError: neither a preset nor a file has that name.
        InvalidInputError: the file is not TOML.
    """
    return _read(name)


def _read(preset_or_file: str | Path) -> dict[str, Any]:
    name = str(preset_or_file)
    if name in preset_names():
        return tomllib.loads((files("common.presets") / f"{name}.toml").read_text("utf-8"))
    path = Path(name)
    if not path.is_file():
        raise NotFoundError(f"no preset or file {name!r}; presets are {', '.join(preset_names())}")
    kind, parse = ("JSON", json.loads) if path.suffix == ".json" else ("TOML", tomllib.loads)
    try:
        tree = parse(path.read_text("utf-8"))
    except ValueError as error:  # of either kind, or not UTF-8
        raise InvalidInputError(f"{name} is not a {kind} file: {error}") from None
    if not isinstance(tree, dict):
        raise InvalidInputError(f"{name} must hold a JSON object with the fields of a study")
    return with_preset(tree, name)


def with_preset(tree: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Plain values of a study, started from the preset that they name under `preset`, if they do.

    Args:
        tree: plain values.
        name: of where they are from, for messages.

    Raises:
        NotFoundError: there is no such preset.
    """
    tree = dict(tree)
    base = tree.pop("preset", None)
    if base is None:
        return tree
    if base not in preset_names():
        raise NotFoundError(f"{name} starts from preset {base!r}; presets are {', '.join(preset_names())}")
    return _merge(_read(str(base)), tree)


def _read_tables_(tree: dict[str, Any]) -> None:
    """Puts latency tables in the place of their files' names: a configuration holds all that it computes with."""
    for name in ("inner", "adapt"):
        inner = tree.get(name)
        cost = inner.get("cost") if isinstance(inner, dict) else None
        if isinstance(cost, dict) and isinstance(cost.get("table"), str):
            cost["table"] = read_table(cost["table"]).model_dump(mode="json")


def _merge(base: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in change.items():
        both_tables = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if both_tables else value
    return merged


def _assign(tree: dict[str, Any], path: Sequence[str], value: object, origin: str) -> None:
    """Sets a field of a tree of dicts and lists; list elements go by number."""
    here: Any = tree
    for depth, part in enumerate(path):
        last = depth == len(path) - 1
        if isinstance(here, list):
            if not part.isdecimal() or int(part) >= len(here):
                raise InvalidInputError(f"{origin}: {'.'.join(path[:depth])} has elements 0 to {len(here) - 1}")
            key: Any = int(part)
        elif isinstance(here, dict):
            key = part
            if not last and here.get(key) is None:
                here[key] = _default(path[: depth + 1])
        else:
            raise InvalidInputError(f"{origin}: {'.'.join(path[:depth])} is a value, it has no field {part!r}")
        if last:
            here[key] = value
        else:
            here = here[key]


def _default(path: Sequence[str]) -> Any:
    """The default of a table or list that is about to be changed in part."""
    here: Any = StudyConfig().model_dump(mode="json")
    for part in path:
        here = here.get(part, {}) if isinstance(here, dict) else {}
    return here if isinstance(here, dict | list) else {}


def _parse_value(text: str) -> object:
    try:
        tree = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    return tree["value"] if len(tree) == 1 else text  # a line break could begin further keys
