"""A ledger in one SQLite file: write-ahead log, every commit on disk before it is acknowledged, group commit.

Commits of many threads that arrive together share one transaction and one fsync. Other processes on the machine are
told of changes by a datagram to their bell, a Unix socket in `<file>.bells/`; a lost one costs a poll interval.
"""

import contextlib
import json
import os
import socket
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path

from common.errors import UnavailableError
from coordinator.store.group import GroupCommitter
from coordinator.store.ledger import Add, Delete, Expect, Put, Stored, Transaction
from coordinator.store.listeners import Listeners

_SCHEMA = """
CREATE TABLE IF NOT EXISTS records
    (key TEXT PRIMARY KEY, revision INTEGER NOT NULL, record TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS counters (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
"""
_BUSY_TIMEOUT_S = 5.0
_POLL_S = 0.25
_LOOK_S = 1.0
_RETRY_S = 0.01
_MAX_BELL_BYTES = 4096

_json = json.JSONEncoder(separators=(",", ":")).encode


class SqliteLedger:
    """See `coordinator.store.ledger.Ledger`.

    Args:
        path: of the file; it and its folder are made where missing. Not on a network file system.
        busy_timeout_s: how long to wait for other processes that write.

    Raises:
        UnavailableError: the file cannot be opened or is not a ledger.
    """

    def __init__(self, path: Path, busy_timeout_s: float = _BUSY_TIMEOUT_S) -> None:
        self._path = path
        self._busy_timeout_s = busy_timeout_s
        self._idle: list[sqlite3.Connection] = []
        self._lock = threading.Lock()
        self._closed = False
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UnavailableError(f"cannot make the folder of the job store {path}: {error}") from None
        with self._connected() as connection:
            connection.executescript(_SCHEMA)
        self._bells = _Bells(path)
        self._writer = GroupCommitter(self._carry, self._bells.ring, str(path))

    def commit(self, transaction: Transaction) -> Expect | Add | None:
        """See `Ledger.commit`."""
        return self.submit([transaction]).result()[0]

    def submit(self, transactions: Sequence[Transaction]) -> Future[list[Expect | Add | None]]:
        """See `Ledger.submit`."""
        return self._writer.submit(transactions)

    def get(self, *keys: str) -> list[Stored | None]:
        """See `Ledger.get`."""
        marks = ",".join("?" * len(keys))
        with self._connected() as connection:
            rows = connection.execute(
                f"SELECT key, revision, record FROM records WHERE key IN ({marks})", keys
            ).fetchall()
        found = {key: Stored(key, revision, json.loads(record)) for key, revision, record in rows}
        return [found.get(key) for key in keys]

    def scan(self, prefix: str, after: str = "", limit: int = 1000, reverse: bool = False) -> list[Stored]:
        """See `Ledger.scan`."""
        low, high = prefix, prefix + "\U0010ffff"
        if after and reverse:
            high = min(high, after)
        elif after:
            low = max(low, after)
        # Keys equal to `after` are left out; the prefix itself is a key like any other.
        bounds = ("key > ?" if after and low == after else "key >= ?") + " AND key < ?"
        order = "DESC" if reverse else "ASC"
        with self._connected() as connection:
            rows = connection.execute(
                f"SELECT key, revision, record FROM records WHERE {bounds} ORDER BY key {order} LIMIT ?",
                (low, high, limit),
            ).fetchall()
        return [Stored(key, revision, json.loads(record)) for key, revision, record in rows]

    def counter(self, name: str) -> int:
        """See `Ledger.counter`."""
        with self._connected() as connection:
            row = connection.execute("SELECT value FROM counters WHERE name = ?", (name,)).fetchone()
        return int(row[0]) if row else 0

    def subscribe(self, listener: Callable[[str | None], None]) -> Callable[[], None]:
        """See `Ledger.subscribe`."""
        return self._bells.listeners.subscribe(listener)

    def ping(self) -> None:
        """See `Ledger.ping`."""
        self.commit(Transaction())

    def close(self) -> None:
        """See `Ledger.close`."""
        if self._closed:
            return
        self._writer.close()
        self._bells.close()
        with self._lock:
            self._closed = True
            for connection in self._idle:
                connection.close()
            self._idle.clear()

    @contextlib.contextmanager
    def _connected(self) -> Iterator[sqlite3.Connection]:
        """A connection that no other thread uses meanwhile. One that failed is not used again."""
        with self._lock:
            if self._closed:
                raise UnavailableError(f"the job store {self._path} was closed")
            connection = self._idle.pop() if self._idle else None
        try:
            if connection is None:
                connection = self._connect()
            yield connection
        except BaseException as error:
            if connection is not None:
                connection.close()
            if isinstance(error, sqlite3.Error):
                raise UnavailableError(
                    f"the job store {self._path} does not answer: {error}; check space, permissions and that it is on "
                    "a local disk"
                ) from error
            raise
        with self._lock:
            if self._closed:
                connection.close()
            else:
                self._idle.append(connection)

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            self._path, timeout=self._busy_timeout_s, isolation_level=None, check_same_thread=False
        )
        try:
            self._use_log(connection)
            connection.execute("PRAGMA synchronous = FULL")
        except BaseException:
            connection.close()
            raise
        return connection

    def _use_log(self, connection: sqlite3.Connection) -> None:
        """Turns the write-ahead log on. SQLite does not wait by itself when several processes do so to a new file."""
        until_s = time.monotonic() + self._busy_timeout_s
        while True:
            try:
                connection.execute("PRAGMA journal_mode = WAL")
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > until_s:
                    raise
                time.sleep(_RETRY_S)
            else:
                return

    def _carry(self, transactions: Sequence[Transaction]) -> list[Expect | Add | None]:
        """One SQLite transaction for all; each of ours happens or not on its own."""
        with self._connected() as connection:
            connection.execute("BEGIN IMMEDIATE")
            try:
                outcomes = [_apply(connection, transaction) for transaction in transactions]
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise
        return outcomes


def _apply(connection: sqlite3.Connection, transaction: Transaction) -> Expect | Add | None:
    """Checks first, then changes: a transaction that fails leaves its group untouched."""
    for expect in transaction.expects:
        row = connection.execute("SELECT revision FROM records WHERE key = ?", (expect.key,)).fetchone()
        if (row[0] if row else 0) != expect.revision:
            return expect
    for add in transaction.adds:
        if add.at_most is not None:
            row = connection.execute("SELECT value FROM counters WHERE name = ?", (add.counter,)).fetchone()
            if (row[0] if row else 0) + add.amount > add.at_most:
                return add
    for change in transaction.changes:
        match change:
            case Put(key, record):
                connection.execute(
                    "INSERT INTO records VALUES (?1, 1, ?2) "
                    "ON CONFLICT (key) DO UPDATE SET revision = revision + 1, record = ?2",
                    (key, _json(record)),
                )
            case Delete(key):
                connection.execute("DELETE FROM records WHERE key = ?", (key,))
    for add in transaction.adds:
        connection.execute(
            "INSERT INTO counters VALUES (?1, ?2) ON CONFLICT (name) DO UPDATE SET value = value + ?2",
            (add.counter, add.amount),
        )
    return None


class _Bells:
    """Wakes the waiting threads of all processes that have the file open."""

    def __init__(self, path: Path) -> None:
        self.listeners = Listeners()
        self._folder = path.with_name(path.name + ".bells")
        self._own = self._folder / f"{os.getpid()}-{os.urandom(4).hex()}"
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._reachable = True
        try:
            self._folder.mkdir(exist_ok=True)
            self._socket.bind(str(self._own))
        except OSError:  # a path too long for a socket, or a read-only folder: polling still works
            self._reachable = False
        self._socket.settimeout(_POLL_S)
        self._sender = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._sender.setblocking(False)
        self._closed = False
        self._thread = threading.Thread(target=self._listen, name="sqlite-bell", daemon=True)
        self._thread.start()

    def ring(self, topics: Sequence[str | None]) -> None:
        """Tells everyone, this process included."""
        for topic in topics:
            self.listeners.tell(topic)
        messages = [] if None not in topics else [b""]
        for text in (topic.encode() for topic in topics if topic is not None):
            if messages and messages[-1] and len(messages[-1]) + 1 + len(text) <= _MAX_BELL_BYTES:
                messages[-1] += b"\n" + text
            else:
                messages.append(text if len(text) <= _MAX_BELL_BYTES else b"")
        try:
            bells = list(self._folder.iterdir())
        except OSError:
            return
        for bell in bells:
            if bell == self._own:
                continue
            try:
                for message in messages:
                    self._sender.sendto(message, str(bell))
            except ConnectionRefusedError:  # its process is gone
                with contextlib.suppress(OSError):  # another user's
                    bell.unlink()
            except OSError:  # full: its owner reads the news of the others, and looks at everything once a poll
                continue

    def close(self) -> None:
        """Takes the bell down."""
        self._closed = True
        with contextlib.suppress(OSError):
            self._sender.sendto(b"", str(self._own))
        self._thread.join()
        self._own.unlink(missing_ok=True)
        self._socket.close()
        self._sender.close()

    def _listen(self) -> None:
        looked_s = time.monotonic()
        while not self._closed:
            if time.monotonic() - looked_s > _LOOK_S:  # a lost message matters where there is never silence, too
                looked_s = time.monotonic()
                self.listeners.tell(None)
            message = b""  # silence: something may have been lost
            if self._reachable:
                with contextlib.suppress(TimeoutError):
                    message = self._socket.recv(2 * _MAX_BELL_BYTES)
            else:
                threading.Event().wait(_POLL_S)
            for topic in message.decode().split("\n"):
                self.listeners.tell(topic or None)
