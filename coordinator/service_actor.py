"""The coordinator actor of the service: runs a dispatcher, as a task of its own. Detached, and restarted by Ray.

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
from common.metrics import COORDINATOR_METRICS
from common.telemetry import logger_for
from coordinator.cluster import NAMESPACE, worker_resources
from coordinator.dispatcher import Dispatcher
from coordinator.nodes import NodeWatch
from coordinator.pool import RayPool
from coordinator.scaling import Scaling
from coordinator.service_metrics import ServiceMetrics
from coordinator.settings import ServiceSettings, open_ledger
from coordinator.store.fenced import SupersededError
from coordinator.store.jobs import JobStore
from coordinator.store.metered import MeteredLedger
from workers.ray_metrics import RayMetrics

ACTOR_NAME = "coordinator"
# What Ray gives the head of every cluster, and no other node.
_ON_THE_HEAD = {"node:__internal_head__": 0.001}
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
        self._recorder = RayMetrics(COORDINATOR_METRICS)
        self._epoch = 0
        # A task, not a thread: the dashboard shows that it runs, and what it failed with. It is kept, or Ray would
        # complain of an error that nobody fetched.
        this: Any = ray.get_runtime_context().current_actor
        self._serving = this.serve.options(name="run the jobs of the service").remote()

    @ray.method(enable_task_events=False)  # asked for all the time
    def status(self) -> Mapping[str, Any]:
        """What it is doing: state (starting, running, drained, superseded, failed), epoch, names of running jobs."""
        return {"state": self._state, "epoch": self._epoch, "running": self._running, "pid": os.getpid()}

    def drain(self) -> None:
        """Stops starting jobs and hands the running ones over; `status` says when it is done."""
        self._draining.set()

    def __repr__(self) -> str:
        """For the Ray dashboard, which asks once, when the actor has started; its tasks say what it is doing."""
        return f"coordinator on {socket.gethostname()}"

    def serve(self) -> None:
        """Runs jobs until it is drained. The actor calls this by itself, once it has started.

        Raises:
            SupersededError: another coordinator is in charge.
            Exception: any that was not expected; the supervisor sees the state, and replaces this actor.
        """
        try:
            self._serve()
        except SupersededError as error:
            self._log.error("%s; this one stops", error)
            self._state = "superseded"
            raise
        except Exception:
            self._log.exception("the coordinator failed")
            self._state = "failed"
            raise

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
        metrics = ServiceMetrics(self._recorder)
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
                        metrics,
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
            metrics.look((), pool, draining=False)  # one that was superseded lives on, and Ray goes on exporting
            watch.close()
            store.ledger.close()

    def _open_store(self) -> JobStore:
        while True:
            try:
                return JobStore(MeteredLedger(open_ledger(self._settings.store), self._recorder, time.monotonic))
            except UnavailableError as error:
                self._log.warning("%s", error)
                time.sleep(_RETRY_S)


def _capacity(num_workers: int) -> str:
    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    cpus, gpus = resources.get("CPU", 0), resources.get("GPU", 0)
    return f"the cluster has {cpus:g} CPUs and {gpus:g} GPUs, and at most {num_workers} workers"


def start_service_coordinator(settings: ServiceSettings, cluster: ClusterConfig) -> Any:
    """Starts the detached actor, or finds the one that is there.

    It is on the head: elsewhere it would keep a node that costs money, and die with one that is not needed any more.

    Raises:
        MetaSearchError: it cannot be placed.
    """
    actor_class: Any = ray.remote(ServiceCoordinator)
    options = {"num_cpus": 0, "max_restarts": -1, "max_concurrency": 4, "lifetime": "detached", "get_if_exists": True}
    options |= {"name": ACTOR_NAME, "namespace": NAMESPACE, "resources": _ON_THE_HEAD}
    try:
        return actor_class.options(**options).remote(settings, cluster)
    except ValueError as error:
        raise MetaSearchError(f"the coordinator cannot be started: {error}") from None
