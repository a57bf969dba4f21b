"""How a command reaches the service: its options, and a finished job's files."""

import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import Annotated

import typer

from common.errors import AdaptationError, ForbiddenError, NotFoundError, UnauthenticatedError
from coordinator.api.client import SearchClient
from coordinator.api.connection import DEFAULT_ADDRESS, TERMINAL_STATES, TOKEN_VARIABLE
from coordinator.api.stubs import search_pb2 as pb
from coordinator.local_service import DEFAULT_FOLDER, TOKEN_FILE

ServerOption = Annotated[
    str | None, typer.Option("--server", envvar="METASEARCH_ADDRESS", help=f"HOST:PORT; {DEFAULT_ADDRESS} by default.")
]
TokenOption = Annotated[
    str | None,
    typer.Option("--token", envvar=TOKEN_VARIABLE, help="API token; that of the local service by default."),
]

_JOB = re.compile(r"(?:tenants/[^/]+/)?(studies/[^/]+/jobs/[^/]+)")


def job_named(text: str) -> str | None:
    """The job that an argument names, as the client takes it; None where it names none."""
    found = _JOB.fullmatch(text)
    return None if found is None else found[1]


def folder_of(artifact: str, job: pb.Job, out: Path) -> Path:
    """Where an artifact goes: a prior, below `priors`, as in the folder of a run."""
    leaves_run = job.HasField("sweep_result") or job.HasField("meta_train_result")
    is_prior = leaves_run and PurePath(artifact).stem.isdecimal()
    return out / "priors" if is_prior else out


def study_name(name: str) -> str:
    """The resource name of a study that an argument names."""
    return name if name.startswith("studies/") else f"studies/{name}"


@contextmanager
def connected(
    server: str | None, token: str | None, patience_s: float = 10.0, timeout_s: float = 10.0
) -> Iterator[SearchClient]:
    """A client of the service, with the local one's token where there is no other; see `Connection`."""
    local = DEFAULT_FOLDER / TOKEN_FILE
    if token is None and local.is_file():
        token = local.read_text("utf-8").strip()
    with SearchClient(server, token, timeout_s=timeout_s, patience_s=patience_s) as client:
        try:
            yield client
        except UnauthenticatedError as error:
            raise UnauthenticatedError(f"{error}; give --token or {TOKEN_VARIABLE}") from None
        except ForbiddenError as error:
            raise ForbiddenError(f"{error}; ask for a token with that role") from None


@contextmanager
def fetched(
    name: str,
    server: str | None,
    token: str | None,
    choose: Callable[[pb.Job], Sequence[str] | None],
) -> Iterator[tuple[pb.Job, Path]]:
    """A job that has succeeded, and its files in a folder that is gone afterwards.

    Args:
        name: of the job.
        server: HOST:PORT; the default address where None.
        token: that of the local service where None.
        choose: names the artifacts to fetch, None for all; may refuse the job.

    Raises:
        NotFoundError: there is no such job, or it has no result yet.
        AdaptationError: it did not succeed.
        MetaSearchError: of the other kinds, as the client raises them.
    """
    with tempfile.TemporaryDirectory(prefix="metasearch-job-") as temporary:
        folder = Path(temporary)
        with connected(server, token) as client:
            job = succeeded_job(client, name)
            chosen = choose(job)
            for artifact in [each.name for each in job.artifacts] if chosen is None else chosen:
                client.download(name, folder_of(artifact, job, folder), [artifact])
        yield job, folder


def succeeded_job(client: SearchClient, name: str) -> pb.Job:
    """A job that has a result.

    Raises:
        NotFoundError: there is no such job, or it has no result yet.
        AdaptationError: it did not succeed.
    """
    job = client.get_job(name)
    if job.state not in TERMINAL_STATES:
        raise NotFoundError(f"{name} has no result yet: metasearch watch {name}")
    if job.state != pb.JOB_STATE_SUCCEEDED:
        raise AdaptationError(f"{name} did not succeed, so there is nothing to fetch: metasearch result {name}")
    return job
