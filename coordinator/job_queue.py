"""What the queues hold for one coordinator: which job starts next, how much would start with more workers, and which
jobs have waited too long. It looks, and changes nothing."""

from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Protocol

from coordinator.fairness import num_eligible, pick
from coordinator.jobs import Failure, FailureReason, FewShotSpec, Job
from coordinator.pool import MAX_IN_FLIGHT
from coordinator.scaling import Load
from coordinator.settings import ServiceSettings
from coordinator.store.fenced import MAX_PAGE
from coordinator.store.jobs import JobStore

_QUICK_LOOK = 32


class Room(Protocol):
    """How much a pool's workers can take; see `coordinator.pool.RayPool`."""

    gpus_per_worker: float

    @property
    def num_workers(self) -> int:
        """Workers that run."""
        ...

    @property
    def max_workers(self) -> int:
        """The most workers that there may be."""
        ...

    @property
    def num_pending(self) -> int:
        """Calls without an outcome yet, but for quick ones."""
        ...


class Running:
    """The jobs that run, as far as it matters to those that wait: counted, whatever their number.

    Attributes:
        by_tenant: how many each has.
        num_quick: those of them that are few-shot jobs.
        moving: (tenant, study) whose prior is being moved.
    """

    def __init__(self) -> None:
        self.by_tenant: Counter[str] = Counter()
        self.num_quick = 0
        self.moving: frozenset[tuple[str, str]] = frozenset()

    @property
    def num_jobs(self) -> int:
        """All of them."""
        return self.by_tenant.total()

    def add(self, job: Job) -> None:
        """A job has started."""
        self.by_tenant[job.tenant] += 1
        self.num_quick += isinstance(job.spec, FewShotSpec)
        if job.spec.moves_prior:
            self.moving |= {(job.tenant, job.study)}

    def remove(self, job: Job) -> None:
        """A job that was added has ended."""
        self.by_tenant[job.tenant] -= 1
        self.num_quick -= isinstance(job.spec, FewShotSpec)
        if job.spec.moves_prior:
            self.moving -= {(job.tenant, job.study)}


@dataclass(frozen=True)
class Openings:
    """For which kinds of job workers have room."""

    quick: bool
    long: bool

    def __bool__(self) -> bool:
        return self.quick or self.long


class JobQueue:
    """All tenants' queues, seen with the workers that there are.

    Args:
        store: of jobs.
        room: the workers.
        settings: quotas.
        now_s: seconds since 1970.
        capacity: what the cluster has, in words, for jobs that find no resources.
    """

    def __init__(
        self, store: JobStore, room: Room, settings: ServiceSettings, now_s: Callable[[], float], capacity: str
    ) -> None:
        self._store = store
        self._room = room
        self._settings = settings
        self._now_s = now_s
        self._capacity = capacity

    def openings(self, running: Running) -> Openings:
        """What could start beside the jobs that run, if there is any."""
        room = MAX_IN_FLIGHT * self._room.num_workers
        num_long = running.num_jobs - running.num_quick
        return Openings(running.num_quick < room, max(num_long, self._room.num_pending) < room)

    def next_job(self, running: Running, openings: Openings, refused: Collection[str]) -> Job | None:
        """The job to start next, see `coordinator.fairness.pick`; none of the tenants in `refused`."""
        # Quick jobs are in front; where the others have to wait anyway, nobody looks further.
        queues = self._store.queues(None if openings.long else _QUICK_LOOK)
        quotas = {tenant: self._settings.quota_of(tenant) for tenant in queues}
        entry = pick(
            {
                tenant: entries
                for tenant, entries in queues.items()
                if running.by_tenant[tenant] < quotas[tenant].max_running and tenant not in refused
            },
            running.by_tenant,
            {tenant: quota.weight for tenant, quota in quotas.items()},
            running.moving,
            self._room.gpus_per_worker > 0,
            self._now_s(),
            openings.quick,
            openings.long,
        )
        return None if entry is None else self._store.get_job(entry.tenant, entry.study, entry.job_id).job

    def demand(self, running: Running) -> Load:
        """Jobs that would start if there were more workers; as many as could have any added, if there are more."""
        if self._room.max_workers <= self._room.num_workers:
            return Load()
        most = max(self._room.max_workers - self._room.num_pending, 0)
        num_quick = num_long = 0
        for tenant, entries in self._store.queues(max(most, _QUICK_LOOK)).items():
            quick, long = num_eligible(entries, running.moving, self._room.gpus_per_worker > 0, self._now_s())
            num_quick += quick
            num_long += min(long, max(self._settings.quota_of(tenant).max_running - running.by_tenant[tenant], 0))
        return Load(min(num_long, most), num_quick)

    def late(self) -> Iterator[tuple[Job, Failure]]:
        """Jobs that did not start before their deadline, and why."""
        # Reading a thousand takes some 20 ms. Those further back are told that they are late once they come closer.
        for entries in self._store.queues(MAX_PAGE).values():
            for entry in entries:
                if entry.queue_deadline_s is None or entry.queue_deadline_s > self._now_s():
                    continue
                job = self._store.get_job(entry.tenant, entry.study, entry.job_id).job
                if job.attempt:
                    continue  # it was started in time, and is back through no fault of its own
                lacks_gpu = job.needs_gpu and not self._room.gpus_per_worker
                asked = "it asked for a GPU" if lacks_gpu else "workers were busy"
                message = f"it could not start before its deadline: {asked}; {self._capacity}"
                yield job, Failure(reason=FailureReason.RESOURCE_UNAVAILABLE, message=message)
