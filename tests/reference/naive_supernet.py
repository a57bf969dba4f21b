"""The supernet once more, written only to be obviously right: what the fast one is compared with.

Every edge computes every op by itself, with its own ReLU, pooling and BatchNorm, as in the public DARTS code; the
mixture is a plain sum of weight times op. Nothing is shared, fused or skipped cleverly. Parameters carry the names of
`common.nn.supernet.Supernet`, so that a state dict of one loads into the other.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.config import NetworkConfig, SpaceConfig

BN_EPS = 1e-5


class MixtureLike(Protocol):
    """Weights of the ops of all edges of a kind of cell; `active` lists, per edge, the columns that are computed."""

    weights: Tensor
    active: Sequence[Sequence[int]] | None


def batch_norm(x: Tensor) -> Tensor:
    """BatchNorm without affine parameters by the definition: per channel, over batch and space, biased variance."""
    mean = x.mean(dim=(0, 2, 3), keepdim=True)
    variance = ((x - mean) ** 2).mean(dim=(0, 2, 3), keepdim=True)
    return (x - mean) / torch.sqrt(variance + BN_EPS)


def conv(
    c_in: int,
    c_out: int,
    kernel: int | tuple[int, int],
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 0,
    dilation: int = 1,
    groups: int = 1,
) -> nn.Conv2d:
    """A convolution without bias."""
    return nn.Conv2d(c_in, c_out, kernel, stride, padding, dilation, groups, bias=False)


class ReLUConvBN(nn.Module):
    """ReLU, 1x1 convolution, BatchNorm."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.conv = conv(c_in, c_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        return batch_norm(self.conv(F.relu(x)))


class FactorizedReduce(nn.Module):
    """Halves the map: one half of the channels reads the even pixels, the other the odd ones."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.conv_even = conv(c_in, c_out // 2, 1, stride=2)
        self.conv_odd = conv(c_in, c_out // 2, 1, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(x)
        height, width = x.shape[2:]
        shifted = F.pad(x[:, :, 1:, 1:], (0, width % 2, 0, height % 2))
        return batch_norm(torch.cat([self.conv_even(x), self.conv_odd(shifted)], dim=1))


class SepConv(nn.Module):
    """Twice: ReLU, depth-wise convolution, point-wise convolution, BatchNorm. The first one strides."""

    def __init__(self, channels: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.depthwise1 = conv(channels, channels, kernel, stride, kernel // 2, groups=channels)
        self.pointwise1 = conv(channels, channels, 1)
        self.depthwise2 = conv(channels, channels, kernel, 1, kernel // 2, groups=channels)
        self.pointwise2 = conv(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = batch_norm(self.pointwise1(self.depthwise1(F.relu(x))))
        return batch_norm(self.pointwise2(self.depthwise2(F.relu(x))))


class DilConv(nn.Module):
    """ReLU, depth-wise convolution of dilation 2, point-wise convolution, BatchNorm."""

    def __init__(self, channels: int, kernel: int, stride: int) -> None:
        super().__init__()
        padding = {3: 2, 5: 4}[kernel]
        self.depthwise = conv(channels, channels, kernel, stride, padding, dilation=2, groups=channels)
        self.pointwise = conv(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return batch_norm(self.pointwise(self.depthwise(F.relu(x))))


class Conv1x7And7x1(nn.Module):
    """ReLU, 1x7 convolution that strides along the width, 7x1 one that strides along the height, BatchNorm."""

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self.conv_1x7 = conv(channels, channels, (1, 7), (1, stride), (0, 3))
        self.conv_7x1 = conv(channels, channels, (7, 1), (stride, 1), (3, 0))

    def forward(self, x: Tensor) -> Tensor:
        return batch_norm(self.conv_7x1(self.conv_1x7(F.relu(x))))


class MaxPool(nn.Module):
    """3x3 maximum, BatchNorm."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        return batch_norm(F.max_pool2d(x, 3, self.stride, 1))


class AvgPool(nn.Module):
    """3x3 mean over the pixels inside the map, BatchNorm."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        return batch_norm(F.avg_pool2d(x, 3, self.stride, 1, count_include_pad=False))


class Zero(nn.Module):
    """Zeros of the shape that the other ops have."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x[:, :, :: self.stride, :: self.stride])


def build_op(primitive: str, channels: int, stride: int) -> nn.Module:
    """The module of a primitive."""
    if primitive == "none":
        return Zero(stride)
    if primitive == "max_pool_3x3":
        return MaxPool(stride)
    if primitive == "avg_pool_3x3":
        return AvgPool(stride)
    if primitive == "skip_connect":
        return nn.Identity() if stride == 1 else FactorizedReduce(channels, channels)
    if primitive == "conv_7x1_1x7":
        return Conv1x7And7x1(channels, stride)
    family, _, size = primitive.rpartition("_")
    kernel = int(size.split("x")[0])
    return {"sep_conv": SepConv, "dil_conv": DilConv}[family](channels, kernel, stride)


class Cell(nn.Module):
    """Two inputs, then nodes that each sum the mixtures of all that comes before."""

    def __init__(
        self,
        primitives: Sequence[str],
        num_nodes: int,
        c_prev_prev: int,
        c_prev: int,
        channels: int,
        stride: int,
        previous_stride: int,
    ) -> None:
        super().__init__()
        self.num_nodes = num_nodes
        self.primitives = tuple(primitives)
        first = FactorizedReduce if previous_stride == 2 else ReLUConvBN
        self.preprocess = nn.ModuleList([first(c_prev_prev, channels), ReLUConvBN(c_prev, channels)])
        self.edges = nn.ModuleList()
        self.strides: list[int] = []
        for node in range(num_nodes):
            for source in range(2 + node):
                edge_stride = stride if source < 2 else 1
                self.strides.append(edge_stride)
                self.edges.append(
                    nn.ModuleDict({name: build_op(name, channels, edge_stride) for name in self.primitives})
                )

    def forward(self, s0: Tensor, s1: Tensor, mixture: MixtureLike) -> Tensor:
        states = [self.preprocess[0](s0), self.preprocess[1](s1)]
        everything = range(len(self.primitives))
        edge = 0
        for node in range(self.num_nodes):
            total: Tensor | None = None
            for source in range(2 + node):
                columns = everything if mixture.active is None else mixture.active[edge]
                # Starts from zeros, so that an edge without an active op still has a shape.
                mixed = Zero(self.strides[edge])(states[source])
                for column in columns:
                    op = self.edges[edge][self.primitives[column]]
                    mixed = mixed + mixture.weights[edge, column] * op(states[source])
                total = mixed if total is None else total + mixed
                edge += 1
            states.append(total)
        return torch.cat(states[2:], dim=1)


class Head(nn.Module):
    """Stride-2 3x3 convolutions down to the first cell's map; BatchNorm after each, ReLU between."""

    def __init__(self, image_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        num_halvings = stride.bit_length() - 1
        if num_halvings == 0:
            self.convs = nn.ModuleList([conv(image_channels, 3 * channels, 3, 1, 1)])
            return
        widths = [max(1, channels // 2 ** (num_halvings - 2 - i)) for i in range(num_halvings - 1)] + [3 * channels]
        self.convs = nn.ModuleList()
        for c_in, c_out in zip([image_channels, *widths], widths, strict=False):
            self.convs.append(conv(c_in, c_out, 3, 2, 1))

    def forward(self, x: Tensor) -> Tensor:
        for number, layer in enumerate(self.convs):
            if number > 0:
                x = F.relu(x)
            x = batch_norm(layer(x))
        return x


class NaiveSupernet(nn.Module):
    """Head of the image size, cells, global average pooling."""

    def __init__(self, space: SpaceConfig, network: NetworkConfig) -> None:
        super().__init__()
        self.kinds = tuple(network.cells)
        self.image_channels = network.image_channels
        self.heads = nn.ModuleDict(
            {
                str(size): Head(network.image_channels, network.channels, stride)
                for size, stride in network.heads.items()
            }
        )
        self.cells = nn.ModuleList()
        channels = network.channels
        c_prev_prev = c_prev = 3 * channels
        previous_stride = 1
        for kind in self.kinds:
            stride = space.cell_kinds[kind]
            channels = channels * stride
            self.cells.append(Cell(space.ops, space.num_nodes, c_prev_prev, c_prev, channels, stride, previous_stride))
            c_prev_prev, c_prev = c_prev, space.num_nodes * channels
            previous_stride = stride

    def forward(self, images: Tensor, mixtures: Mapping[str, MixtureLike], image_size: int) -> Tensor:
        if images.shape[1] == 1 and self.image_channels == 3:
            images = torch.cat([images, images, images], dim=1)
        elif images.shape[1] == 3 and self.image_channels == 1:
            images = (images[:, 0:1] + images[:, 1:2] + images[:, 2:3]) / 3
        s0 = s1 = self.heads[str(image_size)](images)
        for kind, cell in zip(self.kinds, self.cells, strict=True):
            s0, s1 = s1, cell(s0, s1, mixtures[kind])
        return s1.mean(dim=(2, 3))
