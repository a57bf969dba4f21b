"""Recipes: how the full network of a genotype is trained from scratch and tested. No torch."""

import json
import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from common.config import Frozen, NonNegativeFloat, PositiveFloat, Precision, explain
from common.errors import ConflictError, InvalidInputError, NotFoundError
from common.loading import apply_overrides
from common.network_config import FullNetworkConfig, PublishedMotif, network_config
from common.values import LearningRate, LearningRateOrZero

Schedule = Literal["cosine", "sgdr"]
BelowOne = Annotated[float, Field(ge=0, lt=1)]

# What a run may be resumed with other values of: they decide when it ends, and how often it is looked at or stored,
# never what a step computes.
_MAY_CHANGE = frozenset({"max_seconds", "max_epochs", "checkpoint_every_steps"})


class EvaluateConfig(Frozen):
    """Everything that decides how a network is trained and tested but its genotype and the images.

    The defaults are the recipe for CIFAR10: what the paper states (BASE sec. 6), and what its text leaves out from the
    authors' released evaluation code. Each field names its source; "reconstruction" where there is none.
    """

    motif: PublishedMotif = "cifar"
    """See `FullNetworkConfig` (released code)."""
    channels: int = Field(40, ge=2, le=4096, multiple_of=2)
    """Per node of the first cell (released code: 40 for CIFAR, 48 for ImageNet)."""
    num_cells: int = Field(20, ge=1, le=1000)
    """Released code: 20 for CIFAR, 14 for ImageNet."""
    image_size: int = Field(32, ge=4, le=4096)
    """Height and width in pixels of what the network reads."""
    stored_size: int | None = Field(None, ge=4, le=4096)
    """Height and width in pixels at which images are loaded; `image_size` where not given. From larger ones training
    takes random crops, and tests the center (released code: 256 for ImageNet's 224)."""

    epochs: int = Field(600, ge=1)
    """Length of the schedules (paper: 600 for CIFAR10, 160 for SVHN, 375 for ImageNet)."""
    batch_size: int = Field(96, ge=2)
    """Images of an optimizer step, over all processes (paper: 96; ImageNet 256, of which the released code has 128)."""
    batch_parts: int = Field(1, ge=1)
    """Equal parts of a batch that are computed one by one, or by as many processes: each has BatchNorm statistics of
    its own, and running statistics take the parts' mean. More parts need less memory. A number of processes must divide
    it (reconstruction: the released code's data parallelism has one part per GPU)."""
    lr: LearningRate = 0.025
    """First learning rate of SGD (released code: 0.025 for CIFAR, 0.05 for ImageNet)."""
    lr_end: LearningRateOrZero = 0.0
    """Learning rate that a cosine falls to (released code: 0)."""
    schedule: Schedule = "cosine"
    """cosine: one fall over all epochs. sgdr: falls of growing length, each after a jump back to `lr` (paper: SGDR for
    ImageNet)."""
    sgdr_first_period: int = Field(25, ge=1)
    """Epochs of the first fall under sgdr (released code)."""
    sgdr_factor: int = Field(2, ge=1)
    """How many times as long each fall is as the one before (released code: 25, 50, 100 and 200 epochs, 375 in all)."""
    momentum: BelowOne = 0.9
    """Of SGD (released code)."""
    weight_decay: NonNegativeFloat = 3e-4
    """Released code: 3e-4 for CIFAR, 3e-5 for ImageNet."""
    clip_norm: PositiveFloat | None = 5.0
    """Largest norm of the gradient of all weights together (released code: 5 for CIFAR, 10 for ImageNet)."""
    label_smoothing: BelowOne = 0.0
    """Share of each label that goes to all classes alike (released code: 0.1 for ImageNet)."""
    auxiliary_weight: NonNegativeFloat = 0.4
    """Of the auxiliary classifier's loss; 0 builds none (paper: 0.4)."""
    drop_path: BelowOne = 0.2
    """Probability of leaving out a path for an image; grows linearly with the epochs, from 0 (paper: 0.2; released
    code: 0 for ImageNet)."""

    crop_padding: int = Field(4, ge=0)
    """Pixels of black padding before a random crop back to the size; 0 is off (paper: crops of 32 from 40)."""
    flip: bool = True
    """Mirror half of the training images left to right (paper)."""
    cutout: int = Field(16, ge=0)
    """Side in pixels of a square around a random pixel that is set to the mean; 0 is off (paper: 16)."""
    resized_crop: bool = False
    """Training images are random parts, of 8 to 100 % of the area and sides of 3:4 to 4:3, resized (released code, for
    ImageNet)."""
    color_jitter: tuple[NonNegativeFloat, NonNegativeFloat, NonNegativeFloat, Annotated[float, Field(ge=0, le=0.5)]] = (
        0.0,
        0.0,
        0.0,
        0.0,
    )
    """Most that brightness, contrast and saturation are changed by, as shares, and hue, as a share of the circle
    (released code, for ImageNet: 0.4, 0.4, 0.4, 0.2). Colour images alone."""

    precision: Precision = "float32"
    """bfloat16 computes maps in it (torch's autocast); weights, gradients, loss and optimizer stay float32."""
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None = None
    """With it, an exponential moving average of weights and statistics is tested and stored instead of the last ones
    (not in the paper)."""
    seed: int = Field(0, ge=0)
    """Draws weights, order of images, augmentation and drop path."""

    validation_fraction: BelowOne = 0.0
    """Share of each class's training images that are kept out of training, to follow accuracy on. With 0 it is
    followed on the test images, as the released code does; nothing is chosen by it."""
    test_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Share of each class's images to test on, where the source comes without test images."""
    train_per_class: int | None = Field(None, ge=1)
    """Training images per class; all where not given."""
    test_per_class: int | None = Field(None, ge=1)
    """Test images per class; all where not given."""
    split_seed: int = Field(0, ge=0)
    """Chooses validation, and test images where there is a choice. Another `seed` trains on the same images."""

    evaluate_every_epochs: int = Field(1, ge=1)
    """How often accuracy is followed; the last epoch is measured in any case."""
    checkpoint_every_steps: int | None = Field(None, ge=1)
    """Steps between checkpoints, beside the one after every epoch."""
    max_epochs: int | None = Field(None, ge=1)
    """Stop after so many epochs of the schedules, and test what there is."""
    max_seconds: PositiveFloat | None = None
    """Stop after so many seconds of training, over all resumptions, and test what there is."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.batch_size < 2 * self.batch_parts:
            raise ValueError(
                f"batch_size {self.batch_size} in {self.batch_parts} parts leaves one image to a part, and BatchNorm "
                "needs 2; lower batch_parts or raise batch_size"
            )
        if self.lr_end > self.lr:
            raise ValueError(f"lr_end {self.lr_end} is above lr {self.lr}; a schedule only falls")
        if self.stored_size is not None and self.stored_size < self.image_size:
            raise ValueError(f"stored_size {self.stored_size} is below image_size {self.image_size}; raise it")
        if self.stored_size not in (None, self.image_size) and not self.resized_crop:
            raise ValueError("a stored_size above image_size needs resized_crop = true")
        return self

    @property
    def loaded_size(self) -> int:
        """Height and width in pixels at which images are loaded."""
        return self.stored_size or self.image_size

    @property
    def last_epoch(self) -> int:
        """Epochs that are trained: those of the schedules, or `max_epochs` where that is less."""
        return self.epochs if self.max_epochs is None else min(self.epochs, self.max_epochs)

    def network(self, num_classes: int, image_channels: int) -> FullNetworkConfig:
        """The network that is trained on images of so many classes and channels.

        Raises:
            InvalidInputError: a full network takes no such images.
        """
        return network_config(
            self.motif,
            channels=self.channels,
            num_cells=self.num_cells,
            num_classes=num_classes,
            image_size=self.image_size,
            image_channels=image_channels,
            auxiliary=self.auxiliary_weight > 0,
        )

    def lr_at(self, epoch: int) -> float:
        """The learning rate of epoch `epoch`, from 0; it changes between epochs alone, as in the released code."""
        first, length = self._period(epoch)
        return self.lr_end + (self.lr - self.lr_end) * 0.5 * (1 + math.cos(math.pi * (epoch - first) / length))

    def drop_path_at(self, epoch: int) -> float:
        """The probability of leaving out a path in epoch `epoch`, from 0."""
        return self.drop_path * epoch / self.epochs

    def _period(self, epoch: int) -> tuple[int, int]:
        """First epoch and length of the fall that `epoch` is in."""
        if self.schedule == "cosine":
            return 0, self.epochs
        first, length = 0, self.sgdr_first_period
        while epoch >= first + length:
            first, length = first + length, length * self.sgdr_factor
        return first, length


_IMAGENET: Mapping[str, Any] = {
    "motif": "imagenet",
    "channels": 48,
    "num_cells": 14,
    "image_size": 224,
    "stored_size": 256,
    "epochs": 375,
    # The paper's text has 256 and "lr 0.1 decayed by 0.97", which contradicts its SGDR; the released code agrees with
    # itself, so it is the recipe.
    "batch_size": 128,
    "lr": 0.05,
    "schedule": "sgdr",
    "weight_decay": 3e-5,
    "clip_norm": 10.0,
    "label_smoothing": 0.1,
    "drop_path": 0.0,
    "crop_padding": 0,
    "cutout": 0,
    "resized_crop": True,
    "color_jitter": (0.4, 0.4, 0.4, 0.2),
}

PRESETS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "cifar10": {},
        # "The rest as for CIFAR10" (paper), mirrored digits included.
        "svhn": {"epochs": 160},
        "imagenet": _IMAGENET,
        # Not from the paper: seconds on one core, for tests and a first look.
        "smoke": {
            "channels": 4,
            "num_cells": 3,
            "image_size": 8,
            "epochs": 3,
            "batch_size": 32,
            "crop_padding": 1,
            "flip": False,
            "cutout": 2,
            "train_per_class": 40,
            "test_per_class": 20,
        },
    }
)
"""Changes of the defaults by name."""


def load_evaluate_config(preset: str, overrides: Sequence[str] = ()) -> EvaluateConfig:
    """The recipe of a preset with changes.

    Args:
        preset: one of `PRESETS`.
        overrides: `field=value`, as `common.loading.apply_overrides` takes them.

    Raises:
        NotFoundError: there is no such preset.
        InvalidInputError: a field is unknown, out of range or of the wrong type.
    """
    if preset not in PRESETS:
        raise NotFoundError(f"no recipe {preset!r}; recipes are {', '.join(PRESETS)}")
    tree = EvaluateConfig.model_validate(PRESETS[preset]).model_dump(mode="json")
    apply_overrides(tree, overrides)
    return validate_evaluate_config(tree)


def validate_evaluate_config(tree: Mapping[str, Any]) -> EvaluateConfig:
    """An `EvaluateConfig` from plain values.

    Raises:
        InvalidInputError: names every wrong field, its value and what is allowed.
    """
    try:
        return EvaluateConfig.model_validate(tree)
    except ValidationError as error:
        raise InvalidInputError("recipe: " + explain(error)) from None


def check_same_recipe(stored: EvaluateConfig, given: EvaluateConfig) -> None:
    """Refuses to go on with a training under another recipe; when it ends and is stored may change.

    Raises:
        ConflictError: names the first field that differs.
    """
    before, now = stored.model_dump(mode="json"), given.model_dump(mode="json")
    for name in before:
        if name not in _MAY_CHANGE and before[name] != now[name]:
            raise ConflictError(
                f"the training was started with {name} = {json.dumps(before[name])}, now it is "
                f"{json.dumps(now[name])}; resume without it, or start another run"
            )
