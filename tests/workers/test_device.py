"""Images on the device: how bytes become floats, and random changes that a stream alone decides. And steps recorded
there: on a CPU by an emulation that replays every operation, on a GPU as they are.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import workers.adapt
import workers.device
from common.config import (
    AugmentConfig,
    DatasetRef,
    InnerConfig,
    NetworkConfig,
    SgdConfig,
    SpaceConfig,
    StudyConfig,
    TaskFamily,
)
from common.errors import InvalidInputError, UnavailableError
from common.messages import AdaptRequest, AdaptResult
from common.meta.prior import initial_prior
from common.nn.cell import Mixture
from common.nn.supernet import build_supernet
from common.space.genotype import derive
from common.streams import stream
from common.tasks import LearningTask
from workers.adapt import adapt
from workers.data.episodes import Episode
from workers.device import (
    EAGER_STEPS,
    ResidentImages,
    StepRecorder,
    can_record,
    choose_device,
    device_named,
    draw_augmentation,
    on_device,
    resident,
    to_float,
    use_single_thread,
)

CPU = torch.device("cpu")
NOTHING = AugmentConfig()


def pictures(count: int = 5, height: int = 6, width: int = 6, channels: int = 3, seed: int = 0) -> np.ndarray:
    """Never 0, so that padding can be told from the image."""
    return np.random.default_rng(seed).integers(1, 256, (count, height, width, channels)).astype(np.uint8)


def on_cpu(images: np.ndarray) -> ResidentImages:
    return resident(images, np.arange(len(images)), CPU)


def augmented(
    images: ResidentImages, indices: np.ndarray, augment: AugmentConfig, generator: np.random.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    draws = draw_augmentation(len(indices), augment, generator)
    return images.augmented_batch(torch.from_numpy(indices), augment, draws)


def as_bytes(batch: torch.Tensor) -> np.ndarray:
    """(batch, height, width, channels) again."""
    return np.rint((batch.numpy() + 1) * 127.5).astype(np.uint8).transpose(0, 2, 3, 1)


def test_bytes_become_floats_from_minus_one_to_one():
    levels = np.array([0, 51, 102, 153, 204, 255], np.uint8).reshape(1, 2, 3, 1)
    batch, labels = on_cpu(levels).batch(np.array([0]))
    assert batch.dtype == torch.float32
    assert labels.dtype == torch.int64
    np.testing.assert_allclose(batch.numpy(), [[[[-1, -0.6, -0.2], [0.2, 0.6, 1]]]], atol=1e-6)


@pytest.mark.parametrize("channels", [1, 3])
def test_batches_hold_the_images_and_labels_asked_for_in_that_order(channels: int):
    images = pictures(channels=channels)
    batch, labels = resident(images, np.array([7, 8, 9, 10, 11]), CPU).batch(np.array([3, 0, 3]))
    assert batch.shape == (3, channels, 6, 6)
    assert np.array_equal(as_bytes(batch), images[[3, 0, 3]])
    assert labels.tolist() == [10, 7, 10]


def test_floats_are_channels_last_in_memory():
    batch, _ = on_cpu(pictures()).batch(np.arange(5))
    assert batch.is_contiguous(memory_format=torch.channels_last)


def test_images_stay_bytes_on_the_device():
    images = on_cpu(pictures())
    augmented(images, np.arange(5), AugmentConfig(crop_padding=1, flip=True), stream(0))
    assert images.images.dtype == torch.uint8
    assert images.images.shape == (5, 3, 6, 6)
    assert images.num_images == 5


@pytest.mark.parametrize("channels", [1, 3])
def test_nothing_changes_the_images_that_batches_are_taken_from(channels: int):
    images = pictures(channels=channels)
    before = images.copy()
    kept = on_cpu(images)
    for augment in (NOTHING, AugmentConfig(crop_padding=2, flip=True)):
        batch, labels = augmented(kept, np.arange(5), augment, stream(1))
        batch.zero_()
        labels.zero_()
    assert np.array_equal(images, before)
    assert np.array_equal(as_bytes(kept.batch(np.arange(5))[0]), before)
    assert kept.labels.tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("channels", [1, 3])
def test_images_and_labels_are_copied_so_that_read_only_ones_will_do(channels: int):
    images, labels = pictures(channels=channels), np.arange(5)
    before = images.copy()
    images.setflags(write=False)
    labels.setflags(write=False)
    kept = resident(images, labels, CPU)
    kept.images.zero_()
    kept.labels.zero_()
    assert np.array_equal(images, before)
    assert labels.tolist() == [0, 1, 2, 3, 4]


def test_without_augmentation_a_batch_is_the_plain_one_and_draws_nothing():
    generator = stream(2)
    batch, labels = augmented(on_cpu(pictures()), np.array([4, 1]), NOTHING, generator)
    plain, plain_labels = on_cpu(pictures()).batch(np.array([4, 1]))
    assert torch.equal(batch, plain)
    assert torch.equal(labels, plain_labels)
    assert generator.random() == stream(2).random()


@pytest.mark.parametrize("augment", [AugmentConfig(crop_padding=2), AugmentConfig(flip=True)], ids=["crop", "flip"])
def test_equal_streams_change_images_equally_and_others_otherwise(augment: AugmentConfig):
    images, indices = on_cpu(pictures(16)), np.arange(16)
    once, again, other = (augmented(images, indices, augment, stream(seed))[0] for seed in (3, 3, 4))
    assert torch.equal(once, again)
    assert not torch.equal(once, other)


@pytest.mark.parametrize(("height", "width", "channels", "padding"), [(6, 6, 3, 1), (5, 8, 1, 2), (4, 4, 3, 7)])
def test_random_crops_equal_cropping_image_by_image(height: int, width: int, channels: int, padding: int):
    images = pictures(20, height, width, channels)
    indices = np.random.default_rng(1).permutation(20)[:13]
    batch, labels = augmented(on_cpu(images), indices, AugmentConfig(crop_padding=padding), stream(5))

    offsets = stream(5).integers(0, 2 * padding + 1, (2, 13))
    for image, row, column, cropped in zip(images[indices], *offsets, as_bytes(batch), strict=True):
        expected = np.zeros_like(image)
        for y in range(height):
            for x in range(width):
                source_y, source_x = y + row - padding, x + column - padding
                if 0 <= source_y < height and 0 <= source_x < width:
                    expected[y, x] = image[source_y, source_x]
        assert np.array_equal(cropped, expected)
    assert labels.tolist() == indices.tolist()


def test_random_crops_reach_every_offset():
    marked = np.zeros((400, 5, 5, 1), np.uint8)
    marked[:, 2, 2] = 255
    batch, _ = augmented(on_cpu(marked), np.arange(400), AugmentConfig(crop_padding=2), stream(6))
    landed = {tuple(np.argwhere(image[:, :, 0])[0].tolist()) for image in as_bytes(batch)}
    assert landed == {(y, x) for y in range(5) for x in range(5)}


def test_flips_mirror_about_half_of_the_images_left_to_right():
    images = pictures(400)
    batch, _ = augmented(on_cpu(images), np.arange(400), AugmentConfig(flip=True), stream(7))
    num_mirrored = 0
    for image, out in zip(images, as_bytes(batch), strict=True):
        mirrored = np.array_equal(out, image[:, ::-1])
        assert mirrored or np.array_equal(out, image)
        num_mirrored += mirrored
    assert 160 <= num_mirrored <= 240  # four standard deviations of 10 around 200


def test_crop_and_flip_together_mirror_the_crop():
    images, indices = on_cpu(pictures(30)), np.arange(30)
    both, _ = augmented(images, indices, AugmentConfig(crop_padding=1, flip=True), stream(8))
    cropped, _ = augmented(images, indices, AugmentConfig(crop_padding=1), stream(8))
    kinds = {
        "plain" if torch.equal(out, crop) else "mirrored" if torch.equal(out, crop.flip(-1)) else "neither"
        for out, crop in zip(both, cropped, strict=True)
    }
    assert kinds == {"plain", "mirrored"}


def test_floats_of_bytes_are_new_memory():
    source = torch.full((1, 1, 2, 2), 255, dtype=torch.uint8)
    to_float(source).zero_()
    assert source.tolist() == [[[[255, 255], [255, 255]]]]


@pytest.mark.parametrize("available", [True, False])
def test_a_worker_takes_the_first_gpu_else_the_cpu(monkeypatch: pytest.MonkeyPatch, available: bool):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
    assert choose_device() == (torch.device("cuda", 0) if available else CPU)


def test_single_thread_holds_for_the_process():
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        use_single_thread()
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


@dataclass(frozen=True)
class Amount:
    """Inputs of a step that adds up what it is given, times a factor."""

    values: torch.Tensor
    nested: tuple[torch.Tensor | None, ...]
    label: str = "sum"


def test_inputs_move_to_the_device_whole_and_on_a_cpu_stay_where_they_are():
    inputs = Amount(torch.ones(3), (torch.tensor(2.0), None))
    moved = on_device(inputs, CPU)
    assert moved.values is inputs.values
    assert moved.nested[0] is inputs.nested[0]
    assert moved.nested[1] is None
    assert moved.label == "sum"
    assert on_device(inputs, torch.device("meta")).values.is_meta


@pytest.mark.parametrize(
    ("name", "available", "expected"),
    [("auto", False, "cpu"), ("auto", True, "cuda:0"), ("cpu", True, "cpu"), ("cuda", True, "cuda:0")],
)
def test_users_name_devices(monkeypatch: pytest.MonkeyPatch, name: str, available: bool, expected: str):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
    assert str(device_named(name)) == expected


def test_devices_that_cannot_be_had_are_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UnavailableError, match="no CUDA device; install .*driver.*, or use the device cpu"):
        device_named("cuda")
    with pytest.raises(InvalidInputError, match="auto, cpu or cuda, got 'gpu'"):
        device_named("gpu")


class EmulatedGraph(TorchDispatchMode):
    """A CUDA graph on the CPU: while recording it notes each operation, and a replay carries them out again.

    As on a GPU, each reads and writes the memory that it did then, and nothing else of the step runs. Recording carries
    the step out too, which a GPU leaves to the first replay.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple[Any, ...], dict[str, Any], Any]] = []
        self.num_replays = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, out))
        return out

    @property
    def operations(self) -> set[str]:
        return {func.overloadpacket.__name__ for func, *_ in self.calls}

    def replay(self) -> None:
        self.num_replays += 1
        if self.num_replays == 1:
            return
        with torch.no_grad():
            for func, args, kwargs, before in self.calls:
                after = func(*args, **kwargs)
                for target, value in zip(tree_leaves(before), tree_leaves(after), strict=True):
                    if isinstance(target, torch.Tensor) and target.data_ptr() != value.data_ptr():
                        target.copy_(value)


class EmulatedStream:
    def __init__(self, device: torch.device) -> None:
        self.device = device

    def wait_stream(self, other: "EmulatedStream") -> None:
        pass


@pytest.fixture
def emulated_graphs(monkeypatch: pytest.MonkeyPatch, one_thread: None) -> list[EmulatedGraph]:
    """Steps are recorded on the CPU; returns the recordings."""
    graphs: list[EmulatedGraph] = []

    @contextmanager
    def record(graph: EmulatedGraph, stream: EmulatedStream, capture_error_mode: str) -> Iterator[None]:
        graphs.append(graph)
        with graph:
            yield

    monkeypatch.setattr(torch.cuda, "Stream", EmulatedStream)
    monkeypatch.setattr(torch.cuda, "current_stream", EmulatedStream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    monkeypatch.setattr(torch.cuda, "CUDAGraph", EmulatedGraph)
    monkeypatch.setattr(torch.cuda, "graph", record)
    monkeypatch.setattr(workers.adapt, "can_record", lambda device: True)
    return graphs


def test_recorded_steps_read_new_inputs_and_return_new_memory(emulated_graphs: list[EmulatedGraph]):
    total, ran = torch.zeros(2), []

    def step(inputs: Amount) -> torch.Tensor:
        ran.append(inputs.values.clone())
        factor = inputs.nested[0]
        assert factor is not None
        return total.add_(inputs.values * factor).sum()

    recorder = StepRecorder(CPU)
    values = [torch.tensor([float(index), 1.0]) for index in range(7)]
    sums = [recorder.run(step, Amount(each, (torch.tensor(2.0), None))) for each in values]

    assert total.tolist() == [2 * 21, 14]
    assert [float(each) for each in sums] == [2 * index * (index + 1) / 2 + 2 * (index + 1) for index in range(7)]
    assert len(ran) == EAGER_STEPS + 1
    assert [graph.num_replays for graph in emulated_graphs] == [7 - EAGER_STEPS]


def test_a_recording_that_runs_out_of_memory_says_so(emulated_graphs: list[EmulatedGraph], monkeypatch):
    @contextmanager
    def broken(*args: object, **kwargs: object) -> Iterator[None]:
        try:
            yield
        finally:
            raise RuntimeError("operation failed due to a previous error during capture")

    def step(inputs: Amount) -> torch.Tensor:
        if len(ran) == EAGER_STEPS:
            raise torch.OutOfMemoryError("CUDA out of memory")
        ran.append(0)
        return inputs.values.sum()

    monkeypatch.setattr(torch.cuda, "graph", broken)
    ran: list[int] = []
    recorder = StepRecorder(CPU)
    inputs = Amount(torch.ones(1), ())
    for _ in range(EAGER_STEPS):
        recorder.run(step, inputs)
    with pytest.raises(torch.OutOfMemoryError):
        recorder.run(step, inputs)


GAUSSIAN = {"weights": "gaussian"}
VARIED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "gumbel": ({}, {}),
    "softmax": ({"relaxation": "softmax"}, {}),
    "bilevel": ({"level": "bilevel"}, {}),
    "gaussian": (GAUSSIAN, {}),
    "gaussian_per_element": ({**GAUSSIAN, "gaussian_scale": "element"}, {}),
    "augmented": ({"augment": AugmentConfig(crop_padding=2, flip=True)}, {}),
    "cosine": ({"theta": SgdConfig(lr=0.1, lr_end=0.001)}, {}),
    "no_momentum": ({"theta": SgdConfig(momentum=0.0), "clip_norm": None}, {}),
    "penalties": ({"op_penalty": {"max_pool_3x3": 0.5}, "prior_precision": 1.0}, {}),
    "bfloat16": ({}, {"precision": "bfloat16"}),
    "recompute": ({}, {"recompute": True}),
}


def run(
    device: torch.device, inner_changes: Mapping[str, Any], network_changes: Mapping[str, Any], **changes: Any
) -> AdaptResult:
    """Seven steps of a small task; `changes` go to the request."""
    family = TaskFamily(data=DatasetRef(source="digits"), image_size=16)
    inner = InnerConfig(**{"steps": 7, "batch_size": 16, **inner_changes})
    network = {"channels": 4, "cells": ("normal", "reduction"), "heads": {16: 4}, "engine": "pytorch"}
    config = StudyConfig(
        space=SpaceConfig(num_nodes=2),
        network=NetworkConfig(**{**network, **network_changes}),
        inner=inner,
        adapt=inner,
        families=(family,),
    )
    prior = replace(initial_prior(config), tau=1.0)
    task = LearningTask(task_id="t", data=family.data, classes=("a", "b"), image_size=16)
    request = AdaptRequest(
        task, config.space, config.network, inner, study_seed=0, version=0, relaxation="gumbel", tau=1.0
    )
    rng = np.random.default_rng(9)
    labels = np.repeat([0, 1], 24)
    images = (rng.integers(0, 128, (48, 16, 16, 3)) + 100 * labels[:, None, None, None]).astype(np.uint8)
    episode = Episode(images, labels, images, labels)
    supernet = build_supernet(config.space, config.network, seed=0).to(device)
    return adapt(prior, replace(request, **changes), episode, supernet)


def assert_close(actual: AdaptResult, expected: AdaptResult, tolerance: float) -> None:
    """Losses and all that was learnt agree to a relative `tolerance`, vectors by their length."""
    assert actual.update is not None and expected.update is not None
    np.testing.assert_allclose(actual.train_losses, expected.train_losses, rtol=tolerance)
    np.testing.assert_allclose(actual.update.alpha, expected.update.alpha, atol=tolerance)
    for mine, other in (
        (actual.update.differences, expected.update.differences),
        (actual.update.log_sigma, expected.update.log_sigma),
    ):
        for name, vector in other.items():
            assert np.linalg.norm(mine[name] - vector) <= tolerance * np.linalg.norm(vector)


@pytest.mark.parametrize(("inner", "network"), VARIED.values(), ids=VARIED.keys())
def test_recorded_steps_of_the_inner_loop_equal_eager_ones(
    monkeypatch: pytest.MonkeyPatch,
    emulated_graphs: list[EmulatedGraph],
    inner: dict[str, Any],
    network: dict[str, Any],
):
    recorded = run(CPU, inner, network, eval_steps=(0, 5, 7))
    plain = run(CPU, inner, {**network, "cuda_graphs": False}, eval_steps=(0, 5, 7))
    monkeypatch.setattr(workers.device, "EAGER_STEPS", 1000)
    eager = run(CPU, inner, network, eval_steps=(0, 5, 7))

    (graph,) = emulated_graphs
    assert graph.num_replays == 7 - EAGER_STEPS
    assert recorded.train_losses == eager.train_losses
    assert recorded.evaluations == eager.evaluations
    assert_close(recorded, eager, 0)
    # Fused optimizers round differently.
    assert_close(recorded, plain, 0.1 if network.get("precision") == "bfloat16" else 1e-3)


def test_a_recorded_step_never_asks_the_device_or_the_host_for_data(emulated_graphs: list[EmulatedGraph]):
    augment = AugmentConfig(crop_padding=2, flip=True)
    for changes in ({}, GAUSSIAN, {"level": "bilevel", "op_penalty": {"skip_connect": 0.1}}):
        run(CPU, {"augment": augment, "theta": SgdConfig(lr=0.1, lr_end=0.01), **changes}, {})
        operations = emulated_graphs[-1].operations
        assert "convolution_backward" in operations
        assert operations.isdisjoint({"_local_scalar_dense", "nonzero", "equal", "is_nonzero", "item", "lift_fresh"})


def test_hard_steps_run_other_ops_each_time_and_are_not_recorded(emulated_graphs: list[EmulatedGraph]):
    hard = run(CPU, {"relaxation": "straight_through"}, {})
    assert emulated_graphs == []
    assert hard.train_losses == run(CPU, {"relaxation": "straight_through"}, {"cuda_graphs": False}).train_losses


def test_steps_of_a_given_genotype_are_recorded_whatever_the_relaxation(emulated_graphs: list[EmulatedGraph]):
    space = SpaceConfig(num_nodes=2)
    uniform = np.ones((space.topology.num_edges, len(space.ops)))
    genotype = derive(dict.fromkeys(space.cell_kinds, uniform), space.topology, space.ops, "sample", 3)
    inner = {"relaxation": "single_path", "theta": SgdConfig(lr=0.05, weight_decay=0.0)}
    recorded = run(CPU, inner, {}, genotype=genotype, eval_steps=(0, 7))
    (graph,) = emulated_graphs
    assert graph.num_replays == 7 - EAGER_STEPS
    plain = run(CPU, inner, {"cuda_graphs": False}, genotype=genotype, eval_steps=(0, 7))
    assert_close(recorded, plain, 1e-3)
    assert recorded.update is not None
    assert plain.update is not None
    assert recorded.update.use is not None
    assert plain.update.use is not None
    assert np.array_equal(recorded.update.use, plain.update.use)


def test_nothing_is_recorded_on_a_cpu_or_where_it_is_switched_off(emulated_graphs: list[EmulatedGraph], monkeypatch):
    run(CPU, {}, {"cuda_graphs": False})
    monkeypatch.setattr(workers.adapt, "can_record", can_record)
    run(CPU, {}, {})
    assert emulated_graphs == []


def test_weights_are_laid_out_as_channels_last_maps_want_them():
    """But for full 3x3 and 1x7 convolutions, which have to be repacked, a kernel each."""
    supernet = build_supernet(SpaceConfig(profile="darts"), NetworkConfig(channels=4), seed=0)
    for cell in supernet.cells:
        for weight in cell.parameters():
            assert weight.is_contiguous(memory_format=torch.channels_last)


def test_maps_stay_channels_last_through_the_supernet(one_thread: None):
    space = SpaceConfig(num_nodes=2, primitives=("max_pool_3x3", "skip_connect", "sep_conv_3x3", "dil_conv_5x5"))
    network = NetworkConfig(channels=4, cells=("normal", "reduction"), heads={16: 1}, engine="pytorch")
    supernet = build_supernet(space, network, seed=0)
    strides = []
    for module in supernet.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(lambda module, args, output: strides.extend([args[0], output]))
    images, _ = on_cpu(pictures(4, 16, 16)).batch(np.arange(4))
    weights = torch.full((space.topology.num_edges, len(space.ops)), 0.25)
    supernet(images, {kind: Mixture(weights) for kind in space.cell_kinds}, 16)
    assert len(strides) > 20
    assert all(maps.is_contiguous(memory_format=torch.channels_last) for maps in strides)


CUDA = torch.device("cuda", 0)
gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
on_gpu = pytest.mark.parametrize("device", [pytest.param(CUDA, marks=gpu, id="cuda")])


@pytest.fixture
def exact_float32() -> Iterator[None]:
    """Convolutions and products in float32, not TF32, and by the same kernels every time."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.allow_tf32, cudnn.deterministic, matmul.allow_tf32
    cudnn.allow_tf32, cudnn.deterministic, matmul.allow_tf32 = False, True, False
    yield
    cudnn.allow_tf32, cudnn.deterministic, matmul.allow_tf32 = before


@on_gpu
@pytest.mark.parametrize("weights", ["map", "gaussian"])
@pytest.mark.parametrize("relaxation", ["gumbel", "straight_through"])
def test_adapting_on_cuda_agrees_with_the_cpu(
    device: torch.device, one_thread: None, exact_float32: None, weights: str, relaxation: str
):
    inner = {
        "steps": 6,
        "weights": weights,
        "relaxation": relaxation,
        "prior_precision": 1.0,
        "augment": AugmentConfig(crop_padding=2, flip=True),
    }
    cpu, cuda = (run(each, inner, {"engine": "auto"}, eval_steps=(6,)) for each in (CPU, device))
    assert_close(cuda, cpu, 0.05)
    assert cuda.evaluations[0].loss == pytest.approx(cpu.evaluations[0].loss, rel=0.05)


@on_gpu
@pytest.mark.parametrize(("inner", "network"), VARIED.values(), ids=VARIED.keys())
def test_graphs_on_cuda_equal_eager_steps(
    monkeypatch: pytest.MonkeyPatch,
    device: torch.device,
    exact_float32: None,
    inner: dict[str, Any],
    network: dict[str, Any],
):
    graph, plain = (run(device, inner, {**network, "cuda_graphs": graphs}) for graphs in (True, False))
    monkeypatch.setattr(workers.device, "EAGER_STEPS", 1000)
    eager = run(device, inner, network)
    bfloat16 = network.get("precision") == "bfloat16"
    # The order of atomic sums (backward of max pooling) is the only difference; steps amplify it.
    np.testing.assert_allclose(graph.train_losses, eager.train_losses, rtol=1e-2 if bfloat16 else 1e-5)
    # Fused optimizers round differently.
    assert_close(graph, plain, 0.1 if bfloat16 else 1e-3)


@on_gpu
def test_a_replayed_step_on_cuda_is_the_eager_one(device: torch.device):
    total = torch.zeros(1000, device=device)

    def step(inputs: Amount) -> torch.Tensor:
        return total.add_(inputs.values).sin().sum()

    recorder = StepRecorder(device)
    expected = np.zeros(1000)
    for index in range(12):
        values = np.random.default_rng(index).normal(size=1000).astype(np.float32)
        expected += values
        result = recorder.run(step, Amount(torch.from_numpy(values), ()))
        assert float(result) == pytest.approx(np.sin(expected).sum(), abs=1e-2)
        np.testing.assert_allclose(total.cpu().numpy(), expected, atol=1e-5)


@on_gpu
def test_bfloat16_on_cuda_learns_what_float32_learns(device: torch.device):
    half, full = (run(device, {}, {"precision": precision}).train_losses for precision in ("bfloat16", "float32"))
    np.testing.assert_allclose(half, full, rtol=0.1, atol=0.05)


@on_gpu
def test_memory_on_cuda_does_not_grow_with_the_steps(device: torch.device):
    def steps(count: int) -> int:
        torch.cuda.reset_peak_memory_stats(device)
        run(device, {"steps": count}, {})
        return torch.cuda.max_memory_allocated(device)

    steps(8)  # libraries allocate what they keep
    few, many = steps(8), steps(208)
    assert many - few <= 200 * 512 + 2**20  # a loss per step is kept, in a block of 512 bytes


@on_gpu
def test_a_graphs_memory_goes_with_its_task(device: torch.device):
    run(device, {}, {})
    torch.cuda.empty_cache()
    before = torch.cuda.memory_reserved(device)
    for _ in range(5):
        run(device, {}, {})
    torch.cuda.empty_cache()
    assert torch.cuda.memory_reserved(device) <= before + 2**21
