"""Buffered asynchronous aggregation: exact, whatever comes first; and every task counts once, whatever is lost."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference.priors import (
    TINY_EXAMPLES,
    few_shot_prior,
    few_shot_results,
    random_meta_gradient,
    random_update,
    result_of,
    results_for,
    smoke_config,
    tiny_config,
    tiny_prior,
)
from reference.replay import replayed

from common.config import StudyConfig
from common.errors import AdaptationError
from common.intake import DoneTasks
from common.messages import AdaptRequest, MetaGradient, RejectionReason
from common.meta.prior import ALPHA, Prior, initial_prior
from common.streams import stream
from common.tasks import LearningTask
from common.telemetry import FEW_SHOT_METRICS, ROUND_METRICS, metric_name
from coordinator.buffered import BufferedAggregation, TaskUnderWay
from coordinator.rounds import Round, numbers_of, plan, request_of, task_id_of
from coordinator.study import load_catalogs

pytestmark = pytest.mark.usefixtures("one_thread")

ROUNDS = 5


def buffered(config: StudyConfig, **schedule) -> StudyConfig:
    return StudyConfig.model_validate({**config.model_dump(), "schedule": {"mode": "buffered", **schedule}})


def draw_for(config: StudyConfig):
    """Requests without images: what is asked for is not looked at here."""

    def draw(number: int, prior: Prior) -> AdaptRequest:
        (family,) = config.families
        task = LearningTask(
            task_id=task_id_of(number, config),
            data=family.data,
            classes=("a", "b"),
            image_size=family.image_size,
            train_per_class=5,
            test_per_class=5,
            seed=number,
        )
        return AdaptRequest(task, config.space, config.network, config.inner, 0, prior.version, "softmax", prior.tau)

    return draw


def update_of(number: int, prior: Prior, config: StudyConfig):
    """What a task learns: a number of its own for each task and each version that it begins from."""
    task_id = task_id_of(number, config)
    if config.few_shot is not None:
        return random_meta_gradient(prior, task_id, seed=prior.version)
    examples = TINY_EXAMPLES + number % 5
    return random_update(prior, task_id, seed=prior.version, num_examples=examples, scale=0.05)


def results_of(config: StudyConfig, prior: Prior, requests):
    """A made-up result per request, by number."""
    numbers = {task_id_of(number, config): number for number in range(500)}
    return [
        result_of(update_of(numbers[request.task.task_id], prior, config), request.task.task_id) for request in requests
    ]


def aggregation(config, prior=None, **options):
    return BufferedAggregation(tiny_prior() if prior is None else prior, config, draw_for(config), **options)


# Fresh updates


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("outer.rule=clipped_mean", "outer.clip_norm=0.3", "outer.weighting=examples"),
        ("outer.alpha_average=logits",),
        ("outer.rule=median",),
        ("outer.rule=trimmed_mean",),
        ("inner.weights=gaussian", "adapt.weights=gaussian", "inner.log_sigma=-2.0"),
        ("few_shot={}",),
    ],
)
def test_updates_of_the_present_version_make_the_prior_of_a_synchronous_round(overrides):
    config = smoke_config("rounds=2", "outer.theta_rate_end=0.2", *overrides)
    catalogs = load_catalogs(config)
    made_up = few_shot_results if config.few_shot is not None else results_for
    power = 0 if config.outer.rule in ("median", "trimmed_mean") else 0.5
    course = BufferedAggregation(
        initial_prior(config),
        buffered(config, staleness_power=power),
        lambda number, prior: request_of(number, prior, config, catalogs),
    )
    prior = initial_prior(config)
    for _ in range(config.rounds):
        round_plan = plan(prior, config, catalogs)
        running = Round(prior, round_plan, config)
        requests = course.hand_out(config.tasks_per_round)
        assert sorted(requests, key=lambda request: request.task.task_id) == list(round_plan.requests)
        results = made_up(prior, round_plan.requests)
        for result in results:
            assert running.absorb(result) is None
        for result in reversed(results):
            assert not course.is_full
            assert course.absorb(result) is None
        prior, expected = running.finish()
        following, metrics, intake = course.step()
        assert following.digest() == prior.digest()
        assert metrics == expected
        assert intake.accepted == tuple((number, prior.version - 1) for number in numbers_of(prior.version - 1, config))
    assert course.is_over


# Stale updates


def softmax(logits):
    pairs = np.exp(logits.astype(np.float64).reshape(2, 2))
    return (pairs / pairs.sum(axis=1, keepdims=True)).ravel()


def mixed_course(config, order=(0, 1, 2), **schedule):
    """Three updates to version 2 that began at versions 0, 1 and 2; and the priors of these versions."""
    course = aggregation(buffered(config, buffer_size=1, **schedule))
    priors, waiting = [course.prior], []
    for _ in range(2):
        held, used = course.hand_out(2)
        waiting += results_of(config, course.prior, [held])
        course.absorb(*results_of(config, course.prior, [used]))
        course.step()
        priors.append(course.prior)
    waiting += results_of(config, course.prior, course.hand_out(1))
    course._size = 3
    for place in order:
        assert course.absorb(waiting[place]) is None
    return course, priors, [result.update for result in waiting]


def test_an_update_moves_the_present_prior_as_far_as_it_went_and_weighs_less_the_staler_it_is():
    config = tiny_config(theta_rate=0.7, alpha_rate=0.6, weighting="examples")
    course, priors, updates = mixed_course(config)
    following, _, intake = course.step()
    assert intake.accepted == ((0, 0), (2, 1), (4, 2))
    weights = np.array([(u.num_examples / TINY_EXAMPLES) * (3 - number) ** -0.5 for number, u in enumerate(updates)])
    weights /= weights.sum()
    for name in ("body", "head/16"):
        move = sum(w * u.differences[name].astype(np.float64) for w, u in zip(weights, updates, strict=True))
        # The sums hold weights to 2^-20.
        assert following.vectors[name] == pytest.approx(priors[2].vectors[name] + 0.7 * move, abs=1e-6)
    now = softmax(priors[2].vectors[ALPHA])
    moves = [softmax(u.alpha) - softmax(prior.vectors[ALPHA]) for u, prior in zip(updates, priors, strict=True)]
    expected = now + 0.6 * sum(w * move for w, move in zip(weights, moves, strict=True))
    assert softmax(following.vectors[ALPHA]) == pytest.approx(expected, abs=1e-6)


def test_logits_move_by_the_mean_of_the_moves_from_where_each_began():
    config = tiny_config(alpha_average="logits", alpha_rate=1.0)
    course, priors, updates = mixed_course(config)
    following, _, _ = course.step()
    weights = np.array([3**-0.5, 2**-0.5, 1.0])
    weights /= weights.sum()
    move = sum(w * (u.alpha - p.vectors[ALPHA]) for w, u, p in zip(weights, updates, priors, strict=True))
    assert softmax(following.vectors[ALPHA]) == pytest.approx(softmax(priors[2].vectors[ALPHA] + move), abs=1e-6)


def test_an_architecture_that_stale_posteriors_would_push_below_zero_stays_a_distribution():
    config = buffered(tiny_config(alpha_rate=1.0), buffer_size=1, staleness_power=0)
    course = aggregation(config)
    stale, fresh = course.hand_out(2)
    # Both move all they can away from the first op of each edge.
    away = np.log(np.float32([1e-6, 1 - 1e-6, 1e-6, 1 - 1e-6]))
    origin = course.prior
    for request in (fresh, stale):
        update = random_update(origin, request.task.task_id, scale=0.0)
        assert course.absorb(result_of(replace(update, alpha=away), update.task_id)) is None
        course.step()
    alpha = course.prior.vectors[ALPHA]
    assert np.isfinite(alpha).all()
    probabilities = np.exp(alpha.astype(np.float64)).reshape(2, 2)
    assert probabilities.sum(axis=1) == pytest.approx([1, 1], abs=1e-6)
    assert (probabilities[:, 0] < 1e-5).all()


def test_stale_meta_gradients_are_averaged_by_weight():
    config = buffered(tiny_config(few_shot={"sgd": {"lr": 0.5}}), buffer_size=1)
    course = aggregation(config, few_shot_prior(with_moments=False))
    held, used = course.hand_out(2)
    stale = results_of(config, course.prior, [held])[0]
    course.absorb(*results_of(config, course.prior, [used]))
    course.step()
    before = course.prior
    course._size = 2
    fresh = results_of(config, before, course.hand_out(1))[0]
    assert course.absorb(fresh) is None and course.absorb(stale) is None
    following, _, _ = course.step()
    assert isinstance(stale.update, MetaGradient)
    weights = np.array([2**-0.5, 1.0])
    weights /= weights.sum()
    gradient = weights[0] * stale.update.gradients["body"] + weights[1] * fresh.update.gradients["body"]
    assert following.vectors["body"] == pytest.approx(before.vectors["body"] - 0.5 * gradient, abs=1e-6)


@pytest.mark.parametrize(("rule", "power"), [("mean", 0.5), ("clipped_mean", 0.7), ("median", 0)])
def test_the_order_within_a_buffer_changes_nothing(rule, power):
    config = tiny_config(rule=rule, clip_norm=0.1)
    courses = [mixed_course(config, order, staleness_power=power)[0] for order in [(0, 1, 2), (2, 0, 1), (1, 2, 0)]]
    digests = {course.step()[0].digest() for course in courses}
    assert len(digests) == 1


def test_metrics_say_how_stale_a_versions_updates_were():
    course, _, _ = mixed_course(tiny_config())
    _, metrics, _ = course.step()
    assert (metrics["staleness_mean"], metrics["staleness_max"]) == (1.0, 2)
    assert (metrics["tasks_accepted"], metrics["tasks_rejected"], metrics["tasks_stale"]) == (3, 0, 0)
    assert {metric_name(name) for name in metrics} == set(ROUND_METRICS) - {"round_seconds"} - set(FEW_SHOT_METRICS)


def test_an_update_that_is_too_stale_is_refused_and_another_task_takes_its_place():
    config = buffered(tiny_config(rounds=4), buffer_size=1, max_staleness=1)
    course = aggregation(config)
    held, *others = course.hand_out(9)
    assert len(others) == 3, "four versions of one task each"
    stale = results_of(config, course.prior, [held])[0]
    for result in results_of(config, course.prior, others)[:2]:
        course.absorb(result)
        course.step()
    rejection = course.absorb(stale)
    assert rejection.reason is RejectionReason.TOO_STALE
    assert rejection.detail == "began 2 versions ago, schedule.max_staleness is 1"
    assert not course.is_full, "the fault of nobody"
    (replacement,) = course.hand_out(9)
    course.absorb(*results_of(config, course.prior, [replacement]))
    _, metrics, intake = course.step()
    assert (metrics["tasks_rejected"], metrics["tasks_stale"]) == (1, 1)
    assert (intake.accepted, intake.rejected) == (((4, 2),), (0,))
    assert intake.done == DoneTasks(below=3, above=(4,))


# What is handed out


def test_no_more_is_handed_out_than_is_needed_or_allowed():
    config = buffered(tiny_config(rounds=3), buffer_size=2, max_in_flight=4)
    course = aggregation(config)
    assert len(course.hand_out(3)) == 3
    assert len(course.hand_out(3)) == 1, "four at a time"
    assert course.hand_out(3) == ()
    while not course.is_over:
        task = course.under_way[0]
        update = replace(update_of(task.number, course.prior, config), version=task.version)
        assert course.absorb(result_of(update, update.task_id)) is None
        if course.is_full:
            course.step()
        course.hand_out(3)
    assert course.under_way == ()
    assert course.hand_out(9) == ()


def test_an_earlier_end_needs_fewer_tasks():
    config = buffered(tiny_config(rounds=3), buffer_size=2)
    assert len(aggregation(config, target=2).hand_out(99)) == 4
    assert aggregation(config, target=0).is_over


def test_a_task_whose_result_was_lost_begins_again_from_the_latest_version():
    config = buffered(tiny_config(), buffer_size=1)
    course = aggregation(config)
    lost, used = course.hand_out(2)
    course.absorb(*results_of(config, course.prior, [used]))
    course.step()
    again = course.hand_out_again(lost.task.task_id)
    assert again.task == lost.task
    assert (lost.version, again.version) == (0, 1)
    assert course.under_way == (TaskUnderWay(0, 1),)
    course.absorb(*results_of(config, course.prior, [again]))
    _, metrics, intake = course.step()
    assert intake.accepted == ((0, 1),)
    assert metrics["staleness_max"] == 0


def test_a_result_counts_once_and_only_if_it_was_asked_for():
    config = buffered(tiny_config(), buffer_size=2)
    course = aggregation(config)
    (request,) = course.hand_out(1)
    (result,) = results_of(config, course.prior, [request])
    assert course.absorb(result) is None
    assert course.absorb(result).reason is RejectionReason.UNEXPECTED_TASK
    stranger = result_of(random_update(course.prior, task_id_of(7, config)), task_id_of(7, config))
    assert course.absorb(stranger).reason is RejectionReason.UNEXPECTED_TASK
    assert not course.is_full


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda result: replace(result, update=None), RejectionReason.UNEXPECTED_TASK),
        (lambda result: replace(result, update=replace(result.update, version=7)), RejectionReason.WRONG_VERSION),
        (
            lambda result: replace(
                result, update=replace(result.update, alpha=np.full(4, np.nan, np.float32), log_sigma={})
            ),
            RejectionReason.NOT_FINITE,
        ),
    ],
)
def test_bad_updates_are_refused_and_too_many_of_them_fail_the_version(spoil, reason):
    config = buffered(tiny_config(), buffer_size=2)
    course = aggregation(config)
    for number in range(3):
        assert not course.is_full
        request = course.hand_out(1)[0]
        rejection = course.absorb(spoil(results_of(config, course.prior, [request])[0]))
        assert (rejection.task_id, rejection.reason) == (task_id_of(number, config), reason)
    assert course.is_full, "more than half of five would be bad"
    with pytest.raises(AdaptationError, match=f"0 of 3 updates since version 0 are acceptable: .*{reason}"):
        course.step()


# Chance, written down


class Chance:
    """Workers of all speeds, some of which die, and a coordinator that is killed now and then."""

    def __init__(self, config, prior, seed, kills=True):
        self.config, self.first, self.kills = config, prior, kills
        self.random = stream(seed, "chance")
        self.store = [(prior, None)]  # what survives: versions, and what each took in
        self.begun = []

    def run(self):
        while self.store[-1][0].version < self.config.rounds:
            self.live()
        return [prior for prior, _ in self.store], [intake for _, intake in self.store[1:]]

    def live(self):
        """From a start to the end of the study, or to a kill."""
        prior, intake = self.store[-1]
        course = aggregation(self.config, prior, done=DoneTasks() if intake is None else intake.done)
        began = {}
        while not course.is_over:
            for request in course.hand_out(int(self.random.integers(0, 5))):
                began[request.task.task_id] = (request, course.prior)
                self.begun.append(request.task.task_id)
            if began:
                task_id = sorted(began)[self.random.integers(len(began))]
                request, base = began.pop(task_id)
                if self.kills and self.random.random() < 0.1:
                    began[task_id] = (course.hand_out_again(task_id), course.prior)
                    continue
                course.absorb(*results_of(self.config, base, [request]))
            if self.kills and self.random.random() < 0.05:
                return
            if course.is_full:
                following, _, taken = course.step()
                self.store.append((following, taken))
                if self.kills and self.random.random() < 0.1:
                    return


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 4), st.sampled_from([1, 3, 10]))
def test_whatever_is_killed_every_task_counts_at_most_once_and_the_log_makes_the_same_priors(seed, size, limit):
    config = buffered(tiny_config(rounds=ROUNDS, weighting="examples"), buffer_size=size, max_staleness=limit)
    priors, intakes = Chance(config, tiny_prior(), seed).run()
    accepted = [number for intake in intakes for number, _ in intake.accepted]
    rejected = [number for intake in intakes for number in intake.rejected]
    assert len(accepted) == ROUNDS * size
    assert len({*accepted, *rejected}) == len(accepted) + len(rejected), "none twice"
    assert intakes[-1].done == DoneTasks().plus([*accepted, *rejected])
    for version, intake in enumerate(intakes):
        assert all(version - limit <= began <= version for _, began in intake.accepted)
    again = replayed(tiny_prior(), config, intakes, lambda number, prior: update_of(number, prior, config))
    assert [prior.digest() for prior in again] == [prior.digest() for prior in priors]


@settings(max_examples=5, deadline=None)
@given(st.integers(0, 2**32))
def test_where_nothing_is_lost_the_first_tasks_count_and_no_others(seed):
    config = buffered(tiny_config(rounds=ROUNDS), buffer_size=3, max_staleness=100)
    chance = Chance(config, tiny_prior(), seed, kills=False)
    _, intakes = chance.run()
    assert sorted(number for intake in intakes for number, _ in intake.accepted) == list(range(3 * ROUNDS))
    assert intakes[-1].done == DoneTasks(below=3 * ROUNDS)
    assert len(chance.begun) == len(set(chance.begun)) == 3 * ROUNDS


@settings(max_examples=5, deadline=None)
@given(st.integers(0, 2**32))
def test_a_few_shot_study_follows_from_its_log_too_with_adam(seed):
    config = buffered(tiny_config(rounds=ROUNDS, few_shot={}), buffer_size=2)
    priors, intakes = Chance(config, few_shot_prior(), seed).run()
    again = replayed(few_shot_prior(), config, intakes, lambda number, prior: update_of(number, prior, config))
    assert [prior.digest() for prior in again] == [prior.digest() for prior in priors]
