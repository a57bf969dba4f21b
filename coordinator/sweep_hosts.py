"""Ray actors that run sweeps, one for each, on workers that the pool lends them."""

import logging
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from common.errors import MetaSearchError
from common.messages import JobResult, SweepRequest
from coordinator.cluster import NAMESPACE, cause_of
from coordinator.sweep import Trial, best_of
from workers.actor import STATUS_GROUP, WorkerStatus


class SweepHost:
    """Runs one sweep; its trials are actors of their own, and go when it goes."""

    def __init__(self, job_id: str) -> None:
        self._job_id = job_id
        self._lock = threading.Lock()
        self._num_over = 0
        self._metrics: dict[str, float] = {}

    def run(self, request: SweepRequest, concurrency: int, gpus_per_trial: float) -> JobResult:
        """See `coordinator.sweep_job`."""
        from coordinator.sweep_job import run_sweep_job  # Tune takes seconds to import, and few need it

        def note(trials: Sequence[Trial]) -> None:
            best = best_of(trials, request.plan)
            states = [trial.state for trial in trials]
            found = {
                "trials_running": float(states.count("running")),
                "trials_failed": float(states.count("failed")),
            }
            if best is not None and best.value is not None:
                found |= {"best_trial": float(best.number), "best_value": best.value}
            with self._lock:
                self._num_over = sum(state not in ("waiting", "running") for state in states)
                self._metrics = found

        return run_sweep_job(request, concurrency, gpus_per_trial, note)

    @ray.method(concurrency_group=STATUS_GROUP)
    def status(self) -> WorkerStatus:
        """How far the sweep is: trials that are over, how many run, which is best."""
        with self._lock:
            return WorkerStatus(
                f"sweep {self._job_id}", os.getpid(), "", self._job_id, self._num_over, metrics=dict(self._metrics)
            )

    def __repr__(self) -> str:
        return f"SweepHost({self._job_id})"


@dataclass(frozen=True)
class Ended:
    """How a sweep's call ended: with a result, an error that another attempt would meet again, or lost."""

    key: str
    result: Any = None
    error: MetaSearchError | None = None
    lost: str = ""


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
                hosted.call = hosted.handle.run.remote(hosted.request, hosted.num_workers, self._gpus)

    def ended(self, call: Any) -> Ended:
        """How a call that is ready ended."""
        key = self.calls[call]
        hosted = self._hosted.pop(key)
        try:
            return Ended(key, ray.get(call))
        except RayTaskError as error:
            return Ended(key, error=cause_of(error))
        except RayError:
            return Ended(key, lost="the process of the sweep died")
        finally:
            ray.kill(hosted.handle)

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
