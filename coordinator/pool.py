"""The executor over Ray worker actors: placement, two requests in flight per worker, retry, replacement."""

import logging
from collections import deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError

from common.config import ClusterConfig
from common.errors import AdaptationError
from common.messages import AdaptRequest, AdaptResult
from common.meta.prior import Prior
from coordinator.cluster import cause_of
from workers.actor import STATUS_GROUP, SearchWorker, WorkerStatus

MAX_IN_FLIGHT = 2
_POLL_S = 1.0
_STATUS_TIMEOUT_S = 2.0


@dataclass
class _Worker:
    """A worker actor and what it was given, oldest first; it works on the first."""

    name: str
    handle: Any
    in_flight: deque[tuple[Any, AdaptRequest]] = field(default_factory=deque)
    head_since_s: float = 0.0


class RayPool:
    """See `coordinator.rounds.Executor`. Results do not depend on the number of workers.

    A worker that dies, or that spends longer than `task_timeout_s` on one task, is replaced, and what it was given
    runs again elsewhere; only the task that it was working on has used up an attempt.

    Args:
        name: prefix of the workers' names in the dashboard.
        num_workers: actors to hold.
        gpus_per_worker: GPUs of each.
        config: time limit and attempts.
        now_s: a monotonic clock.
        logger: hears of replacements.
        should_stop: asked at least once a second; once true, `run` ends early.
        worker_class: what the workers are, with the methods of `SearchWorker`.
    """

    def __init__(
        self,
        name: str,
        num_workers: int,
        gpus_per_worker: float,
        config: ClusterConfig,
        now_s: Callable[[], float],
        logger: logging.Logger,
        should_stop: Callable[[], bool] = lambda: False,
        worker_class: type = SearchWorker,
    ) -> None:
        self._name = name
        self._gpus_per_worker = gpus_per_worker
        self._config = config
        self._now_s = now_s
        self._logger = logger
        self._should_stop = should_stop
        self._actor_class: Any = ray.remote(concurrency_groups={STATUS_GROUP: 1}, max_restarts=0)(worker_class)  # type: ignore[call-overload]
        self._num_started = 0
        self._num_replaced = 0
        self._prior_ref: tuple[str, Any] | None = None
        self._workers = [self._start_worker() for _ in range(num_workers)]

    @property
    def num_replaced(self) -> int:
        """Workers that had to be replaced so far."""
        return self._num_replaced

    def run(self, prior: Prior, requests: Sequence[AdaptRequest]) -> Generator[AdaptResult, None, None]:
        """Yields results as they come.

        Raises:
            AdaptationError: a task was started `max_attempts` times without a result.
            MetaSearchError: what a task raised on purpose; another attempt would raise it again.
        """
        prior_ref = self._put(prior)
        waiting = deque(requests)
        attempts = {request.task.task_id: 0 for request in requests}
        try:
            while not self._should_stop() and (waiting or any(worker.in_flight for worker in self._workers)):
                self._fill(waiting, prior_ref)
                yield from self._collect(waiting, attempts)
        finally:
            self._give_up()

    def status(self) -> list[WorkerStatus]:
        """What the workers that answer are doing."""
        refs = [worker.handle.status.remote() for worker in list(self._workers)]
        ready, _ = ray.wait(refs, num_returns=len(refs), timeout=_STATUS_TIMEOUT_S)
        found = []
        for ref in ready:
            try:
                found.append(ray.get(ref))
            except RayActorError:
                continue
        return found

    def close(self) -> None:
        """Ends all workers."""
        for worker in self._workers:
            ray.kill(worker.handle)
        self._workers = []

    def _start_worker(self) -> _Worker:
        name = f"{self._name}/worker-{self._num_started}"
        self._num_started += 1
        options = {"name": name, "num_cpus": 1, "num_gpus": self._gpus_per_worker}
        return _Worker(name, self._actor_class.options(**options).remote(name))

    def _put(self, prior: Prior) -> Any:
        """The prior in the object store, once per version."""
        digest = prior.digest()
        if self._prior_ref is None or self._prior_ref[0] != digest:
            self._prior_ref = (digest, ray.put(prior))
        return self._prior_ref[1]

    def _fill(self, waiting: deque[AdaptRequest], prior_ref: Any) -> None:
        """Hands out tasks, to the least busy worker first."""
        while waiting:
            worker = min(self._workers, key=lambda worker: len(worker.in_flight))
            if len(worker.in_flight) >= MAX_IN_FLIGHT:
                return
            request = waiting.popleft()
            if not worker.in_flight:
                worker.head_since_s = self._now_s()
            worker.in_flight.append((worker.handle.adapt.remote(request, prior_ref), request))

    def _collect(self, waiting: deque[AdaptRequest], attempts: dict[str, int]) -> Generator[AdaptResult, None, None]:
        """Yields what is finished; replaces workers that are dead or hang."""
        busy = [worker for worker in self._workers if worker.in_flight]
        heads = {worker.in_flight[0][0]: worker for worker in busy}
        ready, _ = ray.wait(list(heads), num_returns=1, timeout=_POLL_S)
        for ref in ready:
            worker = heads[ref]
            try:
                result: AdaptResult = ray.get(ref)
            except RayTaskError as error:
                cause = cause_of(error)
                raise type(cause)(f"task {worker.in_flight[0][1].task.task_id}: {cause}") from error
            except RayError:
                # Its process is gone, or its result is: both run again elsewhere.
                self._replace(worker, "died", waiting, attempts)
                continue
            worker.in_flight.popleft()
            worker.head_since_s = self._now_s()
            yield result
        for worker in busy:
            if worker.in_flight and self._now_s() - worker.head_since_s > self._config.task_timeout_s:
                reason = f"gave no result for {self._config.task_timeout_s:g} s"
                self._replace(worker, reason, waiting, attempts)

    def _replace(self, worker: _Worker, reason: str, waiting: deque[AdaptRequest], attempts: dict[str, int]) -> None:
        """A new worker in place of one, whose tasks go back to the front of the queue."""
        task_id = worker.in_flight[0][1].task.task_id
        attempts[task_id] += 1
        self._logger.warning("%s %s at task %s; replacing it", worker.name, reason, task_id)
        ray.kill(worker.handle)
        waiting.extendleft(request for _, request in reversed(worker.in_flight))
        worker.in_flight.clear()
        self._workers[self._workers.index(worker)] = self._start_worker()
        self._num_replaced += 1
        if attempts[task_id] >= self._config.max_attempts:
            raise AdaptationError(
                f"task {task_id} was started {attempts[task_id]} times without a result; the last worker {reason}. "
                "Look at memory and the worker's log in the Ray dashboard, or raise cluster.max_attempts"
            )

    def _give_up(self) -> None:
        """Forgets what is still in flight. A worker at work on it cannot be told to stop, so it is replaced."""
        for index, worker in enumerate(self._workers):
            if worker.in_flight:
                ray.kill(worker.handle)
                self._workers[index] = self._start_worker()
