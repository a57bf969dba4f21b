"""docker-compose.yml and deploy/Dockerfile as values: what each container runs, with what around it."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
COMPOSE_FILE = ROOT / "docker-compose.yml"
DOCKERFILE = ROOT / "deploy" / "Dockerfile"
EXAMPLE_FILE = ROOT / ".env.example"
SECRETS = "/run/secrets/"
SETTINGS = "/etc/metasearch/service.toml"

_VARIABLE = re.compile(r"(?<!\$)\$\{(?P<name>\w+):-(?P<default>[^}]*)\}")
_UNITS = {"s": 1, "m": 60}


def variables() -> dict[str, set[str]]:
    """The defaults that docker-compose.yml gives each of its variables."""
    text = COMPOSE_FILE.read_text()
    assert len(re.findall(r"(?<!\$)\$\{?\w", text)) == len(_VARIABLE.findall(text)), "one without a default"
    found: dict[str, set[str]] = {}
    for match in _VARIABLE.finditer(text):
        found.setdefault(match["name"], set()).add(match["default"])
    return found


def example() -> dict[str, str]:
    """The variables of .env.example."""
    lines = EXAMPLE_FILE.read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def load(values: Mapping[str, str] | None = None) -> dict[str, Any]:
    """docker-compose.yml with its variables filled in, those without a value by their defaults."""
    text = _VARIABLE.sub(lambda match: (values or {}).get(match["name"], match["default"]), COMPOSE_FILE.read_text())
    tree: dict[str, Any] = yaml.safe_load(text)
    return tree


@dataclass(frozen=True)
class Stage:
    """A stage of the Dockerfile: its instructions, those of the stages that it begins from included."""

    instructions: tuple[tuple[str, str], ...]

    def last(self, keyword: str) -> str | None:
        """The arguments of the last instruction with that keyword."""
        return next((rest for word, rest in reversed(self.instructions) if word == keyword), None)

    def words(self, keyword: str) -> list[str]:
        """Its arguments where they are a JSON list; empty where there is no such instruction."""
        rest = self.last(keyword)
        if rest is None:
            return []
        found: list[str] = json.loads(rest[rest.index("[") :])
        return found


def stages() -> dict[str, Stage]:
    """The stages of the Dockerfile by name."""
    text = re.sub(r"^#.*\n", "", DOCKERFILE.read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    found: dict[str, Stage] = {}
    name, instructions = "", []
    for line in filter(str.strip, text.splitlines()):
        keyword, _, rest = line.strip().partition(" ")
        if keyword == "FROM":
            base, _, name = rest.partition(" AS ")
            instructions = list(found[base].instructions) if base in found else []
        instructions.append((keyword, rest))
        if name:
            found[name] = Stage(tuple(instructions))
    return found


@dataclass(frozen=True)
class Service:
    """A service of docker-compose.yml."""

    name: str
    tree: Mapping[str, Any]

    @cached_property
    def stage(self) -> Stage | None:
        """What it is built from; None for an image of others."""
        return stages()[self.tree["build"]["target"]] if "build" in self.tree else None

    @property
    def command(self) -> list[str]:
        """What its container runs."""
        entrypoint = self.tree.get("entrypoint", self.stage.words("ENTRYPOINT") if self.stage else [])
        command = self.tree.get("command", self.stage.words("CMD") if self.stage else [])
        return [_plain(word) for word in [*entrypoint, *command]]

    @property
    def health_command(self) -> list[str]:
        """What says whether it is well: exit status 0 if it is."""
        kind, *words = self.tree["healthcheck"]["test"]
        if kind == "CMD-SHELL":
            return ["sh", "-c", *map(_plain, words)]
        assert kind == "CMD"
        return [_plain(word) for word in words]

    @property
    def environment(self) -> dict[str, str]:
        """Its variables."""
        return {name: _plain(value) for name, value in self.tree.get("environment", {}).items()}

    @property
    def secrets(self) -> set[str]:
        """Names of the secrets that it can read."""
        return set(self.tree.get("secrets", ()))

    @property
    def networks(self) -> set[str]:
        """Names of the networks that it is on."""
        return set(self.tree["networks"])

    @property
    def mounts(self) -> dict[str, str]:
        """Where its container finds what: a path of the container, and a volume or a path of the machine."""
        parts = [mount.split(":") for mount in self.tree.get("volumes", ())]
        return {target: source for source, target, *_ in parts}

    @property
    def ports(self) -> list[str]:
        """What is published."""
        return list(self.tree.get("ports", ()))

    @property
    def grace_s(self) -> float:
        """What it may take to end."""
        return seconds(self.tree["stop_grace_period"])


def services(values: Mapping[str, str] | None = None) -> dict[str, Service]:
    """All services by name."""
    return {name: Service(name, tree) for name, tree in load(values)["services"].items()}


def seconds(duration: str) -> float:
    """A duration as Compose writes it."""
    return float(duration[:-1]) * _UNITS[duration[-1]]


def _plain(text: Any) -> str:
    return str(text).replace("$$", "$")
