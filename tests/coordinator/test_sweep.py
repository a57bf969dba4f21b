"""What becomes of trials: which is best, what is stored, what a plan may be resumed with."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from reference.priors import smoke_config

from common.artifacts import PriorStore
from common.config import SpaceConfig
from common.derivation import top_genotypes
from common.errors import AdaptationError, ConflictError, CorruptArtifactError, InvalidInputError, NotFoundError
from common.loading import load
from common.meta.prior import initial_prior
from common.storage import ArtifactFolder
from common.sweep_config import validate_sweep
from common.sweep_plan import SweepPlan
from coordinator.architectures import candidates_of
from coordinator.sweep import (
    PLAN,
    Trial,
    best_of,
    check_any,
    check_same_plan,
    interval_of,
    spent_s,
    store_results,
)

STUDY = smoke_config("rounds=4")


def plan(**fields: Any) -> SweepPlan:
    return SweepPlan(config=validate_sweep({"space": {"seed": {"randint": [0, 9]}}, **fields}), study=STUDY)


def trial(number: int, value: float | None, state: Any = "complete", **fields: Any) -> Trial:
    return Trial(number, state, {"seed": number}, rounds=4, value=value, folder="somewhere", **fields)


def test_the_best_is_among_the_trials_that_ran_all_their_rounds() -> None:
    trials = [trial(0, 0.5), trial(1, 0.9, "stopped"), trial(2, 0.7), trial(3, None, "failed"), trial(4, float("nan"))]
    best = best_of(trials, plan())
    assert best is not None and best.number == 2
    best = best_of(trials, plan(metric="loss_nats"))
    assert best is not None and best.number == 0
    best = best_of(trials[1:2], plan())
    assert best is not None and best.number == 1, "where none is complete, any"
    assert best_of([trial(0, 0.5), trial(1, 0.5)], plan()) == trial(0, 0.5), "ties go to the first"


def test_a_sweep_without_a_result_says_why() -> None:
    with pytest.raises(AdaptationError, match="no trial came to a result: it diverged"):
        check_any([trial(0, None, "failed", failure="it diverged")], plan())


def test_results_hold_all_trials_and_the_best_ones_files(tmp_path: Path) -> None:
    store = PriorStore(tmp_path / "checkpoint")
    store.save_config(STUDY)
    store.save(initial_prior(STUDY))
    best = Trial(
        1, "complete", {"seed": 7}, 4, 0.75, {"accuracy": 0.75, "accuracies": [0.5, 1.0]}, folder=str(store.folder.url)
    )
    folder = ArtifactFolder(tmp_path / "run")
    for _ in range(2):  # once more, over what was there
        content = store_results(folder, plan(), [trial(0, 0.5, "stopped"), best], True, 12.5)
    assert json.loads(folder.read("result.json")) == content
    assert (content["best"], content["seconds"], content["is_over"], spent_s(folder)) == (1, 12.5, True, 12.5)
    # The interval of two values: mean 0.75, standard error 0.25, t 12.7; cut to what an accuracy can be.
    assert content["trials"][1]["interval_95"] == [0.0, 1.0]
    assert load(tmp_path / "run" / "best.json", environment={}).seed == 7
    assert PriorStore(tmp_path / "run" / "best").load().digest() == initial_prior(STUDY).digest()


def test_the_interval_of_a_full_network_is_that_of_its_validation_images() -> None:
    low, high = interval_of(trial(0, 0.5, measured={"accuracy": 0.5, "num_images": 100})) or (0, 0)
    # Wilson: center 0.5, half width 1.96 / (1 + 1.96^2 / 100) * sqrt(0.25 / 100 + (1.96 / 200)^2).
    assert (round(low, 4), round(high, 4)) == (0.4038, 0.5962)
    assert interval_of(trial(0, 0.5, measured={"accuracies": [0.5]})) is None


def test_a_sweep_goes_on_under_its_own_plan_but_for_the_budget(tmp_path: Path) -> None:
    folder = ArtifactFolder(tmp_path)
    with pytest.raises(NotFoundError, match="holds no sweep"):
        PLAN.read(folder)
    PLAN.store(folder, plan(trials=3))
    assert PLAN.read(folder) == plan(trials=3)
    check_same_plan(PLAN.read(folder), plan(trials=3, max_seconds=5.0))
    with pytest.raises(ConflictError, match="another config"):
        check_same_plan(PLAN.read(folder), plan(trials=4))
    folder.write("sweep.json", b"{")
    with pytest.raises(CorruptArtifactError, match="damaged"):
        PLAN.read(folder)


def test_candidates_are_those_of_a_runs_latest_prior(tmp_path: Path) -> None:
    store = PriorStore(tmp_path / "run")
    store.save_config(STUDY)
    store.save(initial_prior(STUDY))
    found = candidates_of(str(tmp_path / "run"), 5)
    assert len({each.genotype.to_json() for each in found}) == 5
    assert [each.probability for each in found] == sorted((each.probability for each in found), reverse=True)


def test_candidates_are_those_of_an_adaptations_posterior(tmp_path: Path) -> None:
    space = SpaceConfig(primitives=("max_pool_3x3", "skip_connect", "sep_conv_3x3"), num_nodes=1)
    random = np.random.default_rng(0)
    matrices = {kind: random.dirichlet(np.ones(3), size=2) for kind in ("normal", "reduction")}
    posterior = {"ops": list(space.ops), "probabilities": {kind: rows.tolist() for kind, rows in matrices.items()}}
    (tmp_path / "result.json").write_text(json.dumps({"architecture_posterior": posterior}))
    found = candidates_of(str(tmp_path), 4)
    assert [each.genotype for each in found] == [each.genotype for each in top_genotypes(matrices, space, 4)]
    with pytest.raises(InvalidInputError, match="has 225 architectures, top is 226; lower it"):
        candidates_of(str(tmp_path / "result.json"), 226)


@pytest.mark.parametrize(
    "content", ["{}", "[]", '{"architecture_posterior": {"ops": ["x"], "probabilities": {}}}', "{"]
)
def test_a_file_without_a_posterior_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text(content)
    with pytest.raises(InvalidInputError, match=r"holds no architecture posterior|is not JSON"):
        candidates_of(str(tmp_path), 2)
    with pytest.raises(NotFoundError, match="there is no posterior"):
        candidates_of(str(tmp_path / "nothing"), 2)
