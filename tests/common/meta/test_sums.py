"""Partial sums of updates: to the outer step the same as the updates one by one."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference.priors import random_update, smoke_config, tiny_config, tiny_prior

from common.messages import PartialSum, Rejection, RejectionReason, TaskStatistics
from common.meta.prior import initial_prior
from common.meta.sums import UpdateSums, merged
from coordinator.outer import OuterStep

TASKS = 9
STATISTICS = TaskStatistics(2.0, 1.0, 100.0)
GAUSSIAN = [f"{loop}.weights=gaussian" for loop in ("inner", "adapt")]
CONFIGS = {
    "mean": tiny_config(weighting="examples", examples_power=0.7),
    "clipped": tiny_config(rule="clipped_mean", clip_norm=0.2, weighting="examples"),
    "logits": tiny_config(alpha_average="logits", weighting="examples"),
    "gaussian": smoke_config(*GAUSSIAN, "inner.log_sigma=-1.0", "outer.weighting=examples"),
    "users": tiny_config(theta_average="users", weighting="examples"),
    "uses": tiny_config(theta_average="uses", rule="clipped_mean", clip_norm=0.2),
    "gaussian per element": smoke_config(
        *GAUSSIAN,
        *(f"{loop}.gaussian_scale=element" for loop in ("inner", "adapt")),
        "inner.log_sigma=-1.0",
        "outer.rule=clipped_mean",
        "outer.clip_norm=0.2",
    ),
}


def prior_and_updates(name):
    """Updates of all image sizes and several weights; one holds NaN, one is of another version."""
    config = CONFIGS[name]
    prior = initial_prior(config) if "gaussian" in name or name.startswith("use") else tiny_prior()
    sizes = (16,) if "gaussian" in name else (16, 32)
    updates = [
        random_update(prior, f"task-{place}", size=sizes[place % len(sizes)], num_examples=1 + 7 * place)
        for place in range(TASKS)
    ]
    if name.startswith("use"):
        shares = np.random.default_rng(1).integers(0, 3, (TASKS, prior.vectors["alpha"].size)) / np.float32(2)
        updates = [
            replace(update, use=None if place == 2 else shares[place].astype(np.float32))
            for place, update in enumerate(updates)
        ]
    body = updates[4].differences["body"].copy()
    body[1] = np.nan
    updates[4] = replace(updates[4], differences={**updates[4].differences, "body": body})
    updates[6] = replace(updates[6], version=9)
    return prior, config, updates


def partial_sum(prior, config, updates):
    """As a worker makes it."""
    sums = UpdateSums(prior, config)
    found = {update.task_id: sums.absorb(update) for update in updates}
    rejections = tuple(rejection for rejection in found.values() if rejection is not None)
    statistics = {task_id: STATISTICS for task_id, rejection in found.items() if rejection is None}
    return PartialSum(prior.version, statistics, rejections, sums.sums())


def test_use_must_be_shares_of_the_steps_one_per_op():
    prior, config, updates = prior_and_updates("uses")
    for use, reason in (
        (np.zeros(3, np.float32), RejectionReason.WRONG_SHAPE),
        (np.full(prior.vectors["alpha"].size, 1.5, np.float32), RejectionReason.OUT_OF_RANGE),
        (np.full(prior.vectors["alpha"].size, np.nan, np.float32), RejectionReason.OUT_OF_RANGE),
        (np.full(prior.vectors["alpha"].size, -0.1, np.float32), RejectionReason.OUT_OF_RANGE),
    ):
        rejection = UpdateSums(prior, config).absorb(replace(updates[0], use=use))
        assert rejection is not None
        assert rejection.reason == reason


@pytest.mark.untraced
@pytest.mark.parametrize("name", CONFIGS)
@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_any_partial_sums_in_any_order_make_the_same_prior_as_task_by_task(name, data):
    prior, config, updates = prior_and_updates(name)
    one_by_one = OuterStep(prior, config)
    rejections = [one_by_one.absorb(update) for update in updates]
    assert sum(rejection is not None for rejection in rejections) == 2
    order = data.draw(st.permutations(updates))
    cuts = data.draw(st.sets(st.integers(1, TASKS - 1)))
    ends = [0, *sorted(cuts), TASKS]
    outer = OuterStep(prior, config)
    told = []
    for start, end in pairwise(ends):
        if end - start == 1:
            told.append(outer.absorb(order[start]))
            continue
        partial = partial_sum(prior, config, order[start:end])
        assert outer.merge(partial) is None
        told.extend(partial.rejections)
    assert outer.num_accepted == one_by_one.num_accepted == TASKS - 2
    assert outer.finish().digest() == one_by_one.finish().digest()
    assert {rejection for rejection in told if rejection} == {rejection for rejection in rejections if rejection}


@pytest.mark.untraced
@pytest.mark.parametrize("name", CONFIGS)
@settings(max_examples=4, deadline=None)
@given(data=st.data())
def test_merged_partial_sums_are_the_partial_sum_of_all_their_tasks(name, data):
    prior, config, updates = prior_and_updates(name)
    order = data.draw(st.permutations(updates))
    cuts = data.draw(st.sets(st.integers(1, TASKS - 1), min_size=1))
    parts = [partial_sum(prior, config, order[start:end]) for start, end in pairwise([0, *sorted(cuts), TASKS])]
    before = [{key: part.sums[key].totals.tobytes() for key in part.sums} for part in parts]
    found, whole = merged(parts), partial_sum(prior, config, updates)
    assert (found.version, found.statistics) == (whole.version, whole.statistics)
    assert set(found.rejections) == set(whole.rejections)
    assert found.sums.keys() == whole.sums.keys()
    for key, summed in whole.sums.items():
        assert found.sums[key].totals.tobytes() == summed.totals.tobytes()
        assert found.sums[key].weight_units == summed.weight_units
        assert found.sums[key].num_vectors == summed.num_vectors
    assert [{key: part.sums[key].totals.tobytes() for key in part.sums} for part in parts] == before


def test_partial_sums_of_two_versions_or_of_one_task_twice_are_not_merged():
    prior, config, updates = prior_and_updates("mean")
    part = partial_sum(prior, config, updates[:2])
    with pytest.raises(AssertionError, match="versions"):
        merged([part, replace(partial_sum(prior, config, updates[2:4]), version=1)])
    with pytest.raises(AssertionError, match="two of the sums"):
        merged([part, partial_sum(prior, config, updates[1:4])])


def test_a_partial_sum_of_nothing_but_rejected_updates_changes_nothing():
    prior, config, updates = prior_and_updates("mean")
    outer, expected = OuterStep(prior, config), OuterStep(prior, config)
    for step in (outer, expected):
        assert step.absorb(updates[0]) is None
    partial = partial_sum(prior, config, [updates[4], updates[6]])
    assert partial.statistics == partial.sums == {}
    assert outer.merge(partial) is None
    assert outer.num_accepted == 1
    assert outer.finish().digest() == expected.finish().digest()


def of_another_version(partial):
    return replace(partial, version=5)


def with_a_longer_body(partial):
    body = partial.sums["body"]
    return replace(partial, sums={**partial.sums, "body": replace(body, totals=np.zeros(4, np.int64))})


def with_an_unknown_vector(partial):
    return replace(partial, sums={**partial.sums, "head/64": partial.sums["body"]})


def with_second_moments(partial):
    return replace(partial, sums={**partial.sums, "second_moment/body": partial.sums["body"]})


@pytest.mark.parametrize(
    ("spoil", "reason", "detail"),
    [
        (of_another_version, RejectionReason.WRONG_VERSION, "starts from 5, the prior is 0"),
        (with_a_longer_body, RejectionReason.WRONG_SHAPE, "the sum of body has shape (4,), expected (3,)"),
        (
            with_an_unknown_vector,
            RejectionReason.WRONG_SHAPE,
            "the sum of head/64 has shape (3,), expected no such vector",
        ),
        (
            with_second_moments,
            RejectionReason.WRONG_SHAPE,
            "the sum of second_moment/body has shape (3,), expected no such vector",
        ),
    ],
)
def test_a_wrong_partial_sum_is_rejected_as_a_whole_without_a_trace(spoil, reason, detail):
    prior, config, updates = prior_and_updates("mean")
    outer, expected = OuterStep(prior, config), OuterStep(prior, config)
    for step in (outer, expected):
        assert step.absorb(updates[0]) is None
    rejection = outer.merge(spoil(partial_sum(prior, config, updates[1:4])))
    assert rejection == Rejection("task-1 to task-3", reason, detail)
    assert outer.num_accepted == 1
    assert outer.finish().digest() == expected.finish().digest()


@pytest.mark.parametrize("rule", ["median", "trimmed_mean"])
def test_updates_are_not_summed_under_robust_rules(rule):
    prior, config = tiny_prior(), tiny_config(rule=rule)
    sums = UpdateSums(prior, config)
    assert sums.absorb(random_update(prior, "a")) is None
    with pytest.raises(AssertionError, match=f"cannot be summed under {rule}"):
        sums.sums()
    partial = partial_sum(prior, tiny_config(), [random_update(prior, "b"), random_update(prior, "c")])
    with pytest.raises(AssertionError, match=f"cannot be summed under {rule}"):
        sums.merge(partial)


def test_logits_too_far_from_the_prior_for_the_sums_are_rejected():
    config = tiny_config(alpha_average="logits", weighting="examples")
    prior = tiny_prior()
    update = random_update(prior, "far", num_examples=1000, scale=0.001)  # weighs 100
    # 10 * 100 is within the range, but the prior's logit is -0.69.
    rejection = UpdateSums(prior, config).absorb(replace(update, alpha=np.float32([10.0, 0.0, 0.0, 0.0])))
    assert rejection is not None
    assert (rejection.reason, rejection.detail) == (
        RejectionReason.OUT_OF_RANGE,
        "alpha is further than 1024 from the prior's",
    )
