"""`metasearch train` and `adapt` as a user runs them: real processes, a local Ray each, interrupted and killed."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from reference.gateway import until
from reference.processes import METASEARCH, environment_without_ray, kill_with_descendants

from common.artifacts import PriorStore
from common.loading import load
from common.nn.stored import load_network
from coordinator import study
from coordinator.local import LocalExecutor
from workers.device import choose_device

pytestmark = pytest.mark.ray

# More steps than the preset, so that there is time to interrupt; few enough to end in seconds.
SETTINGS = ["rounds=30", "inner.steps=12"]
TRAIN = ["train", "smoke", *(part for setting in SETTINGS for part in ("--set", setting)), "--json"]


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts a command in a session of its own; whatever is left of it is killed after the test."""
    running: list[subprocess.Popen[str]] = []

    def run(*arguments: str) -> subprocess.Popen[str]:
        running.append(
            subprocess.Popen(
                [METASEARCH, *arguments],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,
                env=environment_without_ray(),
            )
        )
        return running[-1]

    yield run
    for process in running:
        kill_with_descendants(process)
        process.communicate()


@pytest.mark.timeout(900)  # four times Ray starts
def test_interrupted_then_killed_then_resumed_ends_in_the_undisturbed_prior(
    start: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    config = load("smoke", SETTINGS, environment={})
    undisturbed = PriorStore(tmp_path / "undisturbed")
    digest = study.run(
        study.begin(undisturbed, config), config, LocalExecutor(choose_device()), undisturbed, [], time.monotonic
    ).digest()

    interrupted = start(*TRAIN, "--run", str(run))
    wait_for_version(run, 2, interrupted)
    os.kill(interrupted.pid, signal.SIGINT)
    output, messages = interrupted.communicate(timeout=180)
    assert interrupted.returncode == 130, messages
    assert f"metasearch train --run {run} --resume" in messages
    assert "Traceback" not in messages
    assert not json.loads(output)["complete"]

    first = json.loads(output)["version"]
    killed = start("train", "--run", str(run), "--resume", "--json")
    wait_for_version(run, first + 1, killed)
    kill_with_descendants(killed)
    killed.communicate(timeout=30)
    assert killed.returncode == -signal.SIGKILL
    assert max(PriorStore(run).versions()) < config.rounds, "it was killed too late to prove anything"

    resumed = start("train", "--run", str(run), "--resume", "--json")
    output, messages = resumed.communicate(timeout=180)
    assert resumed.returncode == 0, messages
    assert json.loads(output) == {"version": config.rounds, "sha256": digest, "complete": True}
    rounds = [json.loads(line)["prior_version"] for line in (run / "rounds.jsonl").read_text().splitlines()]
    assert rounds == list(range(1, config.rounds + 1))

    adapted = start(
        "adapt",
        "--run",
        str(run),
        "--data",
        "digits",
        "--classes",
        "1,7",
        "--steps",
        "5",
        "--json",
        "--derive",
        "darts",
        "--fine-tune-steps",
        "3",
    )
    output, messages = adapted.communicate(timeout=180)
    assert adapted.returncode == 0, messages
    result = json.loads(output)
    assert result["task"]["classes"] == ["1", "7"]
    assert [entry["step"] for entry in result["evaluations"]] == [0, 1, 2, 5]
    assert result["evaluations"][0]["accuracy"] == 0.5, "a fresh classifier guesses"
    assert result["prior"] == {"version": config.rounds, "sha256": digest}
    assert set(result["genotype"]["cells"]) == {"normal", "reduction"}
    assert (run / "adapt" / "cells.png").stat().st_size > 0
    assert json.loads((run / "adapt" / "result.json").read_text()) == result
    assert result["derived_network"]["fine_tune_steps"] == 3
    assert 0 <= result["derived_network"]["inductive"]["accuracy"] <= 1
    assert load_network(run / "adapt" / "network").genotype.model_dump(mode="json") == result["genotype"]


def wait_for_version(run: Path, version: int, process: subprocess.Popen[str]) -> None:
    store = PriorStore(run)

    def is_there() -> bool:
        found = max(store.versions(), default=0) >= version
        assert found or process.poll() is None, process.communicate()[1]
        return found

    until(is_there, f"version {version}", 180)
