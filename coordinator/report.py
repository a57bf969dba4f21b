"""Results as people read them: confidence intervals, tables, learning curves and drawings of cells."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import fill
from types import MappingProxyType
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, NullLocator
from numpy.typing import NDArray
from rich import box
from rich.table import Table
from scipy.special import stdtrit  # type: ignore[import-untyped]  # comes with scikit-learn

from common.errors import InvalidInputError
from common.space.genotype import Genotype
from coordinator.drawing import cells_figure

# Okabe and Ito's colours, which stay apart under every common colour blindness; yellow is left out: too pale a line.
LINE_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
LINE_STYLES = ("-", "--", "-.", (0, (1, 1)), (0, (5, 1, 1, 1, 1, 1)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
CHANCE_STYLE: Mapping[str, Any] = MappingProxyType(
    {"color": "#666666", "linestyle": ":", "linewidth": 1.3, "zorder": 1}
)
DOTS_PER_INCH = 150
PANEL_INCHES = (4.4, 3.2)
LEGEND_ROW_INCHES = 0.22
TITLE_CHARACTERS = 42  # of one line over a panel
LOG_SCALE_FROM = 4  # ratio of the widest to the narrowest gap between steps
X_MARGIN = 0.04
CLOSEST_TICKS = 0.07  # both as shares of the axis


@dataclass(frozen=True, eq=False)
class Interval:
    """A mean and its confidence limits, each of shape (num_steps,).

    With a single task there is nothing to estimate the spread from: `low` and `high` are NaN, the mean stands alone.
    """

    mean: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Panel:
    """Accuracies of several ways to adapt (arms) on the same tasks.

    Attributes:
        title: what the tasks are, for example "Unseen scripts, 10-way, 8 tasks".
        steps: adaptation steps after which accuracy was measured, ascending; 0 is before the first step.
        arms: per name of an arm, (num_tasks, num_steps), accuracies from 0 to 1.
        chance: accuracy of guessing, 0 to 1; None leaves its line out.

    Raises:
        InvalidInputError: when steps are not ascending, or an arm's shape or values do not fit.
    """

    title: str
    steps: tuple[int, ...]
    arms: Mapping[str, NDArray[np.floating]]
    chance: float | None = None

    def __post_init__(self) -> None:
        if not self.steps or self.steps[0] < 0 or any(b <= a for a, b in zip(self.steps, self.steps[1:], strict=False)):
            raise InvalidInputError(f"steps of {self.title!r} must be ascending and not negative, got {self.steps}")
        if not self.arms:
            raise InvalidInputError(f"arms of {self.title!r} must name at least one arm")
        for name, values in self.arms.items():
            where = f"arm {name!r} of {self.title!r}"
            if values.ndim != 2 or values.shape[1] != len(self.steps) or not values.shape[0]:
                raise InvalidInputError(f"{where} must have shape (num_tasks, {len(self.steps)}), got {values.shape}")
            if not ((values >= 0) & (values <= 1)).all():
                raise InvalidInputError(f"{where} must hold accuracies from 0 to 1")
        if self.chance is not None and not 0 <= self.chance <= 1:
            raise InvalidInputError(f"chance of {self.title!r} must be from 0 to 1, got {self.chance}")


def mean_interval(values: NDArray[np.floating], confidence: float = 0.95) -> Interval:
    """Mean over tasks with Student's t interval.

    Args:
        values: (num_tasks, num_steps); tasks are taken as independent.
        confidence: probability that the interval covers the mean, between 0 and 1.

    Returns:
        Per step, the mean and its limits; the limits are NaN for one task.

    Raises:
        InvalidInputError: on another shape, no tasks, values that are not finite, or a confidence out of range.
    """
    if values.ndim != 2 or not values.shape[0]:
        raise InvalidInputError(f"values must have shape (num_tasks, num_steps) with a task, got {values.shape}")
    if not np.isfinite(values).all():
        raise InvalidInputError("values must be finite; leave out the tasks that failed")
    if not 0 < confidence < 1:
        raise InvalidInputError(f"confidence must be between 0 and 1, got {confidence}; 0.95 is usual")
    samples = values.astype(np.float64)
    num_tasks = samples.shape[0]
    mean = samples.mean(axis=0)
    if num_tasks == 1:
        unknown = np.full_like(mean, np.nan)
        return Interval(mean, unknown, unknown.copy())
    quantile = float(stdtrit(num_tasks - 1, 0.5 + confidence / 2))
    half_width = quantile * samples.std(axis=0, ddof=1) / np.sqrt(num_tasks)
    return Interval(mean, mean - half_width, mean + half_width)


def paired_interval(first: NDArray[np.floating], second: NDArray[np.floating], confidence: float = 0.95) -> Interval:
    """Mean of `first` - `second` task by task, with Student's t interval.

    Pairing takes the difficulty of the tasks out of the comparison, so both must hold the same tasks in the same order.

    Args:
        first: (num_tasks, num_steps).
        second: (num_tasks, num_steps).
        confidence: as in `mean_interval`.

    Raises:
        InvalidInputError: when the shapes differ, and as `mean_interval`.
    """
    if first.shape != second.shape:
        raise InvalidInputError(f"paired values must have one shape, got {first.shape} and {second.shape}")
    return mean_interval(first.astype(np.float64) - second.astype(np.float64), confidence)


def interval_by_step(interval: Interval, steps: Sequence[int]) -> dict[str, dict[str, float]]:
    """An interval as JSON holds it: {step: {mean, low, high}}."""
    points = zip(steps, interval.mean, interval.low, interval.high, strict=True)
    return {
        str(step): {"mean": float(mean), "low": float(low), "high": float(high)} for step, mean, low, high in points
    }


def intervals_by_step(panel: Panel) -> dict[str, dict[str, dict[str, float]]]:
    """The mean intervals of all arms of a panel, as `interval_by_step` by arm."""
    return {arm: interval_by_step(mean_interval(values), panel.steps) for arm, values in panel.arms.items()}


def results_table(panels: Sequence[Panel], steps: Sequence[int] | None = None, confidence: float = 0.95) -> Table:
    """Accuracies as a table: one row per arm, one column per step, "0.84 ± 0.03" (half the interval's width).

    Args:
        panels: each becomes a section under its title; a single one titles the table.
        steps: columns; every step of any panel where not given. A panel without a step shows "-" there.
        confidence: as in `mean_interval`.

    Raises:
        InvalidInputError: without panels, or when no panel was measured at one of `steps`.
    """
    measured = _all_steps(panels)
    columns = measured if steps is None else tuple(steps)
    for step in columns:
        if step not in measured:
            raise InvalidInputError(f"no panel was measured after {step} steps; choose out of {measured}")
    table = Table(box=box.SIMPLE_HEAD, title=panels[0].title if len(panels) == 1 else None)
    table.add_column("Adaptation steps", overflow="fold", min_width=16)
    for step in columns:
        table.add_column(str(step), justify="right", overflow="fold", min_width=6)
    for panel in panels:
        if len(panels) > 1:
            table.add_row(panel.title, style="bold")
        for name, values in panel.arms.items():
            cells = _cells(panel.steps, mean_interval(values, confidence))
            table.add_row(name, *(cells.get(step, "-") for step in columns))
        table.add_section()
    return table


def curves_figure(panels: Sequence[Panel], confidence: float = 0.95) -> Figure:
    """One plot per panel, side by side on one accuracy axis: mean over tasks and confidence band of every arm.

    An arm keeps its colour, line style and marker over all panels.

    Raises:
        InvalidInputError: without panels.
    """
    _all_steps(panels)
    width, height = PANEL_INCHES
    figure = Figure(figsize=(width * len(panels), height), layout="constrained")
    FigureCanvasAgg(figure)
    names = dict.fromkeys(name for panel in panels for name in panel.arms)
    styles = {name: _line_style(index) for index, name in enumerate(names)}
    axes: list[Axes] = list(figure.subplots(1, len(panels), sharey=True, squeeze=False)[0])
    for axis, panel in zip(axes, panels, strict=True):
        for name, values in panel.arms.items():
            _draw_arm(axis, panel.steps, mean_interval(values, confidence), styles[name])
        if panel.chance is not None:
            axis.axhline(100 * panel.chance, **CHANCE_STYLE)
        _dress(axis, panel)
    axes[0].set_ylabel("Accuracy on held-out images (%)")
    axes[0].set_ylim(0, 102)
    handles: list[Artist] = [Line2D([], [], label=name, **style) for name, style in styles.items()]
    if any(values.shape[0] > 1 for panel in panels for values in panel.arms.values()):
        handles.append(Patch(color="#C8C8C8", label=f"{100 * confidence:g}% interval"))
    if any(panel.chance is not None for panel in panels):
        handles.append(Line2D([], [], label="chance", **CHANCE_STYLE))
    for columns in reversed(range(1, len(handles) + 1)):
        legend = figure.legend(
            handles=handles, loc="outside lower center", ncols=columns, frameon=False, handlelength=3.2
        )
        if columns == 1 or legend.get_window_extent().width <= figure.bbox.width:
            break
        legend.remove()
    figure.set_figheight(height + LEGEND_ROW_INCHES * -(-len(handles) // columns))
    return figure


def draw_curves(panels: Sequence[Panel], path: str | Path, confidence: float = 0.95) -> None:
    """Write `curves_figure` to `path`; its suffix (.png, .svg, .pdf) chooses the format."""
    _write(curves_figure(panels, confidence), path)


def draw_cells(genotype: Genotype, path: str | Path, title: str = "") -> None:
    """Write a drawing of every kind of cell of `genotype` to `path`, as `draw_curves` does."""
    _write(cells_figure(genotype, title), path)


def _write(figure: Figure, path: str | Path) -> None:
    target = Path(path)
    supported = figure.canvas.get_supported_filetypes()
    if target.suffix.lstrip(".") not in supported:
        raise InvalidInputError(f"cannot draw to {str(target)!r}; use .png, .svg or .pdf")
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, dpi=DOTS_PER_INCH, facecolor="white")


def _all_steps(panels: Sequence[Panel]) -> tuple[int, ...]:
    if not panels:
        raise InvalidInputError("there are no results to show; give at least one panel")
    return tuple(sorted({step for panel in panels for step in panel.steps}))


def _cells(steps: tuple[int, ...], interval: Interval) -> dict[int, str]:
    half_widths = (interval.high - interval.low) / 2
    return {
        step: f"{mean:.2f}" if np.isnan(half_width) else f"{mean:.2f} ± {half_width:.2f}"
        for step, mean, half_width in zip(steps, interval.mean, half_widths, strict=True)
    }


def _line_style(index: int) -> dict[str, Any]:
    return {
        "color": LINE_COLOURS[index % len(LINE_COLOURS)],
        "linestyle": LINE_STYLES[index % len(LINE_STYLES)],
        "marker": MARKERS[index % len(MARKERS)],
        "linewidth": 1.8,
        "markersize": 5,
        "zorder": 3,
    }


def _draw_arm(axis: Axes, steps: tuple[int, ...], interval: Interval, style: Mapping[str, Any]) -> None:
    axis.plot(steps, 100 * interval.mean, **style)
    if not np.isnan(interval.low).any():
        low, high = np.clip(interval.low, 0, 1), np.clip(interval.high, 0, 1)
        axis.fill_between(steps, 100 * low, 100 * high, color=style["color"], alpha=0.16, linewidth=0, zorder=2)


def _dress(axis: Axes, panel: Panel) -> None:
    """Scale, ticks and labels of one plot."""
    gaps = np.diff(panel.steps)
    logarithmic = bool(gaps.size and gaps.max() >= LOG_SCALE_FROM * gaps.min())
    steps = np.asarray(panel.steps, dtype=np.float64)
    places = np.log1p(steps) if logarithmic else steps  # log(1 + step) has a place for step 0
    if logarithmic:
        axis.set_xscale("function", functions=(np.log1p, np.expm1))
    margin = X_MARGIN * float(np.ptp(places)) or X_MARGIN
    limits = np.array([places[0] - margin, places[-1] + margin])
    axis.set_xlim(*(np.expm1(limits) if logarithmic else limits))
    kept = [len(steps) - 1]
    for index in reversed(range(len(steps) - 1)):
        if places[kept[-1]] - places[index] >= CLOSEST_TICKS * np.ptp(places):
            kept.append(index)
    axis.xaxis.set_major_locator(FixedLocator([panel.steps[index] for index in kept]))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_major_formatter("{x:.0f}")
    axis.set_xlabel("Adaptation steps" + (" (log scale)" if logarithmic else ""))
    axis.set_title(fill(panel.title, TITLE_CHARACTERS), fontsize=11)
    axis.grid(axis="y", color="#DDDDDD", linewidth=0.7)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
