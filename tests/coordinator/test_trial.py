"""Trials without Ray: the same priors and networks as those of train and evaluate, whatever interrupts them."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from reference.priors import smoke_config

from common.artifacts import PriorStore
from common.config import DatasetRef
from common.errors import AdaptationError, CorruptArtifactError
from common.space.released import DARTS_V1, DARTS_V2
from common.storage import ArtifactFolder
from common.sweep_config import validate_sweep
from common.sweep_plan import Architectures, Candidate, SweepPlan, sweep_recipe
from common.sweep_space import configured
from coordinator import study
from coordinator.local import LocalExecutor
from coordinator.trial import ROUNDS, StudyTrial, open_trial
from workers.evaluate import EvaluationPlan, evaluate

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")
STUDY = smoke_config("rounds=4", "checkpoint.every_rounds=3")
SWEEP = {"space": {"inner.theta.lr": {"choice": [0.1, 0.3, 1e9]}}, "tasks": 2, "report_every": 3}
PLAN = SweepPlan(config=validate_sweep(SWEEP), study=STUDY)


def folder(path: Path, name: str) -> Path:
    (path / name).mkdir()
    return path / name


def trained(values: dict[str, Any], path: Path) -> str:
    """SHA-256 of the prior that `metasearch train` makes of a trial's configuration."""
    config = configured(STUDY, values)
    store = PriorStore(path)
    return study.run(study.begin(store, config), config, LocalExecutor(CPU), store, [], time.monotonic).digest()


def test_a_trial_makes_the_prior_of_its_configuration_even_when_moved_midway(tmp_path: Path) -> None:
    values = {"inner.theta.lr": 0.3}
    trial = open_trial(PLAN, values, folder(tmp_path, "a"), CPU)
    first = trial.advance()
    assert (first["rounds"], trial.total) == (3, 4)
    trial.save(tmp_path / "checkpoint")
    again = open_trial(PLAN, values, folder(tmp_path, "b"), CPU)
    again.restore(tmp_path / "checkpoint")
    last = again.advance()
    assert last["rounds"] == again.rounds == 4
    assert [point["rounds"] for point in last["curve"]] == [3, 4]
    assert last["curve"][0]["accuracy"] == first["accuracy"] == sum(first["accuracies"]) / 2
    assert PriorStore(tmp_path / "b").load().digest() == trained(values, tmp_path / "trained")
    assert PriorStore(tmp_path / "b").load_config() == configured(STUDY, values)
    lines = (tmp_path / "b" / ROUNDS).read_text().splitlines()
    assert [json.loads(line)["prior_version"] for line in lines] == [1, 2, 3, 4]


def test_all_trials_are_measured_on_the_same_tasks_which_training_never_sees(tmp_path: Path) -> None:
    first, second = (open_trial(PLAN, {"inner.theta.lr": 0.1}, folder(tmp_path, name), CPU) for name in "ab")
    assert isinstance(first, StudyTrial) and isinstance(second, StudyTrial)
    assert first._measure() == second._measure()
    other = PLAN.model_copy(update={"config": PLAN.config.model_copy(update={"seed": 1})})
    third = StudyTrial(other, {"inner.theta.lr": 0.1}, folder(tmp_path, "c"), CPU)
    assert third._measure() != first._measure()


def test_a_trial_can_take_over_the_prior_of_another_and_keeps_its_own_values(tmp_path: Path) -> None:
    good = open_trial(PLAN, {"inner.theta.lr": 0.3}, folder(tmp_path, "a"), CPU)
    good.advance()
    good.save(tmp_path / "checkpoint")
    taker = open_trial(PLAN, {"inner.theta.lr": 0.1}, folder(tmp_path, "b"), CPU)
    taker.restore(tmp_path / "checkpoint")
    assert taker.rounds == 3
    assert PriorStore(tmp_path / "b").load().digest() == PriorStore(tmp_path / "a").load().digest()
    assert PriorStore(tmp_path / "b").load_config().inner.theta.lr == 0.1


def test_a_trial_that_diverges_says_so(tmp_path: Path) -> None:
    trial = open_trial(
        PLAN, {"inner.theta.lr": 1e3, "inner.clip_norm": None, "inner.steps": 4}, folder(tmp_path, "a"), CPU
    )
    with pytest.raises(AdaptationError, match="0 of 3 updates to version 0 are acceptable"):
        trial.advance()


def test_a_damaged_curve_is_said(tmp_path: Path) -> None:
    trial = open_trial(PLAN, {"inner.theta.lr": 0.1}, folder(tmp_path, "a"), CPU)
    trial.advance()
    trial.save(tmp_path / "checkpoint")
    (tmp_path / "checkpoint" / "curve.json").write_text("[")
    with pytest.raises(CorruptArtifactError, match="curve"):
        trial.restore(tmp_path / "checkpoint")


def test_an_architecture_is_trained_as_evaluate_does_and_tested_at_the_end_alone(tmp_path: Path) -> None:
    recipe = sweep_recipe("smoke", ["epochs=2", "train_per_class=15", "test_per_class=5"])
    candidates = tuple(Candidate(genotype=each, probability=0.5) for each in (DARTS_V1, DARTS_V2))
    chosen = Architectures(candidates=candidates, recipe=recipe, data=DatasetRef(source="digits"))
    plan = SweepPlan(config=validate_sweep({"architectures": {"top": 2}}), architectures=chosen)
    trial = open_trial(plan, {"architecture": 1}, folder(tmp_path, "a"), CPU)
    first = trial.advance()
    assert first["rounds"] == 1 and "test" not in first
    assert first["num_images"] == 143, "a tenth of each class's images that are not for the test"
    trial.save(tmp_path / "checkpoint")
    again = open_trial(plan, {"architecture": 1}, folder(tmp_path, "b"), CPU)
    again.restore(tmp_path / "checkpoint")
    last = again.advance()
    evaluation = EvaluationPlan(name="alone", genotype=DARTS_V2, config=recipe, data=chosen.data)
    alone = evaluate(evaluation, ArtifactFolder(tmp_path / "alone"), CPU)
    assert alone is not None and again.rounds == again.total == 2
    assert last["test"]["accuracy"] == alone["accuracy"] and last["test"]["num_test"] == 50
    stored = json.loads((tmp_path / "b" / "result.json").read_text())
    assert stored["network"]["sha256"] == alone["network"]["sha256"]
    assert [point["accuracy"] for point in last["curve"]] == [each["accuracy"] for each in alone["learning_curve"]]
