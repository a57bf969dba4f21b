"""The command that labels images from a handful of examples, by the service."""

from pathlib import Path
from typing import Annotated

import typer

from common.errors import InvalidInputError
from coordinator.api.inline_images import Queries
from coordinator.client_cli import JsonOption, after_create
from coordinator.service_access import ServerOption, TokenOption, connected, study_name


def register(app: typer.Typer) -> None:
    """Adds the command to the command line."""
    app.command(rich_help_panel="Service")(label)


def label(
    study: Annotated[str, typer.Option(help="studies/STUDY, or STUDY: a few-shot study.")],
    support: Annotated[
        Path, typer.Argument(help="Labelled images, a handful of each class: a folder per class; or a zip or tar file.")
    ],
    queries: Annotated[
        list[Path] | None, typer.Argument(help="Images to be labelled: files, or one folder. None: learn only.")
    ] = None,
    steps: Annotated[int | None, typer.Option(min=0, help="Inner steps; the study's by default.")] = None,
    version: Annotated[int | None, typer.Option(min=0, help="Version of the prior; the latest by default.")] = None,
    statistics: Annotated[
        str | None, typer.Option(help="BatchNorm: transductive or inductive; the study's by default.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the noise, where architectures are sampled.")] = 0,
    priority: Annotated[int | None, typer.Option(min=0, max=9, help="9 goes first; 8 by default.")] = None,
    needs_gpu: Annotated[bool, typer.Option("--gpu", help="Only run on workers with a GPU.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check, and create nothing.")] = False,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait for the answer, and show it.")] = True,
    server: ServerOption = None,
    token: TokenOption = None,
    as_json: JsonOption = False,
) -> None:
    """Learns classes from a handful of images by a few-shot study's prior, and labels others, in seconds.

    The answer can be had again with `metasearch result JOB`; `--out FOLDER` there downloads the adapted model too.

    Example: `metasearch label --study scripts examples/ unknown/`.
    """
    with connected(server, token) as client:
        job = client.few_shot(
            study_name(study),
            support,
            _queries(queries or []),
            steps=steps,
            prior_version=version,
            statistics=statistics,
            seed=seed,
            priority=priority,
            needs_gpu=needs_gpu,
            validate_only=dry_run,
        )
        after_create(client, job, dry_run, wait, as_json)


def _queries(paths: list[Path]) -> Queries:
    if len(paths) == 1:
        return paths[0]
    for path in paths:
        if path.is_dir():
            raise InvalidInputError(f"{path} is a folder; give one folder of queries, or files")
    return paths
