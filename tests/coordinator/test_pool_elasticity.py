"""Workers that come and go while there are calls: none is lost, none is made twice. Nodes and actors are played."""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
from reference.threaded_ray import TOLD_TO_END, ThreadedRay

from common.config import ClusterConfig
from coordinator.calls import Outcome
from coordinator.pool import RayPool
from coordinator.scaling import Load, Scaling
from workers.actor import WorkerStatus

CRASHED = 2
PATIENCE_S = 30.0
LONG_S, SHORT_S = 600.0, 0.02


@dataclass(frozen=True)
class Request:
    """Work of some length; sliced work ends early where it is to be handed over."""

    name: str
    seconds: float = SHORT_S
    is_sliced: bool = False
    job_id: str = "01"
    attempt: int = 1

    @property
    def task_ids(self) -> tuple[str, ...]:
        return (self.name,)


class Prior:
    num_bytes = 1

    def digest(self) -> str:
        return "the prior"


class Worker:
    """What a `SearchWorker` does, with work that only takes its time."""

    begun: ClassVar[list[str]] = []

    def __init__(self, name: str, node_id: str) -> None:
        self.name, self.node_id, self.call_id = name, node_id, ""
        self._begun: set[str] = set()
        self._withdrawn: set[str] = set()
        self._lock = threading.Lock()
        self._handing_over = threading.Event()

    def adapt(self, request: Request, prior: Prior) -> str:
        with self._lock:
            assert self.call_id not in self._withdrawn
            self._begun.add(self.call_id)
            self.begun.append(request.name)
        if request.is_sliced:
            self._handing_over.wait(request.seconds)
        else:
            threading.Event().wait(request.seconds)
        return f"{request.name} on {self.node_id}"

    def status(self) -> WorkerStatus:
        return WorkerStatus(self.name, 0, "cpu", None, 0, node_id=self.node_id)

    def withdraw(self, call_id: str) -> bool:
        with self._lock:
            if call_id not in self._begun:
                self._withdrawn.add(call_id)
            return call_id not in self._begun

    def hand_over(self) -> None:
        self._handing_over.set()


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> ThreadedRay:
    monkeypatch.setattr(Worker, "begun", [])
    played = ThreadedRay(Worker)
    played.put_in_place(monkeypatch)
    return played


@pytest.fixture
def make_pool(cluster: ThreadedRay) -> Iterator[Callable[..., RayPool]]:
    pools: list[RayPool] = []

    def make(num_workers: int, is_scaled: bool = False, **config: Any) -> RayPool:
        settings = ClusterConfig(**config)
        scaling = Scaling(settings) if is_scaled else None
        log = logging.getLogger("test")
        pool = RayPool("test", num_workers, 0.0, settings, time.monotonic, log, scaling=scaling, nodes=cluster.look)
        pools.append(pool)
        return pool

    yield make
    for pool in pools:
        pool.close()


def submit(pool: RayPool, *requests: Request) -> None:
    for request in requests:
        pool.submit(request.name, request, Prior())  # type: ignore[arg-type]


def collect(pool: RayPool, count: int) -> dict[str, Outcome]:
    """Polls until so many calls have ended."""
    found: dict[str, Outcome] = {}
    poll_until(pool, lambda: len(found) >= count, found)
    return found


def poll_until(pool: RayPool, condition: Callable[[], bool], found: dict[str, Outcome] | None = None) -> None:
    deadline_s = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline_s, found
        for outcome in pool.poll(0.01):
            assert found is not None and outcome.key not in found
            found[outcome.key] = outcome


def node_at_work(pool: RayPool, name: str) -> str:
    """Polls until a worker has begun with a call; the node of that worker."""
    poll_until(pool, lambda: name in Worker.begun)
    (node_id,) = {each.node_id for each in pool._workers if each.in_flight and each.in_flight[0][1].key == name}
    assert node_id is not None
    return node_id


def test_a_worker_without_work_takes_over_what_another_has_not_begun(
    cluster: ThreadedRay, make_pool: Callable[..., RayPool]
) -> None:
    cluster.add("a", num_slots=2)
    pool = make_pool(2)
    poll_until(pool, lambda: pool.num_workers == 2)
    submit(pool, Request("long", LONG_S), *(Request(name) for name in "abc"))
    assert set(collect(pool, 3)) == set("abc"), "one of them was behind the long one"
    assert sorted(Worker.begun) == ["a", "b", "c", "long"] and pool.num_pending == 1


def test_a_worker_that_has_to_leave_hands_over_and_ends_what_it_works_on(
    cluster: ThreadedRay, make_pool: Callable[..., RayPool]
) -> None:
    cluster.add("a")
    pool = make_pool(1)
    submit(pool, Request("sliced", LONG_S, is_sliced=True), Request("next"))
    assert node_at_work(pool, "sliced") == "a"
    cluster.drain("a", within_s=None)
    cluster.add("b")
    found = collect(pool, 2)
    assert {outcome.result for outcome in found.values()} == {"sliced on a", "next on b"}
    poll_until(pool, lambda: not pool._leaving)
    assert cluster.cluster["a"].actors == [], "so that the node can end"
    assert sorted(Worker.begun) == ["next", "sliced"] and pool.num_replaced == 0


def test_what_is_not_ended_in_time_is_lost_without_an_attempt(
    cluster: ThreadedRay, make_pool: Callable[..., RayPool]
) -> None:
    cluster.add("a")
    pool = make_pool(1)
    submit(pool, Request("long", LONG_S), Request("next"))
    node_at_work(pool, "long")
    cluster.drain("a", within_s=0.2)
    cluster.add("b")
    found = collect(pool, 2)
    assert found["long"] == Outcome("long", lost="the worker had to leave its node", uses_attempt=False)
    assert found["next"].result == "next on b" and pool.num_replaced == 0


@pytest.mark.parametrize(("reason", "uses_attempt"), [(TOLD_TO_END, False), (CRASHED, True)])
def test_a_node_that_was_told_to_end_costs_no_attempt_and_one_that_crashed_does(
    cluster: ThreadedRay, make_pool: Callable[..., RayPool], reason: int, uses_attempt: bool
) -> None:
    cluster.add("a")
    pool = make_pool(1)
    submit(pool, Request("long", LONG_S), Request("next"))
    cluster.lose(node_at_work(pool, "long"), reason)
    cluster.add("b")
    found = collect(pool, 2)
    assert found["long"].lost and found["long"].uses_attempt is uses_attempt
    assert found["next"].result == "next on b" and pool.num_replaced == uses_attempt


def test_a_node_that_joins_gets_workers_that_take_part_at_once(
    cluster: ThreadedRay, make_pool: Callable[..., RayPool]
) -> None:
    cluster.add("a")
    pool = make_pool(1, is_scaled=True)
    results = []
    for result in pool.run(Prior(), [Request(f"task-{number}", 0.1) for number in range(12)]):  # type: ignore[arg-type, list-item]
        results.append(str(result))
        if len(results) == 2:
            cluster.add("b")
        if len(results) == 8:
            cluster.drain("a", within_s=60.0)
    assert len(results) == len(Worker.begun) == 12
    assert all("on b" in result for result in results[-2:]) and any("on b" in result for result in results[2:8])


def test_workers_of_a_range_come_with_work_and_go_once_there_was_none_for_a_while(
    cluster: ThreadedRay, make_pool: Callable[..., RayPool]
) -> None:
    pool = make_pool(0, is_scaled=True, min_workers=0, max_workers=3, gpus_per_worker=0, idle_s=0.3)
    pool.poll(0.0)
    assert cluster.waiting == [] and pool.max_workers == 3
    pool.expect(Load(num_calls=2))
    pool.poll(0.0)
    assert len(cluster.waiting) == 2 and pool.num_workers == 0, "they wait for room: what an autoscaler sees"
    for node_id in "ab":
        cluster.add(node_id)
    poll_until(pool, lambda: pool.num_workers == 2)
    pool.expect(Load())
    submit(pool, *(Request(str(number)) for number in range(8)))
    assert len(collect(pool, 8)) == 8 and len(cluster.waiting) == 1, "three would have work"
    ended_s = time.monotonic()
    poll_until(pool, lambda: pool.num_workers == 0)
    assert time.monotonic() - ended_s > 0.2 and cluster.waiting == [] == cluster.cluster["a"].actors
    submit(pool, Request("again"))
    assert collect(pool, 1)["again"].result


def test_an_idle_worker_whose_node_is_gone_does_not_cost_the_next_call_an_attempt(
    cluster: ThreadedRay, make_pool: Callable[..., RayPool]
) -> None:
    for node_id in "ab":
        cluster.add(node_id)
    pool = make_pool(2, is_scaled=True)
    poll_until(pool, lambda: pool.num_workers == 2)
    pool.poll(0.0)
    cluster.lose("a", CRASHED)
    pool.poll(0.0)
    submit(pool, *(Request(str(number)) for number in range(4)))
    assert {outcome.result[-4:] for outcome in collect(pool, 4).values()} == {"on b"}
    assert pool.num_replaced == 0 and pool.num_workers == 1
