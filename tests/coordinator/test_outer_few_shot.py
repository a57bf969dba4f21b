"""The outer step of few-shot studies: meta-gradients move the prior by Adam, the same bits in any order and parts."""

import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference.priors import few_shot_prior, random_meta_gradient, tiny_config, tiny_update

from common.artifacts import PriorStore
from common.config import StudyConfig
from common.messages import MetaGradient, PartialSum, RejectionReason, TaskStatistics
from common.meta.prior import ALPHA, Prior
from common.meta.sums import UpdateSums
from coordinator.outer import OuterStep, learns_alpha, step

TASKS = 7
STATISTICS = TaskStatistics(2.0, 1.0, 100.0, 0.5, 0.8)
LR, ALPHA_LR = 0.1, 0.02
ADAM = {"adam": {"lr": LR, "alpha_lr": ALPHA_LR}}
# The outer step, with how it averages.
CONFIGS = {
    "adam": tiny_config(few_shot=ADAM, weighting="examples", examples_power=0.7),
    "clipped": tiny_config(few_shot=ADAM, rule="clipped_mean", clip_norm=0.2),
    "plain": tiny_config(few_shot={"method": "reptile", "sgd": {"lr": 0.5}}),
}


def logits_by_edge(prior: Prior) -> np.ndarray:
    return prior.vectors[ALPHA].astype(np.float64).reshape(2, 2)


def constant(prior: Prior, task_id: str, **values: float) -> MetaGradient:
    """A meta-gradient of one value per vector, 0 where none is given."""
    gradients = {
        name: np.full_like(prior.vectors[name], values.get(name.partition("/")[0], 0.0)) for name in prior.learnt_names
    }
    return MetaGradient(task_id, prior.version, 10, gradients)


# The step


def test_the_first_step_of_adam_moves_every_weight_by_the_rate_against_its_mean_gradient() -> None:
    prior = few_shot_prior()
    updates = [constant(prior, "a", body=3.0, classifier=-1.0), constant(prior, "b", body=-1.0, classifier=-1.0)]
    after = step(prior, updates, tiny_config(few_shot=ADAM))
    # Mean gradients 1, -1 and, of the head, 0.
    assert after.vectors["body"] == pytest.approx([1 - LR, 2 - LR, 3 - LR], abs=1e-6)
    assert after.vectors["classifier"] == pytest.approx(prior.vectors["classifier"] + LR, abs=1e-6)
    assert after.vectors["head/16"].tolist() == prior.vectors["head/16"].tolist()
    assert after.vectors["adam/first/body"] == pytest.approx([0.1] * 3)
    assert after.vectors["adam/second/classifier"] == pytest.approx([0.001] * 6)
    assert {vector.dtype for vector in after.vectors.values()} == {np.dtype(np.float32)}
    assert after.version == 1


def test_many_steps_are_those_of_adam_in_torch_on_the_same_mean_gradients() -> None:
    config = tiny_config(few_shot=ADAM)
    prior = few_shot_prior()
    names = prior.learnt_names
    parameters = {name: torch.nn.Parameter(torch.tensor(prior.vectors[name], dtype=torch.float64)) for name in names}
    groups = [{"params": [leaf], "lr": ALPHA_LR if name == ALPHA else LR} for name, leaf in parameters.items()]
    optimizer = torch.optim.Adam(groups)
    for version in range(60):
        updates = [random_meta_gradient(prior, f"{version}/{task}") for task in range(3)]
        for name, leaf in parameters.items():
            leaf.grad = torch.tensor(np.mean([update.gradients[name].astype(np.float64) for update in updates], axis=0))
        optimizer.step()
        prior = step(prior, updates, config)
    for name, leaf in parameters.items():
        expected = leaf.detach()
        if name == ALPHA:  # the same distribution, as logarithms of probabilities
            expected = torch.log_softmax(expected.reshape(2, 2), dim=-1).reshape(-1)
        # Vectors are stored in float32 between steps.
        np.testing.assert_allclose(prior.vectors[name], expected.numpy(), rtol=0, atol=2e-5)


def test_a_plain_step_of_rate_1_takes_reptile_to_the_mean_of_the_tasks() -> None:
    config = tiny_config(few_shot={"method": "reptile", "sgd": {"lr": 1.0, "alpha_lr": 0.0}})
    prior = few_shot_prior(with_moments=False)
    # The way back from where a task ended: from (2, 3, 4), and from (0, 1, 2).
    after = step(prior, [constant(prior, "a", body=-1.0), constant(prior, "b", body=1.0, head=-2.0)], config)
    assert after.vectors["body"].tolist() == [1.0, 2.0, 3.0]
    assert after.vectors["head/16"].tolist() == [1.5, 0.5]
    assert set(after.vectors) == set(prior.vectors), "a plain step has no moments"


def test_the_rate_of_plain_steps_falls_to_its_end() -> None:
    config = tiny_config(rounds=3, few_shot={"sgd": {"lr": 1.0, "lr_end": 0.5}})
    prior = few_shot_prior(version=1, with_moments=False)
    assert step(prior, [constant(prior, "a", body=4.0)], config).vectors["body"].tolist() == [-2.0, -1.0, 0.0]


def test_the_architecture_has_a_rate_of_its_own_and_stays_a_distribution_on_every_edge() -> None:
    prior = few_shot_prior()
    update = constant(prior, "a")
    gradients = {**update.gradients, ALPHA: np.float32([1, -1, 0, 0])}
    after = step(prior, [replace(update, gradients=gradients)], tiny_config(few_shot=ADAM))
    assert np.exp(logits_by_edge(after)).sum(axis=1) == pytest.approx([1, 1], abs=1e-6)
    (moved, kept), before = logits_by_edge(after), logits_by_edge(prior)
    assert (moved[1] - moved[0]) - (before[0, 1] - before[0, 0]) == pytest.approx(2 * ALPHA_LR, abs=1e-6)
    assert kept == pytest.approx(before[1], abs=1e-6)


@pytest.mark.parametrize("few_shot", [{"adam": {"alpha_lr": 0.0}}, {"sgd": {"alpha_lr": 0.0}}], ids=["adam", "plain"])
def test_a_rate_of_0_freezes_the_architecture_bitwise(few_shot: dict) -> None:
    prior = few_shot_prior(with_moments="adam" in few_shot)
    after = step(prior, [random_meta_gradient(prior, "a")], tiny_config(few_shot=few_shot))
    for name in (name for name in prior.vectors if name.endswith(ALPHA)):
        assert after.vectors[name].tobytes() == prior.vectors[name].tobytes(), name
    assert after.vectors["body"].tobytes() != prior.vectors["body"].tobytes()


def test_the_architecture_waits_for_the_warm_up_and_then_makes_its_first_step() -> None:
    config = tiny_config(few_shot=ADAM, alpha_warmup_rounds=2)
    prior = few_shot_prior()
    update = {ALPHA: np.float32([2, -2, 1, -1])}
    for version in range(3):
        before, gradient = prior, constant(prior, "a")
        prior = step(prior, [replace(gradient, gradients={**gradient.gradients, **update})], config)
        is_still = prior.vectors[ALPHA].tobytes() == before.vectors[ALPHA].tobytes()
        assert is_still == (version < 2) == (not learns_alpha(before, config))
    moves = logits_by_edge(prior) - logits_by_edge(few_shot_prior())
    assert moves[:, 1] - moves[:, 0] == pytest.approx([2 * ALPHA_LR] * 2, abs=1e-5), "the first step of Adam"
    assert prior.vectors["adam/first/alpha"] == pytest.approx([0.2, -0.2, 0.1, -0.1])


def test_the_guard_against_collapse_stops_the_architecture_and_its_moments() -> None:
    config = tiny_config(few_shot={"adam": {"alpha_lr": 3.0}}, max_parameter_free_edges=0)
    prior = few_shot_prior()
    gradient = constant(prior, "a")
    towards_skips = {**gradient.gradients, ALPHA: np.float32([-1, 1, -1, 1])}
    after = step(prior, [replace(gradient, gradients=towards_skips)], config)
    assert after.alpha_stopped
    for name in (ALPHA, "adam/first/alpha", "adam/second/alpha"):
        assert after.vectors[name].tobytes() == prior.vectors[name].tobytes()
    again = step(after, [replace(random_meta_gradient(after, "a"))], config)
    assert again.vectors[ALPHA].tobytes() == prior.vectors[ALPHA].tobytes()


def test_a_network_without_an_architecture_to_learn_has_none_in_its_prior() -> None:
    config = tiny_config(few_shot={"network": "four_convolutions"})
    prior = few_shot_prior()
    bare = replace(prior, vectors={name: each for name, each in prior.vectors.items() if not name.endswith(ALPHA)})
    assert not learns_alpha(bare, config)
    after = step(bare, [random_meta_gradient(bare, "a")], config)
    assert set(after.vectors) == set(bare.vectors)


def test_meta_gradients_that_are_too_long_count_as_long_as_configured() -> None:
    config = tiny_config(few_shot={"sgd": {"lr": 1.0}}, rule="clipped_mean", clip_norm=5.0)
    prior = few_shot_prior(with_moments=False)
    gradient = constant(prior, "a")
    long = {**gradient.gradients, "body": np.float32([6, 0, 0]), "head/16": np.float32([8, 0])}  # 10 long
    after = step(prior, [replace(gradient, gradients=long)], config)
    assert after.vectors["body"] == pytest.approx([1 - 3, 2, 3])
    assert after.vectors["head/16"] == pytest.approx([0.5 - 4, -0.5])


@pytest.mark.parametrize("exponent", [-8, -4, 0])
def test_the_resolution_of_the_sums_is_far_below_what_adam_sees(exponent: int) -> None:
    # Steps from the exact sums, and from float64 means of the same gradients, as a share of the longest step.
    prior = few_shot_prior(body=np.zeros(2000))
    config = tiny_config(few_shot={"adam": {"lr": 1.0}})
    updates = [random_meta_gradient(prior, str(task), scale=10.0**exponent) for task in range(5)]
    mean = np.mean([update.gradients["body"].astype(np.float64) for update in updates], axis=0)
    wanted = -mean / (np.abs(mean) + 1e-8)
    assert np.abs(step(prior, updates, config).vectors["body"] - wanted).max() < 1e-4


# The same bits


def partial_sum(prior: Prior, config: StudyConfig, updates: list[MetaGradient]) -> PartialSum:
    """As a worker makes it."""
    sums = UpdateSums(prior, config)
    found = {update.task_id: sums.absorb(update) for update in updates}
    statistics = {task_id: STATISTICS for task_id, rejection in found.items() if rejection is None}
    return PartialSum(
        prior.version, statistics, tuple(each for each in found.values() if each is not None), sums.sums()
    )


@pytest.mark.parametrize("name", CONFIGS)
@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_any_bundles_in_any_order_make_the_same_prior_over_two_rounds(name: str, data: st.DataObject) -> None:
    config = CONFIGS[name]
    ways = [few_shot_prior(with_moments=name != "plain")] * 2
    for _ in range(2):
        updates = [random_meta_gradient(ways[0], f"task-{place}", num_examples=1 + place) for place in range(TASKS)]
        updates[3] = spoilt(updates[3], "classifier", math.nan)
        one_by_one, in_parts = (OuterStep(prior, config) for prior in ways)
        assert [one_by_one.absorb(update) is None for update in updates].count(False) == 1
        order = data.draw(st.permutations(updates))
        ends = [0, *sorted(data.draw(st.sets(st.integers(1, TASKS - 1)))), TASKS]
        for start, end in pairwise(ends):
            if end - start == 1:
                in_parts.absorb(order[start])
            else:
                assert in_parts.merge(partial_sum(ways[1], config, order[start:end])) is None
        assert one_by_one.num_accepted == in_parts.num_accepted == TASKS - 1
        ways = [one_by_one.finish(), in_parts.finish()]
        assert ways[0].digest() == ways[1].digest()


@pytest.mark.parametrize("rule", ["median", "trimmed_mean"])
def test_robust_rules_take_meta_gradients_in_any_order(rule: str) -> None:
    config = tiny_config(few_shot={"sgd": {"lr": 1.0}}, rule=rule)
    prior = few_shot_prior(with_moments=False)
    updates = [constant(prior, str(value), body=value) for value in (1.0, 2.0, 900.0)]
    after = step(prior, updates, config)
    assert after.digest() == step(prior, updates[::-1], config).digest()
    if rule == "median":
        assert after.vectors["body"].tolist() == [-1.0, 0.0, 1.0]


def test_moments_survive_the_checkpoint_and_are_part_of_the_digest(tmp_path: Path) -> None:
    config = tiny_config(few_shot=ADAM)
    prior = few_shot_prior()
    first = step(prior, [random_meta_gradient(prior, "a")], config)
    store = PriorStore(tmp_path)
    store.save(first)
    loaded = store.load()
    assert {name for name in loaded.vectors if name.startswith("adam/")} == {
        f"adam/{moment}/{name}" for moment in ("first", "second") for name in first.learnt_names
    }
    following = [step(each, [random_meta_gradient(first, "b")], config).digest() for each in (first, loaded)]
    assert following[0] == following[1]
    forgotten = {name: vector * (0 if "adam/second" in name else 1) for name, vector in first.vectors.items()}
    assert replace(first, vectors=forgotten).digest() != first.digest()


# What does not count


def spoilt(update: MetaGradient, name: str, value: float) -> MetaGradient:
    vector = update.gradients[name].copy()
    vector[-1] = value
    return replace(update, gradients={**update.gradients, name: vector})


def without(update: MetaGradient, name: str) -> MetaGradient:
    return replace(update, gradients={key: each for key, each in update.gradients.items() if key != name})


def with_one_more(update: MetaGradient, name: str) -> MetaGradient:
    return replace(update, gradients={**update.gradients, name: update.gradients["body"]})


@pytest.mark.parametrize(
    ("wrong", "reason", "detail"),
    [
        (lambda update: replace(update, version=3), RejectionReason.WRONG_VERSION, "starts from 3, the prior is 0"),
        (lambda update: replace(update, num_examples=0), RejectionReason.BAD_WEIGHT, "num_examples must be > 0"),
        (lambda update: spoilt(update, "body", math.nan), RejectionReason.NOT_FINITE, "body has NaN or infinite"),
        (lambda update: spoilt(update, ALPHA, -math.inf), RejectionReason.NOT_FINITE, "alpha has NaN or infinite"),
        (lambda update: spoilt(update, "classifier", 2e3), RejectionReason.OUT_OF_RANGE, "values beyond 1024"),
        (lambda update: without(update, "classifier"), RejectionReason.WRONG_SHAPE, "needs gradients of"),
        (lambda update: without(update, ALPHA), RejectionReason.WRONG_SHAPE, "needs gradients of"),
        (lambda update: with_one_more(update, "head/32"), RejectionReason.WRONG_SHAPE, "needs gradients of"),
        (lambda update: with_one_more(update, "adam/first/body"), RejectionReason.WRONG_SHAPE, "needs gradients of"),
        (
            lambda update: replace(update, gradients={**update.gradients, "body": np.zeros(4, np.float32)}),
            RejectionReason.WRONG_SHAPE,
            "body has shape (4,), expected (3,)",
        ),
        (lambda update: tiny_update("wrong"), RejectionReason.WRONG_SHAPE, "needs a meta-gradient, got a LocalUpdate"),
    ],
)
def test_a_wrong_meta_gradient_is_rejected_without_a_trace(wrong, reason: RejectionReason, detail: str) -> None:
    config = tiny_config(few_shot=ADAM)
    prior = few_shot_prior()
    outer = OuterStep(prior, config)
    rejection = outer.absorb(wrong(random_meta_gradient(prior, "wrong")))
    assert rejection is not None
    assert (rejection.task_id, rejection.reason) == ("wrong", reason)
    assert detail in rejection.detail
    assert outer.num_accepted == 0
    good = random_meta_gradient(prior, "good")
    assert outer.absorb(good) is None
    assert outer.finish().digest() == step(prior, [good], config).digest()


def test_a_partial_sum_that_lacks_a_vector_or_has_another_is_rejected_without_a_trace() -> None:
    config = tiny_config(few_shot=ADAM)
    prior = few_shot_prior()
    partial = partial_sum(prior, config, [random_meta_gradient(prior, task_id) for task_id in "ab"])
    outer = OuterStep(prior, config)
    for sums in (
        {name: each for name, each in partial.sums.items() if name != "classifier"},
        {**partial.sums, "adam/first/body": partial.sums["body"]},
    ):
        rejection = outer.merge(replace(partial, sums=sums))
        assert rejection is not None and rejection.reason is RejectionReason.WRONG_SHAPE
    assert outer.merge(partial) is None
    assert outer.finish().version == 1


def test_a_study_that_is_not_few_shot_takes_no_meta_gradient() -> None:
    prior = few_shot_prior()
    rejection = OuterStep(prior, tiny_config()).absorb(random_meta_gradient(prior, "a"))
    assert rejection is not None
    assert rejection.detail == "needs a difference, got a MetaGradient"
