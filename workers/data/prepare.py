"""Prepares an image folder of any size, such as ImageNet's, once for all tasks: decoded, resized, sorted by class.

Layout of the target: one folder per image size, each as `workers.data.stored` lays it out, and `progress/` with one
record per finished class, from which an interrupted run goes on.
"""

import hashlib
import json
import multiprocessing
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path

from common.errors import CorruptArtifactError, InvalidInputError, NotFoundError
from workers.data.arrays import ClassArrays, ClassImages, ClassRecord, record_of
from workers.data.cache import locked
from workers.data.folders import files_by_class, signature_of
from workers.data.images import Square, decode_squares, stack_images
from workers.data.stored import MANIFEST_NAME, class_file, map_images, open_stored, write_class, write_manifest

PREPARED_SIZES = (32, 64, 224)
_CHANNELS = 3


@dataclass(frozen=True)
class PrepareSummary:
    """What `prepare` did.

    Attributes:
        num_classes: in the target.
        num_images: in the target, at each size.
        num_resumed: classes that an earlier run had finished.
        skipped: unreadable files that were left out.
    """

    num_classes: int
    num_images: int
    num_resumed: int
    skipped: tuple[str, ...]


def prepare(
    source_folder: Path,
    target_folder: Path,
    sizes: Sequence[int] = PREPARED_SIZES,
    num_processes: int = 1,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    skip_unreadable: bool = False,
) -> PrepareSummary:
    """Decodes every image of `source_folder` (CLASS/*.JPEG) to three channels at every size.

    Classes that an earlier, interrupted run has finished are not done again, unless their files have changed.

    Args:
        source_folder: one subfolder per class.
        target_folder: created where missing; needs 3 x size^2 bytes per image and size.
        sizes: heights and widths in pixels.
        num_processes: classes decoded at the same time; each holds one class at all sizes in memory.
        on_progress: called with (classes done, classes in all), first for those of earlier runs.
        skip_unreadable: leave unreadable files out and list them in the summary.

    Raises:
        NotFoundError: there is no source folder.
        InvalidInputError: fewer than two classes, a class without (readable) images, sizes or processes out of range,
            or an unreadable image, which is named.
    """
    _check(sizes, num_processes)
    jobs = [
        _ClassJob(index, name, files, source_folder, target_folder, tuple(sizes), skip_unreadable)
        for index, (name, files) in enumerate(files_by_class(source_folder).items())
    ]
    target_folder.mkdir(parents=True, exist_ok=True)
    with locked(target_folder / ".lock"):
        for folder in (target_folder / "progress", *(target_folder / str(size) for size in sizes)):
            folder.mkdir(exist_ok=True)
        done: dict[int, _Progress] = {}
        for job in jobs:
            progress = _finished_before(job)
            if progress is not None:
                done[job.index] = progress
        num_resumed = len(done)
        on_progress(num_resumed, len(jobs))
        if num_resumed < len(jobs):
            for size in sizes:  # no reader may take classes for finished whose files are about to change
                (target_folder / str(size) / MANIFEST_NAME).unlink(missing_ok=True)
        for index, progress in _run([job for job in jobs if job.index not in done], num_processes):
            done[index] = progress
            on_progress(len(done), len(jobs))
        results = [done[job.index] for job in jobs]
        for size in sizes:
            records = [ClassRecord(one.name, one.name, one.count, one.sha256[str(size)]) for one in results]
            write_manifest(target_folder / str(size), records, (size, size, _CHANNELS))
    return PrepareSummary(
        num_classes=len(results),
        num_images=sum(one.count for one in results),
        num_resumed=num_resumed,
        skipped=tuple(path for one in results for path in one.skipped),
    )


def prepared_sizes(folder: Path) -> tuple[int, ...]:
    """Image sizes in pixels that a folder holds complete, ascending; none where it was not made by `prepare`."""
    return tuple(sorted(int(path.parent.name) for path in folder.glob(f"[0-9]*/{MANIFEST_NAME}")))


def open_prepared(folder: Path, image_size: int) -> ClassArrays:
    """The images of a prepared folder at one size; none is read before it is asked for.

    Raises:
        NotFoundError: not prepared, or not at that size.
        CorruptArtifactError: the manifest is truncated or altered.
    """
    sizes = prepared_sizes(folder)
    if image_size not in sizes:
        have = f"is prepared for {', '.join(map(str, sizes))} px only" if sizes else "is not a prepared folder"
        raise NotFoundError(f"{folder} {have}; run metasearch data prepare for {image_size} px")
    return open_stored(folder / str(image_size))


@dataclass(frozen=True)
class _ClassJob:
    index: int
    name: str
    files: tuple[Path, ...]
    source_folder: Path
    target_folder: Path
    sizes: tuple[int, ...]
    skip_unreadable: bool

    @property
    def record_path(self) -> Path:
        return self.target_folder / "progress" / f"{self.index:05d}.json"

    def signature(self) -> str:
        """Changes when a file of the class does."""
        return hashlib.sha256(json.dumps(signature_of(self.files, self.source_folder)).encode()).hexdigest()


@dataclass(frozen=True)
class _Progress:
    """A finished class: pixel digests by size, and what it was made from."""

    name: str
    signature: str
    count: int
    sha256: Mapping[str, str]
    skipped: list[str]


def _check(sizes: Sequence[int], num_processes: int) -> None:
    if not sizes or min(sizes) < 1 or len(set(sizes)) < len(sizes):
        raise InvalidInputError(f"sizes must be different numbers of pixels >= 1, got {list(sizes)}; for example 32 64")
    if num_processes < 1:
        raise InvalidInputError(f"num_processes must be >= 1, got {num_processes}")


def _finished_before(job: _ClassJob) -> _Progress | None:
    try:
        progress = _Progress(**json.loads(job.record_path.read_text("utf-8")))
        if (progress.name, progress.signature) != (job.name, job.signature()):
            return None
        if (progress.skipped and not job.skip_unreadable) or not {str(size) for size in job.sizes} <= set(
            progress.sha256
        ):
            return None
        for size in job.sizes:
            map_images(job.target_folder / str(size) / class_file(job.index), progress.count, (size, size, _CHANNELS))
    except (OSError, ValueError, TypeError, CorruptArtifactError):
        return None
    return progress


def _run(jobs: Sequence[_ClassJob], num_processes: int) -> Iterator[tuple[int, _Progress]]:
    if num_processes == 1 or len(jobs) <= 1:
        for job in jobs:
            yield job.index, _prepare_class(job)
        return
    # spawn: a fork of a process with threads (Ray, BLAS) may hang.
    with ProcessPoolExecutor(min(num_processes, len(jobs)), multiprocessing.get_context("spawn")) as executor:
        futures = {executor.submit(_prepare_class, job): job.index for job in jobs}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        finally:
            executor.shutdown(wait=True, cancel_futures=True)


def _prepare_class(job: _ClassJob) -> _Progress:
    """Writes a class at every size, then its record: with the record, the class is finished."""
    signature = job.signature()
    decoded: list[list[Square]] = []
    skipped: list[str] = []
    for path in job.files:
        try:
            decoded.append(decode_squares(path, str(path), job.sizes, _CHANNELS))
        except InvalidInputError:
            if not job.skip_unreadable:
                raise
            skipped.append(str(path))
    if not decoded:
        raise InvalidInputError(f"{job.source_folder}: class {job.name!r} has no readable image; remove its folder")
    digests = {}
    for position, size in enumerate(job.sizes):
        entry = ClassImages(job.name, job.name, stack_images([squares[position] for squares in decoded]))
        digests[str(size)] = record_of(entry, str(job.source_folder)).sha256
        write_class(job.target_folder / str(size), job.index, entry.images)
    progress = _Progress(job.name, signature, len(decoded), digests, skipped)
    growing = job.record_path.with_suffix(".growing")
    growing.write_text(json.dumps(asdict(progress)), "utf-8")
    growing.replace(job.record_path)
    return progress
