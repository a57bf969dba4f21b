"""Simulations of several numbers of workers and modes, as one figure."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from coordinator.simulation.outcome import SimulationOutcome
from coordinator.simulation.workload import WHAT

# Okabe and Ito's, which are told apart by people of any colour vision; markers differ, too.
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7")
_MARKERS = ("o", "s", "^", "D", "v")

Panel = tuple[str, Callable[[SimulationOutcome], float | None], bool]
_PANELS: Sequence[Panel] = (
    ("workers' time that counts", lambda found: found.utilisation, False),
    ("coordinator's time in use", lambda found: found.coordinator_load, True),
    ("tasks of meta-training per second", lambda found: found.tasks_per_s, True),
    ("MB/s into the coordinator's host", lambda found: found.inward_bytes_per_s / 1e6, True),
    ("median seconds of a round", lambda found: found.round_s.median if found.round_s else None, False),
    ("staleness, mean (versions)", lambda found: found.staleness_mean, False),
)


def draw(outcomes: Sequence[SimulationOutcome], title: str, path: Path) -> None:
    """Writes a figure, as the suffix of `path` says: one panel for each quantity, one line for each mode."""
    by_mode: Mapping[str, list[SimulationOutcome]] = {
        mode: sorted((found for found in outcomes if found.mode == mode), key=lambda found: found.num_workers)
        for mode in WHAT
    }
    figure = Figure(figsize=(11, 6.4), layout="constrained")
    figure.suptitle(title, fontsize=11)
    for place, (label, value, is_logarithmic) in enumerate(_PANELS):
        axes: Axes = figure.add_subplot(2, 3, place + 1)
        for colour, marker, (mode, found) in zip(_COLOURS, _MARKERS, by_mode.items(), strict=True):
            points = [(each.num_workers, y) for each in found if (y := value(each)) is not None]
            if points:
                xs, ys = zip(*points, strict=True)
                axes.plot(xs, ys, marker=marker, color=colour, label=mode.replace("_", " "), markersize=5, alpha=0.85)
        axes.set_xscale("log")
        if is_logarithmic:
            axes.set_yscale("log")
        else:
            axes.set_ylim(bottom=0)
        if place == 0:
            axes.set_ylim(0, 1.02)
        if place == 1:
            axes.axhline(1.0, color="0.4", linestyle="--", linewidth=1)
        axes.set_xlabel("workers")
        axes.set_title(label, fontsize=10)
        axes.grid(alpha=0.25)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
