"""What is known of nodes: from a control store that answers, and from one that does not."""

import logging
import threading
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, RayActorError, RayError

from coordinator import nodes
from coordinator.nodes import Nodes, NodeWatch, look, was_taken_away

PATIENCE_S = 30.0


@pytest.fixture
def play(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """A cluster of these nodes, and deadlines of drains in ms since 1970."""

    def put(found: Callable[[], list[dict[str, Any]]], deadlines: dict[str, int] | None = None) -> None:
        state = SimpleNamespace(get_draining_nodes=lambda: deadlines or {})
        played = SimpleNamespace(nodes=found, _private=SimpleNamespace(state=SimpleNamespace(state=state)))
        monkeypatch.setattr(nodes, "ray", played)

    return put


def node(name: str, reason: int = 0) -> dict[str, Any]:
    return {"NodeID": name, "Alive": not reason, "DeathReason": reason, "Resources": {"CPU": 2.0}}


def test_a_look_tells_nodes_that_take_workers_from_those_that_go_and_those_that_are_gone(
    play: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "time", lambda: 1000.0)
    play(
        lambda: [node("a"), node("b"), node("c"), node("d"), node("e", reason=2)],
        {"b": 1_030_000, "c": 0, "d": 999_000},
    )
    assert look() == Nodes({"a": {"CPU": 2.0}}, {"b": 30.0, "c": None, "d": 0.0})


@pytest.mark.parametrize(("reason", "expected"), [(0, False), (1, True), (2, False), (3, True), (4, True)])
def test_a_node_was_taken_away_if_it_was_told_to_end_and_not_if_it_crashed(
    play: Callable[..., None], reason: int, expected: bool
) -> None:
    play(lambda: [node("another", reason=1), node("ours", reason)])
    assert was_taken_away(ActorDiedError(), "ours") is expected
    assert was_taken_away(ActorDiedError(), None) is False


def test_an_actor_says_itself_if_it_was_preempted_or_told_to_end(play: Callable[..., None]) -> None:
    play(lambda: [node("ours")])
    assert was_taken_away(RayActorError(preempted=True), "ours")
    assert was_taken_away(RayActorError(error_msg="... Exit code: 1. The process receives a SIGTERM."), "ours")
    assert not was_taken_away(RayActorError(error_msg="Worker unexpectedly exits with a connection error"), "ours")


def test_nobody_waits_long_for_a_control_store_that_does_not_answer(
    play: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = threading.Event()

    def silent() -> list[dict[str, Any]]:
        answers.wait(PATIENCE_S)
        return []

    monkeypatch.setattr(nodes, "_ASK_S", 0.05)
    play(silent)
    try:
        assert not was_taken_away(RayError("lost"), "ours")
    finally:
        answers.set()


def test_a_watch_tells_of_nothing_while_it_cannot_see(caplog: pytest.LogCaptureFixture, monkeypatch) -> None:
    monkeypatch.setattr(nodes, "_LOOK_EVERY_S", 0.01)
    seen = Nodes({"a": {"CPU": 1.0}})
    is_away = threading.Event()

    def looked() -> Nodes:
        if is_away.is_set():
            raise RuntimeError("the control store is away\nand more of that")
        return seen

    watch = NodeWatch(logging.getLogger("test"), looked)
    try:
        wait_until(lambda: watch.latest() == seen)
        is_away.set()
        wait_until(lambda: watch.latest() is None)
        is_away.clear()
        wait_until(lambda: watch.latest() == seen)
    finally:
        watch.close()
    assert caplog.messages == ["the cluster's nodes cannot be seen: the control store is away"], "said once"


def wait_until(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline_s
        threading.Event().wait(0.005)
