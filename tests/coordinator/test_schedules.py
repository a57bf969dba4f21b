"""Studies that do not wait for every task: what enters is chance, what is made of it is not, and none enters twice."""

import json
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import count

import pytest
import torch
from reference.priors import random_update, result_of, smoke_config
from reference.replay import replayed

from common.artifacts import PriorStore
from common.errors import AdaptationError, CorruptArtifactError, InvalidInputError
from common.intake import DoneTasks
from common.meta.prior import initial_prior
from common.streams import stream as random_stream
from coordinator import study
from coordinator.calls import Outcome
from coordinator.local import LocalExecutor
from coordinator.rounds import task_id_of
from coordinator.streaming import stream

pytestmark = pytest.mark.usefixtures("one_thread", "shared_image_cache")

ROUNDS = 4
BUFFERED = ("network.channels=2", f"rounds={ROUNDS}", "checkpoint.keep_last=10", "schedule.mode=buffered")
QUORUM = (*BUFFERED[:3], "schedule.deadline_s=10", "schedule.quorum_fraction=0.6")
TASKS = 3


class Interrupted(BaseException):
    """The process is gone at this very place."""


def made_up(request, prior):
    """What a task returns, without any training: its own for each task and each version that it begins from."""
    task_id = request.task.task_id
    return result_of(random_update(prior, task_id, seed=prior.version, scale=0.01), task_id)


class ChanceWorkers:
    """Logical workers, each with two tasks at a time, that end in an order drawn by chance, and lose some of them."""

    def __init__(self, seed=0, max_workers=4, loses=lambda key, times: False, answer=made_up):
        self.random = random_stream(seed, "workers")
        self.max_workers = max_workers
        self.loses, self.answer = loses, answer
        self.calls = {}
        self.begun = []
        self.given_up = 0

    @property
    def num_pending(self):
        return len(self.calls)

    def submit(self, key, request, prior):
        assert key not in self.calls and request.version == prior.version
        self.begun.append(key)
        self.calls[key] = (request, prior)

    def poll(self, timeout_s):
        key = sorted(self.calls)[self.random.integers(len(self.calls))]
        request, prior = self.calls.pop(key)
        if self.loses(key, self.begun.count(key)):
            return [Outcome(key, lost="the worker died")]
        return [Outcome(key, self.answer(request, prior))]

    def give_up(self):
        self.given_up += len(self.calls)
        self.calls.clear()

    def stream(self, supply):
        return stream(self, supply, per_worker=2, max_attempts=3)


class Clock:
    def __init__(self):
        self.now_s = 0.0

    def __call__(self):
        return self.now_s


class TimedWorkers:
    """As many workers as tasks, each of which takes the time of its place; what is not awaited never ends."""

    max_workers = 99

    def __init__(self, clock: Clock, seconds_of: Callable[[str], float]):
        self.clock, self.seconds_of = clock, seconds_of
        self.given_up = []

    def run(self, prior, requests, is_over=lambda: False):
        start_s = self.clock.now_s
        waiting = sorted(requests, key=lambda request: self.seconds_of(request.task.task_id))
        while waiting and not is_over():
            if self.clock.now_s < start_s + self.seconds_of(waiting[0].task.task_id):
                self.clock.now_s += 1  # as a pool does, it looks about every second
                continue
            yield made_up(waiting.pop(0), prior)
        self.given_up += [request.task.task_id for request in waiting]


class ListSink:
    def __init__(self):
        self.records = []

    def record(self, version, values):
        self.records.append(values)

    def close(self):
        pass


@pytest.fixture
def store(tmp_path):
    return PriorStore(tmp_path / "run")


def go_on(store, config, executor, sinks=(), **options):
    """Begins a study, or goes on with it."""
    prior = study.resume(store, config) if store.has_config() else study.begin(store, config)
    return study.run(prior, config, executor, store, sinks, options.pop("now_s", time.monotonic), **options)


def check_log(store, config, tasks_each):
    """Whether every task entered once at most, and the log alone makes the same priors."""
    versions = range(1, config.rounds + 1)
    intakes = [store.load_intake(version) for version in versions]
    used = [number for intake in intakes for number in (*intake.rejected, *(n for n, _ in intake.accepted))]
    assert len(set(used)) == len(used), "none twice"
    assert [len(intake.accepted) for intake in intakes] == tasks_each

    def update_of(number, prior):
        return random_update(prior, task_id_of(number, config), seed=prior.version, scale=0.01)

    again = replayed(initial_prior(config), config, intakes, update_of)
    stored = {version: store.load(version).digest() for version in store.versions()}
    assert stored.items() <= {prior.version: prior.digest() for prior in again}.items()
    return intakes


# Buffered mode


def test_one_worker_alone_makes_the_prior_of_synchronous_rounds(tmp_path):
    """By real training: with a buffer of a round's tasks none is ever stale."""
    digests = []
    for number, mode in enumerate(("synchronous", "buffered")):
        config = smoke_config("rounds=2", f"schedule.mode={mode}")
        executor = LocalExecutor(torch.device("cpu"))
        digests.append(go_on(PriorStore(tmp_path / str(number)), config, executor).digest())
    assert digests[0] == digests[1]


@pytest.mark.parametrize("seed", range(3))
def test_workers_of_all_speeds_use_each_task_once_and_the_log_makes_the_same_priors(store, seed):
    config = smoke_config(*BUFFERED)
    workers, sink = ChanceWorkers(seed), ListSink()
    last = go_on(store, config, workers, [sink])
    assert last.version == ROUNDS
    intakes = check_log(store, config, ROUNDS * [TASKS])
    assert intakes[-1].done == DoneTasks(below=ROUNDS * TASKS)
    assert len(workers.begun) == ROUNDS * TASKS and workers.given_up == 0, "nothing is computed in vain"
    stale = [values["staleness_max"] for values in sink.records]
    assert stale == [max(v - began for _, began in intake.accepted) for v, intake in enumerate(intakes)]
    assert max(stale) > 0
    assert all(values["round_seconds"] >= 0 for values in sink.records)


def test_lost_workers_cost_no_task(store):
    config = smoke_config(*BUFFERED)
    workers = ChanceWorkers(1, loses=lambda key, times: times == 1 and key.endswith(("0", "2")))
    go_on(store, config, workers)
    intakes = check_log(store, config, ROUNDS * [TASKS])
    assert intakes[-1].done == DoneTasks(below=ROUNDS * TASKS)
    assert len(workers.begun) > ROUNDS * TASKS


def test_a_task_that_kills_every_worker_ends_the_study_and_what_was_made_is_kept(store):
    config = smoke_config(*BUFFERED)
    last_task = task_id_of(2 * TASKS, config)
    workers = ChanceWorkers(0, loses=lambda key, times: key == last_task)
    with pytest.raises(AdaptationError, match=f"task {last_task} was started 3 times without a result"):
        go_on(store, config, workers)
    made = store.versions()[-1]
    assert 0 < made < ROUNDS
    go_on(store, config, ChanceWorkers(1))
    check_log(store, config, ROUNDS * [TASKS])


def test_an_error_of_a_task_names_it(store):
    def answer(request, prior):
        raise AssertionError("not reached")

    class Failing(ChanceWorkers):
        def poll(self, timeout_s):
            return [Outcome(sorted(self.calls)[0], error=InvalidInputError("no such class"))]

    with pytest.raises(InvalidInputError, match="task round-00000/family-0/task-00: no such class"):
        go_on(store, smoke_config(*BUFFERED), Failing(answer=answer))


@pytest.mark.parametrize("every_rounds", [1, 3])
def test_a_study_that_is_stopped_again_and_again_loses_no_task_and_counts_none_twice(store, every_rounds):
    config = smoke_config(*BUFFERED, f"checkpoint.every_rounds={every_rounds}", "schedule.buffer_size=2")
    for attempt in count():
        seen = []
        limit = 5 + 2 * attempt
        last = go_on(
            store,
            config,
            ChanceWorkers(attempt),
            should_stop=lambda seen=seen, limit=limit: len(seen) >= limit,
            on_result=lambda result, rejection, seen=seen: seen.append(result),
        )
        if last.version == ROUNDS:
            break
    assert attempt > 0
    intakes = check_log(store, config, ROUNDS * [2])
    assert intakes[-1].done.end - len(intakes[-1].done.gaps) == ROUNDS * 2


@pytest.mark.parametrize("step", range(8))
def test_a_study_killed_between_any_two_writes_loses_no_task_and_counts_none_twice(store, monkeypatch, step):
    config = smoke_config(*BUFFERED)
    folder = store.folder
    real_write, left = folder.write, count(-2)  # the configuration, and two files of version 0, are written before

    def write(name, data):
        if next(left) == step + 1:
            raise Interrupted
        real_write(name, data)

    study.begin(store, config)
    monkeypatch.setattr(folder, "write", write)
    with pytest.raises(Interrupted):
        go_on(store, config, ChanceWorkers(step))
    monkeypatch.setattr(folder, "write", real_write)
    go_on(PriorStore(folder.url), config, ChanceWorkers(step + 100))
    intakes = check_log(store, config, ROUNDS * [TASKS])
    assert intakes[-1].done == DoneTasks(below=ROUNDS * TASKS)


def test_resuming_from_an_earlier_version_forgets_what_later_ones_took_in(store):
    config = smoke_config(*BUFFERED)
    go_on(store, config, ChanceWorkers(0))
    prior = study.resume(store, config, version=2)
    with pytest.raises(CorruptArtifactError, match=r"tasks/00000003.json is missing"):
        store.load_intake(3)
    study.run(prior, config, ChanceWorkers(1), store, [], time.monotonic)
    check_log(store, config, ROUNDS * [TASKS])


@pytest.mark.parametrize("damage", [lambda path: path.unlink(), lambda path: path.write_text("{}")])
def test_a_study_whose_log_is_lost_does_not_guess(store, tmp_path, damage):
    config = smoke_config(*BUFFERED)
    seen = []
    go_on(
        store,
        config,
        ChanceWorkers(0),
        should_stop=lambda: bool(seen),
        on_round=lambda prior, metrics: seen.append(prior.version),
    )
    damage(tmp_path / "run" / "tasks" / "00000001.json")
    with pytest.raises(CorruptArtifactError, match=r"tasks/00000001.json"):
        go_on(store, config, ChanceWorkers(0))


def test_bad_updates_are_left_out_and_reported(store):
    def answer(request, prior):
        result = made_up(request, prior)
        is_bad = request.task.task_id.endswith("1")
        return replace(result, update=replace(result.update, num_examples=0)) if is_bad else result

    config = smoke_config(*BUFFERED, "outer.min_accepted_fraction=0.25")
    sink, refused = ListSink(), []
    go_on(
        store,
        config,
        ChanceWorkers(0, answer=answer),
        [sink],
        on_result=lambda result, rejection: refused.append(result.task_id) if rejection else None,
    )
    intakes = check_log(store, config, ROUNDS * [TASKS])
    rejected = [number for intake in intakes for number in intake.rejected]
    assert sorted(task_id_of(number, config) for number in rejected) == sorted(refused)
    assert sum(values["tasks_rejected"] for values in sink.records) == len(refused) > 0


# Quorum and deadline


def test_a_round_goes_on_without_its_straggler_once_the_deadline_has_passed(store):
    config = smoke_config(*QUORUM)
    clock, sink = Clock(), ListSink()
    workers = TimedWorkers(clock, lambda task_id: 1e9 if task_id.endswith("1") else 2.0)
    go_on(store, config, workers, [sink], now_s=clock)
    intakes = check_log(store, config, ROUNDS * [2])
    assert intakes[1].accepted == ((3, 1), (5, 1))
    assert workers.given_up == [f"round-{version:05d}/family-0/task-01" for version in range(ROUNDS)]
    assert [values["tasks_late"] for values in sink.records] == ROUNDS * [1]
    assert [values["round_seconds"] for values in sink.records] == ROUNDS * [10.0]


def test_without_a_quorum_the_deadline_does_not_count(store):
    config = smoke_config(*QUORUM)
    clock, sink = Clock(), ListSink()
    seconds = {"0": 1.0, "1": 25.0, "2": 1e9}
    go_on(store, config, TimedWorkers(clock, lambda task_id: seconds[task_id[-1]]), [sink], now_s=clock)
    check_log(store, config, ROUNDS * [2])
    assert [values["round_seconds"] for values in sink.records] == ROUNDS * [25.0]


def test_tasks_that_are_all_in_time_make_the_prior_of_a_study_without_deadline(tmp_path):
    clock = Clock()
    digests = set()
    for number, overrides in enumerate((QUORUM, QUORUM[:3])):
        folder = PriorStore(tmp_path / str(number))
        workers = TimedWorkers(clock, lambda task_id: 1.0 + int(task_id[-1]))
        digests.add(go_on(folder, smoke_config(*overrides), workers, now_s=clock).digest())
    assert len(digests) == 1
    assert not (tmp_path / "1" / "tasks").exists(), "where nothing is left to chance there is nothing to write down"


def test_a_straggler_that_comes_just_before_the_end_counts(store):
    config = smoke_config(*QUORUM)
    clock = Clock()
    seconds = {"0": 1.0, "1": 10.0, "2": 10.0}
    go_on(store, config, TimedWorkers(clock, lambda task_id: seconds[task_id[-1]]), now_s=clock)
    # At the tenth second one comes, with which there is a quorum, and the deadline has passed.
    check_log(store, config, ROUNDS * [2])


def test_a_round_that_loses_results_is_an_error_although_it_has_a_quorum(store):
    class Losing(TimedWorkers):
        def run(self, prior, requests, is_over=lambda: False):
            yield from list(super().run(prior, requests, is_over))[1:]

    clock = Clock()
    with pytest.raises(AdaptationError, match="after version 0 ended without all of its results"):
        go_on(store, smoke_config(*QUORUM), Losing(clock, lambda task_id: 1.0), now_s=clock)


def test_the_log_is_a_file_of_json_for_each_version(store, tmp_path):
    go_on(store, smoke_config(*BUFFERED, "rounds=1"), ChanceWorkers(0, max_workers=1))
    values = json.loads((tmp_path / "run" / "tasks" / "00000001.json").read_text("utf-8"))
    assert values == {"accepted": [[0, 0], [1, 0], [2, 0]], "rejected": [], "done": {"below": 3, "above": []}}
