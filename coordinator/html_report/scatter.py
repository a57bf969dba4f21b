"""Points in a plane as SVG: several groups told apart by colour and shape, with names or limits where there are any."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from coordinator.html_report.axes import (
    BOTTOM,
    HEIGHT,
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    Formatter,
    axes,
    data_table,
    figure,
    marker,
    nice_ticks,
    points_of,
    scale,
    significant,
    span,
    svg,
    swatch,
    ticks_below,
)
from coordinator.html_report.markup import Markup, element

NAME_ROOM = 74.0  # right of the last point, where points have names
CHARACTER, NAME_HEIGHT = 6.1, 12.0  # of a name, in pixels, on the wide side of what browsers' fonts have
MARKER = 5.0  # half of a marker, with some room
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
    categories: Sequence[str] = (),
    has_steps: bool = False,
) -> Markup:
    """Groups of points.

    Args:
        caption: what is shown.
        x_label: with the unit.
        y_label: with the unit.
        groups: by name, at least one point in all.
        is_log: powers of ten along the x axis; all x are above 0.
        has_names: write names beside points, where there is room.
        written: how values of y are written.
        categories: names of x = 0, 1, ...; numbers are written where there are none.
        has_steps: join the first group, which is by ascending x, by steps: the most that any x reaches.
    """
    points = [point for of_group in groups.values() for point in of_group]
    limits = [limit for point in points for limit in (point.y, point.low, point.high) if limit is not None]
    low_y, high_y = span(limits)
    turned = [math.log10(point.x) if is_log else point.x for point in points]
    low_x, high_x = (math.floor(min(turned)), max(turned) + 0.1) if is_log else span(turned)
    if categories:
        low_x, high_x = -0.5, len(categories) - 0.5
    if low_x == high_x:
        high_x += 1
    across = scale(low_x, high_x, LEFT + 8, WIDTH - RIGHT - (NAME_ROOM if has_names else 8.0))
    up = scale(low_y, high_y, HEIGHT - BOTTOM, TOP)
    ticks = list(range(int(low_x), int(high_x) + 1)) if is_log else _few(nice_ticks(low_x, high_x), low_x, high_x)
    rows_up = [tick for tick in nice_ticks(low_y, high_y) if low_y <= tick <= high_y]
    names_below = (lambda tick: across(math.log10(tick))) if is_log else across
    parts = [
        axes(rows_up, up, written, y_label),
        *(
            [*ticks_below([], across, x_label), *_category_names(categories, across)]
            if categories
            else ticks_below([10.0**tick for tick in ticks] if is_log else ticks, names_below, x_label)
        ),
    ]

    def name_of(x: float) -> str:
        return categories[round(x)] if categories else significant(x)

    places = [
        [(across(math.log10(point.x) if is_log else point.x), up(point.y)) for point in of_group]
        for of_group in groups.values()
    ]
    if has_steps:
        parts += _steps(places[0])
    for index, of_group in enumerate(groups.values()):
        for point, (x, y) in zip(of_group, places[index], strict=True):
            title = element("title", f"{point.name}: {name_of(point.x)}, {written(point.y)}")
            parts.append(element("g", title, *_limits(point, x, up, index), marker(x, y, index, index)))
    if has_names:
        parts += _names([point.name for point in points], [place for of_group in places for place in of_group])
    rows = [
        [
            f"{name}: {point.name}" if len(groups) > 1 else point.name,
            categories[round(point.x)] if categories else significant(point.x),
            _with_limits(point, written),
        ]
        for name, of_group in groups.items()
        for point in of_group
    ]
    legend = [(name, swatch(marker(14.0, 7.0, index, index))) for index, name in enumerate(groups)]
    return figure(
        caption,
        svg(f"{caption}: {y_label} over {x_label}", WIDTH, HEIGHT, *parts),
        legend if len(groups) > 1 else [],
        data_table(["point", x_label, y_label], rows),
    )


def _names(names: Sequence[str], places: Sequence[tuple[float, float]]) -> list[Markup]:
    """Names beside their points: right, left, below or above, where that covers nothing; the last choose first."""
    taken = [(x - MARKER, y - MARKER, x + MARKER, y + MARKER) for x, y in places]
    parts = []
    for name, (x, y) in zip(reversed(names), reversed(places), strict=True):
        width = CHARACTER * len(name)
        for anchor, left, middle in (
            ("start", x + 7, y),
            ("end", x - 7 - width, y),
            ("middle", x - width / 2, y + 14),
            ("middle", x - width / 2, y - 14),
        ):
            box = (left, middle - NAME_HEIGHT / 2, left + width, middle + NAME_HEIGHT / 2)
            inside = box[0] >= LEFT and box[2] <= WIDTH and box[1] >= TOP - NAME_HEIGHT and box[3] <= HEIGHT - BOTTOM
            if inside and not any(_overlap(box, other) for other in taken):
                taken.append(box)
                at = {"start": left, "end": left + width, "middle": left + width / 2}[anchor]
                parts.append(element("text", name, x=at, y=middle + 4, text_anchor=anchor, class_="tick"))
                break
    return parts


def _overlap(first: tuple[float, ...], second: tuple[float, ...]) -> bool:
    return first[0] < second[2] and second[0] < first[2] and first[1] < second[3] and second[1] < first[3]


def _category_names(categories: Sequence[str], across: Callable[[float], float]) -> list[Markup]:
    """Names below the axis, cut to the room that each has."""
    room = max(int((WIDTH - LEFT - RIGHT) / len(categories) / CHARACTER), 2)
    written = [name if len(name) <= room else name[: room - 1] + "\N{HORIZONTAL ELLIPSIS}" for name in categories]
    y = HEIGHT - BOTTOM + 15
    return [
        element("text", name, x=across(index), y=y, text_anchor="middle", class_="tick")
        for index, name in enumerate(written)
    ]


def _steps(places: Sequence[tuple[float, float]]) -> list[Markup]:
    corners = [corner for (_, before), (x, y) in pairwise(places) for corner in ((x, before), (x, y))]
    return [element("polyline", points=points_of([places[0], *corners]), class_="s0 line")] if corners else []


def _few(ticks: Sequence[float], low: float, high: float) -> list[float]:
    return [tick for tick in ticks if low <= tick <= high]


def _limits(point: Point, x: float, up: Callable[[float], float], index: int) -> list[Markup]:
    """A stroke from one limit to the other."""
    if point.low is None or point.high is None:
        return []
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
