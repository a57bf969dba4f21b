"""The command that measures what a device takes for the parts of full networks."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer
from rich.console import Console
from rich.table import Table

from common.errors import INTERRUPTED_EXIT_CODE, ConflictError, InvalidInputError
from common.latency import NS_PER_MS, LatencyTable, latency_terms, read_table
from common.network_config import network_config
from common.space.primitives import NONE, PROFILES, ProfileName
from common.storage import ArtifactFolder
from coordinator.network_cli import (
    CellsOption,
    ChannelsOption,
    ClassesOption,
    ImageChannelsOption,
    ImageSizeOption,
    JsonOption,
    MotifOption,
)
from coordinator.progress import Bar

if TYPE_CHECKING:
    from workers.profiling import Check

# Torch waits until the command runs.

_messages = Console(stderr=True, highlight=False)


def register(app: typer.Typer) -> None:
    """Adds the command to the command line."""
    app.command("profile", rich_help_panel="Full networks")(profile)


def profile(
    out: Annotated[Path, typer.Option(help="JSON file for the table.")],
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, or auto for the first GPU, else the CPU.")] = "auto",
    ops: Annotated[str, typer.Option(help="Ops to measure: darts, base or base+.")] = "base",
    run: Annotated[Path | None, typer.Option(help="Take ops and nodes from this run's search space instead.")] = None,
    motif: MotifOption = None,
    channels: ChannelsOption = None,
    cells: CellsOption = None,
    classes: ClassesOption = None,
    image_size: ImageSizeOption = None,
    image_channels: ImageChannelsOption = None,
    batch_size: Annotated[int, typer.Option(min=1, max=4096, help="Images that go through together.")] = 1,
    threads: Annotated[int, typer.Option(min=1, max=1024, help="Of a CPU.")] = 1,
    repeats: Annotated[int, typer.Option(min=1, max=10_000, help="Measurements of each time.")] = 30,
    check: Annotated[
        int, typer.Option(min=0, max=1000, help="Measure so many whole networks, too, and say how well the table fits.")
    ] = 0,
    again: Annotated[bool, typer.Option("--again", help="Measure although the table is there.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Measures what each op, and all else in a full network, takes on a device: a table for limits and penalties.

    Times are of one batch through a network in evaluation mode: medians and quartiles over interleaved repeats. A table
    is of one device and one shape of network. Ctrl-C keeps what was measured; the same command goes on. With a table
    that is there already, `--check N` checks that one.

    Example: `metasearch profile --device cpu --channels 16 --cells 8 --out cpu.json --check 20`.
    """
    folder = ArtifactFolder(out.parent)
    is_there = folder.exists(out.name) and not again
    if is_there and not check:
        raise ConflictError(
            f"{out} is there; add --again to measure anew, --check N to check it, or choose another --out"
        )
    if ops not in get_args(ProfileName):
        raise InvalidInputError(f"--ops must be one of {', '.join(get_args(ProfileName))}, got {ops!r}")
    primitives, num_nodes = tuple(name for name in PROFILES[ops] if name != NONE), 4  # type: ignore[index]
    if run is not None:
        from common.artifacts import PriorStore

        space = PriorStore(run).load_config().space
        primitives, num_nodes = tuple(name for name in space.ops if name != NONE), space.num_nodes
    network = network_config(
        motif or "cifar",
        channels=channels,
        num_cells=cells,
        num_classes=classes,
        image_size=image_size,
        image_channels=image_channels,
    ).model_copy(update={"auxiliary": False})

    from workers.device import device_named
    from workers.profiling import ProfileSpec
    from workers.profiling import check as run_check
    from workers.profiling import profile as run_profile

    chosen = device_named(device)
    spec = ProfileSpec(network, primitives, num_nodes, batch_size, threads, repeats)
    found: Check | None = None
    try:
        if is_there:
            table = read_table(out)
            _messages.print(f"{out} is there: it is checked, not measured.", soft_wrap=True)
        else:
            with Bar(_messages, "Timing") as bar:
                table = run_profile(spec, chosen, folder, out.name, bar.show)
        if check:
            with Bar(_messages, "Checking") as bar:
                found = run_check(table, chosen, check, bar.show)
    except KeyboardInterrupt:
        _messages.print("Stopped; the same command goes on with what was measured.")
        raise typer.Exit(INTERRUPTED_EXIT_CODE) from None
    if as_json:
        content: dict[str, Any] = {"table": table.model_dump(mode="json")}
        if found is not None:
            content["check"] = {
                "predicted_ms": list(found.predicted_ms),
                "measured_ms": list(found.measured_ms),
                "rank_correlation": found.rank_correlation if check > 1 else None,
                "median_relative_error": found.median_relative_error,
                "median_ratio": found.median_ratio,
            }
        print(json.dumps(content))
    _show(table)
    if found is not None:
        _messages.print(
            f"{check} networks of random genotypes: {min(found.measured_ms):.3f} to {max(found.measured_ms):.3f} ms "
            f"measured; rank correlation {found.rank_correlation:.3f}, median relative error "
            f"{found.median_relative_error:.1%}, predicted / measured {found.median_ratio:.3f} (median).",
            soft_wrap=True,
        )
    _messages.print(f"The table is in {out}.", soft_wrap=True)


def _show(table: LatencyTable) -> None:
    """Ops by kind of cell, as they add to a whole network, and the rest."""
    terms = latency_terms(table)
    columns = list(dict.fromkeys(key[:2] for key in terms.ops))
    view = Table("op, ms in all cells of a kind", show_edge=False)
    for kind, from_input in columns:
        view.add_column(f"{kind}, {'from an input' if from_input else 'from a node'}", justify="right")
    for primitive in table.primitives:
        view.add_row(primitive, *(f"{terms.ops[kind, place, primitive] / NS_PER_MS:.3f}" for kind, place in columns))
    _messages.print(view)
    spreads = sorted((op.high_ms - op.low_ms) / op.median_ms for op in table.ops if op.median_ms > 0)
    spread = f"; interquartile range {spreads[len(spreads) // 2]:.0%} of an op's median, typically" if spreads else ""
    _messages.print(
        f"{table.device}, {table.num_threads} threads, torch {table.torch}, batches of {table.batch_size}; what all "
        f"networks share takes {terms.constant / NS_PER_MS:.3f} ms{spread}.",
        soft_wrap=True,
    )
