"""A Pareto front on a page: what networks cost against how good they are, and all of them as a table. Pure."""

import math
from collections.abc import Sequence

from coordinator.html_report.axes import data_table, percent, significant
from coordinator.html_report.cells import cell_figures
from coordinator.html_report.markup import Content, Markup, element, joined
from coordinator.html_report.scatter import Point, scatter_chart
from coordinator.pareto import Front, FrontPoint

_COSTS = {"params": "Parameters", "macs": "MACs", "latency": "Predicted latency (ms)"}


def front_section(front: Front) -> Markup:
    """The front in words, as a chart, as a table; and the cells of its ends."""
    is_trained = front.points[0].accuracy is not None
    best = [point for point in front.points if not point.is_dominated]
    device = "" if front.device is None else f" Latency is predicted by a table measured on {front.device}."
    if is_trained:
        quality = (
            f"Every network was trained from scratch ({front.recipe}) and tested on {front.num_test} images; bars are "
            "95 % intervals, which cover the choice of test images, not that of seeds."
        )
    else:
        quality = "No network was trained: what is high is the probability of its genotype under the adapted posterior."
    text = (
        f"From one prior, adapted to {front.task}: the most probable network under each limit. Costs are of "
        f"{front.network}.{device} {quality} {len(best)} of {len(front.points)} points are on the front. For every "
        "dominated one there is another that costs no more and is no worse."
    )
    label = "Test accuracy" if is_trained else "Log probability (nats)"
    chart = scatter_chart(
        f"{_COSTS[front.measure]} against {label.lower()}",
        _COSTS[front.measure],
        label,
        {
            "on the front": _points(front, [point for point in front.points if not point.is_dominated]),
            "dominated": _points(front, [point for point in front.points if point.is_dominated]),
        },
        written=percent if is_trained else significant,
        has_steps=True,
    )
    rows = [_row(point) for point in front.points]
    header = ["", "parameters", "MACs", "ms", "log probability", "accuracy", "95 % interval", "found by"]
    adapted = [[f"{each.weight:g}", significant(each.expected), percent(each.accuracy)] for each in front.adapted]
    parts: list[Content] = [
        element("p", text),
        element("div", chart, class_="charts"),
        element("h3", "Networks"),
        data_table(header, rows, "Networks"),
        element("h3", "Adaptations"),
        data_table(["penalty weight", f"expected {front.measure}", "accuracy of the supernet"], adapted, "Adaptations"),
    ]
    ends = (("The cheapest on the front", best[0]), ("The dearest on the front", best[-1]))
    for title, point in ends if len(best) > 1 else ends[:1]:
        parts += [element("h3", title), cell_figures(point.genotype)]
    return joined(*parts)


def _points(front: Front, points: Sequence[FrontPoint]) -> list[Point]:
    """Those with a finite height, by ascending cost."""
    drawn = []
    for point in points:
        low, high = point.interval_95 or (None, None)
        height = _log(point) if point.accuracy is None else point.accuracy
        if math.isfinite(height):
            cost = point.cost(front.measure)
            drawn.append(Point(f"{point.num_params:,} parameters", cost, height, low, high))
    return sorted(drawn, key=lambda point: point.x)


def _log(point: FrontPoint) -> float:
    return math.log(point.probability) if point.probability > 0 else float("nan")


def _row(point: FrontPoint) -> list[Content]:
    low, high = point.interval_95 or (math.nan, math.nan)
    origins = "; ".join(
        f"weight {origin.weight:g}, " + ("no limit" if origin.limit is None else f"at most {origin.limit:.6g}")
        for origin in point.origins
    )
    return [
        "dominated" if point.is_dominated else element("strong", "on the front"),
        f"{point.num_params:,}",
        f"{point.num_macs:,}",
        "-" if point.latency_ms is None else f"{point.latency_ms:.3f}",
        significant(_log(point)),
        "-" if point.accuracy is None else percent(point.accuracy),
        "-" if point.accuracy is None else f"{percent(low)} to {percent(high)}",
        origins,
    ]
