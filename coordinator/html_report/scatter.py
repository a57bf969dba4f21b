"""Points in a plane as SVG: several groups told apart by colour and shape, with names or limits where there are any."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from coordinator.html_report.charts import (
    BOTTOM,
    HEIGHT,
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    Formatter,
    _axes,
    _marker,
    _scale,
    _span,
    _svg,
    _swatch,
    _ticks_below,
    data_table,
    figure,
    nice_ticks,
    significant,
)
from coordinator.html_report.markup import Markup, element

NAME_ROOM = 74.0  # right of the last point, where points have names
CLOSEST_NAMES = 11.0
CAP = 4.0  # half of the stroke at a limit


@dataclass(frozen=True)
class Point:
    """A point of a chart.

    Attributes:
        name: for the table and, where it is written, beside the point.
        x: where it is.
        y: likewise.
        low: lower limit of y; None where there is none.
        high: upper limit.
    """

    name: str
    x: float
    y: float
    low: float | None = None
    high: float | None = None


def scatter_chart(
    caption: str,
    x_label: str,
    y_label: str,
    groups: Mapping[str, Sequence[Point]],
    is_log: bool = False,
    has_names: bool = False,
    written: Formatter = significant,
) -> Markup:
    """Groups of points.

    Args:
        caption: what is shown.
        x_label: with the unit.
        y_label: with the unit.
        groups: by name, at least one point in all.
        is_log: powers of ten along the x axis; all x are above 0.
        has_names: write names beside points, where there is room.
        written: how values are written in the table.
    """
    points = [point for of_group in groups.values() for point in of_group]
    limits = [limit for point in points for limit in (point.y, point.low, point.high) if limit is not None]
    low_y, high_y = _span(limits)
    turned = [math.log10(point.x) if is_log else point.x for point in points]
    low_x, high_x = _span(turned) if not is_log else (math.floor(min(turned)), math.ceil(max(turned)))
    if low_x == high_x:
        high_x += 1
    across = _scale(low_x, high_x, LEFT + 8, WIDTH - RIGHT - (NAME_ROOM if has_names else 8.0))
    up = _scale(low_y, high_y, HEIGHT - BOTTOM, TOP)
    ticks = list(range(int(low_x), int(high_x) + 1)) if is_log else _few(nice_ticks(low_x, high_x), low_x, high_x)
    rows_up = [tick for tick in nice_ticks(low_y, high_y) if low_y <= tick <= high_y]
    names_below = (lambda tick: across(math.log10(tick))) if is_log else across
    parts = [
        _axes(rows_up, up, significant, y_label),
        *_ticks_below([10.0**tick for tick in ticks] if is_log else ticks, names_below, x_label),
    ]
    named: list[tuple[float, float]] = []
    for index, of_group in enumerate(groups.values()):
        for point in of_group:
            x, y = across(math.log10(point.x) if is_log else point.x), up(point.y)
            title = element("title", f"{point.name}: {significant(point.x)}, {written(point.y)}")
            parts.append(element("g", title, *_limits(point, x, up, index), _marker(x, y, index, index)))
            if has_names and all(
                abs(y - other_y) >= CLOSEST_NAMES for other_x, other_y in named if abs(x - other_x) < 90
            ):
                named.append((x, y))
                parts.append(element("text", point.name, x=x + 7, y=y + 4, class_="tick"))
    rows = [
        [f"{name}: {point.name}" if len(groups) > 1 else point.name, significant(point.x), _with_limits(point, written)]
        for name, of_group in groups.items()
        for point in of_group
    ]
    legend = [(name, _swatch(_marker(14.0, 7.0, index, index))) for index, name in enumerate(groups)]
    return figure(
        caption,
        _svg(f"{caption}: {y_label} over {x_label}", WIDTH, HEIGHT, *parts),
        legend if len(groups) > 1 else [],
        data_table(["point", x_label, y_label], rows),
    )


def _few(ticks: Sequence[float], low: float, high: float) -> list[float]:
    return [tick for tick in ticks if low <= tick <= high]


def _limits(point: Point, x: float, up: object, index: int) -> list[Markup]:
    """A stroke from one limit to the other."""
    if point.low is None or point.high is None:
        return []
    assert callable(up)
    low, high = up(point.low), up(point.high)
    style = f"s{index} line"
    return [
        element("line", x1=x, x2=x, y1=low, y2=high, class_=style),
        element("line", x1=x - CAP, x2=x + CAP, y1=low, y2=low, class_=style),
        element("line", x1=x - CAP, x2=x + CAP, y1=high, y2=high, class_=style),
    ]


def _with_limits(point: Point, written: Formatter) -> str:
    if point.low is None or point.high is None:
        return written(point.y)
    return f"{written(point.y)} ({written(point.low)} to {written(point.high)})"
