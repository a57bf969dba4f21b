"""A round of a few-shot study as values: its tasks say how to learn, and its metrics what query images showed."""

import math
from dataclasses import replace

import numpy as np
import pytest
from reference.priors import random_meta_gradient, result_of, smoke_config

from common.config import StudyConfig
from common.messages import AdaptResult, Evaluation, PartialSum, statistics_of
from common.meta.prior import Prior, initial_prior
from common.meta.sums import UpdateSums
from common.telemetry import ROUND_METRICS, metric_name
from coordinator.rounds import Round, RoundPlan, architecture_metrics, plan
from coordinator.study import load_catalogs

FEW_SHOT = ("few_shot={steps=3}", "families.0.tasks_per_round=4")
QUERY = [(0.9, 0.5), (0.7, 0.7), (0.5, 0.75), (0.1, 1.0)]  # loss and accuracy, by task


@pytest.fixture(scope="module")
def config(shared_image_cache: None) -> StudyConfig:
    return smoke_config(*FEW_SHOT)


@pytest.fixture(scope="module")
def prior(config: StudyConfig) -> Prior:
    return initial_prior(config)


@pytest.fixture(scope="module")
def round_plan(prior: Prior, config: StudyConfig) -> RoundPlan:
    return plan(prior, config, load_catalogs(config))


def results_of(prior: Prior, round_plan: RoundPlan) -> list[AdaptResult]:
    """Made-up results, without any training."""
    return [
        replace(
            result_of(random_meta_gradient(prior, request.task.task_id), request.task.task_id),
            evaluations=(Evaluation(3, accuracy, loss),),
        )
        for request, (loss, accuracy) in zip(round_plan.requests, QUERY, strict=True)
    ]


def spoilt(result: AdaptResult) -> AdaptResult:
    gradients = dict(result.update.gradients)
    gradients["body"] = np.full_like(gradients["body"], math.nan)
    return replace(result, update=replace(result.update, gradients=gradients))


def test_requests_say_how_few_shot_tasks_learn_and_ask_for_the_query_images_after_the_last_step(
    prior: Prior, config: StudyConfig, round_plan: RoundPlan
) -> None:
    for request in round_plan.requests:
        assert request.few_shot == config.few_shot
        assert request.eval_steps == (3,)
        assert (request.learns_alpha, request.genotype, request.trials) == (True, None, None)
        assert (request.relaxation, request.tau) == ("gumbel", prior.tau)


def test_metrics_of_a_few_shot_round_are_all_catalogued_and_complete_but_for_the_clock(
    prior: Prior, config: StudyConfig, round_plan: RoundPlan
) -> None:
    running = Round(prior, round_plan, config)
    for result in results_of(prior, round_plan):
        assert running.absorb(result) is None
    following, metrics = running.finish()
    assert {metric_name(name) for name in metrics} == set(ROUND_METRICS) - {"round_seconds"}
    assert metrics["query_loss"] == pytest.approx((0.9 + 0.7 + 0.5 + 0.1) / 4)
    assert metrics["query_accuracy"] == pytest.approx((0.5 + 0.7 + 0.75 + 1.0) / 4)
    moves = [following.vectors[name].astype(np.float64) - prior.vectors[name] for name in prior.weight_names]
    assert metrics["update_norm"] == pytest.approx(float(np.linalg.norm(np.concatenate(moves))), rel=1e-9)


def test_partial_sums_of_meta_gradients_make_the_same_prior_and_metrics(
    prior: Prior, config: StudyConfig, round_plan: RoundPlan
) -> None:
    results = results_of(prior, round_plan)
    results[1] = spoilt(results[1])
    outcomes = []
    for bundles in ([[each] for each in results], [results[:1], results[1:3], results[3:]], [results[::-1]]):
        running = Round(prior, round_plan, config)
        for bundle in bundles:
            if len(bundle) == 1:
                running.absorb(bundle[0])
                continue
            sums = UpdateSums(prior, config)
            told = [sums.absorb(each.update) for each in bundle]
            counted = {
                each.task_id: statistics_of(each) for each, said in zip(bundle, told, strict=True) if said is None
            }
            left_out = tuple(each for each in told if each is not None)
            assert running.absorb(PartialSum(prior.version, counted, left_out, sums.sums())) is None
        following, metrics = running.finish()
        assert (metrics["tasks_accepted"], metrics["tasks_rejected"]) == (3, 1)
        assert metrics["query_accuracy"] == pytest.approx((0.5 + 0.75 + 1.0) / 3)
        outcomes.append((following.digest(), tuple(sorted(metrics.items()))))
    assert len(set(outcomes)) == 1


def test_a_prior_without_an_architecture_has_no_metrics_of_one(prior: Prior, config: StudyConfig) -> None:
    bare = replace(prior, vectors={"body": prior.vectors["body"]})
    assert architecture_metrics(bare, config) == {}
    assert architecture_metrics(prior, config)
