"""Few-shot tasks on a worker: the same bits wherever they run, predictions, and what becomes of those that diverge."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from reference.priors import smoke_config

from common.config import StudyConfig
from common.errors import AdaptationError
from common.messages import AdaptRequest, AdaptResult, MetaGradient, RejectionReason
from common.meta.prior import Prior, initial_prior
from coordinator.rounds import Round, RoundPlan, plan
from coordinator.study import load_catalogs
from workers.data.episodes import load_episode
from workers.few_shot import predict
from workers.runner import TaskRunner

STUDY = (
    'few_shot={network="four_convolutions", filters=4, steps=2, method="first_order"}',
    "families.0.tasks_per_round=2",
    "families.0.train_per_class=2",
    "families.0.test_per_class=3",
    "outer.min_accepted_fraction=0.5",
)
TOO_HIGH = 3e38  # nearly the largest float32


@pytest.fixture(scope="module")
def config(shared_image_cache: None) -> StudyConfig:
    return smoke_config(*STUDY)


@pytest.fixture(scope="module")
def prior(config: StudyConfig) -> Prior:
    return initial_prior(config)


@pytest.fixture(scope="module")
def round_plan(prior: Prior, config: StudyConfig) -> RoundPlan:
    return plan(prior, config, load_catalogs(config))


@pytest.fixture(scope="module")
def runner() -> TaskRunner:
    return TaskRunner(torch.device("cpu"))


def learning_by(request: AdaptRequest, **changes: Any) -> AdaptRequest:
    assert request.few_shot is not None
    return replace(request, few_shot=request.few_shot.model_copy(update=changes))


@pytest.mark.parametrize("method", ["exact", "finite_difference", "first_order", "reptile"])
def test_a_task_that_diverges_is_rejected_and_the_round_goes_on(
    config: StudyConfig, prior: Prior, round_plan: RoundPlan, runner: TaskRunner, method: str
) -> None:
    running = Round(prior, round_plan, config)
    good, bad = round_plan.requests
    rejection = running.absorb(runner.run(prior, learning_by(bad, method=method, theta_lr=TOO_HIGH)))
    assert rejection is not None and rejection.reason == RejectionReason.NOT_FINITE
    assert running.absorb(runner.run(prior, learning_by(good, method=method))) is None
    _, metrics = running.finish()
    assert (metrics["tasks_accepted"], metrics["tasks_rejected"]) == (1, 1)


def test_a_test_that_diverges_in_its_last_step_is_an_error(
    prior: Prior, round_plan: RoundPlan, runner: TaskRunner
) -> None:
    request = learning_by(round_plan.requests[0], test_steps=1, theta_lr=TOO_HIGH)
    # Great scales of the last BatchNorm are great features: the first loss is log(num_ways), its gradient great.
    prior = replace(prior, vectors={**prior.vectors, "body": 1000 * prior.vectors["body"]})
    with pytest.raises(AdaptationError, match=r"diverged; lower few_shot\.theta_lr"):
        runner.run(prior, replace(request, returns_update=False, eval_steps=(0, 1)))


@pytest.mark.parametrize(("method", "num_evaluations"), [("first_order", 1), ("reptile", 0)])
def test_query_images_that_steps_have_seen_are_not_evaluated(
    prior: Prior, round_plan: RoundPlan, runner: TaskRunner, method: str, num_evaluations: int
) -> None:
    result = runner.run(prior, learning_by(round_plan.requests[0], method=method))
    assert len(result.evaluations) == num_evaluations


def bits_of(result: AdaptResult) -> dict[str, bytes]:
    assert isinstance(result.update, MetaGradient)
    return {name: vector.tobytes() for name, vector in result.update.gradients.items()}


@pytest.mark.parametrize("method", ["exact", "finite_difference", "reptile"])
def test_a_meta_gradient_has_the_same_bits_on_a_warm_and_on_a_fresh_worker(
    prior: Prior, round_plan: RoundPlan, runner: TaskRunner, method: str
) -> None:
    first, second = (learning_by(request, method=method) for request in round_plan.requests)
    warm = [runner.run(prior, request) for request in (first, second, first)]
    fresh = TaskRunner(torch.device("cpu")).run(prior, first)
    assert bits_of(warm[0]) == bits_of(warm[2]) == bits_of(fresh) != bits_of(warm[1])
    assert set(bits_of(fresh)) == set(prior.learnt_names)
    assert fresh.path == "pytorch"


@pytest.mark.parametrize(("statistics", "depends"), [("inductive", False), ("transductive", True)])
def test_only_transductive_predictions_depend_on_the_other_queries(
    prior: Prior, round_plan: RoundPlan, runner: TaskRunner, statistics: str, depends: bool
) -> None:
    request = learning_by(round_plan.requests[0], evaluation=statistics, test_steps=2)
    episode, network = load_episode(request.task), runner.few_shot_network(request)
    support = episode.train_images, episode.train_labels
    together = predict(prior, request, network, *support, episode.test_images)
    few = predict(prior, request, network, *support, episode.test_images[:2])
    difference = np.abs(together.prediction.probabilities[:2] - few.prediction.probabilities).max()
    assert (difference > 1e-4) == depends
    assert together.prediction.statistics == statistics
    np.testing.assert_allclose(together.prediction.probabilities.sum(axis=1), 1)
    # The accuracy that a test reports is that of these predictions.
    tested = runner.run(prior, replace(request, returns_update=False, eval_steps=(2,), returns_weights=True))
    assert tested.evaluations[0].accuracy == (together.prediction.labels == episode.test_labels).mean()
    assert tested.weights is not None
    assert all(np.array_equal(vector, tested.weights[name]) for name, vector in together.vectors.items())
