"""Pages of lists: as much as fits a message."""

from collections.abc import Sequence

from google.protobuf.message import Message

from coordinator.api import convert
from coordinator.api.errors import FieldError
from coordinator.api.stubs import search_pb2 as pb
from coordinator.jobs import JobState
from coordinator.store.jobs import JobStore
from coordinator.store.unfinished import unfinished

MAX_PAGE_BYTES = 3 << 20
"""A page ends early rather than exceed a message (`gateway.MAX_MESSAGE_BYTES`)."""


def fitting(messages: Sequence[Message]) -> int:
    """How many of the messages one response holds, at least one of them."""
    total = 0
    for index, message in enumerate(messages):
        total += message.ByteSize() + 8  # tag and length
        if total > MAX_PAGE_BYTES:
            return max(index, 1)
    return len(messages)


def unfinished_jobs(
    store: JobStore, tenant: str, size: int, token: str, states: frozenset[JobState]
) -> pb.ListJobsResponse:
    """Jobs of all studies that have not ended, see `coordinator.store.unfinished`; of `states` where there are any.

    Raises:
        FieldError: states in which a job has ended.
    """
    if any(state.is_terminal for state in states):
        raise FieldError("states", "jobs of all studies are those that have not ended; name a study to see others")
    page = unfinished(store.ledger, tenant, size, token)
    jobs = [convert.job_message(job) for job in page.items if not states or job.state in states]
    if fitting(jobs) < len(jobs):
        return unfinished_jobs(store, tenant, fitting(jobs), token, states)
    return pb.ListJobsResponse(jobs=jobs, next_page_token=page.next_token)
