"""The Ray cluster: a local one, or one that is there already."""

import logging
import os
import socket
from dataclasses import dataclass
from typing import Any

import grpc
import ray
from ray.exceptions import RayTaskError
from ray.job_config import JobConfig

from common.config import ClusterConfig
from common.errors import AdaptationError, MetaSearchError, UnavailableError
from coordinator.nodes import look
from coordinator.scaling import room_for

NAMESPACE = "metasearch"
_CLIENT = "ray://"
_CONNECT_TIMEOUT_S = 5.0
_STARTUP_TIMEOUT = "timed out during startup"


@dataclass(frozen=True)
class Cluster:
    """A connection to Ray.

    Attributes:
        dashboard_url: of the Ray dashboard, None where it does not run.
        needs_token: whether the dashboard asks for a token (`ray get-auth-token` prints it).
        is_local: started by this process, and gone with it.
    """

    dashboard_url: str | None
    needs_token: bool
    is_local: bool


def connect(address: str | None, include_dashboard: bool = True, job_name: str = "metasearch") -> Cluster:
    """Connects to the cluster at `address`, or starts a local one.

    Args:
        address: as in `ray.init`; `auto` finds the cluster of this machine. None starts one on the loopback.
        include_dashboard: for a local cluster.
        job_name: what the dashboard calls the Ray job of this process; not through Ray's client (`ray://`), which hands
            no configuration of the job on.

    Raises:
        UnavailableError: no cluster answers there, or none can be started.
    """
    # Ray's ports are code execution. From 2.59 on a local cluster asks for a token unless RAY_AUTH_MODE says otherwise;
    # to set the variable here would be too late, as Ray reads it when it is imported.
    if address is not None:
        _check_answers(address)
    job = JobConfig(metadata={"job_name": job_name})
    try:
        if address is None:
            context = _start_local(include_dashboard, job)
        else:
            named: dict[str, Any] = {} if address.startswith(_CLIENT) else {"job_config": job}
            context = ray.init(
                address=address, namespace=NAMESPACE, log_to_driver=False, logging_level=logging.ERROR, **named
            )
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        where = "a local Ray cannot be started" if address is None else f"no Ray cluster answers at {address!r}"
        first, *others = str(error).strip().splitlines() or [type(error).__name__]
        # Ray's client says what happened at the other end, as a traceback.
        reason = f"{first} {others[-1].strip()}" if first.endswith(":") and others else first
        raise UnavailableError(f"{where}: {reason}") from error
    url = getattr(context, "dashboard_url", None) or None
    return Cluster(
        dashboard_url=f"http://{url}" if url else None,
        needs_token=os.environ.get("RAY_AUTH_MODE") == "token",
        is_local=address is None,
    )


def _start_local(include_dashboard: bool, job: JobConfig) -> Any:
    """Starts a cluster. On a machine that is busy Ray gives up on its own processes after 30 s: then once more."""
    for last in (False, True):
        try:
            return ray.init(
                address="local",
                namespace=NAMESPACE,
                include_dashboard=include_dashboard,
                job_config=job,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
        except Exception as error:
            if _STARTUP_TIMEOUT not in str(error):  # it has no class of its own
                raise
            ray.shutdown()
            if last:
                raise UnavailableError("a local Ray did not come up in a minute; is the machine overloaded?") from None
    raise AssertionError("unreachable")


def metrics_urls() -> list[str]:
    """Where the nodes of the connected cluster tell Prometheus their metrics."""
    return [
        f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
        for node in ray.nodes()  # type: ignore[no-untyped-call]
        if node["Alive"]
    ]


def disconnect() -> None:
    """Ends the connection, and the cluster if this process started it."""
    ray.shutdown()


def worker_resources(config: ClusterConfig, may_wait: bool = False) -> tuple[int, float]:
    """How many workers a study gets on the connected cluster, and the GPUs of each.

    Of a range of workers the most, whatever room there is for them now.

    Args:
        config: the number, or its range.
        may_wait: whether workers may wait for room: they may join a service at any time.

    Raises:
        UnavailableError: the cluster is too small for the configuration; with `may_wait`, it does not even tell
            whether workers have GPUs.
    """
    nodes = list(look().resources.values())
    gpus, cpus = (sum(node.get(kind, 0.0) for node in nodes) for kind in ("GPU", "CPU"))
    per_worker = (1.0 if gpus else 0.0) if config.gpus_per_worker is None else config.gpus_per_worker
    if config.max_workers is not None:
        return config.max_workers, per_worker
    room = room_for(nodes, per_worker)
    wanted = room if config.num_workers is None else config.num_workers
    is_known = room > 0 or config.gpus_per_worker is not None
    if (wanted > room or room < 1) and not (may_wait and is_known):
        raise UnavailableError(
            f"{max(wanted, 1)} workers of 1 CPU and {per_worker:g} GPU need more than the cluster's {cpus:g} CPUs and "
            f"{gpus:g} GPUs; lower cluster.num_workers or cluster.gpus_per_worker, or add nodes; where an autoscaler "
            "adds them, set cluster.max_workers"
        )
    return wanted, per_worker


def _check_answers(address: str) -> None:
    """Ray itself would try for minutes to reach an address at which nothing answers, or something that is not Ray."""
    target = address.removeprefix(_CLIENT)
    host, separator, port = target.rpartition(":")
    if not separator or not port.isdecimal():
        return  # `auto`, or what Ray alone can resolve
    try:
        socket.create_connection((host.strip("[]"), int(port)), _CONNECT_TIMEOUT_S).close()
        _check_speaks_grpc(target)
    except (OSError, OverflowError) as error:
        raise UnavailableError(
            f"no Ray cluster answers at {address!r}: {error}; check --address, or leave it out for a local one"
        ) from None


def _check_speaks_grpc(target: str) -> None:
    """A head that hangs, or another server there, accepts connections too, but does not greet as gRPC does."""
    if os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true"):
        return  # Ray's own certificates would be needed
    with grpc.insecure_channel(target, [("grpc.enable_http_proxy", 0)]) as channel:
        try:
            grpc.channel_ready_future(channel).result(_CONNECT_TIMEOUT_S)
        except grpc.FutureTimeoutError:
            raise TimeoutError(
                f"it accepts connections, but does not greet as gRPC within {_CONNECT_TIMEOUT_S:g} s"
            ) from None


def cause_of(error: RayTaskError) -> MetaSearchError:
    """What went wrong inside an actor, as one of our errors: what it raised on purpose, or an AdaptationError."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, MetaSearchError) and not isinstance(cause, RayTaskError):
        return cause
    return AdaptationError(str(error).strip().splitlines()[-1])
