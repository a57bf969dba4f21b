"""A few-shot study from its first prior to its last: in one process, interrupted, and on workers that are killed."""

import logging
import os
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from reference.priors import smoke_config

from common.artifacts import PriorStore
from common.config import ClusterConfig, StudyConfig
from common.messages import AdaptRequest, AdaptResult, Rejection, RejectionReason
from common.meta.prior import Prior, initial_prior
from common.sweep_config import validate_sweep
from common.sweep_plan import SweepPlan
from coordinator import study
from coordinator.local import LocalExecutor
from coordinator.pool import RayPool
from coordinator.rounds import Result, plan
from coordinator.trial import open_trial

ROUNDS, TASKS = 3, 4
STUDY = (
    f"rounds={ROUNDS}",
    'few_shot={method="finite_difference", steps=2}',
    f"families.0.tasks_per_round={TASKS}",
    "families.0.train_per_class=2",
    "families.0.test_per_class=3",
    "checkpoint.keep_last=10",
)


@pytest.fixture(scope="module")
def config(shared_image_cache: None) -> StudyConfig:
    return smoke_config(*STUDY)


@pytest.fixture(scope="module")
def executor() -> LocalExecutor:
    return LocalExecutor(torch.device("cpu"))


@pytest.fixture(scope="module")
def undisturbed(config: StudyConfig, executor: LocalExecutor, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Digests of all versions of the study, run in one go, every task with a meta-gradient of its own."""
    config = config.model_copy(update={"cluster": config.cluster.model_copy(update={"tasks_per_partial_sum": 1})})
    store = PriorStore(tmp_path_factory.mktemp("undisturbed"))
    study.run(study.begin(store, config), config, executor, store, [], time.monotonic)
    return digests_in(store)


def digests_in(store: PriorStore) -> list[str]:
    return [store.load(version).digest() for version in store.versions()]


def test_rounds_move_everything_that_the_prior_has(
    config: StudyConfig, executor: LocalExecutor, tmp_path: Path
) -> None:
    store = PriorStore(tmp_path)
    heard: list[dict[str, float]] = []
    first = study.begin(store, config)
    last = study.run(
        first,
        config.model_copy(update={"rounds": 1}),
        executor,
        store,
        [],
        time.monotonic,
        on_round=lambda prior, metrics: heard.append(dict(metrics)),
    )
    for name, vector in first.vectors.items():
        assert vector.tobytes() != last.vectors[name].tobytes(), name
    assert heard[0]["tasks_accepted"] == TASKS
    assert 0 <= heard[0]["query_accuracy"] <= 1
    assert heard[0]["query_loss"] > 0


def test_bundles_end_in_the_same_bits(
    config: StudyConfig, executor: LocalExecutor, undisturbed: list[str], tmp_path: Path
) -> None:
    store = PriorStore(tmp_path)
    sizes: list[int] = []
    study.run(
        study.begin(store, config),
        config,
        executor,
        store,
        [],
        time.monotonic,
        on_result=lambda result, rejection: sizes.append(len(result.task_ids)),
    )
    assert set(sizes) == {2}
    assert digests_in(store) == undisturbed


@pytest.mark.parametrize("num_results", [1, 3])
def test_a_study_killed_within_a_round_resumes_to_the_same_bits(
    config: StudyConfig, executor: LocalExecutor, undisturbed: list[str], tmp_path: Path, num_results: int
) -> None:
    class KilledError(BaseException):
        """As SIGKILL: nothing is stored after it."""

    def die(result: Result, rejection: object) -> None:
        seen.append(result)
        if len(seen) == num_results:
            raise KilledError

    seen: list[Result] = []
    store = PriorStore(tmp_path)
    with pytest.raises(KilledError):
        study.run(study.begin(store, config), config, executor, store, [], time.monotonic, on_result=die)
    reopened = PriorStore(tmp_path)
    prior = study.resume(reopened, config)
    assert prior.version == num_results // 2, "two results make a round"
    study.run(prior, config, LocalExecutor(torch.device("cpu")), reopened, [], time.monotonic)
    assert digests_in(reopened) == undisturbed


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_workers_of_which_one_is_killed_make_the_prior_that_one_process_makes(
    config: StudyConfig, undisturbed: list[str], tmp_path: Path
) -> None:
    settings = ClusterConfig.model_validate({"task_timeout_s": 120.0})
    name = f"test-few-shot-{os.getpid()}"
    pool = RayPool(name, 2, 0.0, settings, time.monotonic, logging.getLogger("test"))
    killed: list[int] = []

    def kill_a_worker(result: Result, rejection: object) -> None:
        if not killed:
            killed.append(pool.status()[-1].pid)
            os.kill(killed[0], signal.SIGKILL)

    store = PriorStore(tmp_path)
    try:
        study.run(study.begin(store, config), config, pool, store, [], time.monotonic, on_result=kill_a_worker)
        assert pool.num_replaced >= 1
    finally:
        pool.close()
    assert digests_in(store) == undisturbed


def test_a_frozen_architecture_leaves_its_logits_and_learns_the_rest(executor: LocalExecutor, tmp_path: Path) -> None:
    config = smoke_config(*STUDY, "rounds=1", "few_shot.adam.alpha_lr=0.0", "few_shot.method=first_order")
    store = PriorStore(tmp_path)
    first = study.begin(store, config)
    last = study.run(first, config, executor, store, [], time.monotonic)
    still = {name for name in first.vectors if first.vectors[name].tobytes() == last.vectors[name].tobytes()}
    assert still == {"alpha", "adam/first/alpha", "adam/second/alpha"}


def test_tasks_leave_the_architecture_alone_while_the_weights_warm_up(executor: LocalExecutor) -> None:
    config = smoke_config(*STUDY, "outer.alpha_warmup_rounds=1")
    prior = initial_prior(config)
    moved = []
    for version in range(2):
        start = replace(prior, version=version)
        (result,) = executor.run(start, plan(start, config, study.load_catalogs(config)).requests[:1])
        assert isinstance(result, AdaptResult)
        uniform = 1 / len(config.space.ops)
        moved.append(max(float(abs(matrix - uniform).max()) for matrix in result.probabilities.values()) > 1e-6)
    assert moved == [False, True]


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_a_task_that_diverges_is_rejected_and_its_round_goes_on(
    config: StudyConfig, executor: LocalExecutor, tmp_path: Path
) -> None:
    class Spoiling:
        """The second task of a round learns at a rate that no loss survives."""

        max_workers = TASKS

        def run(self, prior: Prior, requests: Sequence[AdaptRequest]) -> Iterator[Result]:
            few_shot = config.few_shot.model_copy(update={"theta_lr": 1e30})
            yield from executor.run(prior, [*requests[:1], replace(requests[1], few_shot=few_shot), *requests[2:]])

    rejected: list[Rejection | None] = []
    store = PriorStore(tmp_path)
    once = config.model_copy(update={"rounds": 1})
    last = study.run(
        study.begin(store, once),
        once,
        Spoiling(),
        store,
        [],
        time.monotonic,
        on_result=lambda result, rejection: rejected.append(rejection),
    )
    assert [rejection.reason for rejection in rejected if rejection] == [RejectionReason.NOT_FINITE]
    assert all(np.isfinite(vector).all() for vector in last.vectors.values())


def test_a_trial_of_a_sweep_is_measured_on_query_images_of_fresh_episodes(
    config: StudyConfig, undisturbed: list[str], tmp_path: Path
) -> None:
    sweep = {"space": {"few_shot.adam.lr": {"choice": [0.001, 0.1]}}, "tasks": 2, "report_every": ROUNDS}
    plan_of_it = SweepPlan(config=validate_sweep(sweep), study=config)
    measured = open_trial(plan_of_it, {"few_shot.adam.lr": 0.001}, tmp_path, torch.device("cpu")).advance()
    assert measured["rounds"] == ROUNDS
    assert measured["accuracy"] == sum(measured["accuracies"]) / 2
    assert PriorStore(tmp_path).load().digest() == undisturbed[-1], "the rate that it has anyway"


def test_a_plan_is_a_pure_function(config: StudyConfig) -> None:
    prior: Prior = initial_prior(config)
    catalogs = study.load_catalogs(config)
    assert plan(prior, config, catalogs) == plan(prior, config, catalogs)
