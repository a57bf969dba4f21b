"""What a job store holds, counted; and how its calls are measured. On both backends."""

from collections.abc import Iterator
from typing import Any

import pytest
from contracts.backends import Backend
from reference.recorded_metrics import RecordedMetrics

from common.errors import UnavailableError
from coordinator.jobs import Failure, FailureReason, Job, MetaTrainSpec
from coordinator.store.jobs import JobStore
from coordinator.store.ledger import Expect, Put, Transaction
from coordinator.store.metered import MeteredLedger
from coordinator.store.overview import Overview, Waiting, overview
from coordinator.store.records import Quota

NOTHING = Overview({}, 0, 0, {"cancelled": 0, "failed": 0, "succeeded": 0}, 0, 0)


def submit(store: JobStore, job_id: str, **fields: Any) -> Job:
    plain = {"tenant": "lab", "study": "mine", "job_id": job_id, "spec": MetaTrainSpec(), "created_s": 100.0}
    return store.create_job(Job(**(plain | fields)), None, Quota())


def test_an_empty_store_holds_nothing(store: JobStore) -> None:
    assert overview(store) == NOTHING


def test_jobs_are_counted_where_they_are_and_the_oldest_is_found_behind_urgent_ones(store: JobStore) -> None:
    epoch = store.take_charge("test")
    submit(store, "1", created_s=50.0, priority=1)
    submit(store, "2", created_s=90.0, priority=9, tenant="other")
    submit(store, "3")
    store.suspend_job("lab", "mine", submit(store, "4").job_id, True)
    running = store.start(epoch, submit(store, "5"), 200.0, 0, Quota())
    for job_id, end in (("6", "fail"), ("7", "succeed"), ("8", "succeed")):
        job = store.start(epoch, submit(store, job_id), 200.0, 0, Quota())
        if end == "fail":
            store.fail(epoch, job, 210.0, Failure(reason=FailureReason.INTERNAL, message=""))
        else:
            store.succeed(epoch, job, 210.0, {})
    store.cancel_job("lab", "mine", submit(store, "9").job_id, 210.0)
    for _ in range(3):
        store.beat(epoch, {})
    expected = Overview({"meta_train": Waiting(3, 50.0)}, 1, 1, {"cancelled": 1, "failed": 1, "succeeded": 2}, 3, epoch)
    assert overview(store) == expected
    store.requeue(epoch, running, 220.0, 5.0, True, "the worker died")
    assert overview(store).waiting == {"meta_train": Waiting(4, 50.0)}, "a job that is back keeps its age"


def test_entries_that_an_earlier_version_wrote_are_counted_as_well(store: JobStore) -> None:
    entry = {"tenant": "lab", "study": "mine", "job_id": "1"}
    store.ledger.commit(Transaction(changes=[Put("queue/lab/5/1", entry)]))
    assert overview(store).waiting == {"unknown": Waiting(1, None)}


class Clock:
    def __init__(self) -> None:
        self.times = iter(range(1000))

    def __call__(self) -> float:
        return float(next(self.times))


@pytest.fixture
def recorded() -> RecordedMetrics:
    return RecordedMetrics()


@pytest.fixture
def metered(backend: Backend, recorded: RecordedMetrics) -> Iterator[MeteredLedger]:
    yield MeteredLedger(backend.open(), recorded, Clock())


def test_every_call_to_a_store_is_measured_and_answered_as_without(
    metered: MeteredLedger, recorded: RecordedMetrics
) -> None:
    store = JobStore(metered)
    submit(store, "1")
    assert store.get_job("lab", "mine", "1").job.job_id == "1"
    assert [entry.job_id for entry in store.queues()["lab"]] == ["1"]
    assert store.counts(["lab"])["lab"]["queued"] == 1
    metered.ping()
    assert {call for _, call in recorded.observed} == {"commit", "get", "scan", "counter", "ping"}
    assert all(value == 1.0 for values in recorded.observed.values() for value in values)
    assert not recorded.counters


def test_a_commit_that_does_not_wait_is_measured_once_it_is_done(
    metered: MeteredLedger, recorded: RecordedMetrics
) -> None:
    blocked = Expect("a", 7)
    future = metered.submit([Transaction([], [Put("a", {})]), Transaction([blocked], [])])
    assert future.result(30) == [None, blocked]
    assert recorded.observed == {("store_seconds", "commit"): [1.0]}


def test_calls_without_an_answer_are_errors_and_refusals_are_not(
    metered: MeteredLedger, recorded: RecordedMetrics
) -> None:
    assert metered.commit(Transaction([Expect("a", 7)])) == Expect("a", 7)
    assert not recorded.counters
    metered.close()
    with pytest.raises(UnavailableError):
        metered.commit(Transaction([], [Put("a", {})]))
    with pytest.raises(UnavailableError):
        metered.submit([Transaction([], [Put("a", {})])]).result(30)
    with pytest.raises(UnavailableError):
        metered.get("a")
    assert recorded.counters == {("store_errors", "commit"): 2, ("store_errors", "get"): 1}
