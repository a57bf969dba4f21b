"""What a full network costs: parameters, multiply-accumulates and the shape of every cell, by formula. No torch.

Conventions, those under which the published networks' counts are stated:

- A convolution's multiply-accumulates are its weights times its output pixels, for one square image; a linear layer's
  are inputs times outputs. BatchNorm, ReLU, pooling, sums and biases count none.
- Every convolution is followed by a BatchNorm with a scale and a shift per channel, which count as parameters (but two
  in a row where they are factors of one: depthwise and pointwise, 1x7 and 7x1). Running statistics are no parameters.
- The auxiliary classifier serves training alone: its parameters are told apart, its multiply-accumulates left out.
"""

from dataclasses import dataclass
from functools import reduce
from itertools import pairwise

from common.config import SpaceConfig
from common.cost import Cost, CostModel
from common.errors import InvalidInputError
from common.network_config import CellPlan, FullNetworkConfig, cell_plans, sized_plans, stem_widths
from common.space.genotype import Genotype
from common.space.primitives import (
    AVG_POOL,
    CONV_7X1_1X7,
    DIL_CONV_3,
    DIL_CONV_5,
    MAX_POOL,
    NONE,
    SEP_CONV_3,
    SEP_CONV_5,
    SEP_CONV_7,
    SKIP,
)
from common.space.released import NORMAL, REDUCTION
from common.space.topology import NUM_CELL_INPUTS

# Widths of the auxiliary classifier (the public DARTS code).
AUXILIARY_CHANNELS = (128, 768)

_SEP_KERNELS = {SEP_CONV_3: 3, SEP_CONV_5: 5, SEP_CONV_7: 7}
_DIL_KERNELS = {DIL_CONV_3: 3, DIL_CONV_5: 5}


@dataclass(frozen=True)
class CellCount:
    """One cell: its kind, the shape of its output for one image, and its cost."""

    kind: str
    channels: int
    size: int
    """Height and width of the output in pixels."""
    cost: Cost


@dataclass(frozen=True)
class NetworkCount:
    """A full network, part by part.

    Attributes:
        stem: convolutions before the first cell.
        cells: first to last.
        classifier: the linear layer at the end.
        num_auxiliary_params: of the auxiliary classifier, whether or not the network has one.
    """

    stem: Cost
    cells: tuple[CellCount, ...]
    classifier: Cost
    num_auxiliary_params: int

    @property
    def total(self) -> Cost:
        """Everything but the auxiliary classifier."""
        return reduce(Cost.__add__, (cell.cost for cell in self.cells), self.stem + self.classifier)

    @property
    def num_params_with_auxiliary(self) -> int:
        """Parameters while training."""
        return self.total.num_params + self.num_auxiliary_params


def count_network(genotype: Genotype, config: FullNetworkConfig) -> NetworkCount:
    """Parameters, multiply-accumulates and shapes of the network that `genotype` stands for.

    Args:
        genotype: kinds normal and reduction; any number of nodes, and of ops per node.
        config: `auxiliary` changes nothing.

    Raises:
        InvalidInputError: the genotype's kinds of cell are others.
    """
    stem, size0, size1 = _stem(config)
    cells: list[CellCount] = []
    num_auxiliary_params = 0
    for index, plan in enumerate(cell_plans(genotype, config)):
        cost = _fitting(plan, size1)
        assert size1 == (_half(size0) if plan.input0_is_larger else size0)
        for edge in (edge for node in genotype.cells[plan.kind] for edge in node):
            from_input = edge.source < NUM_CELL_INPUTS
            reads = size1 if from_input else _strided(size1, plan.stride)
            cost += _op(edge.primitive, plan.channels, reads, plan.stride if from_input else 1)
            cost += _pool_norm(edge.primitive, plan.channels, config)
        size0, size1 = size1, _strided(size1, plan.stride)
        cells.append(CellCount(plan.kind, plan.channels_out, size1, cost))
        if index == config.auxiliary_cell and config.motif != "search":
            num_auxiliary_params = _auxiliary_params(plan.channels_out, config)
    return NetworkCount(stem, tuple(cells), _classifier(cells[-1].channels, config), num_auxiliary_params)


def full_cost_model(space: SpaceConfig, config: FullNetworkConfig) -> CostModel:
    """The terms that `count_network` adds up without the auxiliary classifier, for all genotypes of `space`.

    Raises:
        InvalidInputError: the space's kinds of cell are not normal (stride 1) and reduction (stride 2).
    """
    if dict(space.cell_kinds) != {NORMAL: 1, REDUCTION: 2}:
        raise InvalidInputError(
            f"a full network needs the cell kinds {NORMAL} (stride 1) and {REDUCTION} (stride 2); "
            f"space.cell_kinds has {', '.join(space.cell_kinds)}"
        )
    primitives = [name for name in space.ops if name != NONE]
    ops = {
        (kind, from_input, name): Cost(0, 0)
        for kind in space.cell_kinds
        for from_input in (True, False)
        for name in primitives
    }
    constant, _, _ = _stem(config)
    num_features = 0
    for plan, size in sized_plans(config, space.num_nodes):
        constant += _fitting(plan, size)
        for name in primitives:
            norm = _pool_norm(name, plan.channels, config)
            ops[plan.kind, True, name] += _op(name, plan.channels, size, plan.stride) + norm
            ops[plan.kind, False, name] += _op(name, plan.channels, _strided(size, plan.stride), 1) + norm
        num_features = plan.channels_out
    return CostModel(constant + _classifier(num_features, config), ops)


def _pool_norm(primitive: str, channels: int, config: FullNetworkConfig) -> Cost:
    """The BatchNorm after a pool, which networks cut out of a search network have."""
    has_norm = config.motif == "search" and primitive in (MAX_POOL, AVG_POOL)
    return Cost(2 * channels if has_norm else 0, 0)


def _fitting(plan: CellPlan, size: int) -> Cost:
    """The blocks that fit a cell's inputs; a larger first one is reduced on the way in, so both put out `size`."""
    cost = _conv_norm(plan.channels_before[0] * plan.channels, plan.channels, size)
    return cost + _conv_norm(plan.channels_before[1] * plan.channels, plan.channels, size)


def _classifier(num_features: int, config: FullNetworkConfig) -> Cost:
    return Cost((num_features + 1) * config.num_classes, num_features * config.num_classes)


def _stem(config: FullNetworkConfig) -> tuple[Cost, int, int]:
    """Cost of the stem, and the height and width of its two outputs (the same one twice but for imagenet)."""
    channels, size = config.channels, config.image_size
    if config.motif == "search":
        assert config.stem_stride is not None
        cost = Cost(0, 0)
        for width_in, width_out in pairwise((config.image_channels, *stem_widths(config))):
            size = _strided(size, min(config.stem_stride, 2))
            cost += _conv_norm(9 * width_in * width_out, width_out, size)
        return cost, size, size
    if config.motif == "cifar":
        return _conv_norm(9 * config.image_channels * 3 * channels, 3 * channels, size), size, size
    half, quarter, eighth = _half(size), _half(_half(size)), _half(_half(_half(size)))
    cost = _conv_norm(9 * config.image_channels * (channels // 2), channels // 2, half)
    cost += _conv_norm(9 * (channels // 2) * channels, channels, quarter)
    cost += _conv_norm(9 * channels * channels, channels, eighth)
    return cost, quarter, eighth


def _op(primitive: str, channels: int, size: int, stride: int) -> Cost:
    """One op on maps of height and width `size`."""
    size_out = _strided(size, stride)
    pointwise = channels * channels
    if primitive in _SEP_KERNELS:
        once = _conv_norm(channels * _SEP_KERNELS[primitive] ** 2 + pointwise, channels, size_out)
        return once + once
    if primitive in _DIL_KERNELS:
        return _conv_norm(channels * _DIL_KERNELS[primitive] ** 2 + pointwise, channels, size_out)
    if primitive == CONV_7X1_1X7:
        # The first convolution strides along the width alone.
        num_weights = 7 * pointwise
        return Cost(num_weights, num_weights * size * size_out) + _conv_norm(num_weights, channels, size_out)
    if primitive == SKIP and stride == 2:
        return _conv_norm(pointwise, channels, size_out)
    assert primitive in (MAX_POOL, AVG_POOL, SKIP), primitive
    return Cost(0, 0)


def _auxiliary_params(channels: int, config: FullNetworkConfig) -> int:
    """A 1x1 and a 2x2 convolution, and a linear layer; the imagenet motif has no BatchNorm after the second."""
    narrow, wide = AUXILIARY_CHANNELS
    num_norms = 2 * narrow + (2 * wide if config.motif == "cifar" else 0)
    return channels * narrow + 4 * narrow * wide + num_norms + (wide + 1) * config.num_classes


def _conv_norm(num_weights: int, channels: int, size: int) -> Cost:
    """Convolutions that use each weight once for every output pixel, then BatchNorm with scale and shift."""
    return Cost(num_weights + 2 * channels, num_weights * size * size)


def _strided(size: int, stride: int) -> int:
    """Height and width after a stride, rounded up."""
    return -(-size // stride)


def _half(size: int) -> int:
    return _strided(size, 2)
