"""A ledger whose calls are measured: how long they take, and which are not answered."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager

from common.errors import UnavailableError
from common.metrics import STORE_ERRORS, STORE_SECONDS, MetricRecorder
from coordinator.store.ledger import Add, Expect, Ledger, Stored, Transaction


class MeteredLedger:
    """See `coordinator.store.ledger.Ledger`.

    Args:
        ledger: does the work.
        recorder: takes the figures.
        now_s: a monotonic clock.
    """

    def __init__(self, ledger: Ledger, recorder: MetricRecorder, now_s: Callable[[], float]) -> None:
        self._ledger = ledger
        self._recorder = recorder
        self._now_s = now_s

    def commit(self, transaction: Transaction) -> Expect | Add | None:
        """See `Ledger.commit`."""
        with self._measured("commit"):
            return self._ledger.commit(transaction)

    def submit(self, transactions: Sequence[Transaction]) -> Future[list[Expect | Add | None]]:
        """See `Ledger.submit`."""
        start_s = self._now_s()
        future = self._ledger.submit(transactions)

        def ended(future: Future[list[Expect | Add | None]]) -> None:
            if not future.cancelled():
                self._record("commit", start_s, future.exception())

        future.add_done_callback(ended)
        return future

    def get(self, *keys: str) -> list[Stored | None]:
        """See `Ledger.get`."""
        with self._measured("get"):
            return self._ledger.get(*keys)

    def scan(self, prefix: str, after: str = "", limit: int = 1000, reverse: bool = False) -> list[Stored]:
        """See `Ledger.scan`."""
        with self._measured("scan"):
            return self._ledger.scan(prefix, after, limit, reverse)

    def counter(self, name: str) -> int:
        """See `Ledger.counter`."""
        with self._measured("counter"):
            return self._ledger.counter(name)

    def subscribe(self, listener: Callable[[str | None], None]) -> Callable[[], None]:
        """See `Ledger.subscribe`."""
        return self._ledger.subscribe(listener)

    def ping(self) -> None:
        """See `Ledger.ping`."""
        with self._measured("ping"):
            self._ledger.ping()

    def close(self) -> None:
        """See `Ledger.close`."""
        self._ledger.close()

    @contextmanager
    def _measured(self, call: str) -> Iterator[None]:
        start_s, error = self._now_s(), None
        try:
            yield
        except UnavailableError as raised:
            error = raised
            raise
        finally:
            self._record(call, start_s, error)

    def _record(self, call: str, start_s: float, error: BaseException | None) -> None:
        self._recorder.observe(STORE_SECONDS, self._now_s() - start_s, call=call)
        if isinstance(error, UnavailableError):
            self._recorder.add(STORE_ERRORS, call=call)
