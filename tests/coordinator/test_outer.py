"""The outer step: by hand, in any order, and deaf to updates that are wrong."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference.priors import TINY_EXAMPLES, random_update, smoke_config, tiny_config, tiny_prior, tiny_update

from common.errors import AdaptationError
from common.messages import RejectionReason
from common.meta.params import named_vectors
from common.meta.posterior import MIN_PROBABILITY
from common.meta.prior import ALPHA, initial_prior
from common.meta.sums import task_weight
from common.meta.uses import spread_over_ops
from common.nn.supernet import build_supernet
from coordinator.outer import (
    OuterStep,
    learns_alpha,
    most_parameter_free_edges,
    prior_genotype,
    step,
    theta_rate,
)

RULES = ["mean", "clipped_mean", "median", "trimmed_mean"]


def probabilities_of(prior):
    """Of `tiny_config` under edge normalisation."""
    pairs = prior.vectors[ALPHA].astype(np.float64).reshape(2, 2)
    return (np.exp(pairs) / np.exp(pairs).sum(axis=1, keepdims=True)).ravel().tolist()


# Weights: Reptile


def test_body_moves_by_the_rate_times_the_mean_difference():
    updates = [tiny_update("a", body=(1.0, 0.0, -3.0)), tiny_update("b", body=(3.0, 1.0, 1.0))]
    after = step(tiny_prior(), updates, tiny_config(theta_rate=0.5))
    # mean difference (2, 0.5, -1), halved, from (1, 2, 3)
    assert after.vectors["body"].tolist() == [2.0, 2.25, 2.5]
    assert after.vectors["body"].dtype == np.float32
    assert after.version == 1


def test_heads_move_only_by_tasks_of_their_size_and_by_the_mean_over_those():
    updates = [
        tiny_update("a", body=(3.0, 3.0, 3.0), head=(1.0, 2.0), size=16),
        tiny_update("b", body=(0.0, 0.0, 0.0), head=(3.0, 4.0), size=16),
        tiny_update("c", body=(0.0, 0.0, 0.0), head=(-4.0, 8.0), size=32),
    ]
    after = step(tiny_prior(), updates, tiny_config(theta_rate=1.0))
    assert after.vectors["head/16"].tolist() == [0.5 + 2.0, -0.5 + 3.0]
    assert after.vectors["head/32"].tolist() == [4.0 - 4.0, 8.0 + 8.0]
    assert after.vectors["body"].tolist() == [2.0, 3.0, 4.0], "the body moves by all tasks"


def test_a_head_that_no_task_used_stays_bitwise():
    prior = tiny_prior()
    after = step(prior, [tiny_update("a", head=(1.0, 1.0), size=16)], tiny_config())
    assert after.vectors["head/32"].tobytes() == prior.vectors["head/32"].tobytes()


# Weights that not every step uses: the tiny supernet has one cell and one node, two edges of two ops (a skip, which has
# no weights, and a separable convolution), so its use has four values, of which the second and fourth count.


def use_case(average, uses, **outer):
    """Differences 1, 2, 3, ... (by task) of all weights; what the prior moved by, per part of the body."""
    config = tiny_config(theta_rate=1.0, theta_average=average, **outer)
    prior = initial_prior(config)
    updates = []
    for number, use in enumerate(uses, start=1):
        update = random_update(prior, f"task-{number}")
        differences = {name: np.full_like(vector, number) for name, vector in update.differences.items()}
        use = None if use is None else np.float32([0.0, use[0], 1.0, use[1]])
        updates.append(replace(update, differences=differences, use=use))
    moved = step(prior, updates, config).vectors["body"].astype(np.float64) - prior.vectors["body"]
    names = [name for name, _ in named_vectors(build_supernet(config.space, config.network, 0))["body"]]
    sizes = [p.numel() for _, p in named_vectors(build_supernet(config.space, config.network, 0))["body"]]
    parts = dict(zip(names, np.split(moved, np.cumsum(sizes)[:-1]), strict=True))
    found = {}
    for key in ("edges.0.sep_conv_3x3", "edges.1.sep_conv_3x3", "preprocess"):
        values = np.concatenate([part for name, part in parts.items() if name.startswith(f"cells.0.{key}")])
        assert np.ptp(values) < 1e-6
        found[key] = float(values.mean())
    return list(found.values())


@pytest.mark.parametrize(
    ("average", "expected"),
    [
        # Task 1 uses the first op in all steps and the second in a quarter, task 2 the second alone, in half of them.
        ("tasks", [(1 + 2) / 2, (1 + 2) / 2, (1 + 2) / 2]),
        ("users", [(1 + 2) / 1, (1 + 2) / 2, (1 + 2) / 2]),
        ("uses", [(1 + 2) / 1, (1 + 2) / 0.75, (1 + 2) / 2]),
    ],
)
def test_the_difference_of_an_op_is_divided_by_its_use(average, expected):
    assert use_case(average, [(1.0, 0.25), (0.0, 0.5)]) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("average", ["users", "uses"])
def test_an_op_that_no_task_used_stays_bitwise(average):
    config = tiny_config(theta_rate=1.0, theta_average=average)
    prior = initial_prior(config)
    update = replace(random_update(prior, "a"), use=np.float32([1, 0, 1, 1]))
    body = update.differences["body"].copy()
    owners = spread_over_ops(np.arange(4.0), config)  # 1 also marks weights of no op
    sizes = [p.numel() for _, p in named_vectors(build_supernet(config.space, config.network, 0))["body"]]
    unused = np.arange(len(body)) >= sum(sizes[:2])
    unused &= owners == 1
    assert unused.sum() == sum(sizes[2:6])
    body[unused] = 0  # as a task leaves them
    after = step(prior, [replace(update, differences={**update.differences, "body": body})], config)
    same = after.vectors["body"] == prior.vectors["body"]
    assert same[unused].all()
    assert not same[~unused].any()


@pytest.mark.parametrize("average", ["users", "uses"])
def test_dividing_by_use_changes_no_bit_where_every_step_uses_every_op(average):
    options = ("outer.weighting=examples", "outer.examples_power=0.7")
    config = smoke_config(*options)
    prior = initial_prior(config)
    updates = [random_update(prior, name, num_examples=7 + 5 * place) for place, name in enumerate("abc")]
    divided = step(prior, updates, smoke_config(f"outer.theta_average={average}", *options))
    assert divided.digest() == step(prior, updates, config).digest()


def test_tasks_count_by_their_weight_in_the_use_too():
    # Weights 1 and 3 (30 images where 10 weigh 1): (1 * 1 + 3 * 2) / (1 * 1 + 3 * 0.5)
    config = {"weighting": "examples"}
    found = use_case("uses", [(1.0, 1.0), (0.5, 1.0)], **config)
    assert found[0] == pytest.approx((3 * 1 + 3 * 2) / (3 * 1 + 3 * 0.5), abs=1e-5)


def test_a_step_moves_the_prior():
    config = smoke_config()
    prior = initial_prior(config)
    after = step(prior, [random_update(prior, "a")], config)
    for name in ("body", "head/16", ALPHA):
        assert float(np.abs(after.vectors[name] - prior.vectors[name]).max()) > 1e-3, name
    assert after.digest() != prior.digest()


def test_outer_step_leaves_prior_and_updates_unchanged():
    config = smoke_config("outer.rule=clipped_mean", "outer.clip_norm=0.01")
    prior = initial_prior(config)
    updates = [random_update(prior, name) for name in "abc"]
    digest = prior.digest()
    before = [{name: vector.tobytes() for name, vector in update.differences.items()} for update in updates]
    step(prior, updates, config)
    assert prior.digest() == digest
    after = [{name: vector.tobytes() for name, vector in update.differences.items()} for update in updates]
    assert after == before


def test_vectors_of_the_new_prior_cannot_be_written_to():
    after = step(tiny_prior(), [tiny_update("a")], tiny_config())
    with pytest.raises(ValueError, match="read-only"):
        after.vectors["body"][0] = 1.0


def test_theta_rate_is_constant_where_no_end_is_given():
    config = tiny_config(rounds=5, theta_rate=0.7)
    assert [theta_rate(config, version) for version in (0, 2, 4)] == [0.7, 0.7, 0.7]


def test_theta_rate_falls_linearly_to_its_end_in_the_last_round_and_stays():
    config = tiny_config(rounds=5, theta_rate=1.0, theta_rate_end=0.2)
    rates = [theta_rate(config, version) for version in range(7)]
    assert rates == pytest.approx([1.0, 0.8, 0.6, 0.4, 0.2, 0.2, 0.2], abs=1e-12)


def test_theta_rate_of_a_study_of_one_round_is_the_first():
    assert theta_rate(tiny_config(rounds=1, theta_rate=0.9, theta_rate_end=0.1), 0) == 0.9


def test_the_step_uses_the_rate_of_its_version():
    config = tiny_config(rounds=3, theta_rate=1.0, theta_rate_end=0.5)
    after = step(tiny_prior(version=1), [tiny_update("a", body=(4.0, 0.0, 0.0), version=1)], config)
    assert after.vectors["body"].tolist() == [1.0 + 0.75 * 4.0, 2.0, 3.0]


def test_tau_of_the_new_prior_is_that_of_its_version():
    config = smoke_config("rounds=3", "relaxation.tau_start=4.0", "relaxation.tau_end=1.0")
    prior = initial_prior(config)
    taus = [prior.tau]
    for _ in range(3):
        prior = step(prior, [random_update(prior, "a")], config)
        taus.append(prior.tau)
    assert taus == pytest.approx([4.0, 2.0, 1.0, 1.0], abs=1e-12)


# Weights of tasks


def test_tasks_weigh_the_same_under_uniform():
    config = tiny_config(weighting="uniform")
    assert [task_weight(count, config) for count in (1, 10, 1000)] == [1.0, 1.0, 1.0]


@pytest.mark.parametrize(("power", "expected"), [(1.0, [0.5, 1.0, 4.0]), (0.5, [0.5**0.5, 1.0, 2.0]), (0.0, [1.0] * 3)])
def test_tasks_weigh_their_examples_to_a_power(power, expected):
    config = tiny_config(weighting="examples", examples_power=power)
    assert [task_weight(count, config) for count in (5, TINY_EXAMPLES, 40)] == pytest.approx(expected, rel=1e-12)


def test_example_weights_enter_the_mean_of_weights_and_architectures():
    updates = [
        tiny_update("a", body=(4.0, 0.0, 0.0), num_examples=30, probabilities=(0.9, 0.1, 0.5, 0.5)),
        tiny_update("b", body=(0.0, 8.0, 0.0), num_examples=10, probabilities=(0.1, 0.9, 0.5, 0.5)),
    ]
    config = tiny_config(theta_rate=1.0, alpha_rate=1.0, weighting="examples")
    after = step(tiny_prior(), updates, config)
    assert after.vectors["body"].tolist() == [1.0 + 3.0, 2.0 + 2.0, 3.0]
    # (3 * 0.9 + 0.1) / 4 = 0.7
    assert probabilities_of(after) == pytest.approx([0.7, 0.3, 0.5, 0.5], abs=1e-6)


# Robust rules


@pytest.mark.parametrize("rule", ["median", "trimmed_mean"])
def test_robust_rules_ignore_an_outlier(rule):
    updates = [tiny_update(str(value), body=(value, 0.0, 0.0)) for value in (1.0, 2.0, 3.0, 1000.0)]
    after = step(tiny_prior(), updates, tiny_config(theta_rate=1.0, rule=rule, trim_fraction=0.25))
    assert after.vectors["body"].tolist() == [1.0 + 2.5, 2.0, 3.0]


def test_clipped_mean_shortens_long_differences_of_body_and_head_together():
    updates = [
        tiny_update("long", body=(6.0, 0.0, 0.0), head=(0.0, 8.0)),  # length 10, so halved
        tiny_update("short", body=(0.0, 3.0, 0.0), head=(4.0, 0.0)),  # length 5, counts in full
    ]
    after = step(tiny_prior(), updates, tiny_config(theta_rate=1.0, rule="clipped_mean", clip_norm=5.0))
    assert after.vectors["body"] == pytest.approx([1.0 + 1.5, 2.0 + 1.5, 3.0], abs=1e-6)
    assert after.vectors["head/16"] == pytest.approx([0.5 + 2.0, -0.5 + 2.0], abs=1e-6)


def test_clipped_mean_takes_an_update_that_did_not_move():
    after = step(tiny_prior(), [tiny_update("still")], tiny_config(rule="clipped_mean"))
    assert after.vectors["body"].tolist() == [1.0, 2.0, 3.0]


# Architecture


def test_architectures_are_averaged_as_probabilities():
    updates = [
        tiny_update("a", probabilities=(0.9, 0.1, 0.5, 0.5)),
        tiny_update("b", probabilities=(0.7, 0.3, 0.5, 0.5)),
    ]
    after = step(tiny_prior((0.5, 0.5, 0.25, 0.75)), updates, tiny_config(alpha_rate=0.6))
    # 0.4 * 0.5 + 0.6 * 0.8 = 0.68; 0.4 * 0.25 + 0.6 * 0.5 = 0.4
    assert probabilities_of(after) == pytest.approx([0.68, 0.32, 0.4, 0.6], abs=1e-6)


def test_architectures_are_averaged_as_logits():
    updates = [
        tiny_update("a", probabilities=(0.9, 0.1, 0.5, 0.5)),
        tiny_update("b", probabilities=(0.7, 0.3, 0.5, 0.5)),
    ]
    config = tiny_config(alpha_rate=0.6, alpha_average="logits")
    after = step(tiny_prior((0.5, 0.5, 0.25, 0.75)), updates, config)
    # The geometric mean: p^0.4 (q_a q_b)^0.3, normalised per edge.
    first = [0.5**0.4 * (0.9 * 0.7) ** 0.3, 0.5**0.4 * (0.1 * 0.3) ** 0.3]
    second = [0.25**0.4 * 0.5**0.6, 0.75**0.4 * 0.5**0.6]
    expected = [first[0] / sum(first), first[1] / sum(first), second[0] / sum(second), second[1] / sum(second)]
    assert probabilities_of(after) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("average", ["probability", "logits"])
def test_logits_of_the_prior_are_log_probabilities(average):
    updates = [tiny_update("a", probabilities=(0.9, 0.1, 0.5, 0.5))]
    after = step(tiny_prior(), updates, tiny_config(alpha_average=average))
    sums = np.exp(after.vectors[ALPHA].astype(np.float64)).reshape(2, 2).sum(axis=1)
    assert sums == pytest.approx([1.0, 1.0], abs=1e-6)


@pytest.mark.parametrize("average", ["probability", "logits"])
def test_node_probabilities_keep_summing_to_one_over_all_pairs(average):
    config = tiny_config(normalisation="node", alpha_average=average, alpha_rate=0.6)
    prior = tiny_prior((0.1, 0.2, 0.3, 0.4))
    updates = [
        tiny_update("a", probabilities=(0.4, 0.3, 0.2, 0.1)),
        tiny_update("b", probabilities=(0.7, 0.1, 0.1, 0.1)),
    ]
    p = np.exp(step(prior, updates, config).vectors[ALPHA].astype(np.float64))
    assert p.sum() == pytest.approx(1.0, abs=1e-6)
    if average == "probability":
        # 0.4 * (0.1, 0.2, 0.3, 0.4) + 0.6 * (0.55, 0.2, 0.15, 0.1)
        assert p == pytest.approx([0.37, 0.2, 0.21, 0.22], abs=1e-6)


def test_no_probability_falls_to_zero():
    certain = tiny_update("a")
    certain = replace(certain, alpha=np.float32([0.0, -500.0, 0.0, 0.0]))
    after = step(tiny_prior(), [certain], tiny_config(alpha_rate=1.0))
    assert np.exp(after.vectors[ALPHA][1]) == pytest.approx(MIN_PROBABILITY, rel=1e-4)


def test_architecture_stays_bitwise_during_the_warm_up_and_then_learns():
    config = tiny_config(alpha_warmup_rounds=2)
    prior = tiny_prior()
    for version in range(2):
        assert not learns_alpha(prior, config)
        update = tiny_update("a", body=(1.0, 0.0, 0.0), probabilities=(0.9, 0.1, 0.9, 0.1), version=version)
        after = step(prior, [update], config)
        assert after.vectors[ALPHA].tobytes() == prior.vectors[ALPHA].tobytes()
        assert after.vectors["body"][0] == prior.vectors["body"][0] + 1.0, "the weights learn"
        prior = after
    assert learns_alpha(prior, config)
    after = step(prior, [tiny_update("a", probabilities=(0.9, 0.1, 0.9, 0.1), version=2)], config)
    assert probabilities_of(after) == pytest.approx([0.74, 0.26, 0.64, 0.36], abs=1e-6)


CONVOLUTIONS = (0.2, 0.8, 0.2, 0.8)
SKIPS = (0.9, 0.1, 0.9, 0.1)


def test_architecture_stops_for_good_before_it_keeps_too_many_parameter_free_ops():
    config = tiny_config(max_parameter_free_edges=1)
    prior = tiny_prior(CONVOLUTIONS)
    assert most_parameter_free_edges(prior.vectors[ALPHA], config) == 0
    # 0.4 * 0.2 + 0.6 * 0.9 = 0.62: both edges would become skip connections
    after = step(prior, [tiny_update("a", body=(1.0, 0.0, 0.0), probabilities=SKIPS)], config)
    assert after.alpha_stopped
    assert after.vectors[ALPHA].tobytes() == prior.vectors[ALPHA].tobytes()
    assert after.vectors["body"].tolist() == [2.0, 2.0, 3.0], "the weights learn on"
    assert not learns_alpha(after, config)
    # The flag persists, even when updates are harmless.
    harmless = tiny_update("a", body=(1.0, 0.0, 0.0), probabilities=(0.1, 0.9, 0.1, 0.9), version=1)
    later = step(after, [harmless], config)
    assert later.alpha_stopped
    assert later.vectors[ALPHA].tobytes() == prior.vectors[ALPHA].tobytes()
    assert later.vectors["body"].tolist() == [3.0, 2.0, 3.0]


def test_architecture_may_reach_the_limit_of_parameter_free_ops():
    after = step(
        tiny_prior(CONVOLUTIONS), [tiny_update("a", probabilities=SKIPS)], tiny_config(max_parameter_free_edges=2)
    )
    assert not after.alpha_stopped
    assert probabilities_of(after) == pytest.approx([0.62, 0.38, 0.62, 0.38], abs=1e-6)


def test_the_most_parameter_free_kind_of_cell_counts():
    config = smoke_config('space.primitives=["skip_connect", "sep_conv_3x3"]')
    skips_in_reduction_only = np.log(np.array([[[0.1, 0.9]] * 5, [[0.9, 0.1]] * 5]))
    alpha = skips_in_reduction_only.ravel().astype(np.float32)
    genotype = prior_genotype(alpha, config)
    assert [genotype.num_parameter_free(kind) for kind in ("normal", "reduction")] == [0, 4]
    assert most_parameter_free_edges(alpha, config) == 5


def test_an_undecided_architecture_counts_no_parameter_free_edges():
    config = smoke_config()
    assert most_parameter_free_edges(initial_prior(config).vectors[ALPHA], config) == 0


# The order of arrival


@pytest.mark.parametrize("weighting", ["uniform", "examples"])
@pytest.mark.parametrize("rule", RULES)
@settings(max_examples=15, deadline=None)
@given(order=st.permutations(range(6)), power=st.sampled_from([0.3, 1.0]))
def test_any_order_of_arrival_gives_the_same_bits(rule, weighting, order, power):
    if weighting == "examples" and rule in ("median", "trimmed_mean"):
        weighting = "uniform"  # these rules take no weights
    config = tiny_config(rule=rule, clip_norm=0.2, trim_fraction=0.2, weighting=weighting, examples_power=power)
    prior = tiny_prior()
    updates = [
        random_update(prior, f"task-{place}", size=(16, 32)[place % 2], num_examples=1 + 7 * place)
        for place in range(6)
    ]
    expected = step(prior, updates, config).digest()
    assert step(prior, [updates[place] for place in order], config).digest() == expected


@pytest.mark.parametrize("scale", ["tensor", "element"])
def test_any_order_gives_the_same_bits_under_gaussian_weights(scale):
    config = gaussian_config(scale)
    prior = initial_prior(config)
    updates = [random_update(prior, name) for name in "abcde"]
    digests = {step(prior, order, config).digest() for order in (updates, updates[::-1], updates[2:] + updates[:2])}
    assert len(digests) == 1


def test_weights_after_a_step_are_the_float64_mean():
    config = smoke_config("outer.theta_rate=1.0")
    prior = initial_prior(config)
    updates = [random_update(prior, str(number)) for number in range(20)]
    after = step(prior, updates, config)
    mean = np.mean([update.differences["body"].astype(np.float64) for update in updates], axis=0)
    expected = prior.vectors["body"].astype(np.float64) + mean
    assert np.abs(after.vectors["body"] - expected).max() <= np.abs(expected).max() * 2.0**-24 + 1e-9


# What is rejected


def test_a_number_of_examples_beyond_floating_point_is_rejected():
    config = tiny_config(weighting="examples", examples_power=2.0)
    rejection = OuterStep(tiny_prior(), config).absorb(tiny_update("a", num_examples=10**200))
    assert rejection is not None
    assert rejection.reason is RejectionReason.BAD_WEIGHT


def with_body(values):
    return lambda update: replace(update, differences={**update.differences, "body": np.float32(values)})


def without(name):
    return lambda update: replace(
        update, differences={key: value for key, value in update.differences.items() if key != name}
    )


def with_extra(name, size):
    return lambda update: replace(update, differences={**update.differences, name: np.zeros(size, np.float32)})


def with_fields(**fields):
    return lambda update: replace(update, **fields)


def alpha_with(value):
    return with_fields(alpha=np.float32([0.0, value, 0.0, 0.0]))


WRONG = {
    "NaN in the body": (with_body([0.0, math.nan, 0.0]), RejectionReason.NOT_FINITE),
    "infinity in the body": (with_body([math.inf, 0.0, 0.0]), RejectionReason.NOT_FINITE),
    "minus infinity in alpha": (alpha_with(-math.inf), RejectionReason.NOT_FINITE),
    "NaN in alpha": (alpha_with(math.nan), RejectionReason.NOT_FINITE),
    "NaN in the head": (
        lambda update: replace(update, differences={**update.differences, "head/16": np.float32([0.0, math.nan])}),
        RejectionReason.NOT_FINITE,
    ),
    "body too long": (with_body([0.0] * 4), RejectionReason.WRONG_SHAPE),
    "body of two dimensions": (with_body([[0.0, 0.0, 0.0]]), RejectionReason.WRONG_SHAPE),
    "alpha too short": (with_fields(alpha=np.zeros(3, np.float32)), RejectionReason.WRONG_SHAPE),
    "no head": (without("head/16"), RejectionReason.WRONG_SHAPE),
    "no body": (without("body"), RejectionReason.WRONG_SHAPE),
    "two heads": (with_extra("head/32", 2), RejectionReason.WRONG_SHAPE),
    "an extra vector": (with_extra("classifier", 2), RejectionReason.WRONG_SHAPE),
    "a vector of alpha among the weights": (with_extra(ALPHA, 4), RejectionReason.WRONG_SHAPE),
    "an unknown head": (
        lambda update: with_extra("head/64", 2)(without("head/16")(update)),
        RejectionReason.WRONG_SHAPE,
    ),
    "log sigma under map": (with_fields(log_sigma={"body": np.zeros(3, np.float32)}), RejectionReason.WRONG_SHAPE),
    "an older version": (with_fields(version=2), RejectionReason.WRONG_VERSION),
    "a newer version": (with_fields(version=4), RejectionReason.WRONG_VERSION),
    "no examples": (with_fields(num_examples=0), RejectionReason.BAD_WEIGHT),
    "negative examples": (with_fields(num_examples=-10), RejectionReason.BAD_WEIGHT),
    "more examples than a weight can hold": (with_fields(num_examples=10**6), RejectionReason.BAD_WEIGHT),
    "a body beyond the range": (with_body([0.0, -1025.0, 0.0]), RejectionReason.OUT_OF_RANGE),
    "alpha beyond the range": (alpha_with(1e30), RejectionReason.OUT_OF_RANGE),
    "a body beyond the range by its weight": (
        lambda update: with_body([600.0, 0.0, 0.0])(replace(update, num_examples=2 * TINY_EXAMPLES)),
        RejectionReason.OUT_OF_RANGE,
    ),
}


@pytest.mark.parametrize("rule", ["mean", "clipped_mean"])
@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_update_is_rejected_without_a_trace(case, rule):
    spoil, reason = WRONG[case]
    config = tiny_config(weighting="examples", rule=rule)
    prior = tiny_prior(version=3)
    good = [random_update(prior, "a", num_examples=7), random_update(prior, "b", num_examples=12)]
    outer = OuterStep(prior, config)
    assert outer.absorb(good[0]) is None
    rejection = outer.absorb(spoil(random_update(prior, "wrong", num_examples=9)))
    assert rejection is not None
    assert (rejection.task_id, rejection.reason) == ("wrong", reason)
    assert rejection.detail
    assert outer.absorb(good[1]) is None
    assert outer.num_accepted == 2
    assert outer.finish().digest() == step(prior, good, config).digest()


def test_step_raises_on_a_wrong_update_by_name_and_reason():
    with pytest.raises(AdaptationError, match=r"update of late: wrong_version \(starts from 0, the prior is 3\)"):
        step(tiny_prior(version=3), [tiny_update("late", version=0)], tiny_config())


def test_a_round_without_updates_is_an_error():
    with pytest.raises(AdaptationError, match="no update to version 3 was accepted"):
        step(tiny_prior(version=3), [], tiny_config())


def test_a_round_of_rejected_updates_is_an_error():
    outer = OuterStep(tiny_prior(), tiny_config())
    assert outer.absorb(tiny_update("a", num_examples=0)) is not None
    with pytest.raises(AdaptationError, match="no update"):
        outer.finish()


def test_values_at_the_limit_of_the_range_are_accepted():
    after = step(tiny_prior(), [tiny_update("a", body=(1024.0, -1024.0, 0.0))], tiny_config())
    assert after.vectors["body"].tolist() == [1025.0, -1022.0, 3.0]


# Gaussian weights


def gaussian_config(scale, *overrides):
    settings_of_both = [
        f"{loop}.{field}" for loop in ("inner", "adapt") for field in ("weights=gaussian", f"gaussian_scale={scale}")
    ]
    return smoke_config(*settings_of_both, "inner.log_sigma=-1.0", *overrides)


def segments(config, name, scale, size):
    """Elements that share a standard deviation: those of one parameter, or each alone."""
    if scale == "element":
        return [slice(place, place + 1) for place in range(size)]
    parameters = named_vectors(build_supernet(config.space, config.network, seed=0))[name]
    ends = np.cumsum([parameter.numel() for _, parameter in parameters]).tolist()
    return [slice(start, end) for start, end in zip([0, *ends], ends, strict=False)]


@pytest.mark.parametrize("weighting", ["uniform", "examples"])
@pytest.mark.parametrize("scale", ["tensor", "element"])
def test_standard_deviations_follow_the_damped_m_step(scale, weighting):
    rate = 0.25
    config = gaussian_config(scale, f"outer.theta_rate={rate}", f"outer.weighting={weighting}")
    prior = initial_prior(config)
    updates = [
        random_update(prior, "a", num_examples=30, scale=0.3),
        random_update(prior, "b", num_examples=60, scale=0.3),
        random_update(prior, "c", num_examples=15, scale=0.3),
    ]
    weights = [1.0, 2.0, 0.5] if weighting == "examples" else [1.0, 1.0, 1.0]
    after = step(prior, updates, config)
    for name in ("body", "head/16"):
        differences = np.array([update.differences[name] for update in updates], np.float64)
        centre = np.average(differences, axis=0, weights=weights)
        expected = []
        for number, span in enumerate(segments(config, name, scale, centre.size)):
            # sigma*^2 = mean over tasks of s^2 + (m - mu*)^2, the latter averaged over the elements
            per_task = [
                math.exp(2 * float(update.log_sigma[name][number]))
                + float(np.mean((update.differences[name][span].astype(np.float64) - centre[span]) ** 2))
                for update in updates
            ]
            old = math.exp(2 * float(prior.vectors[f"log_sigma/{name}"][number]))
            expected.append((1 - rate) * old + rate * np.average(per_task, weights=weights))
        found = np.exp(2 * after.vectors[f"log_sigma/{name}"].astype(np.float64))
        assert found == pytest.approx(np.array(expected), rel=1e-5)
        assert float(np.abs(found / math.exp(-2.0) - 1).max()) > 0.01, "it moves"


def test_standard_deviations_by_hand():
    config = gaussian_config("element", "outer.theta_rate=1.0", 'space.primitives=["skip_connect", "sep_conv_3x3"]')
    prior = tiny_prior_of_two_kinds(**{"log_sigma/body": [0.0] * 3, "log_sigma/head/16": [0.0] * 2})
    updates = []
    for name, move in (("a", 1.0), ("b", 3.0)):
        update = random_update(prior, name)
        scales = {"body": np.log(np.float32([2.0, 1.0, 1.0])), "head/16": np.zeros(2, np.float32)}
        differences = {"body": np.float32([move, 0.0, 0.0]), "head/16": np.zeros(2, np.float32)}
        updates.append(replace(update, differences=differences, log_sigma=scales))
    after = step(prior, updates, config)
    # s^2 = 4 and m = 1 and 3 around their mean 2: 4 + 1
    assert np.exp(2 * after.vectors["log_sigma/body"]) == pytest.approx([5.0, 1.0, 1.0], rel=1e-6)
    assert after.vectors["body"].tolist() == [1.0 + 2.0, 2.0, 3.0]


def tiny_prior_of_two_kinds(**vectors):
    """Weights as short as those of `tiny_prior`, for the smoke preset with two ops: 2 kinds of 5 edges."""
    return tiny_prior([0.5] * 20, **vectors)


def test_a_standard_deviation_never_vanishes():
    config = gaussian_config("element", "outer.theta_rate=1.0", 'space.primitives=["skip_connect", "sep_conv_3x3"]')
    prior = tiny_prior_of_two_kinds(**{"log_sigma/body": [-5.0] * 3, "log_sigma/head/16": [-5.0] * 2})
    update = replace(
        random_update(prior, "a", scale=0.0),
        log_sigma={"body": np.full(3, -100.0, np.float32), "head/16": np.full(2, -100.0, np.float32)},
    )
    after = step(prior, [update], config)
    assert np.exp(2 * after.vectors["log_sigma/body"].astype(np.float64)) == pytest.approx([1e-12] * 3, rel=1e-4)


@pytest.mark.parametrize(
    ("log_sigma", "reason"),
    [
        ({}, RejectionReason.WRONG_SHAPE),
        ({"body": np.zeros(3, np.float32)}, RejectionReason.WRONG_SHAPE),
        ({"body": np.zeros(3, np.float32), "head/32": np.zeros(2, np.float32)}, RejectionReason.WRONG_SHAPE),
        ({"body": np.zeros(4, np.float32), "head/16": np.zeros(2, np.float32)}, RejectionReason.WRONG_SHAPE),
        ({"body": np.float32([0, math.nan, 0]), "head/16": np.zeros(2, np.float32)}, RejectionReason.NOT_FINITE),
        ({"body": np.float32([0, 2000, 0]), "head/16": np.zeros(2, np.float32)}, RejectionReason.OUT_OF_RANGE),
    ],
    ids=["missing", "no head", "another head", "too long", "NaN", "too large"],
)
def test_wrong_standard_deviations_are_rejected_without_a_trace(log_sigma, reason):
    config = gaussian_config("element", 'space.primitives=["skip_connect", "sep_conv_3x3"]')
    prior = tiny_prior_of_two_kinds(**{"log_sigma/body": [-1.0] * 3, "log_sigma/head/16": [-1.0] * 2})
    good = random_update(prior, "good")
    outer = OuterStep(prior, config)
    rejection = outer.absorb(replace(random_update(prior, "wrong"), log_sigma=log_sigma))
    assert rejection is not None
    assert rejection.reason is reason
    assert outer.absorb(good) is None
    assert outer.finish().digest() == step(prior, [good], config).digest()


@pytest.mark.parametrize("log_sigma", [4.0, 30.0, 500.0], ids=["beyond the range", "beyond int64", "infinite"])
def test_a_variance_beyond_the_range_is_rejected(log_sigma):
    config = gaussian_config("element", 'space.primitives=["skip_connect", "sep_conv_3x3"]')
    prior = tiny_prior_of_two_kinds(**{"log_sigma/body": [-1.0] * 3, "log_sigma/head/16": [-1.0] * 2})
    update = random_update(prior, "wide")
    wide = replace(update, log_sigma={**update.log_sigma, "body": np.float32([-1.0, log_sigma, -1.0])})
    rejection = OuterStep(prior, config).absorb(wide)
    assert rejection is not None
    assert rejection.reason is RejectionReason.OUT_OF_RANGE


def test_a_difference_whose_square_is_beyond_the_range_is_rejected_under_gaussian_weights():
    config = gaussian_config("element", 'space.primitives=["skip_connect", "sep_conv_3x3"]')
    prior = tiny_prior_of_two_kinds(**{"log_sigma/body": [-1.0] * 3, "log_sigma/head/16": [-1.0] * 2})
    update = random_update(prior, "far")
    far = replace(update, differences={**update.differences, "body": np.float32([1000.0, 0.0, 0.0])})
    rejection = OuterStep(prior, config).absorb(far)
    assert rejection is not None
    assert rejection.reason is RejectionReason.OUT_OF_RANGE
