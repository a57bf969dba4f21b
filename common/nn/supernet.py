"""The supernet: a head per image size, then cells that contain every architecture of the search space.

It holds weights only. Architecture weights are inputs of `forward`; the classifier belongs to the task, not to it.
"""

from collections.abc import Mapping
from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from common.config import NetworkConfig, SpaceConfig
from common.errors import InvalidInputError
from common.network_config import head_widths
from common.nn.cell import Cell, Mixture
from common.nn.native.library import choose
from common.nn.ops import batch_norm


class Head(nn.Module):
    """Convolutions that bring images of one size to the size and the 3 x channels that the first cell reads.

    A stride of 2^k takes k 3x3 convolutions of stride 2 (BASE app. A: strides 2, 2 and 8 for 32, 64 and 224 pixels;
    widths are a reconstruction after the DARTS ImageNet stem); a stride of 1 takes one convolution.
    """

    def __init__(self, image_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        widths = [image_channels, *head_widths(channels, stride)]
        self.convs = nn.ModuleList(
            nn.Conv2d(width_in, width_out, 3, min(stride, 2), 1, bias=False) for width_in, width_out in pairwise(widths)
        )

    def forward(self, images: Tensor) -> Tensor:
        """(batch, image_channels, height, width) -> (batch, 3 * channels, height / stride, width / stride)."""
        maps: Tensor = batch_norm(self.convs[0](images))
        for conv in self.convs[1:]:
            maps = batch_norm(conv(F.relu(maps)))
        return maps


class Supernet(nn.Module):
    """Every architecture of a search space at once (BASE eq. 1; body after the DARTS search network).

    BatchNorm uses the statistics of the batch, always: there are no running statistics and nothing to aggregate but
    weights. So `train()` and `eval()` change nothing.

    Args:
        space: candidate ops, nodes, kinds of cell.
        network: channels, cells, heads.
    """

    def __init__(self, space: SpaceConfig, network: NetworkConfig) -> None:
        super().__init__()
        self.space = space
        self.network = network
        self.heads = nn.ModuleDict(
            {
                str(size): Head(network.image_channels, network.channels, stride)
                for size, stride in sorted(network.heads.items())
            }
        )
        library = choose(network.engine)
        self.cells = nn.ModuleList()
        channels = network.channels
        before = (3 * channels, 3 * channels)
        input0_is_larger = False
        for kind in network.cells:
            stride = space.cell_kinds[kind]
            channels *= stride
            self.cells.append(
                Cell(space.topology, space.ops, before, channels, stride, input0_is_larger, library, network.recompute)
            )
            before = (before[1], space.num_nodes * channels)
            input0_is_larger = stride == 2
        self.num_features = before[1]

    def forward(
        self,
        images: Float[Tensor, "batch image_channels height width"],
        mixtures: Mapping[str, Mixture],
        image_size: int,
    ) -> Float[Tensor, "batch features"]:
        """Features for a classifier: the last cell's maps, averaged over height and width.

        Args:
            images: grayscale images are repeated, colour images averaged, to the channels that the heads read.
            mixtures: architecture weights per kind of cell.
            image_size: which head reads them; the images themselves may have another height and width.

        Raises:
            InvalidInputError: when there is no such head, or the mixtures do not fit the search space.
        """
        self._check(images, mixtures, image_size)
        maps: Tensor = self.heads[str(image_size)](match_channels(images, self.network.image_channels))
        before, last = maps, maps
        for kind, cell in zip(self.network.cells, self.cells, strict=True):
            before, last = last, cell(before, last, mixtures[kind])
        return last.mean(dim=(2, 3))

    def _check(self, images: Tensor, mixtures: Mapping[str, Mixture], image_size: int) -> None:
        if image_size not in self.network.heads:
            sizes = ", ".join(str(size) for size in sorted(self.network.heads))
            raise InvalidInputError(f"no head for image_size {image_size}; network.heads has {sizes}")
        if images.shape[1] not in (1, 3):
            raise InvalidInputError(f"images must have 1 or 3 channels, got {images.shape[1]}")
        expected = (self.space.topology.num_edges, len(self.space.ops))
        for kind in self.space.cell_kinds:
            if kind not in mixtures:
                raise InvalidInputError(f"mixtures lack the cell kind {kind!r}")
            shape = tuple(mixtures[kind].weights.shape)
            if shape != expected:
                raise InvalidInputError(f"architecture weights of {kind!r} must have shape {expected}, got {shape}")
            active = mixtures[kind].active
            if active is not None and len(active) != expected[0]:
                raise InvalidInputError(f"active of {kind!r} must list {expected[0]} edges, got {len(active)}")


def build_supernet(space: SpaceConfig, network: NetworkConfig, seed: int) -> Supernet:
    """A supernet with freshly drawn weights; the same seed draws the same ones, whatever was drawn before."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Supernet(space, network)


def match_channels(images: Tensor, image_channels: int) -> Tensor:
    """Grayscale images (batch, 1, height, width) repeated, or colour images averaged, to `image_channels`."""
    if images.shape[1] == image_channels:
        return images
    return images.expand(-1, 3, -1, -1) if image_channels == 3 else images.mean(dim=1, keepdim=True)
