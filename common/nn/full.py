"""Full networks: a stem, the cells that a genotype stands for, a classifier; trained from scratch for one task.

Unlike the search network's, BatchNorm here has a scale, a shift and running statistics, pools have none after them, and
only the genotype's ops exist (the public DARTS code, and the released evaluation code of BASE, which allows two ops of
a node to share their source). With the motif `search` pools have one: such networks are cut out of a search network.
"""

from collections.abc import Callable, Mapping
from itertools import pairwise
from types import MappingProxyType

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from common.errors import InvalidInputError
from common.network_config import CellPlan, FullNetworkConfig, Motif, cell_plans, stem_widths
from common.nn.counting import AUXILIARY_CHANNELS
from common.nn.ops import Conv7x1, DilConv, FactorizedReduce, SepConv
from common.space.genotype import Genotype
from common.space.primitives import (
    AVG_POOL,
    CONV_7X1_1X7,
    DIL_CONV_3,
    DIL_CONV_5,
    MAX_POOL,
    SEP_CONV_3,
    SEP_CONV_5,
    SEP_CONV_7,
    SKIP,
)
from common.space.topology import NUM_CELL_INPUTS


class FullNetwork(nn.Module):
    """The network of a genotype, with the motif for CIFAR and SVHN, the one for ImageNet or a search network's.

    Args:
        genotype: kinds normal and reduction; any number of nodes, and of ops per node.
        config: all else.

    Raises:
        InvalidInputError: the genotype's kinds of cell are others.
    """

    def __init__(self, genotype: Genotype, config: FullNetworkConfig) -> None:
        super().__init__()
        self.genotype = genotype
        self.config = config
        plans = tuple(cell_plans(genotype, config))
        self.stems = nn.ModuleList(_STEMS[config.motif](config))
        self.cells = nn.ModuleList(FullCell(genotype, plan, config.motif == "search") for plan in plans)
        self.auxiliary = (
            AuxiliaryClassifier(plans[config.auxiliary_cell].channels_out, config) if config.auxiliary else None
        )
        self.classifier = nn.Linear(plans[-1].channels_out, config.num_classes)

    def forward(
        self,
        images: Float[Tensor, "batch channels height width"],
        drop_path_prob: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "batch label"]:
        """Logits, without the auxiliary classifier's; arguments and errors as in `training_logits`."""
        maps, _ = self._run_cells(images, drop_path_prob, generator)
        return self._classify(maps)

    def training_logits(
        self,
        images: Float[Tensor, "batch channels height width"],
        drop_path_prob: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> tuple[Float[Tensor, "batch label"], Float[Tensor, "batch label"] | None]:
        """Logits of the classifier and of the auxiliary one, which is None in evaluation mode or where there is none.

        Args:
            images: of any size; `config.image_size` is what it is made for.
            drop_path_prob: of leaving out an op's output for an image, in [0, 1); training mode alone.
            generator: draws what is left out, on its own device; torch's default one by default.

        Raises:
            InvalidInputError: the images have other channels, or the probability is out of range.
        """
        maps, auxiliary_maps = self._run_cells(images, drop_path_prob, generator)
        logits = self._classify(maps)
        if self.auxiliary is None or not self.training:
            return logits, None
        return logits, self.auxiliary(auxiliary_maps)

    def _run_cells(
        self, images: Tensor, drop_path_prob: float, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor]:
        """Output of the last cell, and of the one that the auxiliary classifier reads."""
        if images.shape[1] != self.config.image_channels:
            raise InvalidInputError(
                f"images must have {self.config.image_channels} channels, got {images.shape[1]}; "
                "set image_channels of the network"
            )
        if not 0 <= drop_path_prob < 1:
            raise InvalidInputError(f"drop_path_prob must be in [0, 1), got {drop_path_prob}")
        before = last = self.stems[0](images)
        for stem in self.stems[1:]:
            before, last = last, stem(last)
        auxiliary_maps = last
        for index, cell in enumerate(self.cells):
            before, last = last, cell(before, last, drop_path_prob, generator)
            if index == self.config.auxiliary_cell:
                auxiliary_maps = last
        return last, auxiliary_maps

    def _classify(self, maps: Tensor) -> Tensor:
        logits: Tensor = self.classifier(maps.mean(dim=(2, 3)))
        return logits


class FullCell(nn.Module):
    """A cell that has only the genotype's ops; its output joins all nodes.

    Args:
        genotype: of which the plan's kind of cell is built.
        plan: what the cell reads and makes.
        normalises_pools: pools are followed by BatchNorm, as in the search network.
    """

    def __init__(self, genotype: Genotype, plan: CellPlan, normalises_pools: bool = False) -> None:
        super().__init__()
        before0, before1 = plan.channels_before
        fit0 = ReducedNorm(before0, plan.channels) if plan.input0_is_larger else ConvNorm(before0, plan.channels)
        self.preprocess = nn.ModuleList([fit0, ConvNorm(before1, plan.channels)])
        nodes = genotype.cells[plan.kind]
        self.sources = tuple(tuple(edge.source for edge in node) for node in nodes)
        self.nodes = nn.ModuleList(
            nn.ModuleList(
                full_op(
                    edge.primitive, plan.channels, plan.stride if edge.source < NUM_CELL_INPUTS else 1, normalises_pools
                )
                for edge in node
            )
            for node in nodes
        )

    def forward(
        self,
        input0: Float[Tensor, "batch channels0 height0 width0"],
        input1: Float[Tensor, "batch channels1 height1 width1"],
        drop_path_prob: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "batch channels height width"]:
        """The joined nodes, at the size of `input1` divided by the cell's stride; see `FullNetwork.training_logits`."""
        maps: list[Tensor] = [self.preprocess[0](F.relu(input0)), self.preprocess[1](F.relu(input1))]
        rectified: dict[int, Tensor] = {}
        for ops, sources in zip(self.nodes, self.sources, strict=True):
            assert isinstance(ops, nn.ModuleList)
            total: Tensor | None = None
            for op, source in zip(ops, sources, strict=True):
                if isinstance(op, _UNRECTIFIED):
                    term = op(maps[source])
                else:
                    if source not in rectified:
                        rectified[source] = F.relu(maps[source])
                    term = op(rectified[source])
                if self.training and drop_path_prob > 0 and not isinstance(op, nn.Identity):
                    term = drop_path(term, drop_path_prob, generator)
                total = term if total is None else total + term
            assert total is not None, "a node of a genotype has an op"
            maps.append(total)
        return torch.cat(maps[NUM_CELL_INPUTS:], dim=1)


class AuxiliaryClassifier(nn.Module):
    """Average pool, 1x1 and 2x2 convolution, linear layer: a second loss that reaches the middle of the network.

    The published pool (5x5; stride 3, or 2 for ImageNet) leaves 2x2 maps of 8x8, or 7x7, and the 2x2 convolution one
    pixel. Of larger maps the pixels are averaged, and smaller ones are averaged into 2x2 at once, so that any image
    size will do (reconstruction: the public code takes the published sizes only).
    """

    def __init__(self, channels: int, config: FullNetworkConfig) -> None:
        super().__init__()
        narrow, wide = AUXILIARY_CHANNELS
        self.stride = 3 if config.motif == "cifar" else 2
        self.conv1 = nn.Conv2d(channels, narrow, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(narrow)
        self.conv2 = nn.Conv2d(narrow, wide, 2, bias=False)
        # The public code has no BatchNorm here for ImageNet, to match its own earlier results.
        self.norm2: nn.Module = nn.BatchNorm2d(wide) if config.motif == "cifar" else nn.Identity()
        self.classifier = nn.Linear(wide, config.num_classes)

    def forward(self, maps: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch label"]:
        """Logits."""
        rectified = F.relu(maps)
        if min(maps.shape[2:]) < 5 + self.stride:
            pooled = F.adaptive_avg_pool2d(rectified, 2)
        else:
            pooled = F.avg_pool2d(rectified, 5, self.stride, count_include_pad=False)
        narrow = F.relu(self.norm1(self.conv1(pooled)))
        wide = F.relu(self.norm2(self.conv2(narrow)))
        logits: Tensor = self.classifier(wide.mean(dim=(2, 3)))
        return logits


class ConvNorm(nn.Module):
    """A 1x1 convolution, then BatchNorm: fits the output of an earlier cell, rectified, to this cell's channels."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels_in, channels_out, 1, bias=False)
        self.norm = nn.BatchNorm2d(channels_out)

    def forward(self, rectified: Tensor) -> Tensor:
        """(batch, channels_in, height, width) -> (batch, channels_out, height, width)."""
        maps: Tensor = self.norm(self.conv(rectified))
        return maps


class ReducedNorm(FactorizedReduce):
    """A factorized reduction, then BatchNorm."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__(channels_in, channels_out)
        self.norm = nn.BatchNorm2d(channels_out)

    def forward(self, rectified: Tensor) -> Tensor:
        """(batch, channels_in, height, width) -> (batch, channels_out, ceil(height / 2), ceil(width / 2))."""
        maps: Tensor = self.norm(super().forward(rectified))
        return maps


class SepConvNorm(SepConv):
    """A depthwise separable convolution, applied twice, each time followed by BatchNorm."""

    def __init__(self, channels: int, kernel: int, stride: int) -> None:
        super().__init__(channels, kernel, stride)
        self.norm1 = nn.BatchNorm2d(channels)
        self.norm2 = nn.BatchNorm2d(channels)

    def forward(self, rectified: Tensor) -> Tensor:
        """(batch, channels, height, width) -> (batch, channels, ceil(height / stride), ceil(width / stride))."""
        inner = self.norm1(self.pointwise1(self.depthwise1(rectified)))
        outer: Tensor = self.norm2(self.pointwise2(self.depthwise2(F.relu(inner))))
        return outer


class DilConvNorm(DilConv):
    """A dilated depthwise separable convolution, then BatchNorm."""

    def __init__(self, channels: int, kernel: int, stride: int) -> None:
        super().__init__(channels, kernel, stride)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, rectified: Tensor) -> Tensor:
        """(batch, channels, height, width) -> (batch, channels, ceil(height / stride), ceil(width / stride))."""
        maps: Tensor = self.norm(super().forward(rectified))
        return maps


class Conv7x1Norm(Conv7x1):
    """A 1x7 and a 7x1 convolution, then BatchNorm."""

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__(channels, stride)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, rectified: Tensor) -> Tensor:
        """(batch, channels, height, width) -> (batch, channels, ceil(height / stride), ceil(width / stride))."""
        maps: Tensor = self.norm(super().forward(rectified))
        return maps


class PoolNorm(nn.Module):
    """A pool, then BatchNorm."""

    def __init__(self, pool: nn.Module, channels: int) -> None:
        super().__init__()
        self.pool = pool
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, maps: Tensor) -> Tensor:
        """(batch, channels, height, width) -> (batch, channels, ceil(height / stride), ceil(width / stride))."""
        normalised: Tensor = self.norm(self.pool(maps))
        return normalised


# These read the maps as they are; all other ops start with a ReLU, which the ops of one source share.
_UNRECTIFIED = (nn.Identity, nn.MaxPool2d, nn.AvgPool2d, PoolNorm)


def full_op(primitive: str, channels: int, stride: int, normalises_pools: bool = False) -> nn.Module:
    """The op of a genotype's edge, whose input is rectified first unless it is a pool or an identity."""
    if primitive == SKIP:
        return nn.Identity() if stride == 1 else ReducedNorm(channels, channels)
    if normalises_pools and primitive in (MAX_POOL, AVG_POOL):
        return PoolNorm(full_op(primitive, channels, stride), channels)
    if primitive == MAX_POOL:
        return nn.MaxPool2d(3, stride, 1)
    if primitive == AVG_POOL:
        return nn.AvgPool2d(3, stride, 1, count_include_pad=False)
    if primitive == CONV_7X1_1X7:
        return Conv7x1Norm(channels, stride)
    if primitive in (DIL_CONV_3, DIL_CONV_5):
        return DilConvNorm(channels, 3 if primitive == DIL_CONV_3 else 5, stride)
    return SepConvNorm(channels, {SEP_CONV_3: 3, SEP_CONV_5: 5, SEP_CONV_7: 7}[primitive], stride)


def drop_path(
    maps: Float[Tensor, "batch channels height width"], prob: float, generator: torch.Generator | None = None
) -> Float[Tensor, "batch channels height width"]:
    """Zeros for each image with probability `prob` in [0, 1), else its maps divided by 1 - `prob`.

    The expectation is that of the maps (FractalNet's drop path, per image as in the public DARTS code).
    """
    device = maps.device if generator is None else generator.device
    kept = torch.empty(maps.shape[0], 1, 1, 1, dtype=maps.dtype, device=device).bernoulli_(
        1 - prob, generator=generator
    )
    return maps * (kept.to(maps.device) / (1 - prob))


def build_full_network(genotype: Genotype, config: FullNetworkConfig, seed: int) -> FullNetwork:
    """A network with freshly drawn weights; the same seed draws the same ones, whatever was drawn before.

    Raises:
        InvalidInputError: the genotype's kinds of cell are not normal and reduction.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return FullNetwork(genotype, config)


def _cifar_stem(config: FullNetworkConfig) -> list[nn.Module]:
    """Images to 3 x channels maps of the same size."""
    return [_conv_norm(config.image_channels, 3 * config.channels, stride=1)]


def _imagenet_stem(config: FullNetworkConfig) -> list[nn.Module]:
    """Images to maps of a quarter of their height and width, and these to maps of an eighth."""
    half = config.channels // 2
    quarter = nn.Sequential(
        *_conv_norm(config.image_channels, half, stride=2), nn.ReLU(), *_conv_norm(half, config.channels, stride=2)
    )
    return [quarter, nn.Sequential(nn.ReLU(), *_conv_norm(config.channels, config.channels, stride=2))]


def _search_stem(config: FullNetworkConfig) -> list[nn.Module]:
    """Images to 3 x channels maps, smaller by `stem_stride`; see `common.nn.supernet.Head`."""
    assert config.stem_stride is not None
    widths = (config.image_channels, *stem_widths(config))
    layers: list[nn.Module] = []
    for width_in, width_out in pairwise(widths):
        layers += [*([nn.ReLU()] if layers else []), *_conv_norm(width_in, width_out, min(config.stem_stride, 2))]
    return [nn.Sequential(*layers)]


_STEMS: Mapping[Motif, Callable[[FullNetworkConfig], list[nn.Module]]] = MappingProxyType(
    {"cifar": _cifar_stem, "imagenet": _imagenet_stem, "search": _search_stem}
)


def _conv_norm(channels_in: int, channels_out: int, stride: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels_in, channels_out, 3, stride, 1, bias=False), nn.BatchNorm2d(channels_out))
