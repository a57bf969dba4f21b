"""What deploy/Dockerfile and docker-compose.yml say, held against what the programs that they start really take."""

import mmap
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import pytest
import ray
import typer
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from pydantic import BaseModel
from ray._private.ray_constants import RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S
from ray.dashboard.modules.metrics import grafana_dashboard_factory, metrics_head
from ray.scripts import scripts as ray_scripts
from reference.compose import (
    COMPOSE_FILE,
    DOCKERFILE,
    ROOT,
    SECRETS,
    SETTINGS,
    Service,
    example,
    load,
    seconds,
    services,
    stages,
    variables,
)

from coordinator import cli
from coordinator.api.connection import CA_VARIABLE
from coordinator.settings import ENVIRONMENT_PREFIX, FILE_SUFFIX, ServiceSettings, load_settings
from workers.data.cache import CACHE_VARIABLE

BIN = Path(sys.executable).parent
DEPLOY = ROOT / "deploy"
SERVICES = services()
OURS = [service for service in SERVICES.values() if service.stage is not None]
RAY_NODES = [service for service in OURS if service.name != "gateway"]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
NO_HEALTHCHECK = {"minio-bucket"}  # it ends
IMAGES = ("gateway", "cpu", "cuda")


def names(services: Sequence[Service]) -> list[str]:
    return [service.name for service in services]


# By the tools of others


def test_the_linters_have_nothing_to_say() -> None:
    for command in (
        ["hadolint", str(DOCKERFILE)],
        ["check-jsonschema", "--builtin-schema", "vendor.compose-spec", str(COMPOSE_FILE)],
        ["yamllint", "--strict", str(COMPOSE_FILE)],
    ):
        found = subprocess.run([BIN / command[0], *command[1:]], capture_output=True, text=True, cwd=ROOT)
        assert found.returncode == 0, found.stdout + found.stderr


# Commands


def check_command(words: Sequence[str]) -> None:
    """Raises what the program itself would say about its arguments."""
    program, *arguments = words
    if program == "with-ray-node":
        split = arguments.index("--")
        check_command(["ray", "start", *arguments[:split], "--block"])
        check_command(arguments[split + 1 :])
    elif program == "metasearch":
        check_arguments(typer.main.get_command(cli.app), program, arguments)
    elif program == "ray":
        check_arguments(ray_scripts.cli, program, arguments)
    else:
        raise AssertionError(f"what takes {program}?")


def check_arguments(command: Any, name: str, arguments: Sequence[str]) -> None:
    """Parses as the program does, and calls nothing."""
    while hasattr(command, "commands"):
        name, *arguments = arguments
        assert name in command.commands, f"there is no command {name}"
        command = command.commands[name]
    command.make_context(name, list(arguments))


@pytest.mark.parametrize("service", OURS, ids=names(OURS))
def test_every_command_of_ours_is_one_that_its_program_takes(service: Service) -> None:
    check_command(service.command)
    check_command(service.health_command)


@pytest.mark.parametrize("image", IMAGES)
def test_every_command_in_the_dockerfile_is_one_that_its_program_takes(image: str) -> None:
    stage = stages()[image]
    check_command(stage.words("HEALTHCHECK"))
    if stage.words("ENTRYPOINT"):
        check_command([*stage.words("ENTRYPOINT"), *stage.words("CMD")])


@pytest.mark.parametrize(
    "words",
    [
        ["metasearch", "serve", "--setings=x"],
        ["metasearch", "health", "nobody"],
        ["metasearch", "health", "node", "--timeout=soon"],
        ["ray", "start", "--head", "--portt=1"],
        ["ray", "start", "--num-cpus=none"],
        ["with-ray-node", "--num-cpu=0", "--", "metasearch", "coordinate"],
        ["metasearsh"],
    ],
    ids=" ".join,
)
def test_a_wrong_command_would_be_found(words: list[str]) -> None:
    with pytest.raises((AssertionError, click.UsageError, *usage_errors())):
        check_command(words)


def usage_errors() -> tuple[type[Exception], ...]:
    """Typer may bring its own copy of click."""
    return tuple(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "UsageError")


# Variables


def has_setting(path: Sequence[str]) -> bool:
    """Whether the service's settings have a field of that path."""
    model: Any = ServiceSettings
    for name in path:
        if not (isinstance(model, type) and issubclass(model, BaseModel)) or name not in model.model_fields:
            return False
        model = model.model_fields[name].annotation
    return True


def ray_knows(variable: str) -> bool:
    """Whether Ray reads a variable: the dashboard's metrics, or its compiled part."""
    constants = [*vars(metrics_head).values(), *vars(grafana_dashboard_factory).values()]
    if variable in {text.replace("{name}", "DEFAULT") for text in constants if isinstance(text, str)}:
        return True
    (library,) = Path(ray.__file__).parent.glob("_raylet*.so")
    with library.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return content.find(variable.encode() + b"\0") >= 0


@pytest.mark.parametrize("service", OURS, ids=names(OURS))
def test_every_variable_of_ours_is_one_that_somebody_reads(service: Service) -> None:
    for name in service.environment:
        if name.startswith(ENVIRONMENT_PREFIX):
            path = name.removeprefix(ENVIRONMENT_PREFIX).removesuffix(FILE_SUFFIX).lower().split("__")
            assert has_setting(path), f"{name} sets no field of the settings"
        elif name.startswith("RAY_"):
            assert ray_knows(name), f"{name} is unknown to Ray"
        else:
            assert name in {CA_VARIABLE, CACHE_VARIABLE} or name.startswith("AWS_"), name


def test_a_wrong_variable_would_be_found() -> None:
    assert not has_setting(["stor"]) and not has_setting(["tls", "kee"]) and not has_setting(["store", "url"])
    assert has_setting(["tls", "key"])
    assert not ray_knows("RAY_AUTH_TOKEN_PAT") and not ray_knows("RAY_GRAFANA_HOSTS")


def test_s3_is_reached_as_the_variables_say(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import fsspec

    environment = SERVICES["ray-worker"].environment
    credentials = tmp_path / "credentials"
    credentials.write_text("[default]\naws_access_key_id = somebody\naws_secret_access_key = secret\n")
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in environment.items():
        if name.startswith("AWS_"):
            monkeypatch.setenv(name, value.replace(f"{SECRETS}s3_credentials", str(credentials)))
    system = fsspec.filesystem("s3", skip_instance_cache=True)
    system.connect()
    client = system.s3
    assert client.meta.endpoint_url == example()["S3_ENDPOINT_URL"]
    assert client.meta.region_name == example()["S3_REGION"]
    assert client._request_signer._credentials.access_key == "somebody"


def test_the_example_has_every_variable_with_its_default_and_no_other() -> None:
    defaults, values = variables(), example()
    composes_own = {name for name in values if name.startswith("COMPOSE_")}
    assert set(values) - composes_own == set(defaults)
    for name, found in defaults.items():
        assert found == {values[name]}
    profiles = {profile for service in SERVICES.values() for profile in service.tree.get("profiles", ())}
    assert set(values["COMPOSE_PROFILES"].split(",")) <= profiles == {"cpu", "gpu", "monitoring", "s3"}


# Files


def test_whatever_is_mounted_from_the_machine_is_there() -> None:
    sources = {source for service in SERVICES.values() for source in service.mounts.values()}
    for source in sources:
        if source.startswith("./"):
            assert (ROOT / source).exists(), source
        else:
            assert source in load()["volumes"] or source == example()["DATA_FOLDER"]


@pytest.mark.parametrize("service", SERVICES.values(), ids=names(list(SERVICES.values())))
def test_each_secret_is_read_by_the_service_that_has_it(service: Service) -> None:
    texts = [*service.command, *service.environment.values()]
    texts += [(ROOT / source).read_text() for source in service.mounts.values() if (ROOT / source).is_file()]
    read = {name for text in texts for name in re.findall(rf"{SECRETS}(\w+)", text)}
    # The settings that it shares with the gateway name what that one alone reads.
    others = {"tls_certificate", "tls_key"} if service.name == "coordinator" else set()
    assert read - others == service.secrets


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
def test_secrets_are_files_that_make_secrets_makes(tmp_path: Path) -> None:
    secrets = load()["secrets"]
    assert {name: entry["file"] for name, entry in secrets.items()} == {
        name: f"./deploy/secrets/{name}" for name in secrets
    }
    folder = tmp_path / "secrets"
    environment = os.environ | {"SECRETS": str(folder)}
    make = [str(DEPLOY / "make-secrets"), "search.example.com", "10.1.2.3"]
    said = subprocess.run(make, env=environment, capture_output=True, text=True, check=True).stdout
    assert said.splitlines() == [f"made {name}" for name in re.findall(r"made (\w+)", said)]
    made = {path.name: path.read_text() for path in folder.iterdir()}
    assert set(made) == set(secrets)
    assert folder.stat().st_mode & 0o777 == 0o700, "for their owner"
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o644}, "for the containers' users"
    again = subprocess.run(make, env=environment, capture_output=True, text=True, check=True).stdout
    assert again == "" and {path.name: path.read_text() for path in folder.iterdir()} == made


def test_the_settings_are_those_of_a_gateway_that_all_reach(tmp_path: Path) -> None:
    (tmp_path / "store_url").write_text("redis://metasearch:x@redis:6379/0\n")
    for name in ("gateway", "coordinator"):
        service = SERVICES[name]
        environment = {name: value.replace(SECRETS, f"{tmp_path}/") for name, value in service.environment.items()}
        settings = load_settings(ROOT / service.mounts[SETTINGS], environment=environment)
        assert settings.store == "redis://metasearch:x@redis:6379/0"
        assert settings.artifacts == "/artifacts"
        assert settings.listen == "0.0.0.0:7171" and settings.tls.key == Path(f"{SECRETS}tls_key")
        assert name == "coordinator" or any(settings.tokens.is_relative_to(path) for path in service.mounts)
        assert service.grace_s > settings.drain_s


# What a container may do


def test_nobody_reaches_ray_from_where_clients_are() -> None:
    for node in RAY_NODES:
        assert node.networks == {"cluster"}
        assert node.environment["RAY_AUTH_MODE"] == "token"
    assert SERVICES["gateway"].networks == {"front"}
    assert set(names(both_networks())) == {"redis", "minio", "prometheus"}


def both_networks() -> list[Service]:
    return [service for service in SERVICES.values() if len(service.networks) > 1]


def test_only_the_gateway_is_published_beyond_the_machine() -> None:
    published = {service.name: service.ports for service in SERVICES.values() if service.ports}
    assert published.pop("gateway") == ["7171:7171"]
    assert published.keys() == {"ray-head", "grafana"}
    assert all(port.startswith("127.0.0.1:") for ports in published.values() for port in ports)


def test_only_workers_compute() -> None:
    for name in ("ray-head", "coordinator"):
        assert {"--num-cpus=0", "--num-gpus=0"} <= set(SERVICES[name].command)
    devices = SERVICES["ray-worker-gpu"].tree["deploy"]["resources"]["reservations"]["devices"]
    assert [device["capabilities"] for device in devices] == [["gpu"]]
    assert SERVICES["ray-worker-gpu"].command == SERVICES["ray-worker"].command


@pytest.mark.parametrize("service", SERVICES.values(), ids=names(list(SERVICES.values())))
def test_each_container_is_pinned_bounded_and_comes_back(service: Service) -> None:
    tree = service.tree
    assert re.search(r":[^:/]*\d+[^:/]*$", tree["image"]) and "latest" not in tree["image"]
    assert tree["cap_drop"] == ["ALL"] and tree["security_opt"] == ["no-new-privileges:true"]
    assert tree["restart"] == ("on-failure" if service.name in NO_HEALTHCHECK else "unless-stopped")
    assert tree["init"] is True and "max-size" in tree["logging"]["options"]
    assert service.grace_s > 0
    if service.name not in NO_HEALTHCHECK:
        check = tree["healthcheck"]
        assert seconds(check["timeout"]) <= seconds(check["interval"]) < 60
    if service in RAY_NODES:
        assert service.grace_s > RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S
        (size,) = (word.split("=")[1] for word in service.command if word.startswith("--object-store-memory="))
        assert int(size) < 2e9 and tree["shm_size"] == "2gb"


# Images


@pytest.mark.parametrize("image", IMAGES)
def test_images_run_as_a_user_and_have_a_pinned_base(image: str) -> None:
    stage = stages()[image]
    assert stage.last("USER") == "1000:1000"
    assert stage.instructions[0] == ("FROM", "${PYTHON_IMAGE} AS base")
    assert re.search(r"^ARG PYTHON_IMAGE=python:3\.11\.\d+-slim-\w+@sha256:[0-9a-f]{64}$", DOCKERFILE.read_text(), re.M)


def test_what_is_copied_into_images_is_there_and_not_ignored() -> None:
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = {
        source
        for stage in stages().values()
        for keyword, rest in stage.instructions
        if keyword == "COPY" and not rest.startswith("--from=")
        for source in rest.split()[:-1]
    }
    assert copied == allowed
    assert all((ROOT / source).exists() for source in copied)
    packages = {name.partition(".")[0] for name in project_packages()}
    assert packages <= copied, "or the image lacks a part of the project"


def project_packages() -> list[str]:
    found: list[str] = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    return found


def requirements(lines: Sequence[str]) -> dict[str, Requirement]:
    found = [Requirement(line) for line in lines if line.strip() and not line.startswith("#")]
    return {canonicalize_name(requirement.name): requirement for requirement in found}


def test_versions_in_images_are_pinned_and_those_that_the_project_takes() -> None:
    pinned = requirements((DEPLOY / "constraints.txt").read_text().splitlines())
    extras = PROJECT["optional-dependencies"]
    project = requirements([*PROJECT["dependencies"], *extras["hdf5"], *extras["s3"], *extras["sweep"]])
    assert all(str(requirement.specifier).startswith("==") for requirement in pinned.values())
    for name, requirement in project.items():
        (version,) = pinned[name].specifier
        assert requirement.specifier.contains(version.version), f"{name} {version}: make constraints"
    gateway = requirements((DEPLOY / "gateway-requirements.txt").read_text().splitlines())
    assert gateway.keys() <= project.keys() and gateway.keys().isdisjoint({"torch", "torchvision", "ray"})
