"""deploy/with-ray-node: a command and a Ray node that live and end together. Scripts play Ray and the checks."""

import os
import signal
import subprocess
from pathlib import Path

import pytest
from reference.compose import ROOT
from reference.gateway import until

SCRIPT = ROOT / "deploy" / "with-ray-node"
NODE = """#!/bin/bash
echo "$@" > node.arguments
trap 'touch node.ended; exit 15' TERM
touch node.runs
while [[ ! -e node.breaks ]]; do sleep 0.02; done
exit 7
"""
HEALTH = """#!/bin/bash
echo "$@" > health.arguments
[[ -e node.runs ]]
"""
COMMAND = """#!/bin/bash
trap 'touch command.drained; exit 0' TERM
touch command.runs
while [[ ! -e command.ends ]]; do sleep 0.02; done
exit 5
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, text in (("ray", NODE), ("metasearch", HEALTH), ("coordinate", COMMAND)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    return tmp_path


def start(folder: Path, *arguments: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [SCRIPT, *arguments], cwd=folder, env=os.environ | {"PATH": f"{folder}:{os.environ['PATH']}"}
    )


def started(folder: Path) -> subprocess.Popen[bytes]:
    process = start(folder, "--address=head:1", "--dashboard-agent-listen-port=77", "--", "coordinate", "word")
    until((folder / "command.runs").exists, "the command to run")
    return process


def test_the_node_gets_its_options_and_is_well_before_the_command_starts(folder: Path) -> None:
    process = started(folder)
    assert (folder / "node.arguments").read_text().split() == [
        *("start", "--address=head:1", "--dashboard-agent-listen-port=77", "--block")
    ]
    asked = "health node --raylet=http://127.0.0.1:77/api/local_raylet_healthz"
    assert (folder / "health.arguments").read_text().strip() == asked
    (folder / "command.ends").touch()
    assert process.wait(20) == 5, "as the command ended"
    assert (folder / "node.ended").exists()


def test_sigterm_lets_the_command_drain_while_the_node_is_there(folder: Path) -> None:
    process = started(folder)
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 0
    drained, ended = (folder / "command.drained").stat(), (folder / "node.ended").stat()
    assert drained.st_mtime_ns < ended.st_mtime_ns


def test_the_command_ends_with_its_node(folder: Path) -> None:
    process = started(folder)
    (folder / "node.breaks").touch()
    process.wait(20)
    assert (folder / "command.drained").exists()


def test_a_node_that_does_not_start_lets_nothing_start(folder: Path) -> None:
    (folder / "ray").write_text("#!/bin/bash\nexit 3\n")
    assert start(folder, "--address=head:1", "--", "coordinate").wait(20) == 1
    assert not (folder / "command.runs").exists()


@pytest.mark.parametrize("arguments", [(), ("--address=head:1",), ("--address=head:1", "--")])
def test_a_missing_command_is_a_mistake(folder: Path, arguments: tuple[str, ...]) -> None:
    assert start(folder, *arguments).wait(20) == 2
    assert not (folder / "node.runs").exists()
