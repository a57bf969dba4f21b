"""A ledger as a store uses it: read by name and page by page, and written to by the coordinator in charge alone."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from common.errors import ConflictError, MetaSearchError, NotFoundError, UnavailableError
from coordinator.store.ledger import Add, Expect, Ledger, Put, Stored, Transaction
from coordinator.store.records import Page

MAX_PAGE = 1000
MAX_CONFLICTS = 100


class SupersededError(ConflictError):
    """Another coordinator is in charge; this one must stop."""


class FencedLedger:
    """See the module.

    Attributes:
        ledger: below.
    """

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger

    def take_charge(self, holder: str) -> int:
        """Makes the caller the only coordinator; returns its epoch. Whoever was in charge can change nothing more."""
        for _ in range(MAX_CONFLICTS):
            (stored,) = self.ledger.get("epoch")
            revision = stored.revision if stored else 0
            if self.ledger.commit(Transaction([Expect("epoch", revision)], [Put("epoch", {"holder": holder})])) is None:
                return revision + 1
        raise contended()

    def epoch(self) -> int:
        """The epoch of the coordinator in charge, 0 before the first."""
        (stored,) = self.ledger.get("epoch")
        return stored.revision if stored else 0

    def beat(self, epoch: int, status: Mapping[str, Any]) -> None:
        """Shows that the coordinator of an epoch lives.

        Raises:
            ConflictError: another one is in charge.
        """
        self._commit_as(epoch, Transaction(changes=[Put("beat", {"epoch": epoch, **status})]))

    def last_beat(self) -> tuple[int, Mapping[str, Any]]:
        """How many beats there were, and the last one's status."""
        (stored,) = self.ledger.get("beat")
        return (stored.revision, stored.record) if stored else (0, {})

    def entries(self, prefix: str) -> Iterator[Stored]:
        """All records whose keys start so, in order, read as one goes on."""
        after = ""
        while found := self.ledger.scan(prefix, after, MAX_PAGE):
            yield from found
            after = found[-1].key

    def _commit_as(self, epoch: int, transaction: Transaction) -> Expect | Add | None:
        fence = Expect("epoch", epoch)
        fenced = Transaction([fence, *transaction.expects], transaction.changes, transaction.adds, transaction.topic)
        blocked = self.ledger.commit(fenced)
        if blocked == fence:
            raise SupersededError(f"coordinator {epoch} was replaced by coordinator {self.epoch()}")
        return blocked

    def _get(self, key: str, name: str) -> Stored:
        (stored,) = self.ledger.get(key)
        if stored is None:
            raise NotFoundError(f"there is no {name}")
        return stored

    def _page(self, prefix: str, limit: int, token: str, read: Callable[[Stored], Any], reverse: bool = False) -> Page:
        found = self.ledger.scan(prefix, prefix + token if token else "", limit + 1, reverse)
        more = len(found) > limit
        shown = found[:limit]
        return Page([read(stored) for stored in shown], shown[-1].key.removeprefix(prefix) if more else "")


def contended() -> MetaSearchError:
    """What to raise after `MAX_CONFLICTS` tries."""
    return UnavailableError("too many others changed the same record at the same time; try again")
