"""Ray worker actors: placement, two calls in flight per worker, replacement of those that die or hang."""

import logging
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError

from common.config import ClusterConfig
from common.errors import AdaptationError
from common.messages import AdaptRequest, AdaptResult, FewShotRequest, SweepRequest, span_of
from common.meta.prior import Prior
from coordinator.calls import Call, Outcome, PendingCall, exhausted
from coordinator.cluster import cause_of
from coordinator.rounds import Request, Result, Supply
from coordinator.streaming import stream
from coordinator.sweep_hosts import SweepHosts
from workers.actor import QUICK_GROUP, STATUS_GROUP, SearchWorker, WorkerStatus

MAX_IN_FLIGHT = 2
_POLL_S = 1.0
_STATUS_TIMEOUT_S = 2.0
_KEPT_PRIORS = 8
_LONGEST_PAUSE_S = 60.0


@dataclass
class _Worker:
    """A worker actor and what it was given, oldest first; it works on the first.

    Beside that it has quick calls, each with the time at which it was given; they go between steps of the others.

    `starting` is a call to it that is answered once it runs; None from then on. Until then it is given nothing: an
    actor that finds no room, as after the loss of a node, waits for it without end. One that fails is started again
    at `restart_at_s`.
    """

    name: str
    handle: Any
    starting: Any
    restart_at_s: float | None = None
    in_flight: deque[tuple[Any, PendingCall]] = field(default_factory=deque)
    head_since_s: float = 0.0
    quick: deque[tuple[Any, PendingCall, float]] = field(default_factory=deque)

    @property
    def is_idle(self) -> bool:
        return not (self.in_flight or self.quick)


class RayPool:
    """Worker actors and what waits for them. Results do not depend on the number of workers.

    Calls go to workers that run; those that still wait for room on the cluster get none. A worker that dies, or that
    spends longer than `task_timeout_s` on each task of a call, is replaced. The call that it was working on is lost;
    the ones behind it run elsewhere.

    Args:
        name: prefix of the workers' names in the dashboard.
        num_workers: actors to hold.
        gpus_per_worker: GPUs of each.
        config: time limit and attempts.
        now_s: a monotonic clock.
        logger: hears of replacements.
        should_stop: asked at least once a second; once true, `run` ends early.
        worker_class: what the workers are, with the methods of `SearchWorker`.
        pause: waits for some seconds, by the same clock.
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
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self._name = name
        self.gpus_per_worker = gpus_per_worker
        self._config = config
        self._now_s = now_s
        self._logger = logger
        self._should_stop = should_stop
        self._pause = pause
        self._actor_class: Any = ray.remote(  # type: ignore[call-overload]
            concurrency_groups={STATUS_GROUP: 1, QUICK_GROUP: MAX_IN_FLIGHT}, max_restarts=0
        )(worker_class)
        self._num_started = 0
        self._num_replaced = 0
        self._num_failed_starts = 0  # since the last that did not fail
        self._prior_refs: OrderedDict[str, Any] = OrderedDict()
        self._waiting: deque[PendingCall] = deque()
        self._waiting_quick: deque[PendingCall] = deque()
        self._hosts = SweepHosts(gpus_per_worker, logger)
        self._num_wanted = num_workers
        self._workers = [self._start_worker() for _ in range(num_workers)]

    @property
    def num_workers(self) -> int:
        """Workers that run; others may be waiting for room."""
        return sum(worker.starting is None for worker in self._workers)

    @property
    def max_workers(self) -> int:
        """Workers, those that are starting and those without room included."""
        return len(self._workers)

    @property
    def num_replaced(self) -> int:
        """Workers that had to be replaced so far."""
        return self._num_replaced

    @property
    def num_by_state(self) -> Mapping[str, int]:
        """Workers that run, that start or find no room, that there should be, whose room is lent to sweeps."""
        states = {"running": self.num_workers, "wanted": self._num_wanted, "lent": self._hosts.num_lent}
        return {**states, "starting": self.max_workers - self.num_workers}

    @property
    def num_pending(self) -> int:
        """Calls that were submitted and have no outcome yet; quick ones apart, and sweeps, which have own workers."""
        return len(self._waiting) + sum(len(worker.in_flight) for worker in self._workers)

    @property
    def num_quick(self) -> int:
        """The same of quick calls: those of few-shot jobs."""
        return len(self._waiting_quick) + sum(len(worker.quick) for worker in self._workers)

    def resize(self, num_workers: int) -> None:
        """Holds another number of workers from now on, lent ones included. Those at work stay for now."""
        self._num_wanted = num_workers
        self._fit()

    def _fit(self) -> None:
        """As many workers as there should be, but for those whose room is lent to sweeps."""
        num_workers = max(self._num_wanted - self._hosts.num_lent, 0)
        while len(self._workers) < num_workers:
            self._workers.append(self._start_worker())
        idle = [worker for worker in self._workers if worker.is_idle]
        idle.sort(key=lambda worker: worker.starting is None)  # first those that find no room
        for worker in idle[: len(self._workers) - num_workers]:
            ray.kill(worker.handle)
            self._workers.remove(worker)

    def submit(self, key: str, request: Call, prior: Prior | None) -> None:
        """Queues a call: to adapt to one task or to several, or to run a job or a part of it.

        Args:
            key: names the outcome.
            request: what to do.
            prior: to start from; None for an `EvaluateRequest` or a `SweepRequest`, which take none.
        """
        if isinstance(request, SweepRequest):
            # One worker at least is left to others, where there are two.
            room = max(self._num_wanted - self._hosts.num_lent - 1, 1)
            self._hosts.add(key, request, min(request.plan.config.concurrency or room, room))
            return
        waiting = self._waiting_quick if isinstance(request, FewShotRequest) else self._waiting
        waiting.append(PendingCall(key, request, prior))

    def poll(self, timeout_s: float) -> list[Outcome]:
        """Hands out what waits, and returns what has ended; after `timeout_s` at the latest."""
        self._hosts.look()
        self._fit()
        self._look_at_starting()
        self._fill()
        at_hand = {worker.in_flight[0][0]: worker for worker in self._workers if worker.in_flight}
        at_hand |= {ref: worker for worker in self._workers for ref, _, _ in worker.quick}
        starting = list(self._starting())
        sweeps = self._hosts.calls
        is_waiting = bool(self._waiting or self._waiting_quick)
        awaited = [*at_hand, *sweeps, *(starting if is_waiting else ())]
        if not awaited:
            if is_waiting:  # all workers wait to be started again
                self._pause(timeout_s)
            return []
        ready, _ = ray.wait(awaited, num_returns=1, timeout=timeout_s)
        outcomes: list[Outcome] = []
        for ref in ready:
            # A worker that died is found out by the first of its calls.
            if ref in at_hand and at_hand[ref] in self._workers:
                outcomes += self._outcomes(at_hand[ref], ref)
        ended = [self._hosts.ended(ref) for ref in ready if ref in sweeps]
        outcomes += [Outcome(each.key, each.result, each.error, each.lost) for each in ended]
        for worker in list(self._workers):
            limit_s = self._time_up(worker)
            if limit_s is not None:
                outcomes += self._replace(worker, f"gave no result for {limit_s:g} s")
        self._look_at_starting()
        self._fill()
        return outcomes

    def abandon(self, key: str) -> None:
        """Forgets a call. A worker at work on it cannot be told to stop, so it is replaced."""
        if self._hosts.abandon(key):
            return
        self._waiting = deque(call for call in self._waiting if call.key != key)
        self._waiting_quick = deque(call for call in self._waiting_quick if call.key != key)
        for worker in list(self._workers):
            for position, (ref, call, _) in enumerate(worker.quick):
                if call.key == key:  # it ends soon by itself, and its result is dropped
                    ray.cancel(ref)
                    del worker.quick[position]
                    break
            if worker.in_flight and worker.in_flight[0][1].key == key:
                self._logger.info("%s is replaced: %s was given up", worker.name, key)
                self._swap(worker)
            else:
                # Called off before it starts; if it is too late, its result is dropped.
                for position, (ref, call) in enumerate(worker.in_flight):
                    if call.key == key:
                        ray.cancel(ref)
                        del worker.in_flight[position]
                        break

    def run(
        self, prior: Prior, requests: Sequence[Request], is_over: Callable[[], bool] = lambda: False
    ) -> Generator[Result, None, None]:
        """Yields results as they come; see `coordinator.rounds.Executor`. Not while other calls are pending.

        Raises:
            AdaptationError: a task, or a bundle of them, was started `max_attempts` times without a result.
            MetaSearchError: what a task raised on purpose; another attempt would raise it again.
        """
        by_key = {span_of(request.task_ids): request for request in requests}
        attempts = dict.fromkeys(by_key, 0)
        for key, request in by_key.items():
            self.submit(key, request, prior)
        try:
            while not (self._should_stop() or is_over()) and self.num_pending:
                for outcome in self.poll(_POLL_S):
                    request = by_key[outcome.key]
                    if outcome.error is not None:
                        # Of several tasks, the worker has named the one.
                        task = f"task {outcome.key}: " if isinstance(request, AdaptRequest) else ""
                        raise type(outcome.error)(f"{task}{outcome.error}") from outcome.error
                    if outcome.lost:
                        attempts[outcome.key] += 1
                        if attempts[outcome.key] >= self._config.max_attempts:
                            raise AdaptationError(exhausted(outcome, attempts[outcome.key]))
                        # To the front: the round waits for it.
                        self._waiting.appendleft(PendingCall(outcome.key, request, prior))
                        continue
                    yield outcome.result
        finally:
            self.give_up()

    def stream(self, supply: Supply) -> Generator[AdaptResult, None, None]:
        """Yields results as they come; see `coordinator.streaming.stream`."""
        return stream(self, supply, MAX_IN_FLIGHT, self._config.max_attempts, self._should_stop)

    def status(self, timeout_s: float = _STATUS_TIMEOUT_S) -> list[WorkerStatus]:
        """What the workers that answer are doing."""
        refs = [worker.handle.status.remote() for worker in list(self._workers) if worker.starting is None]
        refs += [handle.status.remote() for handle in self._hosts.handles]
        ready, _ = ray.wait(refs, num_returns=len(refs), timeout=timeout_s)
        found = []
        for ref in ready:
            try:
                found.append(ray.get(ref))
            except RayActorError:
                continue
        return found

    def give_up(self) -> None:
        """Forgets all calls."""
        for worker in list(self._workers):
            if not worker.is_idle:
                self._swap(worker)
        self._waiting.clear()
        self._waiting_quick.clear()

    def close(self) -> None:
        """Ends all workers and sweeps."""
        self._hosts.close()
        for worker in self._workers:
            ray.kill(worker.handle)
        self._workers = []

    def _start_worker(self) -> _Worker:
        name = f"{self._name}/worker-{self._num_started}"
        self._num_started += 1
        options = {"name": name, "num_cpus": 1, "num_gpus": self.gpus_per_worker}
        handle = self._actor_class.options(**options).remote(name)
        return _Worker(name, handle, handle.status.remote())

    def _starting(self) -> dict[Any, _Worker]:
        """Workers of which it is not known yet whether they run, by their `starting`."""
        unknown = [worker for worker in self._workers if worker.starting is not None and worker.restart_at_s is None]
        return {worker.starting: worker for worker in unknown}

    def _look_at_starting(self) -> None:
        """Notes which workers run by now; one that could not start is replaced, after a pause that grows."""
        for worker in list(self._workers):
            if worker.restart_at_s is not None and worker.restart_at_s <= self._now_s():
                self._swap(worker)
        starting = self._starting()
        ready, _ = ray.wait(list(starting), num_returns=len(starting), timeout=0) if starting else ([], [])
        for ref in ready:
            worker = starting[ref]
            try:
                ray.get(ref)
            except RayError as error:
                pause_s = min(2.0**self._num_failed_starts, _LONGEST_PAUSE_S)
                self._num_failed_starts += 1
                worker.restart_at_s = self._now_s() + pause_s
                reason = str(error).strip().splitlines()[0]
                self._logger.warning("%s could not start: %s; next try in %g s", worker.name, reason, pause_s)
            else:
                worker.starting = None
                self._num_failed_starts = 0

    def _put(self, prior: Prior) -> Any:
        """The prior in the object store, once per version."""
        digest = prior.digest()
        if digest not in self._prior_refs:
            self._prior_refs[digest] = ray.put(prior)
            while len(self._prior_refs) > _KEPT_PRIORS:
                self._prior_refs.popitem(last=False)
        self._prior_refs.move_to_end(digest)
        return self._prior_refs[digest]

    def _fill(self) -> None:
        """Hands out calls, to the least busy worker first."""
        running = [worker for worker in self._workers if worker.starting is None]
        while self._waiting_quick and running:
            worker = min(running, key=lambda worker: (len(worker.quick), len(worker.in_flight)))
            if len(worker.quick) >= MAX_IN_FLIGHT:
                break
            call = self._waiting_quick.popleft()
            worker.quick.append((self._give(worker, call), call, self._now_s()))
        while self._waiting and running:
            worker = min(running, key=lambda worker: len(worker.in_flight))
            if len(worker.in_flight) >= MAX_IN_FLIGHT:
                return
            call = self._waiting.popleft()
            if not worker.in_flight:
                worker.head_since_s = self._now_s()
            worker.in_flight.append((self._give(worker, call), call))

    def _give(self, worker: _Worker, call: PendingCall) -> Any:
        priors = () if call.prior is None else (self._put(call.prior),)
        return getattr(worker.handle, call.method).options(name=call.title).remote(call.request, *priors)

    def _outcomes(self, worker: _Worker, ref: Any) -> list[Outcome]:
        """What became of a call that has ended, and of those that were lost with it."""
        quick = next((given for given in worker.quick if given[0] == ref), None)
        call = worker.in_flight[0][1] if quick is None else quick[1]
        try:
            result = ray.get(ref)
        except RayTaskError as error:
            outcome = Outcome(call.key, error=cause_of(error))
        except RayError:
            # Its process is gone, or its result is.
            return self._replace(worker, "died")
        else:
            outcome = Outcome(call.key, result)
        if quick is not None:
            worker.quick.remove(quick)
        else:
            worker.in_flight.popleft()
            worker.head_since_s = self._now_s()
        return [outcome]

    def _time_up(self, worker: _Worker) -> float | None:
        """The seconds that a call of a worker was allowed, where it has exceeded them."""
        now_s, limit_s = self._now_s(), self._config.task_timeout_s
        if worker.quick and now_s - worker.quick[0][2] > limit_s:
            return limit_s
        if not worker.in_flight:
            return None
        limit_s *= worker.in_flight[0][1].num_tasks
        return limit_s if now_s - worker.head_since_s > limit_s else None

    def _replace(self, worker: _Worker, reason: str) -> list[Outcome]:
        """A new worker in place of one; the calls at hand are lost, quick ones too."""
        lost = [call for _, call in list(worker.in_flight)[:1]] + [call for _, call, _ in worker.quick]
        keys = ", ".join(call.key for call in lost)
        self._logger.warning("%s %s at task %s; replacing it", worker.name, reason, keys)
        self._num_replaced += 1
        worker.quick.clear()
        self._swap(worker)
        return [Outcome(call.key, lost=f"the worker {reason}") for call in lost]

    def _swap(self, worker: _Worker) -> None:
        """A new worker; the calls that the old one had not begun go to the front of the queue, and quick ones."""
        ray.kill(worker.handle)
        self._waiting.extendleft(call for _, call in reversed(list(worker.in_flight)[1:]))
        self._waiting_quick.extendleft(call for _, call, _ in reversed(worker.quick))
        worker.in_flight.clear()
        worker.quick.clear()
        self._workers[self._workers.index(worker)] = self._start_worker()
