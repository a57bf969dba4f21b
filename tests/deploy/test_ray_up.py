"""The files of `ray up`: Ray takes them, and their commands are those of Ray and of the command line."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

DEPLOY = Path(__file__).parents[2] / "deploy"
FILES = ("ray-cluster.yaml", "ray-cluster-on-premise.yaml")


def load(name: str) -> dict[str, Any]:
    return yaml.safe_load((DEPLOY / name).read_text("utf-8"))


def prepared(tree: dict[str, Any]) -> dict[str, Any]:
    """As `ray up` does it, before it asks a cloud for machines."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = prepare_config(tree)
    validate_config(config)
    return config


def words(commands: list[str], name: str) -> list[list[str]]:
    """The words of each call of a program, from its name on."""
    found = []
    for command in commands:
        for part in re.split(r"&&|\|\||;", command):
            parts = shlex.split(part, comments=True)
            if (at := next((i for i, word in enumerate(parts) if word.rpartition("/")[2] == name), None)) is not None:
                found.append(parts[at:])
    return found


@pytest.mark.parametrize("name", FILES)
def test_ray_accepts_the_file(name: str) -> None:
    config = prepared(load(name))
    assert config["cluster_name"] == "metasearch" and config["head_node_type"] in config["available_node_types"]


def test_ray_refuses_a_file_with_a_mistake() -> None:
    import jsonschema

    with pytest.raises(jsonschema.ValidationError, match="idle_timeout"):
        prepared(load("ray-cluster.yaml") | {"idle_timeout_seconds": 5})


def test_head_has_no_workers_and_groups_of_workers_come_and_go() -> None:
    config = prepared(load("ray-cluster.yaml"))
    types = config["available_node_types"]
    assert types["head"]["resources"] == {"CPU": 0, "GPU": 0} and types["head"]["max_workers"] == 0
    assert {kind: (each["min_workers"], each["max_workers"]) for kind, each in types.items() if kind != "head"} == {
        "cpu": (0, 8), "gpu": (0, 8),
    }  # fmt: skip
    assert types["gpu"]["resources"]["GPU"] == 1 and "GPU" not in types["cpu"]["resources"]
    [head] = words(load("ray-cluster-on-premise.yaml")["head_start_ray_commands"], "ray")[1:]
    assert {"--num-cpus=0", "--num-gpus=0"} <= set(head)


@pytest.mark.parametrize("name", FILES)
def test_commands_start_ray_with_a_token(name: str) -> None:
    from ray.scripts import scripts

    tree = load(name)
    assert tree["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token", "where Ray looks for it"
    assert "echo 'export RAY_AUTH_MODE=token' >> ~/.metasearch-environment" in tree["setup_commands"]
    for key in ("head_start_ray_commands", "worker_start_ray_commands"):
        commands = [each for each in tree[key] if re.search(r"\bray st", each)]
        assert all(each.startswith("source ~/.metasearch-environment && ") for each in commands)
        calls = words(commands, "ray")
        assert [call[1] for call in calls] == ["stop", "start"]
        for _, command, *arguments in calls:
            context = scripts.cli.commands[command].make_context(command, arguments)
            if command == "start":
                assert context.params["metrics_export_port"] == 8080
                assert context.params["head"] == key.startswith("head")


@pytest.mark.parametrize("name", FILES)
def test_supervisor_is_started_with_options_that_it_has(name: str) -> None:
    import typer

    from coordinator.cli import app

    coordinate = typer.main.get_command(app).commands["coordinate"]  # type: ignore[attr-defined]
    tree = load(name)
    [[_, command, *arguments]] = words(tree["head_start_ray_commands"], "metasearch")
    assert command == "coordinate" and arguments[0] == "--settings=$HOME/service.toml"
    assert tree["file_mounts"]["~/service.toml"] == "~/service.toml"
    if any("max-workers" in each for each in arguments):
        if "max_workers" not in {parameter.name for parameter in coordinate.params}:
            pytest.skip("this version of `coordinate` has no --max-workers")
        cpu = tree["available_node_types"]["cpu"]
        assert f"--max-workers={cpu['max_workers'] * cpu['resources']['CPU']}" in arguments
    parameters = coordinate.make_context(command, arguments).params
    assert parameters["address"] == "auto" and parameters["drain"] is True
