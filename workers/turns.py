"""One computation at a time on a device, and quick ones first: a long one lets them at each of its steps."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Turns:
    """Whose turn it is, among threads. At most one computation is long at a time; quick ones go in any order.

    Attributes:
        num_quick: quick ones that compute, or wait to.
    """

    def __init__(self) -> None:
        self._free = threading.Condition()
        self._is_taken = False
        self.num_quick = 0

    @contextmanager
    def long(self) -> Iterator[None]:
        """A turn that may take minutes; it calls `give_way` now and then."""
        with self._free:
            self._take_after_quick()
        try:
            yield
        finally:
            self._let_go()

    def give_way(self) -> None:
        """Within a long turn: quick ones that wait go now."""
        if not self.num_quick:
            return
        self._let_go()
        with self._free:
            self._take_after_quick()

    @contextmanager
    def quick(self) -> Iterator[None]:
        """A turn of seconds."""
        with self._free:
            self.num_quick += 1
            self._free.wait_for(lambda: not self._is_taken)
            self._is_taken = True
        try:
            yield
        finally:
            with self._free:
                self.num_quick -= 1
            self._let_go()

    def _take_after_quick(self) -> None:
        self._free.wait_for(lambda: not self._is_taken and not self.num_quick)
        self._is_taken = True

    def _let_go(self) -> None:
        with self._free:
            self._is_taken = False
            self._free.notify_all()
