"""Group commit: transactions of many threads that arrive together are carried out together, by one thread."""

import logging
import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future

from common.errors import UnavailableError
from coordinator.store.ledger import Add, Expect, Transaction

MAX_GROUP = 256

_logger = logging.getLogger(__name__)

Outcome = Expect | Add | None
Carry = Callable[[Sequence[Transaction]], Sequence[Outcome]]
_Batch = tuple[Sequence[Transaction], Future[list[Outcome]]]


class GroupCommitter:
    """The only thread of a process that writes to a ledger.

    Args:
        carry: carries out a group, each transaction on its own; raises UnavailableError for all of them.
        announce: called with the topics of those that changed something, after their callers were told; None stands
            for those without one.
        name: of the ledger, for errors.
    """

    def __init__(self, carry: Carry, announce: Callable[[Sequence[str | None]], None], name: str) -> None:
        self._carry = carry
        self._announce = announce
        self._name = name
        self._closed = False
        self._lock = threading.Lock()
        self._queue: queue.SimpleQueue[_Batch | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="group-commit", daemon=True)
        self._thread.start()

    def submit(self, transactions: Sequence[Transaction]) -> Future[list[Outcome]]:
        """See `Ledger.submit`."""
        future: Future[list[Outcome]] = Future()
        with self._lock:  # nothing may queue up behind the end
            if not self._closed:
                self._queue.put((transactions, future))
                return future
        future.set_exception(UnavailableError(f"the job store {self._name} was closed"))
        return future

    def close(self) -> None:
        """Carries out what waits, then ends."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        ends = False
        while not ends:
            first = self._queue.get()
            group = [] if first is None else [first]
            ends = first is None
            while not ends and sum(len(transactions) for transactions, _ in group) < MAX_GROUP:
                try:
                    item = self._queue.get_nowait()
                except queue.Empty:
                    break
                if item is None:
                    ends = True
                else:
                    group.append(item)
            # Whoever waited for a future may have gone, and cancelled it; one that is running cannot be cancelled.
            group = [item for item in group if item[1].set_running_or_notify_cancel()]
            if group:
                self._commit(group)

    def _commit(self, group: list[_Batch]) -> None:
        together = [transaction for transactions, _ in group for transaction in transactions]
        try:
            outcomes = self._carry(together)
        except UnavailableError as error:
            for _, future in group:
                future.set_exception(error)
            return
        except Exception as error:  # noqa: BLE001 whoever waits must hear of it, whatever it is
            if len(group) == 1:
                group[0][1].set_exception(error)
            else:  # a transaction that cannot be carried out takes no other batch down
                for item in group:
                    self._commit([item])
            return
        position = 0
        for transactions, future in group:
            future.set_result(list(outcomes[position : position + len(transactions)]))
            position += len(transactions)
        changed = [one for one, outcome in zip(together, outcomes, strict=True) if outcome is None and one.changes]
        if changed:
            try:
                self._announce(list(dict.fromkeys(one.topic for one in changed)))
            except Exception:
                _logger.exception("news of changes in the job store %s were lost", self._name)
