"""An architecture learnt from trials: what is drawn, what moves, and that it finds the better ops."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import workers.trials
from common.config import (
    DatasetRef,
    InnerConfig,
    NetworkConfig,
    OuterConfig,
    SpaceConfig,
    StudyConfig,
    TaskFamily,
    TrialsConfig,
)
from common.messages import AdaptRequest
from common.meta.prior import ALPHA, Prior, initial_prior
from common.nn.supernet import build_supernet
from common.space.genotype import Genotype, GenotypeEdge
from common.space.primitives import NONE
from coordinator import outer
from coordinator.rounds import plan
from workers.data.episodes import load_episode
from workers.data.sources import load_arrays
from workers.runner import TaskRunner
from workers.trials import moved_logits, sampled_genotypes, trial_accuracy, with_fresh_weights

SPACE = SpaceConfig(profile="darts", num_nodes=1, normalisation="node")
NUM_OPS = len(SPACE.ops)


def study(**trials: object) -> StudyConfig:
    return StudyConfig(
        rounds=2,
        space=SPACE,
        network=NetworkConfig(channels=2, cells=("normal", "reduction"), heads={8: 2}),
        inner=InnerConfig(steps=1, batch_size=8),
        outer=OuterConfig(
            alpha_average="logits",
            alpha_rate=1.0,
            alpha_trials=TrialsConfig.model_validate({"num_genotypes": 3, "steps": 2, "batch_size": 8, **trials}),
        ),
        families=(
            TaskFamily(
                data=DatasetRef(source="digits", unseen_fraction=0.0),
                image_size=8,
                num_ways=2,
                train_per_class=6,
                test_per_class=4,
                tasks_per_round=1,
            ),
        ),
    )


def request_of(config: StudyConfig, prior: Prior) -> AdaptRequest:
    family = config.families[0]
    (request,) = plan(prior, config, [load_arrays(family.data, family.image_size)]).requests
    return request


def genotype(*normal: tuple[int, str]) -> Genotype:
    """With these pairs in the one node of the normal cell, and always the same ones in the reduction cell."""
    reduction = ((0, "max_pool_3x3"), (1, "skip_connect"))
    return Genotype(
        cells={
            kind: (tuple(GenotypeEdge(source=source, primitive=op) for source, op in pairs),)
            for kind, pairs in (("normal", normal), ("reduction", reduction))
        }
    )


def test_a_task_learns_by_trials_where_the_study_says_so() -> None:
    config = study()
    request = request_of(config, initial_prior(config))
    assert request.trials == config.outer.alpha_trials
    assert not request.learns_alpha  # not by gradient as well


def test_no_trials_while_the_weights_learn_alone() -> None:
    config = study()
    warming = config.model_copy(update={"outer": config.outer.model_copy(update={"alpha_warmup_rounds": 1})})
    assert request_of(warming, initial_prior(warming)).trials is None


def test_genotypes_are_drawn_from_the_prior() -> None:
    config = study(num_genotypes=40)
    prior = initial_prior(config)
    alpha = prior.vectors[ALPHA].reshape(2, 2, NUM_OPS).copy()
    # Of 14 pairs of the normal node these two are practically certain.
    alpha[0, 0, SPACE.ops.index("sep_conv_3x3")] += 40
    alpha[0, 1, SPACE.ops.index("skip_connect")] += 40
    peaked = replace(prior, vectors={**prior.vectors, ALPHA: alpha.reshape(-1)})
    drawn = sampled_genotypes(peaked, request_of(config, peaked))
    expected = genotype((0, "sep_conv_3x3"), (1, "skip_connect")).cells["normal"]
    assert all(each.cells["normal"] == expected for each in drawn)
    assert len({each.cells["reduction"] for each in drawn}) > 10  # there the prior is uniform
    assert NONE not in {edge.primitive for each in drawn for edge in each.cells["reduction"][0]}


def test_moved_logits_by_hand() -> None:
    alpha = np.zeros(2 * 2 * NUM_OPS, np.float32)
    genotypes = (
        genotype((0, "sep_conv_3x3"), (1, "skip_connect")),
        genotype((1, "sep_conv_3x3"), (1, "max_pool_3x3")),
    )
    # Advantages are +0.1 and -0.1; a fourth of each pair's gain is the sum over the op in the cell.
    trials = TrialsConfig(rate=10.0, shared_by_op=0.25)
    moved = moved_logits(alpha, genotypes, np.array([0.8, 0.6]), SPACE, trials).reshape(2, 2, NUM_OPS)
    column = SPACE.ops.index
    assert moved[0, 0, column("sep_conv_3x3")] == pytest.approx(0.75)  # the op's sum is 0.1 - 0.1
    assert moved[0, 1, column("sep_conv_3x3")] == pytest.approx(-0.75)
    assert moved[0, 1, column("skip_connect")] == pytest.approx(1.0)
    assert moved[0, 0, column("skip_connect")] == pytest.approx(0.25)  # never drawn: the op's share alone
    assert moved[0, 1, column("max_pool_3x3")] == pytest.approx(-1.0)
    assert moved[1] == pytest.approx(np.zeros((2, NUM_OPS)))  # in both genotypes alike
    assert not alpha.any()


def test_equal_scores_move_nothing() -> None:
    alpha = np.arange(2 * 2 * NUM_OPS, dtype=np.float32)
    genotypes = (genotype((0, "sep_conv_3x3"), (1, "skip_connect")), genotype((0, "dil_conv_5x5"), (1, "max_pool_3x3")))
    assert (moved_logits(alpha, genotypes, np.array([0.5, 0.5]), SPACE, TrialsConfig()) == alpha).all()


def test_a_trial_is_a_function_of_its_arguments() -> None:
    config = study()
    prior = initial_prior(config)
    request = request_of(config, prior)
    episode = load_episode(request.task)
    supernet = build_supernet(config.space, config.network, seed=5)
    subject = genotype((0, "sep_conv_3x3"), (1, "skip_connect"))
    start = with_fresh_weights(prior, request, supernet)
    first = trial_accuracy(subject, start, request, episode, supernet)
    trial_accuracy(genotype((0, "dil_conv_5x5"), (1, "max_pool_3x3")), start, request, episode, supernet)
    assert trial_accuracy(subject, start, request, episode, supernet) == first
    assert not np.array_equal(start.vectors["body"], prior.vectors["body"])


def test_a_study_moves_its_prior_towards_what_scores_best(monkeypatch: pytest.MonkeyPatch) -> None:
    def prefers_wide_convolutions(subject: Genotype, *rest: object) -> float:
        ops = [edge.primitive for nodes in subject.cells.values() for node in nodes for edge in node]
        return ops.count("sep_conv_5x5") / 4

    monkeypatch.setattr(workers.trials, "trial_accuracy", prefers_wide_convolutions)
    config = study(num_genotypes=16, rate=2.0)
    runner = TaskRunner(torch.device("cpu"))
    prior = initial_prior(config)
    for _ in range(6):
        result = runner.run(prior, request_of(config, prior))
        assert result.update is not None
        prior = outer.step(prior, [result.update], config)
    found = outer.prior_genotype(prior.vectors[ALPHA], config)
    best = genotype((0, "sep_conv_5x5"), (1, "sep_conv_5x5")).cells["normal"]
    assert found.cells == {"normal": best, "reduction": best}


def test_real_trials_change_the_architecture_and_leave_the_weights_update_alone() -> None:
    config = study(steps=4)
    prior = initial_prior(config)
    request = request_of(config, prior)
    runner = TaskRunner(torch.device("cpu"))
    with_trials = runner.run(prior, request).update
    without = runner.run(prior, replace(request, trials=None)).update
    assert with_trials is not None and without is not None
    assert (with_trials.differences["body"] == without.differences["body"]).all()
    assert (without.alpha == prior.vectors[ALPHA]).all()
    assert (with_trials.alpha != prior.vectors[ALPHA]).any()
