"""Ray actors that run sweeps, one for each, on workers that the pool lends them."""

import logging
import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from common.errors import MetaSearchError
from common.messages import JobResult, SweepRequest
from coordinator.cluster import NAMESPACE, cause_of
from coordinator.nodes import was_taken_away
from coordinator.sweep_process import run_in_process
from workers.actor import STATUS_GROUP, WorkerStatus

_DIED = "the process of the sweep died"


class SweepHost:
    """Runs one sweep, in a process that ends when it does."""

    def __init__(self, job_id: str) -> None:
        self._job_id = job_id
        self._lock = threading.Lock()
        self._num_over = 0
        self._metrics: Mapping[str, float] = {}

    def run(self, request: SweepRequest, concurrency: int, gpus_per_trial: float) -> JobResult | None:
        """See `coordinator.sweep_process`."""
        address = ray.get_runtime_context().gcs_address
        return run_in_process(request, concurrency, gpus_per_trial, address, self._note)

    @ray.method(concurrency_group=STATUS_GROUP, enable_task_events=False)  # asked for all the time
    def status(self) -> WorkerStatus:
        """How far the sweep is: trials that are over, how many run, which is best."""
        with self._lock:
            return WorkerStatus(
                f"sweep {self._job_id}", os.getpid(), "", self._job_id, self._num_over, metrics=self._metrics
            )

    def _note(self, num_over: int, metrics: Mapping[str, float]) -> None:
        with self._lock:
            self._num_over, self._metrics = num_over, metrics

    def __repr__(self) -> str:
        return f"sweep host of job {self._job_id}"


@dataclass(frozen=True)
class Ended:
    """How a sweep's call ended: with a result, an error that another attempt would meet again, or lost."""

    key: str
    result: Any = None
    error: MetaSearchError | None = None
    lost: str = ""
    uses_attempt: bool = True


@dataclass
class _Hosted:
    request: SweepRequest
    num_workers: int
    handle: Any = None
    call: Any = None


class SweepHosts:
    """The sweeps at hand.

    A sweep's host has a name that only one actor of the cluster can have: an attempt begins once the host of the one
    before is gone, so no two of them write to the same state.

    Args:
        gpus_per_trial: GPUs of each trial.
        logger: of the coordinator.
    """

    def __init__(self, gpus_per_trial: float, logger: logging.Logger) -> None:
        self._gpus = gpus_per_trial
        self._logger = logger
        self._hosted: dict[str, _Hosted] = {}
        # Concurrency groups give the status a thread of its own.
        self._actor_class: Any = ray.remote(concurrency_groups={STATUS_GROUP: 1}, max_restarts=0, num_cpus=0)(SweepHost)  # type: ignore[call-overload]

    @property
    def num_lent(self) -> int:
        """Workers that make room for trials."""
        return sum(hosted.num_workers for hosted in self._hosted.values())

    @property
    def calls(self) -> dict[Any, str]:
        """Calls without an outcome yet, and their keys."""
        return {hosted.call: key for key, hosted in self._hosted.items() if hosted.call is not None}

    def add(self, key: str, request: SweepRequest, num_workers: int) -> None:
        """Begins a sweep as soon as the host of an earlier attempt is gone."""
        self._hosted[key] = _Hosted(request, num_workers)
        with_same_name = _find(_name(request))
        if with_same_name is not None:
            self._logger.info("the host of an earlier attempt at %s is ended", key)
            ray.kill(with_same_name)

    def look(self) -> None:
        """Starts hosts whose names have become free."""
        for hosted in self._hosted.values():
            if hosted.handle is None:
                name = _name(hosted.request)
                try:
                    hosted.handle = self._actor_class.options(name=name, namespace=NAMESPACE).remote(
                        hosted.request.job_id
                    )
                except ValueError:
                    continue  # not gone yet
                title = f"job {hosted.request.job_id}: sweep, attempt {hosted.request.attempt}"
                call = hosted.handle.run.options(name=title)
                hosted.call = call.remote(hosted.request, hosted.num_workers, self._gpus)

    def ended(self, call: Any) -> Ended:
        """How a call that is ready ended."""
        key = self.calls[call]
        hosted = self._hosted.pop(key)
        try:
            found: JobResult | None = ray.get(call)
        except RayTaskError as error:
            return Ended(key, error=cause_of(error))
        except RayError as error:
            return Ended(key, lost=_DIED, uses_attempt=not was_taken_away(error, None))
        finally:
            ray.kill(hosted.handle)
        return Ended(key, lost=_DIED) if found is None else Ended(key, found)

    def abandon(self, key: str) -> bool:
        """Ends a sweep; False where there is no such."""
        hosted = self._hosted.pop(key, None)
        if hosted is None:
            return False
        if hosted.handle is not None:
            ray.kill(hosted.handle)
        return True

    def close(self) -> None:
        """Ends all sweeps."""
        for key in list(self._hosted):
            self.abandon(key)

    @property
    def handles(self) -> list[Any]:
        """Hosts that were started."""
        return [hosted.handle for hosted in self._hosted.values() if hosted.handle is not None]


def _name(request: SweepRequest) -> str:
    return f"sweep/{request.job_id}"


def _find(name: str) -> Any:
    try:
        return ray.get_actor(name, namespace=NAMESPACE)
    except ValueError:
        return None
