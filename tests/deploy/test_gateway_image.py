"""The gateway's environment has what it needs, and neither torch nor Ray."""

import json
import subprocess
from pathlib import Path

import pytest

pytestmark = [pytest.mark.deploy, pytest.mark.timeout(900)]

MAX_BYTES = 400 << 20  # torch alone has more


def test_the_gateways_environment_is_small_and_has_no_torch_and_no_ray(
    gateway_programs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = "import importlib.metadata as m, json; print(json.dumps(sorted(d.name.lower() for d in m.distributions())))"
    found = subprocess.run(
        [gateway_programs / "python", "-I", "-c", code], capture_output=True, text=True, check=True
    ).stdout
    packages = json.loads(found)
    assert "meta-arch-search" in packages
    assert not {"torch", "torchvision", "ray", "scipy", "matplotlib", "pip"} & set(packages)
    files = [path for path in gateway_programs.parent.rglob("*") if path.is_file() and not path.is_symlink()]
    num_bytes = sum(path.stat().st_size for path in files)
    with capsys.disabled():
        print(f"\nthe gateway's environment: {num_bytes / 2**20:.0f} MiB, {len(packages)} packages")
    assert num_bytes < MAX_BYTES


@pytest.mark.parametrize("arguments", [("--help",), ("serve", "--help"), ("token", "create", "--help")])
def test_its_command_line_answers(gateway_programs: Path, arguments: tuple[str, ...]) -> None:
    found = subprocess.run([gateway_programs / "metasearch", *arguments], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
