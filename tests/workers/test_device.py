"""Images on the device: how bytes become floats, and random changes that a stream alone decides."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from common.config import AugmentConfig, DatasetRef, InnerConfig, NetworkConfig, SpaceConfig, StudyConfig, TaskFamily
from common.messages import AdaptRequest, AdaptResult
from common.meta.prior import initial_prior
from common.nn.supernet import build_supernet
from common.streams import stream
from common.tasks import LearningTask
from workers.adapt import adapt
from workers.data.episodes import Episode
from workers.device import ResidentImages, choose_device, resident, to_float, use_single_thread

CPU = torch.device("cpu")
NOTHING = AugmentConfig()


def pictures(count: int = 5, height: int = 6, width: int = 6, channels: int = 3, seed: int = 0) -> np.ndarray:
    """Never 0, so that padding can be told from the image."""
    return np.random.default_rng(seed).integers(1, 256, (count, height, width, channels)).astype(np.uint8)


def on_cpu(images: np.ndarray) -> ResidentImages:
    return resident(images, np.arange(len(images)), CPU)


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
    images.augmented_batch(np.arange(5), AugmentConfig(crop_padding=1, flip=True), stream(0))
    assert images.images.dtype == torch.uint8
    assert images.images.shape == (5, 3, 6, 6)
    assert images.num_images == 5


@pytest.mark.parametrize("channels", [1, 3])
def test_nothing_changes_the_images_that_batches_are_taken_from(channels: int):
    images = pictures(channels=channels)
    before = images.copy()
    on_device = on_cpu(images)
    for augment in (NOTHING, AugmentConfig(crop_padding=2, flip=True)):
        batch, labels = on_device.augmented_batch(np.arange(5), augment, stream(1))
        batch.zero_()
        labels.zero_()
    assert np.array_equal(images, before)
    assert np.array_equal(as_bytes(on_device.batch(np.arange(5))[0]), before)
    assert on_device.labels.tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("channels", [1, 3])
def test_images_and_labels_are_copied_so_that_read_only_ones_will_do(channels: int):
    images, labels = pictures(channels=channels), np.arange(5)
    before = images.copy()
    images.setflags(write=False)
    labels.setflags(write=False)
    on_device = resident(images, labels, CPU)
    on_device.images.zero_()
    on_device.labels.zero_()
    assert np.array_equal(images, before)
    assert labels.tolist() == [0, 1, 2, 3, 4]


def test_without_augmentation_a_batch_is_the_plain_one_and_draws_nothing():
    generator = stream(2)
    batch, labels = on_cpu(pictures()).augmented_batch(np.array([4, 1]), NOTHING, generator)
    plain, plain_labels = on_cpu(pictures()).batch(np.array([4, 1]))
    assert torch.equal(batch, plain)
    assert torch.equal(labels, plain_labels)
    assert generator.random() == stream(2).random()


@pytest.mark.parametrize("augment", [AugmentConfig(crop_padding=2), AugmentConfig(flip=True)], ids=["crop", "flip"])
def test_equal_streams_change_images_equally_and_others_otherwise(augment: AugmentConfig):
    images, indices = on_cpu(pictures(16)), np.arange(16)
    once, again, other = (images.augmented_batch(indices, augment, stream(seed))[0] for seed in (3, 3, 4))
    assert torch.equal(once, again)
    assert not torch.equal(once, other)


@pytest.mark.parametrize(("height", "width", "channels", "padding"), [(6, 6, 3, 1), (5, 8, 1, 2), (4, 4, 3, 7)])
def test_random_crops_equal_cropping_image_by_image(height: int, width: int, channels: int, padding: int):
    images = pictures(20, height, width, channels)
    indices = np.random.default_rng(1).permutation(20)[:13]
    batch, labels = on_cpu(images).augmented_batch(indices, AugmentConfig(crop_padding=padding), stream(5))

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
    batch, _ = on_cpu(marked).augmented_batch(np.arange(400), AugmentConfig(crop_padding=2), stream(6))
    landed = {tuple(np.argwhere(image[:, :, 0])[0].tolist()) for image in as_bytes(batch)}
    assert landed == {(y, x) for y in range(5) for x in range(5)}


def test_flips_mirror_about_half_of_the_images_left_to_right():
    images = pictures(400)
    batch, _ = on_cpu(images).augmented_batch(np.arange(400), AugmentConfig(flip=True), stream(7))
    num_mirrored = 0
    for image, out in zip(images, as_bytes(batch), strict=True):
        mirrored = np.array_equal(out, image[:, ::-1])
        assert mirrored or np.array_equal(out, image)
        num_mirrored += mirrored
    assert 160 <= num_mirrored <= 240  # four standard deviations of 10 around 200


def test_crop_and_flip_together_mirror_the_crop():
    images, indices = on_cpu(pictures(30)), np.arange(30)
    both, _ = images.augmented_batch(indices, AugmentConfig(crop_padding=1, flip=True), stream(8))
    cropped, _ = images.augmented_batch(indices, AugmentConfig(crop_padding=1), stream(8))
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


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("weights", ["map", "gaussian"])
@pytest.mark.parametrize("relaxation", ["gumbel", "straight_through"])
def test_adapting_on_cuda_agrees_with_the_cpu(weights: str, relaxation: str):
    family = TaskFamily(data=DatasetRef(source="digits"), image_size=16)
    inner = InnerConfig(
        steps=4,
        batch_size=16,
        weights=weights,
        relaxation=relaxation,
        prior_precision=1.0,
        augment=AugmentConfig(crop_padding=2, flip=True),
    )
    config = StudyConfig(
        space=SpaceConfig(num_nodes=2),
        network=NetworkConfig(channels=4, cells=("normal", "reduction"), heads={16: 4}),
        inner=inner,
        adapt=inner,
        families=(family,),
    )
    prior = replace(initial_prior(config), tau=1.0)
    task = LearningTask(task_id="t", data=family.data, classes=("a", "b"), image_size=16)
    request = AdaptRequest(task, config.space, config.network, inner, 0, 0, "gumbel", 1.0, eval_steps=(4,))
    rng = np.random.default_rng(9)
    labels = np.repeat([0, 1], 12)
    images = (rng.integers(0, 128, (24, 16, 16, 3)) + 100 * labels[:, None, None, None]).astype(np.uint8)
    episode = Episode(images, labels, images, labels)

    def run(device: torch.device) -> AdaptResult:
        return adapt(prior, request, episode, build_supernet(config.space, config.network, seed=0).to(device))

    before = torch.get_num_threads()
    use_single_thread()
    cpu, cuda = run(CPU), run(torch.device("cuda", 0))
    torch.set_num_threads(before)

    assert cpu.update is not None and cuda.update is not None
    for name, expected in cpu.update.differences.items():
        error = np.linalg.norm(cuda.update.differences[name] - expected)
        assert error < 0.05 * np.linalg.norm(expected)
    np.testing.assert_allclose(cuda.update.alpha, cpu.update.alpha, atol=5e-3)
    np.testing.assert_allclose(cuda.train_losses, cpu.train_losses, rtol=1e-2)
    assert cuda.evaluations[0].loss == pytest.approx(cpu.evaluations[0].loss, rel=1e-2)
