"""A full network as the text of a Python module that needs torch alone. No torch here.

The module spells out the cells of one genotype. Its parameters have the names they have in `common.nn.full`, so that
one's weights are the other's; it reads them from a safetensors file with the standard library.
"""

from collections.abc import Iterator, Mapping
from itertools import pairwise
from types import MappingProxyType

from common.network_config import CellPlan, FullNetworkConfig, cell_plans, stem_widths
from common.space.genotype import Genotype, GenotypeEdge
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

LINE_LENGTH = 120

_OP_CLASSES: Mapping[str, str] = MappingProxyType(
    {
        "SepConv": '''
class SepConv(nn.Module):
    """Twice: ReLU, depthwise convolution, 1x1 convolution, BatchNorm. The stride is the first one's."""

    def __init__(self, channels: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.depthwise1 = nn.Conv2d(channels, channels, kernel, stride, kernel // 2, groups=channels, bias=False)
        self.pointwise1 = nn.Conv2d(channels, channels, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.depthwise2 = nn.Conv2d(channels, channels, kernel, 1, kernel // 2, groups=channels, bias=False)
        self.pointwise2 = nn.Conv2d(channels, channels, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)

    def forward(self, maps: Tensor) -> Tensor:
        inner = self.norm1(self.pointwise1(self.depthwise1(F.relu(maps))))
        return self.norm2(self.pointwise2(self.depthwise2(F.relu(inner))))
''',
        "DilConv": '''
class DilConv(nn.Module):
    """ReLU, depthwise convolution of dilation 2, 1x1 convolution, BatchNorm."""

    def __init__(self, channels: int, kernel: int, stride: int) -> None:
        super().__init__()
        padding = 2 * (kernel // 2)
        self.depthwise = nn.Conv2d(channels, channels, kernel, stride, padding, 2, groups=channels, bias=False)
        self.pointwise = nn.Conv2d(channels, channels, 1, bias=False)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, maps: Tensor) -> Tensor:
        return self.norm(self.pointwise(self.depthwise(F.relu(maps))))
''',
        "Conv7x1": '''
class Conv7x1(nn.Module):
    """ReLU, 1x7 convolution, 7x1 convolution, BatchNorm. Each convolution strides along its own axis."""

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self.conv_1x7 = nn.Conv2d(channels, channels, (1, 7), (1, stride), (0, 3), bias=False)
        self.conv_7x1 = nn.Conv2d(channels, channels, (7, 1), (stride, 1), (3, 0), bias=False)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, maps: Tensor) -> Tensor:
        return self.norm(self.conv_7x1(self.conv_1x7(F.relu(maps))))
''',
        "PoolNorm": '''
class PoolNorm(nn.Module):
    """A pool, then BatchNorm."""

    def __init__(self, pool: nn.Module, channels: int) -> None:
        super().__init__()
        self.pool = pool
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, maps: Tensor) -> Tensor:
        return self.norm(self.pool(maps))
''',
    }
)

_IMPORTS = """
import json
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64}
"""

_BLOCKS = '''
class ConvNorm(nn.Module):
    """ReLU, 1x1 convolution, BatchNorm."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels_in, channels_out, 1, bias=False)
        self.norm = nn.BatchNorm2d(channels_out)

    def forward(self, maps: Tensor) -> Tensor:
        return self.norm(self.conv(F.relu(maps)))


class FactorizedReduce(nn.Module):
    """ReLU, then half the channels from the even pixels and half from the odd ones, BatchNorm; halves the size."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.conv_even = nn.Conv2d(channels_in, channels_out // 2, 1, 2, bias=False)
        self.conv_odd = nn.Conv2d(channels_in, channels_out - channels_out // 2, 1, 2, bias=False)
        self.norm = nn.BatchNorm2d(channels_out)

    def forward(self, maps: Tensor) -> Tensor:
        rectified = F.relu(maps)
        height, width = maps.shape[-2:]
        odd = F.pad(rectified[:, :, 1:, 1:], (0, width % 2, 0, height % 2))  # odd sizes: both halves agree
        return self.norm(torch.cat([self.conv_even(rectified), self.conv_odd(odd)], dim=1))
'''

_END = '''
def conv_norm(channels_in: int, channels_out: int, stride: int) -> nn.Sequential:
    """3x3 convolution, BatchNorm."""
    conv = nn.Conv2d(channels_in, channels_out, 3, stride, 1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(channels_out))


def load(path: str | Path | None = None) -> Network:
    """The network with the weights of a safetensors file, by default the one beside this module; evaluation mode."""
    network = Network()
    network.load_state_dict(read_weights(path or Path(__file__).with_suffix(".safetensors")))
    return network.eval()


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Tensors by name. A safetensors file is the length of a JSON header (8 bytes), the header, the tensors' bytes."""
    content = Path(path).read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    weights = {}
    for name, entry in json.loads(content[8:start]).items():
        if name != "__metadata__":
            first, last = entry["data_offsets"]
            data = bytearray(content[start + first : start + last])
            weights[name] = torch.frombuffer(data, dtype=DTYPES[entry["dtype"]]).reshape(entry["shape"])
    return weights
'''


def python_source(genotype: Genotype, config: FullNetworkConfig, module: str) -> str:
    """The text of a module that defines `Network`, the full network of `genotype`, and `load`.

    Args:
        genotype: kinds normal and reduction; any number of nodes, and of ops per node.
        config: all else; the auxiliary classifier and drop path, which serve training alone, are left out.
        module: name of the module, for its docstring.

    Raises:
        InvalidInputError: the genotype's kinds of cell are others.
    """
    plans = tuple(cell_plans(genotype, config))
    strides = {plan.kind: plan.stride for plan in plans}
    cells = [_cell(kind, genotype, strides[kind], config.motif == "search") for kind in sorted(strides)]
    ops = [text for name, text in _OP_CLASSES.items() if any(f"{name}(" in cell for cell in cells)]
    parts = [_BLOCKS, *ops, *cells, _network(plans, config), _END]
    return _docstring(genotype, config, module) + _IMPORTS + "".join("\n" + part for part in parts)


def _docstring(genotype: Genotype, config: FullNetworkConfig, module: str) -> str:
    size, classes = config.image_size, config.num_classes
    lines = [
        f'"""An image classifier: {config.motif} motif, {config.num_cells} cells, {config.channels} channels, '
        f"{classes} classes. Needs torch alone.",
        "",
        "With the weights that lie beside this file:",
        "",
        f"    logits = {module}.load()(images)",
        "",
        f"Images are (batch, {config.image_channels}, height, width), logits (batch, {classes}).",
        f"It is made for {size} x {size} pixels. Its cells, node by node, as op(source); sources 0 and 1 are",
        "the outputs of the two cells before, others are nodes:",
    ]
    for kind, nodes in sorted(genotype.cells.items()):
        lines += ["", f"    {kind}"]
        for index, node in enumerate(nodes):
            terms = [f"{edge.primitive}({edge.source})" for edge in node]
            lines += _filled(f"      {index + NUM_CELL_INPUTS} = ", " + ", terms, " " * 10)
    lines += ["", "The auxiliary classifier and drop path, which serve training alone, are left out.", '"""', ""]
    return "\n".join(lines)


def _cell(kind: str, genotype: Genotype, stride: int, normalises_pools: bool) -> str:
    """The class of one kind of cell, forward spelled out."""
    nodes = genotype.cells[kind]
    names = [f"x{NUM_CELL_INPUTS + index}" for index in range(len(nodes))]
    lines = [
        "",
        f"class {_cell_class(kind)}(nn.Module):",
        f'    """Joins {len(nodes)} nodes; '
        + ("halves" if stride == 2 else "keeps")
        + ' height and width of its second input."""',
        "",
        "    def __init__(self, before0: int, before1: int, channels: int, input0_is_larger: bool = False) -> None:",
        "        super().__init__()",
        "        fit0 = FactorizedReduce if input0_is_larger else ConvNorm",
        "        self.preprocess = nn.ModuleList([fit0(before0, channels), ConvNorm(before1, channels)])",
        "        self.nodes = nn.ModuleList(",
        "            [",
    ]
    for node in nodes:
        ops = [_op(edge, stride, normalises_pools) for edge in node]
        line = f"                nn.ModuleList([{', '.join(ops)}]),"
        if len(line) <= LINE_LENGTH:
            lines.append(line)
        else:
            lines += ["                nn.ModuleList(", "                    ["]
            lines += [f"                        {op}," for op in ops]
            lines += ["                    ]", "                ),"]
    lines += [
        "            ]",
        "        )",
        "",
        "    def forward(self, input0: Tensor, input1: Tensor) -> Tensor:",
        "        x0, x1 = self.preprocess[0](input0), self.preprocess[1](input1)",
    ]
    for index, (name, node) in enumerate(zip(names, nodes, strict=True)):
        terms = [f"self.nodes[{index}][{position}](x{edge.source})" for position, edge in enumerate(node)]
        line = f"        {name} = {' + '.join(terms)}"
        if len(line) <= LINE_LENGTH:
            lines.append(line)
        else:
            lines += [f"        {name} = (", f"            {terms[0]}"]
            lines += [f"            + {term}" for term in terms[1:]]
            lines.append("        )")
    lines += _filled("        return torch.cat([", ", ", names, " " * 12, "], dim=1)")
    return "\n".join(lines) + "\n"


def _network(plans: tuple[CellPlan, ...], config: FullNetworkConfig) -> str:
    channels, half = config.channels, config.channels // 2
    if config.motif == "cifar":
        stems = [f"        self.stems = nn.ModuleList([conv_norm({config.image_channels}, {3 * channels}, 1)])"]
        run_stems = ["        before = last = self.stems[0](images)"]
    elif config.motif == "search":
        assert config.stem_stride is not None
        layers = []
        for width_in, width_out in pairwise((config.image_channels, *stem_widths(config))):
            layers += [f"*conv_norm({width_in}, {width_out}, {min(config.stem_stride, 2)})", "nn.ReLU()"]
        stems = [
            *_filled("        stem = nn.Sequential(", ", ", layers[:-1], " " * 12, ")"),
            "        self.stems = nn.ModuleList([stem])",
        ]
        run_stems = ["        before = last = self.stems[0](images)"]
    else:
        quarter = f"*conv_norm({config.image_channels}, {half}, 2), nn.ReLU(), *conv_norm({half}, {channels}, 2)"
        stems = [
            f"        quarter = nn.Sequential({quarter})",
            f"        eighth = nn.Sequential(nn.ReLU(), *conv_norm({channels}, {channels}, 2))",
            "        self.stems = nn.ModuleList([quarter, eighth])",
        ]
        run_stems = ["        before = self.stems[0](images)", "        last = self.stems[1](before)"]
    lines = [
        "",
        "class Network(nn.Module):",
        f'    """Images (batch, {config.image_channels}, height, width) to logits (batch, {config.num_classes})."""',
        "",
        "    def __init__(self) -> None:",
        "        super().__init__()",
        *stems,
        "        self.cells = nn.ModuleList(",
        "            [",
        *(f"                {_cell_call(plan)}," for plan in plans),
        "            ]",
        "        )",
        f"        self.classifier = nn.Linear({plans[-1].channels_out}, {config.num_classes})",
        "",
        "    def forward(self, images: Tensor) -> Tensor:",
        *run_stems,
        "        for cell in self.cells:",
        "            before, last = last, cell(before, last)",
        "        return self.classifier(last.mean(dim=(2, 3)))",
    ]
    return "\n".join(lines) + "\n"


def _cell_class(kind: str) -> str:
    return f"{kind.capitalize()}Cell"


def _cell_call(plan: CellPlan) -> str:
    larger = ", input0_is_larger=True" if plan.input0_is_larger else ""
    return f"{_cell_class(plan.kind)}({plan.channels_before[0]}, {plan.channels_before[1]}, {plan.channels}{larger})"


def _op(edge: GenotypeEdge, cell_stride: int, normalises_pools: bool) -> str:
    """The expression that makes an op of a node."""
    if normalises_pools and edge.primitive in (MAX_POOL, AVG_POOL):
        return f"PoolNorm({_op(edge, cell_stride, False)}, channels)"
    stride = cell_stride if edge.source < NUM_CELL_INPUTS else 1
    if edge.primitive == SKIP:
        return "nn.Identity()" if stride == 1 else "FactorizedReduce(channels, channels)"
    if edge.primitive == MAX_POOL:
        return f"nn.MaxPool2d(3, {stride}, 1)"
    if edge.primitive == AVG_POOL:
        return f"nn.AvgPool2d(3, {stride}, 1, count_include_pad=False)"
    if edge.primitive == CONV_7X1_1X7:
        return f"Conv7x1(channels, {stride})"
    if edge.primitive in (DIL_CONV_3, DIL_CONV_5):
        return f"DilConv(channels, {3 if edge.primitive == DIL_CONV_3 else 5}, {stride})"
    kernel = {SEP_CONV_3: 3, SEP_CONV_5: 5, SEP_CONV_7: 7}[edge.primitive]
    return f"SepConv(channels, {kernel}, {stride})"


def _filled(head: str, separator: str, words: list[str], indent: str, tail: str = "") -> Iterator[str]:
    """Lines of `head`, the words and `tail`, broken after a separator where a line would get too long."""
    line = head + words[0]
    for word in words[1:]:
        if len(line + separator + word + tail) > LINE_LENGTH:
            yield (line + separator).rstrip()
            line = indent + word
        else:
            line += separator + word
    yield line + tail
