"""The command that tests a few-shot run's prior on episodes of classes that it has not seen."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_args

import typer
from rich.console import Console
from rich.table import Table

from common.errors import INTERRUPTED_EXIT_CODE, InvalidInputError
from common.few_shot_config import BatchStatistics

if TYPE_CHECKING:
    from common.messages import AdaptRequest
    from coordinator.meta_test import MetaTestResult

# Torch, Ray and matplotlib wait until the command runs.

_messages = Console(stderr=True, highlight=False)
_SPLITS = ("unseen", "validation", "all")


def register(app: typer.Typer) -> None:
    """Adds the command to the command line."""
    app.command("test")(test)


def test(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a few-shot run, see `metasearch train`.")],
    episodes: Annotated[int, typer.Option(min=1, help="Test episodes.")] = 600,
    data: Annotated[
        str | None, typer.Option(help="A source, image folder, zip, tar or npz; the run's own images by default.")
    ] = None,
    root: Annotated[str | None, typer.Option(help="Folder that holds the source's files.")] = None,
    split: Annotated[
        str | None,
        typer.Option(help=f"Classes: {', '.join(_SPLITS)}; unseen by default, all of a source new to the run."),
    ] = None,
    ways: Annotated[
        int | None, typer.Option(min=2, help="Classes per episode: as many as the run's classifier has.")
    ] = None,
    shots: Annotated[int | None, typer.Option(min=1, help="Support images per class; the run's by default.")] = None,
    queries: Annotated[int | None, typer.Option(min=1, help="Query images per class; the run's by default.")] = None,
    image_size: Annotated[int | None, typer.Option(help="Pixels, of the run's own images.")] = None,
    steps: Annotated[int | None, typer.Option(min=0, help="Inner steps; few_shot.test_steps by default.")] = None,
    evaluation: Annotated[
        str | None,
        typer.Option(help="BatchNorm statistics: transductive (of the query images) or inductive (of the support)."),
    ] = None,
    version: Annotated[int | None, typer.Option(help="Version of the prior; the latest by default.")] = None,
    from_scratch: Annotated[
        bool, typer.Option("--from-scratch", help="Test the weights that meta-training started from: a baseline.")
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="Chooses the episodes.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Folder for the results; one below RUN/test by default.")] = None,
    address: Annotated[
        str | None, typer.Option("--address", envvar="RAY_ADDRESS", help="Ray cluster to test on. Else a local one.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")] = False,
) -> None:
    """Meta-tests a few-shot run: learns new episodes from its prior, and reports accuracy on their query images.

    Mean and 95 % interval over episodes, after each of some steps; the results are in RUN/test, which `metasearch
    report RUN` shows. Ctrl-C keeps the episodes that ended; the same command goes on, and so does one with more
    `--episodes`.

    Examples: `metasearch test runs/few`, `metasearch test runs/few --split validation --episodes 200`,
    `metasearch test runs/few --evaluation inductive --json`.
    """
    from common.artifacts import PriorStore
    from common.meta.prior import initial_prior
    from coordinator.driver import open_session
    from coordinator.meta_test import FOLDER, MetaTestOptions, family_of, plan_meta_test
    from coordinator.meta_test_run import run_meta_test
    from coordinator.task_options import reference_of
    from workers.data.sources import load_arrays

    if split not in (None, *_SPLITS):
        raise InvalidInputError(f"--split must be one of {', '.join(_SPLITS)}, got {split!r}")
    if evaluation not in (None, *get_args(BatchStatistics)):
        raise InvalidInputError(f"--evaluation must be {' or '.join(get_args(BatchStatistics))}, got {evaluation!r}")
    if from_scratch and version is not None:
        raise InvalidInputError("--from-scratch is version 0; leave --version out")
    if root is not None and data is None:
        raise InvalidInputError("--root goes with --data; name the source")
    store = PriorStore(run)
    config = store.load_config()
    options = MetaTestOptions(
        data=None if data is None else reference_of(config, data, root),
        split=split,  # type: ignore[arg-type]  # looked at above
        ways=ways,
        shots=shots,
        queries=queries,
        image_size=image_size,
        steps=steps,
        evaluation=evaluation,  # type: ignore[arg-type]  # looked at above
        seed=seed,
    )
    family = family_of(config, options)
    prior = initial_prior(config) if from_scratch else store.load(version)
    with _messages.status("Preparing images ..."):
        arrays = load_arrays(family.data, family.image_size)
    plan = plan_meta_test(prior, config, options, arrays, family)
    path = out or run / FOLDER / plan.name
    _messages.print(plan.title, soft_wrap=True)

    def learn(requests: "Sequence[AdaptRequest]", done: int) -> bool:
        if done:
            _messages.print(f"{done} of {episodes} episodes are there already.")
        with open_session(f"test-{run.name}", config.cluster, address, _messages) as session:
            return session.meta_test(path, prior, requests, done)

    result = run_meta_test(path, plan, prior, config, arrays, episodes, learn)
    if result is None:
        _messages.print("Stopped; the same command goes on with the episodes that ended.")
        raise typer.Exit(INTERRUPTED_EXIT_CODE)
    if as_json:
        print(result.model_dump_json())
    _messages.print(_table(result))
    _messages.print(f"Results are in {path}; a page: metasearch report {run}", soft_wrap=True)


def _table(result: "MetaTestResult") -> Table:
    from coordinator.meta_test import PATHS, STATISTICS

    by = " and ".join(PATHS[path] for path in result.paths)
    title = f"{result.num_episodes} episodes, {result.evaluation}: {STATISTICS[result.evaluation]}; steps by {by}"
    table = Table(
        "step", "accuracy", "95 % interval", "loss (nats)", show_edge=False, title=title, title_justify="left"
    )
    for step, accuracy in result.accuracy.items():
        interval = "-" if accuracy.low is None else f"{accuracy.low:.2%} to {accuracy.high:.2%}"
        table.add_row(step, f"{accuracy.mean:.2%}", interval, f"{result.loss_nats[step].mean:.3f}")
    return table
