"""What a worker keeps between tasks, and that keeping it changes nothing."""

import logging
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch

import workers.runner
from common.config import DatasetRef, InnerConfig, NetworkConfig, SpaceConfig, StudyConfig, TaskFamily
from common.errors import AdaptationError, ConflictError, InvalidInputError, NotFoundError
from common.messages import AdaptRequest, AdaptResult, PartialSumRequest, RejectionReason, statistics_of
from common.meta.prior import Prior, initial_prior
from common.meta.sums import UpdateSums
from common.nn.supernet import build_supernet
from common.tasks import LearningTask
from workers.adapt import adapt
from workers.data.episodes import load_episode
from workers.device import ResidentImages
from workers.runner import TaskRunner

CPU = torch.device("cpu")
INNER = InnerConfig(steps=2, batch_size=8)
DATA = DatasetRef(source="digits", unseen_fraction=0.0)


@pytest.fixture(autouse=True)
def threads_as_before() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[tuple[SpaceConfig, NetworkConfig]]:
    """The search spaces and networks that supernets were built for."""
    calls: list[tuple[SpaceConfig, NetworkConfig]] = []

    def recording(space: SpaceConfig, network: NetworkConfig, seed: int):
        calls.append((space, network))
        return build_supernet(space, network, seed)

    monkeypatch.setattr(workers.runner, "build_supernet", recording)
    return calls


def study(normalisation: str = "edge", channels: int = 4) -> StudyConfig:
    """A new object every time, equal for equal arguments."""
    return StudyConfig(
        space=SpaceConfig(
            primitives=("none", "skip_connect", "sep_conv_3x3"), num_nodes=2, normalisation=normalisation
        ),
        network=NetworkConfig(channels=channels, cells=("normal", "reduction"), heads={16: 4}),
        inner=INNER,
        adapt=INNER,
        families=(TaskFamily(data=DATA, image_size=16),),
    )


def request_for(config: StudyConfig, task_id: str = "t") -> AdaptRequest:
    task = LearningTask(
        task_id=task_id, data=DATA, classes=("3", "8"), image_size=16, train_per_class=8, test_per_class=4
    )
    return AdaptRequest(task, config.space, config.network, config.inner, 0, 0, "gumbel", 1.0, eval_steps=(2,))


def run(runner: TaskRunner, config: StudyConfig, task_id: str = "t", prior: Prior | None = None) -> AdaptResult:
    return runner.run(initial_prior(config) if prior is None else prior, request_for(config, task_id))


def test_equal_configurations_share_a_warm_supernet(built: list[object]):
    runner = TaskRunner(CPU)
    assert built == []
    run(runner, study())
    run(runner, study(), "another")
    assert len(built) == 1


def test_another_search_space_or_network_gets_a_supernet_of_its_own(built: list[object]):
    runner = TaskRunner(CPU)
    configs = [study(), study("node"), study("node", channels=6), study()]
    for config in configs:
        run(runner, config)
    assert built == [(config.space, config.network) for config in configs]


def test_a_warm_worker_gives_what_a_fresh_one_gives():
    config = study()
    warm = TaskRunner(CPU)
    run(warm, config, "first")
    results = [run(warm, config, "second"), run(TaskRunner(CPU), config, "second")]
    episode = load_episode(request_for(config, "second").task)
    supernet = build_supernet(config.space, config.network, seed=5)
    results.append(adapt(initial_prior(config), request_for(config, "second"), episode, supernet))
    for result in results[1:]:
        assert result.train_losses == results[0].train_losses
        assert result.evaluations == results[0].evaluations
        assert np.array_equal(result.update.alpha, results[0].update.alpha)
        for name, difference in result.update.differences.items():
            assert np.array_equal(difference, results[0].update.differences[name])


def test_adapting_uses_one_thread():
    runner = TaskRunner(CPU)
    torch.set_num_threads(2)
    seen: list[int] = []
    config = study()
    runner.run(initial_prior(config), request_for(config), lambda step: seen.append(torch.get_num_threads()))
    assert seen == [1, 1]


def test_steps_are_reported_as_they_are_done():
    seen: list[int] = []
    config = study()
    TaskRunner(CPU).run(initial_prior(config), request_for(config), seen.append)
    assert seen == [1, 2]


def test_a_worker_goes_on_after_a_task_that_failed(built: list[object]):
    runner, config = TaskRunner(CPU), study()
    run(runner, config)
    missing = DatasetRef(source="/nowhere/images")
    request = request_for(config)
    with pytest.raises(NotFoundError):
        runner.run(initial_prior(config), replace(request, task=request.task.model_copy(update={"data": missing})))
    with pytest.raises(InvalidInputError):
        runner.run(initial_prior(config), replace(request, task=request.task.model_copy(update={"image_size": 24})))
    with pytest.raises(ConflictError):
        run(runner, config, prior=replace(initial_prior(config), version=1))
    again, fresh = run(runner, config), run(TaskRunner(CPU), config)
    assert again.train_losses == fresh.train_losses
    assert np.array_equal(again.update.alpha, fresh.update.alpha)


def limit_batches(monkeypatch: pytest.MonkeyPatch, largest: int, fail: Callable[[], object]) -> list[int]:
    """Calls `fail` for training batches of more than `largest` images; returns the sizes that were tried."""
    tried: list[int] = []
    augmented_batch = ResidentImages.augmented_batch

    def limited(self: ResidentImages, indices, augment, generator):
        tried.append(len(indices))
        if len(indices) > largest:
            fail()
        return augmented_batch(self, indices, augment, generator)

    monkeypatch.setattr(ResidentImages, "augmented_batch", limited)
    return tried


def refuse_on_device() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory")


def refuse_in_python() -> None:
    raise MemoryError


def refuse_on_cpu() -> None:
    torch.empty(1 << 55, dtype=torch.uint8)  # torch's own refusal of 32 PiB


@pytest.mark.parametrize("fail", [refuse_on_device, refuse_in_python, refuse_on_cpu])
def test_a_batch_that_does_not_fit_is_halved_until_it_does(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, fail: Callable[[], object]
):
    config = study()
    smaller = request_for(config)
    smaller = replace(smaller, inner=smaller.inner.model_copy(update={"batch_size": 2}))
    expected = TaskRunner(CPU).run(initial_prior(config), smaller)
    tried = limit_batches(monkeypatch, 3, fail)
    steps: list[int] = []
    with caplog.at_level(logging.WARNING):
        result = TaskRunner(CPU).run(initial_prior(config), request_for(config), steps.append)
    assert tried == [8, 4, 2, 2]
    assert [record.message for record in caplog.records] == [
        "task t: out of memory with a batch size of 8; starting again with 4",
        "task t: out of memory with a batch size of 4; starting again with 2",
    ]
    assert steps == [1, 2]
    assert result.batch_size == expected.batch_size == 2
    assert result.train_losses == expected.train_losses
    assert np.array_equal(result.update.alpha, expected.update.alpha)


def test_a_task_starts_again_from_the_prior_when_memory_runs_out_later(monkeypatch: pytest.MonkeyPatch):
    config, inner = study(), INNER.model_copy(update={"steps": 4})
    request = replace(request_for(config), inner=inner)
    smaller = replace(request, inner=inner.model_copy(update={"batch_size": 4}))
    expected = TaskRunner(CPU).run(initial_prior(config), smaller)
    steps: list[int] = []

    def at_the_third_step(step: int) -> None:
        steps.append(step)
        if step == 2 and steps.count(2) == 1:
            refuse_on_device()

    result = TaskRunner(CPU).run(initial_prior(config), request, at_the_third_step)
    assert steps == [1, 2, 1, 2, 3, 4]
    assert result.batch_size == 4
    assert result.train_losses == expected.train_losses
    for name, difference in expected.update.differences.items():
        assert np.array_equal(result.update.differences[name], difference)


def test_memory_that_never_suffices_is_an_error_with_a_remedy(monkeypatch: pytest.MonkeyPatch):
    config, runner = study(), TaskRunner(CPU)
    with monkeypatch.context() as patch:
        tried = limit_batches(patch, 0, refuse_on_device)
        with pytest.raises(AdaptationError, match=r"task t: cpu .* batches of 2 .* lower network.channels"):
            run(runner, config)
    assert tried == [8, 4, 2]
    assert run(runner, config).train_losses == run(TaskRunner(CPU), config).train_losses, "the worker goes on"


def test_another_runtime_error_is_not_taken_for_lack_of_memory(monkeypatch: pytest.MonkeyPatch):
    def fail() -> None:
        torch.zeros(2) @ torch.zeros(3)

    tried = limit_batches(monkeypatch, 0, fail)
    with pytest.raises(RuntimeError, match="size"):
        run(TaskRunner(CPU), study())
    assert tried == [8]


def test_the_batch_size_of_a_small_task_is_the_number_of_its_images():
    config = study()
    request = request_for(config)
    few = replace(request, task=request.task.model_copy(update={"train_per_class": 3}))
    assert TaskRunner(CPU).run(initial_prior(config), few).batch_size == 6
    assert TaskRunner(CPU).run(initial_prior(config), request).batch_size == 8


@pytest.mark.parametrize("weights", ["map", "gaussian"])
def test_adapted_weights_are_the_prior_plus_what_the_update_says(weights: str):
    inner = INNER.model_copy(update={"weights": weights})
    config = study().model_copy(update={"inner": inner, "adapt": inner})
    prior = initial_prior(config)
    request = replace(request_for(config), returns_weights=True)
    runner = TaskRunner(CPU)
    result = runner.run(prior, request)
    kept = {name: vector.copy() for name, vector in result.weights.items()}
    runner.run(prior, replace(request, study_seed=1))  # must not write to what was handed out
    names = {"body", "head/16", "alpha", "classifier/weight", "classifier/bias"}
    scales = {f"log_sigma/{name}" for name in ("body", "head/16")} if weights == "gaussian" else set()
    assert set(result.weights) == names | scales
    for name, vector in result.weights.items():
        assert vector.dtype == np.float32 and np.array_equal(vector, kept[name])
    for name in ("body", "head/16"):
        assert np.any(result.weights[name] != prior.vectors[name])
        assert np.array_equal(result.weights[name] - prior.vectors[name], result.update.differences[name])
    assert np.array_equal(result.weights["alpha"], result.update.alpha)
    for name in scales:
        assert np.array_equal(result.weights[name], result.update.log_sigma[name.removeprefix("log_sigma/")])
    assert result.weights["classifier/bias"].shape == (2,) and np.any(result.weights["classifier/bias"])
    assert result.weights["classifier/weight"].shape[0] == 2


def test_weights_stay_with_the_worker_unless_asked_for():
    assert run(TaskRunner(CPU), study()).weights is None


def test_each_evaluation_is_reported_with_the_architecture_of_its_moment():
    config = study()
    request = replace(request_for(config), eval_steps=(0, 2))
    seen: list[tuple[object, dict[str, np.ndarray]]] = []
    prior = initial_prior(config)
    result = TaskRunner(CPU).run(prior, request, on_evaluation=lambda *reported: seen.append(reported))
    assert [evaluation for evaluation, _ in seen] == list(result.evaluations)
    alpha = torch.from_numpy(prior.vectors["alpha"]).double().reshape(2, 5, 3)
    for index, kind in enumerate(("normal", "reduction")):
        assert np.allclose(seen[0][1][kind], alpha[index].softmax(dim=-1).numpy(), atol=1e-12)
        assert np.array_equal(seen[1][1][kind], result.probabilities[kind])
        assert np.any(seen[0][1][kind] != seen[1][1][kind])


# Several tasks, one sum


@pytest.mark.parametrize("weights", ["map", "gaussian"])
def test_tasks_done_together_have_the_sum_of_their_updates(weights: str):
    inner = INNER.model_copy(update={"weights": weights})
    config = study().model_copy(update={"inner": inner, "adapt": inner})
    prior = initial_prior(config)
    requests = tuple(request_for(config, task_id) for task_id in "abc")
    results = [TaskRunner(CPU).run(prior, request) for request in requests]
    expected = UpdateSums(prior, config)
    assert [expected.absorb(result.update) for result in results] == [None] * 3
    seen: list[object] = []
    partial = TaskRunner(CPU).run_many(prior, PartialSumRequest(requests, config), seen.append, seen.append)
    assert seen == ["a", 1, 2, "b", 1, 2, "c", 1, 2], "each task as it begins, and its steps"
    assert partial.version == 0 and partial.rejections == () and partial.task_ids == ("a", "b", "c")
    assert partial.statistics == {
        result.task_id: replace(statistics_of(result), images_per_s=partial.statistics[result.task_id].images_per_s)
        for result in results
    }
    assert partial.sums.keys() == expected.sums().keys()
    for name, part in expected.sums().items():
        assert np.array_equal(partial.sums[name].totals, part.totals)
        assert (partial.sums[name].weight_units, partial.sums[name].num_vectors) == (part.weight_units, 3)


def test_an_update_that_does_not_count_is_left_out_of_the_sum():
    config = study()
    prior = initial_prior(config)
    diverging = replace(
        request_for(config, "b"), inner=INNER.model_copy(update={"theta": INNER.theta.model_copy(update={"lr": 1e30})})
    )
    requests = (request_for(config, "a"), diverging, request_for(config, "c"))
    partial = TaskRunner(CPU).run_many(prior, PartialSumRequest(requests, config))
    without = TaskRunner(CPU).run_many(prior, PartialSumRequest((requests[0], requests[2]), config))
    (rejection,) = partial.rejections
    assert rejection.task_id == "b" and rejection.reason in (RejectionReason.NOT_FINITE, RejectionReason.OUT_OF_RANGE)
    assert set(partial.statistics) == {"a", "c"} and set(partial.task_ids) == {"a", "b", "c"}
    for name, part in without.sums.items():
        assert np.array_equal(partial.sums[name].totals, part.totals)


def test_a_task_that_fails_ends_the_ones_with_it():
    config = study()
    wrong = request_for(config, "b")
    wrong = replace(wrong, task=wrong.task.model_copy(update={"image_size": 24}))
    begun: list[str] = []
    request = PartialSumRequest((request_for(config, "a"), wrong, request_for(config, "c")), config)
    with pytest.raises(InvalidInputError):
        TaskRunner(CPU).run_many(initial_prior(config), request, begun.append)
    assert begun == ["a", "b"]
