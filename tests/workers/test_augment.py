"""What training images are changed by: cutout and standardisation by hand, crops and colours against torchvision."""

import numpy as np
import pytest
import torch
from torchvision.transforms import v2

from common.evaluate_config import EvaluateConfig, load_evaluate_config
from common.streams import stream
from workers.augment import (
    CROP_AREA,
    Standardisation,
    cut_out,
    draw_changes,
    evaluation_images,
    jittered,
    resized_crops,
    training_images,
)

PLAIN = {"cutout": 0, "crop_padding": 0, "flip": False, "image_size": 8}


def pixels(num_images: int = 4, channels: int = 3, size: int = 8) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (num_images, channels, size, size), dtype=torch.uint8, generator=generator)


def test_a_square_is_cut_out_as_in_the_released_code() -> None:
    images = torch.ones(3, 2, 5, 6)
    found = cut_out(images, torch.tensor([[2, 0, 4], [3, 0, 5]]), 4)
    expected = np.ones((3, 5, 6))
    for index, (row, column) in enumerate([(2, 3), (0, 0), (4, 5)]):
        top, bottom = np.clip([row - 2, row + 2], 0, 5)
        left, right = np.clip([column - 2, column + 2], 0, 6)
        expected[index, top:bottom, left:right] = 0
    for channel in range(2):
        assert np.array_equal(found[:, channel].numpy(), expected)


def test_what_is_cut_out_is_the_mean() -> None:
    config = EvaluateConfig(**{**PLAIN, "cutout": 16})
    changes = draw_changes(4, 3, config, stream(0, "test"))
    found = training_images(pixels(), changes, config, Standardisation((0.1, 0.2, 0.3), (0.5, 0.5, 0.5)))
    # A square of 16 around any pixel of 8 x 8 covers it.
    assert torch.equal(found, torch.zeros(4, 3, 8, 8))


def test_without_changes_images_are_standardised() -> None:
    config = EvaluateConfig(**PLAIN)
    standardisation = Standardisation((0.1, 0.2, 0.3), (0.5, 0.25, 2.0))
    mean, deviation = torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0.5, 0.25, 2.0])
    expected = (pixels() / 255 - mean.view(3, 1, 1)) / deviation.view(3, 1, 1)
    changes = draw_changes(4, 3, config, stream(0, "test"))
    for found in (
        training_images(pixels(), changes, config, standardisation),
        evaluation_images(pixels(), config, standardisation),
    ):
        assert torch.allclose(found, expected, atol=1e-6)
        assert found.is_contiguous(memory_format=torch.channels_last)


def test_crops_and_mirrors_are_parts_of_the_padded_image() -> None:
    config = EvaluateConfig(**{**PLAIN, "crop_padding": 2, "flip": True})
    changes = draw_changes(64, 1, config, stream(0, "test"))
    images = pixels(64, 1)
    found = training_images(images, changes, config, Standardisation((0.0,), (1.0,)))
    assert changes.shifts.offsets is not None and changes.shifts.mirrored is not None
    padded = torch.nn.functional.pad(images / 255, (2, 2, 2, 2))
    for index in range(64):
        row, column = changes.shifts.offsets[:, index].tolist()
        expected = padded[index, :, row : row + 8, column : column + 8]
        if changes.shifts.mirrored[index]:
            expected = expected.flip(-1)
        assert torch.allclose(found[index], expected, atol=1e-6)
    assert 16 < changes.shifts.mirrored.sum() < 48


def test_a_part_is_resized_as_torch_does() -> None:
    images = pixels(size=12).float() / 255
    boxes = torch.tensor([[0, 0, 12, 12], [2, 3, 6, 4], [5, 1, 7, 11], [0, 4, 8, 8]], dtype=torch.float32)
    found = resized_crops(images, boxes, 8)
    for index, (top, left, height, width) in enumerate(boxes.int().tolist()):
        part = images[index : index + 1, :, top : top + height, left : left + width]
        expected = torch.nn.functional.interpolate(part, (8, 8), mode="bilinear", align_corners=False)
        # At its edge a part that is enlarged sees the pixels beside it, which a cut one has not.
        assert torch.allclose(found[index, :, 1:-1, 1:-1], expected[0, :, 1:-1, 1:-1], atol=1e-5)


def test_parts_have_the_published_areas_and_ratios() -> None:
    config = load_evaluate_config("imagenet")
    boxes = draw_changes(500, 3, config, stream(0, "test")).boxes
    assert boxes is not None
    top, left, height, width = boxes.unbind(1)
    assert (top >= 0).all() and (left >= 0).all() and (top + height <= 256).all() and (left + width <= 256).all()
    area = height * width / 256**2
    assert area.min() > CROP_AREA[0] - 0.01 and area.max() <= 1 and 0.4 < float(area.mean()) < 0.6
    assert (width / height).min() > 0.73 and (width / height).max() < 1.36


def test_a_test_image_is_the_center_of_what_is_stored() -> None:
    config = EvaluateConfig(**{**PLAIN, "stored_size": 12, "resized_crop": True})
    found = evaluation_images(pixels(size=12), config, Standardisation((0.0,) * 3, (1.0,) * 3))
    assert torch.allclose(found, pixels(size=12)[:, :, 2:10, 2:10] / 255, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "amount", "reference"),
    [
        (0, 1.3, v2.functional.adjust_brightness),
        (0, 0.6, v2.functional.adjust_brightness),
        (1, 1.4, v2.functional.adjust_contrast),
        (1, 0.7, v2.functional.adjust_contrast),
        (2, 1.4, v2.functional.adjust_saturation),
        (2, 0.0, v2.functional.adjust_saturation),
        (3, 0.2, v2.functional.adjust_hue),
        (3, -0.15, v2.functional.adjust_hue),
        (3, 0.5, v2.functional.adjust_hue),
    ],
)
def test_colours_change_as_torchvision_changes_them(change: int, amount: float, reference) -> None:
    images = pixels().float() / 255
    images[0, :, 0, 0] = 0.5  # gray: no hue at all
    images[0, :, 0, 1] = torch.tensor([0.7, 0.7, 0.1])  # two largest channels
    jitter = torch.zeros(4, 4)
    jitter[:, change] = amount
    found = jittered(images, jitter, (change,))
    assert torch.allclose(found, reference(images, amount), atol=2e-3)


def test_gray_images_have_no_colours_to_change() -> None:
    config = load_evaluate_config("imagenet")
    assert draw_changes(4, 1, config, stream(0, "test")).jitter is None
    changes = draw_changes(200, 3, config, stream(0, "test"))
    assert changes.jitter is not None and sorted(changes.jitter_order) == [0, 1, 2, 3]
    low, high = changes.jitter.min(0).values, changes.jitter.max(0).values
    assert (low >= torch.tensor([0.6, 0.6, 0.6, -0.2])).all() and (high <= torch.tensor([1.4, 1.4, 1.4, 0.2])).all()
