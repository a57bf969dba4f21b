"""Starts worker actors, and finds out which of them run."""

import logging
from collections.abc import Callable, Iterable
from typing import Any

import ray
from ray.exceptions import RayError

from coordinator.held_worker import HeldWorker
from workers.actor import QUICK_GROUP, STATUS_GROUP

_LONGEST_PAUSE_S = 60.0


class Launcher:
    """Starts the workers of one pool.

    Args:
        name: prefix of the workers' names in the dashboard.
        gpus_per_worker: GPUs of each.
        num_quick: quick calls that each has at once.
        worker_class: what the workers are, with the methods of `SearchWorker`.
        now_s: a monotonic clock.
        logger: hears of those that cannot start.
    """

    def __init__(
        self,
        name: str,
        gpus_per_worker: float,
        num_quick: int,
        worker_class: type,
        now_s: Callable[[], float],
        logger: logging.Logger,
    ) -> None:
        self._name = name
        self._gpus_per_worker = gpus_per_worker
        self._now_s = now_s
        self._logger = logger
        self._actor_class: Any = ray.remote(  # type: ignore[call-overload]
            concurrency_groups={STATUS_GROUP: 1, QUICK_GROUP: num_quick}, max_restarts=0
        )(worker_class)
        self._num_started = 0
        self._num_failed_starts = 0  # since the last that did not fail

    def start(self) -> HeldWorker:
        """A new worker, which waits until it finds room."""
        name = f"{self._name}/worker-{self._num_started}"
        self._num_started += 1
        options = {"name": name, "num_cpus": 1, "num_gpus": self._gpus_per_worker}
        handle = self._actor_class.options(**options).remote(name)
        return HeldWorker(name, handle, handle.status.remote())

    def look(self, workers: Iterable[HeldWorker]) -> list[HeldWorker]:
        """Notes which workers run by now. One that could not start is to be replaced after a pause, which grows.

        Returns:
            Those to be replaced now.
        """
        starting = {worker.starting: worker for worker in workers if worker.is_starting}
        unknown = [ref for ref, worker in starting.items() if worker.restart_at_s is None]
        ready, _ = ray.wait(unknown, num_returns=len(unknown), timeout=0) if unknown else ([], [])
        for ref in ready:
            worker = starting[ref]
            try:
                worker.node_id = ray.get(ref).node_id
            except RayError as error:
                pause_s = min(2.0**self._num_failed_starts, _LONGEST_PAUSE_S)
                self._num_failed_starts += 1
                worker.restart_at_s = self._now_s() + pause_s
                reason = str(error).strip().splitlines()[0]
                self._logger.warning("%s could not start: %s; next try in %g s", worker.name, reason, pause_s)
            else:
                worker.starting = None
                self._num_failed_starts = 0
        due_s = self._now_s()
        return [
            worker for worker in starting.values() if worker.restart_at_s is not None and worker.restart_at_s <= due_s
        ]
