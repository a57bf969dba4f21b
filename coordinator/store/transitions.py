"""What a job's change of state changes in the ledger, as one transaction. Pure."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from coordinator.jobs import ACTIVE, FewShotSpec, Job, JobState
from coordinator.store.ledger import Add, Delete, Expect, Put, Stored, Transaction
from coordinator.store.records import (
    Quota,
    bytes_counter,
    dump,
    event_key,
    job_key,
    queue_entry,
    queue_key,
    request_key,
)


def creation(
    job: Job, request_id: str | None, quota: Quota, fingerprint_of: Mapping[str, Any] | None
) -> tuple[Transaction, str]:
    """What `create_job` commits, and what tells two requests of one id apart."""
    key = job_key(job.tenant, job.study, job.job_id)
    record = dump(job)
    content = record["spec"] if fingerprint_of is None else fingerprint_of
    fingerprint = hashlib.sha256(json.dumps([job.study, content], sort_keys=True).encode()).hexdigest()
    expects = [Expect(key, 0)]
    changes: list[Put | Delete] = [
        Put(key, record),
        Put(queue_key(job), queue_entry(job)),
        Put(event_key(job, 1), record),
    ]
    if request_id is not None:
        mark = request_key(job.tenant, request_id)
        expects.insert(0, Expect(mark, 0))
        changes.append(Put(mark, {"job": key, "fingerprint": fingerprint}))
    adds = [Add(f"queued/{job.tenant}", 1, quota.max_queued)]
    if isinstance(job.spec, FewShotSpec):  # its images came with the request
        adds.append(Add(bytes_counter(job.tenant), job.spec.num_bytes, quota.max_stored_bytes))
    return Transaction(expects, changes, adds, topic=job.job_id), fingerprint


def change_of(
    stored: Stored,
    before: Job,
    after: Job,
    expects: Sequence[Expect] = (),
    changes: Sequence[Put | Delete] = (),
    quota: Quota | None = None,
) -> Transaction:
    """A job's new content, its indexes, counters and, where the state changed, its event.

    Args:
        stored: its record.
        before: the job in it.
        after: what it becomes.
        expects: further conditions.
        changes: what else changes with it.
        quota: of its tenant, where it starts.
    """
    puts: list[Put | Delete] = [*changes, Put(stored.key, dump(after))]
    adds: list[Add] = []
    if after.state is not before.state or after.attempt != before.attempt or after.suspended != before.suspended:
        puts.append(Put(event_key(after, stored.revision + 1), dump(after)))
    # A paused job counts as queued, but is not in the queue.
    was_waiting, waits = (job.state is JobState.QUEUED and not job.suspended for job in (before, after))
    if waits:
        puts.append(Put(queue_key(after), queue_entry(after)))
    elif was_waiting:
        puts.append(Delete(queue_key(after)))
    was_paused, is_paused = (job.state is JobState.QUEUED and job.suspended for job in (before, after))
    paused_key = f"paused/{after.tenant}/{after.job_id}"
    if is_paused:
        puts.append(Put(paused_key, {"study": after.study}))
    elif was_paused:
        puts.append(Delete(paused_key))
    queued = (after.state is JobState.QUEUED) - (before.state is JobState.QUEUED)
    if queued:
        adds.append(Add(f"queued/{after.tenant}", queued))
    running = (after.state in ACTIVE) - (before.state in ACTIVE)
    active_key = f"active/{after.tenant}/{after.job_id}"
    if running > 0:
        puts.append(Put(active_key, {"study": after.study}))
        adds.append(Add(f"running/{after.tenant}", 1, quota.max_running if quota else None))
    elif running < 0:
        puts.append(Delete(active_key))
        adds.append(Add(f"running/{after.tenant}", -1))
    if after.state.is_terminal and not before.state.is_terminal:
        adds.append(Add(f"finished/{after.state}", 1))
    return Transaction([*expects, Expect(stored.key, stored.revision)], puts, adds, topic=after.job_id)
