"""Ctrl-C and SIGTERM as a question that long work asks now and then."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def asked_to_stop(
    say: Callable[[], None] = lambda: None, pass_on: signal.Signals | None = None
) -> Iterator[Callable[[], bool]]:
    """Yields whether Ctrl-C or SIGTERM came; a second Ctrl-C raises KeyboardInterrupt at once.

    An exception raised by a signal is lost where it meets a library's own clean-up, as in Ray; a question is not.
    On other threads than the main one, which hear of no signals, the answer is always no.

    Args:
        say: called once, when the question is first answered with yes. With `pass_on`, each time that a signal comes,
            by its handler: then it must not print by what it may have interrupted.
        pass_on: a signal to raise in turn, for a library that does not ask and has a handler for it while it runs;
            ignored while that has none.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    asked = is_said = False

    def ask(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        asked = True
        if pass_on is not None:
            say()
            signal.raise_signal(pass_on)

    def is_asked() -> bool:
        nonlocal is_said
        if asked and not is_said and pass_on is None:
            is_said = True  # not in the handler, which may have interrupted another print
            say()
        return asked

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    if pass_on is not None:
        before[pass_on] = signal.signal(pass_on, lambda number, frame: None)
    try:
        yield is_asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
