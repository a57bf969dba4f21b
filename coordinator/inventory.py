"""What the job store says is among the artifacts, held against what is there: is a backup, or a restore, whole?"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from common.errors import CorruptArtifactError, NotFoundError
from common.storage import ArtifactFolder
from coordinator.jobs import JobState
from coordinator.priors import StudyPriors
from coordinator.store.jobs import JobStore
from coordinator.store.ledger import Stored
from coordinator.store.records import DatasetRecord, PriorPointer, read_job


@dataclass(frozen=True)
class NamedFile:
    """A file that a record of the job store names.

    Attributes:
        url: of its folder.
        name: within it.
        sha256: hexadecimal; None where the record does not say.
        num_bytes: None where the record does not say.
    """

    url: str
    name: str
    sha256: str | None
    num_bytes: int | None


@dataclass
class Inventory:
    """What was found.

    Attributes:
        num_priors: versions of priors that were read whole.
        num_files: files of results and uploads that were read whole.
        num_bytes: of those files.
        problems: what is missing or altered, a line each.
    """

    num_priors: int = 0
    num_files: int = 0
    num_bytes: int = 0
    problems: list[str] = field(default_factory=list)


def take_inventory(
    store: JobStore, priors: StudyPriors, artifacts: ArtifactFolder, note: Callable[[Inventory], None]
) -> Inventory:
    """Reads every prior, every file of a result and every upload that the job store names. Changes nothing.

    On a service that runs, what is removed meanwhile is no problem.

    Args:
        store: of jobs.
        priors: of the same store.
        artifacts: what the service's settings name; files elsewhere are the users' own, and are not looked at.
        note: told after each record how far it is.

    Raises:
        UnavailableError: store or artifacts do not answer.
    """
    found = Inventory()
    for stored in store.records("prior/"):
        _, tenant, study, _ = stored.key.split("/")
        version = PriorPointer.model_validate(stored.record).version
        try:
            priors.load(tenant, study, version)
        except (NotFoundError, CorruptArtifactError) as error:
            _complain(found, store, stored, str(error))
        else:
            found.num_priors += 1
        note(found)
    for kind in ("job/", "dataset/"):
        for stored in store.records(kind):
            for file in _files_of(stored, artifacts):
                try:
                    found.num_bytes += _checked(file)
                except (NotFoundError, CorruptArtifactError) as error:
                    _complain(found, store, stored, str(error))
                else:
                    found.num_files += 1
            note(found)
    return found


def _files_of(stored: Stored, artifacts: ArtifactFolder) -> Iterator[NamedFile]:
    """The files that a record of a job or of an upload names."""
    if stored.key.startswith("dataset/"):
        dataset = DatasetRecord.model_validate(stored.record)
        folder, _, name = dataset.url.rpartition("/")
        yield NamedFile(folder, name, dataset.sha256, dataset.num_bytes)
        return
    job = read_job(stored)
    file = getattr(job.spec, "file", None)
    # Once a job has ended, nobody needs what it was given; examples for a few-shot job are among its results.
    if file is not None and not job.state.is_terminal and file.url.startswith(artifacts.url_of("") + "/"):
        folder, _, name = file.url.rpartition("/")
        yield NamedFile(folder, name, file.sha256, None)
    if job.state is JobState.SUCCEEDED and job.result is not None:
        result: Mapping[str, Any] = job.result
        for each in result.get("artifacts", ()):
            yield NamedFile(str(result["url"]), each["name"], each["sha256"], each["num_bytes"])


def _checked(file: NamedFile) -> int:
    """Reads a file; returns its size in bytes."""
    folder = ArtifactFolder(file.url)
    num_bytes, sha256 = folder.digest(file.name)
    path = folder.path(file.name)
    if file.num_bytes not in (None, num_bytes):
        raise CorruptArtifactError(f"{path} has {num_bytes} bytes, the job store says {file.num_bytes}")
    if file.sha256 not in (None, sha256):
        raise CorruptArtifactError(f"{path} does not have the SHA-256 that the job store says")
    return num_bytes


def _complain(found: Inventory, store: JobStore, stored: Stored, problem: str) -> None:
    """Notes a problem, unless the record is gone by now."""
    if store.ledger.get(stored.key) != [None]:
        found.problems.append(f"{stored.key}: {problem}")
