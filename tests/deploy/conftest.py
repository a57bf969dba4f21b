"""The environment of the gateway's image, made as deploy/Dockerfile makes it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from reference.compose import ROOT, stages


@pytest.fixture(scope="session")
def gateway_programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of programs of an environment with what the gateway's image has, from the package index."""
    folder = tmp_path_factory.mktemp("gateway-image")
    source = folder / "source"
    source.mkdir()
    for keyword, rest in stages()["package"].instructions:
        if keyword == "COPY":
            *names, _ = rest.split()
            for name in names:
                copy_of(ROOT / name, source / name)
    environment = folder / "environment"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    into = [*pip, "--python", str(environment), "install", "--quiet"]
    deploy = ROOT / "deploy"
    # The gateway computes no cells: without a compiler the package is built without them, in seconds.
    no_compiler = os.environ | {"CC": "false", "CXX": "false"}
    for command in (
        [sys.executable, "-m", "venv", "--without-pip", str(environment)],
        [
            *into,
            "--constraint",
            str(deploy / "constraints.txt"),
            "--requirement",
            str(deploy / "gateway-requirements.txt"),
        ],
        [*pip, "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(source)],
    ):
        subprocess.run(command, check=True, env=no_compiler, cwd=folder)
    (wheel,) = folder.glob("*.whl")
    subprocess.run([*into, "--no-deps", str(wheel)], check=True, cwd=folder)
    return environment / "bin"


def copy_of(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    else:
        shutil.copy(source, target)
