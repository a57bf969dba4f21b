"""Charts as SVG: lines with bands, heatmaps, stacked bars, paths of points. Pure: values in, markup out.

Every chart is a figure with a caption, a legend that wraps, and the values as a table for those who cannot see it.
Colours never stand alone: lines have dashes and markers, bars have hatches, fields of a heatmap have their number.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from coordinator.html_report.axes import (
    BOTTOM,
    DASHES,
    HEIGHT,
    LEFT,
    NUM_COLOURS,
    RIGHT,
    TOP,
    WIDTH,
    Formatter,
    axes,
    data_table,
    evenly,
    figure,
    marker,
    nice_ticks,
    percent,
    points_of,
    scale,
    significant,
    span,
    svg,
    swatch,
    ticks_below,
)
from coordinator.html_report.markup import Markup, element, joined, number

MOST_MARKERS = 12  # on one line; more would hide it
MOST_BARS = 50
LOG_SCALE_FROM = 4  # ratio of the widest to the narrowest gap between places, as in `coordinator.report`
CLOSEST_TICKS = 24.0
MOST_PLACES = 12  # that have a tick each
FIELD_WIDTH, FIELD_HEIGHT = 29.0, 17.0
ROW_LABEL, COLUMN_LABEL, COLUMN_LEAN, SCALE_HEIGHT = 56.0, 88.0, 38.0, 40.0
DARK_FIELD = 0.55  # share of the scale from which a field's number is white


# Cividis (Nuñez et al. 2018), reversed and paler at its end: little is pale, which spares ink and reads on paper.
_CIVIDIS = ((255, 247, 212), (188, 175, 111), (124, 123, 120), (59, 73, 108), (0, 34, 78))


@dataclass(frozen=True)
class Line:
    """A line of a chart; NaN leaves a gap.

    Attributes:
        name: for the legend and the table.
        values: one per place.
        low: lower limits of its band; None where there is none.
        high: upper limits.
    """

    name: str
    values: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None


def line_chart(
    caption: str,
    x_label: str,
    y_label: str,
    places: Sequence[float],
    lines: Sequence[Line],
    written: Formatter = significant,
    limits: tuple[float, float] | None = None,
    level: tuple[str, float] | None = None,
) -> Markup:
    """Lines over common places, with bands where limits are known.

    Args:
        caption: what is shown.
        x_label: of the places.
        y_label: of the values, with the unit.
        places: ascending; a wide spread of gaps makes the axis logarithmic, log(1 + place).
        lines: at most as many as there are colours stay distinguishable.
        written: how values are written.
        limits: of the values' axis; by the values where not given.
        level: name and value of a horizontal line, such as chance.
    """
    known = [value for line in lines for row in (line.values, line.low, line.high) for value in row or ()]
    low, high = limits or span([*known, *([level[1]] if level else [])])
    ticks = [tick for tick in nice_ticks(low, high) if low - 1e-9 <= tick <= high + 1e-9]
    across, is_log = _across(places)
    up = scale(low, high, HEIGHT - BOTTOM, TOP)
    parts = [axes(ticks, up, written, y_label), *_places_axis(places, across, x_label + (" (log)" if is_log else ""))]
    if level is not None:
        y = up(level[1])
        parts.append(element("line", x1=LEFT, x2=WIDTH - RIGHT, y1=y, y2=y, class_="level"))
    for index, line in enumerate(lines):
        if line.low is not None and line.high is not None:
            parts.append(_band(line.low, line.high, places, across, up, index))
    for index, line in enumerate(lines):
        parts += _drawn(line, places, across, up, index)
    rows = [
        [significant(place), *(_with_limits(line, row, written) for line in lines)] for row, place in enumerate(places)
    ]
    legend = [(line.name, _line_swatch(index)) for index, line in enumerate(lines)]
    if level is not None:
        legend.append((level[0], swatch(element("line", x1=1, x2=27, y1=7, y2=7, class_="level"))))
    return figure(
        caption,
        svg(f"{caption}: {y_label} over {x_label.lower()}", WIDTH, HEIGHT, *parts),
        legend if len(legend) > 1 or lines[0].name != y_label else [],
        data_table([x_label, *(line.name for line in lines)], rows),
    )


def stacked_bars(
    caption: str, x_label: str, y_label: str, places: Sequence[float], shares: Mapping[str, Sequence[float]]
) -> Markup:
    """How a total divides over categories, place by place; at most `MOST_BARS` bars, evenly chosen.

    Args:
        caption: what is shown.
        x_label: of the places.
        y_label: of the values.
        places: ascending.
        shares: by category, one value not below 0 per place. A category keeps its colour by its position.
    """
    shown = evenly(len(places), MOST_BARS)
    top = max(sum(values[index] for values in shares.values()) for index in shown) or 1.0
    up = scale(0.0, top, HEIGHT - BOTTOM, TOP)
    slot = (WIDTH - LEFT - RIGHT) / len(shown)
    gap = min(2.0, 0.1 * slot)
    ticks = [tick for tick in nice_ticks(0.0, top) if tick <= top]
    parts = [axes(ticks, up, significant, y_label)]
    for bar, index in enumerate(shown):
        below = 0.0
        for category, (name, values) in enumerate(shares.items()):
            value = values[index]
            if value <= 0:
                continue
            box = {"x": LEFT + bar * slot + gap / 2, "y": up(below + value), "width": slot - gap}
            box["height"] = up(below) - up(below + value)
            title = element("title", f"{x_label} {significant(places[index])}, {name}: {significant(value)}")
            parts.append(element("rect", title, **box, class_=f"f{category % NUM_COLOURS}"))
            if category % 2:  # every other category is hatched: neighbours differ without colours too
                parts.append(_hatch(box["x"], box["y"], box["width"], box["height"], category))
            below += value
    chosen = [places[index] for index in shown]
    centres = LEFT + (np.arange(len(shown)) + 0.5) * slot
    parts += _places_axis(chosen, lambda place: float(np.interp(place, chosen, centres)), x_label)
    legend = [(name, _bar_swatch(category)) for category, name in enumerate(shares)]
    rows = [
        [significant(place), *(significant(values[index]) for values in shares.values())]
        for index, place in enumerate(places)
    ]
    note = "" if len(shown) == len(places) else f" {len(shown)} of {len(places)} bars are drawn; the table has all."
    return figure(
        caption + note,
        svg(f"{caption}: {y_label} over {x_label.lower()}", WIDTH, HEIGHT, *parts),
        legend,
        data_table([x_label, *shares], rows),
    )


def heatmap(
    caption: str, row_names: Sequence[str], column_names: Sequence[str], values: NDArray[np.float64], top: float
) -> Markup:
    """A matrix of probabilities as fields, each with its value in percent.

    Args:
        caption: what is shown.
        row_names: short.
        column_names: written upwards.
        values: (num_rows, num_columns), 0 to 1.
        top: value of the darkest field, above 0; the same for maps that are to be compared.
    """
    num_rows, num_columns = values.shape
    field_width = max(FIELD_WIDTH, (WIDTH - ROW_LABEL - COLUMN_LEAN) / num_columns)
    width = ROW_LABEL + field_width * num_columns + COLUMN_LEAN
    bottom = COLUMN_LABEL + FIELD_HEIGHT * num_rows
    parts: list[Markup] = []
    for column, name in enumerate(column_names):
        x = ROW_LABEL + (column + 0.5) * field_width + 4
        turn = f"rotate(-65 {number(x)} {number(COLUMN_LABEL - 6)})"
        parts.append(element("text", name, x=x - 2, y=COLUMN_LABEL - 6, transform=turn, class_="tick"))
    for row, name in enumerate(row_names):
        y = COLUMN_LABEL + row * FIELD_HEIGHT
        parts.append(element("text", name, x=ROW_LABEL - 5, y=y + 12.5, text_anchor="end", class_="tick"))
        for column, value in enumerate(values[row]):
            x = ROW_LABEL + column * field_width
            share = float(min(max(value / top, 0.0), 1.0))
            title = element("title", f"{name}, {column_names[column]}: {percent(float(value))}")
            box = {"x": x, "y": y, "width": field_width - 1, "height": FIELD_HEIGHT - 1}
            parts.append(element("rect", title, **box, fill=cividis(share)))
            kind = "on-dark" if share >= DARK_FIELD else "on-pale"
            label = f"{100 * value:.0f}"
            parts.append(
                element(
                    "text", label, x=x + field_width / 2 - 0.5, y=y + 12, text_anchor="middle", class_=f"field {kind}"
                )
            )
    parts += _colour_scale(width, bottom + 10, top)
    rows = [[name, *(percent(float(value)) for value in values[row])] for row, name in enumerate(row_names)]
    return figure(
        caption,
        svg(f"{caption}: probability in percent", width, bottom + SCALE_HEIGHT, *parts),
        [],
        data_table(["edge", *column_names], rows),
    )


def path_chart(caption: str, x_label: str, y_label: str, names: Sequence[str], points: NDArray[np.float64]) -> Markup:
    """Points in a plane, joined in their order, the first and the last marked by shape; each with its name.

    Args:
        caption: what is shown.
        x_label: of the first coordinate.
        y_label: of the second.
        names: one per point.
        points: (num_points, 2).
    """
    low_x, high_x = span(points[:, 0].tolist())
    low_y, high_y = span(points[:, 1].tolist())
    across, up = scale(low_x, high_x, LEFT + 8, WIDTH - RIGHT - 8), scale(low_y, high_y, HEIGHT - BOTTOM, TOP)
    places = [(across(float(x)), up(float(y))) for x, y in points]
    parts = [
        axes(nice_ticks(low_y, high_y), up, significant, y_label),
        *ticks_below(nice_ticks(low_x, high_x), across, x_label),
        element("polyline", points=points_of(places), class_="s0 line"),
    ]
    last = len(places) - 1
    for index, ((x, y), name) in enumerate(zip(places, names, strict=True)):
        shape = 1 if index == 0 else 2 if index == last else 0
        title = f"version {name}: {significant(float(points[index, 0]))}, {significant(float(points[index, 1]))}"
        parts.append(element("g", element("title", title), marker(x, y, shape, 0)))
    written: list[tuple[float, float]] = []
    # The ends first: of points too close to each other, they keep their names.
    for index in dict.fromkeys([last, 0, *range(len(places))]):
        x, y = places[index]
        if all(abs(x - other_x) > 22 or abs(y - other_y) > 13 for other_x, other_y in written):
            written.append((x, y))
            flip = x > WIDTH - RIGHT - 36
            anchor = "end" if flip else "start"
            parts.append(
                element("text", names[index], x=x + (-7 if flip else 7), y=y - 5, text_anchor=anchor, class_="tick")
            )
    rows = [[name, significant(float(x)), significant(float(y))] for name, (x, y) in zip(names, points, strict=True)]
    return figure(
        caption,
        svg(f"{caption}: {y_label} over {x_label}", WIDTH, HEIGHT, *parts),
        [("first", swatch(marker(14.0, 7.0, 1, 0))), ("last", swatch(marker(14.0, 7.0, 2, 0)))],
        data_table(["version", x_label, y_label], rows),
    )


def cividis(share: float) -> str:
    """The colour of a value from 0 (pale) to 1 (dark)."""
    place = share * (len(_CIVIDIS) - 1)
    index = min(int(place), len(_CIVIDIS) - 2)
    part = place - index
    mixed = (round(a + (b - a) * part) for a, b in zip(_CIVIDIS[index], _CIVIDIS[index + 1], strict=True))
    return "#" + "".join(f"{channel:02x}" for channel in mixed)


def _across(places: Sequence[float]) -> tuple[Callable[[float], float], bool]:
    """Place -> x, and whether the axis is logarithmic."""
    gaps = [b - a for a, b in pairwise(places)]
    is_log = bool(gaps) and places[0] >= 0 and max(gaps) >= LOG_SCALE_FROM * min(gaps)
    turned = [math.log1p(place) if is_log else place for place in places]
    low, high = turned[0], turned[-1]
    if low == high:
        low, high = low - 1, high + 1
    along = scale(low, high, LEFT + 6, WIDTH - RIGHT - 6)
    return (lambda place: along(math.log1p(place) if is_log else place)), is_log


def _places_axis(places: Sequence[float], across: Callable[[float], float], label: str) -> list[Markup]:
    """Ticks at places that were measured, the last one always; of many places, at round numbers."""
    if len(places) > MOST_PLACES:
        ticks = [tick for tick in nice_ticks(places[0], places[-1]) if places[0] <= tick <= places[-1]]
        return ticks_below(ticks, across, label)
    kept = [places[-1]]
    for place in reversed(places[:-1]):
        if across(kept[-1]) - across(place) >= CLOSEST_TICKS:
            kept.append(place)
    return ticks_below(kept[::-1], across, label)


def _band(
    low: Sequence[float],
    high: Sequence[float],
    places: Sequence[float],
    across: Callable[[float], float],
    up: Callable[[float], float],
    index: int,
) -> Markup:
    known = [row for row in range(len(places)) if math.isfinite(low[row]) and math.isfinite(high[row])]
    there = [(across(places[row]), up(high[row])) for row in known]
    back = [(across(places[row]), up(low[row])) for row in reversed(known)]
    return element("polygon", points=points_of([*there, *back]), class_=f"band f{index % NUM_COLOURS}")


def _drawn(
    line: Line, places: Sequence[float], across: Callable[[float], float], up: Callable[[float], float], index: int
) -> list[Markup]:
    """The pieces of a line between its gaps, and its markers."""
    style = f"s{index % NUM_COLOURS} d{index % len(DASHES)} line"
    pieces: list[list[tuple[float, float]]] = [[]]
    for place, value in zip(places, line.values, strict=True):
        if math.isfinite(value):
            pieces[-1].append((across(place), up(value)))
        elif pieces[-1]:
            pieces.append([])
    parts = [element("polyline", points=points_of(piece), class_=style) for piece in pieces if len(piece) > 1]
    for row in evenly(len(places), MOST_MARKERS):
        if math.isfinite(line.values[row]):
            parts.append(marker(across(places[row]), up(line.values[row]), index, index))
    return parts


def _hatch(x: float, y: float, width: float, height: float, category: int) -> Markup:
    """Lines over a bar, level or slanting by the category; drawn, as patterns would need ids of their own."""
    step = 4.0 if category % 4 == 1 else 7.0
    strokes = [
        f"M{number(x)} {number(y + rise)}h{number(width)}" for rise in np.arange(step / 2, height, step).tolist()
    ]
    return element("path", d="".join(strokes), class_="hatch") if strokes else Markup()


def _line_swatch(index: int) -> Markup:
    style = f"s{index % NUM_COLOURS} d{index % len(DASHES)} line"
    return swatch(element("line", x1=1, x2=27, y1=7, y2=7, class_=style), marker(14.0, 7.0, index, index))


def _bar_swatch(category: int) -> Markup:
    box = element("rect", x=6, y=0, width=16, height=14, class_=f"f{category % NUM_COLOURS}")
    return swatch(box, _hatch(6.0, 0.0, 16.0, 14.0, category) if category % 2 else Markup())


def _colour_scale(width: float, y: float, top: float) -> list[Markup]:
    num_steps = 24
    step = (width - ROW_LABEL - COLUMN_LEAN) / num_steps
    boxes = [
        element(
            "rect",
            x=ROW_LABEL + index * step,
            y=y,
            width=step + 0.3,
            height=9.0,
            fill=cividis(index / (num_steps - 1)),
        )
        for index in range(num_steps)
    ]
    ends = (("0 %", ROW_LABEL, "start"), (f"{100 * top:.0f} %", width - COLUMN_LEAN, "end"))
    return [
        *boxes,
        *(element("text", name, x=x, y=y + 22, text_anchor=anchor, class_="tick") for name, x, anchor in ends),
    ]


def _with_limits(line: Line, row: int, written: Formatter) -> Markup:
    value = written(line.values[row])
    if line.low is None or line.high is None or not math.isfinite(line.low[row]):
        return joined(value)
    return joined(f"{value} ({written(line.low[row])} to {written(line.high[row])})")
