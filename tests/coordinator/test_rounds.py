"""A round as values: the plan is a pure function, and results may come in any order, twice, or wrong."""

import math
from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference.priors import random_update, result_of, results_for, smoke_config

from common.errors import AdaptationError
from common.messages import AdaptRequest, PartialSum, PartialSumRequest, Rejection, RejectionReason, statistics_of
from common.meta.prior import ALPHA, initial_prior
from common.meta.sums import UpdateSums
from common.telemetry import FEW_SHOT_METRICS, ROUND_METRICS, metric_name
from coordinator.outer import step
from coordinator.rounds import Round, architecture_metrics, bundled, plan, rejected_by
from coordinator.study import load_catalogs
from workers.data.splits import classes_of

TWO_FAMILIES = (
    "network.heads.32=4",
    'families=[{data={source="digits", unseen_fraction=0.5}, image_size=16, num_ways=3, train_per_class=10,'
    ' test_per_class=10, tasks_per_round=3}, {data={source="digits", unseen_fraction=0.3, split_seed=1},'
    " image_size=32, num_ways=2, train_per_class=5, test_per_class=5, tasks_per_round=2}]",
)


@pytest.fixture(scope="module")
def config(shared_image_cache):
    return smoke_config(*TWO_FAMILIES)


@pytest.fixture(scope="module")
def catalogs(config):
    return load_catalogs(config)


@pytest.fixture(scope="module")
def prior(config):
    return initial_prior(config)


@pytest.fixture(scope="module")
def round_plan(prior, config, catalogs):
    return plan(prior, config, catalogs)


def digest_of(prior, round_plan, config, results):
    running = Round(prior, round_plan, config)
    for result in results:
        assert running.absorb(result) is None
    return running.finish()[0].digest()


# The plan


def test_a_plan_is_a_pure_function(prior, config, catalogs, round_plan):
    assert plan(prior, config, catalogs) == round_plan


def test_a_plan_depends_on_the_version_and_the_seed_but_not_on_the_weights(prior, config, catalogs, round_plan):
    other_weights = replace(prior, vectors={**prior.vectors, "body": prior.vectors["body"] + 1})
    assert plan(other_weights, config, catalogs) == round_plan
    drawn = [request.task.classes for request in round_plan.requests]
    for changed in (
        plan(replace(prior, version=1), config, catalogs),
        plan(prior, config.model_copy(update={"seed": 1}), catalogs),
    ):
        assert [request.task.classes for request in changed.requests] != drawn


def test_a_plan_has_the_tasks_of_every_family_sorted_by_id(prior, config, catalogs):
    tasks = [request.task for request in plan(replace(prior, version=7), config, catalogs).requests]
    assert [task.task_id for task in tasks] == [
        "round-00007/family-0/task-00",
        "round-00007/family-0/task-01",
        "round-00007/family-0/task-02",
        "round-00007/family-1/task-00",
        "round-00007/family-1/task-01",
    ]
    assert [task.image_size for task in tasks] == [16, 16, 16, 32, 32]
    assert [len(task.classes) for task in tasks] == [3, 3, 3, 2, 2]
    assert [(task.train_per_class, task.test_per_class) for task in tasks] == [(10, 10)] * 3 + [(5, 5)] * 2
    assert len({task.seed for task in tasks}) == 5


def test_requests_are_sorted_by_id_as_text_even_with_a_hundred_tasks():
    config = smoke_config("families.0.tasks_per_round=101")
    ids = [request.task.task_id for request in plan(initial_prior(config), config, load_catalogs(config)).requests]
    assert ids == sorted(ids)
    assert len(set(ids)) == 101


def test_plans_use_the_classes_of_meta_training_and_in_time_all_of_them(prior, config, catalogs):
    used = [set(), set()]
    for version in range(20):
        for request in plan(replace(prior, version=version), config, catalogs).requests:
            used[int(request.task.image_size == 32)] |= set(request.task.classes)
    for number, (family, arrays) in enumerate(zip(config.families, catalogs, strict=True)):
        unseen = {arrays.class_names[index] for index in classes_of(arrays, "unseen", family.data)}
        assert len(unseen) == (5, 3)[number]
        assert used[number] == set(arrays.class_names) - unseen


def test_requests_carry_the_study_and_the_version(prior, config, catalogs):
    for request in plan(replace(prior, version=2), config, catalogs).requests:
        assert (request.version, request.study_seed) == (2, config.seed)
        assert (request.space, request.network, request.inner) == (config.space, config.network, config.inner)
        assert request.returns_update
        assert request.eval_steps == ()


def test_requests_carry_the_temperature_of_the_prior(prior, config, catalogs):
    requests = plan(replace(prior, tau=0.875), config, catalogs).requests
    assert {request.tau for request in requests} == {0.875}


def test_relaxation_turns_hard_at_its_round(catalogs):
    config = smoke_config(*TWO_FAMILIES, "relaxation.kind=softmax", "relaxation.hard_after_round=2")
    prior = initial_prior(config)
    kinds = [
        {request.relaxation for request in plan(replace(prior, version=version), config, catalogs).requests}
        for version in range(4)
    ]
    assert kinds == [{"softmax"}, {"softmax"}, {"straight_through"}, {"straight_through"}]


def test_a_path_per_task_is_one_genotype_drawn_from_the_prior_for_each_task(catalogs):
    options = ("relaxation.hard_after_round=1", "relaxation.hard_kind=single_path")
    config = smoke_config(*TWO_FAMILIES, *options, "relaxation.path_per=task")
    prior = initial_prior(config)
    hard = replace(prior, version=1)
    assert {request.genotype for request in plan(prior, config, catalogs).requests} == {None}
    drawn = [request.genotype for request in plan(hard, config, catalogs).requests]
    assert len({genotype.to_json() for genotype in drawn}) == len(drawn)
    assert drawn == [request.genotype for request in plan(hard, config, catalogs).requests]
    per_step = smoke_config(*TWO_FAMILIES, *options)
    assert {request.genotype for request in plan(hard, per_step, catalogs).requests} == {None}
    # A prior that is sure draws what it is sure of.
    space = config.space
    sure = np.full((len(space.cell_kinds), space.topology.num_edges, len(space.ops)), -30.0, np.float32)
    sure[:, :, space.ops.index("sep_conv_3x3")] = 0.0
    sure[:, 2, :] = -30.0  # the second node's first source
    sure[:, 2, space.ops.index("none")] = 0.0
    certain = replace(hard, vectors={**hard.vectors, "alpha": sure.reshape(-1)})
    for request in plan(certain, config, catalogs).requests:
        for nodes in request.genotype.cells.values():
            assert [[(edge.source, edge.primitive) for edge in node] for node in nodes] == [
                [(0, "sep_conv_3x3"), (1, "sep_conv_3x3")],
                [(1, "sep_conv_3x3"), (2, "sep_conv_3x3")],
            ]


def test_requests_say_whether_the_architecture_learns(catalogs):
    config = smoke_config(*TWO_FAMILIES, "outer.alpha_warmup_rounds=1")
    prior = initial_prior(config)

    def learns(start):
        return {request.learns_alpha for request in plan(start, config, catalogs).requests}

    assert learns(prior) == {False}
    assert learns(replace(prior, version=1)) == {True}
    assert learns(replace(prior, version=1, alpha_stopped=True)) == {False}


# Bundles


@pytest.mark.parametrize(
    ("most", "num_workers", "sizes"),
    [
        (4, 1, [3, 2]),
        (2, 1, [2, 2, 1]),
        (4, 2, [2, 2, 1]),
        (4, 3, [1] * 5),  # each bundle more than one would leave a worker with one bundle, or none
        (1, 1, [1] * 5),
        (100, 0, [3, 2]),  # none runs yet
    ],
)
def test_bundles_are_as_large_as_wanted_but_leave_two_for_each_worker(
    prior, round_plan, config, most, num_workers, sizes
):
    cluster = config.cluster.model_copy(update={"tasks_per_partial_sum": most})
    config = config.model_copy(update={"cluster": cluster})
    bundles = bundled(round_plan.requests, config, num_workers)
    assert [len(bundle.task_ids) for bundle in bundles] == sizes
    assert all(isinstance(bundle, AdaptRequest) == (len(bundle.task_ids) == 1) for bundle in bundles)
    handed_out = [
        request
        for bundle in bundles
        for request in (bundle.requests if isinstance(bundle, PartialSumRequest) else [bundle])
    ]
    assert handed_out == list(round_plan.requests)


@pytest.mark.parametrize("rule", ["median", "trimmed_mean"])
def test_robust_rules_see_every_update(round_plan, rule):
    config = smoke_config(*TWO_FAMILIES, f"outer.rule={rule}")
    assert bundled(round_plan.requests, config, 1) == round_plan.requests


# Results


def partial_sum(prior, config, results):
    """What a worker makes of the tasks that have these results."""
    sums = UpdateSums(prior, config)
    rejections = {result.task_id: sums.absorb(result.update) for result in results}
    statistics = {result.task_id: statistics_of(result) for result in results if rejections[result.task_id] is None}
    refused = tuple(rejection for rejection in rejections.values() if rejection is not None)
    return PartialSum(prior.version, statistics, refused, sums.sums())


@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_partial_sums_make_the_same_prior_and_metrics_as_results_one_by_one(prior, round_plan, config, data):
    results = results_for(prior, round_plan.requests)
    results[1] = spoilt(results[1])
    one_by_one, in_parts = Round(prior, round_plan, config), Round(prior, round_plan, config)
    for result in results:
        one_by_one.absorb(result)
    order = data.draw(st.permutations(results))
    size = data.draw(st.integers(1, 5))
    for start in range(0, len(order), size):
        assert in_parts.absorb(partial_sum(prior, config, order[start : start + size])) is None
    assert in_parts.is_complete
    (following, metrics), (expected, expected_metrics) = in_parts.finish(), one_by_one.finish()
    assert following.digest() == expected.digest()
    assert metrics == expected_metrics
    assert in_parts.rejections == one_by_one.rejections


def test_what_a_partial_sum_left_out_is_told(prior, round_plan, config):
    results = results_for(prior, round_plan.requests)
    partial = partial_sum(prior, config, [results[0], spoilt(results[1])])
    running = Round(prior, round_plan, config)
    (left_out,) = rejected_by(partial, running.absorb(partial))
    assert (left_out.task_id, left_out.reason) == (results[1].task_id, RejectionReason.NOT_FINITE)
    assert running.rejections == [left_out]
    assert rejected_by(results[2], None) == ()


@pytest.mark.parametrize("case", ["one again", "twice the same", "another round", "another version"])
def test_a_partial_sum_that_is_not_as_planned_is_rejected_as_a_whole(prior, round_plan, config, case):
    results = results_for(prior, round_plan.requests)
    running = Round(prior, round_plan, config)
    assert running.absorb(results[0]) is None
    partial = partial_sum(prior, config, results[1:3])
    foreign = result_of(random_update(prior, "round-00001/a"), "round-00001/a")
    twice = replace(
        partial, rejections=(Rejection(results[2].task_id, RejectionReason.NOT_FINITE, "and yet it is summed"),)
    )
    wrong, reason, comes_again = {
        "one again": (partial_sum(prior, config, results[:3]), RejectionReason.UNEXPECTED_TASK, True),
        "twice the same": (twice, RejectionReason.UNEXPECTED_TASK, True),
        "another round": (
            partial_sum(prior, config, [results[1], foreign]),
            RejectionReason.UNEXPECTED_TASK,
            True,
        ),
        "another version": (replace(partial, version=8), RejectionReason.WRONG_VERSION, False),
    }[case]
    rejection = running.absorb(wrong)
    assert rejection is not None and rejection.reason is reason
    assert rejection.task_id == f"{min(wrong.task_ids)} to {max(wrong.task_ids)}"
    assert running.rejections == [rejection]
    counted = results if comes_again else [results[0], *results[3:]]
    for result in counted[1:]:
        assert running.absorb(result) is None
    assert running.is_complete
    assert running.finish()[0].digest() == step(prior, [result.update for result in counted], config).digest()


def test_results_in_any_order_make_the_same_prior_and_metrics(prior, round_plan, config):
    # Losses whose floating point sum depends on the order of the terms.
    results = [
        replace(result, train_losses=(loss, 1.0))
        for loss, result in zip([1e16, 1.0, -1e16, 0.3, 1.0], results_for(prior, round_plan.requests), strict=True)
    ]
    outcomes = set()
    for order in permutations(results[:4]):
        running = Round(prior, round_plan, config)
        for result in [results[4], *order]:
            assert running.absorb(result) is None
        following, metrics = running.finish()
        outcomes.add((following.digest(), tuple(sorted(metrics.items()))))
    assert len(outcomes) == 1


@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_a_round_steps_as_the_outer_step_does_in_any_order(prior, round_plan, config, data):
    results = results_for(prior, round_plan.requests)
    order = data.draw(st.permutations(results))
    expected = step(prior, [result.update for result in results], config).digest()
    assert digest_of(prior, round_plan, config, order) == expected


def test_a_round_is_complete_when_every_task_has_come_back(prior, round_plan, config):
    running = Round(prior, round_plan, config)
    for number, result in enumerate(results_for(prior, round_plan.requests)):
        assert not running.is_complete
        # A rejected result has come back too.
        running.absorb(replace(result, update=None) if number == 2 else result)
    assert running.is_complete


def unexpected(prior, round_plan):
    first = results_for(prior, round_plan.requests)[0]
    second_id = round_plan.requests[1].task.task_id
    return {
        "a duplicate": first,
        "a duplicate with other numbers": results_for(prior, round_plan.requests, seed=9)[0],
        "a task of another round": result_of(
            random_update(prior, "round-00001/family-0/task-00"), "round-00001/family-0/task-00"
        ),
        "no update": result_of(None, second_id),
        "the update of another task": result_of(first.update, second_id),
    }


@pytest.mark.parametrize(
    "case",
    [
        "a duplicate",
        "a duplicate with other numbers",
        "a task of another round",
        "no update",
        "the update of another task",
    ],
)
def test_unexpected_results_are_rejected_without_a_trace(prior, round_plan, config, case):
    results = results_for(prior, round_plan.requests)
    wrong = unexpected(prior, round_plan)[case]
    running = Round(prior, round_plan, config)
    assert running.absorb(results[0]) is None
    rejection = running.absorb(wrong)
    assert rejection is not None
    assert (rejection.task_id, rejection.reason) == (wrong.task_id, RejectionReason.UNEXPECTED_TASK)
    spoilt = {wrong.task_id} if "update" in case else set()
    rest = [result for result in results[1:] if result.task_id not in spoilt]
    for result in rest:
        assert running.absorb(result) is None
    following, metrics = running.finish()
    counted = [result.update for result in [results[0], *rest]]
    assert following.digest() == step(prior, counted, config).digest()
    assert (metrics["tasks_accepted"], metrics["tasks_rejected"]) == (len(counted), 1)
    assert running.rejections == [rejection]


def test_a_result_whose_update_was_rejected_cannot_be_sent_again(prior, round_plan, config):
    good = results_for(prior, round_plan.requests)[0]
    running = Round(prior, round_plan, config)
    stale = running.absorb(replace(good, update=replace(good.update, version=4)))
    assert stale is not None
    assert stale.reason is RejectionReason.WRONG_VERSION
    again = running.absorb(good)
    assert again is not None
    assert again.reason is RejectionReason.UNEXPECTED_TASK


def spoilt(result):
    body = result.update.differences["body"].copy()
    body[0] = math.nan
    return replace(result, update=replace(result.update, differences={**result.update.differences, "body": body}))


@pytest.mark.parametrize(
    ("fraction", "num_bad", "fails"), [(0.5, 2, False), (0.5, 3, True), (1.0, 1, True), (0.0, 4, False), (0.0, 5, True)]
)
def test_a_round_needs_its_share_of_accepted_updates(prior, round_plan, fraction, num_bad, fails):
    config = smoke_config(*TWO_FAMILIES, f"outer.min_accepted_fraction={fraction}")
    running = Round(prior, round_plan, config)
    for number, result in enumerate(results_for(prior, round_plan.requests)):
        running.absorb(spoilt(result) if number < num_bad else result)
    assert running.is_complete
    if fails:
        with pytest.raises(AdaptationError) as error:
            running.finish()
        message = str(error.value)
        assert f"{5 - num_bad} of 5 updates to version 0 are acceptable" in message
        for request in round_plan.requests[:num_bad]:
            assert f"{request.task.task_id}: not_finite (body has NaN or infinite values)" in message
    else:
        following, metrics = running.finish()
        assert following.version == 1
        assert (metrics["tasks_accepted"], metrics["tasks_rejected"]) == (5 - num_bad, num_bad)


def test_a_round_leaves_its_prior_unchanged(prior, round_plan, config):
    before = prior.digest()
    digest_of(prior, round_plan, config, results_for(prior, round_plan.requests))
    assert prior.digest() == before


# Metrics


def test_metrics_are_all_catalogued_and_complete_but_for_the_clock(prior, round_plan, config):
    running = Round(prior, round_plan, config)
    for result in results_for(prior, round_plan.requests):
        running.absorb(result)
    _, metrics = running.finish()
    assert {metric_name(name) for name in metrics} == set(ROUND_METRICS) - {"round_seconds"} - set(FEW_SHOT_METRICS)
    assert all(math.isfinite(value) for value in metrics.values())


def test_metrics_are_means_over_accepted_tasks(prior, round_plan, config):
    results = results_for(prior, round_plan.requests)
    running = Round(prior, round_plan, config)
    for number, result in enumerate(results):
        running.absorb(spoilt(result) if number == 4 else result)
    following, metrics = running.finish()
    # losses of task number n: 3 + n, then 1 + n; n = 0 to 3
    assert metrics["train_loss_first"] == 4.5
    assert metrics["train_loss_last"] == 2.5
    assert metrics["images_per_second"] == 100.0
    assert metrics["tau"] == prior.tau
    assert metrics["prior_version"] == following.version == 1


def test_update_norm_is_the_length_of_the_move_of_all_weights(prior, round_plan, config):
    running = Round(prior, round_plan, config)
    for result in results_for(prior, round_plan.requests):
        running.absorb(result)
    following, metrics = running.finish()
    moves = [
        following.vectors[name].astype(np.float64) - prior.vectors[name] for name in ("body", "head/16", "head/32")
    ]
    assert metrics["update_norm"] == pytest.approx(float(np.linalg.norm(np.concatenate(moves))), rel=1e-12)
    assert metrics["update_norm"] > 0


def test_architecture_metrics_by_hand():
    config = smoke_config('space.primitives=["skip_connect", "sep_conv_3x3"]')
    prior = initial_prior(config)
    # normal: 4 edges prefer the convolution, 1 the skip connection; reduction: undecided
    normal = [[0.1, 0.9]] * 4 + [[0.95, 0.05]]
    reduction = [[0.5, 0.5]] * 5
    alpha = np.log(np.array([normal, reduction])).ravel().astype(np.float32)
    metrics = architecture_metrics(replace(prior, vectors={**prior.vectors, ALPHA: alpha}), config)
    assert metrics["strongest_op_edges/normal/sep_conv_3x3"] == 4
    assert metrics["strongest_op_edges/normal/skip_connect"] == 1
    entropies = [-p * math.log(p) - (1 - p) * math.log(1 - p) for p in (0.9, 0.9, 0.9, 0.9, 0.95)]
    assert metrics["alpha_entropy/normal"] == pytest.approx(sum(entropies) / 5, rel=1e-5)
    assert metrics["alpha_entropy/reduction"] == pytest.approx(math.log(2), rel=1e-6)
    # node 0 keeps two convolutions; node 1 a convolution and the skip connection from node 0
    assert metrics["parameter_free_ops/normal"] == 1
    assert sum(metrics[f"strongest_op_edges/reduction/{op}"] for op in config.space.ops) == 5
