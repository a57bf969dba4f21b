"""What the service says of itself, and of all that has not ended."""

import pytest
from reference.gateway import Gateway, PlayedCoordinator

from common.errors import InvalidInputError
from coordinator.api.client import SearchClient
from coordinator.api.stubs import search_pb2 as pb

ALL = "studies/-"


def submit(client: SearchClient, study: str) -> str:
    return client.submit(study, "digits").name


def test_the_status_counts_the_tenants_own_jobs_and_tells_of_the_coordinator(
    gateway: Gateway, client: SearchClient, coordinator: PlayedCoordinator, tenant: str, other_tenant: str
) -> None:
    names = [submit(client, client.create_study("mine", preset="smoke").name) for _ in range(3)]
    job = coordinator.start(tenant, names[0])
    coordinator.store.beat(coordinator.epoch, {"running": 1, "workers": 2})
    first = client.service_status()
    assert (first.jobs_queued, first.jobs_running) == (2, 1)
    assert (first.coordinator.epoch, first.coordinator.workers) == (coordinator.epoch, 2)
    coordinator.store.beat(coordinator.epoch, {"running": 0, "workers": 3})
    coordinator.succeed(job)
    second = client.service_status()
    assert (second.jobs_queued, second.jobs_running, second.coordinator.workers) == (2, 0, 3)
    assert second.coordinator.beats == first.coordinator.beats + 1
    assert second.time.ToMicroseconds() > first.time.ToMicroseconds()
    with gateway.client("viewers", "viewer") as viewer:
        told = viewer.service_status()
    assert (told.jobs_queued, told.jobs_running) == (0, 0)
    assert told.coordinator == second.coordinator


def test_jobs_of_all_studies_that_have_not_ended(
    client: SearchClient, gateway: Gateway, coordinator: PlayedCoordinator, tenant: str, other_tenant: str
) -> None:
    mine, yours = (client.create_study(name, preset="smoke").name for name in ("mine", "yours"))
    waits, runs, ended, goes = submit(client, mine), submit(client, yours), submit(client, mine), submit(client, yours)
    for name in (runs, ended, goes):
        coordinator.start(tenant, name)
    coordinator.succeed(coordinator.job(tenant, ended))
    client.cancel(goes)
    assert [job.name for job in client.list_jobs(ALL)] == [runs, goes, waits]
    states = [pb.JOB_STATE_QUEUED, pb.JOB_STATE_CANCELLING]
    assert [job.name for job in client.list_jobs(ALL, states)] == [goes, waits]
    with gateway.client(other_tenant) as other:
        assert list(other.list_jobs(ALL)) == []
    with pytest.raises(InvalidInputError, match="name a study"):
        list(client.list_jobs(ALL, [pb.JOB_STATE_SUCCEEDED]))


def test_a_page_of_them_is_as_long_as_was_asked_for_and_no_message_too_large(
    client: SearchClient, coordinator: PlayedCoordinator, tenant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from coordinator.api import pages

    study = client.create_study("mine", preset="smoke").name
    names = [submit(client, study) for _ in range(5)]
    for name in names[:2]:
        coordinator.start(tenant, name)
    asked = pb.ListJobsRequest(parent=ALL, page_size=2)
    found: list[str] = []
    for expected in (2, 2, 1):
        response = client._stub.ListJobs(asked, metadata=client._metadata)
        assert len(response.jobs) == expected
        found += [job.name for job in response.jobs]
        asked.page_token = response.next_page_token
    assert found == names and not response.next_page_token

    job = response.jobs[0]
    monkeypatch.setattr(pages, "MAX_PAGE_BYTES", 2 * job.ByteSize() + 100)
    token, sizes = "", []
    while token or not sizes:
        part = pages.unfinished_jobs(coordinator.store, tenant, 50, token, frozenset())
        sizes.append(len(part.jobs))
        token = part.next_page_token
    assert sum(sizes) == 5 and max(sizes) <= 2
