"""A cell of the supernet: every candidate op on every edge, mixed by architecture weights that come from outside."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from common.nn.native.fused import FusedCell
from common.nn.native.library import CellShape, Library
from common.nn.ops import ReLUConvBN, ReLUReduceBN, batch_norm, learned_op, shares_statistics
from common.space.primitives import AVG_POOL, MAX_POOL, NONE, SKIP
from common.space.topology import NUM_CELL_INPUTS, Topology

FUSED_TYPES = (torch.float32, torch.float64)


@dataclass(frozen=True)
class Mixture:
    """Architecture weights of one kind of cell.

    Attributes:
        weights: (num_edges, num_primitives); what multiplies each op's output.
        active: per edge, the columns of the ops to compute; the others are neither computed nor added, whatever
            their weight. None computes all (soft); one sampled column per categorical is hard mode.
    """

    weights: Float[Tensor, "edge primitive"]
    active: tuple[tuple[int, ...], ...] | None = None


class Cell(nn.Module):
    """BASE eq. 1: node l = sum over sources i and ops o of z[l, i, o] * o(x_i); the output joins all nodes.

    Work that does not depend on the edge is done once per source: the ReLU that every convolution starts with, and
    each pool with its BatchNorm (which has no parameters in the search network). `none` costs nothing.

    Args:
        topology: the cell's edges.
        primitives: candidate ops, one per column of the architecture weights.
        channels_before: channels of the outputs of the two cells before, nearest last.
        channels: channels of every node of this cell.
        stride: of the edges that start in the cell's inputs; 2 halves height and width.
        input0_is_larger: the first input has twice this cell's height and width and is reduced on the way in.
        library: computes cells of maps on the CPU; None leaves them to PyTorch.
        recompute: keep only inputs and output for the backward pass, which then computes the rest again.
    """

    def __init__(
        self,
        topology: Topology,
        primitives: tuple[str, ...],
        channels_before: tuple[int, int],
        channels: int,
        stride: int,
        input0_is_larger: bool,
        library: Library | None = None,
        recompute: bool = False,
    ) -> None:
        super().__init__()
        self.topology = topology
        self.primitives = primitives
        self.channels = channels
        self.stride = stride
        self.input_strides = (2 if input0_is_larger else 1, 1)
        self.library = library
        self.recompute = recompute
        fit0 = ReLUReduceBN if input0_is_larger else ReLUConvBN
        self.preprocess = nn.ModuleList([fit0(channels_before[0], channels), ReLUConvBN(channels_before[1], channels)])
        self.edges = nn.ModuleList()
        for edge in topology.edges:
            ops = {name: learned_op(name, channels, self._stride_from(edge.source)) for name in primitives}
            self.edges.append(nn.ModuleDict({name: op for name, op in ops.items() if op is not None}))

    def forward(
        self,
        input0: Float[Tensor, "batch channels0 height0 width0"],
        input1: Float[Tensor, "batch channels1 height1 width1"],
        mixture: Mixture,
        again: bool = False,
    ) -> Float[Tensor, "batch channels height width"]:
        """The joined nodes, num_nodes * channels maps, at the size of `input1` divided by the cell's stride.

        `again` marks the passes that `recompute` makes, which keep all that they compute.
        """
        fits = input0.device.type == "cpu" and input0.dtype in FUSED_TYPES
        if self.library is not None and fits and not shares_statistics():
            return self._fused(self.library, input0, input1, mixture)
        if self.recompute and not again and torch.is_grad_enabled():
            # The parameters go in too: by the backward pass, a `functional_call` that lent the cell others has ended.
            # Nothing here is random, and a CUDA graph cannot record that generators are asked for their state.
            arguments = (input0, input1, mixture, True)
            output: Tensor = checkpoint(
                functional_call,
                self,
                dict(self.named_parameters()),
                arguments,
                use_reentrant=False,
                preserve_rng_state=False,
            )
            return output
        return self._unfused(input0, input1, mixture)

    def _unfused(self, input0: Tensor, input1: Tensor, mixture: Mixture) -> Tensor:
        inputs = self.preprocess[0](input0), self.preprocess[1](input1)
        sources = [_Source(maps, self._stride_from(source)) for source, maps in enumerate(inputs)]
        weights = mixture.weights
        everything = tuple(range(len(self.primitives)))
        for node in range(self.topology.num_nodes):
            total: Tensor | None = None
            for source_index, edge in enumerate(self.topology.edges_into(node)):
                source = sources[source_index]
                for column in everything if mixture.active is None else mixture.active[edge]:
                    term = self._term(source, edge, self.primitives[column], weights[edge, column])
                    if term is not None:
                        total = term if total is None else total + term
            sources.append(_Source(sources[0].zeros() if total is None else total, 1))
        return torch.cat([source.maps for source in sources[NUM_CELL_INPUTS:]], dim=1)

    def _fused(self, library: Library, input0: Tensor, input1: Tensor, mixture: Mixture) -> Tensor:
        active = mixture.active
        computed = np.ones((self.topology.num_edges, len(self.primitives)), np.uint8)
        weights: list[Tensor | None] = [weight for fit in self.preprocess for weight in _weights(fit)]
        for edge, ops in enumerate(self.edges):
            assert isinstance(ops, nn.ModuleDict)
            if active is not None:
                computed[edge] = 0
                computed[edge, list(active[edge])] = 1
            for column, primitive in enumerate(self.primitives):
                if primitive in ops:
                    weights += [weight if computed[edge, column] else None for weight in _weights(ops[primitive])]
        shape = CellShape(
            self.primitives, self.topology.num_nodes, self.channels, self.input_strides, self.stride, computed
        )
        memory = "none" if not torch.is_grad_enabled() else "recompute" if self.recompute else "keep"
        output: Tensor = FusedCell.apply(library, shape, memory, input0, input1, mixture.weights, *weights)
        return output

    def _term(self, source: "_Source", edge: int, primitive: str, weight: Tensor) -> Tensor | None:
        """weight * BatchNorm(op(source)), or None for an op that contributes nothing."""
        if primitive == NONE:
            return None
        if primitive in (MAX_POOL, AVG_POOL):
            return source.pooled(primitive) * weight
        if primitive == SKIP and source.stride == 1:
            return source.maps * weight
        ops = self.edges[edge]
        assert isinstance(ops, nn.ModuleDict)
        return batch_norm(ops[primitive](source.rectified), weight)

    def _stride_from(self, source: int) -> int:
        return self.stride if source < NUM_CELL_INPUTS else 1


def _weights(op: nn.Module) -> Iterator[Tensor]:
    """What `op.parameters()` yields, from its convolutions: a fifth of a step of one genotype went into that walk."""
    return (conv.weight for conv in op.children() if isinstance(conv, nn.Conv2d))


class _Source:
    """The maps that edges start from, with what several edges share, each computed when first asked for."""

    def __init__(self, maps: Tensor, stride: int) -> None:
        self.maps = maps
        self.stride = stride
        self._rectified: Tensor | None = None
        self._pooled: dict[str, Tensor] = {}

    @property
    def rectified(self) -> Tensor:
        if self._rectified is None:
            self._rectified = F.relu(self.maps)
        return self._rectified

    def pooled(self, primitive: str) -> Tensor:
        if primitive not in self._pooled:
            if primitive == MAX_POOL:
                raw = F.max_pool2d(self.maps, 3, self.stride, 1)
            else:
                raw = F.avg_pool2d(self.maps, 3, self.stride, 1, count_include_pad=False)
            self._pooled[primitive] = batch_norm(raw)
        return self._pooled[primitive]

    def zeros(self) -> Tensor:
        """What a node is worth to which no op contributes, at the size that this source's edges produce."""
        return self.maps[:, :, :: self.stride, :: self.stride] * 0.0
