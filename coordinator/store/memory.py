"""A ledger in the memory of one process: for simulations, whose jobs end with them. Nothing of it is durable."""

import threading
from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable, Sequence
from concurrent.futures import Future

from common.errors import UnavailableError
from coordinator.store.ledger import Add, Delete, Expect, Put, Stored, Transaction
from coordinator.store.listeners import Listeners


class MemoryLedger:
    """See `coordinator.store.ledger.Ledger`. Records are kept as they are given: they must not change afterwards.

    News of a commit arrive before it returns, on its thread.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._listeners = Listeners()
        self._records: dict[str, Stored] = {}
        self._keys: list[str] = []
        """Of all records, sorted."""
        self._counters: dict[str, int] = {}
        self._closed = False

    def commit(self, transaction: Transaction) -> Expect | Add | None:
        """See `Ledger.commit`."""
        with self._lock:
            self._check_open()
            blocked = self._blocked(transaction)
            if blocked is None:
                self._apply(transaction)
        if blocked is None and transaction.changes:
            self._listeners.tell(transaction.topic)
        return blocked

    def submit(self, transactions: Sequence[Transaction]) -> Future[list[Expect | Add | None]]:
        """See `Ledger.submit`; it is done when this returns."""
        future: Future[list[Expect | Add | None]] = Future()
        try:
            future.set_result([self.commit(transaction) for transaction in transactions])
        except UnavailableError as error:
            future.set_exception(error)
        return future

    def get(self, *keys: str) -> list[Stored | None]:
        """See `Ledger.get`."""
        with self._lock:
            self._check_open()
            return [self._records.get(key) for key in keys]

    def scan(self, prefix: str, after: str = "", limit: int = 1000, reverse: bool = False) -> list[Stored]:
        """See `Ledger.scan`."""
        with self._lock:
            self._check_open()
            start = bisect_left(self._keys, prefix)
            end = bisect_left(self._keys, prefix + "\U0010ffff")
            if after and reverse:
                end = min(end, bisect_left(self._keys, after))
            elif after:
                start = max(start, bisect_right(self._keys, after))
            found = self._keys[max(start, end - limit) : end][::-1] if reverse else self._keys[start:end][:limit]
            return [self._records[key] for key in found]

    def counter(self, name: str) -> int:
        """See `Ledger.counter`."""
        with self._lock:
            self._check_open()
            return self._counters.get(name, 0)

    def subscribe(self, listener: Callable[[str | None], None]) -> Callable[[], None]:
        """See `Ledger.subscribe`."""
        return self._listeners.subscribe(listener)

    def ping(self) -> None:
        """See `Ledger.ping`."""
        with self._lock:
            self._check_open()

    def close(self) -> None:
        """See `Ledger.close`."""
        with self._lock:
            self._closed = True

    def _check_open(self) -> None:
        if self._closed:
            raise UnavailableError("the job store in memory was closed")

    def _blocked(self, transaction: Transaction) -> Expect | Add | None:
        for expect in transaction.expects:
            stored = self._records.get(expect.key)
            if (stored.revision if stored else 0) != expect.revision:
                return expect
        for add in transaction.adds:
            if add.at_most is not None and self._counters.get(add.counter, 0) + add.amount > add.at_most:
                return add
        return None

    def _apply(self, transaction: Transaction) -> None:
        for change in transaction.changes:
            before = self._records.get(change.key)
            match change:
                case Put(key, record):
                    self._records[key] = Stored(key, before.revision + 1 if before else 1, record)
                    if before is None:
                        insort(self._keys, key)
                case Delete(key):
                    if before is not None:
                        del self._records[key]
                        del self._keys[bisect_left(self._keys, key)]
        for add in transaction.adds:
            self._counters[add.counter] = self._counters.get(add.counter, 0) + add.amount
