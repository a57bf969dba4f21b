"""How the service is, as a message: read from the store, for one tenant."""

from google.protobuf import timestamp_pb2

from coordinator.api.stubs import search_pb2 as pb
from coordinator.store.jobs import JobStore


def service_status(store: JobStore, tenant: str, now_s: float) -> pb.GetServiceStatusResponse:
    """What the caller's tenant has at the service, and whether a coordinator lives.

    Args:
        store: of jobs.
        tenant: of the caller; nothing is told of others.
        now_s: seconds since 1970.
    """
    counts = store.counts([tenant])[tenant]
    beats, last = store.last_beat()
    time = timestamp_pb2.Timestamp()
    time.FromMilliseconds(int(now_s * 1000))
    return pb.GetServiceStatusResponse(
        time=time,
        jobs_queued=counts["queued"],
        jobs_running=counts["running"],
        coordinator=pb.Coordinator(epoch=last.get("epoch", 0), beats=beats, workers=last.get("workers", 0)),
    )
