"""A study: interrupted wherever you like, it ends in the same bits; and it never goes on from something wrong."""

import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from reference.priors import results_for, smoke_config

from common.artifacts import PriorStore
from common.errors import AdaptationError, ConflictError, CorruptArtifactError, InvalidInputError, NotFoundError
from common.messages import RejectionReason
from common.meta.prior import initial_prior
from common.streams import stream
from coordinator import study
from coordinator.local import LocalExecutor

ROUNDS = 3
TASKS = 3


@pytest.fixture(scope="module")
def config(shared_image_cache):
    """Every task returns its own update; see `test_partial_sums_end_in_the_same_bits` for the rest."""
    return smoke_config("checkpoint.keep_last=10", "cluster.tasks_per_partial_sum=1")


@pytest.fixture(scope="module")
def executor():
    return LocalExecutor(torch.device("cpu"))


@pytest.fixture(scope="module")
def undisturbed(config, tmp_path_factory):
    """Digests of the versions 0 to 3 of a study that ran in one go."""
    store = PriorStore(tmp_path_factory.mktemp("undisturbed"))
    last = study.run(study.begin(store, config), config, LocalExecutor(torch.device("cpu")), store, [], time.monotonic)
    digests = [store.load(version).digest() for version in range(ROUNDS + 1)]
    assert last.digest() == digests[-1]
    return digests


@pytest.fixture
def store(tmp_path):
    return PriorStore(tmp_path / "run")


class MadeUpExecutor:
    """Yields made-up results, optionally spoilt; counts what it is asked for and notes when it is closed early."""

    max_workers = TASKS  # so that every task has a result of its own

    def __init__(self, spoil=lambda result: result):
        self.spoil = spoil
        self.asked = []
        self.closed_early = 0

    def run(self, prior, requests):
        self.asked.append((prior.version, len(requests)))
        try:
            for result in results_for(prior, requests):
                yield self.spoil(result)
        except GeneratorExit:
            self.closed_early += 1
            raise


class ShufflingExecutor:
    """Runs the tasks for real and yields their results in an order of its own each round."""

    max_workers = TASKS

    def __init__(self, executor, seed):
        self.executor = executor
        self.seed = seed

    def run(self, prior, requests):
        order = stream(self.seed, prior.version).permutation(len(requests))
        yield from self.executor.run(prior, [requests[place] for place in order])


class ListSink:
    def __init__(self):
        self.records = []

    def record(self, version, values):
        self.records.append((version, dict(values)))

    def close(self):
        pass


def stop_after(num_results):
    """A `should_stop` and an `on_result` that stop a study after so many results."""
    seen = []
    return (lambda: len(seen) >= num_results), (lambda result, rejection: seen.append(result))


def files_of(store_folder):
    return {path: path.read_bytes() for path in store_folder.rglob("*") if path.is_file()}


# Beginning and resuming


def test_begin_stores_configuration_and_version_0(store, config):
    prior = study.begin(store, config)
    assert store.load_config() == config
    assert store.versions() == [0]
    assert store.load().digest() == prior.digest() == initial_prior(config).digest()


def test_a_study_cannot_begin_where_one_has_begun(store, config, tmp_path):
    study.begin(store, config)
    before = files_of(tmp_path)
    with pytest.raises(ConflictError, match="holds a study; add --resume"):
        study.begin(store, config.model_copy(update={"seed": 1}))
    assert files_of(tmp_path) == before


def test_resume_needs_a_study(store, config):
    with pytest.raises(NotFoundError, match="holds no study"):
        study.resume(store, config)


def test_resume_refuses_another_configuration_and_discards_nothing(store, config, tmp_path):
    prior = study.begin(store, config)
    store.save(replace(prior, version=1))
    before = files_of(tmp_path)
    with pytest.raises(ConflictError, match=r"inner\.steps = 2, now it is 5"):
        study.resume(store, smoke_config("inner.steps=5"), version=0)
    assert files_of(tmp_path) == before


def test_resume_accepts_other_workers_and_needs_no_configuration(store, config):
    prior = study.begin(store, config)
    other = smoke_config("cluster.num_workers=5", "cluster.tasks_per_partial_sum=2", "checkpoint.keep_last=1")
    assert study.resume(store, other).digest() == study.resume(store).digest() == prior.digest()


def test_a_study_stopped_before_its_first_prior_was_written_resumes_from_version_0(store, config):
    store.save_config(config)
    assert study.resume(store, config).digest() == initial_prior(config).digest()
    with pytest.raises(NotFoundError):
        study.resume(store, config, version=2)


def test_an_unknown_version_is_refused_and_nothing_discarded(store, config):
    prior = study.begin(store, config)
    store.save(replace(prior, version=2))
    with pytest.raises(NotFoundError, match="no prior version 1; it has 0, 2"):
        study.resume(store, config, version=1)
    assert store.versions() == [0, 2]


# The same bits


@pytest.mark.parametrize("num_rounds", range(ROUNDS + 1))
def test_a_study_resumed_between_two_rounds_ends_in_the_same_bits(store, config, executor, undisturbed, num_rounds):
    made = []
    last = study.run(
        study.begin(store, config),
        config,
        executor,
        store,
        [],
        time.monotonic,
        should_stop=lambda: len(made) >= num_rounds,
        on_round=lambda prior, metrics: made.append(prior.version),
    )
    assert last.version == num_rounds
    assert last.digest() == undisturbed[num_rounds]
    reopened = PriorStore(store.folder.url)
    resumed = study.resume(reopened, config)
    assert resumed.digest() == undisturbed[num_rounds]
    finished = study.run(resumed, config, LocalExecutor(torch.device("cpu")), reopened, [], time.monotonic)
    assert finished.digest() == undisturbed[-1]
    assert [reopened.load(version).digest() for version in reopened.versions()] == undisturbed


def test_an_executor_that_loses_results_is_an_error_and_not_a_short_study(store, config):
    class LosingExecutor(MadeUpExecutor):
        def run(self, prior, requests):
            yield from list(super().run(prior, requests))[1:]

    with pytest.raises(AdaptationError, match="after version 0 ended without all of its results"):
        study.run(study.begin(store, config), config, LosingExecutor(), store, [], time.monotonic)
    assert store.versions() == [0]


@pytest.mark.parametrize("num_results", [1, 2, 4, 8])
def test_a_round_that_is_given_up_leaves_no_trace(store, config, executor, undisturbed, tmp_path, num_results):
    should_stop, on_result = stop_after(num_results)
    sink = ListSink()
    last = study.run(
        study.begin(store, config), config, executor, store, [sink], time.monotonic, should_stop, on_result
    )
    complete = num_results // TASKS
    assert last.version == complete
    assert store.versions() == list(range(complete + 1))
    assert [version for version, _ in sink.records] == list(range(1, complete + 1))
    names = sorted(path.name for path in (tmp_path / "run" / "priors").iterdir())
    assert names == sorted(f"{version:08d}.{end}" for version in range(complete + 1) for end in ("json", "safetensors"))
    finished = study.run(study.resume(store, config), config, executor, store, [], time.monotonic)
    assert finished.digest() == undisturbed[-1]


def test_a_round_whose_last_result_came_with_the_wish_to_stop_counts(store, config):
    should_stop, on_result = stop_after(TASKS)
    last = study.run(
        study.begin(store, config), config, MadeUpExecutor(), store, [], time.monotonic, should_stop, on_result
    )
    assert last.version == 1
    assert store.versions() == [0, 1]


def test_the_executor_is_closed_when_a_round_is_given_up(store, config):
    should_stop, on_result = stop_after(TASKS + 1)
    executor = MadeUpExecutor()
    study.run(study.begin(store, config), config, executor, store, [], time.monotonic, should_stop, on_result)
    assert executor.asked == [(0, TASKS), (1, TASKS)]
    assert executor.closed_early == 1


@pytest.mark.parametrize("seed", [0, 1])
def test_results_in_any_order_end_in_the_same_bits(store, config, executor, undisturbed, seed):
    shuffling = ShufflingExecutor(executor, seed)
    order = []
    study.run(
        study.begin(store, config),
        config,
        shuffling,
        store,
        [],
        time.monotonic,
        on_result=lambda result, rejection: order.append(result.task_id),
    )
    assert order != sorted(order), "the order did change"
    assert [store.load(version).digest() for version in range(ROUNDS + 1)] == undisturbed


@pytest.mark.parametrize(("most", "bundles"), [(2, [2, 1]), (4, [2, 1])])
def test_partial_sums_end_in_the_same_bits(store, executor, undisturbed, most, bundles):
    config = smoke_config("checkpoint.keep_last=10", f"cluster.tasks_per_partial_sum={most}")
    sizes = []
    study.run(
        study.begin(store, config),
        config,
        executor,
        store,
        [],
        time.monotonic,
        on_result=lambda result, rejection: sizes.append(len(result.task_ids)),
    )
    assert sizes == bundles * ROUNDS, "for one worker, half of the tasks at most"
    assert [store.load(version).digest() for version in range(ROUNDS + 1)] == undisturbed


def test_another_seed_ends_in_other_bits(store, executor, undisturbed):
    config = smoke_config("seed=1", "rounds=1")
    last = study.run(study.begin(store, config), config, executor, store, [], time.monotonic)
    assert last.digest() not in undisturbed


def test_resuming_from_an_earlier_version_discards_the_later_ones(store, config, executor, undisturbed):
    study.run(study.begin(store, config), config, executor, store, [], time.monotonic)
    prior = study.resume(store, config, version=1)
    assert prior.digest() == undisturbed[1]
    assert store.versions() == [0, 1]
    study.run(prior, config, executor, store, [], time.monotonic)
    assert [store.load(version).digest() for version in store.versions()] == undisturbed


def test_a_corrupt_latest_version_is_refused_until_an_intact_one_is_named(
    store, config, executor, undisturbed, tmp_path
):
    study.run(study.begin(store, config), config, executor, store, [], time.monotonic)
    tensors = tmp_path / "run" / "priors" / "00000003.safetensors"
    data = bytearray(tensors.read_bytes())
    data[-1] ^= 1
    tensors.write_bytes(bytes(data))
    with pytest.raises(CorruptArtifactError, match=r"version 3 is corrupt.*use --from-version 2, which is intact"):
        study.resume(store, config)
    assert store.versions() == [0, 1, 2, 3], "nothing was thrown away"
    prior = study.resume(store, config, version=2)
    finished = study.run(prior, config, executor, store, [], time.monotonic)
    assert finished.digest() == undisturbed[-1] == store.load().digest()


def test_a_finished_study_does_nothing_more(store, config):
    last = study.run(study.begin(store, config), config, MadeUpExecutor(), store, [], time.monotonic)
    idle = MadeUpExecutor()
    again = study.run(study.resume(store, config), config, idle, store, [], time.monotonic)
    assert again.digest() == last.digest()
    assert idle.asked == []


# What a study tells and keeps


@pytest.mark.parametrize(
    ("every_rounds", "keep_last", "kept"),
    [(1, 10, [0, 1, 2, 3, 4, 5]), (1, 2, [4, 5]), (2, 10, [0, 2, 4, 5]), (2, 2, [4, 5]), (3, 1, [5]), (9, 3, [0, 5])],
)
def test_checkpoints_are_made_as_configured_and_always_of_the_last_round(store, every_rounds, keep_last, kept):
    config = smoke_config("rounds=5", f"checkpoint.every_rounds={every_rounds}", f"checkpoint.keep_last={keep_last}")
    study.run(study.begin(store, config), config, MadeUpExecutor(), store, [], time.monotonic)
    assert store.versions() == kept


def test_sparse_checkpoints_end_in_the_same_bits_after_an_interruption(store, undisturbed, executor):
    config = smoke_config("checkpoint.every_rounds=2", "cluster.tasks_per_partial_sum=1")
    should_stop, on_result = stop_after(TASKS + 1)
    study.run(study.begin(store, config), config, executor, store, [], time.monotonic, should_stop, on_result)
    assert store.versions() == [0], "round 1 was not a checkpoint"
    finished = study.run(study.resume(store, config), config, executor, store, [], time.monotonic)
    assert finished.digest() == undisturbed[-1]


def test_sinks_and_listeners_hear_of_every_round_with_its_time(store, config):
    ticks = iter(np.cumsum([100.0, 1.5, 10.0, 2.5, 10.0, 4.0]).tolist())
    sinks = [ListSink(), ListSink()]
    heard = []
    results = []
    study.run(
        study.begin(store, config),
        config,
        MadeUpExecutor(),
        store,
        sinks,
        lambda: next(ticks),
        on_result=lambda result, rejection: results.append((result.task_id, rejection)),
        on_round=lambda prior, metrics: heard.append((prior.version, dict(metrics))),
    )
    assert sinks[0].records == sinks[1].records == heard
    assert [(version, values["round_seconds"]) for version, values in heard] == [(1, 1.5), (2, 2.5), (3, 4.0)]
    assert len(results) == ROUNDS * TASKS
    assert {rejection for _, rejection in results} == {None}


def test_a_checkpoint_is_stored_before_anyone_hears_of_it(store, config):
    stored_when_heard = []
    study.run(
        study.begin(store, config),
        config,
        MadeUpExecutor(),
        store,
        [],
        time.monotonic,
        on_round=lambda prior, metrics: stored_when_heard.append(store.load().digest() == prior.digest()),
    )
    assert stored_when_heard == [True] * ROUNDS


def of_another_version(result):
    return replace(result, update=replace(result.update, version=99))


def test_a_round_of_unacceptable_results_fails_and_what_was_made_before_is_kept(store, config):
    rejections = []
    spoilt = MadeUpExecutor(lambda result: of_another_version(result) if "round-00001" in result.task_id else result)
    with pytest.raises(AdaptationError, match="0 of 3 updates to version 1 are acceptable"):
        study.run(
            study.begin(store, config),
            config,
            spoilt,
            store,
            [],
            time.monotonic,
            on_result=lambda result, rejection: rejections.append(rejection),
        )
    assert store.versions() == [0, 1]
    assert rejections[:TASKS] == [None] * TASKS
    assert [rejection.reason for rejection in rejections[TASKS:]] == [RejectionReason.WRONG_VERSION] * TASKS


def test_an_error_of_the_executor_ends_the_study_and_what_was_made_before_is_kept(store, config):
    def fail(result):
        if "round-00002/family-0/task-01" in result.task_id:
            raise AdaptationError("killed too often")
        return result

    with pytest.raises(AdaptationError, match="killed too often"):
        study.run(study.begin(store, config), config, MadeUpExecutor(fail), store, [], time.monotonic)
    assert store.versions() == [0, 1, 2]


def test_families_without_enough_classes_are_refused_before_the_first_round(store):
    config = smoke_config("families.0.num_ways=9")
    idle = MadeUpExecutor()
    with pytest.raises(InvalidInputError, match=r"5 classes in split 'meta_train'.*num_ways is 9"):
        study.run(initial_prior(config), config, idle, store, [], time.monotonic)
    assert idle.asked == []


def test_there_is_a_catalog_for_each_family_at_its_size():
    config = smoke_config("network.heads.8=2")
    small = config.families[0].model_copy(update={"image_size": 8})
    config = config.model_copy(update={"families": (*config.families, small)})
    assert [arrays.image_shape[:2] for arrays in study.load_catalogs(config)] == [(16, 16), (8, 8)]


# One network at a time


@pytest.mark.parametrize("options", [("path_per=step", "uses"), ("path_per=task", "users")], ids=["step", "task"])
def test_single_path_studies_end_in_the_same_bits_in_any_order_in_parts_and_resumed(executor, tmp_path, options):
    path_per, average = options
    overrides = (
        "relaxation.hard_after_round=1",
        "relaxation.hard_kind=single_path",
        f"relaxation.{path_per}",
        f"outer.theta_average={average}",
    )
    alone = smoke_config(*overrides, "cluster.tasks_per_partial_sum=1")
    plain = smoke_config(*overrides, "outer.theta_average=tasks", "cluster.tasks_per_partial_sum=1")

    def ended(name, config, runs=executor, should_stop=lambda: False, on_result=lambda result, rejection: None):
        store = PriorStore(tmp_path / name)
        prior = study.resume(store, config) if store.has_config() else study.begin(store, config)
        return study.run(prior, config, runs, store, [], time.monotonic, should_stop, on_result).digest()

    expected = ended("alone", alone)
    assert ended("shuffled", alone, ShufflingExecutor(executor, seed=4)) == expected
    assert ended("in parts", smoke_config(*overrides)) == expected
    should_stop, on_result = stop_after(TASKS + 2)
    assert ended("resumed", alone, executor, should_stop, on_result) != expected
    assert ended("resumed", alone) == expected
    assert ended("plain", plain) != expected, "dividing by use makes a difference"
