"""What requests may ask for, beyond the form that `convert` checks. Raises `FieldError`, which names the field."""

import hashlib
import time
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any

from pydantic import ValidationError

from common.config import StudyConfig
from common.derivation import check_feasible
from common.errors import InvalidInputError
from common.sweep_config import SweepConfig
from common.sweep_space import check_space
from common.tasks import DatasetFile
from coordinator.api.errors import FieldError
from coordinator.api.stubs import search_pb2 as pb
from coordinator.jobs import AdaptSpec, FewShotSpec, Job, JobSpec
from coordinator.store.records import new_job_id
from workers.data.sources import FILE_SUFFIXES, SOURCES

DEFAULT_QUEUE_TIMEOUT_S = 86_400.0
MAX_QUEUE_TIMEOUT_S = 366 * 86_400.0
QUICK_PRIORITY = 8
"""Of few-shot jobs, where the request names none: they take seconds, and somebody waits."""


def new_job(tenant: str, study_id: str, spec: JobSpec, request: pb.CreateJobRequest) -> Job:
    """The job that a request asks for, in state QUEUED."""
    now_s = time.time()
    timeout_s = request.queue_timeout_s or DEFAULT_QUEUE_TIMEOUT_S
    if not 0 < timeout_s <= MAX_QUEUE_TIMEOUT_S:
        raise FieldError("queue_timeout_s", f"must be from 0 to {MAX_QUEUE_TIMEOUT_S:.0f} seconds, got {timeout_s}")
    fields: dict[str, Any] = {"priority": QUICK_PRIORITY} if isinstance(spec, FewShotSpec) else {}
    if request.HasField("priority"):
        fields["priority"] = request.priority
    if request.max_attempts:
        fields["max_attempts"] = request.max_attempts
    try:
        return Job(
            tenant=tenant,
            study=study_id,
            job_id=new_job_id(now_s),
            spec=spec,
            needs_gpu=request.needs_gpu,
            created_s=now_s,
            queue_deadline_s=now_s + timeout_s,
            **fields,
        )
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise FieldError(str(first["loc"][0]), f"{first['msg']}, got {first['input']}") from None


def asked_for(request: pb.CreateJobRequest, job: Job) -> dict[str, Any]:
    """What must be the same for two requests of one id to be the same; the URLs of files are ours to choose."""
    spec = request.spec.SerializeToString(deterministic=True)
    return {
        "spec": hashlib.sha256(spec).hexdigest() if isinstance(job.spec, FewShotSpec) else spec.hex(),
        "priority": job.priority,
        "needs_gpu": job.needs_gpu,
        "queue_timeout_s": request.queue_timeout_s,
        "max_attempts": job.max_attempts,
    }


def check_limits(spec: AdaptSpec, config: StudyConfig) -> None:
    """Refuses limits that no genotype of the study can keep."""
    classes = spec.choice.classes
    ways = len(classes) if isinstance(classes, tuple) else classes or config.families[0].num_ways
    try:
        check_feasible(spec.limits, config.space, config.network, spec.choice.image_size, ways)
    except InvalidInputError as error:
        fields = ("max_params", "max_macs", "max_latency_ms")
        name = next(field for field in fields if getattr(spec.limits, field) is not None)
        if "latency table" in str(error):
            name = "latency_table_json"
        raise FieldError(f"spec.adapt.{name}", str(error)) from None


def check_sources(config: StudyConfig, prefixes: Sequence[str]) -> None:
    """A study may learn from sources that workers know by name, or from allowed URLs; not from just any path."""
    for index, family in enumerate(config.families):
        field = f"config.families.{index}.data"
        if family.data.source not in SOURCES:
            try:
                allowed_file(family.data.source, prefixes)
            except FieldError:
                raise FieldError(
                    f"{field}.source",
                    f"must be one of {', '.join(SOURCES)}, or below an allowed URL, got {family.data.source[:200]!r}",
                ) from None
        if family.data.root is not None and not is_allowed(family.data.root, prefixes):
            raise FieldError(f"{field}.root", f"is not below an allowed URL, got {family.data.root[:200]!r}")


def check_sweep(sweep: SweepConfig, config: StudyConfig, prefixes: Sequence[str]) -> None:
    """A space has to fit the study, and no value of it may name images that the study itself could not."""
    try:
        check_space(sweep.space, config, sweep.seed, lambda varied: check_sources(varied, prefixes))
    except InvalidInputError as error:
        raise FieldError("spec.sweep.config.space", str(error).removeprefix("[space] ")) from None


def allowed_file(url: str, prefixes: Sequence[str], field: str = "spec.adapt.data.url") -> DatasetFile:
    """The file at a URL of a request, which must be below one of the prefixes."""
    if not is_allowed(url, prefixes):
        allowed = ", ".join(prefixes) or "none"
        raise FieldError(field, f"is not below an allowed prefix ({allowed}), got {url[:200]!r}")
    suffix = next((suffix for suffix in FILE_SUFFIXES if url.lower().endswith(suffix)), None)
    if suffix is None:
        raise FieldError(field, f"must end in one of {', '.join(FILE_SUFFIXES)}, got {url[:200]!r}")
    return DatasetFile(url=url, suffix=suffix)


def is_allowed(url: str, prefixes: Sequence[str]) -> bool:
    """Whether a URL is, beyond doubt, below one of the prefixes."""
    # What could mean another place than it seems to: encoded characters, backslashes, steps upwards, chained URLs.
    if any(mark in url for mark in ("%", "\\", "::", "@", "?", "#", ";")) or len(url) > 2000:
        return False
    if not url.isprintable() or " " in url or ".." in PurePosixPath(url).parts:  # URL parsers drop line breaks
        return False
    return any(url.startswith(prefix) for prefix in prefixes)
