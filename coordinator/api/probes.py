"""Health on a port of its own, without TLS: for probes that know none, as a kubelet's. Nothing else is there."""

from grpc import aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from common.errors import InvalidInputError, UnavailableError

LIVENESS = "liveness"
"""A service that is always SERVING: whoever answers for it is alive, though the job store may not be."""


async def start_probes(listen: str, servicer: health.aio.HealthServicer) -> aio.Server:
    """Serves `grpc.health.v1` until the server is stopped.

    Args:
        listen: HOST:PORT.
        servicer: what the gateway says of itself.

    Raises:
        InvalidInputError: not HOST:PORT.
        UnavailableError: the port cannot be had.
    """
    check_address("health_listen", listen)
    server = aio.server(options=(("grpc.so_reuseport", 0),))
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    try:
        server.add_insecure_port(listen)
    except RuntimeError as error:
        raise UnavailableError(f"health_listen: cannot listen on {listen}: {str(error).splitlines()[0]}") from None
    await servicer.set(LIVENESS, health_pb2.HealthCheckResponse.SERVING)
    await server.start()
    return server


def check_address(field: str, address: str) -> str:
    """The host of HOST:PORT.

    Raises:
        InvalidInputError: not HOST:PORT.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise InvalidInputError(f"{field} must be HOST:PORT, got {address!r}")
    return host
