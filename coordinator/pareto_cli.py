"""The command that derives, and trains, networks of one prior under several limits."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import numpy as np
import typer
from pydantic import ValidationError
from rich.console import Console
from rich.table import Table

from common.config import DatasetRef, StudyConfig
from common.errors import INTERRUPTED_EXIT_CODE, InvalidInputError
from common.evaluate_config import PRESETS, EvaluateConfig, load_evaluate_config
from common.few_shot_config import refuse_few_shot
from common.latency import LatencyTable, misfit, read_table
from common.space.genotype import Genotype
from common.storage import ArtifactFolder
from common.tasks import LearningTask
from common.values import explain

if TYPE_CHECKING:
    from common.meta.prior import Prior
    from coordinator.pareto import Front, FrontPoint, ParetoPlan, Probabilities

# Torch, Ray and matplotlib wait until the command runs.

_messages = Console(stderr=True, highlight=False)

# Fields of a recipe that decide which full network is trained.
_SHAPE = ("motif", "channels", "num_cells", "image_size")


def register(app: typer.Typer) -> None:
    """Adds the command to the command line."""
    app.command("pareto")(pareto)


def pareto(
    run: Annotated[Path, typer.Option(help="Run whose prior to start from.")],
    data: Annotated[str, typer.Option(help="A source (`metasearch data list`), image folder, zip, tar or npz.")],
    measure: Annotated[str, typer.Option(help="What is limited: params, macs, or latency with --latency-table.")],
    limits: Annotated[
        str | None, typer.Option(help="Numbers in the measure's unit, separated by commas; else --num-limits of them.")
    ] = None,
    num_limits: Annotated[
        int, typer.Option(min=1, max=100, help="Limits to choose, evenly, where none are given.")
    ] = 4,
    latency_table: Annotated[Path | None, typer.Option(help="What `metasearch profile` measured.")] = None,
    weights: Annotated[
        str, typer.Option(help="Of the cost penalty, separated by commas: the prior is adapted once with each.")
    ] = "0",
    target: Annotated[float | None, typer.Option(help="Of the penalty, in the measure's unit.")] = None,
    train: Annotated[
        str | None, typer.Option(help=f"Train every network by this recipe, and test it: {', '.join(PRESETS)}.")
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="FIELD=VALUE", help="With --train: changes a field of the recipe. Repeatable."),
    ] = None,
    classes: Annotated[
        str | None, typer.Option(help="Names, separated by commas; or how many to draw from unseen ones.")
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Adaptation steps; the run's by default.")] = None,
    root: Annotated[str | None, typer.Option(help="Folder that holds the source's files.")] = None,
    image_size: Annotated[int | None, typer.Option(help="Pixels; the first size of the run by default.")] = None,
    train_per_class: Annotated[int | None, typer.Option(min=1, help="To adapt to; all by default.")] = None,
    test_per_class: Annotated[int, typer.Option(min=1, help="Held out while adapting.")] = 20,
    version: Annotated[int | None, typer.Option(help="Version of the prior; the latest by default.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Chooses images, and classes where they are drawn.")] = 0,
    device: Annotated[str, typer.Option(help="To train on: cuda, cpu, or auto.")] = "auto",
    out: Annotated[Path | None, typer.Option(help="Folder for the results; RUN/pareto by default.")] = None,
    address: Annotated[
        str | None, typer.Option("--address", envvar="RAY_ADDRESS", help="Ray cluster to adapt on. Else a local one.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")] = False,
) -> None:
    """From one prior, adapts once and derives the best network under each of several limits: a Pareto front.

    With `--train`, every network is trained from scratch on the whole source and tested, so that points are accuracies
    with 95 % intervals; else they are probabilities. Points that another one dominates are marked. Leaves `pareto.json`
    and `pareto.png`, which `metasearch report` shows. Ctrl-C keeps what is done; the same command goes on.

    Example: `metasearch pareto --run runs/mine --data digits --measure macs --train smoke --set epochs=10`.
    """
    from common.artifacts import PriorStore
    from coordinator.front_figure import draw_front
    from coordinator.pareto import FRONT, PICTURE, ParetoPlan, check_plan, default_limits, find_points, marked

    if measure not in get_args(ParetoPlan.model_fields["measure"].annotation):
        raise InvalidInputError(f"--measure must be params, macs or latency, got {measure!r}")
    if train is None and overrides:
        raise InvalidInputError("--set changes the recipe of --train; add it, or leave --set out")
    table = None if latency_table is None else read_table(latency_table)
    store = PriorStore(run)
    config = store.load_config()
    refuse_few_shot(config.few_shot, "metasearch pareto")
    prior = store.load(version)
    task, reference = _task(config, data, root, classes, image_size, train_per_class, test_per_class, seed)
    if table is not None:
        space = config.space
        problem = misfit(table, space.cell_kinds, space.ops, space.num_nodes, task.image_size)
        if problem is not None:
            raise InvalidInputError(f"{latency_table}: {problem}")
    recipe = None if train is None else _recipe(train, overrides or [], table)
    network = None if table is None else table.network
    trained_network = None if recipe is None else _trained_network(reference, recipe)
    try:
        plan = ParetoPlan(
            prior=prior.digest(),
            task=task,
            steps=steps or config.adapt.steps,
            measure=measure,
            network=trained_network or network,
            table=table,
            limits=_numbers(limits, "--limits"),
            num_limits=num_limits,
            weights=_numbers(weights, "--weights") or (0.0,),
            target=target,
            recipe=recipe,
        )
    except ValidationError as error:
        raise InvalidInputError(f"pareto: {explain(error)}") from None
    _check_limits(plan, config)
    path = out or run / "pareto"
    folder = ArtifactFolder(path)
    check_plan(folder, plan)
    found = _adapted(plan, prior, config, folder, address)
    posteriors = [posterior for posterior, _ in found]
    chosen = plan.limits or default_limits(plan, posteriors[0], config)
    points = find_points(plan, chosen, posteriors, config)
    if recipe is not None:
        from coordinator.evaluate_cli import say_checkpoint
        from coordinator.interrupts import asked_to_stop

        with asked_to_stop(say_checkpoint) as should_stop:
            trained = _trained(points, recipe, reference, folder, device, should_stop)
        if trained is None:
            _messages.print("Stopped; the same command goes on with what is done.")
            raise typer.Exit(INTERRUPTED_EXIT_CODE)
        points = marked(trained[0], plan.measure)
        front = _front(plan, config, found, points, trained[1])
    else:
        front = _front(plan, config, found, points, None)
    draw_front(front, path / PICTURE)
    FRONT.store(folder, front)
    if as_json:
        print(front.model_dump_json())
    _show(front)
    _messages.print(f"Results are in {path}: {FRONT.name}, {PICTURE}; a page: metasearch report {path}", soft_wrap=True)


def _task(
    config: StudyConfig,
    data: str,
    root: str | None,
    classes: str | None,
    image_size: int | None,
    train_per_class: int | None,
    test_per_class: int,
    seed: int,
) -> tuple[LearningTask, DatasetRef]:
    """The task that options choose, and where its images come from."""
    from coordinator.task_options import choice_of
    from workers.data.choice import task_of
    from workers.job import TASK_ID

    choice = choice_of(config, data, root, classes, image_size, train_per_class, test_per_class, seed)
    return task_of(choice, config, TASK_ID), choice.data


def _recipe(name: str, overrides: Sequence[str], table: LatencyTable | None) -> EvaluateConfig:
    """The recipe; with a table, of the network that the table is of."""
    if table is None:
        return load_evaluate_config(name, overrides)
    of_table = [f"{field}={json.dumps(getattr(table.network, field))}" for field in _SHAPE]
    recipe = load_evaluate_config(name, [*of_table, *overrides])
    for field in _SHAPE:
        value, wanted = getattr(recipe, field), getattr(table.network, field)
        if value != wanted:
            raise InvalidInputError(
                f"--set {field}: the latency table is of a network with {field} {wanted}, got {value}; leave it out, "
                "or profile the network that is trained"
            )
    return recipe


def _trained_network(reference: DatasetRef, recipe: EvaluateConfig) -> Any:
    """The network that the recipe trains on the source; prepares the images, and finds what does not fit."""
    from workers.data.whole import load_whole
    from workers.training import check_batches

    with _messages.status("Preparing images ..."):
        source = load_whole(reference, recipe)
    check_batches(recipe, source.train.num_images, 1)
    network = recipe.network(source.arrays.num_classes, source.arrays.image_shape[2])
    return network.model_copy(update={"auxiliary": False})


def _check_limits(plan: "ParetoPlan", config: StudyConfig) -> None:
    """Refuses limits that no network keeps, before anything is computed."""
    from common.derivation import check_feasible

    for limit in plan.limits or ():
        check_feasible(plan.limit(limit), config.space, config.network, plan.task.image_size, len(plan.task.classes))


def _adapted(
    plan: "ParetoPlan", prior: "Prior", config: StudyConfig, folder: ArtifactFolder, address: str | None
) -> list[tuple["Probabilities", float]]:
    """Posterior and held-out accuracy by weight; what an earlier call has stored is not computed again."""
    from coordinator.driver import open_session
    from coordinator.experiment import Arm, adapt_request
    from coordinator.pareto import begin, posterior_bytes, posterior_name, read_posterior

    found = [read_posterior(folder, index, config.space) for index in range(len(plan.weights))]
    if None in found:
        cluster = config.cluster.with_workers(1)
        with open_session("pareto", cluster, address, _messages) as session:
            for index, weight in enumerate(plan.weights):
                if found[index] is not None:
                    continue
                inner = config.adapt.model_copy(update={"steps": plan.steps, "cost": plan.penalty(weight)})
                request = adapt_request(plan.task, Arm("adapt", prior, inner), config, (plan.steps,))
                (result,) = session.adapt(prior, [request], f"Adapting, weight {weight:g}")
                accuracy = result.evaluations[-1].accuracy
                begin(folder, plan)  # with the first result: a mistake that only workers find leaves no front behind
                folder.write(posterior_name(index), posterior_bytes(result.probabilities, accuracy))
                found[index] = (result.probabilities, accuracy)
    return [each for each in found if each is not None]


def _trained(
    points: Sequence["FrontPoint"],
    recipe: EvaluateConfig,
    reference: DatasetRef,
    folder: ArtifactFolder,
    device: str,
    should_stop: Callable[[], bool],
) -> tuple[list["FrontPoint"], int] | None:
    """The points with their accuracies, and the number of test images; None where it was stopped."""
    from coordinator.evaluate_cli import TrainBar
    from coordinator.pareto import NETWORKS, with_accuracy
    from workers.device import device_named
    from workers.evaluate import PLAN, EvaluationPlan, evaluate, stored_result

    chosen = device_named(device)
    trained: list[FrontPoint] = []
    num_test = 0
    for index, point in enumerate(points):
        below = ArtifactFolder(f"{folder.url}/{NETWORKS}/{_name(point.genotype)}")
        result: Mapping[str, Any] | None = stored_result(below)
        if result is None:
            label = f"network {index + 1} of {len(points)}"
            plan = EvaluationPlan(name=label, genotype=point.genotype, config=recipe, data=reference)
            PLAN.store(below, plan)
            with TrainBar(label) as bar:
                result = evaluate(plan, below, chosen, on_progress=bar.show_training, should_stop=should_stop)
        if result is None:
            return None
        trained.append(with_accuracy(point, result))
        num_test = int(result["num_test"])
    return trained, num_test


def _front(
    plan: "ParetoPlan",
    config: StudyConfig,
    found: Sequence[tuple["Probabilities", float]],
    points: Sequence["FrontPoint"],
    num_test: int | None,
) -> "Front":
    from coordinator.pareto import AdaptedAccuracy, Front

    task, recipe = plan.task, plan.recipe
    return Front(
        measure=plan.measure,
        task=f"{len(task.classes)} classes of {task.data.source}, {task.image_size} pixels",
        prior=plan.prior,
        network=_network_text(plan),
        device=None if plan.table is None else plan.table.device,
        num_test=num_test,
        recipe=None
        if recipe is None
        else f"{recipe.last_epoch} epochs, batches of {recipe.batch_size}, lr {recipe.lr:g}",
        adapted=tuple(
            AdaptedAccuracy(weight=weight, accuracy=accuracy, expected=_expected(plan, posterior, config))
            for weight, (posterior, accuracy) in zip(plan.weights, found, strict=True)
        ),
        points=tuple(points),
    )


def _expected(plan: "ParetoPlan", posterior: "Probabilities", config: StudyConfig) -> float:
    """The measure's expectation over a posterior, in its unit."""
    import torch

    from common.expense import expense_of
    from common.meta.expected_cost import expected_cost

    space, penalty = config.space, plan.measured()
    expense = expense_of(penalty, space, config.network, plan.task.image_size, len(plan.task.classes))
    cost = expected_cost(expense, space, penalty.target, torch.device("cpu"), torch.float64)
    matrices = np.stack([np.asarray(posterior[kind], np.float64) for kind in space.cell_kinds])
    logits = torch.from_numpy(np.log(np.maximum(matrices, np.finfo(np.float64).tiny)))
    return float(cost.relative(logits)) * penalty.target


def _network_text(plan: "ParetoPlan") -> str:
    network = plan.network
    if network is None:
        return "the network of the search's layout"
    return f"the {network.motif} network with {network.num_cells} cells, {network.channels} channels"


def _name(genotype: Genotype) -> str:
    import hashlib

    return hashlib.sha256(genotype.to_json().encode()).hexdigest()[:12]


def _numbers(text: str | None, option: str) -> tuple[float, ...] | None:
    if text is None:
        return None
    try:
        return tuple(sorted({float(part) for part in text.split(",") if part.strip()})) or None
    except ValueError:
        raise InvalidInputError(f"{option} takes numbers separated by commas, got {text!r}") from None


def _show(front: "Front") -> None:
    adapted = Table("penalty weight", f"expected {front.measure}", "supernet's accuracy", show_edge=False)
    for each in front.adapted:
        adapted.add_row(f"{each.weight:g}", f"{each.expected:,.4g}", f"{each.accuracy:.3f}")
    _messages.print(adapted)
    is_trained = front.points[0].accuracy is not None
    latency = [] if front.points[0].latency_ms is None else ["ms"]
    quality = ["accuracy", "95 % interval"] if is_trained else ["log prob."]
    table = Table("", "parameters", "MACs", *latency, *quality, "weight, limit", show_edge=False)
    for column in table.columns[1:-1]:
        column.justify = "right"
    for point in front.points:
        low, high = point.interval_95 or (0.0, 0.0)
        origin = point.origins[0]
        ways = f"{origin.weight:g}, " + ("none" if origin.limit is None else f"{origin.limit:.4g}")
        more = len(point.origins) - 1
        table.add_row(
            "-" if point.is_dominated else "best",
            f"{point.num_params:,}",
            f"{point.num_macs:,}",
            *([] if point.latency_ms is None else [f"{point.latency_ms:.3f}"]),
            *(
                [f"{point.accuracy:.4f}", f"{low:.3f}-{high:.3f}"]
                if point.accuracy is not None
                else [f"{np.log(max(point.probability, np.finfo(np.float64).tiny)):.2f}"]
            ),
            ways + (f" (+{more})" if more else ""),
        )
    _messages.print(table)
