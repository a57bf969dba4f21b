"""Full networks as values: motif, size, and how one is stored in a folder. No torch.

A network's folder:
    weights.safetensors    every parameter and BatchNorm statistic, by its name in `common.nn.full.FullNetwork`
    network.json           the genotype, `FullNetworkConfig`, size and SHA-256 of the weights; written last
"""

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, Literal, get_args

from pydantic import Field, ValidationError

from common.errors import CorruptArtifactError, InvalidInputError, NotFoundError
from common.space.genotype import Genotype, GenotypeEdge
from common.space.primitives import MAX_POOL
from common.space.released import NORMAL, REDUCTION
from common.storage import ArtifactFolder
from common.values import Frozen, explain

Motif = Literal["cifar", "imagenet"]

NETWORK = "network.json"
WEIGHTS = "weights.safetensors"
NETWORK_FORMAT = 1

_IMAGENET_STEM_STRIDE = 8

# What the released evaluation code trains: CIFAR10 (SVHN's networks are of the same motif), and ImageNet.
_PUBLISHED: Mapping[str, Mapping[str, int]] = MappingProxyType(
    {
        "cifar": {"channels": 40, "num_cells": 20, "num_classes": 10, "image_size": 32},
        "imagenet": {"channels": 48, "num_cells": 14, "num_classes": 1000, "image_size": 224},
    }
)


class FullNetworkConfig(Frozen):
    """All of a full network but its genotype (BASE sec. 6 and the released evaluation code)."""

    motif: Motif = "cifar"
    """cifar: a stem of stride 1, also for SVHN. imagenet: a stem of stride 8, in three convolutions."""
    channels: int = Field(40, ge=2, le=4096, multiple_of=2)
    """Channels per node of the first cell; each reduction cell doubles them."""
    num_cells: int = Field(20, ge=1, le=1000)
    """Cells, two of them reductions, after a third and after two thirds."""
    num_classes: int = Field(10, ge=1)
    """Rows of the classifier."""
    image_size: int = Field(32, ge=1, le=4096)
    """Height and width in pixels of the images that it is made for."""
    image_channels: Literal[1, 3] = 3
    """Channels of the images."""
    auxiliary: bool = True
    """A second classifier after the second reduction, for training alone."""

    @property
    def cell_kinds(self) -> tuple[str, ...]:
        """Kind of each cell, first to last; one cell of a single one is a reduction."""
        return tuple(
            REDUCTION if index in (self.num_cells // 3, self.auxiliary_cell) else NORMAL
            for index in range(self.num_cells)
        )

    @property
    def auxiliary_cell(self) -> int:
        """Index of the cell whose output the auxiliary classifier reads: the second reduction."""
        return 2 * self.num_cells // 3


class CellPlan(Frozen):
    """What a cell of a full network reads and makes."""

    kind: str
    channels_before: tuple[int, int]
    """Channels of the outputs of the two cells before, nearest last."""
    channels: int
    """Channels per node."""
    channels_out: int
    """Channels of the output: those of all nodes."""
    input0_is_larger: bool
    """The first input has twice the height and width of the second."""

    @property
    def stride(self) -> int:
        """Of the ops that read the cell's inputs."""
        return 2 if self.kind == REDUCTION else 1


class StoredNetwork(Frozen):
    """What network.json says."""

    format: int
    config: FullNetworkConfig
    genotype: Genotype
    num_bytes: int
    """Of the weights' file."""
    sha256: str
    """Of the weights' file."""


def network_config(motif: str, **options: Any) -> FullNetworkConfig:
    """The published network of a motif, with changes.

    Args:
        motif: cifar (20 cells, 40 channels) or imagenet (14 cells, 48 channels).
        options: fields of `FullNetworkConfig`; None leaves the published value.

    Raises:
        InvalidInputError: there is no such motif, or a value is out of range.
    """
    if motif not in _PUBLISHED:
        raise InvalidInputError(f"motif must be one of {', '.join(get_args(Motif))}, got {motif!r}")
    changes = {name: value for name, value in options.items() if value is not None}
    try:
        return FullNetworkConfig.model_validate({"motif": motif, **_PUBLISHED[motif], **changes})
    except ValidationError as error:
        raise InvalidInputError("network: " + explain(error)) from None


def cell_plans(genotype: Genotype, config: FullNetworkConfig) -> Iterator[CellPlan]:
    """The cells of a network, first to last.

    Raises:
        InvalidInputError: the genotype's kinds of cell are not normal and reduction.
    """
    if set(genotype.cells) != {NORMAL, REDUCTION}:
        raise InvalidInputError(
            f"a full network needs the cell kinds {NORMAL} and {REDUCTION}; "
            f"the genotype has {', '.join(sorted(genotype.cells))}"
        )
    channels = config.channels
    # The cifar stem puts out three times the channels of a node, the last two stages of the imagenet stem as many as
    # a node, the first of them at twice the size.
    before = (3 * channels, 3 * channels) if config.motif == "cifar" else (channels, channels)
    input0_is_larger = config.motif == "imagenet"
    for kind in config.cell_kinds:
        if kind == REDUCTION:
            channels *= 2
        channels_out = len(genotype.cells[kind]) * channels
        yield CellPlan(
            kind=kind,
            channels_before=before,
            channels=channels,
            channels_out=channels_out,
            input0_is_larger=input0_is_larger,
        )
        before = (before[1], channels_out)
        input0_is_larger = kind == REDUCTION


def sized_plans(config: FullNetworkConfig, num_nodes: int) -> Iterator[tuple[CellPlan, int]]:
    """The cells of a network, first to last, each with height and width in pixels of its inputs, once they are fitted.

    Args:
        config: of the network.
        num_nodes: per cell, >= 1. What its genotype keeps changes no plan.
    """
    nodes = ((GenotypeEdge(source=0, primitive=MAX_POOL),),) * num_nodes
    size = config.image_size if config.motif == "cifar" else -(-config.image_size // _IMAGENET_STEM_STRIDE)
    for plan in cell_plans(Genotype(cells={NORMAL: nodes, REDUCTION: nodes}), config):
        yield plan, size
        size = -(-size // plan.stride)


def read_stored_network(folder: ArtifactFolder) -> StoredNetwork:
    """What a network's folder says of it; the weights are not looked at.

    Raises:
        NotFoundError: the folder holds no network.
        CorruptArtifactError: network.json is damaged, or of a format that this program does not know.
    """
    try:
        data = folder.read(NETWORK)
    except NotFoundError:
        raise NotFoundError(f"{folder.url} holds no network: there is no {NETWORK}") from None
    try:
        stored = StoredNetwork.model_validate_json(data)
    except ValidationError as error:
        raise CorruptArtifactError(f"{folder.path(NETWORK)} does not describe a network: {explain(error)}") from None
    if stored.format != NETWORK_FORMAT:
        raise CorruptArtifactError(
            f"{folder.path(NETWORK)} has format {stored.format}, this program reads {NETWORK_FORMAT}"
        )
    return stored
