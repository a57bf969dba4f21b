"""The command evaluate: from a genotype to a tested network, stops and resumption, mistakes as one line."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from reference.processes import METASEARCH, Run, command_line

from common.evaluate_config import load_evaluate_config
from common.network_config import network_config
from common.nn.counting import count_network
from common.nn.stored import load_network
from common.space.released import CIFAR_TUNED, DARTS_V2, RELEASED
from workers.evaluate import random_genotypes

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = ("--data", "digits", "--preset", "smoke", "--set", "train_per_class=10", "--set", "test_per_class=5")


@pytest.fixture
def metasearch(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    return command_line(capsys, monkeypatch)


def result_in(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "result.json").read_text())


def test_help_explains_and_gives_an_example_of_use(metasearch: Run) -> None:
    code, out, _ = metasearch("evaluate", "--help")
    assert code == 0
    assert "Usage: metasearch evaluate" in out and "Example:" in out and "cifar10, svhn, imagenet, smoke" in out


def test_a_genotype_is_trained_tested_and_stored(metasearch: Run, tmp_path: Path) -> None:
    code, out, err = metasearch("evaluate", "DARTS_V2", *SMALL, "--run", str(tmp_path / "run"), "--json")
    assert code == 0, err
    found = json.loads(out)
    assert {**result_in(tmp_path / "run"), "random": []} == found
    assert found["num_test"] == 50 and found["accuracy"] == found["num_correct"] / 50
    low, high = found["interval_95"]
    assert 0 <= low <= found["accuracy"] <= high <= 1
    assert [record["epoch"] for record in found["learning_curve"]] == [1, 2, 3]
    assert (found["ended_by"], found["epochs"], found["steps"]) == ("schedule", 3, 12)
    recipe = load_evaluate_config("smoke", ["train_per_class=10", "test_per_class=5"])
    assert found["config"] == recipe.model_dump(mode="json")
    count = count_network(DARTS_V2, recipe.network(10, 1))
    assert found["network"]["num_params"] == count.total.num_params
    assert found["network"]["num_macs"] == count.total.num_macs
    assert found["genotype"] == DARTS_V2.model_dump(mode="json")
    assert not found["data"]["test_is_published"] and found["data"]["num_train"] == 100
    assert "torch" in found["environment"]
    assert f"{found['accuracy']:.4f}" in err and f"{low:.4f} to {high:.4f}" in err

    network = load_network(tmp_path / "run" / "network")
    code, _, err = metasearch(
        "export", str(tmp_path / "run" / "network"), "--format", "python", "--out", str(tmp_path / "net.py")
    )
    assert code == 0, err
    assert "afresh" not in err and network.genotype == DARTS_V2


def test_a_result_is_a_genotype_too(metasearch: Run, tmp_path: Path) -> None:
    options = (*SMALL, "--set", "epochs=1", "--json")
    code, out, err = metasearch("evaluate", "CIFAR_TUNED", *options, "--run", str(tmp_path / "first"))
    assert code == 0, err
    expected = json.loads(out)
    for name, path in (("second", "first/result.json"), ("third", "first/network")):
        code, out, err = metasearch("evaluate", str(tmp_path / path), *options, "--run", str(tmp_path / name))
        assert code == 0, err
        found = json.loads(out)
        assert found["genotype"] == CIFAR_TUNED.model_dump(mode="json")
        assert found["network"]["sha256"] == expected["network"]["sha256"], "the same was trained again"


def test_random_genotypes_of_equal_size_are_trained_beside_it(metasearch: Run, tmp_path: Path) -> None:
    options = (*SMALL, "--set", "epochs=1", "--random", "2")
    code, out, err = metasearch("evaluate", "DARTS_V2", *options, "--run", str(tmp_path / "run"), "--json")
    assert code == 0, err
    found = json.loads(out)
    wanted = found["network"]["num_params"]
    assert len(found["random"]) == 2
    for index, other in enumerate(found["random"]):
        assert other == result_in(tmp_path / "run" / f"random-{index}")
        assert other["network"]["num_params"] == pytest.approx(wanted, rel=0.1)
        assert other["genotype"] != found["genotype"] and other["config"] == found["config"]
        assert f"random {index}" in err and f"{other['accuracy']:.4f}" in err
    mean = sum(other["accuracy"] for other in found["random"]) / 2
    assert f"mean {mean:.4f}" in err


def test_a_stopped_evaluation_goes_on_to_the_same_network(metasearch: Run, tmp_path: Path) -> None:
    options = (*SMALL, "--set", "epochs=12", "--random", "1")
    code, out, _ = metasearch("evaluate", "DARTS_V2", *options, "--run", str(tmp_path / "whole"), "--json")
    assert code == 0
    expected = json.loads(out)

    run = tmp_path / "stopped"
    command = [METASEARCH, "evaluate", "DARTS_V2", *options, "--run", str(run)]
    # As many threads as this process has: sums depend on how they are split.
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        checkpoint = run / "checkpoints" / "checkpoint.json"
        deadline_s = time.monotonic() + 60
        while not checkpoint.exists() and process.poll() is None and time.monotonic() < deadline_s:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert f"To go on: metasearch evaluate --run {run} --resume" in err
    assert "Traceback" not in err and not (run / "result.json").exists()
    assert json.loads(checkpoint.read_text())["state"]["epoch"] < 12

    code, out, err = metasearch("evaluate", "--run", str(run), "--resume", "--json")
    assert code == 0, err
    found = json.loads(out)
    for first, second in zip([expected, *expected["random"]], [found, *found["random"]], strict=True):
        assert first["network"]["sha256"] == second["network"]["sha256"]
        assert first["learning_curve"] == second["learning_curve"]


def test_a_budget_can_be_raised_when_resumed(metasearch: Run, tmp_path: Path) -> None:
    run = str(tmp_path / "run")
    code, out, err = metasearch("evaluate", "DARTS_V1", *SMALL, "--set", "max_epochs=1", "--run", run, "--json")
    assert code == 0, err
    assert (json.loads(out)["ended_by"], json.loads(out)["epochs"]) == ("max_epochs", 1)
    code, out, err = metasearch("evaluate", "--run", run, "--resume", "--set", "max_epochs=3", "--json")
    assert code == 0, err
    assert (json.loads(out)["ended_by"], json.loads(out)["epochs"]) == ("schedule", 3)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--data", "digits"], 2, ["give GENOTYPE", "--resume"]),
        (["DARTS_V2"], 2, ["give --data"]),
        (["NO_SUCH", *SMALL], 3, ["NO_SUCH", *RELEASED]),
        (["DIR", *SMALL], 3, ["DIR holds no network"]),
        (["DIR/bad.json", *SMALL], 2, ["bad.json is not JSON"]),
        (["DIR/list.json", *SMALL], 2, ["list.json: genotype"]),
        (["DIR/flat.json", *SMALL], 2, ["normal and reduction", "flat"]),
        (["DARTS_V2", "--data", "digits", "--preset", "mnist"], 3, ["no recipe 'mnist'", "cifar10, svhn"]),
        (["DARTS_V2", "--data", "digit", "--preset", "smoke"], 2, ["no source 'digit'; did you mean 'digits'?"]),
        (["DARTS_V2", *SMALL, "--set", "epoch=1"], 2, ["recipe: epoch: no such field"]),
        (["DARTS_V2", *SMALL, "--set", "test_fraction=0.0001"], 2, ["digits: class '0'", "leaves none for test"]),
        (
            ["DARTS_V2", *SMALL, "--set", "batch_size=300", "--set", "batch_parts=80"],
            2,
            ["100 training images are too few"],
        ),
        (["DARTS_V2", *SMALL, "--device", "tpu"], 2, ["device must be auto, cpu or cuda"]),
        (["--resume"], 3, ["RUN holds no evaluation"]),
    ],
)
def test_a_mistake_is_one_line_that_names_it_and_leaves_no_run(
    metasearch: Run, tmp_path: Path, arguments: list[str], code: int, words: list[str]
) -> None:
    inputs, run = tmp_path / "inputs", tmp_path / "run"
    inputs.mkdir()
    (inputs / "bad.json").write_text('{"cells":\n}')
    (inputs / "list.json").write_text("[]")
    edge = {"source": 0, "primitive": "skip_connect"}
    (inputs / "flat.json").write_text(json.dumps({"cells": {"flat": [[edge]]}}))
    names = {"DIR": str(inputs), "RUN": str(run)}

    def resolved(text: str) -> str:
        for name, value in names.items():
            text = text.replace(name, value)
        return text

    found, out, err = metasearch("evaluate", *(resolved(argument) for argument in arguments), "--run", str(run))
    assert found == code, err
    assert out == ""
    (error,) = [line for line in err.splitlines() if line.startswith("Error: ")]
    assert "Traceback" not in err
    for word in words:
        assert resolved(word) in error
    assert not run.exists()


def test_a_run_is_neither_overwritten_nor_resumed_as_another(metasearch: Run, tmp_path: Path) -> None:
    run = str(tmp_path / "run")
    assert metasearch("evaluate", "DARTS_V2", *SMALL, "--set", "epochs=1", "--run", run)[0] == 0
    code, _, err = metasearch("evaluate", "DARTS_V2", *SMALL, "--run", run)
    assert code == 4 and f"{run} holds an evaluation; add --resume" in err
    code, _, err = metasearch("evaluate", "DARTS_V1", "--run", run, "--resume")
    assert code == 2 and "leave out GENOTYPE with --resume" in err
    code, _, err = metasearch("evaluate", "--run", run, "--resume", "--set", "lr=0.5")
    assert code == 4 and "started with lr = 0.025, now it is 0.5" in err
    (tmp_path / "run" / "evaluation.json").write_text("{}")
    code, _, err = metasearch("evaluate", "--run", run, "--resume")
    assert code == 7 and "evaluation.json is damaged" in err


def test_random_genotypes_are_the_same_for_a_seed_and_all_different() -> None:
    network = network_config("cifar", channels=8, num_cells=5)
    three = random_genotypes(DARTS_V2, network, 3, seed=0)
    assert random_genotypes(DARTS_V2, network, 2, seed=0) == three[:2]
    assert random_genotypes(DARTS_V2, network, 2, seed=1) != three[:2]
    assert len({genotype.to_json() for genotype in three}) == 3
    wanted = count_network(DARTS_V2, network).total.num_params
    for genotype in three:
        assert count_network(genotype, network).total.num_params == pytest.approx(wanted, rel=0.1)
        assert [len(nodes) for nodes in genotype.cells.values()] == [4, 4]
        assert all(len(node) == 2 for nodes in genotype.cells.values() for node in nodes)
