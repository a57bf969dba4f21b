"""The command that simulates the service on many workers, to plan capacity."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.table import Table

from common.errors import InvalidInputError
from common.loading import load, preset_names
from common.values import explain

if TYPE_CHECKING:
    from coordinator.simulation.outcome import SimulationOutcome

# Torch and matplotlib wait until the command runs.

_messages = Console(stderr=True, highlight=False)
_MODES = ("updates", "sums", "host_sums", "quorum", "buffered")
_WIDTH = 140
_MOST_WORKERS = 20_000


def register(app: typer.Typer) -> None:
    """Adds the command to the command line."""
    app.command("simulate", rich_help_panel="Service")(simulate)


def simulate(
    workers: Annotated[str, typer.Option(help="Numbers of workers, separated by commas.")] = "10,100,1000",
    modes: Annotated[
        str, typer.Option("--mode", help=f"Modes, separated by commas: {', '.join(_MODES)}; or all.")
    ] = "sums",
    preset: Annotated[
        str,
        typer.Option(help=f"Preset ({', '.join(preset_names())}) or TOML file: of what size priors are."),
    ] = "paper",
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--assume",
            metavar="FIELD=VALUE",
            help="Changes an assumption: times.mean_s=60, times.distribution=pareto, workload.studies=1, "
            "workload.tasks_per_worker=1, failures.deaths_per_hour=1, network.bytes_per_s=1e8, costs.commit_s=0.003. "
            "Repeatable.",
        ),
    ] = None,
    costs: Annotated[
        Path | None, typer.Option(help="JSON file of what the coordinator's steps cost; tests/benchmarks/fit_costs.py.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of everything that is random.")] = 0,
    plot: Annotated[Path | None, typer.Option(help="Draw the results: a .png, .svg or .pdf file.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")] = False,
) -> None:
    """Simulates the service on many workers: how busy they are, how busy the coordinator is, and what limits.

    Dispatcher, rounds, outer step and job store are the real ones; task times, deaths of workers, network and the
    coordinator's costs are modelled. Some simulated hours take seconds, with 10,000 workers minutes.

    Examples: `metasearch simulate --workers 100,1000 --mode all --plot scale.png`,
    `metasearch simulate --workers 1000 --assume workload.studies=1 --assume workload.adapt_jobs_per_worker=0`.
    """
    from coordinator.simulation.costs import Costs, load_costs, sizes_of
    from coordinator.simulation.plot import draw
    from coordinator.simulation.simulator import Assumptions, Setup
    from coordinator.simulation.simulator import simulate as run
    from coordinator.simulation.workload import WHAT

    numbers = _numbers(workers)
    asked = [name.strip() for name in modes.split(",")]
    for name in asked:
        if name not in (*_MODES, "all"):
            raise InvalidInputError(f"--mode must be of {', '.join(_MODES)}, or all; got {name!r}")
    chosen = [mode for mode in WHAT if mode in asked or "all" in asked]
    tree: dict[str, Any] = {"costs": (Costs() if costs is None else load_costs(costs)).model_dump()}
    for change in overrides or []:
        _assume(tree, change)
    try:
        assumptions = Assumptions.model_validate(tree)
    except ValidationError as error:
        raise InvalidInputError(f"--assume: {explain(error)}") from None
    sizes = sizes_of(load(preset, environment={}))
    outcomes = []
    for number in numbers:
        for mode in chosen:
            with _messages.status(f"{number} workers, {mode}"):
                outcomes.append(run(Setup(number, mode, sizes, assumptions, seed)))
    if plot is not None:
        draw(outcomes, f"{preset}: priors of {sizes.prior_bytes / 1e6:.1f} MB", plot)
        _messages.print(f"The figure is {plot}.", soft_wrap=True)
    if as_json:
        plain = {"preset": preset, "prior_bytes": sizes.prior_bytes, "assumptions": assumptions.model_dump()}
        print(json.dumps({**plain, "outcomes": [found.plain() for found in outcomes]}))
    show(outcomes, _messages)


def show(outcomes: Sequence["SimulationOutcome"], console: Console) -> None:
    """A row for each outcome."""
    view = Table("workers", "mode", show_edge=False)
    for name in (
        "busy",
        "tasks/s",
        "jobs/s",
        "round s",
        "coordinator",
        "commits/s",
        "MB/s in",
        "MB/s out",
        "staleness",
    ):
        view.add_column(name, justify="right")
    view.add_column("limited by")
    for found in outcomes:
        view.add_row(
            f"{found.num_workers:,}",
            found.mode,
            f"{found.utilisation:.3f}",
            f"{found.tasks_per_s:.3g}",
            f"{found.jobs_per_s:.2g}",
            "-" if found.round_s is None else f"{found.round_s.median:.0f}",
            f"{found.coordinator_load:.1%}",
            f"{found.commits_per_s:.1f}",
            f"{found.inward_bytes_per_s / 1e6:.3g}",
            f"{found.outward_bytes_per_s / 1e6:.3g}",
            f"{found.staleness_mean:.2f}",
            found.limit,
        )
    # Whole where it goes to a file, which has no width.
    (console if console.is_terminal else Console(stderr=True, width=_WIDTH)).print(view)


def _numbers(text: str) -> list[int]:
    try:
        found = [int(part) for part in text.split(",")]
    except ValueError:
        raise InvalidInputError(f"--workers must be whole numbers separated by commas, got {text!r}") from None
    for number in found:
        if not 1 <= number <= _MOST_WORKERS:
            raise InvalidInputError(f"--workers must be within 1..{_MOST_WORKERS:,}, got {number}")
    return found


def _assume(tree: dict[str, Any], change: str) -> None:
    """Writes one `--assume` into the tree of assumptions."""
    path, equals, value = change.partition("=")
    part, dot, name = path.partition(".")
    if not equals:
        raise InvalidInputError(f"--assume must be FIELD=VALUE, as in times.mean_s=60; got {change!r}")
    if dot:
        tree.setdefault(part, {})[name] = value
    else:
        tree[part] = value
