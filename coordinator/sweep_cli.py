"""The command that sweeps fields of a study's configuration, or trains the best architectures of a posterior."""

import json
import os
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from common.config import ClusterConfig, DatasetRef
from common.errors import INTERRUPTED_EXIT_CODE, ConflictError, InvalidInputError
from common.evaluate_config import PRESETS
from common.storage import ArtifactFolder
from common.sweep_config import SweepConfig, base_study, read_sweep, validate_sweep
from common.sweep_plan import Architectures, SweepPlan, check_kinds, sweep_recipe
from common.sweep_space import check_space
from coordinator.interrupts import asked_to_stop
from coordinator.progress import Bar
from coordinator.service_access import ServerOption, TokenOption, connected
from coordinator.sweep_client_cli import JOB_PREFIX, posterior_file

if TYPE_CHECKING:
    from coordinator.sweep import Trial

# Torch, Ray and Tune wait until the command runs.

_messages = Console(stderr=True, highlight=False)
_ARCHITECTURE_OPTIONS = {"--top": "top", "--data": "data", "--root": "root", "--recipe": "recipe"}


def register(app: typer.Typer) -> None:
    """Adds the command to the command line."""
    app.command("sweep")(sweep)


def sweep(
    run: Annotated[Path, typer.Option(help="Folder for the results.")],
    file: Annotated[
        Path | None, typer.Argument(metavar="[FILE]", help="TOML file that says what to try; see README.md.")
    ] = None,
    study: Annotated[
        str | None, typer.Option(help="Preset or TOML file of the study, in place of the file's `study`.")
    ] = None,
    architectures: Annotated[
        str | None,
        typer.Option(
            metavar="RUN|RESULT|JOB",
            help="Train the most probable architectures of this posterior as full networks: a run's folder, the "
            "result.json of an adaptation, or studies/STUDY/jobs/ID.",
        ),
    ] = None,
    top: Annotated[int | None, typer.Option(min=2, help="With --architectures: how many; 8 by default.")] = None,
    data: Annotated[str | None, typer.Option(help="With --architectures: images, as in `metasearch evaluate`.")] = None,
    root: Annotated[str | None, typer.Option(help="Folder that holds the source's files.")] = None,
    recipe: Annotated[
        str | None, typer.Option(help=f"With --architectures: {', '.join(PRESETS)}; cifar10 by default.")
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="FIELD=VALUE", help="Changes a field of the study, or of the recipe."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the sweep in this folder.")] = False,
    address: Annotated[
        str | None,
        typer.Option("--address", envvar="RAY_ADDRESS", help="Ray cluster: `auto`, or HOST:PORT. Else a local one."),
    ] = None,
    server: ServerOption = None,
    token: TokenOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")] = False,
) -> None:
    """Tries many configurations of a study, each by the code of `metasearch train`, and keeps the best.

    The file names fields and the values to try, who chooses them (random, grid, optuna, hyperopt) and who ends trials
    early (asha, pbt). With `--architectures`, full networks are trained instead, and the best architecture is kept.
    Leaves `result.json`, `best.json` and `best/`; Ctrl-C leaves a sweep that can be resumed.

    Examples: `metasearch sweep sweep.toml --run runs/sweep`, `metasearch sweep --run runs/sweep --resume`,
    `metasearch sweep --architectures runs/mine --top 8 --data digits --recipe smoke --run runs/two`.
    """
    folder = ArtifactFolder(run)
    given = {"of": architectures, "top": top, "data": data, "root": root, "recipe": recipe}
    has_description = file is not None or architectures is not None
    if not resume and not has_description:
        raise InvalidInputError("name a FILE or --architectures, or add --resume to go on with the sweep in --run")
    if resume and not has_description:
        for name, value in (("--study", study), ("--set", overrides), *_options(given)):
            if value is not None:
                raise InvalidInputError(f"{name}: {run} says what is tried; leave it out with --resume")

    from coordinator.sweep import PLAN, check_same_plan, spent_s, store_results
    from coordinator.tuning import TUNE_STOPS, check_installed, run_sweep

    plan = _planned(file, study, given, overrides or [], server, token) if has_description else PLAN.read(folder)
    check_installed(plan.config)
    if resume:
        check_same_plan(PLAN.read(folder), plan)
    elif folder.exists(PLAN.name):
        raise ConflictError(f"{run} holds a sweep; add --resume to go on with it, or choose another --run")
    _check_images(plan)

    from coordinator.cluster import connect, disconnect, worker_resources

    cluster = plan.study.cluster if plan.study is not None else ClusterConfig()
    connect(address, include_dashboard=False, job_name="metasearch sweep")
    try:
        wanted = plan.config.concurrency
        concurrency, gpus = worker_resources(cluster if wanted is None else cluster.with_workers(wanted))
        PLAN.store(folder, plan)  # last of all: a mistake leaves no run behind
        before_s, started_s = spent_s(folder), time.monotonic()
        with asked_to_stop(_say_stored, TUNE_STOPS) as was_stopped, _Bar(plan) as bar:
            trials = run_sweep(plan, str(run.resolve()), concurrency, gpus, bar.show_trials, before_s)
    finally:
        disconnect()
    # Fewer trials than were asked for, and none of them open: the budget is spent.
    is_over = bool(trials) and not was_stopped() and not any(_is_open(trial) for trial in trials)
    content = store_results(folder, plan, trials, is_over, before_s + time.monotonic() - started_s)
    if as_json:
        print(json.dumps(content))
    _messages.print(table_of(content))
    for row in content["trials"]:
        if row["failure"]:
            _messages.print(escape(f"Trial {row['trial']} failed: {row['failure']}"), soft_wrap=True)
    if not content["is_over"]:
        _messages.print(f"Stopped. To go on: metasearch sweep --run {run} --resume", soft_wrap=True)
        raise typer.Exit(INTERRUPTED_EXIT_CODE)

    from coordinator.sweep import check_any

    best = check_any(trials, plan)
    if plan.architectures is None:
        _messages.print(
            f"Trial {best.number} is best: metasearch train {run}/best.json --run ... trains it again; its prior is in "
            f"{run}/best, which metasearch adapt and report take.",
            soft_wrap=True,
        )
    else:
        _messages.print(
            f"Architecture {best.values['architecture']} is best: metasearch inspect {run}/best.json; its network is "
            f"in {run}/best/network.",
            soft_wrap=True,
        )


def _options(given: Mapping[str, Any]) -> list[tuple[str, Any]]:
    return [(option, given[name]) for option, name in _ARCHITECTURE_OPTIONS.items()]


def _planned(
    file: Path | None,
    study: str | None,
    given: Mapping[str, Any],
    overrides: Sequence[str],
    server: str | None,
    token: str | None,
) -> SweepPlan:
    """What a file and options ask for, checked in full."""
    tree = {} if file is None else read_sweep(file)
    base = tree.pop("study", None) if study is None else (tree.pop("study", None), study)[1]
    if given["of"] is not None and "space" in tree:
        raise InvalidInputError(f"--architectures: {file} has a [space]; give one or the other")
    if given["of"] is not None or "architectures" in tree:
        table = tree.get("architectures", {})
        if not isinstance(table, Mapping):
            raise InvalidInputError(f"sweep: architectures must be a table, got {table!r}")
        changes = {name: value for name, value in given.items() if value is not None}
        tree["architectures"] = {**table, **changes}
        if overrides:
            tree["architectures"]["overrides"] = [*table.get("overrides", ()), *overrides]
        if base is not None:
            raise InvalidInputError("sweep: study has no meaning with [architectures]; leave it out")
        config = validate_sweep(tree)
        return SweepPlan(config=config, architectures=_architectures(config, server, token))
    for name, value in _options(given):
        if value is not None:
            raise InvalidInputError(f"{name} goes with --architectures, or with [architectures] in the file")
    config = validate_sweep(tree)
    if base is None:
        raise InvalidInputError(f'sweep: {file} names no study; add study = "demo", or a [study] table, or --study')
    resolved = base_study(base, overrides)
    check_space(config.space, resolved, config.seed)
    return SweepPlan(config=config, study=resolved)


def _architectures(config: SweepConfig, server: str | None, token: str | None) -> Architectures:
    from coordinator.architectures import candidates_of
    from workers.data.sources import SOURCES

    table = config.architectures
    assert table is not None
    for name in ("of", "data"):
        if getattr(table, name) is None:
            option = "--architectures" if name == "of" else "--data"
            raise InvalidInputError(f"architectures.{name} is missing; add it, or {option}")
    recipe = sweep_recipe(table.recipe, table.overrides)
    assert table.of is not None and table.data is not None
    source = str(Path(table.data).resolve()) if table.data not in SOURCES and Path(table.data).exists() else table.data
    with _posterior(table.of, server, token) as source_of_posterior:
        candidates = candidates_of(source_of_posterior, table.top)
    check_kinds(candidates, recipe)
    return Architectures(candidates=candidates, recipe=recipe, data=DatasetRef(source=source, root=table.root))


@contextmanager
def _posterior(source: str, server: str | None, token: str | None) -> Iterator[str]:
    """A path to read the posterior from; that of a job is fetched first."""
    if not source.startswith(JOB_PREFIX) or Path(source).exists():
        yield source
        return
    with tempfile.TemporaryDirectory(prefix="metasearch-sweep-") as temporary:
        with connected(server, token) as client:
            path = posterior_file(client, source, Path(temporary))
        yield path


def _check_images(plan: SweepPlan) -> None:
    """Finds what is wrong with images before anything is started."""
    with _messages.status("Preparing images ..."):
        if plan.architectures is not None:
            from workers.data.whole import load_whole
            from workers.training import check_batches

            chosen = plan.architectures
            check_batches(chosen.recipe, load_whole(chosen.data, chosen.recipe).train.num_images, 1)
            return
        from coordinator.experiment import fresh_tasks
        from coordinator.study import load_catalogs

        assert plan.study is not None
        load_catalogs(plan.study)
        for family in plan.study.families:
            fresh_tasks(family, plan.config.split, 1, plan.config.seed)


def table_of(content: Mapping[str, Any]) -> Table:
    """A result's trials, best first."""
    keys = [] if content["keys"] == ["architecture"] else content["keys"]
    has_tests = any("test" in row for row in content["trials"])
    columns = ["trial", "state", content["unit"], f"{content['metric']} (95 % interval)"]
    columns += [*(["values"] if keys else []), *(["on test images", "parameters"] if has_tests else [])]
    table = Table(show_edge=False)
    for name in columns:
        table.add_column(escape(name), overflow="fold", no_wrap=name != "values")
    sign = -1 if content["mode"] == "max" else 1
    order = sorted(
        content["trials"],
        key=lambda row: (row["trial"] != content["best"], row["value"] is None, sign * (row["value"] or 0.0)),
    )
    for row in order:
        value = "" if row["value"] is None else f"{row['value']:.3f}{_interval(row['interval_95'])}"
        cells = [str(row["trial"]), row["state"], str(row["rounds"]), value]
        if keys:  # in one column, as many fields would not fit side by side
            cells.append("\n".join(f"{key} = {_written(row['values'][key])}" for key in keys))
        if has_tests:
            test = row.get("test")
            accuracy = "" if test is None else f"{test['accuracy']:.3f}{_interval(test['interval_95'])}"
            cells += [accuracy, "" if test is None else f"{test['num_params']:,}"]
        table.add_row(*(escape(cell) for cell in cells), style="bold" if row["trial"] == content["best"] else None)
    return table


def _interval(limits: Sequence[float] | None) -> str:
    return "" if limits is None else f" ({limits[0]:.3f}-{limits[1]:.3f})"


def _written(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else value if isinstance(value, str) else json.dumps(value)


def _is_open(trial: "Trial") -> bool:
    return trial.state in ("waiting", "running")


class _Bar(Bar):
    """Progress of a sweep."""

    def __init__(self, plan: SweepPlan) -> None:
        super().__init__(_messages, "Trials", plan.config.num_trials)
        self._plan = plan

    def show_trials(self, trials: Sequence["Trial"]) -> None:
        """Shows how far the trials are."""
        from coordinator.sweep import best_of

        over = sum(not _is_open(trial) for trial in trials)
        running = sum(trial.state == "running" for trial in trials)
        failed = sum(trial.state == "failed" for trial in trials)
        best = best_of(trials, self._plan)
        note = f"{running} running" + (f", {failed} failed" if failed else "")
        if best is not None:
            note += f", best {self._plan.config.metric} {best.value:.4f} (trial {best.number})"
        self.show(over, note=note)


def _say_stored() -> None:
    """Called by a signal's handler, which may have interrupted a print."""
    os.write(2, b"Storing the sweep's state; press Ctrl-C again to stop at once.\n")
