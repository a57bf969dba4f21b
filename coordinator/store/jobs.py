"""The job store: studies, priors' pointers, jobs and their queues, on any ledger. Every change is ONE ledger commit.

A change is computed from what was read, by the pure functions of `coordinator.jobs`, and committed on the condition
that what was read is still so; if it is not, it is computed anew. Writes of a coordinator carry its epoch as a further
condition, so one that was replaced can change nothing.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from common.errors import (
    AlreadyExistsError,
    ConflictError,
    NotFoundError,
    QuotaError,
)
from coordinator import jobs
from coordinator.jobs import ACTIVE, AdaptSpec, Failure, FewShotSpec, Job, JobState
from coordinator.store.fenced import MAX_CONFLICTS, MAX_PAGE, FencedLedger, contended
from coordinator.store.ledger import Add, Delete, Expect, Put, Stored, Transaction
from coordinator.store.records import (
    DatasetRecord,
    Head,
    JobView,
    Page,
    Plan,
    PriorPointer,
    QueueEntry,
    Quota,
    RoundRecord,
    Study,
    bytes_counter,
    dump,
    job_key,
    prior_key,
    read_job,
    request_key,
    round_key,
)
from coordinator.store.transitions import change_of, creation

_NEXT_ENTRIES = 32  # of a queue, read at once where its first is not enough


class JobStore(FencedLedger):
    """See the module. Thread-safe.

    Raises:
        UnavailableError: from every method, when the ledger does not answer. Calling again is safe.
    """

    # Studies and priors

    def create_study(self, study: Study, quota: Quota | None = None) -> Study:
        """A new study; its first prior is made by the coordinator (`set_first_prior`). The same again changes nothing.

        Raises:
            AlreadyExistsError: there is another study of that name.
            QuotaError: the tenant has as many studies as its quota allows.
        """
        key = f"study/{study.tenant}/{study.study}"
        head = Put(f"head/{study.tenant}/{study.study}", dump(Head(version=0)))
        adds = [Add(f"studies/{study.tenant}", 1, quota.max_studies if quota else None)]
        blocked = self.ledger.commit(Transaction([Expect(key, 0)], [Put(key, dump(study)), head], adds))
        if blocked is None:
            return study
        if isinstance(blocked, Add):
            raise QuotaError(f"tenant {study.tenant} has {blocked.at_most} studies, its limit")
        existing = self.get_study(study.tenant, study.study)
        if dump(existing)["config"] != dump(study)["config"]:
            raise AlreadyExistsError(f"studies/{study.study} exists with another configuration; choose another name")
        return existing

    def set_first_prior(self, epoch: int, tenant: str, study: str, pointer: PriorPointer) -> None:
        """Gives a new study version 0 of its prior, whose files are stored already. Does nothing if it has one."""
        stored = self._get(f"head/{tenant}/{study}", f"studies/{study}")
        if Head.model_validate(stored.record).digest:
            return
        head = Head(version=pointer.version, digest=pointer.digest)
        changes = [Put(stored.key, dump(head)), Put(prior_key(tenant, study, pointer.version), dump(pointer))]
        self._commit_as(epoch, Transaction([Expect(stored.key, stored.revision)], changes))

    def get_study(self, tenant: str, study: str) -> Study:
        """A study.

        Raises:
            NotFoundError: the tenant has none of that name.
        """
        return Study.model_validate(self._get(f"study/{tenant}/{study}", f"studies/{study}").record)

    def list_studies(self, tenant: str, limit: int, token: str) -> Page:
        """Studies of a tenant, by name."""
        return self._page(f"study/{tenant}/", limit, token, lambda stored: Study.model_validate(stored.record))

    def head(self, tenant: str, study: str) -> Head:
        """The latest prior of a study."""
        return Head.model_validate(self._get(f"head/{tenant}/{study}", f"studies/{study}").record)

    def get_prior(self, tenant: str, study: str, version: int) -> PriorPointer:
        """A version of the prior.

        Raises:
            NotFoundError: there is none, or it was pruned.
        """
        name = f"studies/{study}/priors/{version}"
        return PriorPointer.model_validate(self._get(prior_key(tenant, study, version), name).record)

    def list_priors(self, tenant: str, study: str, limit: int, token: str) -> Page:
        """Versions of the prior that are kept, the latest first."""
        read: Callable[[Stored], Any] = lambda stored: PriorPointer.model_validate(stored.record)  # noqa: E731
        return self._page(f"prior/{tenant}/{study}/", limit, token, read, reverse=True)

    def rounds(self, tenant: str, study: str) -> Iterator[RoundRecord]:
        """What made each version of the prior but the first, in order; of versions that were pruned, too."""
        return (RoundRecord.model_validate(stored.record) for stored in self.records(f"round/{tenant}/{study}/"))

    def needed_versions(self, tenant: str, study: str) -> set[int]:
        """Versions of the prior that jobs of a study, queued, paused or running, start from."""
        # In this order, a job that is paused or resumed meanwhile is met at least once.
        keys = [f"paused/{tenant}/", f"queue/{tenant}/", f"paused/{tenant}/", f"active/{tenant}/"]
        ids = [
            entry.key.rpartition("/")[2]
            for key in keys
            for entry in self.records(key)
            if entry.record["study"] == study
        ]
        found: set[int] = set()
        for start in range(0, len(ids), MAX_PAGE):
            for stored in self.ledger.get(
                *(job_key(tenant, study, job_id) for job_id in ids[start : start + MAX_PAGE])
            ):
                if stored is not None:
                    job = read_job(stored)
                    found.add(-1 if job.base_version is None else job.base_version)
                    if isinstance(job.spec, AdaptSpec | FewShotSpec) and job.spec.prior_version is not None:
                        found.add(job.spec.prior_version)
        return found

    def forget_prior(self, epoch: int, tenant: str, study: str, version: int) -> None:
        """Removes the pointer to a version whose files are about to be removed."""
        self._commit_as(epoch, Transaction(changes=[Delete(prior_key(tenant, study, version))]))

    def open_plan(self, epoch: int, tenant: str, study: str, plan: Plan) -> None:
        """Stores what the next round will do. An open plan of the same job and version is replaced: by the same, or in
        buffered mode by that of whichever tasks were first after a crash.

        Raises:
            ConflictError: the prior has moved on, or another coordinator is in charge.
        """
        self._advance_head(epoch, tenant, study, plan.base_version, lambda head: head.model_copy(update={"plan": plan}))

    def advance(
        self,
        epoch: int,
        tenant: str,
        study: str,
        pointer: PriorPointer,
        attempt: int,
        now_s: float,
        result: Mapping[str, Any] | None = None,
    ) -> None:
        """The last step of a round: the plan is closed and the prior has a new version, and if there is a `result`, the
        job that made it has succeeded; all or nothing.

        Does nothing if it was done before.

        Raises:
            ConflictError: the prior is not the version before, the plan is not open, the job does not run in that
                attempt, or another coordinator is in charge.
        """
        for _ in range(MAX_CONFLICTS):
            stored_head, stored_job = self.ledger.get(f"head/{tenant}/{study}", job_key(tenant, study, pointer.made_by))
            if stored_head is None or stored_job is None:
                raise NotFoundError(f"there is no study {study} with a job {pointer.made_by}")
            head, job = Head.model_validate(stored_head.record), read_job(stored_job)
            if (head.version, head.digest) == (pointer.version, pointer.digest) and head.plan is None:
                return
            if head.version != pointer.version - 1 or head.plan is None or head.plan.job_id != pointer.made_by:
                raise ConflictError(
                    f"studies/{study} is at version {head.version} with "
                    f"{'no open round' if head.plan is None else f'a round of job {head.plan.job_id}'}; "
                    f"version {pointer.version} of job {pointer.made_by} cannot follow"
                )
            if result is None:
                jobs.check_holder(job, epoch, attempt, JobState.RUNNING)
            changed = job if result is None else jobs.succeeded(job, epoch, attempt, now_s, result)
            new_head = Head(version=pointer.version, digest=pointer.digest)
            transaction = change_of(
                stored_job,
                job,
                changed,
                [Expect(stored_head.key, stored_head.revision)],
                [
                    Put(stored_head.key, dump(new_head)),
                    Put(prior_key(tenant, study, pointer.version), dump(pointer)),
                    Put(round_key(tenant, study, pointer.version), dump(_round_of(pointer))),
                ],
            )
            blocked = self._commit_as(epoch, transaction)
            if blocked is None:
                return
        raise contended()

    # Jobs, as users see them

    def create_job(
        self, job: Job, request_id: str | None, quota: Quota, fingerprint_of: Mapping[str, Any] | None = None
    ) -> Job:
        """Queues a job. The same request id with the same content gives the job that it made the first time.

        Args:
            job: in state QUEUED, with a fresh id.
            request_id: chosen by the client.
            quota: of the tenant.
            fingerprint_of: what must be the same for a request to be the same; the spec where not given.

        Raises:
            AlreadyExistsError: the request id made another job.
            QuotaError: too many jobs of the tenant are queued, or its data would exceed its limit.
        """
        transaction, fingerprint = creation(job, request_id, quota, fingerprint_of)
        return self.created(job, request_id, quota, fingerprint, self.ledger.commit(transaction))

    def created(
        self, job: Job, request_id: str | None, quota: Quota, fingerprint: str, blocked: Expect | Add | None
    ) -> Job:
        """The job that a `creation`, whose commit answered `blocked`, made; or an earlier one of the same request.

        Raises:
            AlreadyExistsError, QuotaError: see `create_job`.
        """
        if blocked is None:
            return job
        if isinstance(blocked, Add):
            if blocked.counter == bytes_counter(job.tenant):
                raise _no_room(job.tenant, blocked)
            raise QuotaError(f"{quota.max_queued} jobs of tenant {job.tenant} are queued, its limit; try again later")
        mark = request_key(job.tenant, request_id)
        if blocked.key != mark:
            raise AlreadyExistsError(f"{job.name} exists")
        (request,) = self.ledger.get(mark)
        if request is None or request.record["fingerprint"] != fingerprint:
            raise AlreadyExistsError(f"request_id {request_id} made another job; use a new one for a new request")
        return read_job(self._get(request.record["job"], "the job of the request"))

    def get_job(self, tenant: str, study: str, job_id: str) -> JobView:
        """A job.

        Raises:
            NotFoundError: the tenant's study has none of that id.
        """
        stored = self._get(job_key(tenant, study, job_id), f"studies/{study}/jobs/{job_id}")
        return JobView(read_job(stored), stored.revision)

    def list_jobs(
        self, tenant: str, study: str, limit: int, token: str, states: frozenset[JobState] = frozenset()
    ) -> Page:
        """Jobs of a study, the youngest first. With `states`, pages may be short, even empty, before the end."""
        page = self._page(f"job/{tenant}/{study}/", limit, token, read_job, reverse=True)
        items = [job for job in page.items if not states or job.state in states]
        return Page(items, page.next_token)

    def news(self, tenant: str, study: str, job_id: str, after_revision: int) -> tuple[JobView, list[JobView]]:
        """A job, and what `events` has of it.

        Raises:
            NotFoundError: the tenant's study has none of that id.
        """
        view = self.get_job(tenant, study, job_id)
        return view, self.events(job_id, after_revision) if view.revision > after_revision else []

    def events(self, job_id: str, after_revision: int, limit: int = MAX_PAGE) -> list[JobView]:
        """The job after each change of its state later than a revision, in order."""
        stored = self.ledger.scan(f"event/{job_id}/", f"event/{job_id}/{after_revision:010d}", limit)
        return [JobView(read_job(event), int(event.key.rpartition("/")[2])) for event in stored]

    def cancel_job(self, tenant: str, study: str, job_id: str, now_s: float) -> Job:
        """See `jobs.cancelled`."""
        return self._change(tenant, study, job_id, lambda job: jobs.cancelled(job, now_s))

    def suspend_job(self, tenant: str, study: str, job_id: str, suspended: bool) -> Job:
        """See `jobs.suspended`."""
        return self._change(tenant, study, job_id, lambda job: jobs.suspended(job, suspended))

    # Uploaded data

    def add_dataset(self, tenant: str, dataset: DatasetRecord, quota: Quota) -> DatasetRecord:
        """Records an uploaded file; the same file again is the same record.

        Raises:
            QuotaError: the tenant's data would exceed its limit.
        """
        key = f"dataset/{tenant}/{dataset.sha256}"
        adds = [Add(bytes_counter(tenant), dataset.num_bytes, quota.max_stored_bytes)]
        blocked = self.ledger.commit(Transaction([Expect(key, 0)], [Put(key, dump(dataset))], adds))
        if isinstance(blocked, Add):
            raise _no_room(tenant, blocked)
        return dataset if blocked is None else self.get_dataset(tenant, dataset.sha256)

    def get_dataset(self, tenant: str, sha256: str) -> DatasetRecord:
        """An uploaded file.

        Raises:
            NotFoundError: the tenant has none of that hash.
        """
        return DatasetRecord.model_validate(self._get(f"dataset/{tenant}/{sha256}", f"datasets/{sha256}").record)

    def list_datasets(self, tenant: str, limit: int, token: str) -> Page:
        """Uploaded files of a tenant."""
        read: Callable[[Stored], Any] = lambda stored: DatasetRecord.model_validate(stored.record)  # noqa: E731
        return self._page(f"dataset/{tenant}/", limit, token, read)

    # Jobs, as the coordinator sees them

    def queues(self, per_tenant: int | None = None) -> dict[str, Iterator[QueueEntry]]:
        """Jobs in the queue of every tenant that has any, in order of priority, then submission.

        They are read as one goes on: whoever looks for one that can start mostly needs the first alone.

        Args:
            per_tenant: no more than these of each; None for all.
        """
        queues: dict[str, Iterator[QueueEntry]] = {}
        after = ""
        while first := self.ledger.scan("queue/", after, 1):
            tenant = first[0].key.split("/")[1]
            queues[tenant] = islice(self._queue(tenant, first), per_tenant)
            after = f"queue/{tenant}/\U0010fffe"
        return queues

    def _queue(self, tenant: str, found: list[Stored]) -> Iterator[QueueEntry]:
        """A tenant's queue, of which the first entry was found."""
        num_entries = _NEXT_ENTRIES
        while found:
            for stored in found:
                yield QueueEntry.model_validate(stored.record)
            found, num_entries = self.ledger.scan(f"queue/{tenant}/", found[-1].key, num_entries), MAX_PAGE

    def active(self) -> list[Job]:
        """All jobs that run, in whoever's hands."""
        found: list[Job] = []
        after = ""
        while entries := self.ledger.scan("active/", after, MAX_PAGE):
            keys = [
                job_key(entry.key.split("/")[1], entry.record["study"], entry.key.rpartition("/")[2])
                for entry in entries
            ]
            jobs_found = [read_job(stored) for stored in self.ledger.get(*keys) if stored is not None]
            found += [job for job in jobs_found if job.state in ACTIVE]
            after = entries[-1].key
        return found

    def start(self, epoch: int, job: Job, now_s: float, base_version: int | None, quota: Quota) -> Job:
        """See `jobs.started`.

        Raises:
            QuotaError: too many jobs of the tenant run.
        """
        return self._change(
            job.tenant,
            job.study,
            job.job_id,
            lambda found: jobs.started(found, epoch, now_s, base_version),
            epoch,
            quota,
        )

    def report(self, epoch: int, job: Job, progress: Mapping[str, Any]) -> Job:
        """See `jobs.reported`. The answer says whether the job is to be cancelled or paused."""
        change: Callable[[Job], Job] = lambda found: jobs.reported(found, epoch, job.attempt, progress)  # noqa: E731
        return self._change(job.tenant, job.study, job.job_id, change, epoch)

    def requeue(self, epoch: int, job: Job, now_s: float, back_off_s: float, uses_attempt: bool, note: str) -> Job:
        """See `jobs.requeued`. Of a job that another coordinator held, too: `epoch` is the caller's."""
        change: Callable[[Job], Job] = lambda found: jobs.requeued(  # noqa: E731
            found, job.epoch, job.attempt, now_s, back_off_s, uses_attempt, note
        )
        return self._change(job.tenant, job.study, job.job_id, change, epoch)

    def succeed(self, epoch: int, job: Job, now_s: float, result: Mapping[str, Any]) -> Job:
        """See `jobs.succeeded`. Again, after an answer was lost, changes nothing."""

        def change(found: Job) -> Job:
            mine = (found.epoch, found.attempt) == (epoch, job.attempt)
            return (
                found
                if mine and found.state is JobState.SUCCEEDED
                else jobs.succeeded(found, epoch, job.attempt, now_s, result)
            )

        return self._change(job.tenant, job.study, job.job_id, change, epoch)

    def fail(self, epoch: int, job: Job, now_s: float, failure: Failure) -> Job:
        """See `jobs.failed`."""

        def change(found: Job) -> Job:
            mine = (found.epoch, found.attempt) == (epoch, job.attempt)
            return (
                found
                if mine and found.state is JobState.FAILED
                else jobs.failed(found, epoch, job.attempt, now_s, failure)
            )

        return self._change(job.tenant, job.study, job.job_id, change, epoch)

    def confirm_cancel(self, epoch: int, job: Job, now_s: float) -> Job:
        """See `jobs.cancel_confirmed`."""

        def change(found: Job) -> Job:
            if found.state is JobState.CANCELLED:
                return found
            return jobs.cancel_confirmed(found, epoch, job.attempt, now_s)

        return self._change(job.tenant, job.study, job.job_id, change, epoch)

    def give_up(self, epoch: int, job: Job, now_s: float, failure: Failure) -> Job:
        """See `jobs.given_up`."""
        change: Callable[[Job], Job] = lambda found: jobs.given_up(found, now_s, failure)  # noqa: E731
        return self._change(job.tenant, job.study, job.job_id, change, epoch)

    def counts(self, tenants: Sequence[str]) -> dict[str, dict[str, int]]:
        """Queued and running jobs of tenants."""
        return {
            tenant: {name: self.ledger.counter(f"{name}/{tenant}") for name in ("queued", "running", "bytes")}
            for tenant in tenants
        }

    # How a change is made

    def _change(
        self,
        tenant: str,
        study: str,
        job_id: str,
        change: Callable[[Job], Job],
        epoch: int | None = None,
        quota: Quota | None = None,
    ) -> Job:
        for _ in range(MAX_CONFLICTS):
            stored = self._get(job_key(tenant, study, job_id), f"studies/{study}/jobs/{job_id}")
            before = read_job(stored)
            after = change(before)
            if after == before:
                return before
            transaction = change_of(stored, before, after, quota=quota)
            blocked = self.ledger.commit(transaction) if epoch is None else self._commit_as(epoch, transaction)
            if blocked is None:
                return after
            if isinstance(blocked, Add):
                raise QuotaError(f"tenant {tenant} runs as many jobs as it may; the job stays queued")
        raise contended()

    def _advance_head(self, epoch: int, tenant: str, study: str, version: int, change: Callable[[Head], Head]) -> None:
        for _ in range(MAX_CONFLICTS):
            stored = self._get(f"head/{tenant}/{study}", f"studies/{study}")
            head = Head.model_validate(stored.record)
            if head.version != version:
                raise ConflictError(f"studies/{study} is at version {head.version}, not {version}")
            transaction = Transaction([Expect(stored.key, stored.revision)], [Put(stored.key, dump(change(head)))])
            if self._commit_as(epoch, transaction) is None:
                return
        raise contended()


def _round_of(pointer: PriorPointer) -> RoundRecord:
    return RoundRecord(version=pointer.version, made_by=pointer.made_by, metrics=pointer.metrics, intake=pointer.intake)


def _no_room(tenant: str, blocked: Add) -> QuotaError:
    return QuotaError(f"{blocked.amount} bytes more exceed the {blocked.at_most} that tenant {tenant} may store")
