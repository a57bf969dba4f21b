"""What holds of a job store whatever happened to it, read from its ledger key by key."""

from collections import Counter
from itertools import pairwise

from coordinator.jobs import ACTIVE, TRANSITIONS, Job, JobState
from coordinator.store.jobs import JobStore
from coordinator.store.ledger import Ledger, Stored
from coordinator.store.records import Head, PriorPointer

_ALL = 1_000_000


def check_invariants(store: JobStore, prefix: str = "") -> list[Job]:
    """Indexes, counters and events fit the jobs of all tenants whose names start with `prefix`.

    Returns:
        The jobs, by key.
    """
    ledger = store.ledger
    records = ledger.scan(f"job/{prefix}", limit=_ALL)
    jobs = [Job.model_validate(stored.record) for stored in records]
    queued = [job for job in jobs if job.state is JobState.QUEUED]
    running = [job for job in jobs if job.state in ACTIVE]

    waiting = sorted(f"queue/{job.tenant}/{9 - job.priority}/{job.job_id}" for job in queued if not job.suspended)
    assert _keys(ledger, f"queue/{prefix}") == waiting
    paused = sorted(f"paused/{job.tenant}/{job.job_id}" for job in queued if job.suspended)
    assert _keys(ledger, f"paused/{prefix}") == paused
    assert _keys(ledger, f"active/{prefix}") == sorted(f"active/{job.tenant}/{job.job_id}" for job in running)
    for tenant in {job.tenant for job in jobs}:
        assert ledger.counter(f"queued/{tenant}") == sum(job.tenant == tenant for job in queued)
        assert ledger.counter(f"running/{tenant}") == sum(job.tenant == tenant for job in running)
    if not prefix:
        finished = Counter(job.state for job in jobs if job.state.is_terminal)
        assert {state: ledger.counter(f"finished/{state}") for state in finished} == finished

    for stored, job in zip(records, jobs, strict=True):
        assert stored.key == f"job/{job.tenant}/{job.study}/{job.job_id}"
        _check_job(job)
        _check_events(ledger.scan(f"event/{job.job_id}/", limit=_ALL), stored, job)
    for head in ledger.scan(f"head/{prefix}", limit=_ALL):
        _check_lineage(ledger, head, {job.job_id: job for job in jobs})
    return jobs


def _keys(ledger: Ledger, prefix: str) -> list[str]:
    return [stored.key for stored in ledger.scan(prefix, limit=_ALL)]


def _check_job(job: Job) -> None:
    assert 0 <= job.failures <= min(job.attempt, job.max_attempts)
    assert (job.result is not None) == (job.state is JobState.SUCCEEDED)
    assert (job.failure is not None) == (job.state is JobState.FAILED)
    assert (job.finished_s is not None) == job.state.is_terminal
    assert (job.started_s is not None) == (job.attempt > 0)
    if job.state is JobState.QUEUED:
        assert job.failures < job.max_attempts


def _check_events(events: list[Stored], record: Stored, job: Job) -> None:
    """They tell the whole story: from QUEUED to the present state, by legal moves, an attempt at a time."""
    told = [Job.model_validate(event.record) for event in events]
    revisions = [int(event.key.rpartition("/")[2]) for event in events]
    assert revisions[0] == 1 and revisions[-1] <= record.revision
    assert all(event.revision == 1 for event in events)
    assert (told[0].state, told[0].attempt) == (JobState.QUEUED, 0)
    for before, after in pairwise(told):
        assert not before.state.is_terminal
        starts = (before.state, after.state) == (JobState.QUEUED, JobState.RUNNING)
        assert after.attempt == before.attempt + starts
        if before.state is after.state:
            assert before.suspended != after.suspended
        else:
            assert (before.state, after.state) in TRANSITIONS
    last = told[-1]
    assert (last.state, last.attempt, last.suspended) == (job.state, job.attempt, job.suspended)
    if job.state.is_terminal:
        assert last == job


def _check_lineage(ledger: Ledger, stored: Stored, jobs: dict[str, Job]) -> None:
    """Every version was made once, by a job of the study, and the head is the last."""
    tenant, study = stored.key.split("/")[1:]
    head = Head.model_validate(stored.record)
    found = ledger.scan(f"prior/{tenant}/{study}/", limit=_ALL)
    pointers = [PriorPointer.model_validate(pointer.record) for pointer in found]
    if not head.digest:
        assert pointers == [] and head.version == 0
        return
    assert [pointer.version for pointer in pointers] == list(range(head.version + 1))
    assert all(pointer.revision == 1 for pointer in found)
    assert pointers[-1].digest == head.digest
    assert all(jobs[pointer.made_by].attempt > 0 for pointer in pointers if pointer.version)
