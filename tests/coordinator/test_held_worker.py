"""Which workers end first, which give calls back, and what is known of the calls of each. Without Ray."""

import math
from dataclasses import dataclass, field
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from common.messages import AdaptRequest, JobRequest
from coordinator.calls import PendingCall
from coordinator.held_worker import HeldWorker, donors, least_busy, spare


@dataclass(frozen=True)
class Ref:
    """A reference to a result, as of Ray."""

    name: str

    def task_id(self) -> "Ref":
        return self

    def hex(self) -> str:
        return self.name


@dataclass
class Recorder:
    """An actor's handle that notes what is called."""

    calls: list[tuple[str, tuple[Any, ...]]] = field(default_factory=list)

    def __getattr__(self, method: str) -> Any:
        @dataclass
        class Method:
            handle: "Recorder"

            def remote(self, *arguments: Any) -> Ref:
                self.handle.calls.append((method, arguments))
                return Ref(f"{method}{arguments}")

        return Method(self)


def worker(name: str, *calls: str, node: str = "node", quick: int = 0, **changes: Any) -> HeldWorker:
    held = HeldWorker(**{"name": name, "handle": Recorder(), "starting": None, "node_id": node, **changes})
    for call in calls:
        held.in_flight.append((Ref(call), PendingCall(call, None, None)))  # type: ignore[arg-type]
    for number in range(quick):
        held.quick.append((Ref(f"quick {number}"), PendingCall(f"quick {number}", None, None), 0.0))  # type: ignore[arg-type]
    return held


def names(workers: list[HeldWorker]) -> list[str]:
    return [each.name for each in workers]


def test_workers_without_room_end_first_then_those_whose_nodes_become_free():
    workers = [
        worker("busy", "a", node="x"),
        worker("beside it", node="x"),
        worker("alone, quick", node="y", quick=1),
        worker("free 1", node="z"),
        worker("waits", starting="a reference"),
        worker("free 2", node="z"),
    ]
    workers[4].node_id = None
    assert names(spare(workers, 3)) == ["waits", "free 1", "free 2"]
    assert names(spare(workers, 9)) == ["waits", "free 1", "free 2", "beside it"], "none at work"
    assert spare(workers, 0) == spare(workers, -1) == []


def test_nothing_is_handed_out_behind_a_job():
    a_job, a_task = JobRequest.__new__(JobRequest), AdaptRequest.__new__(AdaptRequest)

    def depth(*requests: Any) -> float:
        held = worker("any")
        held.in_flight.extend((Ref("any"), PendingCall("any", request, None)) for request in requests)
        return held.depth

    assert depth() == 0
    assert depth(a_task) == 1 and depth(a_job) == math.inf
    assert depth(a_task, a_job) == depth(a_job, a_task) == 2


@given(
    loads=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), max_size=6),
    num_calls=st.integers(0, 20),
    most=st.integers(1, 3),
)
def test_calls_go_to_the_least_busy_worker_each_time(loads: list[tuple[int, int]], num_calls: int, most: int) -> None:
    def load(held: HeldWorker) -> tuple[int, int]:
        return len(held.quick), len(held.in_flight)

    workers = [worker(str(n), *"abc"[:calls], quick=quick) for n, (quick, calls) in enumerate(loads)]
    expected = []
    naive = [list(each) for each in loads]
    for _ in range(num_calls):
        chosen = min(range(len(naive)), key=lambda n: naive[n], default=None)
        if chosen is None or naive[chosen][0] >= most:
            break
        naive[chosen][0] += 1
        expected.append(str(chosen))
    found = []
    free = least_busy(workers, load, most)
    while len(found) < num_calls and (held := next(free, None)):
        held.quick.append((Ref("new"), PendingCall("new", None, None), 0.0))  # type: ignore[arg-type]
        found.append(held.name)
    assert found == expected


def test_those_without_calls_are_given_what_would_wait_longest():
    workers = [
        worker("long at work", "a", "b", head_since_s=1.0),
        worker("just begun", "c", "d", head_since_s=5.0),
        worker("nothing to give", "e", head_since_s=9.0),
        worker("idle"),
    ]
    assert names(donors(workers)) == ["just begun"]
    donors(workers)[0].ask_back()
    assert donors(workers) == [], "what was asked for is on its way"
    workers.append(worker("idle too"))
    assert names(donors(workers)) == ["long at work"]


def test_neither_workers_that_start_nor_those_that_leave_count_as_idle():
    laden = worker("laden", "a", "b")
    assert donors([laden, worker("starts", starting="a reference"), worker("leaves", leaves_at_s=9.0)]) == []
    assert donors([worker("leaves", "a", "b", leaves_at_s=9.0), worker("idle")]) == [], "it is asked anyway"


def test_a_call_is_given_back_only_by_consent_and_while_it_is_wanted():
    held = worker("held", "a", "b")
    held.ask_back()
    held.ask_back()
    assert held.handle.calls == [("withdraw", ("b",))], "asked once, for the last"
    assert held.given_back(agreed=False) is None and len(held.in_flight) == 2

    held.ask_back()
    held.in_flight.popleft()  # the first ended meanwhile, but the second had not begun
    call = held.given_back(agreed=True)
    assert call is not None and call.key == "b" and held.is_idle and held.withdrawal is None

    held = worker("held", "a", "b")
    held.ask_back()
    held.in_flight.pop()  # given up meanwhile
    assert held.given_back(agreed=True) is None and [call.key for call in held.begun] == ["a"]


def test_a_worker_with_one_call_is_asked_for_nothing():
    held = worker("held", "a", quick=2)
    held.ask_back()
    assert held.withdrawal is None and held.handle.calls == []
    assert [call.key for call in held.begun] == ["a", "quick 0", "quick 1"]


def test_a_worker_that_leaves_is_told_and_knows_until_when():
    in_time, no_limit = worker("in time", "a", "b"), worker("no limit")
    in_time.leave(now_s=100.0, left_s=30.0)
    no_limit.leave(now_s=100.0, left_s=None)
    assert in_time.leaves_at_s == 130.0 and no_limit.leaves_at_s == float("inf")
    assert in_time.handle.calls == [("withdraw", ("b",)), ("hand_over", ())], "what it has not begun comes first"
    assert no_limit.handle.calls == [("hand_over", ())]
