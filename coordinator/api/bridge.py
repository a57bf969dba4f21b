"""Between the threads of a ledger and the event loop: news of changes one way, commits the other."""

import asyncio
import contextlib
from collections.abc import Sequence
from typing import Any

from common.errors import UnavailableError
from coordinator.store.group import MAX_GROUP
from coordinator.store.jobs import JobStore
from coordinator.store.ledger import Add, Expect, Ledger, Transaction

_Waiting = tuple[Transaction, "asyncio.Future[Expect | Add | None]"]


class Changes:
    """Wakes coroutines that wait for a topic of the ledger."""

    def __init__(self, store: JobStore) -> None:
        self._loop = asyncio.get_running_loop()
        self._waiting: dict[str, set[asyncio.Event]] = {}
        self._end = store.ledger.subscribe(self._heard)

    @contextlib.contextmanager
    def of(self, topic: str) -> Any:
        """An event that is set when the topic has changed; news can be lost, so look now and then all the same."""
        event = asyncio.Event()
        self._waiting.setdefault(topic, set()).add(event)
        try:
            yield event
        finally:
            self._waiting[topic].discard(event)
            if not self._waiting[topic]:
                del self._waiting[topic]

    def wake_all(self) -> None:
        """Wakes everyone."""
        for events in self._waiting.values():
            for event in events:
                event.set()

    def close(self) -> None:
        """Hears no more."""
        self._end()

    def _heard(self, topic: str | None) -> None:
        # News of everything comes often (silence counts as such) and may be none: watchers look for themselves then.
        if topic is not None and topic in self._waiting:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(self._wake, topic)

    def _wake(self, topic: str) -> None:
        for event in self._waiting.get(topic, ()):
            event.set()


class Commits:
    """Commits of many coroutines, handed over together: one wake-up of the commit thread, one of the event loop."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._waiting: list[_Waiting] = []
        self._running: asyncio.Task[None] | None = None

    async def commit(self, transaction: Transaction) -> Expect | Add | None:
        """See `Ledger.commit`."""
        future: asyncio.Future[Expect | Add | None] = asyncio.get_running_loop().create_future()
        self._waiting.append((transaction, future))
        if self._running is None:
            self._running = asyncio.create_task(self._run())
        return await future

    async def _run(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting[:MAX_GROUP], self._waiting[MAX_GROUP:]
            await self._carry(batch)
        self._running = None

    async def _carry(self, batch: Sequence[_Waiting]) -> None:
        try:
            outcomes = await asyncio.wrap_future(self._ledger.submit([transaction for transaction, _ in batch]))
        except Exception as error:  # noqa: BLE001 whoever waits must hear of it, whatever it is
            if len(batch) > 1 and not isinstance(error, UnavailableError):
                for one in batch:  # one that cannot be carried out takes no other down
                    await self._carry([one])
                return
            for _, future in batch:
                if not future.done():
                    future.set_exception(error)
        else:
            for (_, future), outcome in zip(batch, outcomes, strict=True):
                if not future.done():  # its caller may have gone
                    future.set_result(outcome)
