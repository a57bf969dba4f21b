"""Whose turn it is on a device: long work lets quick work go between its steps, and never two compute at once."""

import threading
from collections.abc import Callable

import pytest

from workers.turns import Turns

PATIENCE_S = 20.0


class Scene:
    """Threads, and the order of what they did."""

    def __init__(self) -> None:
        self.turns = Turns()
        self.seen: list[str] = []
        self.threads: list[threading.Thread] = []

    def start(self, action: Callable[[], None]) -> None:
        self.threads.append(threading.Thread(target=action, daemon=True))
        self.threads[-1].start()

    def quick(self, name: str) -> None:
        with self.turns.quick():
            self.seen.append(name)

    def start_quick(self, name: str) -> None:
        """Returns once the thread waits for its turn."""
        before = self.turns.num_quick
        self.start(lambda: self.quick(name))
        deadline = threading.Event()
        while self.turns.num_quick == before:
            assert not deadline.wait(0.001)

    def join(self) -> None:
        for thread in self.threads:
            thread.join(PATIENCE_S)
            assert not thread.is_alive()


@pytest.fixture
def scene() -> Scene:
    return Scene()


def test_quick_work_goes_between_two_steps_of_long_work(scene: Scene) -> None:
    with scene.turns.long():
        scene.seen.append("step 1")
        scene.turns.give_way()  # nobody waits
        scene.start_quick("quick")
        scene.seen.append("step 2")  # it waits for the end of the step
        scene.turns.give_way()
        scene.seen.append("step 3")
    scene.join()
    assert scene.seen == ["step 1", "step 2", "quick", "step 3"]


def test_all_quick_work_that_waits_goes_before_the_next_step(scene: Scene) -> None:
    with scene.turns.long():
        scene.start_quick("a")
        scene.start_quick("b")
        scene.turns.give_way()
        scene.seen.append("step")
    scene.join()
    assert sorted(scene.seen[:2]) == ["a", "b"] and scene.seen[2:] == ["step"]


def test_long_work_waits_for_quick_work_at_hand(scene: Scene) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def quick() -> None:
        with scene.turns.quick():
            begun.set()
            assert go_on.wait(PATIENCE_S)
            scene.seen.append("quick")

    def long() -> None:
        with scene.turns.long():
            scene.seen.append("long")

    scene.start(quick)
    assert begun.wait(PATIENCE_S)
    scene.start(long)
    go_on.set()
    scene.join()
    assert scene.seen == ["quick", "long"]


def test_a_turn_ends_with_an_error_too(scene: Scene) -> None:
    for turn in (scene.turns.long, scene.turns.quick):
        with pytest.raises(ValueError, match="wrong"), turn():
            raise ValueError("wrong")
    scene.quick("after all")
    with scene.turns.long():
        scene.turns.give_way()
    assert scene.seen == ["after all"]
