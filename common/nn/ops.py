"""Candidate ops of the search network, and the two 1x1 blocks that fit a cell's inputs to it.

Every op here is what is left of a "ReLU, convolutions, BatchNorm" block (BASE app. A) once the ReLU of its input is
shared by all ops of a source: it takes the rectified map and returns the map BEFORE its last BatchNorm. The cell adds
that BatchNorm, scaled by the architecture weight, when it mixes (see `mix`).
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from types import MappingProxyType

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from common.space.primitives import (
    CONV_7X1_1X7,
    DIL_CONV_3,
    DIL_CONV_5,
    SEP_CONV_3,
    SEP_CONV_5,
    SEP_CONV_7,
    SKIP,
)

BATCH_NORM_EPS = 1e-5


@dataclass
class _Statistics:
    """Means and variances (channels,) of one forward pass, in the order of its BatchNorms; taken, or read again."""

    values: list[tuple[Tensor, Tensor]]
    position: int | None = None
    """Of the next to read; None while they are taken."""


_statistics: ContextVar[_Statistics | None] = ContextVar("_statistics", default=None)


@contextmanager
def take_statistics() -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Within it, one forward pass notes the mean and variance of each BatchNorm's batch, for `use_statistics`."""
    taken = _Statistics([])
    token = _statistics.set(taken)
    try:
        yield taken.values
    finally:
        _statistics.reset(token)


@contextmanager
def use_statistics(values: list[tuple[Tensor, Tensor]]) -> Iterator[None]:
    """Within it, one forward pass of the same network normalises by these instead of by its own batch."""
    token = _statistics.set(_Statistics(values, 0))
    try:
        yield
    finally:
        _statistics.reset(token)


def shares_statistics() -> bool:
    """Whether statistics go from one pass to another, which the native cell has no part in."""
    return _statistics.get() is not None


def batch_norm(
    maps: Float[Tensor, "batch channels height width"],
    scale: Float[Tensor, ""] | None = None,
) -> Float[Tensor, "batch channels height width"]:
    """BatchNorm without parameters, optionally times a scalar, by the statistics of this batch, unless `use_statistics`
    says by which.

    The scalar goes in as BatchNorm's own scale, which saves a pass over the maps and one over their gradients.
    """
    # Dense, since torch's backward kernels read a stride of 0 as 1 (seen with 2.14 on 1x1 and channels-last maps).
    weight = None if scale is None else scale.expand(maps.shape[1]).contiguous()
    shared = _statistics.get()
    if shared is not None and shared.position is not None:
        mean, variance = shared.values[shared.position]
        shared.position += 1
        return F.batch_norm(maps, mean, variance, weight, None, False, 0.0, BATCH_NORM_EPS)
    if shared is not None:
        variance, mean = torch.var_mean(maps.detach(), dim=(0, 2, 3), correction=0)
        shared.values.append((mean, variance))
    return F.batch_norm(maps, None, None, weight, None, True, 0.0, BATCH_NORM_EPS)


class SepConv(nn.Module):
    """Depthwise separable convolution, applied twice; the stride is the first one's."""

    def __init__(self, channels: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.depthwise1 = _depthwise(channels, kernel, stride)
        self.pointwise1 = _pointwise(channels, channels)
        self.depthwise2 = _depthwise(channels, kernel, 1)
        self.pointwise2 = _pointwise(channels, channels)

    def forward(self, rectified: Tensor) -> Tensor:
        """(batch, channels, height, width) -> (batch, channels, ceil(height / stride), ceil(width / stride))."""
        inner: Tensor = self.pointwise1(self.depthwise1(rectified))
        outer: Tensor = self.pointwise2(self.depthwise2(F.relu(batch_norm(inner))))
        return outer


class DilConv(nn.Module):
    """Depthwise separable convolution with dilation 2, applied once."""

    def __init__(self, channels: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.depthwise = _depthwise(channels, kernel, stride, dilation=2)
        self.pointwise = _pointwise(channels, channels)

    def forward(self, rectified: Tensor) -> Tensor:
        """(batch, channels, height, width) -> (batch, channels, ceil(height / stride), ceil(width / stride))."""
        out: Tensor = self.pointwise(self.depthwise(rectified))
        return out


class Conv7x1(nn.Module):
    """A 1x7 convolution, then a 7x1 convolution; each strides along its own axis."""

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self.conv_1x7 = nn.Conv2d(channels, channels, (1, 7), (1, stride), (0, 3), bias=False)
        self.conv_7x1 = nn.Conv2d(channels, channels, (7, 1), (stride, 1), (3, 0), bias=False)

    def forward(self, rectified: Tensor) -> Tensor:
        """(batch, channels, height, width) -> (batch, channels, ceil(height / stride), ceil(width / stride))."""
        out: Tensor = self.conv_7x1(self.conv_1x7(rectified))
        return out


class FactorizedReduce(nn.Module):
    """Halves height and width by two 1x1 convolutions of stride 2, on the map and on the map shifted by one pixel.

    For odd sizes the shifted map is padded by a row and a column of zeros, so that both halves agree.
    """

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.conv_even = nn.Conv2d(channels_in, channels_out // 2, 1, 2, bias=False)
        self.conv_odd = nn.Conv2d(channels_in, channels_out - channels_out // 2, 1, 2, bias=False)

    def forward(self, rectified: Tensor) -> Tensor:
        """(batch, channels_in, height, width) -> (batch, channels_out, ceil(height / 2), ceil(width / 2))."""
        height, width = rectified.shape[-2:]
        shifted = F.pad(rectified[:, :, 1:, 1:], (0, width % 2, 0, height % 2))
        return torch.cat([self.conv_even(rectified), self.conv_odd(shifted)], dim=1)


class ReLUConvBN(nn.Module):
    """ReLU, 1x1 convolution, BatchNorm: fits the output of an earlier cell to this cell's channels."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.conv = _pointwise(channels_in, channels_out)

    def forward(self, maps: Tensor) -> Tensor:
        """(batch, channels_in, height, width) -> (batch, channels_out, height, width)."""
        return batch_norm(self.conv(F.relu(maps)))


class ReLUReduceBN(FactorizedReduce):
    """ReLU, factorized reduction, BatchNorm: as `ReLUConvBN`, for the output of a cell of twice the size."""

    def forward(self, maps: Tensor) -> Tensor:
        """(batch, channels_in, height, width) -> (batch, channels_out, ceil(height / 2), ceil(width / 2))."""
        return batch_norm(super().forward(F.relu(maps)))


# Ops with weights: (channels, stride) -> module. The others (none, pools, skip at stride 1) live in the cell.
_LEARNED: Mapping[str, Callable[[int, int], nn.Module]] = MappingProxyType(
    {
        SEP_CONV_3: lambda channels, stride: SepConv(channels, 3, stride),
        SEP_CONV_5: lambda channels, stride: SepConv(channels, 5, stride),
        SEP_CONV_7: lambda channels, stride: SepConv(channels, 7, stride),
        DIL_CONV_3: lambda channels, stride: DilConv(channels, 3, stride),
        DIL_CONV_5: lambda channels, stride: DilConv(channels, 5, stride),
        CONV_7X1_1X7: Conv7x1,
    }
)


def learned_op(primitive: str, channels: int, stride: int) -> nn.Module | None:
    """The weights of `primitive` on an edge of this stride, or None where it has none."""
    if primitive == SKIP and stride == 2:
        return FactorizedReduce(channels, channels)
    build = _LEARNED.get(primitive)
    return None if build is None else build(channels, stride)


def _depthwise(channels: int, kernel: int, stride: int, dilation: int = 1) -> nn.Conv2d:
    padding = dilation * (kernel // 2)
    return nn.Conv2d(channels, channels, kernel, stride, padding, dilation, groups=channels, bias=False)


def _pointwise(channels_in: int, channels_out: int) -> nn.Conv2d:
    return nn.Conv2d(channels_in, channels_out, 1, bias=False)
