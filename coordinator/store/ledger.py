"""The contract of a ledger: ordered records that change all together or not at all.

A ledger is a sorted map from text keys to JSON records and to integer counters. Every record has a revision that rises
by one with each write, 0 where there is no record: after a `Delete` the next `Put` has revision 1 again, so whoever
must tell a record from a later one of the same key puts that into the record. `commit` is the only way to change
anything: it checks all conditions and makes all changes as ONE atomic, durable operation, or makes none and says which
condition failed. What a change means is up to `coordinator.store.jobs`; a backend knows nothing of jobs, so there is
nothing to keep alike between backends.

Thread-safe: any thread may call any method.
"""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Stored:
    """A record as it is stored.

    Attributes:
        key: its key.
        revision: how often it was written, from 1.
        record: its content.
    """

    key: str
    revision: int
    record: Record


@dataclass(frozen=True)
class Expect:
    """Condition: the record at `key` has this revision; 0 means that there is none."""

    key: str
    revision: int


@dataclass(frozen=True)
class Put:
    """Change: writes a record."""

    key: str
    record: Record


@dataclass(frozen=True)
class Delete:
    """Change: removes a record if it is there."""

    key: str


@dataclass(frozen=True)
class Add:
    """Condition and change: adds to a counter, unless it would exceed `at_most`.

    Counters and amounts are within ±2**53.
    """

    counter: str
    amount: int
    at_most: int | None = None


@dataclass(frozen=True)
class Transaction:
    """What `commit` does as one.

    Attributes:
        expects: conditions on records.
        changes: in this order.
        adds: conditions and changes of counters, at most one of each counter.
        topic: whoever watches it is woken up.
    """

    expects: Sequence[Expect] = ()
    changes: Sequence[Put | Delete] = ()
    adds: Sequence[Add] = ()
    topic: str | None = None


@runtime_checkable
class Ledger(Protocol):
    """See the module.

    Raises:
        UnavailableError: from every method, when the storage does not answer. A commit may then have happened or not.
    """

    def commit(self, transaction: Transaction) -> Expect | Add | None:
        """Carries out a transaction; returns None, or the first condition that failed: then nothing changed.

        Conditions on records are looked at before those of counters.
        """
        ...

    def submit(self, transactions: Sequence[Transaction]) -> Future[list[Expect | Add | None]]:
        """`commit` of several, each on its own and in this order, that does not wait: the future holds the answers, or
        raises the error that kept all of them from being carried out.

        A future that was cancelled before its turn came is not carried out; afterwards it cannot be cancelled.
        """
        ...

    def get(self, *keys: str) -> list[Stored | None]:
        """Records by key, all as of one moment."""
        ...

    def scan(self, prefix: str, after: str = "", limit: int = 1000, reverse: bool = False) -> list[Stored]:
        """Records whose keys start with `prefix`, sorted by key, beyond the key `after`, at most `limit`."""
        ...

    def counter(self, name: str) -> int:
        """Value of a counter; 0 if it was never added to."""
        ...

    def subscribe(self, listener: Callable[[str | None], None]) -> Callable[[], None]:
        """Calls `listener` with the topic of every commit, by whichever process, soon after it; None where anything
        may have changed (the news of some commits can be lost). On a thread of the ledger: it must not block.

        Returns:
            A function that ends it.
        """
        ...

    def ping(self) -> None:
        """Raises UnavailableError unless reads and writes are served."""
        ...

    def close(self) -> None:
        """Lets go of files and connections. Afterwards every call that needs them raises UnavailableError."""
        ...
