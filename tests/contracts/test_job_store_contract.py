"""What the job store does, over each backend."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from contracts.backends import Backend
from contracts.invariants import check_invariants

from common.config import DatasetRef
from common.errors import AlreadyExistsError, ConflictError, NotFoundError, QuotaError
from common.tasks import TaskChoice
from coordinator.jobs import AdaptSpec, Failure, FailureReason, Job, JobState, MetaTrainSpec
from coordinator.store.fenced import SupersededError
from coordinator.store.jobs import JobStore
from coordinator.store.ledger import Add, Delete, Expect, Transaction
from coordinator.store.records import DatasetRecord, Head, Plan, PriorPointer, Quota, Study, new_job_id
from coordinator.store.transitions import creation

QUOTA = Quota()
FAILURE = Failure(reason=FailureReason.RESOURCE_UNAVAILABLE, message="no GPU")


def adapt(**changes: Any) -> AdaptSpec:
    choice = TaskChoice(data=DatasetRef(source="digits"), image_size=8, classes=("0", "1"))
    return AdaptSpec(choice=choice).model_copy(update=changes)


def job(job_id: str, tenant: str = "a", study: str = "s", **changes: Any) -> Job:
    return Job(tenant=tenant, study=study, job_id=job_id, created_s=1.0, **({"spec": adapt()} | changes))


def created(store: JobStore, job_id: str, **changes: Any) -> Job:
    return store.create_job(job(job_id, **changes), None, QUOTA)


def created_together(store: JobStore, wanted: Sequence[Job], request_ids: Sequence[str | None]) -> list[Job]:
    """In one call of the ledger, as a gateway does."""
    creations = [creation(*one, QUOTA, None) for one in zip(wanted, request_ids, strict=True)]
    answers = store.ledger.submit([transaction for transaction, _ in creations]).result()
    return [
        store.created(one, request_id, QUOTA, fingerprint, blocked)
        for one, request_id, (_, fingerprint), blocked in zip(wanted, request_ids, creations, answers, strict=True)
    ]


def running(store: JobStore, epoch: int, job_id: str, **changes: Any) -> Job:
    return store.start(epoch, created(store, job_id, **changes), 10.0, 0, QUOTA)


def pointer(version: int, made_by: str = "", digest: str | None = None) -> PriorPointer:
    return PriorPointer(
        version=version,
        digest=digest or f"digest-{version}",
        stem=f"priors/{version}",
        created_s=float(version),
        made_by=made_by,
        metrics={"loss": 0.5} if version else {},
    )


def with_study(store: JobStore, epoch: int, tenant: str = "a", study: str = "s") -> None:
    store.create_study(Study(tenant=tenant, study=study, config={"rounds": 3}, created_s=1.0))
    store.set_first_prior(epoch, tenant, study, pointer(0))


def queue_ids(store: JobStore, tenant: str = "a") -> list[str]:
    return [entry.job_id for entry in store.queues().get(tenant, [])]


def states(store: JobStore, job_id: str) -> list[JobState]:
    return [view.job.state for view in store.events(job_id, 0)]


# Creation


@pytest.mark.parametrize(
    "wanted",
    [
        job("j1"),
        job("j1", spec=MetaTrainSpec()),
        job("j1", spec=MetaTrainSpec(until_version=3), priority=0, needs_gpu=True, max_attempts=1),
        job(
            "j1",
            spec=adapt(prior_version=0, steps=5, contribute=True, derivation="top2_pairs"),
            queue_deadline_s=99.5,
            progress={"done": 1, "nested": [[], {}, None, 0.1]},
            note="naïve \0",
        ),
    ],
)
def test_a_job_comes_back_as_it_was_created(store: JobStore, wanted: Job) -> None:
    assert store.create_job(wanted, None, QUOTA) == wanted
    view = store.get_job("a", "s", "j1")
    assert (view.job, view.revision) == (wanted, 1)
    (event,) = store.events("j1", 0)
    assert event == view
    (entry,) = store.queues()["a"]
    assert (entry.tenant, entry.study, entry.job_id) == ("a", "s", "j1")
    assert (entry.moves_prior, entry.needs_gpu) == (wanted.spec.moves_prior, wanted.needs_gpu)
    assert entry.queue_deadline_s == wanted.queue_deadline_s
    assert store.counts(["a"]) == {"a": {"queued": 1, "running": 0, "bytes": 0}}
    check_invariants(store)


def test_a_repeated_request_gives_the_first_job_as_it_is_now(store: JobStore) -> None:
    epoch = store.take_charge("c")
    first = store.create_job(job("j1"), "request", QUOTA)
    assert store.create_job(job("j2"), "request", QUOTA) == first
    started = store.start(epoch, first, 10.0, 0, QUOTA)
    assert store.create_job(job("j3"), "request", QUOTA) == started
    assert store.create_job(job("j3"), "request", Quota(max_queued=0)) == started
    assert len(check_invariants(store)) == 1


@pytest.mark.parametrize("changes", [{"spec": adapt(steps=7)}, {"spec": MetaTrainSpec()}, {"study": "another"}])
def test_a_request_id_for_something_else_is_refused(store: JobStore, changes: dict[str, Any]) -> None:
    store.create_job(job("j1"), "request", QUOTA)
    with pytest.raises(AlreadyExistsError, match="request"):
        store.create_job(job("j2", **changes), "request", QUOTA)
    assert len(check_invariants(store)) == 1
    assert store.counts(["a"])["a"]["queued"] == 1


def test_a_fingerprint_says_what_is_the_same(store: JobStore) -> None:
    first = store.create_job(job("j1"), "request", QUOTA, {"b": 1, "a": [2]})
    assert store.create_job(job("j2", priority=9), "request", QUOTA, {"a": [2], "b": 1}) == first
    with pytest.raises(AlreadyExistsError):
        store.create_job(job("j2"), "request", QUOTA, {"a": [3], "b": 1})


def test_request_ids_of_tenants_are_apart(store: JobStore) -> None:
    for tenant in ("a", "ab"):
        assert store.create_job(job(f"j-{tenant}", tenant), "request", QUOTA).tenant == tenant
    assert len(check_invariants(store)) == 2


def test_an_id_is_used_once(store: JobStore) -> None:
    created(store, "j1")
    with pytest.raises(AlreadyExistsError, match="j1 exists"):
        created(store, "j1", priority=9)
    with pytest.raises(AlreadyExistsError, match="j1 exists"):
        store.create_job(job("j1"), "request", QUOTA)
    assert store.create_job(job("j2"), "request", QUOTA).job_id == "j2"
    assert queue_ids(store) == ["j1", "j2"]


def test_a_request_by_many_at_once_makes_one_job(store: JobStore) -> None:
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda n: store.create_job(job(f"j{n}"), "request", QUOTA), range(24)))
    assert len({found.job_id for found in made}) == 1
    assert len(check_invariants(store)) == 1


def test_a_quota_bounds_what_waits(store: JobStore) -> None:
    quota = Quota(max_queued=2)
    epoch = store.take_charge("c")
    for job_id in ("j1", "j2"):
        store.create_job(job(job_id), None, quota)
    with pytest.raises(QuotaError, match="2 jobs of tenant a"):
        store.create_job(job("j3"), "request", quota)
    store.create_job(job("other", "ab"), None, quota)
    store.start(epoch, job("j1"), 1.0, 0, quota)
    assert store.create_job(job("j3"), "request", quota).job_id == "j3"
    store.suspend_job("a", "s", "j2", True)
    with pytest.raises(QuotaError):  # paused jobs count
        store.create_job(job("j4"), None, quota)
    store.cancel_job("a", "s", "j2", 2.0)
    store.create_job(job("j4"), None, quota)
    check_invariants(store)


def test_many_are_created_in_one_call_of_the_ledger(store: JobStore) -> None:
    made = created_together(store, [job(f"j{n:02d}") for n in range(40)], [f"request-{n % 10}" for n in range(40)])
    assert [found.job_id for found in made] == [f"j{n % 10:02d}" for n in range(40)]
    assert len(check_invariants(store)) == 10


def test_a_job_that_cannot_be_created_keeps_no_other_of_its_call_from_it(store: JobStore) -> None:
    """Each has an answer of its own: one too many, an id in use, a request for something else."""
    quota = Quota(max_queued=3)
    created(store, "j0")
    wanted = [job("j0"), job("j1"), job("j2", spec=adapt(steps=7)), job("j3"), job("j4")]
    request_ids = [None, "request", "request", None, None]
    creations = [creation(*one, quota, None) for one in zip(wanted, request_ids, strict=True)]
    answers = store.ledger.submit([transaction for transaction, _ in creations]).result()
    outcomes = []
    for one, request_id, (_, fingerprint), blocked in zip(wanted, request_ids, creations, answers, strict=True):
        try:
            outcomes.append(store.created(one, request_id, quota, fingerprint, blocked).job_id)
        except (AlreadyExistsError, QuotaError) as error:
            outcomes.append(type(error).__name__)
    assert outcomes == ["AlreadyExistsError", "j1", "AlreadyExistsError", "j3", "QuotaError"]
    assert [found.job_id for found in check_invariants(store)] == ["j0", "j1", "j3"]


def test_a_creation_that_is_taken_back_in_time_harms_nobody(store: JobStore) -> None:
    """As when a client goes while its request is on its way."""
    creations = [creation(job(f"j{n:03d}"), None, QUOTA, None)[0] for n in range(200)]
    futures = [store.ledger.submit([transaction]) for transaction in creations]
    cancelled = [future.cancel() for future in futures]
    assert any(cancelled)
    created(store, "later")
    expected = [f"j{n:03d}" for n in range(200) if not cancelled[n]]
    assert [found.job_id for found in check_invariants(store)] == [*expected, "later"]


# The queue


def test_the_queue_is_in_order_of_priority_then_id(store: JobStore) -> None:
    for priority, job_id in [(4, "c"), (9, "d"), (4, "a"), (0, "b"), (9, "e"), (5, "0")]:
        created(store, job_id, priority=priority, study="s" if priority else "t")
    assert queue_ids(store) == ["d", "e", "0", "a", "c", "b"]
    assert [entry.job_id for entry in store.queues(per_tenant=2)["a"]] == ["d", "e"]


def test_a_queue_is_read_to_its_end_page_by_page(store: JobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("coordinator.store.jobs._NEXT_ENTRIES", 2)
    monkeypatch.setattr("coordinator.store.jobs.MAX_PAGE", 3)
    for n in range(9):
        created(store, f"j{n}", tenant="a")
    created(store, "other", tenant="b")
    assert queue_ids(store) == [f"j{n}" for n in range(9)]
    assert [entry.job_id for entry in store.queues(per_tenant=6)["a"]] == [f"j{n}" for n in range(6)]


def test_ids_of_later_jobs_sort_later() -> None:
    ids = [new_job_id(1_700_000_000.0 + n / 500) for n in range(500)]
    assert ids == sorted(ids) and len(set(ids)) == 500
    assert new_job_id(1.0) != new_job_id(1.0)


def test_queues_have_every_tenant_and_nobody_elses_jobs(store: JobStore) -> None:
    tenants = ["a", "a-b", "ab", "a.b", "b", "\u00e9", "a\uffff"]
    for tenant in tenants:
        for n in range(3):
            created(store, f"{tenant}{n}", tenant=tenant)
    queues = store.queues()
    assert set(queues) == set(tenants)
    for tenant, entries in queues.items():
        assert [(entry.tenant, entry.job_id) for entry in entries] == [(tenant, f"{tenant}{n}") for n in range(3)]
    check_invariants(store)


# A job's life


def test_from_start_to_success(store: JobStore) -> None:
    epoch = store.take_charge("c")
    started = running(store, epoch, "j1")
    assert (started.state, started.attempt, started.epoch, started.started_s) == (JobState.RUNNING, 1, epoch, 10.0)
    assert queue_ids(store) == [] and store.active() == [started]
    assert store.counts(["a"])["a"] == {"queued": 0, "running": 1, "bytes": 0}
    check_invariants(store)

    reported = store.report(epoch, started, {"done": 1, "total": 2})
    assert (reported.state, reported.progress) == (JobState.RUNNING, {"done": 1, "total": 2})
    assert states(store, "j1") == [JobState.QUEUED, JobState.RUNNING]  # progress is no event

    done = store.succeed(epoch, started, 30.0, {"accuracy": 0.9})
    assert store.get_job("a", "s", "j1").job == done
    assert (done.result, done.progress) == ({"accuracy": 0.9}, {"done": 2, "total": 2})
    assert store.active() == []
    assert states(store, "j1") == [JobState.QUEUED, JobState.RUNNING, JobState.SUCCEEDED]
    assert store.counts(["a"])["a"] == {"queued": 0, "running": 0, "bytes": 0}
    assert store.ledger.counter("finished/succeeded") == 1
    check_invariants(store)


def test_a_repeated_end_changes_nothing(store: JobStore) -> None:
    epoch = store.take_charge("c")
    first, second, third = (running(store, epoch, job_id) for job_id in ("j1", "j2", "j3"))
    store.cancel_job("a", "s", "j3", 15.0)
    ends: list[Callable[[], Job]] = [
        lambda: store.succeed(epoch, first, 20.0, {"n": 1}),
        lambda: store.fail(epoch, second, 20.0, FAILURE),
        lambda: store.confirm_cancel(epoch, third, 20.0),
    ]
    for end in ends:
        assert end() == end()
    assert store.succeed(epoch, first, 99.0, {"n": 2}).result == {"n": 1}
    assert [store.ledger.counter(f"finished/{state}") for state in ("succeeded", "failed", "cancelled")] == [1, 1, 1]
    assert [len(store.events(job_id, 0)) for job_id in ("j1", "j2", "j3")] == [3, 3, 4]
    with pytest.raises(ConflictError):
        store.fail(epoch, first, 99.0, FAILURE)
    with pytest.raises(ConflictError):
        store.succeed(epoch, second, 99.0, {})
    check_invariants(store)


def test_a_lost_job_goes_back_into_its_place(store: JobStore) -> None:
    epoch = store.take_charge("c")
    lost = running(store, epoch, "j1", priority=6)
    created(store, "j0", priority=6)
    created(store, "j2", priority=6)
    requeued = store.requeue(epoch, lost, 50.0, 8.0, uses_attempt=True, note="worker died")
    assert (requeued.state, requeued.not_before_s, requeued.failures) == (JobState.QUEUED, 58.0, 1)
    assert queue_ids(store) == ["j0", "j1", "j2"]
    assert list(store.queues()["a"])[1].not_before_s == 58.0
    check_invariants(store)
    with pytest.raises(ConflictError, match="waits for 1.0 s"):
        store.start(epoch, requeued, 57.0, 0, QUOTA)
    again = store.start(epoch, requeued, 58.0, 5, QUOTA)
    assert (again.attempt, again.base_version) == (2, 0)
    for late in (
        lambda: store.report(epoch, lost, {}),
        lambda: store.succeed(epoch, lost, 60.0, {}),
        lambda: store.fail(epoch, lost, 60.0, FAILURE),
        lambda: store.requeue(epoch, lost, 60.0, 0.0, True, "late"),
        lambda: store.confirm_cancel(epoch, lost, 60.0),
    ):
        with pytest.raises(ConflictError):
            late()
    assert store.get_job("a", "s", "j1").job == again
    check_invariants(store)


def test_attempts_run_out(store: JobStore) -> None:
    epoch = store.take_charge("c")
    found = created(store, "j1", max_attempts=2)
    for _ in range(3):
        found = store.start(epoch, found, 10.0, 0, QUOTA)
        found = store.requeue(epoch, found, 10.0, 0.0, uses_attempt=False, note="drained")
    for expected in (JobState.QUEUED, JobState.FAILED):
        found = store.start(epoch, found, 10.0, 0, QUOTA)
        found = store.requeue(epoch, found, 10.0, 0.0, uses_attempt=True, note="died")
        assert found.state is expected
    assert (found.attempt, found.failures) == (5, 2)
    assert queue_ids(store) == [] and store.active() == []
    check_invariants(store)


def test_cancel_of_a_waiting_job(store: JobStore) -> None:
    created(store, "j1")
    cancelled = store.cancel_job("a", "s", "j1", 5.0)
    assert (cancelled.state, cancelled.finished_s) == (JobState.CANCELLED, 5.0)
    assert store.cancel_job("a", "s", "j1", 6.0) == cancelled
    assert queue_ids(store) == []
    check_invariants(store)


def test_cancel_of_a_running_job(store: JobStore) -> None:
    epoch = store.take_charge("c")
    started = running(store, epoch, "j1")
    assert store.cancel_job("a", "s", "j1", 15.0).state is JobState.CANCELLING
    assert store.cancel_job("a", "s", "j1", 16.0).state is JobState.CANCELLING
    assert store.report(epoch, started, {}).state is JobState.CANCELLING
    assert store.counts(["a"])["a"]["running"] == 1
    for late in (lambda: store.succeed(epoch, started, 21.0, {}), lambda: store.fail(epoch, started, 21.0, FAILURE)):
        with pytest.raises(ConflictError):
            late()
    check_invariants(store)
    assert store.confirm_cancel(epoch, started, 22.0).state is JobState.CANCELLED
    assert store.counts(["a"])["a"]["running"] == 0
    check_invariants(store)


def test_cancel_of_a_finished_job_is_refused(store: JobStore) -> None:
    epoch = store.take_charge("c")
    store.succeed(epoch, running(store, epoch, "j1"), 20.0, {})
    store.fail(epoch, running(store, epoch, "j2"), 20.0, FAILURE)
    for job_id in ("j1", "j2"):
        with pytest.raises(ConflictError, match="cannot become"):
            store.cancel_job("a", "s", job_id, 30.0)


def test_a_paused_job_leaves_the_queue_and_comes_back(store: JobStore) -> None:
    epoch = store.take_charge("c")
    for job_id in ("j1", "j2"):
        created(store, job_id)
    paused = store.suspend_job("a", "s", "j1", True)
    assert paused.suspended and queue_ids(store) == ["j2"]
    assert store.suspend_job("a", "s", "j1", True) == paused
    assert store.counts(["a"])["a"]["queued"] == 2
    check_invariants(store)
    with pytest.raises(ConflictError, match="paused"):
        store.start(epoch, paused, 10.0, 0, QUOTA)
    assert not store.suspend_job("a", "s", "j1", False).suspended
    assert queue_ids(store) == ["j1", "j2"]
    assert [view.job.suspended for view in store.events("j1", 0)] == [False, True, False]
    check_invariants(store)


def test_a_running_job_that_is_paused_waits_outside_the_queue(store: JobStore) -> None:
    epoch = store.take_charge("c")
    started = running(store, epoch, "j1")
    store.suspend_job("a", "s", "j1", True)
    assert store.report(epoch, started, {}).suspended
    handed_back = store.requeue(epoch, started, 21.0, 0.0, uses_attempt=False, note="paused")
    assert (handed_back.state, handed_back.suspended, handed_back.failures) == (JobState.QUEUED, True, 0)
    assert queue_ids(store) == []
    check_invariants(store)
    store.suspend_job("a", "s", "j1", False)
    assert store.start(epoch, handed_back, 22.0, 0, QUOTA).attempt == 2
    check_invariants(store)


def test_a_paused_job_can_be_cancelled(store: JobStore) -> None:
    created(store, "j1")
    store.suspend_job("a", "s", "j1", True)
    assert store.cancel_job("a", "s", "j1", 5.0).state is JobState.CANCELLED
    check_invariants(store)


def test_a_job_that_waited_too_long_is_given_up(store: JobStore) -> None:
    epoch = store.take_charge("c")
    late = created(store, "j1", queue_deadline_s=50.0)
    with pytest.raises(ConflictError):
        store.give_up(epoch, late, 49.0, FAILURE)
    given_up = store.give_up(epoch, late, 50.0, FAILURE)
    assert (given_up.state, given_up.failure) == (JobState.FAILED, FAILURE)
    assert queue_ids(store) == []
    with pytest.raises(ConflictError):
        store.give_up(epoch, running(store, epoch, "j2", queue_deadline_s=50.0), 60.0, FAILURE)
    check_invariants(store)


def test_a_quota_bounds_what_runs(store: JobStore) -> None:
    epoch = store.take_charge("c")
    quota = Quota(max_running=2)
    waiting = [created(store, f"j{n}") for n in range(3)]
    first, _ = [store.start(epoch, found, 10.0, 0, quota) for found in waiting[:2]]
    with pytest.raises(QuotaError, match="stays queued"):
        store.start(epoch, waiting[2], 10.0, 0, quota)
    assert queue_ids(store) == ["j2"]
    check_invariants(store)
    store.cancel_job("a", "s", "j0", 11.0)
    with pytest.raises(QuotaError):  # its worker is still at it
        store.start(epoch, waiting[2], 10.0, 0, quota)
    store.confirm_cancel(epoch, first, 12.0)
    store.start(epoch, waiting[2], 13.0, 0, quota)
    check_invariants(store)


def test_one_of_many_that_start_a_job_does(store: JobStore) -> None:
    epoch = store.take_charge("c")
    waiting = created(store, "j1")

    def start(_: int) -> bool:
        try:
            store.start(epoch, waiting, 10.0, 0, QUOTA)
        except ConflictError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(start, range(16))) == 1
    assert store.get_job("a", "s", "j1").job.attempt == 1
    check_invariants(store)


def test_all_that_run_are_found_in_whosever_hands(store: JobStore) -> None:
    epoch = store.take_charge("c")
    ids = {("a", "s", "j1"), ("a", "t", "j2"), ("ab", "s", "j3")}
    for tenant, study, job_id in ids:
        running(store, epoch, job_id, tenant=tenant, study=study)
    store.cancel_job("a", "s", "j1", 20.0)
    store.take_charge("d")
    found = store.active()
    assert {(one.tenant, one.study, one.job_id) for one in found} == ids
    assert {one.epoch for one in found} == {epoch}


def test_what_does_not_exist_is_not_found(store: JobStore) -> None:
    epoch = store.take_charge("c")
    created(store, "j1")
    absent: list[Callable[[], Any]] = [
        lambda: store.get_job("a", "t", "j1"),
        lambda: store.get_job("ab", "s", "j1"),
        lambda: store.get_job("a", "s", "j"),
        lambda: store.cancel_job("b", "s", "j1", 1.0),
        lambda: store.suspend_job("b", "s", "j1", True),
        lambda: store.start(epoch, job("j1", "b"), 1.0, 0, QUOTA),
        lambda: store.get_study("a", "s"),
        lambda: store.head("a", "s"),
        lambda: store.get_prior("a", "s", 0),
        lambda: store.get_dataset("a", "0"),
        lambda: store.advance(epoch, "a", "s", pointer(1, "j1"), 1, 1.0),
    ]
    for call in absent:
        with pytest.raises(NotFoundError):
            call()


# Events and pages


def test_events_come_in_order_from_where_one_was(store: JobStore) -> None:
    epoch = store.take_charge("c")
    started = running(store, epoch, "j1")
    created(store, "j10")
    for n in range(12):
        store.report(epoch, started, {"done": n})
    store.requeue(epoch, started, 40.0, 0.0, False, "drained")
    again = store.start(epoch, started, 41.0, 0, QUOTA)
    done = store.succeed(epoch, again, 50.0, {})
    everything = store.events("j1", 0)
    assert [(view.job.state, view.revision) for view in everything] == [
        (JobState.QUEUED, 1),
        (JobState.RUNNING, 2),
        (JobState.QUEUED, 15),
        (JobState.RUNNING, 16),
        (JobState.SUCCEEDED, 17),
    ]
    assert everything[-1].job == done
    assert store.get_job("a", "s", "j1").revision == 17
    for position, view in enumerate(everything):
        assert store.events("j1", view.revision) == everything[position + 1 :]
    assert store.events("j1", 9) == everything[2:]
    assert store.events("j1", 2, limit=1) == everything[2:3]


@pytest.mark.parametrize("size", [1000, 7])
def test_pages_lose_and_repeat_nothing_while_jobs_are_added(store: JobStore, size: int) -> None:
    total = 2_500

    created_together(store, [job(f"{n:06d}") for n in range(total)], [None] * total)
    seen: list[str] = []
    token, pages = "", 0
    while True:
        page = store.list_jobs("a", "s", size, token)
        seen += [found.job_id for found in page.items]
        if pages % 50 == 0:
            created(store, f"{total + pages:06d}")
        pages += 1
        if not page.next_token:
            break
        assert len(page.items) == size
        token = page.next_token
    assert seen == [f"{n:06d}" for n in reversed(range(total))]
    assert pages == -(-total // size)


def test_pages_end_without_an_empty_one(store: JobStore) -> None:
    assert store.list_jobs("a", "s", 5, "").items == []
    for n in range(10):
        created(store, f"j{n}")
    first = store.list_jobs("a", "s", 5, "")
    second = store.list_jobs("a", "s", 5, first.next_token)
    assert (len(first.items), len(second.items), second.next_token) == (5, 5, "")


def test_pages_of_a_state_go_on_past_other_jobs(store: JobStore) -> None:
    for n in range(9):
        created(store, f"j{n}")
        if n % 3:
            store.cancel_job("a", "s", f"j{n}", 1.0)
    token, found = "", []
    while True:
        page = store.list_jobs("a", "s", 2, token, frozenset({JobState.QUEUED}))
        found += [one.job_id for one in page.items]
        token = page.next_token
        if not token:
            break
    assert found == ["j6", "j3", "j0"]


def test_tenants_are_apart(store: JobStore) -> None:
    epoch = store.take_charge("c")
    for tenant in ("a", "ab", "a-", "b"):
        with_study(store, epoch, tenant)
        for study in ("s", "st"):
            created(store, f"{tenant}-{study}", tenant=tenant, study=study)
        store.add_dataset(
            tenant, DatasetRecord(sha256="0" * 64, num_bytes=5, suffix=".zip", url=tenant, created_s=1.0), QUOTA
        )
    for tenant in ("a", "ab", "a-", "b"):
        assert [one.job_id for one in store.list_jobs(tenant, "s", 10, "").items] == [f"{tenant}-s"]
        assert [one.tenant for one in store.list_studies(tenant, 10, "").items] == [tenant]
        assert [one.url for one in store.list_datasets(tenant, 10, "").items] == [tenant]
        assert len(store.list_priors(tenant, "s", 10, "").items) == 1
        assert store.list_priors(tenant, "st", 10, "").items == []
        assert store.counts([tenant]) == {tenant: {"queued": 2, "running": 0, "bytes": 5}}
    store.cancel_job("a", "s", "a-s", 5.0)
    assert store.get_job("ab", "s", "ab-s").job.state is JobState.QUEUED
    check_invariants(store)


# Coordinators


def test_a_coordinator_that_was_replaced_can_change_nothing(backend: Backend) -> None:
    first, second = JobStore(backend.open()), JobStore(backend.open())
    assert first.epoch() == 0
    old = first.take_charge("first")
    with_study(first, old)
    waiting, held = created(first, "waiting", queue_deadline_s=1.0), running(first, old, "held", spec=MetaTrainSpec())
    cancelled = running(first, old, "cancelled")
    first.cancel_job("a", "s", "cancelled", 11.0)
    first.open_plan(old, "a", "s", Plan(job_id="held", base_version=0, task_ids=("t",), rule="mean"))
    first.beat(old, {"n": 1})

    new = second.take_charge("second")
    assert (old, new, first.epoch()) == (1, 2, 2)
    before = [(stored.key, stored.revision) for stored in second.ledger.scan("")]
    writes: list[Callable[[], Any]] = [
        lambda: first.beat(old, {"n": 2}),
        lambda: first.start(old, waiting, 20.0, 0, QUOTA),
        lambda: first.give_up(old, waiting, 20.0, FAILURE),
        lambda: first.report(old, held, {"done": 1}),
        lambda: first.requeue(old, held, 20.0, 0.0, False, "drained"),
        lambda: first.succeed(old, held, 20.0, {}),
        lambda: first.fail(old, held, 20.0, FAILURE),
        lambda: first.confirm_cancel(old, cancelled, 20.0),
        lambda: first.advance(old, "a", "s", pointer(1, "held"), 1, 20.0),
        lambda: first.advance(old, "a", "s", pointer(1, "held"), 1, 20.0, {"n": 1}),
        lambda: first.open_plan(old, "a", "s", Plan(job_id="held", base_version=0, task_ids=(), rule="mean")),
        lambda: first.forget_prior(old, "a", "s", 0),
    ]
    for write in writes:
        with pytest.raises(SupersededError, match="coordinator 1 was replaced by coordinator 2"):
            write()
    assert [(stored.key, stored.revision) for stored in second.ledger.scan("")] == before

    # The second takes over what the first had.
    assert {one.job_id for one in second.active()} == {"held", "cancelled"}
    for one in second.active():
        second.requeue(new, one, 30.0, 0.0, uses_attempt=False, note="coordinator 1 is gone")
    assert second.get_job("a", "s", "cancelled").job.state is JobState.CANCELLED
    again = second.start(new, second.get_job("a", "s", "held").job, 31.0, 0, QUOTA)
    assert (again.epoch, again.attempt) == (2, 2)
    for write in writes[3:7]:
        with pytest.raises(ConflictError):
            write()
    assert second.get_job("a", "s", "held").job == again
    assert second.last_beat() == (1, {"epoch": 1, "n": 1})
    second.beat(new, {})
    assert second.last_beat() == (2, {"epoch": 2})
    check_invariants(second)


def test_many_that_take_charge_get_an_epoch_each(store: JobStore) -> None:
    with ThreadPoolExecutor(6) as pool:
        epochs = list(pool.map(store.take_charge, map(str, range(24))))
    assert sorted(epochs) == list(range(1, 25))
    assert store.epoch() == 24


# Studies and priors


def test_a_study_is_created_once(store: JobStore) -> None:
    study = Study(tenant="a", study="s", config={"rounds": 3, "space": {"ops": []}}, created_s=1.0)
    assert store.create_study(study) == study
    assert store.create_study(study.model_copy(update={"created_s": 2.0})) == study
    with pytest.raises(AlreadyExistsError, match="another configuration"):
        store.create_study(study.model_copy(update={"config": {"rounds": 4}}))
    assert store.get_study("a", "s") == study
    assert store.head("a", "s") == Head(version=0)


def test_a_study_with_tuples_in_its_configuration_is_the_same_study(store: JobStore) -> None:
    study = Study(tenant="a", study="s", config={"classes": ("x", "y")}, created_s=1.0)
    store.create_study(study)
    assert store.create_study(study).config == {"classes": ["x", "y"]}


def test_the_first_prior_is_set_once(store: JobStore) -> None:
    epoch = store.take_charge("c")
    store.create_study(Study(tenant="a", study="s", config={}, created_s=1.0))
    store.set_first_prior(epoch, "a", "s", pointer(0, digest="one"))
    store.set_first_prior(epoch, "a", "s", pointer(0, digest="two"))
    assert store.head("a", "s") == Head(version=0, digest="one")
    assert store.get_prior("a", "s", 0) == pointer(0, digest="one")


@pytest.fixture
def lineage(store: JobStore) -> tuple[JobStore, int, Job]:
    """A study, a coordinator's epoch, and a meta-training job that runs."""
    epoch = store.take_charge("c")
    with_study(store, epoch)
    return store, epoch, running(store, epoch, "train", spec=MetaTrainSpec())


def plan(version: int, job_id: str = "train") -> Plan:
    return Plan(job_id=job_id, base_version=version, task_ids=("t1", "t2"), rule="mean")


def test_rounds_advance_the_prior_one_by_one(lineage: tuple[JobStore, int, Job]) -> None:
    store, epoch, train = lineage
    for version in range(3):
        store.open_plan(epoch, "a", "s", plan(version))
        assert store.head("a", "s") == Head(version=version, digest=f"digest-{version}", plan=plan(version))
        store.open_plan(epoch, "a", "s", plan(version))
        result = {"versions": 3} if version == 2 else None
        store.advance(epoch, "a", "s", pointer(version + 1, "train"), train.attempt, 20.0, result)
        assert store.head("a", "s") == Head(version=version + 1, digest=f"digest-{version + 1}")
    assert [found.version for found in store.list_priors("a", "s", 10, "").items] == [3, 2, 1, 0]
    assert store.get_prior("a", "s", 3) == pointer(3, "train")
    done = store.get_job("a", "s", "train").job
    assert (done.state, done.result) == (JobState.SUCCEEDED, {"versions": 3})
    assert len(store.events("train", 0)) == 3
    check_invariants(store)


def test_rounds_are_kept_when_their_priors_are_forgotten(lineage: tuple[JobStore, int, Job]) -> None:
    store, epoch, _ = lineage
    assert list(store.rounds("a", "s")) == []
    for version in range(12):
        store.open_plan(epoch, "a", "s", plan(version))
        made = pointer(version + 1, "train").model_copy(update={"metrics": {"loss": version / 7}})
        for _ in range(2):  # as if the answer had been lost
            store.advance(epoch, "a", "s", made, 1, 20.0)
        store.forget_prior(epoch, "a", "s", version)
    assert [(each.version, each.made_by, each.metrics) for each in store.rounds("a", "s")] == [
        (version + 1, "train", {"loss": version / 7}) for version in range(12)
    ]
    assert list(store.rounds("a", "other")) == []


def test_an_advance_whose_answer_was_lost_can_be_repeated(lineage: tuple[JobStore, int, Job]) -> None:
    store, epoch, _ = lineage
    store.open_plan(epoch, "a", "s", plan(0))
    for result in (None, None):
        store.advance(epoch, "a", "s", pointer(1, "train"), 1, 20.0, result)
    store.open_plan(epoch, "a", "s", plan(1))
    for _ in range(3):
        store.advance(epoch, "a", "s", pointer(2, "train"), 1, 20.0, {"n": 1})
    assert store.ledger.counter("finished/succeeded") == 1
    assert len(store.list_priors("a", "s", 10, "").items) == 3
    check_invariants(store)


def test_an_advance_from_the_wrong_place_is_refused(lineage: tuple[JobStore, int, Job]) -> None:
    store, epoch, _ = lineage
    other = running(store, epoch, "other", spec=adapt(contribute=True))

    def refused(found: PriorPointer, attempt: int = 1, result: Any = None) -> None:
        before = [(stored.key, stored.revision) for stored in store.ledger.scan("")]
        with pytest.raises(ConflictError) as error:
            store.advance(epoch, "a", "s", found, attempt, 20.0, result)
        assert not isinstance(error.value, SupersededError)
        assert [(stored.key, stored.revision) for stored in store.ledger.scan("")] == before

    refused(pointer(1, "train"))  # no plan is open
    store.open_plan(epoch, "a", "s", plan(0))
    refused(pointer(2, "train"))
    refused(pointer(0, "train", digest="else"))
    refused(pointer(1, other.job_id))
    refused(pointer(1, "train"), attempt=2)
    refused(pointer(1, "train"), attempt=0, result={})
    store.advance(epoch, "a", "s", pointer(1, "train"), 1, 20.0)
    refused(pointer(1, "train", digest="else"))
    with pytest.raises(ConflictError, match="at version 1, not 0"):
        store.open_plan(epoch, "a", "s", plan(0))


@pytest.mark.parametrize("result", [None, {"n": 1}])
@pytest.mark.parametrize("confirmed", [False, True])
def test_an_advance_of_a_cancelled_job_is_refused(
    lineage: tuple[JobStore, int, Job], result: Any, confirmed: bool
) -> None:
    store, epoch, train = lineage
    store.open_plan(epoch, "a", "s", plan(0))
    store.cancel_job("a", "s", "train", 15.0)
    if confirmed:
        store.confirm_cancel(epoch, train, 16.0)
    with pytest.raises(ConflictError):
        store.advance(epoch, "a", "s", pointer(1, "train"), 1, 20.0, result)
    assert store.head("a", "s").version == 0
    check_invariants(store)
    # The next job of the study takes the round over.
    running(store, epoch, "next", spec=MetaTrainSpec())
    store.open_plan(epoch, "a", "s", plan(0, "next"))
    store.advance(epoch, "a", "s", pointer(1, "next"), 1, 20.0)
    check_invariants(store)


def test_a_plan_that_is_replaced_meanwhile_is_not_closed(
    lineage: tuple[JobStore, int, Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, epoch, _ = lineage
    running(store, epoch, "other", spec=MetaTrainSpec())
    store.open_plan(epoch, "a", "s", plan(0))
    commit = store.ledger.commit

    def later(transaction: Transaction) -> Expect | Add | None:
        monkeypatch.setattr(store.ledger, "commit", commit)
        store.open_plan(epoch, "a", "s", plan(0, "other"))
        return commit(transaction)

    monkeypatch.setattr(store.ledger, "commit", later)
    with pytest.raises(ConflictError, match="a round of job other"):
        store.advance(epoch, "a", "s", pointer(1, "train"), 1, 20.0)
    assert store.head("a", "s") == Head(version=0, digest="digest-0", plan=plan(0, "other"))
    check_invariants(store)


def test_one_of_many_that_advance_does(lineage: tuple[JobStore, int, Job]) -> None:
    store, epoch, _ = lineage
    store.open_plan(epoch, "a", "s", plan(0))

    def advance(n: int) -> bool:
        try:
            store.advance(epoch, "a", "s", pointer(1, "train", digest=f"digest-{n}"), 1, 20.0, {"n": n})
        except ConflictError:
            return False
        return True

    with ThreadPoolExecutor(6) as pool:
        won = [n for n, did in enumerate(pool.map(advance, range(12))) if did]
    assert len(won) == 1
    assert store.head("a", "s").digest == f"digest-{won[0]}"
    assert store.get_job("a", "s", "train").job.result == {"n": won[0]}
    check_invariants(store)


def test_versions_that_jobs_start_from_are_needed(store: JobStore) -> None:
    epoch = store.take_charge("c")
    with_study(store, epoch)
    store.start(epoch, created(store, "runs"), 10.0, 5, QUOTA)
    created(store, "waits", spec=adapt(prior_version=3))
    created(store, "paused", spec=adapt(prior_version=2))
    store.suspend_job("a", "s", "paused", True)
    store.start(epoch, created(store, "back"), 10.0, 4, QUOTA)
    store.suspend_job("a", "s", "back", True)
    store.requeue(epoch, store.get_job("a", "s", "back").job, 11.0, 0.0, False, "paused")
    created(store, "other study", study="t", spec=adapt(prior_version=1))
    created(store, "other tenant", tenant="ab", spec=adapt(prior_version=1))
    assert {version for version in store.needed_versions("a", "s") if version >= 0} == {2, 3, 4, 5}
    for job_id in ("waits", "paused"):
        store.cancel_job("a", "s", job_id, 12.0)
    assert {version for version in store.needed_versions("a", "s") if version >= 0} == {4, 5}


def test_a_forgotten_prior_is_not_found(store: JobStore) -> None:
    epoch = store.take_charge("c")
    with_study(store, epoch)
    store.forget_prior(epoch, "a", "s", 0)
    store.forget_prior(epoch, "a", "s", 0)
    with pytest.raises(NotFoundError, match="priors/0"):
        store.get_prior("a", "s", 0)


# Datasets


def test_a_dataset_counts_once(store: JobStore) -> None:
    quota = Quota(max_stored_bytes=100)
    first = DatasetRecord(sha256="1" * 64, num_bytes=60, suffix=".zip", url="u", created_s=1.0, title="Ä")
    assert store.add_dataset("a", first, quota) == first
    assert store.add_dataset("a", first.model_copy(update={"created_s": 2.0}), quota) == first
    with pytest.raises(QuotaError, match="41 bytes more"):
        store.add_dataset("a", first.model_copy(update={"sha256": "2" * 64, "num_bytes": 41}), quota)
    store.add_dataset("a", first.model_copy(update={"sha256": "3" * 64, "num_bytes": 40}), quota)
    assert store.counts(["a", "b"]) == {
        "a": {"queued": 0, "running": 0, "bytes": 100},
        "b": {"queued": 0, "running": 0, "bytes": 0},
    }
    assert store.get_dataset("a", "1" * 64) == first
    with pytest.raises(NotFoundError):
        store.get_dataset("b", "1" * 64)


def test_the_check_of_invariants_sees_a_lost_index(store: JobStore) -> None:
    created(store, "j1")
    store.ledger.commit(Transaction(changes=[Delete("queue/a/5/j1")]))
    with pytest.raises(AssertionError):
        check_invariants(store)
