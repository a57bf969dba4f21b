"""Ray worker actors: how many, two calls in flight for each, replacement of those that die, hang or have to leave."""

import logging
import time
from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from common.config import ClusterConfig
from common.errors import AdaptationError
from common.messages import AdaptRequest, AdaptResult, FewShotRequest, SweepRequest, span_of
from common.meta.prior import Prior
from coordinator.calls import Call, Outcome, PendingCall, exhausted
from coordinator.cluster import cause_of
from coordinator.held_worker import HeldWorker, donors, least_busy, spare, statuses_of
from coordinator.launcher import Launcher
from coordinator.nodes import Nodes, was_taken_away
from coordinator.prior_refs import PriorRefs
from coordinator.rounds import Request, Result, Supply
from coordinator.scaling import Load, Scaling, room_for
from coordinator.streaming import stream
from coordinator.sweep_hosts import SweepHosts
from workers.actor import SearchWorker, WorkerStatus

MAX_IN_FLIGHT = 2
MAX_OUTCOMES = 64
"""Calls that may end in one poll: what a poll costs grows with the workers, and what follows must not take too long."""
_POLL_S = 1.0
_STATUS_TIMEOUT_S = 2.0


class RayPool:
    """Worker actors and what waits for them. Results do not depend on the number of workers.

    Calls go to workers that run; those that still wait for room on the cluster get none. A worker that dies, or that
    spends longer than `task_timeout_s` on each task of a call, is replaced. The call that it was working on is lost;
    the ones behind it run elsewhere. A worker that has nothing left to do takes over what another has not begun.

    A worker whose node is about to be taken away gets no more calls, and hands over what it has not begun. It may end
    what it works on, until the node's time is up; then that is lost, and uses up no attempt. Another takes its place.

    Args:
        name: prefix of the workers' names in the dashboard.
        num_workers: actors to hold, at first.
        gpus_per_worker: GPUs of each.
        config: time limit and attempts.
        now_s: a monotonic clock.
        logger: hears of replacements.
        should_stop: asked at least once a second; once true, `run` ends early.
        worker_class: what the workers are, with the methods of `SearchWorker`.
        pause: waits for some seconds, by the same clock.
        scaling: says how many workers to hold from then on; without it, as many as at first.
        nodes: the cluster's nodes, asked at every poll; None while they are unknown.
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
        scaling: Scaling | None = None,
        nodes: Callable[[], Nodes | None] = lambda: None,
    ) -> None:
        self.gpus_per_worker = gpus_per_worker
        self._config = config
        self._now_s = now_s
        self._logger = logger
        self._should_stop = should_stop
        self._pause = pause
        self._scaling = scaling
        self._nodes = nodes
        self._queued = Load()
        self._launcher = Launcher(name, gpus_per_worker, MAX_IN_FLIGHT, worker_class, now_s, logger)
        self._num_replaced = 0
        self._prior_refs = PriorRefs()
        self._waiting: deque[PendingCall] = deque()
        self._waiting_quick: deque[PendingCall] = deque()
        self._hosts = SweepHosts(gpus_per_worker, logger)
        self._num_wanted = num_workers
        self._leaving: list[HeldWorker] = []
        self._workers = [self._launcher.start() for _ in range(num_workers)]

    @property
    def num_workers(self) -> int:
        """Workers that run and stay; others may be waiting for room."""
        return sum(not worker.is_starting for worker in self._workers)

    @property
    def max_workers(self) -> int:
        """The most workers that there may be: the end of their range, else those that are starting included."""
        held = len(self._workers)
        return held if self._scaling is None else self._scaling.most(held)

    @property
    def num_replaced(self) -> int:
        """Workers that had to be replaced so far."""
        return self._num_replaced

    @property
    def num_by_state(self) -> Mapping[str, int]:
        """Workers by what they do; see `common.metrics.WORKERS`."""
        starting = len(self._workers) - self.num_workers
        states = {"running": self.num_workers, "starting": starting, "wanted": self._num_wanted}
        return {**states, "lent": self._hosts.num_lent, "leaving": len(self._leaving)}

    @property
    def num_pending(self) -> int:
        """Calls that were submitted and have no outcome yet; quick ones apart, and sweeps, which have own workers."""
        return len(self._waiting) + sum(len(worker.in_flight) for worker in self._everyone)

    @property
    def num_quick(self) -> int:
        """The same of quick calls: those of few-shot jobs."""
        return len(self._waiting_quick) + sum(len(worker.quick) for worker in self._everyone)

    @property
    def _everyone(self) -> list[HeldWorker]:
        return [*self._workers, *self._leaving]

    def resize(self, num_workers: int) -> None:
        """Holds another number of workers from now on, lent ones included. Those at work stay for now."""
        if num_workers != self._num_wanted:
            self._logger.info("%d workers are wanted; %d were", num_workers, self._num_wanted)
        self._num_wanted = num_workers
        self._fit()

    def expect(self, load: Load) -> None:
        """Says what there would be to do if there were more workers: what is not submitted yet for want of them."""
        self._queued = load

    def _fit(self) -> None:
        """As many workers as there should be, but for those whose room is lent to sweeps."""
        num_workers = max(self._num_wanted - self._hosts.num_lent, 0)
        while len(self._workers) < num_workers:
            self._workers.append(self._launcher.start())
        for worker in spare(self._workers, len(self._workers) - num_workers):
            ray.kill(worker.handle)
            self._workers.remove(worker)

    def _follow(self) -> None:
        """What becomes of nodes, and of what there is to do, is followed."""
        nodes = self._nodes()
        if nodes is None:
            return
        for worker in [each for each in self._workers if each.node_id in nodes.draining]:
            left_s = nodes.draining[worker.node_id or ""]
            within = "" if left_s is None else f" in {left_s:.0f} s"
            self._logger.warning("%s leaves: its node is taken away%s", worker.name, within)
            worker.leave(self._now_s(), left_s)
            self._workers.remove(worker)
            self._leaving.append(worker)
        for worker in list(self._workers):
            is_there = worker.node_id in nodes.resources
            if worker.is_placed and not is_there and worker.is_idle:  # one with calls is found out by these
                self._logger.warning("%s is replaced: its node is gone", worker.name)
                self._swap(worker)
            worker.is_placed = is_there
        if self._scaling is not None:
            load = Load(
                self.num_pending + self._hosts.num_lent + self._queued.num_calls,
                self.num_quick + self._queued.num_quick,
            )
            room = room_for(nodes.resources.values(), self.gpus_per_worker)
            self.resize(self._scaling.target(load, room, self._now_s()))

    def submit(self, key: str, request: Call, prior: Prior | None) -> None:
        """Queues a call: to adapt to one task or to several, or to run a job or a part of it.

        Args:
            key: names the outcome.
            request: what to do.
            prior: to start from; None for an `EvaluateRequest` or a `SweepRequest`, which take none.
        """
        if isinstance(request, SweepRequest):
            # One worker at least is left to others, where there are two.
            room = max(max(self._num_wanted, self.max_workers) - self._hosts.num_lent - 1, 1)
            self._hosts.add(key, request, min(request.plan.config.concurrency or room, room))
            return
        waiting = self._waiting_quick if isinstance(request, FewShotRequest) else self._waiting
        waiting.append(PendingCall(key, request, prior))

    def poll(self, timeout_s: float) -> list[Outcome]:
        """Hands out what waits, and returns what has ended; after `timeout_s` at the latest."""
        self._hosts.look()
        self._follow()
        self._fit()
        self._look_at_starting()
        self._fill()
        outcomes = self._let_go()
        at_hand = {ref: worker for worker in self._everyone for ref in worker.at_hand}
        asked = {worker.withdrawal[0]: worker for worker in self._everyone if worker.withdrawal is not None}
        starting = [each.starting for each in self._workers if each.is_starting and each.restart_at_s is None]
        sweeps = self._hosts.calls
        is_waiting = bool(self._waiting or self._waiting_quick)
        awaited = [*at_hand, *asked, *sweeps, *(starting if is_waiting else ())]
        if not awaited:
            if is_waiting and not outcomes:  # all workers wait to be started again
                self._pause(timeout_s)
            return outcomes
        ready, _ = ray.wait(awaited, num_returns=min(len(awaited), MAX_OUTCOMES), timeout=0)
        if not (ready or outcomes):
            ready, _ = ray.wait(awaited, num_returns=1, timeout=timeout_s)
        for ref in ready:
            # A result may have settled what its worker was asked; and of one that died the first call tells of all.
            if ref in asked and asked[ref].withdrawal is not None:
                self._settle(asked[ref])
            elif ref in at_hand and ref in at_hand[ref].at_hand:
                outcomes += self._outcomes(at_hand[ref], ref)
        ended = [self._hosts.ended(ref) for ref in ready if ref in sweeps]
        outcomes += [Outcome(each.key, each.result, each.error, each.lost, each.uses_attempt) for each in ended]
        for worker in self._everyone:
            limit_s = worker.time_up(self._now_s(), self._config.task_timeout_s)
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
        for worker in self._everyone:
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
                        attempts[outcome.key] += outcome.uses_attempt
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
        running = [worker.handle for worker in self._everyone if not worker.is_starting]
        return statuses_of([*running, *self._hosts.handles], timeout_s)

    def give_up(self) -> None:
        """Forgets all calls."""
        for worker in self._everyone:
            if not worker.is_idle:
                self._swap(worker)
        self._waiting.clear()
        self._waiting_quick.clear()

    def close(self) -> None:
        """Ends all workers and sweeps."""
        self._hosts.close()
        for worker in self._everyone:
            ray.kill(worker.handle)
        self._workers, self._leaving = [], []

    def _look_at_starting(self) -> None:
        for worker in self._launcher.look(self._workers):
            self._swap(worker)

    def _fill(self) -> None:
        """Hands out calls, to the least busy worker first."""
        running = [worker for worker in self._workers if not worker.is_starting]
        takes_quick = least_busy(running, lambda worker: (len(worker.quick), len(worker.in_flight)), MAX_IN_FLIGHT)
        while self._waiting_quick and (worker := next(takes_quick, None)):
            call = self._waiting_quick.popleft()
            worker.quick.append((self._give(worker, call), call, self._now_s()))
        takes_more = least_busy(running, lambda worker: (worker.depth,), MAX_IN_FLIGHT)
        while self._waiting and (worker := next(takes_more, None)):
            call = self._waiting.popleft()
            if not worker.in_flight:
                worker.head_since_s = self._now_s()
            worker.in_flight.append((self._give(worker, call), call))
        if self._waiting:
            return
        for worker in donors(self._everyone):
            worker.ask_back()

    def _let_go(self) -> list[Outcome]:
        """Workers that leave hand over what they have not begun, and end once that was all, or their time is up."""
        outcomes: list[Outcome] = []
        for worker in list(self._leaving):
            assert worker.leaves_at_s is not None
            worker.ask_back()
            if worker.is_idle:
                self._swap(worker)
            elif worker.leaves_at_s <= self._now_s():
                outcomes += self._replace(worker, "had to leave its node")
        return outcomes

    def _settle(self, worker: HeldWorker) -> None:
        """Takes a call back that a worker has not begun, if it agrees: it was the first to be handed out next."""
        assert worker.withdrawal is not None
        answer, asked = worker.withdrawal
        try:
            agreed: bool = ray.get(answer)
        except RayError:  # it died; its calls will tell
            agreed = False
        call = worker.given_back(agreed)
        if call is not None:
            ray.cancel(asked)
            self._waiting.appendleft(call)

    def _give(self, worker: HeldWorker, call: PendingCall) -> Any:
        priors = () if call.prior is None else (self._prior_refs.of(call.prior),)
        return getattr(worker.handle, call.method).options(name=call.title).remote(call.request, *priors)

    def _outcomes(self, worker: HeldWorker, ref: Any) -> list[Outcome]:
        """What became of a call that has ended, and of those that were lost with it."""
        if worker.withdrawal is not None and worker.withdrawal[1] == ref:
            self._settle(worker)
            if ref not in worker.at_hand:
                return []
        quick = next((given for given in worker.quick if given[0] == ref), None)
        call = worker.in_flight[0][1] if quick is None else quick[1]
        try:
            result = ray.get(ref)
        except RayTaskError as error:
            outcome = Outcome(call.key, error=cause_of(error))
        except RayError as error:
            # Its process is gone, or its result is.
            if was_taken_away(error, worker.node_id):
                worker.leaves_at_s = self._now_s()
                return self._replace(worker, "was taken away with its node")
            return self._replace(worker, "died")
        else:
            outcome = Outcome(call.key, result)
        if quick is not None:
            worker.quick.remove(quick)
        else:
            worker.in_flight.popleft()
            worker.head_since_s = self._now_s()
        return [outcome]

    def _replace(self, worker: HeldWorker, reason: str) -> list[Outcome]:
        """A new worker in place of one; the calls at hand are lost, quick ones too."""
        lost = worker.begun
        keys = ", ".join(call.key for call in lost)
        self._logger.warning("%s %s at task %s; replacing it", worker.name, reason, keys)
        is_fault = worker.leaves_at_s is None
        self._num_replaced += is_fault
        worker.quick.clear()
        self._swap(worker)
        return [Outcome(call.key, lost=f"the worker {reason}", uses_attempt=is_fault) for call in lost]

    def _swap(self, worker: HeldWorker) -> None:
        """A new worker; the calls that the old one had not begun go to the front of the queue, and quick ones."""
        ray.kill(worker.handle)
        self._waiting.extendleft(call for _, call in reversed(list(worker.in_flight)[1:]))
        self._waiting_quick.extendleft(call for _, call, _ in reversed(worker.quick))
        worker.in_flight.clear()
        worker.quick.clear()
        if worker in self._leaving:  # another has its place already, if there should be one
            self._leaving.remove(worker)
        else:
            self._workers[self._workers.index(worker)] = self._launcher.start()
