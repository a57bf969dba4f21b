"""The command line: reads and checks options, calls the coordinator, prints."""

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from common.errors import (
    INTERRUPTED_EXIT_CODE,
    ConflictError,
    InvalidInputError,
    MetaSearchError,
    UnavailableError,
)
from common.few_shot_config import refuse_few_shot
from common.loading import load, preset_names, with_adapt_overrides
from common.space.genotype import DerivationRule
from coordinator import (
    client_cli,
    evaluate_cli,
    health_cli,
    label_cli,
    meta_test_cli,
    network_cli,
    paper_cli,
    pareto_cli,
    profile_cli,
    report_cli,
    serving_cli,
    simulate_cli,
    submit_cli,
    sweep_cli,
    top_cli,
    verify_cli,
)
from coordinator.genotypes import genotype_fields
from coordinator.limit_options import (
    LatencyTableOption,
    MaxLatencyOption,
    MaxMacsOption,
    MaxParamsOption,
    limits_of,
)
from coordinator.progress import Bar

# Heavy imports (torch, Ray, matplotlib) wait until a command needs them, so that --help answers at once.

app = typer.Typer(
    name="metasearch",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="""Meta architecture search: learn a prior over the weights and architecture of a supernet from many image
    tasks, then give a new task its own architecture and weights in a few steps.

    Start with `metasearch demo`. Then: `metasearch train demo --run runs/mine`, and
    `metasearch adapt --run runs/mine --data digits --steps 20`.""",
)
data_app = typer.Typer(no_args_is_help=True, help="Sources of images: list them, prepare large ones.")
app.add_typer(data_app, name="data")
serving_cli.register(app)
health_cli.register(app)
submit_cli.register(app)
client_cli.register(app)
top_cli.register(app)
label_cli.register(app)
network_cli.register(app)
evaluate_cli.register(app)
sweep_cli.register(app)
profile_cli.register(app)
pareto_cli.register(app)
meta_test_cli.register(app)
report_cli.register(app)
paper_cli.register(app)
verify_cli.register(app)
simulate_cli.register(app)

_messages = Console(stderr=True, highlight=False)

AddressOption = Annotated[
    str | None,
    typer.Option("--address", envvar="RAY_ADDRESS", help="Ray cluster to use: `auto`, or HOST:PORT. Else a local one."),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="FIELD=VALUE", help="Changes one field, e.g. `--set inner.steps=5`. Repeatable."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")]


def main() -> None:
    """Runs the command line; errors of ours become one line and an exit code, never a traceback."""
    try:
        app(standalone_mode=True)
    except MetaSearchError as error:
        _messages.print(f"[bold red]Error:[/] {escape(str(error))}", soft_wrap=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        _messages.print("Interrupted.")
        sys.exit(INTERRUPTED_EXIT_CODE)


@app.command()
def demo(
    run: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("runs/demo"),
    overrides: SetOption = None,
    address: AddressOption = None,
) -> None:
    """Shows everything in a few minutes: meta-trains on characters, adapts to unseen scripts and real digits.

    Leaves `result.json`, `curves.png` and `cells.png` in the run's folder. An interrupted demo goes on where it was.
    """
    from coordinator.demo import run_demo

    run_demo(run, overrides or [], address, _messages)
    _messages.print(f"Look at {run / 'curves.png'} and {run / 'cells.png'}; figures are in {run / 'result.json'}.")


@app.command()
def train(
    run: Annotated[Path, typer.Option(help="Folder of the run.")],
    preset: Annotated[
        str | None,
        typer.Argument(metavar="[PRESET|FILE]", help=f"Preset ({', '.join(preset_names())}) or TOML file."),
    ] = None,
    overrides: SetOption = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in this folder.")] = False,
    from_version: Annotated[
        int | None, typer.Option(help="With --resume: go on from this version; later ones are discarded.")
    ] = None,
    genotype: Annotated[
        str | None,
        typer.Option(help="Few-shot: learn the weights of this one network; a run, JSON file or released name."),
    ] = None,
    address: AddressOption = None,
    as_json: JsonOption = False,
) -> None:
    """Meta-trains a prior, round after round; every round is checkpointed.

    A run can be interrupted (Ctrl-C, or killed) at any time and resumed: the final prior is bitwise the same, unless
    `schedule` has it depend on which tasks come first; then no task is lost, and none counts twice.
    The folder holds the configuration, the last priors, `train.log` (a line per round), `rounds.jsonl` (every metric)
    and TensorBoard events.

    Examples: `metasearch train demo --run runs/a`, `metasearch train demo --run runs/b --set rounds=100`,
    `metasearch train --run runs/a --resume`, `metasearch train few_shot --genotype runs/search --run runs/full`.
    """
    fields = {} if genotype is None else genotype_fields(genotype)
    if resume:
        if preset is None and genotype is not None:
            raise InvalidInputError("--genotype with --resume needs the preset or file that the run was started with")
        config = None if preset is None else load(preset, overrides or [], fields=fields)
        if preset is None and overrides:
            raise InvalidInputError("--set with --resume needs the preset or file that the run was started with")
    elif preset is None:
        raise InvalidInputError(f"name a preset ({', '.join(preset_names())}) or a file, or add --resume")
    elif from_version is not None:
        raise InvalidInputError("--from-version goes with --resume")
    else:
        config = load(preset, overrides or [], fields=fields)

    from common.artifacts import PriorStore
    from coordinator import study
    from coordinator.driver import open_session

    store = PriorStore(run)
    if resume:
        config = config or store.load_config()
        prior = study.resume(store, config, from_version)
        _messages.print(f"Resuming from version {prior.version} of {config.rounds}.")
    else:
        assert config is not None
        if store.has_config():
            raise ConflictError(f"{run} holds a study; add --resume to go on with it, or choose another --run")
        with _messages.status("Preparing images ..."):
            study.load_catalogs(config)
    with open_session(f"train-{run.name}", config.cluster, address, _messages) as session:
        # Last of all: a wrong source, or no cluster, leaves no run behind.
        if not resume:
            prior = study.begin(store, config)
        session.show_dashboard()
        outcome = session.train(run, config, prior)
    if as_json:
        print(json.dumps({"version": outcome.version, "sha256": outcome.digest, "complete": outcome.is_complete}))
    _messages.print(f"Version {outcome.version} of {config.rounds}, SHA-256 {outcome.digest}", soft_wrap=True)
    if not outcome.is_complete:
        _messages.print(f"Stopped. To go on: metasearch train --run {run} --resume", soft_wrap=True)
        raise typer.Exit(INTERRUPTED_EXIT_CODE)


@app.command()
def adapt(
    run: Annotated[Path, typer.Option(help="Run whose prior to start from.")],
    data: Annotated[str, typer.Option(help="A source (`metasearch data list`), image folder, zip, tar or npz.")],
    classes: Annotated[
        str | None, typer.Option(help="Names, separated by commas; or how many to draw from unseen ones.")
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Adaptation steps; the run's `adapt.steps` by default.")
    ] = None,
    root: Annotated[str | None, typer.Option(help="Folder that holds the source's files.")] = None,
    image_size: Annotated[int | None, typer.Option(help="Pixels; the first size of the run by default.")] = None,
    train_per_class: Annotated[
        int | None, typer.Option(min=1, help="Training images per class; all by default.")
    ] = None,
    test_per_class: Annotated[int, typer.Option(min=1, help="Held-out images per class.")] = 20,
    version: Annotated[int | None, typer.Option(help="Version of the prior; the latest by default.")] = None,
    rule: Annotated[str, typer.Option("--derive", help="top2_pairs, darts or sample.")] = "top2_pairs",
    fine_tune_steps: Annotated[
        int, typer.Option(min=0, help="Steps with the derived network alone, which is then stored, ready to use.")
    ] = 0,
    max_params: MaxParamsOption = None,
    max_macs: MaxMacsOption = None,
    max_latency_ms: MaxLatencyOption = None,
    latency_table: LatencyTableOption = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="FIELD=VALUE", help="Changes how to adapt: a field of `adapt`. Repeatable."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Chooses images, and classes where they are drawn.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Folder for the results; RUN/adapt by default.")] = None,
    address: AddressOption = None,
    as_json: JsonOption = False,
) -> None:
    """Adapts a run's prior to a new task: its own weights and architecture in a few steps.

    Leaves `result.json`, `cells.png` and `curves.png`. Accuracy is on held-out images. The genotype keeps the limits;
    `--set adapt.cost='{measure = "macs", target = 2e6, weight = 1}'` presses the posterior towards cheap ones. With
    `--fine-tune-steps` the network that was found is cut out with its weights, trained on, and stored in `network/`,
    for `metasearch export`.

    Example: `metasearch adapt --run runs/demo --data digits --classes 0,1,2,3 --steps 20 --fine-tune-steps 20`.
    """
    from dataclasses import replace
    from typing import get_args

    from common.artifacts import PriorStore
    from common.derivation import check_feasible
    from common.derived_config import derived_config
    from common.network_config import NETWORK_FOLDER
    from coordinator.adaptation import store_result
    from coordinator.driver import open_session
    from coordinator.experiment import Arm, adapt_request
    from coordinator.task_options import choice_of
    from workers.data.choice import task_of
    from workers.data.episodes import load_episode
    from workers.inherit import fine_tune_request, ready_network
    from workers.job import TASK_ID, check_limits, evaluation_steps, find_genotype

    if rule not in get_args(DerivationRule):
        raise InvalidInputError(f"--derive must be one of {', '.join(get_args(DerivationRule))}, got {rule!r}")
    derivation: DerivationRule = rule  # type: ignore[assignment]
    limits = limits_of(max_params, max_macs, max_latency_ms, latency_table)
    check_limits(derivation, limits)
    store = PriorStore(run)
    config = with_adapt_overrides(store.load_config(), overrides or [])
    refuse_few_shot(config.few_shot, "metasearch adapt")
    prior = store.load(version)
    choice = choice_of(config, data, root, classes, image_size, train_per_class, test_per_class, seed)
    task = task_of(choice, config, TASK_ID)
    check_feasible(limits, config.space, config.network, task.image_size, len(task.classes))
    inner = config.adapt if steps is None else config.adapt.model_copy(update={"steps": steps})
    request = adapt_request(task, Arm("adapt", prior, inner), config, evaluation_steps(inner.steps))
    if fine_tune_steps:
        derived_config(config.space, config.network, task.image_size, len(task.classes))  # refuses before the work
        request = replace(request, returns_weights=True)
    cluster = config.cluster.with_workers(1)
    ready = None
    with open_session("adapt", cluster, address, _messages) as session:
        (result,) = session.adapt(prior, [request], "Adapting")
        found = find_genotype(result.probabilities, task, config, derivation, limits)
        if fine_tune_steps:
            marks = evaluation_steps(fine_tune_steps)
            tuning = fine_tune_request(request, result, found.genotype, fine_tune_steps, marks)
            (tuned,) = session.adapt(prior, [tuning], "Fine-tuning")
            ready = ready_network(tuning, tuned, load_episode(task))
    folder = out or run / "adapt"
    content = store_result(folder, result, task, prior, config, found, derivation, limits, ready)
    if as_json:
        print(json.dumps(content))
    _messages.print(_curve_table(result.evaluations))
    network: Any = content["network"]
    latency = f", {network['latency_ms']:.3f} ms by the table" if "latency_ms" in network else ""
    _messages.print(f"{network['num_params']:,} parameters, {network['num_macs']:,} MACs{latency}", soft_wrap=True)
    for kind, nodes in content["genotype"]["cells"].items():
        text = " | ".join(" + ".join(f"{edge['primitive']}({edge['source']})" for edge in node) for node in nodes)
        _messages.print(f"{kind}: {text}", soft_wrap=True)
    _messages.print(f"Results are in {folder}: result.json, cells.png, curves.png.", soft_wrap=True)
    if ready is not None:
        accuracy, last = ready.tested.accuracy, ready.fine_tuned.evaluations[-1].accuracy
        _messages.print(
            f"The derived network, fine-tuned for {fine_tune_steps} steps, is right on {accuracy:.1%} of the held-out "
            f"images one by one ({last:.1%} by their joint statistics); it is in {folder / NETWORK_FOLDER}.",
            soft_wrap=True,
        )
        _messages.print(f"To take it away: metasearch export {folder} --out net.py", soft_wrap=True)


@app.command()
def doctor(
    run: Annotated[Path, typer.Option(help="Folder where runs are stored.")] = Path("runs"),
    address: AddressOption = None,
    as_json: JsonOption = False,
) -> None:
    """Looks at devices, Ray, storage, fonts and memory; says what is missing and how to get it."""
    from dataclasses import asdict

    from coordinator.doctor import examine, is_fit
    from workers.data.cache import cache_root

    with _messages.status("Looking ..."):
        findings = examine(run, cache_root(), address)
    if as_json:
        print(json.dumps({"fit": is_fit(findings), "findings": [asdict(finding) for finding in findings]}))
    table = Table("", "subject", "found", "what to do", show_edge=False)
    for finding in findings:
        mark = "[green]ok[/]" if not finding.remedy else "[red]missing[/]" if finding.is_required else "[yellow]note[/]"
        table.add_row(mark, finding.subject, escape(finding.state), escape(finding.remedy))
    _messages.print(table)
    if not is_fit(findings):
        raise typer.Exit(UnavailableError.exit_code)


@app.command()
def bench(
    device: Annotated[str, typer.Option(help="cuda, cpu, or auto for the first GPU, else the CPU.")] = "auto",
    preset: Annotated[
        str, typer.Option(metavar="PRESET|FILE", help="Network and learning tasks to measure with.")
    ] = "demo",
    data: Annotated[str | None, typer.Option(help="Another source of images than the preset's.")] = None,
    steps: Annotated[int, typer.Option(min=1, help="Steps to time, after the first few, which warm up.")] = 20,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Times steps of the inner loop on this machine's device: as they are, recorded, in bfloat16, by either engine.

    On a GPU: float32 and bfloat16, each eager and as a CUDA graph. On a CPU: the native cell and PyTorch's, on one
    thread, as workers have it. Variants take turns, so that drift hits all alike.

    Examples: `metasearch bench --device cuda`, `metasearch bench --preset paper --data glyphs --steps 50`.
    """
    from dataclasses import asdict

    from workers.benchmark import time_steps
    from workers.device import device_named
    from workers.environment import environment

    chosen = device_named(device)
    config = load(preset, overrides or [])
    refuse_few_shot(config.few_shot, "metasearch bench")
    with _messages.status("Timing ..."):
        workload, found = time_steps(config, data, chosen, steps)
    if as_json:
        variants = [asdict(each) for each in found]
        print(json.dumps({**asdict(workload), "variants": variants, "environment": environment()}))
    table = Table("variant", "step (ms)", "quartiles", "images / s", "peak memory (MiB)", show_edge=False)
    for each in found:
        peak = "-" if each.peak_bytes is None else f"{each.peak_bytes / 2**20:.0f}"
        quartiles = f"{each.low_ms:.2f} to {each.high_ms:.2f}"
        table.add_row(each.name, f"{each.median_ms:.2f}", quartiles, f"{each.images_per_s:.0f}", peak)
    _messages.print(f"{workload.device}: {workload.summary}", soft_wrap=True)
    _messages.print(table)


@data_app.command("list")
def data_list(as_json: JsonOption = False) -> None:
    """Lists the sources of images that come by name. Paths work too: image folder, zip, tar, npz."""
    from workers.data.sources import SOURCES

    rows = [
        {
            "name": source.name,
            "description": source.description,
            "classes": source.num_classes,
            "pixels": source.native_size,
            "downloads": source.downloads,
            "needs_root": source.needs_root,
        }
        for source in SOURCES.values()
    ]
    if as_json:
        print(json.dumps(rows))
        return
    table = Table("name", "what", "classes", "pixels", "from", show_edge=False)
    for row in rows:
        origin = "download, or --root" if row["downloads"] else "--root" if row["needs_root"] else "built in"
        table.add_row(*(str(row[key] or "-") for key in ("name", "description", "classes", "pixels")), origin)
    Console().print(table)


@data_app.command("prepare")
def data_prepare(
    source: Annotated[Path, typer.Argument(help="Folder with one subfolder of images per class.")],
    target: Annotated[Path, typer.Argument(help="Folder for the prepared arrays.")],
    sizes: Annotated[str, typer.Option(help="Image sizes in pixels, separated by commas.")] = "32,64,224",
    processes: Annotated[int | None, typer.Option(min=1, help="Processes; one per core by default.")] = None,
    skip_unreadable: Annotated[bool, typer.Option(help="Leave unreadable images out instead of stopping.")] = False,
) -> None:
    """Decodes a large image folder once, to every size: class-sorted arrays that workers map into memory.

    Can be interrupted; the next call goes on with the classes that are left.
    """
    from workers.data.prepare import prepare

    try:
        pixels = tuple(int(size) for size in sizes.split(","))
    except ValueError:
        raise InvalidInputError(f"--sizes takes whole numbers separated by commas, got {sizes!r}") from None
    num_processes = processes or len(os.sched_getaffinity(0))
    with Bar(_messages, "Classes") as bar:
        summary = prepare(source, target, pixels, num_processes, bar.show, skip_unreadable)
    _messages.print(
        f"{summary.num_classes} classes, {summary.num_images} images ({summary.num_resumed} classes were done before); "
        f"use it as --data imagenet --root {target}",
        soft_wrap=True,
    )
    for name in summary.skipped:
        _messages.print(f"left out, unreadable: {name}", soft_wrap=True)


def _curve_table(evaluations: Any) -> Table:
    table = Table("step", "accuracy", "loss (nats)", show_edge=False)
    for evaluation in evaluations:
        table.add_row(str(evaluation.step), f"{evaluation.accuracy:.3f}", f"{evaluation.loss:.3f}")
    return table


if __name__ == "__main__":
    main()
