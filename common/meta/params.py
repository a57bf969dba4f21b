"""Parameters of a module as flat vectors: how a prior is stored, sent, hashed and summed.

The weights of a supernet fall into one vector `body` and one `head/<image size>` per head. Bound to a vector, the
module's parameters and their gradients are views of it, so an optimizer step, a norm or a difference is one operation.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from common.nn.supernet import Supernet

BODY = "body"
ALPHA = "alpha"
CLASSIFIER = "classifier"
HEAD_PREFIX = "head/"


def head_vector(image_size: int) -> str:
    """Name of the vector of the head for images of `image_size` pixels."""
    return f"{HEAD_PREFIX}{image_size}"


@dataclass(frozen=True)
class Layout:
    """Which parameters a vector holds, in order: (name, shape)."""

    entries: tuple[tuple[str, tuple[int, ...]], ...]

    @property
    def sizes(self) -> tuple[int, ...]:
        """Elements of each parameter."""
        return tuple(torch.Size(shape).numel() for _, shape in self.entries)

    @property
    def size(self) -> int:
        """Elements of the vector."""
        return sum(self.sizes)


def named_vectors(supernet: Supernet) -> Mapping[str, Sequence[tuple[str, nn.Parameter]]]:
    """The supernet's parameters by the vector that they belong to, each vector in the module's own order."""
    vectors: dict[str, list[tuple[str, nn.Parameter]]] = {BODY: []}
    for name, parameter in supernet.named_parameters():
        room, _, rest = name.partition(".")
        vector = head_vector(int(rest.partition(".")[0])) if room == "heads" else BODY
        vectors.setdefault(vector, []).append((name, parameter))
    return vectors


def layout_of(named: Sequence[tuple[str, nn.Parameter]]) -> Layout:
    """The layout of the vector that `named` parameters make."""
    return Layout(tuple((name, tuple(parameter.shape)) for name, parameter in named))


def flatten(named: Sequence[tuple[str, nn.Parameter]]) -> Float[Tensor, "size"]:
    """A copy of `named` parameters as one vector."""
    return torch.cat([parameter.detach().reshape(-1) for _, parameter in named])


class BoundVector:
    """Parameters of a module bound to one vector: writing to the vector changes the module, and its gradient fills.

    Attributes:
        layout: what the vector holds.
        values: leaf (size,) whose `grad` is always allocated; give it to an optimizer.
    """

    def __init__(self, named: Sequence[tuple[str, nn.Parameter]]) -> None:
        self.layout = layout_of(named)
        self.values = nn.Parameter(flatten(named))
        gradient = torch.zeros_like(self.values)
        self.values.grad = gradient
        start = 0
        for (_, parameter), size in zip(named, self.layout.sizes, strict=True):
            span = slice(start, start + size)
            parameter.data = self.values.data[span].view(parameter.shape)
            parameter.grad = gradient[span].view(parameter.shape)
            start += size

    @property
    def gradient(self) -> Float[Tensor, "size"]:
        """Sum of the gradients since the last `zero_grad_`."""
        assert self.values.grad is not None
        return self.values.grad

    def zero_grad_(self) -> None:
        """Sets the gradient to zero, in place: the module's gradients stay views of it."""
        self.gradient.zero_()


def spread(per_tensor: Float[Tensor, "tensors"], layout: Layout) -> Float[Tensor, "size"]:
    """One value per parameter, repeated for each of its elements."""
    sizes = torch.tensor(layout.sizes, device=per_tensor.device)
    return per_tensor.repeat_interleave(sizes, output_size=layout.size)


def sum_per_tensor(elements: Float[Tensor, "size"], layout: Layout) -> Float[Tensor, "tensors"]:
    """Sum over the elements of each parameter: the transpose of `spread`."""
    return torch.stack([part.sum() for part in torch.split(elements, list(layout.sizes))])
