"""What charts are made of: scales, axes, markers, legends, tables of values. Pure: values in, markup out.

A chart is as wide as a telephone, so its text stays legible there; wider screens put several side by side.
"""

import math
from collections.abc import Callable, Sequence

from coordinator.html_report.markup import Content, Markup, element, number

WIDTH, HEIGHT = 360.0, 236.0
LEFT, RIGHT, TOP, BOTTOM = 46.0, 12.0, 22.0, 38.0  # around the plot, for ticks and labels
NUM_TICKS = 5
DASHES = ("", "7 4", "2 3", "9 3 2 3", "12 4", "4 2")
NUM_COLOURS = 9

# Okabe and Ito's colours, ordered by contrast; on dark paper the black and the blues are lighter.
_LIGHT = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#333333", "#9A9A9A", "#B8A600")
_DARK = ("#4BA3DE", "#F08A3C", "#2CC79A", "#E3A2C6", "#F0B73A", "#8CCDF5", "#E8E8E8", "#8A8A8A", "#F0E442")

Formatter = Callable[[float], str]


def significant(value: float) -> str:
    """Four significant digits; "-" for what is not finite."""
    return f"{value:.4g}" if math.isfinite(value) else "-"


def percent(value: float) -> str:
    """A share of 1, in percent with one decimal."""
    return f"{100 * value:.1f} %" if math.isfinite(value) else "-"


def figure(caption: Content, drawing: Markup, legend: Sequence[tuple[str, Markup]], data: Markup | None) -> Markup:
    """A drawing with what belongs to it."""
    entries = [element("li", swatch, element("span", name)) for name, swatch in legend]
    return element(
        "figure",
        element("figcaption", caption),
        element("ul", *entries, class_="legend") if entries else Markup(),
        drawing,
        element("details", element("summary", "Values"), data) if data is not None else Markup(),
    )


def data_table(header: Sequence[str], rows: Sequence[Sequence[Content]], name: str = "Values") -> Markup:
    """A table that scrolls within its own box; the first column names the row."""
    head = element("tr", *(element("th", title, scope="col") for title in header))
    body = [
        element("tr", element("th", row[0], scope="row"), *(element("td", value) for value in row[1:])) for row in rows
    ]
    table = element("table", element("thead", head), element("tbody", *body))
    # A box that scrolls must be reachable by keyboard.
    return element("div", table, class_="scroll", tabindex=0, role="region", aria_label=name)


def nice_ticks(low: float, high: float) -> list[float]:
    """Round numbers that cover low to high: multiples of 1, 2 or 5 times a power of ten."""
    rough = (high - low) / NUM_TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def evenly(count: int, most: int) -> list[int]:
    """Indices of at most `most` >= 2 out of `count`, spread evenly, the first and the last among them."""
    if count <= most:
        return list(range(count))
    return sorted({round(index * (count - 1) / (most - 1)) for index in range(most)})


def palette_style(dark: bool) -> str:
    """CSS declarations of the categories' colours on light or dark paper."""
    return "".join(f"--c{index}:{colour};" for index, colour in enumerate(_DARK if dark else _LIGHT))


def chart_style() -> str:
    """CSS rules that the charts rely on; the page adds `--ink`, `--muted`, `--rule` and `--paper`."""
    strokes = "".join(
        f".s{index}{{stroke:var(--c{index})}}.f{index}{{fill:var(--c{index})}}" for index in range(NUM_COLOURS)
    )
    dashes = "".join(f".d{index}{{stroke-dasharray:{dash}}}" for index, dash in enumerate(DASHES) if dash)
    return (
        f"{strokes}{dashes}"
        "svg text{font-family:inherit;fill:var(--ink);font-size:12px}"
        "svg text.tick{font-size:11px;fill:var(--muted)}"
        "svg text.field{font-size:10px}svg text.on-dark{fill:#fff}svg text.on-pale{fill:#111}"
        ".line{fill:none;stroke-width:2;stroke-linejoin:round}"
        ".band{opacity:.2;stroke:none}.grid{stroke:var(--rule);stroke-width:1}"
        ".level{stroke:var(--muted);stroke-width:1.5;stroke-dasharray:2 4}"
        ".marker{stroke-width:1.5}.hollow{fill:var(--paper)}.hatch{stroke:var(--paper);stroke-width:1;fill:none}"
    )


def svg(label: str, width: float, height: float, *parts: Markup) -> Markup:
    """A drawing of its own, with what it shows in words."""
    return element(
        "svg",
        element("title", label),
        *parts,
        viewBox=f"0 0 {number(width)} {number(height)}",
        xmlns="http://www.w3.org/2000/svg",
        role="img",
        aria_label=label,
    )


def span(values: Sequence[float]) -> tuple[float, float]:
    """Least and largest, with room around them; never so narrow that noise in the last digits fills a chart."""
    finite = [value for value in values if math.isfinite(value)] or [0.0, 1.0]
    low, high = min(finite), max(finite)
    room = max(0.06 * (high - low), 1e-3 * max(abs(low), abs(high)), 1e-9)
    return (max(low - room, 0.0) if low >= 0 else low - room), high + room


def scale(low: float, high: float, first: float, last: float) -> Callable[[float], float]:
    """A straight map of low to high on first to last."""
    return lambda value: first + (value - low) / (high - low) * (last - first)


def axes(ticks: Sequence[float], up: Callable[[float], float], written: Formatter, label: str) -> Markup:
    """Lines across at `ticks` with their values, and the name of the y axis."""
    names = [f"{100 * tick:.0f} %" for tick in ticks] if written is percent else _tick_names(ticks)
    lines = [
        part
        for tick, name in zip(ticks, names, strict=True)
        for part in (
            element("line", x1=LEFT, x2=WIDTH - RIGHT, y1=up(tick), y2=up(tick), class_="grid"),
            element("text", name, x=LEFT - 5, y=up(tick) + 4, text_anchor="end", class_="tick"),
        )
    ]
    return element("g", *lines, element("text", label, x=2.0, y=12.0))


def ticks_below(ticks: Sequence[float], across: Callable[[float], float], label: str) -> list[Markup]:
    """The x axis: its line, values at `ticks`, its name."""
    y = HEIGHT - BOTTOM
    base = element("line", x1=LEFT, x2=WIDTH - RIGHT, y1=y, y2=y, class_="grid")
    numbers = [
        element("text", name, x=across(tick), y=y + 15, text_anchor="middle", class_="tick")
        for tick, name in zip(ticks, _tick_names(ticks), strict=True)
    ]
    return [base, *numbers, element("text", label, x=(LEFT + WIDTH - RIGHT) / 2, y=HEIGHT - 5, text_anchor="middle")]


def points_of(places: Sequence[tuple[float, float]]) -> str:
    """Coordinates as SVG writes them."""
    return " ".join(f"{number(x)},{number(y)}" for x, y in places)


def marker(x: float, y: float, shape: int, colour: int) -> Markup:
    """A mark at a place; shapes and colours are told by number."""
    style = f"marker s{colour % NUM_COLOURS} " + (f"f{colour % NUM_COLOURS}" if shape % 2 == 0 else "hollow")
    form = shape % 4
    if form == 0:
        return element("circle", cx=x, cy=y, r=3.2, class_=style)
    if form == 1:
        return element("rect", x=x - 3.2, y=y - 3.2, width=6.4, height=6.4, class_=style)
    if form == 2:
        return element("polygon", points=points_of([(x, y - 4.2), (x + 4, y + 3), (x - 4, y + 3)]), class_=style)
    return element("polygon", points=points_of([(x, y - 4.4), (x + 4.4, y), (x, y + 4.4), (x - 4.4, y)]), class_=style)


def swatch(*parts: Markup) -> Markup:
    """A sample for a legend."""
    return element("svg", *parts, viewBox="0 0 28 14", class_="swatch", aria_hidden="true")


def _tick_names(ticks: Sequence[float]) -> list[str]:
    """Ticks with as few digits, four at least, as tell them apart."""
    for digits in range(4, 16):
        names = [f"{tick:.{digits}g}" for tick in ticks]
        if len(set(names)) == len(names):
            break
    return names
