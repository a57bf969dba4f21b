"""The command that runs the paper's experiments."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from common.errors import InvalidInputError

if TYPE_CHECKING:
    from coordinator.paper.anchors import TableName
    from coordinator.paper.experiments import PaperConfig, Target
    from coordinator.paper.few_shot_outcome import FewShotOutcome
    from coordinator.paper.outcome import Outcome

# Torch, Ray and matplotlib wait until the command runs.

_messages = Console(stderr=True, highlight=False)

SCALES = ("smoke", "full")


def register(app: typer.Typer) -> None:
    """Adds the command to the command line."""
    app.command()(paper)


def paper(
    target: Annotated[
        str,
        typer.Argument(
            metavar="TARGET",
            help="cifar10, svhn, imagenet, figure2, figure3, figure4, cells, all, or table4; see above.",
        ),
    ],
    scale: Annotated[
        str, typer.Option(help="smoke: small, with images of this machine. full: as in the paper, for GPUs.")
    ] = "smoke",
    run: Annotated[Path | None, typer.Option(help="Folder of the run; runs/paper-SCALE by default.")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Start a run of full scale, whose cost is printed.")] = False,
    imagenet: Annotated[
        Path | None, typer.Option(help="With full: folder made by `metasearch data prepare --sizes 32,64,224,256`.")
    ] = None,
    downloads: Annotated[
        Path | None,
        typer.Option(help="With full: folder whose subfolders cifar10 and svhn hold or receive them."),
    ] = None,
    mini_imagenet: Annotated[
        Path | None, typer.Option(help="With full, table4: folder with Mini-ImageNet's files, see README.md.")
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(
            "--address", envvar="RAY_ADDRESS", help="Ray cluster to use: `auto`, or HOST:PORT. Else a local one."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")] = False,
) -> None:
    """Runs the paper's experiments, and puts its figures beside the run's.

    \b
    - `cifar10`: table 1. Architectures of the multi-task prior, of Imagenet32 Tuned and of CIFAR10 Tuned, and published
      ones, each trained from scratch.
    - `svhn`: table 2. Likewise, with SVHN Tuned.
    - `imagenet`: table 3. Imagenet Tuned is the mean of 8 posteriors.
    - `figure2`: search cost against ImageNet error; runs what table 3 needs.
    - `figure3`: principal components of adapted weights and architecture posteriors, with silhouettes.
    - `figure4`: accuracy while adapting to CIFAR10, with the architecture frozen, and from scratch.
    - `cells`: drawings of the cells found and of the published ones.
    - `all`: all of these.
    - `table4`: few-shot learning, 5-way 5-shot. BASE searches by Gumbel-softmax and by softmax; the networks found,
      that of DARTS, and four convolutions are meta-trained alike and tested. By itself: not part of `all`.

    All but `table4` share one meta-training: 130 epochs of 24 tasks over three image sizes at full scale. What is in
    the run's folder is not computed again, so the same command goes on after Ctrl-C, and another target adds to the
    page.

    At smoke scale other images stand in for the paper's, and networks are small: its errors are not to be compared
    with the paper's. Full scale says what it costs, and starts with --yes alone.

    Examples: `metasearch paper all`, `metasearch paper table4`, `metasearch paper cifar10 --scale full --imagenet
    prepared/ --yes`.
    """
    from coordinator.paper.experiments import needs_prior, tables_of, target_named
    from coordinator.paper.images import check_data, has_fashion_mnist
    from coordinator.paper.scales import full_config, smoke_config

    chosen = target_named(target)
    if scale not in SCALES:
        raise InvalidInputError(f"--scale must be one of {', '.join(SCALES)}, got {scale!r}")
    folder = run or Path(f"runs/paper-{scale}")
    if scale == "full":
        config = full_config(
            None if imagenet is None else str(imagenet.resolve()),
            None if downloads is None else str(downloads.resolve()),
            None if mini_imagenet is None else str(mini_imagenet.resolve()),
        )
        _show_costs(config, chosen, yes)
    else:
        given = {"--imagenet": imagenet, "--downloads": downloads, "--mini-imagenet": mini_imagenet}
        for name, value in given.items():
            if value is not None:
                raise InvalidInputError(f"{name} goes with --scale full, got --scale {scale}; leave it out")
        config = smoke_config(has_fashion_mnist())
    with _messages.status("Looking for the images ..."):
        check_data(config, chosen)
    _run(config, chosen, folder, address)
    from coordinator.paper.outcome import collect_outcome
    from coordinator.paper.plain import plain
    from coordinator.paper.publish import publish

    outcome = collect_outcome(folder)
    page = publish(outcome, folder)
    if as_json:
        print(json.dumps(plain(outcome)))
    if needs_prior(chosen):
        _show_tables(outcome, tables_of(chosen))
    else:
        _show_few_shot(outcome.few_shot)
    _messages.print(f"The report is in {escape(str(page))}; figures are beside it.", soft_wrap=True)


def _run(config: "PaperConfig", target: "Target", folder: Path, address: str | None) -> None:
    from coordinator.driver import open_session
    from coordinator.paper.steps import carry_out

    try:
        carry_out(
            config,
            target,
            folder,
            lambda: open_session(f"paper-{folder.name}", config.study.cluster, address, _messages),
            lambda text: _messages.print(escape(text), soft_wrap=True),
        )
    except KeyboardInterrupt:
        _messages.print("The same command goes on where this one stopped.")
        raise


def _show_costs(config: "PaperConfig", target: "Target", yes: bool) -> None:
    """Says what a run of full scale costs.

    Raises:
        InvalidInputError: without --yes.
    """
    from coordinator.paper.cost import GPU, costs, operations_per_s
    from coordinator.paper.experiments import needs_prior

    items = costs(config, target)
    table = Table("step", "GPU-hours", "GPU-days", show_edge=False)
    for column in table.columns[1:]:
        column.justify = "right"
    for item in items:
        table.add_row(escape(item.name), f"{item.hours:,.1f}", f"{item.days:,.2f}")
    hours, days = sum(item.hours for item in items), sum(item.days for item in items)
    table.add_section()
    table.add_row("all", f"{hours:,.1f}", f"{days:,.2f}")
    _messages.print(table)
    rate = operations_per_s(config.study) / 1e12
    counted, caveat = (
        (
            "The meta-training's are the paper's; all else is counted",
            "Full networks have fewer and larger ops than a search network and probably take less.",
        )
        if needs_prior(target)
        else (
            "The paper gives no time of its few-shot experiments; all is counted",
            "Episodes are small batches, which may keep a GPU less busy.",
        )
    )
    _messages.print(
        f"Hours of a {GPU}, the paper's GPU. {counted} in multiply-accumulates, at the {rate:.2f} TFLOP/s at which the "
        f"paper's meta-training takes its 8 days. {caveat} Steps that are done already count too.",
        soft_wrap=True,
    )
    if not yes:
        raise InvalidInputError(f"--scale full costs about {hours:,.0f} GPU-hours; add --yes to start it")


def _show_tables(outcome: "Outcome", names: "Sequence[TableName]") -> None:
    """The tables that a target asked for, the paper's figures beside the run's."""
    from coordinator.paper.tables import SHORT_HEADER, notes, short_rows

    for found in (table for table in outcome.tables if table.name in names):
        _show_table(found.title, SHORT_HEADER, short_rows(found, outcome.meta), notes(outcome, found))


def _show_few_shot(found: "FewShotOutcome") -> None:
    """Table 4."""
    from coordinator.paper.anchors import FEW_SHOT_TITLE
    from coordinator.paper.few_shot_tables import SHORT_HEADER, notes, short_rows

    _show_table(FEW_SHOT_TITLE, SHORT_HEADER, short_rows(found), notes(found))


def _show_table(title: str, header: "Sequence[str]", rows: "Sequence[Sequence[str]]", notes: "Sequence[str]") -> None:
    table = Table(
        *header, title=title, title_justify="left", box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0)
    )
    table.columns[0].overflow, table.columns[0].min_width = "fold", 16
    for column in table.columns[1:]:
        column.justify, column.no_wrap = "right", True
    for row in rows:
        table.add_row(*(escape(text) for text in row))
    _messages.print(table)
    for note in notes:
        _messages.print(escape(note), soft_wrap=True)
