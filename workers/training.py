"""Trains the full network of a genotype from scratch, and tests it (BASE sec. 6 and the released evaluation code).

A pure function of its arguments, the clock that a budget needs among them. Random numbers are keyed by (seed, epoch,
step, part of the batch, purpose): a training that was stopped anywhere and resumed ends in the same weights, on a CPU
to the last bit, and parts of a batch draw the same in one process as in several.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor, nn

from common.errors import AdaptationError, CorruptArtifactError, InvalidInputError
from common.evaluate_config import EvaluateConfig
from common.nn.full import FullNetwork, build_full_network
from common.space.genotype import Genotype
from common.storage import ArtifactFolder
from common.streams import derived_seed, stream
from workers.augment import Standardisation, draw_changes, evaluation_images, training_images
from workers.checkpoint import CheckpointFolder, EpochRecord, TrainingState, TrainingSubject
from workers.data.whole import WholeSource, channel_statistics
from workers.device import autocast, on_device
from workers.image_batches import ImageBatches
from workers.parallel import Alone, ProcessGroup
from workers.score import Score

EVALUATION_BATCH = 512

EndedBy = Literal["schedule", "max_epochs", "max_seconds", "stop"]

_KEY = "evaluate"


@dataclass(frozen=True)
class TrainProgress:
    """How far a training is.

    Attributes:
        steps_done: optimizer steps so far.
        num_steps: steps of all epochs that are to be trained.
        epochs_done: epochs so far.
        last: the last epoch done.
    """

    steps_done: int
    num_steps: int
    epochs_done: int
    last: EpochRecord | None


@dataclass(frozen=True, eq=False)
class TrainOutcome:
    """What a training led to.

    Attributes:
        ended_by: the schedule's last epoch, a budget, or `should_stop`, after which `tested` is None.
        network: on the CPU, in evaluation mode; the moving average where the recipe has one.
        standardisation: what the network's inputs are shifted and divided by.
        state: how far it came.
        tested: `network` on the test images.
        tested_without_average: the last weights on the test images, where `network` is a moving average.
    """

    ended_by: EndedBy
    network: FullNetwork
    standardisation: Standardisation
    state: TrainingState
    tested: Score | None
    tested_without_average: Score | None


def train(
    genotype: Genotype,
    config: EvaluateConfig,
    source: WholeSource,
    folder: ArtifactFolder,
    device: torch.device,
    group: ProcessGroup | None = None,
    on_progress: Callable[[TrainProgress], None] = lambda progress: None,
    should_stop: Callable[[], bool] = lambda: False,
    clock_s: Callable[[], float] = time.monotonic,
) -> TrainOutcome:
    """Trains and tests a network; goes on with the checkpoint in `folder` where there is one.

    Args:
        genotype: kinds normal and reduction.
        config: the recipe.
        source: the images.
        folder: for checkpoints alone; the same for all processes of a group.
        device: to compute on.
        group: processes that train together; `config.batch_parts` is a multiple of their number. Their running
            statistics and gradients are averaged after every step, so all hold the same network at any time. BatchNorm
            takes the statistics of each part by itself (torch's SyncBatchNorm exists for CUDA only).
        on_progress: called after every step, and once at the start.
        should_stop: asked before every step; a training that is stopped has stored a checkpoint.
        clock_s: seconds, for `config.max_seconds` and the time spent.

    Raises:
        InvalidInputError: no full network takes the genotype or the images, there are too few images for a batch, or
            the number of processes does not divide the parts of a batch.
        ConflictError: the checkpoint is of another training.
        CorruptArtifactError: the checkpoint is truncated or altered.
        UnavailableError: the storage refuses.
        AdaptationError: the training diverged, or ran out of memory.
    """
    training = _Training(genotype, config, source, device, group or Alone())
    checkpoints = CheckpointFolder(folder)
    found = checkpoints.load(training.subject)
    if found is not None:
        training.restore_(*found)
    started_s = clock_s() - training.seconds

    def save() -> None:
        training.seconds = clock_s() - started_s
        state = training.state()
        if training.group.rank == 0:
            checkpoints.save(training.subject, state, training.tensors())

    def seconds_are_up() -> bool:
        return config.max_seconds is not None and clock_s() - started_s >= config.max_seconds

    ended_by: EndedBy = "schedule" if config.last_epoch == config.epochs else "max_epochs"
    try:
        on_progress(training.progress())
        while training.epoch < config.last_epoch:
            stops, is_late = training.group.any(should_stop()), training.group.any(seconds_are_up())
            if stops or is_late:
                save()
                ended_by = "stop" if stops else "max_seconds"
                break
            training.step_()
            ends_epoch = training.step == training.steps_per_epoch
            if ends_epoch:
                training.end_epoch_()
            every = config.checkpoint_every_steps
            if ends_epoch or (every is not None and training.steps_done % every == 0):
                save()
            on_progress(training.progress())
        training.seconds = clock_s() - started_s
        tested = None if ended_by == "stop" else training.test()
        without_average = training.test(averaged=False) if tested is not None and training.average else None
    except torch.OutOfMemoryError as error:
        raise AdaptationError(
            f"a batch of {config.batch_size} images in {config.batch_parts} parts does not fit into the memory of "
            f"{device}; raise batch_parts ({str(error).splitlines()[0]})"
        ) from error
    return TrainOutcome(
        ended_by, training.finished_network(), training.standardisation, training.state(), tested, without_average
    )


def check_batches(config: EvaluateConfig, num_images: int, num_processes: int) -> None:
    """Refuses a recipe whose batches cannot be made, or not be shared out evenly.

    Raises:
        InvalidInputError: there are too few images for a batch, or the processes do not divide its parts.
    """
    if config.batch_parts % num_processes:
        raise InvalidInputError(
            f"batch_parts {config.batch_parts} is no multiple of the {num_processes} processes; set it to "
            f"{num_processes}"
        )
    if not num_batches(num_images, config):
        raise InvalidInputError(
            f"{num_images} training images are too few for a batch in {config.batch_parts} parts of 2 or more"
        )


def num_batches(num_images: int, config: EvaluateConfig) -> int:
    """Batches of an epoch; a last one that would leave a part with a single image, which BatchNorm refuses, is left
    out. Which images those are differs from epoch to epoch."""
    whole, rest = divmod(num_images, config.batch_size)
    return whole + (rest >= 2 * config.batch_parts)


class _Training:
    """A training under way. Methods that end in an underscore change it, the same way in every process of the group."""

    def __init__(
        self,
        genotype: Genotype,
        config: EvaluateConfig,
        source: WholeSource,
        device: torch.device,
        group: ProcessGroup,
    ) -> None:
        check_batches(config, source.train.num_images, group.world_size)
        self.config = config
        self.device = device
        self.group = group
        channels = source.arrays.image_shape[2]
        network_config = config.network(source.arrays.num_classes, channels)
        self.subject = TrainingSubject(
            genotype=genotype,
            network=network_config,
            config=config,
            data_fingerprint=source.arrays.fingerprint,
        )
        self.network = build_full_network(genotype, network_config, derived_seed(config.seed, _KEY, "weights"))
        self.network.to(device)
        self.parameters = list(self.network.parameters())
        # BatchNorm's running means and variances; how many batches it has seen is of no use to it.
        self.statistics = [buffer for buffer in self.network.buffers() if buffer.is_floating_point()]
        self.optimizer = torch.optim.SGD(
            self.parameters, lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay
        )
        self.average = (
            None
            if config.ema_decay is None
            else {name: value.detach().clone() for name, value in _float_state(self.network)}
        )
        self.train_images = ImageBatches(source.train, device)
        self.test_images = ImageBatches(source.test, device)
        self.followed_images = (
            ImageBatches(source.validation, device) if source.validation.num_images else self.test_images
        )
        self.standardisation = Standardisation(*channel_statistics(source.train))
        self.steps_per_epoch = num_batches(source.train.num_images, config)

        self.epoch = self.step = self.steps_done = 0
        self.seconds = 0.0
        self.history: tuple[EpochRecord, ...] = ()
        self._begin_epoch_()

    def step_(self) -> None:
        """One optimizer step, on one batch over all processes."""
        config = self.config
        for options in self.optimizer.param_groups:
            options["lr"] = config.lr_at(self.epoch)
        first = self.step * config.batch_size
        batch = self._order[first : first + config.batch_size]
        parts = np.array_split(batch, config.batch_parts)
        self.network.train()
        self.optimizer.zero_grad()
        before = [each.clone() for each in self.statistics] if config.batch_parts > 1 else []
        totals = [torch.zeros_like(each) for each in before]
        for index in range(self.group.rank, config.batch_parts, self.group.world_size):
            for statistic, value in zip(self.statistics, before, strict=False):
                statistic.copy_(value)
            self._backward_(parts[index], index, len(batch))
            for total, statistic in zip(totals, self.statistics, strict=False):
                total += statistic
        self._share_(totals)
        if config.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.parameters, config.clip_norm)
        self.optimizer.step()
        self.step += 1
        self.steps_done += 1
        self._update_average_()

    def end_epoch_(self) -> None:
        """Takes down the epoch, whose steps are done, and begins the next.

        Raises:
            AdaptationError: the loss is not finite.
        """
        loss_sum, num_correct, num_images = self._sums()
        self._check_finite(loss_sum)
        done = self.epoch + 1
        measures = done % self.config.evaluate_every_epochs == 0 or done == self.config.last_epoch
        followed = self._measure(self.followed_images, self.average) if measures else None
        record = EpochRecord(
            epoch=done,
            lr=self.config.lr_at(self.epoch),
            drop_path=self.config.drop_path_at(self.epoch),
            train_loss_nats=loss_sum / num_images,
            train_accuracy=num_correct / num_images,
            accuracy=None if followed is None else followed.accuracy,
            loss_nats=None if followed is None else followed.loss_nats,
        )
        self.history = (*self.history, record)
        self.epoch, self.step = done, 0
        self._begin_epoch_()

    def test(self, averaged: bool = True) -> Score:
        """The moving average, or the last weights, on the test images."""
        return self._measure(self.test_images, self.average if averaged else None)

    def progress(self) -> TrainProgress:
        """How far it is."""
        num_steps = self.config.last_epoch * self.steps_per_epoch
        return TrainProgress(self.steps_done, num_steps, self.epoch, self.history[-1] if self.history else None)

    def state(self) -> TrainingState:
        """All but tensors.

        Raises:
            AdaptationError: the loss is not finite.
        """
        loss_sum, num_correct, num_images = self._sums()
        self._check_finite(loss_sum)
        return TrainingState(
            epoch=self.epoch,
            step=self.step,
            steps_done=self.steps_done,
            loss_sum=loss_sum,
            num_correct=num_correct,
            num_images=num_images,
            seconds=self.seconds,
            history=self.history,
        )

    def tensors(self) -> dict[str, Tensor]:
        """What `restore_` takes beside the state."""
        found = {f"network/{name}": value for name, value in self.network.state_dict().items()}
        for name, parameter in self.network.named_parameters():
            momentum = self.optimizer.state[parameter].get("momentum_buffer")
            if momentum is not None:
                found[f"momentum/{name}"] = momentum
        found |= {f"average/{name}": value for name, value in (self.average or {}).items()}
        return found

    def restore_(self, state: TrainingState, tensors: dict[str, Tensor]) -> None:
        """Goes back to a checkpoint of this training.

        Raises:
            CorruptArtifactError: tensors are missing.
        """
        groups: dict[str, dict[str, Tensor]] = {"network": {}, "momentum": {}, "average": {}}
        for name, value in tensors.items():
            kind, _, rest = name.partition("/")
            groups.setdefault(kind, {})[rest] = value.to(self.device)
        try:
            self.network.load_state_dict(groups["network"])
        except RuntimeError as error:
            raise CorruptArtifactError(f"the checkpoint is not of this network: {error}") from None
        for name, parameter in self.network.named_parameters():
            if name in groups["momentum"]:
                self.optimizer.state[parameter]["momentum_buffer"] = groups["momentum"][name].clone()
        if self.average is not None:
            self.average = {name: groups["average"][name].clone() for name in self.average}
        self.epoch, self.step, self.steps_done = state.epoch, state.step, state.steps_done
        self.seconds, self.history = state.seconds, state.history
        self._begin_epoch_()
        if self.group.rank == 0:  # sums are over all processes: one of them has what came before
            self._loss_sum += state.loss_sum
            self._num_correct += state.num_correct
            self._num_images += state.num_images

    def finished_network(self) -> FullNetwork:
        """A copy on the CPU in evaluation mode: the moving average, where there is one."""
        copy = FullNetwork(self.network.genotype, self.network.config)
        copy.load_state_dict({**self.network.state_dict(), **(self.average or {})})
        return copy.eval()

    def _begin_epoch_(self) -> None:
        random = stream(self.config.seed, _KEY, self.epoch, "order")
        self._order: NDArray[np.int64] = random.permutation(self.train_images.num_images)
        self._loss_sum = torch.zeros((), dtype=torch.float64, device=self.device)
        self._num_correct = torch.zeros((), dtype=torch.int64, device=self.device)
        self._num_images = 0

    def _backward_(self, indices: NDArray[np.int64], part: int, batch_size: int) -> None:
        """Adds a part's share of the gradient of the batch's mean loss."""
        config = self.config
        random = stream(config.seed, _KEY, self.epoch, self.step, part, "augmentation")
        drawn = draw_changes(len(indices), self.network.config.image_channels, config, random)
        images, labels = self.train_images.at(indices)
        inputs = training_images(images, on_device(drawn, self.device), config, self.standardisation)
        generator = torch.Generator(self.device)
        generator.manual_seed(derived_seed(config.seed, _KEY, self.epoch, self.step, part, "drop path"))
        with autocast(self.device, config.precision):
            logits, auxiliary = self.network.training_logits(inputs, config.drop_path_at(self.epoch), generator)
        loss = self._loss(logits, labels)
        if auxiliary is not None:
            loss = loss + config.auxiliary_weight * self._loss(auxiliary, labels)
        (loss / batch_size).backward()
        self._loss_sum += loss.detach()
        self._num_correct += (logits.detach().argmax(dim=1) == labels).sum()
        self._num_images += len(indices)

    def _loss(self, logits: Float[Tensor, "batch label"], labels: Int[Tensor, "batch"]) -> Float[Tensor, ""]:
        """Sum over the images, in nats."""
        return F.cross_entropy(logits.float(), labels, reduction="sum", label_smoothing=self.config.label_smoothing)

    def _share_(self, totals: Sequence[Tensor]) -> None:
        """Adds up gradients, and averages running statistics, over all parts of the batch."""
        if self.group.world_size > 1:
            gradients = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
            # One message: latency, not size, is what many small ones would cost.
            flat = torch.cat([each.reshape(-1) for each in (*gradients, *totals)])
            self.group.sum_(flat)
            at = 0
            for each in (*gradients, *totals):
                each.copy_(flat[at : at + each.numel()].view_as(each))
                at += each.numel()
        for statistic, total in zip(self.statistics, totals, strict=False):
            statistic.copy_(total / self.config.batch_parts)

    @torch.no_grad()
    def _update_average_(self) -> None:
        if self.average is None or self.config.ema_decay is None:
            return
        # Short at first, or the average would remember the weights that were drawn at the start.
        decay = min(self.config.ema_decay, (1 + self.steps_done) / (10 + self.steps_done))
        for name, value in _float_state(self.network):
            self.average[name].lerp_(value, 1 - decay)

    @torch.no_grad()
    def _measure(self, images: ImageBatches, state: dict[str, Tensor] | None) -> Score:
        """Counts what the network gets right with running statistics; with `state` in place of its own."""
        self.network.eval()
        sums = torch.zeros(3, dtype=torch.float64, device=self.device)
        batches = list(range(0, images.num_images, EVALUATION_BATCH))
        for first in batches[self.group.rank :: self.group.world_size]:
            indices = np.arange(first, min(first + EVALUATION_BATCH, images.num_images))
            pixels, labels = images.at(indices)
            inputs = evaluation_images(pixels, self.config, self.standardisation)
            with autocast(self.device, self.config.precision):
                logits = (
                    self.network(inputs)
                    if state is None
                    else torch.func.functional_call(self.network, state, (inputs,))
                )
            logits = logits.float()
            loss = F.cross_entropy(logits, labels, reduction="sum")
            sums += torch.stack([(logits.argmax(dim=1) == labels).sum(), torch.tensor(len(indices)), loss]).to(sums)
        self.group.sum_(sums)
        num_correct, num_images, loss_sum = sums.tolist()
        return Score(int(num_correct), int(num_images), loss_sum / num_images)

    def _sums(self) -> tuple[float, int, int]:
        """Loss, right answers and images of this epoch so far, over all processes."""
        counts = torch.stack([self._num_correct, torch.tensor(self._num_images, device=self.device)])
        loss_sum = self._loss_sum.clone()
        self.group.sum_(loss_sum)
        self.group.sum_(counts)
        num_correct, num_images = counts.tolist()
        return float(loss_sum), int(num_correct), int(num_images)

    def _check_finite(self, loss_sum: float) -> None:
        if not math.isfinite(loss_sum):
            raise AdaptationError(
                f"the loss is {loss_sum} in epoch {self.epoch + 1}: the training diverged; lower lr, or clip_norm"
            )


def _float_state(network: FullNetwork) -> Iterator[tuple[str, Tensor]]:
    return ((name, value) for name, value in network.state_dict().items() if value.is_floating_point())
