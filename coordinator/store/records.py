"""What the job store keeps: its values, and the keys that they are under.

Keys. Tenants, studies and ids contain no slash.
    epoch                                  its revision is the epoch of the coordinator in charge
    beat                                   rises while a coordinator lives
    study/TENANT/STUDY                     configuration
    head/TENANT/STUDY                      latest prior, and the plan of the round that is open
    prior/TENANT/STUDY/VERSION             a prior: where it is, its digest
    job/TENANT/STUDY/ID                    a job
    request/TENANT/REQUEST_ID              which job a request made
    queue/TENANT/PRIORITY/ID               jobs that may start, in order
    active/TENANT/ID                       jobs that run
    paused/TENANT/ID                       jobs that would be in the queue, were they not paused
    event/ID/REVISION                      a job after each change of state
    dataset/TENANT/SHA256                  an uploaded file
Counters: queued/TENANT, running/TENANT, studies/TENANT, bytes/TENANT, finished/STATE.
"""

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import Field

from common.config import Frozen
from common.intake import Intake
from coordinator.jobs import FewShotSpec, Job
from coordinator.store.ledger import Stored

_PRIORITIES = 10


class Quota(Frozen):
    """Limits and share of one tenant."""

    max_queued: int = Field(10_000, ge=0)
    max_running: int = Field(1_000, ge=0)
    max_studies: int = Field(1_000, ge=0)
    max_stored_bytes: int = Field(64 << 30, ge=0)
    """Of uploaded data."""
    weight: float = Field(1.0, gt=0)
    """Share of the cluster beside other tenants that have work queued."""


class Study(Frozen):
    """One lineage of priors."""

    tenant: str
    study: str
    config: Mapping[str, Any]
    """A resolved `StudyConfig`."""
    created_s: float

    @property
    def name(self) -> str:
        """Its resource name."""
        return f"studies/{self.study}"


class PriorPointer(Frozen):
    """Where a version of the prior is, and what it is."""

    version: int
    digest: str
    """See `Prior.digest`."""
    stem: str
    """Name of its files, see `common.artifacts`."""
    created_s: float
    made_by: str = ""
    """Job that made it; empty for version 0."""
    metrics: Mapping[str, float] = {}
    """Of its round."""
    intake: Intake | None = None
    """Which tasks made it, where the schedule leaves that to chance."""


class RoundRecord(Frozen):
    """What a round of meta-training measured; it stays when its prior is pruned."""

    version: int
    """That it made."""
    made_by: str
    metrics: Mapping[str, float]
    intake: Intake | None = None
    """See `PriorPointer`."""


class Plan(Frozen):
    """A round that is under way; in buffered mode, a full buffer."""

    job_id: str
    base_version: int
    task_ids: tuple[str, ...]
    rule: str
    base_versions: tuple[int, ...] = ()
    """In buffered mode, the version that each task began from."""


class Head(Frozen):
    """The latest prior of a study."""

    version: int
    digest: str = ""
    """Empty until the coordinator has made version 0."""
    plan: Plan | None = None


class DatasetRecord(Frozen):
    """An uploaded file."""

    sha256: str
    num_bytes: int
    suffix: str
    url: str
    created_s: float
    title: str = ""


class QueueEntry(Frozen):
    """What must be known of a queued job to choose which one starts."""

    tenant: str
    study: str
    job_id: str
    moves_prior: bool = False
    is_quick: bool = False
    kind: str = ""
    created_s: float = 0.0
    needs_gpu: bool = False
    not_before_s: float = 0.0
    queue_deadline_s: float | None = None


@dataclass(frozen=True)
class JobView:
    """A job as of a revision; revisions order what happened to it."""

    job: Job
    revision: int


@dataclass(frozen=True)
class Page:
    """Some of a list, and where to go on; no token at the end."""

    items: Sequence[Any]
    next_token: str


def new_job_id(now_s: float) -> str:
    """A fresh id. Ids of later jobs sort after those of earlier ones, as far as the machines' clocks agree."""
    return f"{int(now_s * 1000):012x}{secrets.token_hex(5)}"


def read_job(stored: Stored) -> Job:
    """A job from its record."""
    return Job.model_validate(stored.record)


def dump(value: Frozen) -> dict[str, Any]:
    """The record of a value, without what is as by default. Discriminators are always in it."""
    record = value.model_dump(mode="json", exclude_defaults=True)
    if isinstance(value, Job):
        record["spec"]["kind"] = value.spec.kind
        record["state"] = str(value.state)
    return record


def job_key(tenant: str, study: str, job_id: str) -> str:
    """Where a job is."""
    return f"job/{tenant}/{study}/{job_id}"


def request_key(tenant: str, request_id: str | None) -> str:
    """Where the mark of a request is."""
    return f"request/{tenant}/{request_id}"


def prior_key(tenant: str, study: str, version: int) -> str:
    """Where a version of a prior is."""
    return f"prior/{tenant}/{study}/{version:08d}"


def round_key(tenant: str, study: str, version: int) -> str:
    """Where the round is that made a version."""
    return f"round/{tenant}/{study}/{version:08d}"


def queue_key(job: Job) -> str:
    """Where a queued job stands."""
    return f"queue/{job.tenant}/{_PRIORITIES - 1 - job.priority}/{job.job_id}"


def queue_entry(job: Job) -> dict[str, Any]:
    """The record there."""
    entry = QueueEntry(
        tenant=job.tenant,
        study=job.study,
        job_id=job.job_id,
        moves_prior=job.spec.moves_prior,
        is_quick=isinstance(job.spec, FewShotSpec),
        kind=job.spec.kind,
        created_s=job.created_s,
        needs_gpu=job.needs_gpu,
        not_before_s=job.not_before_s,
        queue_deadline_s=job.queue_deadline_s,
    )
    return entry.model_dump(mode="json", exclude_defaults=True)


def bytes_counter(tenant: str) -> str:
    """Counts what a tenant has uploaded."""
    return f"bytes/{tenant}"


def event_key(job: Job, revision: int) -> str:
    """Where a job is kept as it was after a change of its state."""
    return f"event/{job.job_id}/{revision:010d}"
