"""The command line without Ray: help, listings, and every user's mistake as one line and an exit code."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from reference.processes import Run, command_line

from common.artifacts import PriorStore
from common.loading import load
from common.meta.prior import initial_prior
from coordinator import study


@pytest.fixture
def metasearch(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    return command_line(capsys, monkeypatch)


@pytest.fixture
def begun_run(tmp_path: Path) -> Path:
    config = load("smoke", environment={})
    study.begin(PriorStore(tmp_path / "run"), config)
    return tmp_path / "run"


@pytest.mark.parametrize(
    "command", [(), ("train",), ("adapt",), ("demo",), ("doctor",), ("bench",), ("data",), ("data", "prepare")]
)
def test_help_explains_and_gives_an_example_of_use(metasearch: Run, command: tuple[str, ...]) -> None:
    code, out, _ = metasearch(*command, "--help")
    assert code == 0
    assert "Usage: metasearch" in out
    assert len(out.splitlines()) > 10


def test_help_answers_without_importing_torch_or_ray() -> None:
    code = "import sys, coordinator.cli; print(sorted({'torch', 'ray', 'matplotlib'} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    # The artifact store's prior brings torch along; Ray and matplotlib must wait.
    assert "ray" not in found and "matplotlib" not in found


def test_data_list_names_every_source(metasearch: Run) -> None:
    code, out, _ = metasearch("data", "list", "--json")
    assert code == 0
    names = {row["name"] for row in json.loads(out)}
    assert {"glyphs", "digits", "fashion-mnist", "cifar10", "svhn", "omniglot", "imagenet"} <= names
    code, out, _ = metasearch("data", "list")
    assert code == 0 and all(name in out for name in names)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["train", "--run", "RUN/new"], 2, ["preset", "demo", "--resume"]),
        (["train", "no-such-preset", "--run", "RUN/new"], 3, ["no-such-preset", "smoke"]),
        (["train", "smoke", "--run", "RUN/new", "--set", "inner.steps=0"], 2, ["inner.steps", "0"]),
        (["train", "smoke", "--run", "RUN/new", "--set", "inner.stepz=1"], 2, ["inner.stepz", "spelling"]),
        (["train", "smoke", "--run", "RUN/new", "--set", "nonsense"], 2, ["--set", "nonsense"]),
        (["train", "smoke", "--run", "RUN/new", "--set", "families.0.num_ways=11"], 2, ["num_ways", "11"]),
        (["train", "smoke", "--run", "RUN/new", "--set", "families.0.data.source=nothing"], 2, ["nothing", "glyphs"]),
        (["train", "smoke", "--run", "RUN/new", "--from-version", "1"], 2, ["--from-version", "--resume"]),
        (["train", "smoke", "--run", "RUN"], 4, ["RUN", "--resume"]),
        (["demo", "--run", "RUN/new", "--set", "rounds=0"], 2, ["rounds", "0"]),
        (["train", "--run", "RUN/none", "--resume"], 3, ["holds no study"]),
        (["train", "smoke", "--set", "seed=5", "--run", "RUN", "--resume"], 4, ["seed", "0", "5"]),
        (["train", "--set", "seed=5", "--run", "RUN", "--resume"], 2, ["--set", "--resume"]),
        (["train", "--run", "RUN", "--resume", "--from-version", "9"], 3, ["version 9"]),
        (["bench", "--device", "gpu"], 2, ["auto, cpu or cuda", "gpu"]),
        (["bench", "--set", "network.engine=native", "--set", "network.precision=bfloat16"], 2, ["native", "auto"]),
        (["bench", "--preset", "smoke", "--data", "no-such-source"], 2, ["no-such-source"]),
        (["adapt", "--run", "RUN/none", "--data", "digits"], 3, ["holds no study"]),
        (["adapt", "--run", "RUN", "--data", "no-such-source"], 2, ["no-such-source"]),
        (["adapt", "--run", "RUN", "--data", "digits", "--image-size", "32"], 2, ["image_size 32", "16"]),
        (["adapt", "--run", "RUN", "--data", "digits", "--classes", "1"], 2, ["classes", "got 1"]),
        (["adapt", "--run", "RUN", "--data", "digits", "--classes", "1,1"], 2, ["classes", "'1' is listed twice"]),
        (["adapt", "--run", "RUN", "--data", "digits", "--image-size", "0"], 2, ["image_size", "got 0"]),
        (["adapt", "--run", "RUN", "--data", "digits", "--derive", "best"], 2, ["--derive", "best", "top2_pairs"]),
        (["adapt", "--run", "RUN", "--data", "digits", "--version", "7"], 3, ["version 7"]),
        (["data", "prepare", "RUN/none", "RUN/out"], 3, ["none"]),
        (["data", "prepare", "RUN", "RUN/out", "--sizes", "big"], 2, ["--sizes", "big"]),
    ],
)
def test_a_mistake_is_one_line_that_names_it(
    metasearch: Run, begun_run: Path, arguments: list[str], code: int, words: list[str]
) -> None:
    found, out, err = metasearch(*(argument.replace("RUN", str(begun_run)) for argument in arguments))
    assert found == code, err
    assert out == ""
    error = next(line for line in err.splitlines() if line.startswith("Error: "))
    for word in words:
        assert word.replace("RUN", str(begun_run)) in error
    assert "Traceback" not in err
    assert not (begun_run / "new").exists(), "a mistake leaves nothing behind"
    assert PriorStore(begun_run).versions() == [0], "and takes nothing away"


def test_commands_that_adapt_in_another_way_refuse_a_few_shot_study(metasearch: Run, tmp_path: Path) -> None:
    study.begin(PriorStore(tmp_path / "run"), load("smoke", ["few_shot={}"], environment={}))
    for arguments in (
        ("adapt", "--run", str(tmp_path / "run"), "--data", "digits"),
        ("pareto", "--run", str(tmp_path / "run"), "--data", "digits", "--measure", "macs"),
        ("bench", "--preset", str(tmp_path / "run" / "config.json")),
    ):
        code, _, err = metasearch(*arguments)
        assert code == 2
        assert f"metasearch {arguments[0]} adapts as `adapt` says, and the study has few_shot" in err
        assert "use metasearch test" in err


def test_a_corrupt_checkpoint_is_refused_and_the_previous_one_offered(metasearch: Run, begun_run: Path) -> None:
    store = PriorStore(begun_run)
    prior = initial_prior(store.load_config())
    from dataclasses import replace

    store.save(replace(prior, version=1))
    tensors = begun_run / "priors" / "00000001.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-10])
    code, _, err = metasearch("train", "--run", str(begun_run), "--resume")
    assert code == 7
    assert "version 1 is corrupt" in err and "--from-version 0" in err


def test_data_prepare_makes_arrays_and_goes_on_where_it_stopped(metasearch: Run, tmp_path: Path) -> None:
    for name in ("ants", "bees"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for index in range(3):
            Image.fromarray(np.full((40, 50, 3), 40 * index, np.uint8)).save(
                tmp_path / "photos" / name / f"{index}.png"
            )
    command = (
        "data",
        "prepare",
        str(tmp_path / "photos"),
        str(tmp_path / "out"),
        "--sizes",
        "8,16",
        "--processes",
        "1",
    )
    code, _, err = metasearch(*command)
    assert code == 0, err
    assert "2 classes, 6 images (0 classes were done before)" in err
    code, _, err = metasearch(*command)
    assert code == 0 and "(2 classes were done before)" in err
