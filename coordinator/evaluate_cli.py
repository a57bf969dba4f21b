"""The command that trains and tests full networks on this machine."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from common.config import DatasetRef
from common.errors import INTERRUPTED_EXIT_CODE, ConflictError, InvalidInputError
from common.evaluate_config import PRESETS, check_same_recipe, load_evaluate_config, validate_evaluate_config
from common.loading import apply_overrides
from common.space.genotype import Genotype
from common.space.released import RELEASED
from common.storage import ArtifactFolder
from coordinator.genotypes import genotype_of
from coordinator.interrupts import asked_to_stop
from coordinator.progress import Bar

if TYPE_CHECKING:
    import torch

    from workers.evaluate import EvaluationPlan
    from workers.parallel import ProcessGroup
    from workers.training import TrainProgress

# Torch waits until the command runs.

_messages = Console(stderr=True, highlight=False)
_DEFAULT_PRESET = "cifar10"


def register(app: typer.Typer) -> None:
    """Adds the command to the command line."""
    app.command("evaluate", rich_help_panel="Full networks")(evaluate)


def evaluate(
    run: Annotated[Path, typer.Option(help="Folder for the results.")],
    genotype: Annotated[
        str | None,
        typer.Argument(
            metavar="[GENOTYPE]",
            help=f"{', '.join(RELEASED)}; a JSON file with a genotype, such as a result.json; a folder with a network.",
        ),
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="A source (`metasearch data list`), image folder, zip, tar or npz.")
    ] = None,
    root: Annotated[str | None, typer.Option(help="Folder that holds the source's files.")] = None,
    preset: Annotated[
        str | None, typer.Option(help=f"Recipe: {', '.join(PRESETS)}; {_DEFAULT_PRESET} by default.")
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="FIELD=VALUE", help="Changes a field of the recipe, e.g. `--set epochs=20`."),
    ] = None,
    num_random: Annotated[
        int | None,
        typer.Option("--random", min=0, help="Train so many random genotypes of equal size the same way."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the evaluation in this folder.")] = False,
    device: Annotated[str, typer.Option(help="cuda, cpu, or auto for the first GPU, else the CPU.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")] = False,
) -> None:
    """Trains the full network of a genotype from scratch, and tests it.

    Leaves `result.json` (accuracy with its 95 % interval, parameters, learning curve) and `network/`, which
    `metasearch export` takes. Ctrl-C leaves a checkpoint; a resumed training ends as an undisturbed one, on a CPU to
    the last bit. Recipes are the paper's; every field of them (common/evaluate_config.py) can be changed.

    On several GPUs: `torchrun --nproc-per-node 4 --no-python -- metasearch evaluate ... --set batch_parts=4`.

    Example: `metasearch evaluate CIFAR_TUNED --data cifar10 --run runs/cifar`.
    """
    folder = ArtifactFolder(run)
    given = {"GENOTYPE": genotype, "--data": data, "--root": root, "--preset": preset, "--random": num_random}
    plan = _resumed(folder, given, overrides or []) if resume else _new(folder, given, overrides or [])

    from workers.device import device_named
    from workers.evaluate import PLAN, random_genotypes
    from workers.parallel import joined

    with joined(device_named(device)) as (group, chosen):
        session = _Session(plan, folder, group, chosen)
        network = session.network_config()
        genotypes = random_genotypes(plan.genotype, network, plan.num_random, plan.config.seed)
        if group.rank == 0:
            PLAN.store(folder, plan)  # last of all: a mistake leaves no run behind
        results = session.run(genotypes)
        if group.rank:
            return
    if results is None:
        _messages.print(f"Stopped. To go on: metasearch evaluate --run {run} --resume", soft_wrap=True)
        raise typer.Exit(INTERRUPTED_EXIT_CODE)
    first, *others = results
    if as_json:
        print(json.dumps({**first, "random": others}))
    _show(results)
    _messages.print(f"Results are in {run}: result.json, network.", soft_wrap=True)


class _Session:
    """The networks of an evaluation, one after the other."""

    def __init__(
        self, plan: "EvaluationPlan", folder: ArtifactFolder, group: "ProcessGroup", device: "torch.device"
    ) -> None:
        self.plan = plan
        self.folder = folder
        self.group = group
        self.device = device

    def network_config(self) -> Any:
        """The network that is going to be trained; prepares the images, and finds what does not fit."""
        from workers.data.whole import load_whole
        from workers.training import check_batches

        with _messages.status("Preparing images ..."):
            source = load_whole(self.plan.data, self.plan.config)
        check_batches(self.plan.config, source.train.num_images, self.group.world_size)
        return self.plan.config.network(source.arrays.num_classes, source.arrays.image_shape[2])

    def run(self, genotypes: Sequence[Genotype]) -> list[dict[str, Any]] | None:
        """Results of the plan's genotype and of the random ones; None where it was stopped."""
        from workers.evaluate import evaluate as run_evaluation
        from workers.evaluate import stored_result

        plans = [(self.plan, self.folder)]
        for index, genotype in enumerate(genotypes):
            plan = self.plan.model_copy(update={"name": f"random {index}", "genotype": genotype, "num_random": 0})
            plans.append((plan, ArtifactFolder(f"{self.folder.url}/random-{index}")))
        results: list[dict[str, Any]] = []
        with asked_to_stop(say_checkpoint) as should_stop:
            for plan, folder in plans:
                # Done before a stop; the first one is looked at again, as its budget may have been raised.
                result = stored_result(folder) if plan is not self.plan else None
                if result is None or result["config"] != plan.config.model_dump(mode="json"):
                    with TrainBar(plan.name, is_quiet=self.group.rank > 0) as bar:
                        result = run_evaluation(plan, folder, self.device, self.group, bar.show_training, should_stop)
                if result is None:
                    return None
                results.append(result)
        return results


class TrainBar(Bar):
    """Progress of a training."""

    def __init__(self, label: str, is_quiet: bool = False) -> None:
        super().__init__(_messages, label, unit="steps", is_quiet=is_quiet)

    def show_training(self, progress: "TrainProgress") -> None:
        """Shows how far it is."""
        note = ""
        if progress.last is not None:
            note = f"epoch {progress.epochs_done}, loss {progress.last.train_loss_nats:.3f}"
            if progress.last.accuracy is not None:
                note += f", accuracy {progress.last.accuracy:.4f}"
        self.show(progress.steps_done, progress.num_steps, note)


def say_checkpoint() -> None:
    """Tells whoever pressed Ctrl-C what happens now."""
    _messages.print("Storing a checkpoint; press Ctrl-C again to stop at once.")


def _new(folder: ArtifactFolder, given: dict[str, Any], overrides: Sequence[str]) -> "EvaluationPlan":
    from workers.data.sources import SOURCES
    from workers.evaluate import PLAN, EvaluationPlan

    for name in ("GENOTYPE", "--data"):
        if given[name] is None:
            raise InvalidInputError(f"give {name}, or add --resume to go on with what is in {folder.url}")
    data = given["--data"]
    # An absolute path means the same when the run is resumed elsewhere.
    source = str(Path(data).resolve()) if data not in SOURCES and Path(data).exists() else data
    plan = EvaluationPlan(
        name=given["GENOTYPE"],
        genotype=genotype_of(given["GENOTYPE"]),
        config=load_evaluate_config(given["--preset"] or _DEFAULT_PRESET, overrides),
        data=DatasetRef(source=source, root=given["--root"]),
        num_random=given["--random"] or 0,
    )
    if folder.exists(PLAN.name):
        raise ConflictError(f"{folder.url} holds an evaluation; add --resume to go on with it, or choose another --run")
    return plan


def _resumed(folder: ArtifactFolder, given: dict[str, Any], overrides: Sequence[str]) -> "EvaluationPlan":
    from workers.evaluate import PLAN

    for name in (name for name, value in given.items() if value is not None):
        raise InvalidInputError(f"{folder.url} says what is evaluated; leave out {name} with --resume")
    plan = PLAN.read(folder)
    tree = plan.config.model_dump(mode="json")
    apply_overrides(tree, overrides)
    config = validate_evaluate_config(tree)
    check_same_recipe(plan.config, config)
    return plan.model_copy(update={"config": config})


def _show(results: Sequence[dict[str, Any]]) -> None:
    """A table of the networks; of several random ones, their mean too."""
    table = Table("network", "parameters", "MACs", "accuracy", "95 % interval", show_edge=False)
    for column in table.columns[1:]:
        column.justify = "right"
    for result in results:
        low, high = result["interval_95"]
        network = result["network"]
        table.add_row(
            escape(result["name"]),
            f"{network['num_params']:,}",
            f"{network['num_macs']:,}",
            f"{result['accuracy']:.4f}",
            f"{low:.4f} to {high:.4f}",
        )
    _messages.print(table)
    _messages.print(
        f"On {results[0]['num_test']} test images; intervals are of their choice, not of the seed's.", soft_wrap=True
    )
    accuracies = [result["accuracy"] for result in results[1:]]
    if len(accuracies) > 1:
        import numpy as np

        from coordinator.report import mean_interval

        found = mean_interval(np.array(accuracies)[:, None])
        _messages.print(
            f"Random genotypes of equal size: mean {found.mean[0]:.4f}, 95 % interval of the mean over genotypes "
            f"{found.low[0]:.4f} to {found.high[0]:.4f}.",
            soft_wrap=True,
        )
