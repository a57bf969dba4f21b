"""Sweeps as values: what is refused before anything starts, and what the space means."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.errors import InvalidInputError, NotFoundError
from common.loading import load
from common.space.genotype import Genotype
from common.sweep_config import SweepConfig, base_study, read_sweep, validate_sweep
from common.sweep_plan import Candidate, SweepPlan, check_kinds, sweep_recipe
from common.sweep_space import Domain, check_space, configured, fields_of

BASE = base_study("smoke")
LR = {"inner.theta.lr": {"loguniform": [0.01, 1.0]}}


def checked(**tree: Any) -> SweepConfig:
    sweep = validate_sweep({"space": LR, **tree})
    check_space(sweep.space, BASE, sweep.seed)
    return sweep


@pytest.mark.parametrize(
    ("tree", "words"),
    [
        ({"space": {}}, r"either \[space\], with fields to sweep, or \[architectures\]"),
        ({"trails": 3}, "trails: no such field"),
        ({"trials": 0}, "greater than or equal to 1"),
        ({"space": {"inner.steps": {"randint": [1, 4], "choice": [1]}}}, "exactly one of choice, grid"),
        ({"space": {"inner.steps": {"normal": [1, 4]}}}, "space.inner.steps.normal: no such field"),
        ({"space": {"inner.steps": {"uniform": [4, 1]}}}, "lower limit below the upper one, got 4.0 and 1.0"),
        ({"space": {"inner.steps": {"lograndint": [0, 4]}}}, "above 0, got 0"),
        ({"space": {"inner.theta.lr": {"quniform": [0.0, 1.0, 2.0]}}}, "no wider than the range, got 2.0"),
        ({"space": {**LR, "inner": {"choice": [{}]}}}, "'inner.theta.lr' is a part of 'inner'"),
        ({"space": {**LR, "inner.theta.lr, adapt.theta.lr": {"choice": [1]}}}, "'inner.theta.lr' is swept twice"),
        ({"searcher": "grid"}, "'inner.theta.lr' has loguniform; use grid"),
        ({"searcher": "optuna", "space": {"inner.steps": {"grid": [1, 2]}}}, "takes no grid, 'inner.steps' has one"),
        ({"searcher": "grid", "trials": 2, "space": {"inner.steps": {"grid": [1, 2]}}}, "leave trials out"),
        ({"space": {"inner.steps": {"grid": list(range(1, 1100))}}}, "1099 combinations, more than 1000"),
        ({"scheduler": "pbt", "searcher": "optuna"}, "set searcher to 'random'"),
        ({"scheduler": "pbt", "space": {"network.channels": {"choice": [4, 8]}}}, "cannot change 'network.channels'"),
        ({"scheduler": "pbt", "space": {"network": {"choice": [{}]}}}, "cannot change 'network'"),
        ({"scheduler": "pbt", "trials": 1}, "set trials to 2 or more"),
        ({"space": {}, "architectures": {"top": 4}, "trials": 3}, "trials has no meaning with"),
        ({"space": {}, "architectures": {"top": 4}, "metric": "loss_nats"}, "metric must be 'accuracy'"),
    ],
)
def test_a_wrong_sweep_is_refused_in_one_line(tree: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidInputError, match=words) as error:
        checked(**tree)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("space", "words"),
    [
        ({"inner.theta.rate": {"choice": [1.0]}}, "inner.theta.rate = 1.0: .*no such field"),
        ({"outer.alpha_rate": {"uniform": [0.5, 1.5]}}, "outer.alpha_rate = 1.5: .*less than or equal to 1"),
        ({"inner.steps": {"uniform": [1, 4]}}, "inner.steps = .*valid integer"),
        ({"inner.steps": {"randint": [0, 4]}}, "inner.steps = 0: .*greater than or equal to 1"),
        ({"families.1.num_ways": {"choice": [3]}}, "families has elements 0 to 0"),
        ({"seed.low": {"choice": [3]}}, "seed is a value, it has no field 'low'"),
        ({"inner.weights": {"choice": ["map", "gaussian"]}}, "must agree"),
        (
            {"outer.rule": {"choice": ["mean", "median"]}, "outer.weighting": {"choice": ["uniform", "examples"]}},
            "rule 'median' has no weights",
        ),
        ({"network": {"choice": [{"heads": {"32": 2}}]}}, "families has image_size 16"),
    ],
)
def test_values_that_the_configuration_does_not_take_are_refused(space: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidInputError, match=words):
        checked(space=space)


def test_all_trials_are_compared_on_tasks_of_the_base() -> None:
    network = {**BASE.network.model_dump(mode="json"), "heads": {"32": 4}}
    families = [{"image_size": 32, "data": {"source": "digits"}, "num_ways": 3}]
    space = {"network": Domain(choice=(network,)), "families": Domain(choice=(families,))}
    with pytest.raises(InvalidInputError, match="network.heads has no image size 16"):
        check_space(space, BASE, 0)


def test_every_field_of_the_configuration_can_be_swept() -> None:
    def leaves(tree: Any, name: str) -> list[tuple[str, Any]]:
        if isinstance(tree, dict) and tree:
            return [leaf for key in tree for leaf in leaves(tree[key], f"{name}.{key}" if name else key)]
        if isinstance(tree, list) and tree and isinstance(tree[0], dict):
            return [leaf for index, each in enumerate(tree) for leaf in leaves(each, f"{name}.{index}")]
        return [(name, tree)]

    found = leaves(BASE.model_dump(mode="json"), "")
    assert len(found) > 80
    for name, value in found:
        sweep = validate_sweep({"space": {name: {"choice": [value]}}})
        check_space(sweep.space, BASE, 0)
        assert configured(BASE, {name: value}) == BASE


def test_fields_joined_by_commas_take_the_same_value() -> None:
    key = "inner.weights, adapt.weights"
    checked(space={key: {"choice": ["map", "gaussian"]}})
    config = configured(BASE, {key: "gaussian"})
    assert fields_of(key) == ("inner.weights", "adapt.weights")
    assert (config.inner.weights, config.adapt.weights) == ("gaussian", "gaussian")
    assert BASE.inner.weights == "map"


def test_trials_are_counted() -> None:
    grid = {"inner.steps": {"grid": [1, 2, 3]}, "seed": {"grid": [0, 1]}}
    assert checked().num_trials == 8
    assert checked(trials=5).num_trials == 5
    assert checked(space={**grid, **LR}, trials=2).num_trials == 12
    listed = {"inner.steps": {"choice": [1, 2, 3]}, "seed": {"grid": [0, 1]}}
    assert checked(space=listed, searcher="grid").num_trials == 6
    assert validate_sweep({"architectures": {"top": 4}}).num_trials == 4


def test_the_metric_says_which_way_is_better() -> None:
    assert checked().is_maximised and not checked(metric="loss_nats").is_maximised
    assert checked(metric="train_loss_first", mode="max").is_maximised


def test_domains_draw_within_their_range_and_clip_to_it() -> None:
    random = np.random.default_rng(0)
    for domain, low, high in (
        (Domain(uniform=(0.5, 2.0)), 0.5, 2.0),
        (Domain(loguniform=(1e-3, 1e-1)), 1e-3, 1e-1),
        (Domain(quniform=(0.0, 1.0, 0.25)), 0.0, 1.0),
        (Domain(randint=(1, 4)), 1, 3),
        (Domain(lograndint=(1, 65)), 1, 64),
    ):
        drawn = [domain.draw(random) for _ in range(200)]
        assert min(drawn) >= low and max(drawn) <= high
        assert domain.ends == (low, high)
        assert domain.clipped(low - 1) == low and domain.clipped(high * 10) == high
    assert {Domain(randint=(1, 4)).draw(random) for _ in range(50)} == {1, 2, 3}
    assert {Domain(quniform=(0.0, 1.0, 0.25)).draw(random) for _ in range(99)} == {0.0, 0.25, 0.5, 0.75, 1.0}
    assert Domain(choice=("a", "b")).clipped("c") == "c"


def test_a_file_is_read_and_a_plan_comes_back_from_its_json(tmp_path: Path) -> None:
    path = tmp_path / "sweep.toml"
    path.write_text(
        'trials = 3\n[study]\npreset = "smoke"\nrounds = 7\n[space]\n"inner.steps" = { randint = [1, 4] }\n'
    )
    tree = read_sweep(path)
    base = base_study(tree.pop("study"), ["seed=5"])
    assert (base.rounds, base.seed, base.network) == (7, 5, BASE.network)
    plan = SweepPlan(config=validate_sweep(tree), study=base)
    assert plan.most_rounds == 7 and plan.unit == "rounds"
    assert SweepPlan.model_validate_json(plan.model_dump_json()) == plan
    path.write_text("trials =")
    with pytest.raises(InvalidInputError, match="not a TOML file"):
        read_sweep(path)
    with pytest.raises(NotFoundError, match="there is no file"):
        read_sweep(tmp_path / "none.toml")
    with pytest.raises(InvalidInputError, match="study must be a preset, a file or a table, got 3"):
        base_study(3)


def test_the_best_configuration_is_a_file_that_train_takes(tmp_path: Path) -> None:
    config = configured(BASE, {"inner.clip_norm": None, "inner.steps": 7})
    (tmp_path / "best.json").write_text(config.to_json())
    assert load(tmp_path / "best.json", environment={}) == config
    (tmp_path / "list.json").write_text("[1]")
    with pytest.raises(InvalidInputError, match="must hold a JSON object"):
        load(tmp_path / "list.json", environment={})


def test_architectures_are_never_chosen_by_test_images() -> None:
    assert sweep_recipe("cifar10", []).validation_fraction == 0.1
    assert sweep_recipe("smoke", ["validation_fraction=0.5"]).validation_fraction == 0.5
    with pytest.raises(InvalidInputError, match="choice would be made on the test images"):
        sweep_recipe("smoke", ["validation_fraction=0"])
    with pytest.raises(InvalidInputError, match="evaluate_every_epochs must be 1"):
        sweep_recipe("smoke", ["evaluate_every_epochs=2"])


def test_architectures_of_other_kinds_of_cell_are_refused() -> None:
    flat = Genotype.from_json('{"cells": {"flat": [[{"source": 0, "primitive": "skip_connect"}]]}}')
    with pytest.raises(InvalidInputError, match="normal and reduction"):
        check_kinds([Candidate(genotype=flat, probability=1.0)], sweep_recipe("smoke", []))
