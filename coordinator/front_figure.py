"""A Pareto front as a drawing: what networks cost, and how good they are."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from coordinator.pareto import UNITS, Front, FrontPoint
from coordinator.report import DOTS_PER_INCH, LINE_COLOURS

_INCHES = (5.6, 3.9)


def front_figure(front: Front) -> Figure:
    """Points with their intervals; those on the front are joined by the best that any cost buys."""
    figure = Figure(figsize=_INCHES, layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    is_trained = all(point.accuracy is not None for point in front.points)
    best = [point for point in front.points if not point.is_dominated]
    axis.step(
        [point.cost(front.measure) for point in best],
        [_height(point, is_trained) for point in best],
        where="post",
        color=LINE_COLOURS[0],
        linewidth=1.2,
        alpha=0.6,
        zorder=2,
    )
    _draw(axis, front, best, is_trained, "on the front")
    _draw(axis, front, [point for point in front.points if point.is_dominated], is_trained, "dominated")
    axis.xaxis.set_major_locator(MaxNLocator(5))
    axis.set_xlabel(f"{axis_name(front)}\nof {front.network}", fontsize=9)
    axis.set_ylabel("Test accuracy (%)" if is_trained else "Log probability of the genotype (nats)")
    axis.set_title(front.task, fontsize=10)
    axis.grid(color="#DDDDDD", linewidth=0.7)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    handles, _ = axis.get_legend_handles_labels()
    if len(handles) > 1:
        axis.legend(frameon=False, fontsize=9)
    return figure


def axis_name(front: Front) -> str:
    """What the points cost, with the unit."""
    if front.measure == "latency":
        return f"Predicted latency (ms, {front.device})"
    return "Parameters" if front.measure == "params" else UNITS["macs"]


def draw_front(front: Front, path: Path) -> None:
    """Writes `front_figure`; the suffix (.png, .svg, .pdf) chooses the format."""
    path.parent.mkdir(parents=True, exist_ok=True)
    front_figure(front).savefig(path, dpi=DOTS_PER_INCH, facecolor="white")


def _height(point: FrontPoint, is_trained: bool) -> float:
    if is_trained:
        return 100 * point.quality
    return float(np.log(max(point.probability, np.finfo(np.float64).tiny)))


def _draw(axis: Axes, front: Front, points: Sequence[FrontPoint], is_trained: bool, label: str) -> None:
    if not points:
        return
    is_best = label == "on the front"
    heights = np.array([_height(point, is_trained) for point in points])
    spread = None
    if is_trained:
        limits = np.array([point.interval_95 for point in points], dtype=np.float64) * 100
        spread = np.abs(limits.T - heights)
    axis.errorbar(
        [point.cost(front.measure) for point in points],
        heights,
        yerr=spread,
        linestyle="none",
        marker="o" if is_best else "s",
        markerfacecolor=LINE_COLOURS[0] if is_best else "white",
        color=LINE_COLOURS[0] if is_best else LINE_COLOURS[1],
        capsize=3,
        elinewidth=1,
        markersize=6,
        label=label,
        zorder=3,
    )
