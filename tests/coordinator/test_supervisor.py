"""When the supervisor takes the coordinator for lost."""

import pytest

from coordinator.supervisor import AWAY, SILENT, Vigil

PATIENCE_S, STARTING_S = 10.0, 60.0


@pytest.fixture
def vigil() -> Vigil:
    return Vigil(PATIENCE_S, STARTING_S, 0.0)


def test_one_that_beats_is_left_alone_whatever_it_says(vigil: Vigil) -> None:
    states = ("running", SILENT, AWAY, "starting", "superseded")
    assert not any(vigil.is_over(state, beats, 9.0 * beats) for beats, state in enumerate(states, 1))


def test_one_that_ran_and_falls_silent_is_over_after_the_patience_of_a_running_one(vigil: Vigil) -> None:
    assert not vigil.is_over("running", 1, 0.0)
    assert not vigil.is_over(SILENT, 1, 10.0)
    assert vigil.is_over(SILENT, 1, 10.1), "its host is cut off, or it hangs"


@pytest.mark.parametrize("state", [SILENT, AWAY, "starting"])
def test_one_that_has_not_run_yet_gets_the_patience_of_a_starting_one(vigil: Vigil, state: str) -> None:
    assert not vigil.is_over(state, 0, 0.0)
    assert not vigil.is_over(state, 0, 60.0)
    assert vigil.is_over(state, 0, 60.1)


def test_one_that_ray_starts_again_is_not_taken_for_the_one_that_ran(vigil: Vigil) -> None:
    assert not vigil.is_over("running", 1, 0.0)
    assert not vigil.is_over(AWAY, 1, 11.0)
    assert not vigil.is_over(SILENT, 1, 60.0)
    assert vigil.is_over(SILENT, 1, 60.1)


@pytest.mark.parametrize("state", ["running", "superseded"])
def test_one_that_answers_but_does_not_beat_is_over(vigil: Vigil, state: str) -> None:
    assert not vigil.is_over(state, 1, 0.0)
    assert vigil.is_over(state, 1, 10.1)


def test_time_counts_anew_for_the_next_one(vigil: Vigil) -> None:
    assert not vigil.is_over("running", 1, 0.0)
    vigil.renew(50.0)
    assert not vigil.is_over(SILENT, 1, 110.0)
    assert vigil.is_over(SILENT, 1, 110.1)
