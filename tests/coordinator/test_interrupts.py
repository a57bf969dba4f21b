"""Signals as a question. They are raised in this process."""

import signal

import pytest

from coordinator.interrupts import asked_to_stop


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_is_a_question_and_a_second_interrupt_is_none(number: signal.Signals) -> None:
    said: list[str] = []
    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt), asked_to_stop(lambda: said.append("stopping")) as is_asked:
        assert not is_asked()
        signal.raise_signal(number)
        assert said == []
        assert is_asked() and is_asked()
        assert said == ["stopping"]
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(number) is before


def test_a_library_that_does_not_ask_hears_of_it_by_its_own_signal() -> None:
    said: list[str] = []
    heard: list[int] = []
    before = signal.getsignal(signal.SIGUSR1)
    with asked_to_stop(lambda: said.append("storing"), signal.SIGUSR1) as is_asked:
        signal.raise_signal(signal.SIGUSR1)  # not while it runs: ignored
        assert not is_asked()
        ours = signal.signal(signal.SIGUSR1, lambda number, frame: heard.append(number))
        signal.raise_signal(signal.SIGTERM)
        signal.signal(signal.SIGUSR1, ours)
        assert heard == [signal.SIGUSR1]
        assert said == ["storing"] and is_asked() and said == ["storing"]
    assert signal.getsignal(signal.SIGUSR1) is before
