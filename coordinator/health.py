"""Whether a process of the service is well, as load balancers and containers ask from outside. No torch, no Ray."""

import time
import urllib.error
import urllib.request
from collections.abc import Sequence

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from common.errors import UnavailableError
from coordinator.api.connection import Tls
from coordinator.store.jobs import JobStore

RAYLET_URL = "http://127.0.0.1:52365/api/local_raylet_healthz"
"""Of the dashboard agent that runs beside every raylet, on the port that Ray gives it by default."""
GCS_URL = "http://127.0.0.1:8265/api/gcs_healthz"
"""Of the dashboard on the head."""
_LOOK_S = 0.05


def check_gateway(address: str, tls: Tls | None, server_name: str | None, timeout_s: float) -> None:
    """Asks a gateway by `grpc.health.v1`; no token is needed.

    Args:
        address: HOST:PORT.
        tls: None talks plain text.
        server_name: that the certificate must have; the host of the address where None.
        timeout_s: of the answer.

    Raises:
        UnavailableError: it does not serve, or does not answer.
    """
    name_option = () if server_name is None else (("grpc.ssl_target_name_override", server_name),)
    if tls is None:
        channel = grpc.insecure_channel(address)
    else:
        credentials = grpc.ssl_channel_credentials(tls.ca, tls.key, tls.certificate)
        channel = grpc.secure_channel(address, credentials, options=name_option)
    with channel:
        stub = health_pb2_grpc.HealthStub(channel)
        try:
            answer = stub.Check(health_pb2.HealthCheckRequest(), timeout=timeout_s)
        except grpc.RpcError as error:
            raise UnavailableError(
                f"the gateway at {address} does not answer: {error.code().name}: {error.details()}"
            ) from None
    if answer.status != health_pb2.HealthCheckResponse.SERVING:
        status = health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)
        raise UnavailableError(f"the gateway at {address} says {status}: it drains, or its job store does not answer")


def check_coordinator(store: JobStore, timeout_s: float) -> int:
    """Looks into the job store until the coordinator's beats count up.

    Args:
        store: of the service.
        timeout_s: some times `beat_s` of the service's settings.

    Returns:
        The number of the beat.

    Raises:
        UnavailableError: they did not, or the store does not answer.
    """
    first, _ = store.last_beat()
    until_s = time.monotonic() + timeout_s
    while (beat := store.last_beat()[0]) == first:
        if time.monotonic() >= until_s:
            raise UnavailableError(
                f"no coordinator has beaten for {timeout_s:g} s ({first} beats so far); is there a Ray cluster?"
            )
        time.sleep(_LOOK_S)
    return beat


def check_node(urls: Sequence[str], timeout_s: float) -> None:
    """Asks the Ray node of this machine.

    Args:
        urls: `RAYLET_URL`, or the same on another port; on the head `GCS_URL` too.
        timeout_s: of each answer.

    Raises:
        UnavailableError: one of them is not well, or does not answer.
    """
    for url in urls:
        try:
            with urllib.request.urlopen(url, timeout=timeout_s):
                pass
        except (OSError, ValueError) as error:
            if isinstance(error, urllib.error.HTTPError):
                error.close()  # it holds the connection
            raise UnavailableError(f"{url} does not answer: {error}") from None
