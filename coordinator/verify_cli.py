"""The command that holds the artifacts against the job store."""

import json
from dataclasses import asdict
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from common.errors import CorruptArtifactError
from coordinator.serving_cli import SettingsOption

_messages = Console(stderr=True, highlight=False)


def register(app: typer.Typer) -> None:
    """Adds the command to the command line."""
    app.command(rich_help_panel="Service")(verify)


def verify(
    settings: SettingsOption = None,
    store: Annotated[str | None, typer.Option(help="sqlite:PATH or redis://HOST:PORT/DB.")] = None,
    artifacts: Annotated[str | None, typer.Option(help="Folder or fsspec URL.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")] = False,
) -> None:
    """Reads every file that the job store names, and holds it against its SHA-256: a backup, or a restore, is whole.

    Changes nothing, and may run beside the service. Ends with 7 where something is missing or altered.
    """
    import time

    from common.storage import ArtifactFolder
    from coordinator.inventory import Inventory, take_inventory
    from coordinator.priors import StudyPriors
    from coordinator.progress import Bar
    from coordinator.settings import load_settings, open_ledger
    from coordinator.store.jobs import JobStore

    found = load_settings(settings, {"store": store, "artifacts": artifacts})
    jobs = JobStore(open_ledger(found.store))
    try:
        with Bar(_messages, "verifying", unit="files", done=0, is_quiet=as_json) as bar:

            def note(sofar: Inventory) -> None:
                bar.show(sofar.num_priors + sofar.num_files, note=f"{sofar.num_bytes / 1e6:.1f} MB of results")

            priors = StudyPriors(jobs, found.artifacts, time.time)
            inventory = take_inventory(jobs, priors, ArtifactFolder(found.artifacts), note)
    finally:
        jobs.ledger.close()
    if as_json:
        print(json.dumps(asdict(inventory)))
    for problem in inventory.problems:
        _messages.print(escape(problem), soft_wrap=True)
    summary = f"{inventory.num_priors} priors and {inventory.num_files} files ({inventory.num_bytes / 1e6:.1f} MB)"
    if inventory.problems:
        raise CorruptArtifactError(
            f"missing or altered: {len(inventory.problems)} of the files that the job store names, {summary} are not. "
            "Restore artifacts at least as new as the job store's backup"
        )
    _messages.print(f"{summary} are as the job store says.")
