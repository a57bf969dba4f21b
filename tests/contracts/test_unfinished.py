"""Jobs that have not ended, over each backend."""

import pytest

from common.config import DatasetRef
from common.tasks import TaskChoice
from coordinator.jobs import AdaptSpec, Job
from coordinator.store.jobs import JobStore
from coordinator.store.records import Quota
from coordinator.store.unfinished import unfinished

SPEC = AdaptSpec(choice=TaskChoice(data=DatasetRef(source="digits"), image_size=8, classes=("0", "1")))


def create(store: JobStore, job_id: str, tenant: str = "a-b", study: str = "s", priority: int = 4) -> Job:
    job = Job(tenant=tenant, study=study, job_id=job_id, created_s=1.0, spec=SPEC, priority=priority)
    return store.create_job(job, None, Quota())


@pytest.fixture
def filled(store: JobStore) -> JobStore:
    """Two jobs that run, three in the queue, a paused one, two that have ended; and another tenant's."""
    epoch = store.take_charge("test")
    for number in range(8):
        create(store, f"j{number}", study=f"s{number % 2}", priority=9 if number == 4 else 4)
    create(store, "x", tenant="a")
    for number in (1, 0, 5, 6):
        started = store.start(epoch, store.get_job("a-b", f"s{number % 2}", f"j{number}").job, 1.0, 0, Quota())
        if number > 4:
            store.succeed(epoch, started, 2.0, {})
    store.suspend_job("a-b", "s1", "j3", True)
    return store


def ids(jobs: object) -> list[str]:
    return [job.job_id for job in jobs]  # type: ignore[attr-defined]


def test_jobs_that_run_come_first_then_the_queue_in_its_order_then_paused_ones(filled: JobStore) -> None:
    page = unfinished(filled.ledger, "a-b", 50, "")
    assert ids(page.items) == ["j0", "j1", "j4", "j2", "j7", "j3"] and page.next_token == ""
    assert [job.study for job in page.items] == ["s0", "s1", "s0", "s0", "s1", "s1"]
    assert ids(unfinished(filled.ledger, "a", 50, "").items) == ["x"]
    assert unfinished(filled.ledger, "nobody", 50, "").items == []


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 6])
def test_pages_of_any_size_meet_every_job_once(filled: JobStore, size: int) -> None:
    found: list[str] = []
    token, pages = "", 0
    while token or not pages:
        page = unfinished(filled.ledger, "a-b", size, token)
        assert len(page.items) <= size
        found += ids(page.items)
        token, pages = page.next_token, pages + 1
    assert found == ["j0", "j1", "j4", "j2", "j7", "j3"]
    assert pages == -(-6 // size)


def test_a_page_goes_on_where_it_ended_though_its_last_job_has_moved(filled: JobStore) -> None:
    page = unfinished(filled.ledger, "a-b", 3, "")
    assert ids(page.items) == ["j0", "j1", "j4"]
    filled.cancel_job("a-b", "s0", "j4", 3.0)
    assert ids(unfinished(filled.ledger, "a-b", 50, page.next_token).items) == ["j2", "j7", "j3"]
