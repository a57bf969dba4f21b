"""What a worker keeps between tasks, and that keeping it changes nothing."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch

import workers.runner
from common.config import DatasetRef, InnerConfig, NetworkConfig, SpaceConfig, StudyConfig, TaskFamily
from common.errors import ConflictError, InvalidInputError, NotFoundError
from common.messages import AdaptRequest, AdaptResult
from common.meta.prior import Prior, initial_prior
from common.nn.supernet import build_supernet
from common.tasks import LearningTask
from workers.adapt import adapt
from workers.data.episodes import load_episode
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
