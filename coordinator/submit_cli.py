"""The command that submits a task to the service, or a network to train there."""

import uuid
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from common.errors import InvalidInputError
from common.evaluate_config import PRESETS
from coordinator.api.stubs import search_pb2 as pb
from coordinator.client_cli import JsonOption, after_create
from coordinator.genotypes import genotype_of
from coordinator.limit_options import LatencyTableOption, MaxLatencyOption, MaxMacsOption, MaxParamsOption, limits_of
from coordinator.service_access import ServerOption, TokenOption, connected, study_name


def register(app: typer.Typer) -> None:
    """Adds the command to the command line."""
    app.command(rich_help_panel="Service")(submit)


def submit(
    study: Annotated[str, typer.Option(help="studies/STUDY, or STUDY.")],
    data: Annotated[str, typer.Option(help="Folder or file (is uploaded), a source's name, a URL, datasets/SHA256.")],
    classes: Annotated[str | None, typer.Option(help="Names, separated by commas; or how many to draw.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Adaptation steps; the study's by default.")] = None,
    image_size: Annotated[int | None, typer.Option(help="Pixels; the study's first by default.")] = None,
    train_per_class: Annotated[
        int | None, typer.Option(min=1, help="Training images per class; all by default.")
    ] = None,
    test_per_class: Annotated[int | None, typer.Option(min=1, help="Held-out images per class; 20 by default.")] = None,
    version: Annotated[int | None, typer.Option(min=0, help="Version of the prior; the latest by default.")] = None,
    derivation: Annotated[str, typer.Option("--derive", help="top2_pairs, darts or sample.")] = "top2_pairs",
    max_params: MaxParamsOption = None,
    max_macs: MaxMacsOption = None,
    max_latency_ms: MaxLatencyOption = None,
    latency_table: LatencyTableOption = None,
    fine_tune_steps: Annotated[
        int | None, typer.Option(min=1, help="Steps with the network found alone, which is then among the artifacts.")
    ] = None,
    contribute: Annotated[bool, typer.Option("--contribute", help="Let the update enter the prior.")] = False,
    seed: Annotated[int, typer.Option(min=0, help="Chooses images, and classes where they are drawn.")] = 0,
    evaluated: Annotated[
        str | None,
        typer.Option(
            "--evaluate",
            metavar="GENOTYPE",
            help="Train this genotype's full network from scratch instead, and test it.",
        ),
    ] = None,
    recipe: Annotated[
        str | None, typer.Option(help=f"With --evaluate: {', '.join(PRESETS)}; cifar10 by default.")
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="FIELD=VALUE", help="With --evaluate: changes a field of the recipe."),
    ] = None,
    priority: Annotated[int | None, typer.Option(min=0, max=9, help="9 goes first; 4 by default.")] = None,
    needs_gpu: Annotated[bool, typer.Option("--gpu", help="Only run on workers with a GPU.")] = False,
    queue_timeout_s: Annotated[float, typer.Option(min=0, help="Fail if it has not started by then; a day.")] = 0.0,
    request_id: Annotated[str | None, typer.Option(help="UUID4; the same again returns the same job.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check, and create nothing.")] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Show progress until it has ended.")] = False,
    server: ServerOption = None,
    token: TokenOption = None,
    as_json: JsonOption = False,
) -> None:
    """Submits a task: adapts the study's prior to it. With `--evaluate`, trains a full network from scratch instead.

    Examples: `metasearch submit --study mine --data photos/ --steps 20 --wait`,
    `metasearch submit --study mine --data photos/ --evaluate result/result.json --set epochs=50 --wait`.
    """
    adapting = {
        "--classes": classes,
        "--steps": steps,
        "--image-size": image_size,
        "--train-per-class": train_per_class,
        "--test-per-class": test_per_class,
        "--version": version,
        "--max-params": max_params,
        "--max-macs": max_macs,
        "--fine-tune-steps": fine_tune_steps,
        "--max-latency-ms": max_latency_ms,
        "--latency-table": latency_table,
        "--contribute": contribute or None,
    }
    _check_kind(evaluated, adapting, {"--recipe": recipe, "--set": overrides})
    limits = limits_of(max_params, max_macs, max_latency_ms, latency_table)
    rule = f"DERIVATION_RULE_{derivation.upper()}"
    if rule not in pb.DerivationRule.keys():  # noqa: SIM118 not a dict
        raise InvalidInputError(f"--derive must be top2_pairs, darts or sample, got {derivation!r}")
    if request_id is not None:
        try:
            uuid.UUID(request_id, version=4)
        except ValueError:
            raise InvalidInputError(f"--request-id must be a UUID4, got {request_id!r}") from None
    names = [name.strip() for name in classes.split(",") if name.strip()] if classes else []
    drawn = int(names[0]) if len(names) == 1 and names[0].isdecimal() else None
    options: dict[str, Any] = {
        "request_id": request_id,
        "validate_only": dry_run,
        "priority": priority,
        "needs_gpu": needs_gpu,
        "queue_timeout_s": queue_timeout_s,
    }
    genotype = None if evaluated is None else genotype_of(evaluated)
    with connected(server, token) as client:
        if genotype is not None:
            job = client.evaluate(study_name(study), data, genotype.to_json(), recipe or "", overrides or [], **options)
            after_create(client, job, dry_run, wait, as_json)
            return
        job = client.submit(
            study_name(study),
            data,
            **options,
            classes=None if drawn is not None else names,
            num_ways=drawn,
            steps=steps,
            image_size=image_size,
            train_per_class=train_per_class,
            test_per_class=test_per_class,
            prior_version=version,
            derivation=pb.DerivationRule.Value(rule),
            max_params=max_params,
            max_macs=max_macs,
            fine_tune_steps=fine_tune_steps,
            max_latency_ms=limits.max_latency_ms,
            latency_table_json=None if limits.latency_table is None else limits.latency_table.to_json(),
            contribute=contribute,
            seed=seed,
        )
        after_create(client, job, dry_run, wait, as_json)


def _check_kind(evaluated: str | None, adapting: Mapping[str, Any], evaluating: Mapping[str, Any]) -> None:
    """Refuses options of the other kind of job."""
    others, remedy = (evaluating, "add --evaluate GENOTYPE, or leave it out")
    if evaluated is not None:
        others, remedy = adapting, "leave it out with --evaluate; --set changes the recipe"
    for name in (name for name, value in others.items() if value is not None):
        raise InvalidInputError(f"{name}: {remedy}")
