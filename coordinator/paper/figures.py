"""The paper's figures 2 to 4 as matplotlib figures. Colours never stand alone: markers and line styles differ too."""

from collections.abc import Sequence
from textwrap import fill

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from coordinator.paper.clusters import Clusters
from coordinator.paper.outcome import FourthFigureOutcome, ThirdFigure
from coordinator.paper.places import Place, is_ours, published_places
from coordinator.report import CHANCE_STYLE, LINE_COLOURS, LINE_STYLES, MARKERS, mean_interval

PANEL_INCHES = (4.8, 3.7)
_TITLE_CHARACTERS = 48


def figure2(own: Sequence[Place], images: str, is_stand_in: bool) -> Figure:
    """The paper's points on the left, the run's on axes of their own on the right."""
    figure, (left, right) = _panels(2)
    for place in published_places():
        ours = is_ours(place)
        left.plot(
            place.cost,
            place.error,
            marker="*" if ours else "o",
            markersize=13 if ours else 6,
            color=LINE_COLOURS[1] if ours else LINE_COLOURS[0],
            linestyle="none",
            zorder=3,
        )
        # Two columns of points lie side by side: the names of the left one go to the left. Ours go below theirs.
        to_left = place.name.startswith("NASNet")
        left.annotate(
            place.name,
            (place.cost, place.error),
            xytext=(0, -14) if ours else (-8 if to_left else 8, 0),
            textcoords="offset points",
            ha="center" if ours else "right" if to_left else "left",
            va="center",
            fontsize=8.5,
            weight="bold" if ours else "normal",
        )
    left.set_xscale("log")
    left.set_xlim(0.8, 60_000)
    left.set_xticks([1, 10, 100, 1000])
    left.set_xticklabels(["1", "10", "100", "1000"])
    _dress(left, "The paper: ImageNet", "Search, GPU-days (log scale)", "Top-1 error (%)")
    if own:
        for index, place in enumerate(own):
            assert place.low is not None and place.high is not None
            right.errorbar(
                place.cost,
                place.error,
                yerr=[[place.error - place.low], [place.high - place.error]],
                marker=MARKERS[index],
                markersize=8,
                capsize=4,
                color=LINE_COLOURS[1 + index],
                linestyle="none",
                label=place.name,
            )
        costs = [place.cost for place in own]
        room = max(0.25 * (max(costs) - min(costs)), 0.02 * max(costs))
        right.set_xlim(min(costs) - room, max(costs) + room)
        right.set_ylim(bottom=0)
        right.legend(frameon=False, fontsize=8.5, loc="lower right")
    else:
        right.text(0.5, 0.5, "not run", ha="center", va="center", transform=right.transAxes, color="#666666")
    title = f"This run: {images}" + ("; not comparable with the left" if is_stand_in else "")
    _dress(right, title, "Search, seconds of one worker", "Top-1 error (%), 95 % interval")
    return figure


def figure3(found: ThirdFigure) -> Figure:
    """Principal components of adapted weights and of architecture posteriors, by family."""
    figure, axes = _panels(2)
    panels = (("Weights of the cells", found.weights), ("Architecture posterior", found.architecture))
    for axis, (title, group) in zip(axes, panels, strict=True):
        _scatter(axis, group)
        first, second = group.components.explained
        _dress(
            axis,
            f"{title}; silhouette {group.silhouette:+.2f}",
            f"component 1 ({100 * first:.1f} % of the variance)",
            f"component 2 ({100 * second:.1f} %)",
        )
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    return figure


def figure4(found: FourthFigureOutcome) -> Figure:
    """Accuracy epoch by epoch, mean and 95 % band over repeats."""
    figure, (axis,) = _panels(1)
    for index, (name, values) in enumerate(found.arms.items()):
        interval = mean_interval(values)
        axis.plot(
            found.epochs,
            100 * interval.mean,
            color=LINE_COLOURS[index],
            linestyle=LINE_STYLES[index],
            marker=MARKERS[index],
            label=name,
            linewidth=1.8,
            zorder=3,
        )
        low, high = (100 * np.clip(limit, 0, 1) for limit in (interval.low, interval.high))
        axis.fill_between(found.epochs, low, high, color=LINE_COLOURS[index], alpha=0.16, linewidth=0)
    axis.axhline(100 * found.chance, **CHANCE_STYLE, label="chance")
    axis.set_xticks(found.epochs)
    axis.set_ylim(0, 102)
    _dress(axis, f"Adapting to {found.images}", "Epochs", "Accuracy on held-out images (%)")
    figure.legend(loc="outside lower center", ncols=1, frameon=False, fontsize=9, handlelength=3.2)
    figure.set_figheight(PANEL_INCHES[1] + 1.0)
    return figure


def _scatter(axis: Axes, group: Clusters) -> None:
    for index, name in enumerate(dict.fromkeys(group.families)):
        chosen = [position for position, family in enumerate(group.families) if family == name]
        points = group.components.points[chosen]
        axis.scatter(
            points[:, 0],
            points[:, 1],
            marker=MARKERS[index],
            facecolor=LINE_COLOURS[index] if index % 2 == 0 else "white",
            edgecolor=LINE_COLOURS[index],
            linewidth=1.4,
            s=42,
            label=name,
            zorder=3,
        )


def _panels(count: int) -> tuple[Figure, list[Axes]]:
    width, height = PANEL_INCHES
    figure = Figure(figsize=(width * count, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, list(figure.subplots(1, count, squeeze=False)[0])


def _dress(axis: Axes, title: str, x_label: str, y_label: str) -> None:
    axis.set_title(fill(title, _TITLE_CHARACTERS), fontsize=11)
    axis.set_xlabel(x_label)
    axis.set_ylabel(y_label)
    axis.grid(color="#DDDDDD", linewidth=0.7)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
