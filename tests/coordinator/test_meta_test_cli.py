"""`metasearch test` and `train --genotype`: what they answer, what they leave behind, and how a test goes on.

Episodes are learnt in this process; that the workers' answers are the same is for one test on the shared cluster.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from reference.processes import Run, command_line

from common.artifacts import PriorStore
from common.config import ClusterConfig
from common.loading import load
from common.messages import AdaptRequest
from common.meta.prior import Prior
from common.space.released import DARTS_V2
from coordinator import driver, study
from coordinator.genotypes import genotype_of
from coordinator.html_report.collect import collect
from coordinator.html_report.page import page
from coordinator.local import LocalExecutor
from coordinator.meta_test import FOLDER, opened_log, outcome_of


@pytest.fixture
def metasearch(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    return command_line(capsys, monkeypatch)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    study.begin(PriorStore(folder), load("few_shot_smoke", environment={}))
    return folder


class LocalSession:
    """A session whose one worker is this process; Ctrl-C comes after `most` episodes."""

    def __init__(self) -> None:
        self.most = 10**6
        self.learnt: list[int] = []

    def meta_test(self, folder: Path, prior: Prior, requests: Sequence[AdaptRequest], done: int) -> bool:
        with opened_log(folder) as log:
            for result in LocalExecutor(torch.device("cpu")).run(prior, requests[: self.most]):
                log.add(outcome_of(result))  # type: ignore[arg-type]
        self.learnt.append(min(len(requests), self.most))
        return len(requests) <= self.most


@pytest.fixture
def session(monkeypatch: pytest.MonkeyPatch) -> LocalSession:
    local = LocalSession()

    @contextmanager
    def opened(*arguments: Any) -> Iterator[LocalSession]:
        yield local

    monkeypatch.setattr(driver, "open_session", opened)
    return local


def result_of(metasearch: Run, *arguments: str) -> dict[str, Any]:
    code, out, err = metasearch("test", *arguments, "--json")
    assert code == 0, err
    found: dict[str, Any] = json.loads(out)
    return found


@pytest.mark.usefixtures("one_thread")
def test_an_interrupted_test_goes_on_to_the_result_of_an_undisturbed_one(
    metasearch: Run, run: Path, session: LocalSession, tmp_path: Path
) -> None:
    session.most = 2
    code, _, err = metasearch("test", str(run), "--episodes", "5")
    assert code == 130 and "goes on" in err
    session.most = 10**6
    resumed = result_of(metasearch, str(run), "--episodes", "5")
    undisturbed = result_of(metasearch, str(run), "--episodes", "5", "--out", str(tmp_path / "other"))
    assert session.learnt == [2, 3, 5]
    assert resumed["accuracy"] == undisturbed["accuracy"] and resumed["loss_nats"] == undisturbed["loss_nats"]
    # More episodes are added to those that are there; fewer need nothing.
    assert result_of(metasearch, str(run), "--episodes", "6")["num_episodes"] == 6
    assert result_of(metasearch, str(run), "--episodes", "5")["accuracy"] == undisturbed["accuracy"]
    assert session.learnt == [2, 3, 5, 1]


@pytest.mark.usefixtures("one_thread")
def test_result_says_what_it_is_of_and_the_report_shows_it(metasearch: Run, run: Path, session: LocalSession) -> None:
    transductive = result_of(metasearch, str(run), "--episodes", "3")
    inductive = result_of(metasearch, str(run), "--episodes", "3", "--evaluation", "inductive", "--split", "validation")
    assert transductive["evaluation"] == "transductive" and inductive["evaluation"] == "inductive"
    assert len(transductive["plan"]["split_sha256"]) == 64
    assert transductive["plan"]["num_classes"] == {"meta_train": 4, "validation": 3, "unseen": 3}
    assert list(transductive["accuracy"]) == ["0", "1", "2", "3"]
    assert sum(transductive["paths"].values()) == 3
    folders = sorted(path.name for path in (run / FOLDER).iterdir())
    assert [name.split("-")[0] for name in folders] == ["unseen", "validation"]
    report = collect(run)
    assert [panel.chance for panel in report.accuracy] == [pytest.approx(1 / 3)] * 2
    for panel, result in zip(report.accuracy, (transductive, inductive), strict=True):
        (curve,) = panel.arms.values()
        assert curve.mean == tuple(point["mean"] for point in result["accuracy"].values())
        assert result["evaluation"] in panel.title and "3 episodes" in panel.title
    assert "unseen classes of digits" in page(report)


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster", "one_thread")
def test_workers_give_the_same_episodes_and_keep_those_that_ended(
    metasearch: Run, run: Path, session: LocalSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray
    from rich.console import Console

    expected = result_of(metasearch, str(run), "--episodes", "4", "--out", str(run / "expected"))
    handle = driver.start_coordinator("test-meta-test", ClusterConfig(num_workers=1, gpus_per_worker=0))

    @contextmanager
    def opened(*arguments: Any) -> Iterator[driver.Session]:
        yield driver.Session(None, handle, Console(quiet=True), 1)  # type: ignore[arg-type]

    monkeypatch.setattr(driver, "open_session", opened)
    try:
        found = result_of(metasearch, str(run), "--episodes", "4")
    finally:
        ray.kill(handle)
    assert found["accuracy"] == expected["accuracy"] and found["loss_nats"] == expected["loss_nats"]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["test", "RUN/none"], 3, ["holds no study"]),
        (["test", "RUN", "--split", "train"], 2, ["--split", "unseen", "train"]),
        (["test", "RUN", "--evaluation", "both"], 2, ["--evaluation", "inductive", "both"]),
        (["test", "RUN", "--root", "x"], 2, ["--root", "--data"]),
        (["test", "RUN", "--from-scratch", "--version", "0"], 2, ["--from-scratch", "--version"]),
        (["test", "RUN", "--version", "5"], 3, ["version 5"]),
        (["test", "RUN", "--ways", "2"], 2, ["--ways", "3 classes"]),
        (["test", "RUN", "--data", "no-such-source"], 2, ["no-such-source"]),
        (["test", "RUN", "--data", "mini_imagenet", "--root", "RUN"], 3, ["Mini-ImageNet", "train.csv"]),
        (["test", "RUN", "--image-size", "28"], 2, ["--image-size", "28", "16"]),
        (["test", "RUN", "--queries", "1000"], 2, ["num_ways", "images per class"]),
        (["train", "few_shot_smoke", "--genotype", "nothing", "--run", "RUN/new"], 3, ["nothing", "DARTS_V2"]),
        (["train", "--genotype", "DARTS_V2", "--run", "RUN", "--resume"], 2, ["--genotype", "--resume"]),
    ],
)
def test_a_mistake_is_one_line_that_names_it(
    metasearch: Run, run: Path, arguments: list[str], code: int, words: list[str]
) -> None:
    found, out, err = metasearch(*(argument.replace("RUN", str(run)) for argument in arguments))
    assert (found, out) == (code, ""), err
    error = next(line for line in err.splitlines() if line.startswith("Error: "))
    assert all(word in error for word in words), error
    assert not (run / FOLDER).exists() and not (run / "new").exists()


def test_a_run_without_few_shot_learning_is_refused(metasearch: Run, tmp_path: Path) -> None:
    study.begin(PriorStore(tmp_path), load("smoke", environment={}))
    code, _, err = metasearch("test", str(tmp_path))
    assert code == 2
    assert "metasearch train few_shot" in err and "Traceback" not in err


def test_the_genotype_of_a_run_is_that_of_its_last_prior_or_the_one_it_learns(run: Path, tmp_path: Path) -> None:
    found = genotype_of(str(run))
    assert set(found.cells) == {"normal", "reduction"}
    fields = {"few_shot.network": "genotype", "few_shot.genotype": found.model_dump(mode="json")}
    config = load("few_shot_smoke", environment={}, fields=fields)
    assert config.few_shot is not None and config.few_shot.genotype == found
    PriorStore(tmp_path / "full").save_config(config)
    assert genotype_of(str(tmp_path / "full")) == found
    assert genotype_of("DARTS_V2") == DARTS_V2
