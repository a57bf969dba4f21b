"""The coordinator actor of the service: runs a dispatcher on a thread. Detached, and restarted by Ray.

It holds nothing that it does not find again in the job store and among the artifacts.
"""

import os
import socket
import threading
import time
from collections.abc import Mapping
from typing import Any

import ray

from common.config import ClusterConfig
from common.errors import MetaSearchError, UnavailableError
from common.telemetry import logger_for
from coordinator.cluster import NAMESPACE, worker_resources
from coordinator.dispatcher import Dispatcher
from coordinator.nodes import NodeWatch
from coordinator.pool import RayPool
from coordinator.scaling import Scaling
from coordinator.settings import ServiceSettings, open_ledger
from coordinator.store.fenced import SupersededError
from coordinator.store.jobs import JobStore

ACTOR_NAME = "coordinator"
_TURN_S = 0.1
_IDLE_S = 0.02
_RETRY_S = 0.5


class ServiceCoordinator:
    """Takes charge of the job store, and runs jobs until it is drained or replaced.

    Args:
        settings: of the service.
        cluster: workers to hold.
    """

    def __init__(self, settings: ServiceSettings, cluster: ClusterConfig) -> None:
        self._settings = settings
        self._cluster = cluster
        self._log = logger_for("coordinator")
        self._draining = threading.Event()
        self._state = "starting"
        self._running: tuple[str, ...] = ()
        self._epoch = 0
        self._thread = threading.Thread(target=self._run, name="dispatcher", daemon=True)
        self._thread.start()

    def status(self) -> Mapping[str, Any]:
        """What it is doing: state (starting, running, drained, superseded, failed), epoch, names of running jobs."""
        return {"state": self._state, "epoch": self._epoch, "running": self._running, "pid": os.getpid()}

    def drain(self) -> None:
        """Stops starting jobs and hands the running ones over; `status` says when it is done."""
        self._draining.set()

    def __repr__(self) -> str:
        return f"Coordinator(epoch {self._epoch}, {self._state}, {len(self._running)} jobs)"

    def _run(self) -> None:
        try:
            self._serve()
        except SupersededError as error:
            self._log.error("%s; this one stops", error)
            self._state = "superseded"
        except Exception:  # noqa: BLE001 the edge: the supervisor sees the state and replaces this actor
            self._log.exception("the coordinator failed")
            self._state = "failed"

    def _serve(self) -> None:
        store = self._open_store()
        num_workers, gpus_per_worker = worker_resources(self._cluster, may_wait=True)
        scaling, watch = Scaling(self._cluster), NodeWatch(self._log)
        holder = f"{socket.gethostname()}/{os.getpid()}"
        # Names of its own: the workers of one that was killed a moment ago may not have given theirs back yet.
        pool = RayPool(
            f"service/{holder}",
            scaling.first(num_workers),
            gpus_per_worker,
            self._cluster,
            time.monotonic,
            self._log,
            scaling=scaling,
            nodes=watch.latest,
        )
        dispatcher: Dispatcher | None = None
        try:
            while dispatcher is None:
                try:
                    dispatcher = Dispatcher(
                        store,
                        pool,
                        self._settings,
                        holder,
                        time.time,
                        time.monotonic,
                        self._log,
                        _capacity(num_workers),
                    )
                except UnavailableError as error:
                    self._log.warning("%s", error)
                    time.sleep(_RETRY_S)
            self._epoch, self._state = dispatcher.epoch, "running"
            self._log.info("coordinator %d is in charge, with at most %d workers", dispatcher.epoch, num_workers)
            while not dispatcher.is_drained:
                if self._draining.is_set() and not dispatcher.draining:
                    dispatcher.drain()
                dispatcher.turn(_TURN_S)
                self._running = tuple(job.name for job in dispatcher.running)
                if not (pool.num_pending or pool.num_quick):
                    time.sleep(_IDLE_S)
            self._state = "drained"
        finally:
            if dispatcher is not None:
                dispatcher.close()
            pool.close()
            watch.close()
            store.ledger.close()

    def _open_store(self) -> JobStore:
        while True:
            try:
                return JobStore(open_ledger(self._settings.store))
            except UnavailableError as error:
                self._log.warning("%s", error)
                time.sleep(_RETRY_S)


def _capacity(num_workers: int) -> str:
    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    cpus, gpus = resources.get("CPU", 0), resources.get("GPU", 0)
    return f"the cluster has {cpus:g} CPUs and {gpus:g} GPUs, and at most {num_workers} workers"


def start_service_coordinator(settings: ServiceSettings, cluster: ClusterConfig) -> Any:
    """Starts the detached actor, or finds the one that is there.

    Raises:
        MetaSearchError: it cannot be placed.
    """
    actor_class: Any = ray.remote(ServiceCoordinator)
    options = {"num_cpus": 0, "max_restarts": -1, "max_concurrency": 4, "lifetime": "detached", "get_if_exists": True}
    try:
        return actor_class.options(name=ACTOR_NAME, namespace=NAMESPACE, **options).remote(settings, cluster)
    except ValueError as error:
        raise MetaSearchError(f"the coordinator cannot be started: {error}") from None
