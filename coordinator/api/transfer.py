"""Files on their way to the service and back: what is uploaded, in which parts, and what is received."""

import hashlib
import os
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from common.errors import CorruptArtifactError, InvalidInputError, NotFoundError, UnavailableError
from coordinator.api.stubs import search_pb2 as pb

CHUNK_BYTES = 1 << 20
ARCHIVE_SUFFIXES = (".zip", ".npz", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")


def named_source(data: str | Path | pb.DataSource) -> pb.DataSource | None:
    """What `data` names, or None if it is a file or folder on this machine.

    Raises:
        NotFoundError: a path that does not exist.
    """
    if isinstance(data, pb.DataSource):
        return data
    text = str(data)
    if "://" in text:
        return pb.DataSource(url=text)
    if text.startswith("datasets/"):
        return pb.DataSource(dataset=text)
    if isinstance(data, Path) or os.sep in text or text.lower().endswith(ARCHIVE_SUFFIXES) or Path(text).is_dir():
        if not Path(text).expanduser().exists():
            raise NotFoundError(f"there is no file or folder {text}")
        return None
    return pb.DataSource(builtin=text)


@contextmanager
def packed(path: Path) -> Iterator[tuple[Path, str]]:
    """The file to upload for `path`, and a title; a folder is packed into a zip. Equal folders give equal bytes.

    Raises:
        NotFoundError: there is no such file or folder.
        InvalidInputError: a file of another kind, or an empty folder.
    """
    path = path.expanduser()
    if path.is_file():
        if not path.name.lower().endswith(ARCHIVE_SUFFIXES):
            raise InvalidInputError(f"{path} is none of {', '.join(ARCHIVE_SUFFIXES)}; pack it as one")
        yield path, path.name
        return
    if not path.is_dir():
        raise NotFoundError(f"there is no file or folder {path}")
    with tempfile.TemporaryDirectory(prefix="metasearch-") as folder:
        target = Path(folder) / "data.zip"
        # Images are compressed already. Fixed times, so that identical data is stored once.
        with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
            for file in sorted(path.rglob("*")):
                name = file.relative_to(path).as_posix()
                if (
                    file.is_file()
                    and not file.is_symlink()
                    and not any(part.startswith(".") for part in name.split("/"))
                ):
                    info = zipfile.ZipInfo(name)
                    info.external_attr = 0o644 << 16
                    with file.open("rb") as source, archive.open(info, "w", force_zip64=True) as member:
                        while block := source.read(CHUNK_BYTES):
                            member.write(block)
            if not archive.namelist():
                raise InvalidInputError(f"{path} has no files; an image folder has a subfolder of images per class")
        yield target, path.resolve().name


def upload_header(file: Path, title: str) -> pb.UploadHeader:
    """What goes before the content of a file."""
    with file.open("rb") as content:
        digest = hashlib.file_digest(content, "sha256").hexdigest()
    name = file.name.lower()
    suffix = max((suffix for suffix in ARCHIVE_SUFFIXES if name.endswith(suffix)), key=len)
    return pb.UploadHeader(title=title, suffix=suffix, num_bytes=file.stat().st_size, sha256=digest)


def upload_parts(file: Path, header: pb.UploadHeader) -> Iterator[pb.UploadDatasetRequest]:
    """The messages of an upload."""
    yield pb.UploadDatasetRequest(header=header)
    with file.open("rb") as content:
        while chunk := content.read(CHUNK_BYTES):
            yield pb.UploadDatasetRequest(chunk=chunk)


def wanted_artifacts(job: pb.Job, names: Sequence[str] | None) -> list[pb.Artifact]:
    """The named artifacts of a job, all of them where no names are given.

    Raises:
        NotFoundError: the job has no such artifact, or none yet.
    """
    found = {artifact.name: artifact for artifact in job.artifacts}
    if not found:
        raise NotFoundError(f"{job.name} has no artifacts; it has not succeeded")
    for name in names or ():
        if name not in found:
            raise NotFoundError(f"{job.name} has no artifact {name!r}; it has {', '.join(found)}")
    return [found[name] for name in names or found]


def safe_name(name: str) -> str:
    """An artifact's name as that of a file in a folder, or in one of its subfolders.

    Raises:
        CorruptArtifactError: it would lie elsewhere.
    """
    if "\\" in name or any(part in ("", ".", "..") for part in name.split("/")):
        raise CorruptArtifactError(f"artifact name {name!r} is not a file name")
    return name


class _Part:
    """A file that is being received."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb")
        self._hasher = hashlib.sha256()
        self.num_bytes = 0

    def add(self, chunk: bytes) -> None:
        self._file.write(chunk)
        self._hasher.update(chunk)
        self.num_bytes += len(chunk)

    def finish(self) -> str:
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        return self._hasher.hexdigest()

    def close(self) -> None:
        self._file.close()


@contextmanager
def receiving(target: Path, artifact: pb.Artifact) -> Iterator[_Part]:
    """Receives into a file beside `target`, and puts it there once it is whole.

    Raises:
        CorruptArtifactError: it has another size or SHA-256.
        UnavailableError: it cannot be written.
    """
    temporary = target.with_name(f".{target.name}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        part = _Part(temporary)
    except OSError as error:
        raise UnavailableError(f"cannot write {target}: {error}") from None
    try:
        yield part
        if part.finish() != artifact.sha256 or part.num_bytes != artifact.num_bytes:
            raise CorruptArtifactError(f"{artifact.name} came with another SHA-256 than the job says; fetch it again")
        temporary.replace(target)
    finally:
        part.close()
        temporary.unlink(missing_ok=True)
