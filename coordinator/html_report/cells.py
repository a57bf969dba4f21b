"""A cell as SVG: inputs, nodes and output, and one labelled arrow per op, also where two ops share their source."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from common.space.genotype import Genotype, GenotypeEdge
from common.space.primitives import PRIMITIVES
from common.space.topology import NUM_CELL_INPUTS
from coordinator.cell_layout import Box, CellLayout, Route, lay_out
from coordinator.drawing import CONCATENATION, FAMILIES, op_label
from coordinator.html_report.axes import data_table, figure
from coordinator.html_report.markup import Markup, element, joined, number

UNITS_PER_INCH = 88.0
LABEL_SIZE = 12.0
CHARACTER = 0.56  # width of a letter as a share of its size, on the wide side of what browsers' fonts have
PADDING = 7.0
ARROW_LENGTH, ARROW_HALF_WIDTH = 8.0, 3.6

# On dark paper the drawings' dark colours are too dark; the hues stay.
_DARK: Mapping[str, str] = MappingProxyType(
    {
        "pooling": "#6DB8EC",
        "skip connection": "#D8D8D8",
        "separable conv": "#F59A5B",
        "dilated conv": "#43CFA5",
        "concatenation": "#8A8A8A",
    }
)
_DARK_OTHER = "#E8A5CC"


def cell_figures(genotype: Genotype) -> Markup:
    """A figure for each kind of cell."""
    return joined(*(cell_figure(kind, nodes) for kind, nodes in genotype.cells.items()))


def cell_figure(kind: str, nodes: Sequence[Sequence[GenotypeEdge]]) -> Markup:
    """One kind of cell: its drawing, at its natural size in a box that scrolls, and its ops as a table."""
    widths = {name: (_label_width(op_label(name))) / UNITS_PER_INCH for name in PRIMITIVES}
    layout = lay_out(nodes, widths)
    rows = [
        [f"node {node}", " + ".join(f"{op_label(edge.primitive)} of {source_name(edge.source)}" for edge in edges)]
        for node, edges in enumerate(nodes)
    ]
    return element("div", _figure(kind, layout, rows), class_="cell")


def source_name(source: int) -> str:
    """A source as people name it: the two cells before, or a node of this cell."""
    return ("c(k-2)", "c(k-1)")[source] if source < NUM_CELL_INPUTS else f"node {source - NUM_CELL_INPUTS}"


def cell_style(dark: bool) -> str:
    """CSS variables with the colours of the families of ops."""
    return "".join(
        f"--{_slug(family)}:{_DARK.get(family[0], _DARK_OTHER) if dark else family[1]};" for family in _families()
    )


def cell_rules() -> str:
    """CSS rules of the drawings; the page adds `--ink`, `--paper` and `--raised`."""
    colours = "".join(
        f".{_slug(family)}{{stroke:var(--{_slug(family)})}}"
        f"text.{_slug(family)},.head.{_slug(family)}{{fill:var(--{_slug(family)});stroke:none}}"
        for family in _families()
    )
    return (
        ".arrow{fill:none;stroke-width:1.8}.arrow.concatenation{stroke-width:1.2;stroke-dasharray:5 3}"
        ".box{fill:var(--paper);stroke-width:1.3}.node{stroke:var(--ink)}.port{stroke:var(--ink);fill:var(--raised)}"
        f"{colours}"
    )


def _figure(kind: str, layout: CellLayout, rows: Sequence[Sequence[str]]) -> Markup:
    width, height = layout.width * UNITS_PER_INCH, layout.height * UNITS_PER_INCH
    # Arrows below, boxes above, whatever crosses.
    arrows = [_arrow(route, layout.height) for route in sorted(layout.routes, key=lambda route: bool(route.primitive))]
    labels = [_op(route, layout.height) for route in layout.routes if route.label is not None]
    last = len(layout.nodes) - 1
    nodes = [_node(number, box, last, layout.height) for number, box in enumerate(layout.nodes)]
    label = f"{kind} cell: " + "; ".join(f"{name}: {ops}" for name, ops in rows)
    drawing = element(
        "svg",
        element("title", f"{kind} cell"),
        *arrows,
        *labels,
        *nodes,
        viewBox=f"0 0 {number(width)} {number(height)}",
        width=width,
        height=height,
        xmlns="http://www.w3.org/2000/svg",
        role="img",
        aria_label=label,
    )
    box = element("div", drawing, class_="scroll", tabindex=0, role="region", aria_label=f"{kind} cell")
    return figure(f"{kind} cell", box, [], data_table(["node", "sum of"], rows))


def _arrow(route: Route, top: float) -> Markup:
    points = [(x * UNITS_PER_INCH, (top - y) * UNITS_PER_INCH) for x, y in route.points.tolist()]
    (end_x, end_y), colour = points[-1], _slug(_family(route.primitive))
    points[-1] = (end_x - ARROW_LENGTH + 1, end_y)  # the line ends inside the head; every arrow arrives level
    written = [f"{number(x)} {number(y)}" for x, y in points]
    curves = "".join(f"C{' '.join(written[index : index + 3])}" for index in range(1, len(written), 3))
    corners = ((0.0, 0.0), (-ARROW_LENGTH, ARROW_HALF_WIDTH), (-ARROW_LENGTH, -ARROW_HALF_WIDTH))
    head = " ".join(f"{number(end_x + x)},{number(end_y + y)}" for x, y in corners)
    return joined(
        element("path", d=f"M{written[0]}{curves}", class_=f"arrow {colour}"),
        element("polygon", points=head, class_=f"head {colour}"),
    )


def _op(route: Route, top: float) -> Markup:
    assert route.label is not None and route.primitive is not None
    colour = _slug(_family(route.primitive))
    x, y = _centre(route.label, top)
    return joined(
        _box(route.label, top, f"box {colour}", rounding=6.0),
        element("text", op_label(route.primitive), x=x, y=y + 4.2, text_anchor="middle", class_=colour),
    )


def _node(number_: int, box: Box, last: int, top: float) -> Markup:
    is_node = NUM_CELL_INPUTS <= number_ < last
    x, y = _centre(box, top)
    if is_node:
        name: Markup = joined(str(number_ - NUM_CELL_INPUTS))
    else:
        index = {0: "k-2", 1: "k-1"}.get(number_, "k")
        name = joined("c", element("tspan", index, dy=3, font_size=9))
    return joined(
        _box(box, top, "box node" if is_node else "box port", rounding=13.0 if is_node else 4.0),
        element("text", name, x=x, y=y + 4.2, text_anchor="middle"),
    )


def _box(box: Box, top: float, style: str, rounding: float) -> Markup:
    x, y = _centre(box, top)
    width, height = box.width * UNITS_PER_INCH, box.height * UNITS_PER_INCH
    return element(
        "rect", x=x - width / 2, y=y - height / 2, width=width, height=height, rx=rounding, ry=rounding, class_=style
    )


def _centre(box: Box, top: float) -> tuple[float, float]:
    return box.x * UNITS_PER_INCH, (top - box.y) * UNITS_PER_INCH


def _label_width(label: str) -> float:
    return CHARACTER * LABEL_SIZE * len(label) + 2 * PADDING


def _family(primitive: str | None) -> tuple[str, str]:
    if primitive is None:
        return CONCATENATION
    return next(family for start, family in FAMILIES.items() if primitive.startswith(start))


def _families() -> list[tuple[str, str]]:
    return list(dict.fromkeys([*FAMILIES.values(), CONCATENATION]))


def _slug(family: tuple[str, str]) -> str:
    """A family's name as a CSS class."""
    kept = "".join(letter if letter.isascii() and letter.isalnum() else "-" for letter in family[0])
    return "op-" + kept if family != CONCATENATION else kept
