"""What the network that a genotype stands for costs: parameters and multiply-accumulates, by formula. No torch.

The network counted has the layout of the study's search network (its cells, channels and heads); its cells keep only
the genotype's ops. Conventions:

- Counted are the head of the one image size, both 1x1 preprocessing blocks of every cell (even where no op reads what
  they make), the genotype's ops, and a linear classifier with bias.
- A convolution's multiply-accumulates are its weights times its output pixels, so zeros of the padding count; they
  are those of one square image. The classifier's bias counts as parameters, not as multiply-accumulates.
- BatchNorm has no parameters in the search network. It, ReLU, sums, pools and skips of stride 1 count nothing; a skip
  of stride 2 is a factorized reduction and counts as its two convolutions.

The cost is additive: a constant, plus one term for each op that the genotype keeps, summed over all cells of its kind.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from common.config import NetworkConfig, SpaceConfig
from common.errors import InvalidInputError
from common.network_config import head_widths
from common.space.genotype import Genotype
from common.space.primitives import (
    CONV_7X1_1X7,
    DIL_CONV_3,
    DIL_CONV_5,
    NONE,
    PARAMETER_FREE,
    SEP_CONV_3,
    SEP_CONV_5,
    SEP_CONV_7,
    SKIP,
)
from common.space.topology import NUM_CELL_INPUTS

_SEP_KERNELS = {SEP_CONV_3: 3, SEP_CONV_5: 5, SEP_CONV_7: 7}
_DIL_KERNELS = {DIL_CONV_3: 3, DIL_CONV_5: 5}
_NUM_BLOCKS = 4  # of four convolutions, each with a pool of stride 2


@dataclass(frozen=True)
class Cost:
    """Parameters, and multiply-accumulates of one forward pass of one image; both exact counts."""

    num_params: int
    num_macs: int

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.num_params + other.num_params, self.num_macs + other.num_macs)


@dataclass(frozen=True)
class CostModel:
    """The additive cost of every genotype of a search space.

    Attributes:
        constant: what all genotypes share: head, preprocessing, classifier.
        ops: by kind of cell, whether the op reads an input of the cell (where the kind's stride applies), and
            primitive (all candidates but none): the cost of one such op, summed over all cells of the kind.
    """

    constant: Cost
    ops: Mapping[tuple[str, bool, str], Cost]

    def op(self, kind: str, source: int, primitive: str) -> Cost:
        """Cost of `primitive` applied to `source` (0 and 1 are the cell's inputs) in all cells of `kind`."""
        return self.ops[kind, source < NUM_CELL_INPUTS, primitive]


def network_cost(
    genotype: Genotype, space: SpaceConfig, network: NetworkConfig, image_size: int, num_classes: int
) -> Cost:
    """Parameters and multiply-accumulates of the network that `genotype` stands for (see the module's conventions).

    Args:
        genotype: any number of ops per node.
        space: the kinds of cell, their strides, nodes and candidate ops.
        network: the layout.
        image_size: height and width in pixels; picks the head.
        num_classes: rows of the classifier, >= 1.

    Raises:
        InvalidInputError: when `network.heads` lacks the image size, there is no class, a cell's kind is not in the
            space, or the genotype does not fit the space.
    """
    check_fits(genotype, space)
    model = cost_model(space, network, image_size, num_classes)
    total = model.constant
    for kind, nodes in genotype.cells.items():
        for edge in (edge for node in nodes for edge in node):
            total += model.op(kind, edge.source, edge.primitive)
    return total


def cost_model(space: SpaceConfig, network: NetworkConfig, image_size: int, num_classes: int) -> CostModel:
    """The terms that `network_cost` adds up, for all genotypes of `space`.

    Raises:
        InvalidInputError: as `network_cost`.
    """
    if image_size not in network.heads:
        sizes = ", ".join(str(size) for size in sorted(network.heads))
        raise InvalidInputError(f"no head for image_size {image_size}; network.heads has {sizes}")
    if num_classes < 1:
        raise InvalidInputError(f"num_classes must be >= 1, got {num_classes}")
    primitives = [name for name in space.ops if name != NONE]
    ops = {
        (kind, from_input, name): Cost(0, 0)
        for kind in space.cell_kinds
        for from_input in (True, False)
        for name in primitives
    }
    channels = network.channels
    constant, size = _head_cost(network, image_size)
    before = (3 * channels, 3 * channels)
    for kind in network.cells:
        if kind not in space.cell_kinds:
            raise InvalidInputError(f"network.cells names {kind!r}; space.cell_kinds has {', '.join(space.cell_kinds)}")
        stride = space.cell_kinds[kind]
        channels *= stride
        # Both blocks put out maps of the second input's size: a first input of twice that size is reduced.
        constant += _conv(sum(before) * channels, size * size)
        for name in primitives:
            ops[kind, True, name] += _op_cost(name, channels, size, stride)
            ops[kind, False, name] += _op_cost(name, channels, _divide(size, stride), 1)
        size = _divide(size, stride)
        before = (before[1], space.num_nodes * channels)
    num_features = before[1]
    constant += Cost((num_features + 1) * num_classes, num_features * num_classes)
    return CostModel(constant, ops)


def four_convolutions_cost(image_channels: int, filters: int, image_size: int, num_classes: int) -> Cost:
    """The same of `common.nn.four_convolutions`, with its classifier; biases, scales and shifts count as parameters."""
    total, channels, size = Cost(0, 0), image_channels, image_size
    for _ in range(_NUM_BLOCKS):
        total += _conv(9 * channels * filters, size * size) + Cost(3 * filters, 0)
        channels, size = filters, size // 2
    num_features = filters * size * size
    return total + Cost((num_features + 1) * num_classes, num_features * num_classes)


def check_fits(genotype: Genotype, space: SpaceConfig) -> None:
    """Whether `genotype` is an architecture of `space`, whatever its number of ops per node.

    Raises:
        InvalidInputError: when its kinds of cell or number of nodes are others, or it has an op that is no candidate.
    """
    if set(genotype.cells) != set(space.cell_kinds):
        raise InvalidInputError(
            f"the genotype has the cell kinds {', '.join(sorted(genotype.cells))}; "
            f"space.cell_kinds has {', '.join(sorted(space.cell_kinds))}"
        )
    for kind, nodes in genotype.cells.items():
        if len(nodes) != space.num_nodes:
            raise InvalidInputError(
                f"cells.{kind} of the genotype has {len(nodes)} nodes; space.num_nodes is {space.num_nodes}"
            )
        for primitive in (edge.primitive for node in nodes for edge in node):
            if primitive not in space.ops:
                raise InvalidInputError(
                    f"cells.{kind} of the genotype has the op {primitive!r}; the space has {', '.join(space.ops)}"
                )


def _head_cost(network: NetworkConfig, image_size: int) -> tuple[Cost, int]:
    """Cost of the head, and the height and width of the maps it puts out."""
    stride = network.heads[image_size]
    channels_in: int = network.image_channels
    cost, size = Cost(0, 0), image_size
    for channels_out in head_widths(network.channels, stride):
        size = _divide(size, min(stride, 2))
        cost += _conv(9 * channels_in * channels_out, size * size)
        channels_in = channels_out
    return cost, size


def _op_cost(primitive: str, channels: int, size: int, stride: int) -> Cost:
    """Cost of one op in one cell, on maps of height and width `size`."""
    size_out = _divide(size, stride)
    num_pixels = size_out * size_out
    pointwise = channels * channels
    if primitive in _SEP_KERNELS:
        return _conv(2 * (channels * _SEP_KERNELS[primitive] ** 2 + pointwise), num_pixels)
    if primitive in _DIL_KERNELS:
        return _conv(channels * _DIL_KERNELS[primitive] ** 2 + pointwise, num_pixels)
    if primitive == CONV_7X1_1X7:
        # The first convolution strides along the width alone.
        return _conv(7 * pointwise, size * size_out) + _conv(7 * pointwise, num_pixels)
    if primitive == SKIP and stride == 2:
        return _conv(pointwise, num_pixels)
    assert primitive in PARAMETER_FREE, primitive
    return Cost(0, 0)


def _conv(num_weights: int, num_pixels: int) -> Cost:
    """Convolutions that use each of their weights once for every output pixel."""
    return Cost(num_weights, num_weights * num_pixels)


def _divide(size: int, stride: int) -> int:
    """Height and width after a stride, rounded up."""
    return -(-size // stride)
