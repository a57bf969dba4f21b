"""The native cell as a differentiable function of torch."""

from typing import Any, Literal

import torch
from torch import Tensor

from common.errors import InvalidInputError
from common.nn.native.library import CellShape, Library

Memory = Literal["keep", "recompute", "none"]
"""What is left of a forward pass: all maps; only inputs and output, and the rest is computed again; nothing."""


class FusedCell(torch.autograd.Function):
    """A cell: its inputs fitted, all ops of all edges, and their mixture (BASE eq. 1).

    `FusedCell.apply(library, shape, memory, input0, input1, mixture, *weights)`; see `Library.forward` for the
    arguments and `common.nn.cell.Cell` for what is computed. Differentiable once; PyTorch's cells are for derivatives
    of derivatives.
    """

    @staticmethod
    def forward(
        ctx: Any,
        library: Library,
        shape: CellShape,
        memory: Memory,
        input0: Tensor,
        input1: Tensor,
        mixture: Tensor,
        *weights: Tensor | None,
    ) -> Tensor:
        """See `torch.autograd.Function`."""
        inputs = (_channels_last(input0), _channels_last(input1))
        output = torch.empty(
            (input0.shape[0], shape.num_nodes * shape.channels, *shape.out_size(inputs)),
            dtype=input0.dtype,
            memory_format=torch.channels_last,
        )
        contiguous = [None if weight is None else weight.contiguous() for weight in weights]
        keeps = memory == "keep"
        run = library.forward(shape, inputs, mixture.contiguous(), contiguous, output, keeps)
        ctx.library, ctx.shape, ctx.run = library, shape, run if keeps else None
        # The run reads the inputs and the output again; architecture weights and weights were copied.
        if memory != "none":
            ctx.save_for_backward(*inputs, mixture, output, *contiguous)
        return output

    @staticmethod
    def backward(ctx: Any, output_gradient: Tensor) -> tuple[Tensor | None, ...]:
        """See `torch.autograd.Function`."""
        if torch.is_grad_enabled():  # a graph of this pass was asked for, and would lack its greater part
            raise InvalidInputError("network.engine must be pytorch to differentiate a derivative (create_graph=True)")
        input0, input1, mixture, output, *weights = ctx.saved_tensors
        run, ctx.run = ctx.run, None  # its memory goes back now, not when the last reference to the graph goes
        if run is None:  # it was not kept, or this is a second time through a graph that was retained
            again = torch.empty_like(output)
            run = ctx.library.forward(ctx.shape, (input0, input1), mixture.contiguous(), weights, again)
        input_gradients = [torch.empty_like(maps) for maps in (input0, input1)]
        mixture_gradient = torch.empty_like(mixture, memory_format=torch.contiguous_format)
        weight_gradients = [None if weight is None else torch.empty_like(weight) for weight in weights]
        run.backward(_channels_last(output_gradient), input_gradients, mixture_gradient, weight_gradients)
        return None, None, None, *input_gradients, mixture_gradient, *weight_gradients


def _channels_last(maps: Tensor) -> Tensor:
    """Contiguous with channels innermost, also where torch finds that ambiguous (one channel, one pixel)."""
    return maps.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
