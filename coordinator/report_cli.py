"""The command that makes a page of a run, a demo, an adaptation or a job."""

import webbrowser
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape

from common.errors import InvalidInputError, NotFoundError
from coordinator.service_access import ServerOption, TokenOption, job_named

if TYPE_CHECKING:
    from coordinator.html_report.report import Report

# What draws and what calls the service waits until the command needs it.

_messages = Console(stderr=True, highlight=False)

PAGE = "report.html"


def register(app: typer.Typer) -> None:
    """Adds the command to the command line."""
    app.command()(report)


def report(
    subject: Annotated[
        str,
        typer.Argument(
            metavar="FOLDER|JOB", help="Folder of a run, demo, adaptation, sweep or front; or studies/STUDY/jobs/ID."
        ),
    ],
    out: Annotated[
        Path | None, typer.Option(help=f"File to write; {PAGE} in the folder by default, of a job in this one.")
    ] = None,
    show: Annotated[bool, typer.Option("--open", help="Open it in the browser.")] = False,
    server: ServerOption = None,
    token: TokenOption = None,
) -> None:
    """Writes one HTML file about a run, a demo, an adaptation, a sweep or a job.

    It needs no network and no scripts: curves, cells, the architecture posterior, cost, configuration, environment, and
    the SHA-256 of every file.

    Examples: `metasearch report runs/mine`, `metasearch report studies/mine/jobs/ID --out job.html --open`.
    """
    from coordinator.html_report.collect import collect
    from coordinator.html_report.page import page

    folder = Path(subject)
    job = job_named(subject)
    if folder.is_dir():
        target = out or folder / PAGE
        _check(target)
        content = page(collect(folder, leave_out=target))
    elif job is not None:
        target = out or Path(f"report-{job.rpartition('/')[2]}.html")
        _check(target)
        content = page(_of_job(job, server, token))
    else:
        raise NotFoundError(
            f"there is no folder {subject}, and it is no job either; "
            "give the folder of a run, a demo or an adaptation, or studies/STUDY/jobs/ID"
        )
    from common.storage import ArtifactFolder

    ArtifactFolder(target.parent).write(target.name, content.encode())
    _messages.print(f"The report is in {escape(str(target))}.", soft_wrap=True)
    if show and not webbrowser.open(target.resolve().as_uri()):
        _messages.print("No browser could be opened here; open the file in one.")


def _check(target: Path) -> None:
    """Refuses what cannot be a page's file, before anything is read or fetched."""
    if target.is_dir() or target.suffix.lower() not in (".html", ".htm"):
        raise InvalidInputError(f"--out must name an .html file, got {str(target)!r}")


def _of_job(name: str, server: str | None, token: str | None) -> "Report":
    """A job's report, of its artifacts in a folder that is gone afterwards."""
    from coordinator.html_report.collect import collect
    from coordinator.html_report.provenance import Manifest
    from coordinator.html_report.report import Origin
    from coordinator.service_access import fetched, folder_of

    with fetched(name, server, token, lambda job: None) as (job, folder):
        listed = {
            str((folder_of(each.name, job, folder) / each.name).relative_to(folder)): Manifest(
                each.num_bytes, each.sha256
            )
            for each in job.artifacts
        }
        began, ended = (
            stamp.ToDatetime().strftime("%Y-%m-%d %H:%M:%S UTC") for stamp in (job.start_time, job.end_time)
        )
        return collect(folder, Origin(name, began, ended, listed))
