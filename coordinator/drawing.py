"""Drawings of cells as figures: inputs, nodes and output, and one labelled, coloured arrow per op."""

import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Literal

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.lines import Line2D
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from matplotlib.path import Path as Curve
from matplotlib.textpath import TextPath

from common.space.genotype import Genotype
from common.space.primitives import PRIMITIVES
from coordinator.cell_layout import MARGIN, Box, CellLayout, Route, lay_out

TIMES = "\N{MULTIPLICATION SIGN}"

# Legend and colour by how a primitive's name starts; dark colours of Okabe and Ito, as the labels are written in them.
FAMILIES: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "max_pool": ("pooling", "#0072B2"),
        "avg_pool": ("pooling", "#0072B2"),
        "skip_connect": ("skip connection", "#333333"),
        "sep_conv": ("separable conv", "#C04F00"),
        "dil_conv": ("dilated conv", "#007A5A"),
        "conv_7x1": (f"7{TIMES}1, 1{TIMES}7 conv", "#A2477F"),
    }
)
CONCATENATION = ("concatenation", "#A8A8A8")
INK = "#222222"
LABEL_POINTS, TITLE_POINTS = 9, 12
LABEL_PADDING = 0.07  # inches at each side
POINTS_PER_INCH = 72
HEADING = 0.3  # height of a title, of a cell's heading, in inches
LEGEND_ROW = 0.24
LEGEND_ENTRY_WIDTH = 1.5
NARROWEST = 4.4  # leaves room for two columns of the legend
WIDEST_ROW = 9.6  # cells stand side by side up to this width, else one below the other


def cells_figure(genotype: Genotype, title: str = "") -> Figure:
    """A drawing of every kind of cell, at its natural size.

    Every op is a text of its own, with the group id `op/<kind>/<node>/<index>`; boxes have `node/<kind>/<node>`.
    Nodes are numbered as sources are: 0 and 1 are the inputs.
    """
    label_widths = {name: _text_width(op_label(name), LABEL_POINTS) + 2 * LABEL_PADDING for name in PRIMITIVES}
    layouts = {kind: lay_out(nodes, label_widths) for kind, nodes in genotype.cells.items()}
    drawn = {_family(route.primitive) for layout in layouts.values() for route in layout.routes}
    families = [family for family in dict.fromkeys([*FAMILIES.values(), CONCATENATION]) if family in drawn]
    beside = sum(layout.width for layout in layouts.values()) <= WIDEST_ROW
    widths = [layout.width for layout in layouts.values()]
    heights = [layout.height + HEADING for layout in layouts.values()]
    title_width = _text_width(title, TITLE_POINTS, weight="bold") + 2 * MARGIN
    width = max(sum(widths) if beside else max(widths), title_width, NARROWEST)
    columns = min(len(families), max(2, int(width / LEGEND_ENTRY_WIDTH)))
    legend_height = LEGEND_ROW * (-(-len(families) // columns)) + 0.1
    title_height = HEADING if title else 0.0
    height = (max(heights) if beside else sum(heights)) + legend_height + title_height

    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    if title:
        figure.text(
            0.5, 1 - 0.6 * title_height / height, title, ha="center", va="center", fontsize=TITLE_POINTS, weight="bold"
        )
    left, top = 0.0, height - title_height
    for (kind, layout), row_height in zip(layouts.items(), heights, strict=True):
        axes = figure.add_axes((left / width, (top - row_height) / height, layout.width / width, row_height / height))
        axes.set(xlim=(0, layout.width), ylim=(0, row_height))
        axes.set_axis_off()
        axes.text(MARGIN, layout.height + 0.1, f"{kind} cell", fontsize=10.5, weight="bold", color=INK, va="center")
        _draw_cell(axes, kind, layout)
        left, top = (left + layout.width, top) if beside else (left, top - row_height)
    _draw_legend(figure, families, columns)
    return figure


def op_label(primitive: str) -> str:
    """A primitive's name for people: `sep_conv_5x5` is "sep conv 5×5"."""
    return re.sub(r"(\d)x(\d)", rf"\1{TIMES}\2", primitive.removesuffix("_connect")).replace("_", " ")


def _family(primitive: str | None) -> tuple[str, str]:
    if primitive is None:
        return CONCATENATION
    return next(family for start, family in FAMILIES.items() if primitive.startswith(start))


def _line_style(family: tuple[str, str]) -> Literal["-", "--"]:
    return "--" if family == CONCATENATION else "-"


def _text_width(text: str, points: float, weight: Literal["normal", "bold"] = "normal") -> float:
    """Width in inches."""
    if not text:
        return 0.0
    path = TextPath((0, 0), text, prop=FontProperties(size=points, weight=weight))
    return float(path.get_extents().width) / POINTS_PER_INCH


def _draw_legend(figure: Figure, families: Sequence[tuple[str, str]], columns: int) -> None:
    handles = [
        Line2D([], [], color=family[1], linewidth=2.0, linestyle=_line_style(family), label=family[0])
        for family in families
    ]
    figure.legend(
        handles=handles,
        loc="lower center",
        ncols=columns,
        frameon=False,
        fontsize=LABEL_POINTS,
        borderaxespad=0.3,
        handlelength=1.8,
        columnspacing=1.2,
    )


def _draw_cell(axes: Axes, kind: str, layout: CellLayout) -> None:
    for route in layout.routes:
        _draw_route(axes, kind, route)
    names = ["$c_{k-2}$", "$c_{k-1}$", *(str(node) for node in range(len(layout.nodes) - 3)), "$c_k$"]
    for number, (name, box) in enumerate(zip(names, layout.nodes, strict=True)):
        is_node = 2 <= number < len(names) - 1
        _draw_box(axes, box, "#FFFFFF" if is_node else "#EEEEEE", INK, rounding=0.16 if is_node else 0.06)
        axes.text(
            box.x,
            box.y,
            name,
            ha="center",
            va="center_baseline",
            fontsize=11,
            color=INK,
            zorder=5,
            gid=f"node/{kind}/{number}",
        )


def _draw_route(axes: Axes, kind: str, route: Route) -> None:
    family = _family(route.primitive)
    colour = family[1]
    codes = [Curve.MOVETO, *[Curve.CURVE4] * (len(route.points) - 1)]
    arrow = FancyArrowPatch(
        path=Curve(route.points, codes),
        arrowstyle="-|>",
        mutation_scale=9,
        color=colour,
        linewidth=1.0 if route.primitive is None else 1.5,
        linestyle=_line_style(family),
        capstyle="butt",
        zorder=1 if route.primitive is None else 2,
    )
    axes.add_patch(arrow)
    if route.primitive is None or route.label is None:
        return
    box = route.label
    _draw_box(axes, box, "#FFFFFF", colour, rounding=0.08)
    axes.text(
        box.x,
        box.y,
        op_label(route.primitive),
        ha="center",
        va="center_baseline",
        fontsize=LABEL_POINTS,
        color=colour,
        zorder=5,
        gid=f"op/{kind}/{route.target}/{route.index}",
    )


def _draw_box(axes: Axes, box: Box, face: str, edge: str, rounding: float) -> None:
    axes.add_patch(
        FancyBboxPatch(
            (box.x - box.width / 2, box.y - box.height / 2),
            box.width,
            box.height,
            boxstyle=f"round,pad=0,rounding_size={rounding}",
            facecolor=face,
            edgecolor=edge,
            linewidth=1.2,
            zorder=4,
        )
    )
