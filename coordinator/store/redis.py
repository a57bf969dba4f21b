"""A ledger in Redis: one Lua script does every change, a group of commits per call. Meant for an append-only file.

Three keys under one hash tag (so that they share a node of a cluster): `{metasearch}:records` (hash, `revision:json`),
`{metasearch}:index` (sorted set of the keys, all with score 0, which Redis keeps in lexical order) and
`{metasearch}:counters` (hash). Changes are published on the channel `{metasearch}:changed`.
"""

import contextlib
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from common.errors import UnavailableError
from coordinator.store.group import GroupCommitter
from coordinator.store.ledger import Add, Delete, Expect, Put, Stored, Transaction
from coordinator.store.listeners import Listeners

_COMMIT = """
local records, index, counters, channel = KEYS[1], KEYS[2], KEYS[3], ARGV[1]
local function revision(key)
  local stored = redis.call('HGET', records, key)
  if not stored then return 0 end
  return tonumber(string.match(stored, '^%d+'))
end
local function commit(request)
  for i, expect in ipairs(request.expects) do
    if revision(expect[1]) ~= expect[2] then return {1, i} end
  end
  for i, add in ipairs(request.adds) do
    if add[3] then
      local value = tonumber(redis.call('HGET', counters, add[1]) or '0')
      if value + add[2] > add[3] then return {2, i} end
    end
  end
  for _, change in ipairs(request.changes) do
    local key, record = change[1], change[2]
    if record then
      redis.call('HSET', records, key, string.format('%d', revision(key) + 1) .. ':' .. record)
      redis.call('ZADD', index, 0, key)
    else
      redis.call('HDEL', records, key)
      redis.call('ZREM', index, key)
    end
  end
  for _, add in ipairs(request.adds) do redis.call('HINCRBY', counters, add[1], add[2]) end
  if #request.changes > 0 then redis.call('PUBLISH', channel, request.topic) end
  return {0, 0}
end
local answers = {}
for i, request in ipairs(cjson.decode(ARGV[2])) do answers[i] = commit(request) end
return answers
"""
# One round trip, one moment.
_SCAN = """
local keys
if ARGV[4] == '1' then
  keys = redis.call('ZREVRANGEBYLEX', KEYS[2], ARGV[2], ARGV[1], 'LIMIT', 0, tonumber(ARGV[3]))
else
  keys = redis.call('ZRANGEBYLEX', KEYS[2], ARGV[1], ARGV[2], 'LIMIT', 0, tonumber(ARGV[3]))
end
local rows = {}
for from = 1, #keys, 500 do
  local part = redis.call('HMGET', KEYS[1], unpack(keys, from, math.min(from + 499, #keys)))
  for _, row in ipairs(part) do rows[#rows + 1] = row end
end
return {keys, rows}
"""
_TIMEOUT_S = 5.0
_RECONNECT_S = 0.5
_LISTEN_S = 0.2  # also how long `close` may take
_MAX_CONNECTIONS = 10_000  # the client's own default, 100, fails the 101st thread


class RedisLedger:
    """See `coordinator.store.ledger.Ledger`.

    Args:
        url: `redis://[user:password@]host:port/db`, or `rediss://` for TLS.
        timeout_s: after which a call that is not answered fails.

    Raises:
        UnavailableError: no Redis answers there.
    """

    def __init__(self, url: str, timeout_s: float = _TIMEOUT_S) -> None:
        try:
            self._client = redis.Redis.from_url(
                url,
                socket_timeout=timeout_s,
                socket_connect_timeout=timeout_s,
                retry=Retry(NoBackoff(), 0),  # a commit must not be sent twice behind its caller's back
                health_check_interval=0,
                max_connections=_MAX_CONNECTIONS,
            )
        except ValueError as error:
            raise UnavailableError(f"store {_without_password(url)!r} is not a Redis URL: {error}") from None
        self._where = _without_password(url)
        prefix = "{metasearch}:"
        self._keys = [prefix + name for name in ("records", "index", "counters")]
        self._channel = prefix + "changed"
        self._commit = self._client.register_script(_COMMIT)
        self._scan = self._client.register_script(_SCAN)
        self._listeners = Listeners()
        self._closed = threading.Event()
        try:
            self.ping()
        except UnavailableError:
            self._client.close()
            raise
        self._writer = GroupCommitter(self._carry, lambda topics: None, self._where)
        self._thread = threading.Thread(target=self._listen, name="redis-changes", daemon=True)
        self._thread.start()

    def commit(self, transaction: Transaction) -> Expect | Add | None:
        """See `Ledger.commit`."""
        return self.submit([transaction]).result()[0]

    def submit(self, transactions: Sequence[Transaction]) -> Future[list[Expect | Add | None]]:
        """See `Ledger.submit`."""
        return self._writer.submit(transactions)

    def get(self, *keys: str) -> list[Stored | None]:
        """See `Ledger.get`."""
        with self._answering():
            rows: list[Any] = self._client.hmget(self._keys[0], list(keys)) if keys else []
        return [None if row is None else _stored(key, row) for key, row in zip(keys, rows, strict=True)]

    def scan(self, prefix: str, after: str = "", limit: int = 1000, reverse: bool = False) -> list[Stored]:
        """See `Ledger.scan`."""
        low, high = f"[{prefix}", f"({prefix}\U0010ffff"
        if after and reverse and after < prefix + "\U0010ffff":
            high = f"({after}"
        elif after and not reverse and after >= prefix:
            low = f"({after}"
        with self._answering():
            keys, rows = self._scan(keys=self._keys, args=[low, high, limit, int(reverse)])
        return [_stored(key.decode(), row) for key, row in zip(keys, rows, strict=True)]

    def counter(self, name: str) -> int:
        """See `Ledger.counter`."""
        with self._answering():
            return int(self._client.hget(self._keys[2], name) or 0)

    def subscribe(self, listener: Callable[[str | None], None]) -> Callable[[], None]:
        """See `Ledger.subscribe`."""
        return self._listeners.subscribe(listener)

    def ping(self) -> None:
        """See `Ledger.ping`."""
        with self._answering():
            self._client.ping()

    def close(self) -> None:
        """See `Ledger.close`."""
        if not self._closed.is_set():
            self._writer.close()
            self._closed.set()
            self._thread.join()
            self._client.close()

    def _listen(self) -> None:
        """Hears of changes. What is published before a subscription is confirmed is lost, so that counts as one."""
        while not self._closed.is_set():
            try:
                with self._client.pubsub() as subscription:  # type: ignore[no-untyped-call]
                    subscription.subscribe(self._channel)
                    while not self._closed.is_set():
                        message = subscription.get_message(timeout=_LISTEN_S)
                        if message is not None:
                            is_news = message["type"] == "message"
                            self._listeners.tell((message["data"].decode() or None) if is_news else None)
            except redis.RedisError:
                self._closed.wait(_RECONNECT_S)

    def _carry(self, transactions: Sequence[Transaction]) -> list[Expect | Add | None]:
        """One call of the script for all; each of ours happens or not on its own."""
        requests = json.dumps([_request(transaction) for transaction in transactions])
        with self._answering():
            answers: list[Any] = self._commit(self._keys, [self._channel, requests])
        return [_failed(transaction, *answer) for transaction, answer in zip(transactions, answers, strict=True)]

    @contextlib.contextmanager
    def _answering(self) -> Iterator[None]:
        if self._closed.is_set():
            raise UnavailableError(f"the job store {self._where} was closed")
        try:
            yield
        except redis.RedisError as error:
            reason = str(error) or type(error).__name__
            raise UnavailableError(
                f"the job store {self._where} does not answer: {reason}; is Redis running?"
            ) from error


def _request(transaction: Transaction) -> dict[str, object]:
    """A transaction as the script reads it."""
    return {
        "expects": [[expect.key, expect.revision] for expect in transaction.expects],
        "changes": [_change(change) for change in transaction.changes],
        "topic": transaction.topic or "",
        "adds": [[add.counter, add.amount, False if add.at_most is None else add.at_most] for add in transaction.adds],
    }


def _failed(transaction: Transaction, kind: int, position: int) -> Expect | Add | None:
    """The condition that the script says failed."""
    if kind == 0:
        return None
    return transaction.expects[position - 1] if kind == 1 else transaction.adds[position - 1]


def _change(change: Put | Delete) -> list[object]:
    return [change.key, json.dumps(change.record, separators=(",", ":")) if isinstance(change, Put) else False]


def _stored(key: str, row: bytes) -> Stored:
    revision, _, record = row.partition(b":")
    return Stored(key, int(revision), json.loads(record))


def _without_password(url: str) -> str:
    scheme, separator, rest = url.partition("://")
    return f"{scheme}{separator}{rest.rpartition('@')[2]}"
