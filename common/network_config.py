"""Full networks as values: motif, size, and how one is stored in a folder. No torch.

A network's folder:
    weights.safetensors    every parameter and BatchNorm statistic, by its name in `common.nn.full.FullNetwork`
    network.json           the genotype, `FullNetworkConfig`, size and SHA-256 of the weights; written last
"""

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from common.errors import CorruptArtifactError, InvalidInputError, NotFoundError
from common.space.genotype import Genotype, GenotypeEdge
from common.space.primitives import MAX_POOL
from common.space.released import NORMAL, REDUCTION
from common.storage import ArtifactFolder
from common.values import Frozen, explain

PublishedMotif = Literal["cifar", "imagenet"]
Motif = PublishedMotif | Literal["search"]

NETWORK = "network.json"
WEIGHTS = "weights.safetensors"
NETWORK_FORMAT = 1
NETWORK_FOLDER = "network"
"""Where the folder of an adaptation holds the network that it leaves."""

STRIDES: Mapping[str, int] = MappingProxyType({NORMAL: 1, REDUCTION: 2})
"""Of the kinds of cell that full networks know."""

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
    """cifar: a stem of stride 1, also for SVHN. imagenet: a stem of stride 8, in three convolutions. search: that of a
    search network (its head, its cells, BatchNorm after pools), for networks cut out of one."""
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
    """A second classifier after the second reduction, for training alone. Not with the search motif."""
    cells: tuple[str, ...] | None = None
    """Kind of each cell, first to last, with the search motif; the others have two reductions at fixed places."""
    stem_stride: int | None = Field(None, ge=1)
    """Of the stem of the search motif, a power of two; see `NetworkConfig.heads`."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        own = {"cells": self.cells, "stem_stride": self.stem_stride}
        if self.motif != "search":
            for name, value in own.items():
                if value is not None:
                    raise ValueError(f"{name} belongs to the search motif; remove it, or set motif to 'search'")
            return self
        for name, value in own.items():
            if value is None:
                raise ValueError(f"the search motif needs {name}")
        if self.auxiliary:
            raise ValueError("the search motif has no auxiliary classifier; set auxiliary to false")
        if self.cells is not None and (len(self.cells) != self.num_cells or set(self.cells) - set(STRIDES)):
            raise ValueError(f"cells must be {self.num_cells} (num_cells) of the kinds {NORMAL} and {REDUCTION}")
        if self.stem_stride is not None and self.stem_stride & (self.stem_stride - 1):
            raise ValueError("stem_stride must be a power of two")
        return self

    @property
    def cell_kinds(self) -> tuple[str, ...]:
        """Kind of each cell, first to last; one cell of a single one is a reduction."""
        if self.cells is not None:
            return self.cells
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
        return STRIDES[self.kind]


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
        raise InvalidInputError(f"motif must be one of {', '.join(_PUBLISHED)}, got {motif!r}")
    changes = {name: value for name, value in options.items() if value is not None}
    try:
        return FullNetworkConfig.model_validate({"motif": motif, **_PUBLISHED[motif], **changes})
    except ValidationError as error:
        raise InvalidInputError("network: " + explain(error)) from None


def stem_widths(config: FullNetworkConfig) -> tuple[int, ...]:
    """Channels that each convolution of a search motif's stem puts out."""
    assert config.stem_stride is not None
    return head_widths(config.channels, config.stem_stride)


def head_widths(channels: int, stride: int) -> tuple[int, ...]:
    """Channels that each 3x3 convolution of a search network's head puts out, the last one three times `channels`.

    A stride of 2^k takes k convolutions of stride 2, a stride of 1 one of stride 1.
    """
    num_convs = max(stride.bit_length() - 1, 1)
    return (*(max(channels >> (num_convs - 2 - index), 1) for index in range(num_convs - 1)), 3 * channels)


def cell_plans(genotype: Genotype, config: FullNetworkConfig) -> Iterator[CellPlan]:
    """The cells of a network, first to last.

    Raises:
        InvalidInputError: the genotype's kinds of cell are not normal and reduction (search motif: those of its cells).
    """
    needed = _kinds(config)
    if set(genotype.cells) != needed:
        raise InvalidInputError(
            f"a full network needs the cell kinds {' and '.join(sorted(needed))}; "
            f"the genotype has {', '.join(sorted(genotype.cells))}"
        )
    channels = config.channels
    # The cifar and search stems put out three times the channels of a node, the last two stages of the imagenet stem
    # as many as a node, the first of them at twice the size.
    before = (channels, channels) if config.motif == "imagenet" else (3 * channels, 3 * channels)
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


def network_folder(result: ArtifactFolder) -> ArtifactFolder:
    """The folder of the network inside that of an adaptation."""
    return ArtifactFolder(f"{result.url.rstrip('/')}/{NETWORK_FOLDER}")


def find_network(url: str) -> ArtifactFolder:
    """The folder that holds a network: the named one, or `network` inside it, where an adaptation leaves its own.

    Raises:
        UnavailableError: the storage refuses.
    """
    folder = ArtifactFolder(url)
    inner = network_folder(folder)
    return inner if not folder.exists(NETWORK) and inner.exists(NETWORK) else folder


def sized_plans(config: FullNetworkConfig, num_nodes: int) -> Iterator[tuple[CellPlan, int]]:
    """The cells of a network, first to last, each with height and width in pixels of its inputs, once they are fitted.

    Args:
        config: of the network.
        num_nodes: per cell, >= 1. What its genotype keeps changes no plan.
    """
    nodes = ((GenotypeEdge(source=0, primitive=MAX_POOL),),) * num_nodes
    size = -(-config.image_size // _stem_stride(config))
    for plan in cell_plans(Genotype(cells=dict.fromkeys(_kinds(config), nodes)), config):
        yield plan, size
        size = -(-size // plan.stride)


def _kinds(config: FullNetworkConfig) -> set[str]:
    """Kinds of cell that a genotype must have, whether or not a network of so few cells has some of each."""
    return {NORMAL, REDUCTION} if config.cells is None else set(config.cells)


def _stem_stride(config: FullNetworkConfig) -> int:
    return config.stem_stride or (1 if config.motif == "cifar" else _IMAGENET_STEM_STRIDE)


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
