"""Images as full networks read them: random changes drawn on the host and made on the device, then standardised."""

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from common.config import AugmentConfig
from common.evaluate_config import EvaluateConfig
from workers.device import AugmentDraws, ResidentImages, draw_augmentation, to_float

# Of a random resized crop: shares of the area, ratios of width to height, and draws before the center is taken.
CROP_AREA = (0.08, 1.0)
CROP_RATIO = (3 / 4, 4 / 3)
_CROP_TRIES = 10

_LUMINANCE = (0.299, 0.587, 0.114)


@dataclass(frozen=True)
class Changes:
    """How each image of a batch is changed; None where the recipe leaves that out.

    Attributes:
        shifts: random crops from a padded image, and mirrors.
        boxes: part that is resized to the whole image: top, left, height and width in pixels.
        jitter: factors of brightness, contrast and saturation, and the turn of the hue as a share of the circle.
        jitter_order: of these four. One for the batch (torchvision draws one for each image).
        holes: row and column around which a square is cut out.
    """

    shifts: AugmentDraws
    boxes: Float[Tensor, "batch 4"] | None
    jitter: Float[Tensor, "batch 4"] | None
    jitter_order: tuple[int, ...]
    holes: Int[Tensor, "2 batch"] | None


def draw_changes(num_images: int, channels: int, config: EvaluateConfig, generator: np.random.Generator) -> Changes:
    """Draws changes to `num_images` images of so many channels, on the host."""
    shifts = draw_augmentation(num_images, _shift_config(config), generator)
    boxes, jitter, holes = None, None, None
    order: tuple[int, ...] = ()
    if config.resized_crop:
        drawn = [_draw_box(config.loaded_size, generator) for _ in range(num_images)]
        boxes = torch.tensor(drawn, dtype=torch.float32)
    if any(config.color_jitter) and channels == 3:
        most = np.array(config.color_jitter)
        factors = generator.uniform(-1.0, 1.0, (num_images, 4)) * most
        factors[:, :3] = np.maximum(1 + factors[:, :3], 0)
        jitter = torch.from_numpy(factors.astype(np.float32))
        order = tuple(int(each) for each in generator.permutation(4))
    if config.cutout:
        holes = torch.from_numpy(generator.integers(0, config.image_size, (2, num_images)))
    return Changes(shifts, boxes, jitter, order, holes)


@dataclass(frozen=True)
class Standardisation:
    """Mean and standard deviation of each channel's pixels, which are from 0 to 1: what the network's inputs are
    shifted and divided by."""

    mean: tuple[float, ...]
    deviation: tuple[float, ...]

    def apply(
        self, images: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch channels height width"]:
        """Of pixels from 0 to 1."""
        shape = (1, len(self.mean), 1, 1)
        mean = torch.tensor(self.mean, device=images.device).view(shape)
        deviation = torch.tensor(self.deviation, device=images.device).view(shape)
        return (images - mean) / deviation


def training_images(
    images: UInt8[Tensor, "batch channels height width"],
    changes: Changes,
    config: EvaluateConfig,
    standardisation: Standardisation,
) -> Float[Tensor, "batch channels size size"]:
    """Changed and standardised images, channels last in memory; `changes` are on the device."""
    indices = torch.arange(len(images), device=images.device)
    resident = ResidentImages(images, indices)
    floats, _ = resident.augmented_batch(indices, _shift_config(config), changes.shifts)
    pixels = (floats + 1) / 2
    if changes.boxes is not None:
        pixels = resized_crops(pixels, changes.boxes, config.image_size)
    if changes.jitter is not None:
        pixels = jittered(pixels, changes.jitter, changes.jitter_order)
    pixels = standardisation.apply(pixels)
    if changes.holes is not None:
        # After standardisation: what is cut out becomes the mean (released code).
        pixels = cut_out(pixels, changes.holes, config.cutout)
    return pixels.contiguous(memory_format=torch.channels_last)


def evaluation_images(
    images: UInt8[Tensor, "batch channels height width"], config: EvaluateConfig, standardisation: Standardisation
) -> Float[Tensor, "batch channels size size"]:
    """The standardised center of each image, channels last in memory."""
    first = (config.loaded_size - config.image_size) // 2
    window = slice(first, first + config.image_size)
    pixels = standardisation.apply((to_float(images[:, :, window, window]) + 1) / 2)
    return pixels.contiguous(memory_format=torch.channels_last)


def resized_crops(
    images: Float[Tensor, "batch channels height width"], boxes: Float[Tensor, "batch 4"], size: int
) -> Float[Tensor, "batch channels {size} {size}"]:
    """A part of each image (top, left, height, width in pixels), bilinearly resized to `size` x `size`.

    Without antialiasing: parts of 256 are at most slightly larger than 224 (torchvision resizes with it).
    """
    height, width = images.shape[2:]
    top, left, box_height, box_width = boxes.unbind(1)
    zero = torch.zeros_like(top)
    rows = torch.stack(
        [
            torch.stack([box_width / width, zero, (2 * left + box_width) / width - 1], dim=1),
            torch.stack([zero, box_height / height, (2 * top + box_height) / height - 1], dim=1),
        ],
        dim=1,
    )
    grid = F.affine_grid(rows, [len(images), images.shape[1], size, size], align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def jittered(
    images: Float[Tensor, "batch 3 height width"], jitter: Float[Tensor, "batch 4"], order: tuple[int, ...]
) -> Float[Tensor, "batch 3 height width"]:
    """Images whose brightness, contrast, saturation and hue are changed as torchvision's ColorJitter does."""
    for change in order:
        amount = jitter[:, change].view(-1, 1, 1, 1)
        if change == 0:
            images = (images * amount).clamp(0, 1)
        elif change == 1:
            images = _blended(images, _gray(images).mean(dim=(1, 2, 3), keepdim=True), amount)
        elif change == 2:
            images = _blended(images, _gray(images), amount)
        else:
            images = _hue_turned(images, amount)
    return images


def cut_out(
    images: Float[Tensor, "batch channels height width"], centers: Int[Tensor, "2 batch"], side: int
) -> Float[Tensor, "batch channels height width"]:
    """Zeros in a square of each image, which may reach over its edge (cutout, as in the released code)."""
    height, width = images.shape[2:]
    half = side // 2

    def inside(length: int, center: Tensor) -> Tensor:
        offset = torch.arange(length, device=images.device)[None] - center[:, None]
        return (offset >= -half) & (offset < half)

    hole = inside(height, centers[0])[:, None, :, None] & inside(width, centers[1])[:, None, None, :]
    return images.masked_fill(hole, 0.0)


def _shift_config(config: EvaluateConfig) -> AugmentConfig:
    return AugmentConfig(crop_padding=config.crop_padding, flip=config.flip)


def _draw_box(size: int, generator: np.random.Generator) -> tuple[int, int, int, int]:
    """Top, left, height and width of a part, as torchvision's RandomResizedCrop draws it."""
    for _ in range(_CROP_TRIES):
        area = size * size * generator.uniform(*CROP_AREA)
        ratio = math.exp(generator.uniform(math.log(CROP_RATIO[0]), math.log(CROP_RATIO[1])))
        width, height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < width <= size and 0 < height <= size:
            top, left = generator.integers(0, (size - height + 1, size - width + 1))
            return int(top), int(left), height, width
    return 0, 0, size, size


def _gray(images: Tensor) -> Tensor:
    weights = torch.tensor(_LUMINANCE, device=images.device).view(1, 3, 1, 1)
    return (images * weights).sum(dim=1, keepdim=True)


def _blended(images: Tensor, others: Tensor, amount: Tensor) -> Tensor:
    return (amount * images + (1 - amount) * others).clamp(0, 1)


def _hue_turned(images: Tensor, turn: Tensor) -> Tensor:
    """RGB by way of hue, saturation and value: with value V and saturation S, a channel is V - V S w(hue)."""
    value, _ = images.max(dim=1, keepdim=True)
    spread = value - images.amin(dim=1, keepdim=True)
    safe = torch.where(spread == 0, torch.ones_like(spread), spread)
    red, green, blue = images.unbind(1)
    sextant = torch.where(
        red == value[:, 0],
        (green - blue) / safe[:, 0],
        torch.where(green == value[:, 0], 2 + (blue - red) / safe[:, 0], 4 + (red - green) / safe[:, 0]),
    )
    hue = sextant[:, None] + 6 * turn
    start = torch.tensor([5.0, 3.0, 1.0], device=images.device).view(1, 3, 1, 1)
    place = torch.remainder(start + hue, 6)
    return value - spread * torch.minimum(place, 4 - place).clamp(0, 1)
