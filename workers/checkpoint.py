"""How far the training of a full network is, stored so that it goes on where it was, bit for bit.

A folder of checkpoints:
    state-00001234.safetensors    every tensor after 1,234 steps: weights, momenta, the moving average
    checkpoint.json               all else, with the file's name, size and SHA-256; written last, replaced as a whole
"""

import contextlib
import hashlib
from collections.abc import Iterable, Mapping

from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from common.config import Frozen, explain
from common.errors import ConflictError, CorruptArtifactError, NotFoundError
from common.evaluate_config import EvaluateConfig, check_same_recipe
from common.network_config import FullNetworkConfig
from common.space.genotype import Genotype
from common.storage import ArtifactFolder

CHECKPOINT = "checkpoint.json"
CHECKPOINT_FORMAT = 1
_STEM = "state-"
_SUFFIX = ".safetensors"


class EpochRecord(Frozen):
    """An epoch of training, as the learning curve shows it."""

    epoch: int
    """Epochs done, from 1."""
    lr: float
    drop_path: float
    """Probability of leaving out a path."""
    train_loss_nats: float
    """Mean over the epoch's batches, the auxiliary classifier's share included, while the network learns."""
    train_accuracy: float
    """On augmented images, while the network learns; 0 to 1."""
    accuracy: float | None = None
    """After the epoch, on validation images, or on test images where there are none; None where not measured."""
    loss_nats: float | None = None
    """Mean cross-entropy there."""


class TrainingState(Frozen):
    """How far a training is, but for tensors."""

    epoch: int = 0
    """Epochs done."""
    step: int = 0
    """Steps done of the next one."""
    steps_done: int = 0
    """Steps done in all."""
    loss_sum: float = 0.0
    """Of the images of this epoch so far, nats."""
    num_correct: int = 0
    """Of these images."""
    num_images: int = 0
    """How many these are."""
    seconds: float = 0.0
    """Time spent training, over all resumptions."""
    history: tuple[EpochRecord, ...] = ()


class TrainingSubject(Frozen):
    """What is trained on what; a checkpoint of another subject or recipe is not gone on with."""

    genotype: Genotype
    network: FullNetworkConfig
    config: EvaluateConfig
    data_fingerprint: str
    """Of the source's arrays."""


class Checkpoint(Frozen):
    """What checkpoint.json says."""

    format: int
    subject: TrainingSubject
    state: TrainingState
    file: str
    """Name of the tensors' file."""
    num_bytes: int
    sha256: str
    """Of the tensors' file."""


class CheckpointFolder:
    """The checkpoints of one training; the last one is kept.

    Args:
        folder: holds nothing else.
    """

    def __init__(self, folder: ArtifactFolder) -> None:
        self.folder = folder

    def save(self, subject: TrainingSubject, state: TrainingState, tensors: Mapping[str, Tensor]) -> None:
        """Stores a checkpoint in place of the one before; whatever interrupts, one of both is there.

        Raises:
            UnavailableError: the storage refuses.
        """
        data = save_tensors({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
        stem = f"{_STEM}{state.steps_done:08d}"
        checkpoint = Checkpoint(
            format=CHECKPOINT_FORMAT,
            subject=subject,
            state=state,
            file=stem + _SUFFIX,
            num_bytes=len(data),
            sha256=hashlib.sha256(data).hexdigest(),
        )
        self.folder.write(checkpoint.file, data)
        self.folder.write(CHECKPOINT, checkpoint.model_dump_json(indent=2).encode())
        for other in self.folder.names("", _SUFFIX):
            if other.startswith(_STEM) and other != stem:
                self.folder.remove(other + _SUFFIX)

    def adopt_(self, others: Iterable["CheckpointFolder"]) -> None:
        """Copies the newest intact checkpoint of other folders, unless this one has a checkpoint itself.

        Raises:
            UnavailableError: the storage refuses.
        """
        if self.folder.exists(CHECKPOINT):
            return
        found: list[tuple[Checkpoint, CheckpointFolder]] = []
        for other in others:
            with contextlib.suppress(NotFoundError, CorruptArtifactError):
                found.append((other._manifest(), other))
        for checkpoint, other in sorted(found, key=lambda pair: pair[0].state.steps_done, reverse=True):
            with contextlib.suppress(
                CorruptArtifactError
            ):  # whoever wrote it may have been killed, or still be at work
                data = other._data(checkpoint)
                self.folder.write(checkpoint.file, data)
                self.folder.write(CHECKPOINT, checkpoint.model_dump_json(indent=2).encode())
                return

    def load(self, subject: TrainingSubject) -> tuple[TrainingState, dict[str, Tensor]] | None:
        """The stored checkpoint, on the CPU; None where there is none.

        Raises:
            ConflictError: it is of another genotype, network, source or recipe.
            CorruptArtifactError: it is truncated or altered.
            UnavailableError: the storage refuses.
        """
        try:
            checkpoint = self._manifest()
        except NotFoundError:
            return None
        _check_same(checkpoint.subject, subject, self.folder.url)
        try:
            tensors: dict[str, Tensor] = load_tensors(self._data(checkpoint))
        except SafetensorError as error:
            path = self.folder.path(checkpoint.file)
            raise CorruptArtifactError(f"{path} is not a safetensors file: {error}; {_REMEDY}") from None
        return checkpoint.state, tensors

    def _manifest(self) -> Checkpoint:
        path = self.folder.path(CHECKPOINT)
        try:
            checkpoint = Checkpoint.model_validate_json(self.folder.read(CHECKPOINT))
        except ValidationError as error:
            raise CorruptArtifactError(f"{path} is not a checkpoint: {explain(error)}; {_REMEDY}") from None
        if checkpoint.format != CHECKPOINT_FORMAT:
            raise CorruptArtifactError(
                f"{path} has format {checkpoint.format}, this program reads {CHECKPOINT_FORMAT}; {_REMEDY}"
            )
        return checkpoint

    def _data(self, checkpoint: Checkpoint) -> bytes:
        path = self.folder.path(checkpoint.file)
        try:
            data = self.folder.read(checkpoint.file)
        except NotFoundError:
            raise CorruptArtifactError(f"{path} is missing; {_REMEDY}") from None
        if len(data) != checkpoint.num_bytes or hashlib.sha256(data).hexdigest() != checkpoint.sha256:
            raise CorruptArtifactError(f"{path} is not what {CHECKPOINT} says; {_REMEDY}")
        return data


_REMEDY = "remove the folder to train from the start"


def _check_same(stored: TrainingSubject, given: TrainingSubject, url: str) -> None:
    check_same_recipe(stored.config, given.config)
    for name, what in (("genotype", "genotype"), ("network", "network"), ("data_fingerprint", "set of images")):
        if getattr(stored, name) != getattr(given, name):
            raise ConflictError(f"{url} holds the training of another {what}; resume that one, or start another run")
