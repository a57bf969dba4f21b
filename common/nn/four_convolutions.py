"""The usual network of few-shot learning, a baseline: four convolutions (Vinyals et al. 2016; Finn et al. 2017)."""

from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from common.nn.ops import batch_norm
from common.nn.supernet import match_channels

NUM_BLOCKS = 4


class FourConvolutions(nn.Module):
    """Four blocks of 3x3 convolution, BatchNorm with scale and shift, ReLU and 2x2 max pooling; the maps, flattened.

    BatchNorm uses the statistics of the batch, always, as in the supernet.

    Args:
        image_channels: 1 or 3.
        filters: of every block.
        image_size: height and width in pixels, at least 16.
    """

    def __init__(self, image_channels: int, filters: int, image_size: int) -> None:
        super().__init__()
        self.image_channels, self.filters = image_channels, filters
        widths = [image_channels] + [filters] * NUM_BLOCKS
        self.convs = nn.ModuleList(
            nn.Conv2d(width_in, width_out, 3, padding=1) for width_in, width_out in pairwise(widths)
        )
        self.scales = nn.ParameterList(torch.ones(filters) for _ in range(NUM_BLOCKS))
        self.shifts = nn.ParameterList(torch.zeros(filters) for _ in range(NUM_BLOCKS))
        self.num_features = filters * (image_size // 2**NUM_BLOCKS) ** 2

    def forward(self, images: Float[Tensor, "batch image_channels height width"]) -> Float[Tensor, "batch features"]:
        """Features for a classifier."""
        maps = match_channels(images, self.image_channels)
        for conv, scale, shift in zip(self.convs, self.scales, self.shifts, strict=True):
            normalised = batch_norm(conv(maps)) * scale[:, None, None] + shift[:, None, None]
            maps = F.max_pool2d(F.relu(normalised), 2)
        return maps.flatten(1)
