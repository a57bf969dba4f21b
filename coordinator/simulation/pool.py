"""Simulated workers behind the dispatcher's `Pool`: handed calls as `coordinator.pool.RayPool` does, by the same rules.

A worker has two calls at most and begins the second as soon as the first ends; results travel one after the other
through the coordinator's interface, and wait until the coordinator polls. Results themselves are computed for real,
when they are taken.
"""

import heapq
from collections import Counter, deque
from collections.abc import Callable, Mapping
from typing import Any

from common.config import StudyConfig
from common.messages import JobRequest, PartialSumRequest
from common.meta.prior import Prior
from common.meta.sums import merged
from coordinator.calls import Call, Outcome, PendingCall
from coordinator.pool import MAX_IN_FLIGHT, MAX_OUTCOMES
from coordinator.recent_priors import RecentPriors
from coordinator.simulation.costs import Costs, Sizes
from coordinator.simulation.events import Clock, Events
from coordinator.simulation.host_sums import HostSums, as_partial_sum, outcomes_of_sum
from coordinator.simulation.models import Broadcast, Failures, Link, Network
from coordinator.simulation.workers import SimulatedWorker, Tally, Work, has_update
from workers.actor import WorkerStatus


class SimulatedPool:
    """See the module, and `coordinator.dispatcher.Pool`.

    Args:
        num_workers: that run from the start.
        clock: of the coordinator.
        costs: of its steps.
        sizes: bytes that the study moves.
        network: between hosts.
        failures: of workers.
        seed: of their deaths.
        seconds_of: what a worker takes for a call, its number of attempts so far given.
        compute: what it returns.
        sums_of: with it, hosts add up the updates of their workers by this configuration, and send one sum when nothing
            of a round waits or is under way there.
        window_s: when to count what workers compute.
        takes_over: workers without calls take over what others have not begun.
    """

    gpus_per_worker = 0.0

    def __init__(
        self,
        num_workers: int,
        clock: Clock,
        costs: Costs,
        sizes: Sizes,
        network: Network,
        failures: Failures,
        seed: int,
        seconds_of: Callable[[Call, int], float],
        compute: Callable[[Call, Prior | None], Any],
        sums_of: StudyConfig | None = None,
        window_s: tuple[float, float] = (0.0, float("inf")),
        takes_over: bool = True,
    ) -> None:
        self._takes_over = takes_over
        self._clock = clock
        self._costs = costs
        self._sizes = sizes
        self._network = network
        self._failures = failures
        self._seed = seed
        self._seconds_of = seconds_of
        self._compute = compute
        self._sums_of = sums_of
        self.tally = Tally(window_s)
        self.events = Events()
        self.inward = Link(network)
        self._workers = [SimulatedWorker(index, index // network.workers_per_host) for index in range(num_workers)]
        self._num_running = 0
        self._num_idle = 0
        self.num_replaced = 0
        self._with_two: dict[int, SimulatedWorker] = {}
        # Workers that may have room, by how many calls they have; whether they still do is looked at when it matters.
        self._least_busy: list[list[int]] = [[] for _ in range(MAX_IN_FLIGHT)]
        self._waiting: deque[PendingCall] = deque()
        self._num_in_flight = 0
        self._attempts: Counter[str] = Counter()
        self._broadcasts: RecentPriors[Broadcast] = RecentPriors()
        self._arrived: deque[tuple[float, Callable[[], list[Outcome]]]] = deque()
        self._sums = None if sums_of is None else HostSums()
        self._asked: set[int] = set()
        for worker in self._workers:
            self._runs(worker, 0.0)

    # What the dispatcher sees

    @property
    def num_workers(self) -> int:
        """Workers that run."""
        return self._num_running

    @property
    def max_workers(self) -> int:
        """All workers, those that are starting again included."""
        return len(self._workers)

    @property
    def num_by_state(self) -> Mapping[str, int]:
        """Workers by what they do; see `common.metrics.WORKERS`."""
        starting = len(self._workers) - self._num_running
        return {
            "running": self._num_running,
            "starting": starting,
            "wanted": len(self._workers),
            "lent": 0,
            "leaving": 0,
        }

    @property
    def num_pending(self) -> int:
        """Calls without an outcome yet."""
        return len(self._waiting) + self._num_in_flight

    def expect(self, load: object) -> None:
        """Hears what is not submitted for want of workers; there are no others here."""

    def submit(self, key: str, request: Call, prior: Prior | None) -> None:
        """Queues a call."""
        call = PendingCall(key, request, prior)
        if not isinstance(request, JobRequest):
            self._clock.charge("plan", self._costs.plan_per_task_s * call.num_tasks)
        self._append(call)

    def poll(self, timeout_s: float) -> list[Outcome]:
        """Returns what has arrived; moves simulated time on to the next arrival, by `timeout_s` at most."""
        self._clock.charge("poll", self._costs.poll_s + self._costs.poll_per_worker_s * len(self._workers))
        until_s = self._clock.now_s + timeout_s
        self.events.run_until(self._clock.now_s)
        self._fill()
        while not self._arrived and self.events.next_s <= until_s:
            self._clock.wait_until(self.events.next_s)
            self.events.run_until(self._clock.now_s)
        if not self._arrived:
            self._clock.wait_until(until_s)
            return []
        outcomes: list[Outcome] = []
        for _ in range(min(MAX_OUTCOMES, len(self._arrived))):
            arrived_s, take = self._arrived.popleft()
            self.tally.waited_s += self._clock.now_s - arrived_s
            self._clock.charge("receive", self._costs.receive_s)
            outcomes += take()
        self._fill()
        return outcomes

    def abandon(self, key: str) -> None:
        """Forgets a call. The worker at work on it is replaced."""
        for call in [call for call in self._waiting if call.key == key]:
            self._waiting.remove(call)
            self._count_waiting(call, -1)
        if self._sums is not None:
            self._sums.forget(key)
        for worker in self._workers:
            for position, work in enumerate(worker.in_flight):
                if work.call.key == key:
                    self._call_off(worker, position, work)
                    return

    def status(self, timeout_s: float = 2.0) -> list[WorkerStatus]:
        """How far jobs are that a worker computes by itself; the others' answers are not made up, only charged."""
        self._clock.charge("status", self._costs.status_per_worker_s * self._num_running)
        found = []
        for worker in self._workers:
            work = worker.in_flight[0] if worker.runs and worker.in_flight else None
            if work is None or not isinstance(work.call.request, JobRequest) or work.starts_s > self._clock.now_s:
                continue
            share = min((self._clock.now_s - work.starts_s) / (work.ends_s - work.starts_s), 1.0)
            steps = int(share * work.call.request.inner.steps)
            found.append(WorkerStatus(f"worker-{worker.index}", 0, "cpu", work.call.request.job_id, steps))
        return found

    def finish(self) -> None:
        """Counts what is under way, at the end."""
        for worker in self._workers:
            for work in worker.in_flight:
                if worker.runs and not work.has_ended:
                    self.tally.useful_s += self.tally.overlap(work.starts_s, self._clock.now_s)

    # Handing out

    def _append(self, call: PendingCall, in_front: bool = False) -> None:
        (self._waiting.appendleft if in_front else self._waiting.append)(call)
        self._count_waiting(call, 1)

    def _fill(self) -> None:
        """Hands out calls, to the least busy worker first."""
        if self._waiting:
            self._clock.charge("hand out", self._costs.search_per_worker_s * len(self._workers))
        while self._waiting:
            worker = self._with_room()
            if worker is None:
                break
            call = self._waiting.popleft()
            self._count_waiting(call, -1)
            self._give(worker, call)
        if self._takes_over and not self._waiting:
            self._spread()
        if self._sums is not None:
            for calls in self._sums.complete():
                self._send_sum(calls)

    def _spread(self) -> None:
        """Nothing waits: workers without calls take over what others have not begun, of the latest beginners first."""
        num_idle = self._num_idle - len(self._asked)
        if num_idle <= 0 or not self._with_two:
            return
        busy = [worker for worker in self._with_two.values() if worker.index not in self._asked]
        for worker in sorted(busy, key=lambda worker: -worker.in_flight[0].starts_s)[:num_idle]:
            self._clock.charge("hand out", self._costs.hand_out_s)
            self._asked.add(worker.index)
            self._ask_back(worker, worker.in_flight[-1])

    def _ask_back(self, worker: SimulatedWorker, work: Work) -> None:
        def answer(now_s: float) -> None:
            agrees = work in worker.in_flight and work.starts_s > now_s and worker.runs
            if agrees:  # from now on it cannot begin there
                work.starts_s = work.ends_s = float("inf")
                worker.free_s = worker.in_flight[0].ends_s
            self._arrives(now_s + self._network.latency_s, lambda: self._settle(worker, work, agrees))

        self.events.at(self._clock.now_s + self._network.latency_s, answer)

    def _settle(self, worker: SimulatedWorker, work: Work, agreed: bool) -> list[Outcome]:
        """A call that was taken back is the first to be handed out next."""
        self._asked.discard(worker.index)
        if agreed and work in worker.in_flight:
            self._remove(worker, work)
            self._has_room(worker)
            self._append(work.call, in_front=True)
        return []

    def _with_room(self) -> SimulatedWorker | None:
        for depth, heap in enumerate(self._least_busy):
            while heap:
                worker = self._workers[heapq.heappop(heap)]
                if worker.runs and worker.depth == depth:
                    return worker
        return None

    def _has_room(self, worker: SimulatedWorker) -> None:
        if worker.runs and worker.depth < MAX_IN_FLIGHT:
            heapq.heappush(self._least_busy[int(worker.depth)], worker.index)

    def _give(self, worker: SimulatedWorker, call: PendingCall) -> None:
        costs = self._costs
        self._clock.charge("hand out", costs.hand_out_s)
        ready_s = 0.0
        if call.prior is not None:
            ready_s, outward_bytes = self._broadcast(call.prior).pull(worker.host, self._clock.now_s)
            self.tally.outward_bytes += outward_bytes
        starts_s = max(self._clock.now_s + self._network.latency_s, worker.free_s, ready_s)
        work = Work(call, starts_s, starts_s + self._seconds_of(call.request, self._attempts[call.key]))
        worker.free_s = work.ends_s
        worker.in_flight.append(work)
        self._num_in_flight += 1
        self._num_idle -= len(worker.in_flight) == 1
        if len(worker.in_flight) > 1:
            self._with_two[worker.index] = worker
        if self._sums is not None:
            self._sums.at_host(worker.host, call, 1)
        self._has_room(worker)
        incarnation = worker.incarnation
        self.events.at(work.ends_s, lambda now_s: self._ends(worker, incarnation, work, now_s))

    def _broadcast(self, prior: Prior) -> Broadcast:
        """The prior in the object store, as `coordinator.prior_refs` puts it there."""
        broadcast = self._broadcasts.get(prior.digest())
        if broadcast is None:
            self._clock.charge("put", self._costs.put_s_per_byte * self._sizes.prior_bytes)
            broadcast = Broadcast(self._clock.now_s, self._sizes.prior_bytes, self._network)
            self._broadcasts.add(prior.digest(), broadcast, self._sizes.prior_bytes)
        return broadcast

    # What happens at workers

    def _runs(self, worker: SimulatedWorker, now_s: float) -> None:
        worker.incarnation += 1
        worker.runs = True
        worker.free_s = now_s
        self._num_running += 1
        self._num_idle += not worker.in_flight
        self._has_room(worker)
        incarnation = worker.incarnation
        lives_s = self._failures.draw(self._seed, worker.index, incarnation)
        if lives_s < float("inf"):
            self.events.at(now_s + lives_s, lambda then_s: self._dies(worker, incarnation, then_s))

    def _ends(self, worker: SimulatedWorker, incarnation: int, work: Work, now_s: float) -> None:
        if worker.incarnation != incarnation or not worker.runs or work.ends_s != now_s:
            return  # it died, or gave the call back
        work.has_ended = True
        if work not in worker.in_flight:  # called off too late
            self.tally.wasted_s += self.tally.overlap(work.starts_s, work.ends_s)
            return
        self.tally.useful_s += self.tally.overlap(work.starts_s, work.ends_s)
        self.tally.num_calls += 1
        request = work.call.request
        if self._sums is not None and not isinstance(request, JobRequest):
            # The host keeps the update; its worker has room again as soon as the coordinator hears of it.
            self._arrives(now_s + self._network.latency_s, lambda: self._hold(worker, work))
            return
        num_bytes = self._sizes.update_bytes if has_update(request) else 0
        if isinstance(request, PartialSumRequest):
            num_bytes = self._sizes.sum_bytes
        self._arrives(self.inward.send(now_s, num_bytes), lambda: self._take(worker, work))

    def _dies(self, worker: SimulatedWorker, incarnation: int, now_s: float) -> None:
        if worker.incarnation != incarnation or not worker.runs:
            return
        self.tally.num_deaths += 1
        self._stop(worker, now_s)
        self._arrives(now_s + self._network.latency_s, lambda: self._replace(worker))

    def _arrives(self, time_s: float, take: Callable[[], list[Outcome]]) -> None:
        self.events.at(time_s, lambda now_s: self._arrived.append((now_s, take)))

    def _stop(self, worker: SimulatedWorker, now_s: float) -> None:
        """It is dead; what it had begun was for nothing."""
        worker.runs = False
        self._num_running -= 1
        self._num_idle -= not worker.in_flight
        for work in worker.in_flight:
            if not work.has_ended:
                self.tally.wasted_s += self.tally.overlap(work.starts_s, now_s)

    def _replace(self, worker: SimulatedWorker) -> list[Outcome]:
        """A new worker; the call that the old one had begun is lost, and those behind it go to the front."""
        self.num_replaced += 1
        unfinished = [work for work in worker.in_flight if not work.has_ended]
        for work in unfinished:
            self._remove(worker, work)
        for work in reversed(unfinished[1:]):
            self._append(work.call, in_front=True)

        def runs_again(now_s: float) -> None:
            self._runs(worker, now_s)
            self._arrived.append((now_s, list))  # the coordinator hears of it

        self.events.at(self._clock.now_s + self._failures.restart_s, runs_again)
        if not unfinished:
            return []
        self._attempts[unfinished[0].call.key] += 1
        return [Outcome(unfinished[0].call.key, lost="the worker died")]

    def _call_off(self, worker: SimulatedWorker, position: int, work: Work) -> None:
        """A worker that is at work cannot be told to stop, so it is replaced; a call behind that is called off."""
        if position == 0 and worker.runs and not work.has_ended:
            self._stop(worker, self._clock.now_s)
            self._replace(worker)
            return
        self._remove(worker, work)
        if not work.has_ended and work.starts_s > self._clock.now_s:
            worker.free_s = max((other.ends_s for other in worker.in_flight), default=self._clock.now_s)
        self._has_room(worker)

    # What comes back

    def _take(self, worker: SimulatedWorker, work: Work) -> list[Outcome]:
        """The result of a call, unless it was called off."""
        if work not in worker.in_flight:
            return []
        self._remove(worker, work)
        self._has_room(worker)
        request = work.call.request
        if isinstance(request, PartialSumRequest):
            self._clock.charge("absorb", self._costs.merge_s_per_byte * self._sizes.sum_bytes)
        elif has_update(request):
            self._clock.charge("absorb", self._costs.absorb_s_per_byte * self._sizes.update_bytes)
        return [Outcome(work.call.key, self._compute(request, work.call.prior))]

    def _hold(self, worker: SimulatedWorker, work: Work) -> list[Outcome]:
        """The worker's host keeps the update for now."""
        if work in worker.in_flight:
            assert self._sums is not None
            self._sums.keep(worker.host, work.call)
            self._remove(worker, work)
            self._has_room(worker)
        return []

    def _send_sum(self, calls: list[PendingCall]) -> None:
        """A host adds up what it has, and sends it."""
        added_s = self._costs.merge_s_per_byte * self._sizes.sum_bytes * (len(calls) - 1)
        asked_s = self._clock.now_s + self._network.latency_s
        arrives_s = self.inward.send(asked_s + added_s, self._sizes.sum_bytes)
        self._arrives(arrives_s, lambda: self._take_sum(calls))

    def _take_sum(self, calls: list[PendingCall]) -> list[Outcome]:
        assert self._sums_of is not None
        self._clock.charge("absorb", self._costs.merge_s_per_byte * self._sizes.sum_bytes)
        parts = [as_partial_sum(call, self._compute(call.request, call.prior), self._sums_of) for call in calls]
        return outcomes_of_sum(calls, merged(parts))

    # Who has what

    def _remove(self, worker: SimulatedWorker, work: Work) -> None:
        worker.in_flight.remove(work)
        self._num_in_flight -= 1
        self._num_idle += worker.runs and not worker.in_flight
        if len(worker.in_flight) < 2:
            self._with_two.pop(worker.index, None)
        if self._sums is not None:
            self._sums.at_host(worker.host, work.call, -1)

    def _count_waiting(self, call: PendingCall, change: int) -> None:
        if self._sums is not None:
            self._sums.waits(call, change)
