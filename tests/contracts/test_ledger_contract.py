"""What every ledger must do, over each backend; then what one backend alone can go through."""

import itertools
import os
import queue
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from contracts.backends import Backend, heard, tell
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from reference.redis_server import RedisServer, require_redis

from common.errors import UnavailableError
from coordinator.store import sqlite
from coordinator.store.group import MAX_GROUP
from coordinator.store.ledger import Add, Delete, Expect, Ledger, Put, Transaction
from coordinator.store.redis import RedisLedger
from coordinator.store.sqlite import SqliteLedger

SOON_S = 10.0


def put(ledger: Ledger, key: str, **record: Any) -> None:
    assert ledger.commit(Transaction(changes=[Put(key, record)])) is None


def read(ledger: Ledger, key: str) -> tuple[int, Mapping[str, Any] | None]:
    (stored,) = ledger.get(key)
    return (0, None) if stored is None else (stored.revision, stored.record)


def keys(ledger: Ledger, prefix: str, **options: Any) -> list[str]:
    return [stored.key for stored in ledger.scan(prefix, **options)]


# Transactions


def test_backends_are_ledgers(ledger: Ledger) -> None:
    assert isinstance(ledger, Ledger)
    ledger.ping()


def test_a_new_ledger_is_empty(ledger: Ledger) -> None:
    assert ledger.get("a", "b") == [None, None]
    assert ledger.get() == []
    assert ledger.scan("") == []
    assert ledger.counter("c") == 0


def test_commit_makes_every_change(ledger: Ledger) -> None:
    put(ledger, "old", n=1)
    transaction = Transaction(
        [Expect("old", 1), Expect("new", 0)],
        [Put("new", {"n": 2}), Delete("old"), Put("other", {"n": 3})],
        [Add("up", 5, 5), Add("down", -2)],
    )
    assert ledger.commit(transaction) is None
    assert [read(ledger, key) for key in ("new", "old", "other")] == [(1, {"n": 2}), (0, None), (1, {"n": 3})]
    assert (ledger.counter("up"), ledger.counter("down")) == (5, -2)


@pytest.mark.parametrize(
    ("expects", "adds", "failed"),
    [
        ([Expect("there", 2)], [], Expect("there", 2)),
        ([Expect("there", 0)], [], Expect("there", 0)),
        ([Expect("absent", 1)], [], Expect("absent", 1)),
        ([Expect("there", 1), Expect("absent", 3), Expect("there", 4)], [], Expect("absent", 3)),
        ([], [Add("full", 1, 10)], Add("full", 1, 10)),
        ([Expect("there", 1)], [Add("fine", 1, 1), Add("full", 1, 10), Add("fuller", 9, 1)], Add("full", 1, 10)),
        ([Expect("there", 1)], [Add("nought", 1, 0)], Add("nought", 1, 0)),
        ([Expect("absent", 9)], [Add("full", 1, 10)], Expect("absent", 9)),
    ],
)
def test_a_failed_condition_is_named_and_nothing_changes(
    ledger: Ledger, expects: list[Expect], adds: list[Add], failed: Expect | Add
) -> None:
    ledger.commit(Transaction(changes=[Put("there", {"n": 0})], adds=[Add("full", 10)]))
    changes = [Put("there", {"n": 1}), Put("another", {}), Delete("there")]
    assert ledger.commit(Transaction(expects, changes, adds, topic="t")) == failed
    assert read(ledger, "there") == (1, {"n": 0})
    assert keys(ledger, "") == ["there"]
    assert [ledger.counter(name) for name in ("full", "fine", "fuller", "nought")] == [10, 0, 0, 0]


def test_a_revision_counts_writes_and_begins_again_after_a_delete(ledger: Ledger) -> None:
    for n in range(1, 12):
        put(ledger, "k", n=n)
        assert read(ledger, "k") == (n, {"n": n})
    ledger.commit(Transaction([Expect("k", 11)], [Delete("k")]))
    assert read(ledger, "k") == (0, None)
    assert ledger.commit(Transaction([Expect("k", 11)], [Put("k", {})])) == Expect("k", 11)
    put(ledger, "k", n="again")
    assert read(ledger, "k") == (1, {"n": "again"})


def test_changes_of_one_transaction_follow_each_other(ledger: Ledger) -> None:
    put(ledger, "k", n=0)
    ledger.commit(Transaction([Expect("k", 1)], [Put("k", {"n": 1}), Put("k", {"n": 2})]))
    assert read(ledger, "k") == (3, {"n": 2})
    ledger.commit(Transaction([Expect("k", 3)], [Put("k", {"n": 3}), Delete("k"), Put("k", {"n": 4})]))
    assert read(ledger, "k") == (1, {"n": 4})
    ledger.commit(Transaction(changes=[Put("k", {}), Delete("k"), Delete("never there")]))
    assert keys(ledger, "") == []


def test_counters_go_both_ways_up_to_their_bound(ledger: Ledger) -> None:
    assert ledger.commit(Transaction(adds=[Add("c", 2**53 - 1)])) is None
    assert ledger.counter("c") == 2**53 - 1
    assert ledger.commit(Transaction(adds=[Add("c", -(2**53) + 1 - 7)])) is None
    assert ledger.counter("c") == -7
    assert ledger.commit(Transaction(adds=[Add("c", 8, 0)])) == Add("c", 8, 0)
    assert ledger.commit(Transaction(adds=[Add("c", 7, 0)])) is None
    assert ledger.counter("c") == 0


def test_a_bound_holds_under_many_threads(ledger: Ledger) -> None:
    def take(thread: int) -> int:
        taken = 0
        for n in range(25):
            transaction = Transaction(changes=[Put(f"slot/{thread}/{n}", {})], adds=[Add("taken", 1, 100)])
            taken += ledger.commit(transaction) is None
        return taken

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(take, range(8))) == 100
    assert ledger.counter("taken") == 100
    assert len(ledger.scan("slot/")) == 100


def test_expectations_lose_no_update_under_many_threads(ledger: Ledger) -> None:
    def rise(_: int) -> None:
        done = 0
        while done < 15:
            revision, record = read(ledger, "n")
            value = record["value"] if record else 0
            done += ledger.commit(Transaction([Expect("n", revision)], [Put("n", {"value": value + 1})])) is None

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(rise, range(6)))
    assert read(ledger, "n") == (90, {"value": 90})


RISE = """
left = int(sys.argv[3])
while left:
    (stored,) = ledger.get("n")
    revision, value = (stored.revision, stored.record["value"]) if stored else (0, 0)
    put = Put("n", {"value": value + 1})
    left -= ledger.commit(Transaction([Expect("n", revision)], [put], [Add("rises", 1)])) is None
say("done")
"""


def test_two_processes_lose_no_update(backend: Backend) -> None:
    children = [backend.child(RISE, "100", starts=False) for _ in range(2)]
    for child in children:
        tell(child)
    assert [heard(child) for child in children] == ["done", "done"]
    ledger = backend.open()
    assert read(ledger, "n") == (200, {"value": 200})
    assert ledger.counter("rises") == 200


def test_many_changes_at_once(ledger: Ledger) -> None:
    changes = [Put(f"many/{n:05d}", {"n": n, "text": "x" * 100}) for n in range(9_000)]
    assert ledger.commit(Transaction([Expect("many/00000", 0)], changes, [Add("many", 9_000)])) is None
    assert len(ledger.scan("many/", limit=10_000)) == 9_000
    assert [stored.record["n"] for stored in ledger.get(*(put.key for put in changes[:1000])) if stored] == list(
        range(1000)
    )
    failing = Transaction(changes=[Delete(put.key) for put in changes], adds=[Add("many", 1, 9_000)])
    assert ledger.commit(failing) == failing.adds[0]
    assert len(ledger.scan("many/", limit=10_000)) == 9_000


def test_a_long_record(ledger: Ledger) -> None:
    put(ledger, "long", text="ü" * 2_000_000)
    assert read(ledger, "long")[1] == {"text": "ü" * 2_000_000}


# Records


VALUES: list[Any] = [
    {},
    [],
    [[], {}, [[]], [{}], {"a": []}, {"a": {}}],
    None,
    True,
    [None, False, None],
    0.1,
    1.0,
    -0.0,
    1e300,
    5e-324,
    1 / 3,
    0,
    -1,
    2**53,
    2**53 - 1,
    -(2**53),
    123456789012345678,
    "",
    "\0 between \0",
    "\x01\x1f\x7f\\\"'/",
    "naïve 日本語 \U0001f600 \u2028 \U0010fffe",
    '1:2 [1] {"x": null}',
    {"": 1, "\0": 2, "ключ": 3, "a b/c": 4, "1": 5},
    {"deep": [[[[[[[[[[[[{"x": [1, [2, [3, []]]]}]]]]]]]]]]]]},
]


def test_records_come_back_as_they_were(ledger: Ledger) -> None:
    for n, value in enumerate(VALUES):
        put(ledger, f"k/{n:03d}", value=value)
        (stored,) = ledger.get(f"k/{n:03d}")
        assert stored is not None
        assert repr(stored.record) == repr({"value": value})
    assert repr([stored.record["value"] for stored in ledger.scan("k/")]) == repr(VALUES)


TEXTS = ["a", "1", "naïve 日本語 \U0001f600", "a\0b", "\0", "{x}", "a b\n", "%d%s", "\U0010fffe", '"']


def test_any_text_is_a_key(ledger: Ledger) -> None:
    for key in TEXTS:
        put(ledger, key, n=1)
        assert ledger.commit(Transaction([Expect(key, 1)], [Put(key, {"n": 2})], [Add(key, 3)])) is None
        assert read(ledger, key) == (2, {"n": 2})
        assert keys(ledger, "") == [key] == keys(ledger, key)
        assert ledger.counter(key) == 3
        ledger.commit(Transaction(changes=[Delete(key)]))
        assert keys(ledger, "") == []


# Scans

SCANNED = [
    "a",
    "a/",
    "a/1",
    "a/10",
    "a/2",
    "a/\0",
    "a/é",
    "a/\U0001f600",
    "a/\uffff",
    "a/\U0010fffe",
    "a-b/1",
    "ab/1",
    "ab/",
    "b",
    "B",
    "é/1",
]


def test_scans_find_what_sorting_finds(ledger: Ledger) -> None:
    ledger.commit(Transaction(changes=[Put(key, {"key": key}) for key in SCANNED]))
    afters = ["", "a/1", "a/", "a/15", "ab/1", "zzz", "A", "a/\U0010fffe", "a/\U0010ffff"]
    for prefix, after, limit, reverse in itertools.product(
        ["", "a", "a/", "ab", "ab/", "a-", "é", "c", "a/1"], afters, [1000, 1, 3], [False, True]
    ):
        expected = sorted((key for key in SCANNED if key.startswith(prefix)), reverse=reverse)
        if after:
            expected = [key for key in expected if (key < after if reverse else key > after)]
        found = ledger.scan(prefix, after, limit, reverse)
        assert [stored.key for stored in found] == expected[:limit], (prefix, after, limit, reverse)
        assert all(stored.record == {"key": stored.key} and stored.revision == 1 for stored in found)


def test_scans_page_through_everything(ledger: Ledger) -> None:
    ledger.commit(Transaction(changes=[Put(f"p/{n:04d}", {}) for n in range(1_203)]))
    for reverse in (False, True):
        seen: list[str] = []
        while found := ledger.scan("p/", seen[-1] if seen else "", 100, reverse):
            seen += [stored.key for stored in found]
        assert seen == sorted((f"p/{n:04d}" for n in range(1_203)), reverse=reverse)
    assert len(ledger.scan("p/")) == 1000


# What concurrent readers see


def test_readers_see_whole_transactions(ledger: Ledger) -> None:
    names = [f"part/{n}" for n in range(5)]
    ends = threading.Event()

    def write() -> int:
        written = 0
        while not ends.is_set():
            written += 1
            assert ledger.commit(Transaction(changes=[Put(name, {"n": written}) for name in names])) is None
        return written

    def look() -> set[int]:
        seen: set[int] = set()
        deadline_s = time.monotonic() + SOON_S
        turn = 0
        while (turn < 150 or len(seen) < 20) and time.monotonic() < deadline_s:
            turn += 1
            found = ledger.get(*names) if turn % 2 else ledger.scan("part/")
            values = {stored.record["n"] if stored else 0 for stored in found} or {0}
            assert len(values) == 1
            seen |= values
        return seen

    with ThreadPoolExecutor(3) as pool:
        writing = pool.submit(write)
        try:
            looks = [pool.submit(look) for _ in range(2)]
            seen = [future.result() for future in looks]
        finally:
            ends.set()
        assert writing.result() >= max(map(max, seen)) >= 19


# News


class Listener:
    """Collects topics."""

    def __init__(self, ledger: Ledger) -> None:
        self.topics: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self.end = ledger.subscribe(self.topics.put)

    def hears(self, topic: str | None) -> bool:
        """Waits for a topic by name, or for news of anything."""
        deadline_s = time.monotonic() + SOON_S
        while (left_s := deadline_s - time.monotonic()) > 0:
            try:
                if self.topics.get(timeout=left_s) == topic:
                    return True
            except queue.Empty:
                break
        return False

    def up_to(self, topic: str) -> list[str | None]:
        """Everything that it hears until a topic, which is the last."""
        heard_so_far: list[str | None] = []
        while heard_so_far[-1:] != [topic]:
            heard_so_far.append(self.topics.get(timeout=SOON_S))
        return heard_so_far


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """No polling: only news wakes."""
    monkeypatch.setattr(sqlite, "_POLL_S", 3600.0)
    monkeypatch.setattr(sqlite, "_LOOK_S", 3600.0)


def settle(ledger: Ledger) -> None:
    """Waits until news flow."""
    listener = Listener(ledger)
    deadline_s = time.monotonic() + SOON_S
    for n in itertools.count():
        assert time.monotonic() < deadline_s
        ledger.commit(Transaction(changes=[Put("settle", {})], topic=f"settle {n}"))
        try:
            while listener.topics.get(timeout=0.5) != f"settle {n}":
                pass
        except queue.Empty:
            continue
        break
    listener.end()


def test_a_commit_is_news_to_every_listener(quiet: None, ledger: Ledger) -> None:
    settle(ledger)
    listeners = [Listener(ledger) for _ in range(3)]
    ledger.commit(Transaction(changes=[Put("k", {})], topic="first"))
    ledger.commit(Transaction(changes=[Delete("k")], topic="second"))
    put(ledger, "k")  # has no topic
    ledger.commit(Transaction([Expect("k", 1)], [Put("k", {})], topic="last"))
    for listener in listeners:
        assert listener.up_to("last") == ["first", "second", None, "last"]


def test_what_changes_nothing_is_no_news(quiet: None, ledger: Ledger) -> None:
    settle(ledger)
    listener = Listener(ledger)
    ledger.commit(Transaction([Expect("k", 7)], [Put("k", {})], topic="no"))
    ledger.commit(Transaction(adds=[Add("c", 1)], topic="no"))
    ledger.submit([]).result(SOON_S)
    ledger.commit(Transaction(changes=[Put("k", {})], topic="yes"))
    assert listener.up_to("yes") == ["yes"]


COMMIT_WHEN_TOLD = """
say("open")
for line in sys.stdin:
    ledger.commit(Transaction(changes=[Put("from/child", {})], topic="told"))
"""


def test_another_process_tells_its_topics(quiet: None, backend: Backend) -> None:
    ledger = backend.open()
    child = backend.child(COMMIT_WHEN_TOLD)
    assert heard(child) == "open"
    settle(ledger)
    listener = Listener(ledger)
    tell(child)
    assert listener.hears("told")
    assert read(ledger, "from/child")[0] == 1


LISTEN = """
import queue
topics = queue.SimpleQueue()
ledger.subscribe(topics.put)
say("open")
while True:
    topic = topics.get()
    if topic: say(topic)
"""


def test_another_process_is_told(backend: Backend) -> None:
    ledger = backend.open()
    child = backend.child(LISTEN)
    assert heard(child) == "open"
    settle(ledger)
    ledger.commit(Transaction(changes=[Put("k", {})], topic="naïve 日本"))
    while (topic := heard(child)).startswith("settle"):
        pass
    assert topic == "naïve 日本"


def test_many_topics_at_once_reach_other_ledgers(backend: Backend) -> None:
    """Either by name, or as news of everything."""
    ledger, other = backend.open(), backend.open()
    settle(other)
    listener = Listener(other)
    topics = [f"topic-{n:04d}" + "x" * 50 for n in range(300)]
    futures = [ledger.submit([Transaction(changes=[Put("k", {})], topic=topic)]) for topic in topics]
    assert [future.result() for future in futures] == [[None]] * 300
    missing = set(topics)
    deadline_s = time.monotonic() + SOON_S
    while missing and time.monotonic() < deadline_s:
        topic = listener.topics.get(timeout=SOON_S)
        missing = set() if topic is None else missing - {topic}
    assert not missing


def test_a_listener_hears_no_more_after_its_end(quiet: None, ledger: Ledger) -> None:
    settle(ledger)
    ended, other = Listener(ledger), Listener(ledger)
    ended.end()
    ended.end()
    ledger.commit(Transaction(changes=[Put("k", {})], topic="late"))
    assert other.hears("late")
    assert ended.topics.empty()


def test_a_listener_that_raises_harms_nobody(ledger: Ledger) -> None:
    def fails(_: str | None) -> None:
        raise RuntimeError("Event loop is closed")

    ledger.subscribe(fails)
    listener = Listener(ledger)
    settle(ledger)
    for n in range(3):
        ledger.commit(Transaction(changes=[Put("k", {})], topic=f"t{n}"))
        assert listener.hears(f"t{n}")


# Several at once, futures, and the end


def test_transactions_of_one_call_are_answered_each_on_its_own(ledger: Ledger) -> None:
    put(ledger, "k", n=0)
    transactions = [
        Transaction([Expect("k", 1)], [Put("k", {"n": 1})], [Add("c", 1, 2)]),
        Transaction([Expect("k", 1)], [Put("k", {"n": "stale"}), Put("l", {})], [Add("c", 1)]),
        Transaction([Expect("k", 2)], [Put("k", {"n": 2})], [Add("c", 1, 2)]),
        Transaction([Expect("k", 3)], [Delete("k"), Put("l", {})], [Add("d", 1), Add("c", 1, 2)]),
        Transaction([Expect("k", 3), Expect("l", 0)], [Put("m", {"n": 3})], [Add("c", -1)]),
    ]
    answers = ledger.submit(transactions).result(SOON_S)
    assert answers == [None, Expect("k", 1), None, Add("c", 1, 2), None]
    assert [read(ledger, key) for key in ("k", "l", "m")] == [(3, {"n": 2}), (0, None), (1, {"n": 3})]
    assert (ledger.counter("c"), ledger.counter("d")) == (1, 0)


def test_no_transactions_have_no_answers(ledger: Ledger) -> None:
    assert ledger.submit([]).result(SOON_S) == []
    futures = [ledger.submit([Transaction(adds=[Add("c", 1)])] * (n % 2)) for n in range(40)]
    assert [future.result(SOON_S) for future in futures] == [[], [None]] * 20
    assert ledger.counter("c") == 20


def test_calls_that_arrive_together_get_their_own_answers(ledger: Ledger) -> None:
    missing = [[Expect(f"absent/{n}/{place}", 1) for place in range(n % 7)] for n in range(60)]
    futures = [ledger.submit([Transaction([expect], [Put("k", {})]) for expect in expects]) for expects in missing]
    assert [future.result(SOON_S) for future in futures] == missing
    assert keys(ledger, "") == []


def test_a_call_may_hold_more_than_a_group(ledger: Ledger) -> None:
    number = 3 * MAX_GROUP + 1
    rises = [Transaction([Expect("k", n)], [Put("k", {"n": n})]) for n in range(number)]
    futures = [ledger.submit(part) for part in (rises[:1], rises[1:-1], rises[-1:])]
    assert [future.result(SOON_S) for future in futures] == [[None], [None] * (number - 2), [None]]
    assert read(ledger, "k") == (number, {"n": number - 1})


def test_every_change_of_a_call_is_news(quiet: None, ledger: Ledger) -> None:
    settle(ledger)
    listener = Listener(ledger)
    expected = [0, 1, 9, 2]
    transactions = [Transaction([Expect("k", n)], [Put("k", {})], topic=f"from {n}") for n in expected]
    assert ledger.submit(transactions).result(SOON_S) == [None, None, Expect("k", 9), None]
    ledger.commit(Transaction(changes=[Put("k", {})], topic="last"))
    assert listener.up_to("last") == ["from 0", "from 1", "from 2", "last"]


def test_a_cancelled_future_harms_nobody(ledger: Ledger) -> None:
    """As when a client goes while its commit is on its way."""
    futures = [
        ledger.submit([Transaction(changes=[Put(f"k/{n:03d}/{place}", {})]) for place in range(2)]) for n in range(200)
    ]
    cancelled = [future.cancel() for future in futures]
    for future, was_cancelled in zip(futures, cancelled, strict=True):
        assert was_cancelled or future.result(SOON_S) == [None, None]
    assert any(cancelled)
    put(ledger, "after")
    assert keys(ledger, "k/") == [f"k/{n:03d}/{place}" for n in range(200) if not cancelled[n] for place in range(2)]


def test_a_transaction_that_cannot_be_carried_out_fails_its_call_alone(ledger: Ledger) -> None:
    def submit(n: int) -> Future[list[Expect | Add | None]]:
        records = [{"n": n}, {"n": object()} if n % 10 == 5 else {"n": n}, {"n": n}]
        puts = [Put(f"k/{n:03d}/{place}", record) for place, record in enumerate(records)]
        return ledger.submit([Transaction(changes=[change], adds=[Add("k", 1)]) for change in puts])

    futures = [submit(n) for n in range(100)]
    for n, future in enumerate(futures):
        if n % 10 == 5:
            with pytest.raises(TypeError, match="not JSON serializable"):
                future.result(SOON_S)
        else:
            assert future.result(SOON_S) == [None] * 3
    assert keys(ledger, "k/") == [f"k/{n:03d}/{place}" for n in range(100) if n % 10 != 5 for place in range(3)]
    assert ledger.counter("k") == 270


def test_submitted_transactions_are_carried_out_in_order(ledger: Ledger) -> None:
    futures = [ledger.submit([Transaction([Expect("k", n)], [Put("k", {"n": n})])]) for n in range(400)]
    assert [future.result(SOON_S) for future in futures] == [[None]] * 400
    assert read(ledger, "k") == (400, {"n": 399})


def test_after_close_its_threads_have_ended_and_calls_fail(quiet: None, backend: Backend) -> None:
    before = set(threading.enumerate())
    ledger = backend.open()
    settle(ledger)
    threads = set(threading.enumerate()) - before
    assert threads
    listener = Listener(ledger)
    submitted = [ledger.submit([Transaction(changes=[Put("k", {})], topic="t")]) for _ in range(50)]
    began_s = time.monotonic()
    ledger.close()
    assert time.monotonic() - began_s < SOON_S
    assert not any(thread.is_alive() for thread in threads)
    assert [future.result(0) for future in submitted] == [[None]] * 50
    ledger.close()
    while not listener.topics.empty():
        listener.topics.get()
    put(backend.open(), "k")
    assert listener.topics.empty()
    calls: list[Callable[[], Any]] = [
        lambda: ledger.commit(Transaction(changes=[Put("k", {})])),
        lambda: ledger.submit([Transaction()]).result(SOON_S),
        lambda: ledger.get("k"),
        lambda: ledger.scan(""),
        lambda: ledger.counter("c"),
        ledger.ping,
    ]
    for call in calls:
        with pytest.raises(UnavailableError, match="closed"):
            call()


def test_commits_that_race_with_close_all_get_an_answer(backend: Backend) -> None:
    for _ in range(5):
        ledger = backend.open()
        started = threading.Barrier(5)

        def commit(ledger: Ledger = ledger, started: threading.Barrier = started) -> int:
            started.wait()
            done = 0
            try:
                while True:
                    ledger.submit([Transaction(adds=[Add("done", 1)])]).result(SOON_S)
                    done += 1
            except UnavailableError:
                return done

        before = ledger.counter("done")
        with ThreadPoolExecutor(4) as pool:
            futures = [pool.submit(commit) for _ in range(4)]
            started.wait()
            ledger.close()
            acknowledged = sum(future.result(SOON_S) for future in futures)
        assert backend.open().counter("done") - before == acknowledged


# Durability

STREAM = """
import threading
say("open")
lock = threading.Lock()
def write(thread):
    n = 0
    while True:
        n += 1
        ledger.commit(Transaction(changes=[Put(f"k/{thread}/{n:06d}", {"n": n}), Put(f"last/{thread}", {"n": n})],
                                  adds=[Add("written", 1)]))
        with lock:
            say(thread, n)
threads = [threading.Thread(target=write, args=(thread,)) for thread in range(3)]
[thread.start() for thread in threads]
"""


def acknowledged_before_kill(child: "subprocess.Popen[str]", end: Callable[[], None]) -> dict[int, int]:
    """Per thread, how many commits were acknowledged when `end` came in the middle of them."""
    assert heard(child) == "open"
    last = {0: 0, 1: 0, 2: 0}

    def hear() -> bool:
        thread, _, n = heard(child).partition(" ")
        if n:
            last[int(thread)] = int(n)
        return bool(n)

    while sum(last.values()) < 150 or min(last.values()) < 10:
        assert hear()
    end()
    while hear():
        pass
    return last


def check_stream(ledger: Ledger, last: Mapping[int, int]) -> None:
    """Everything that was acknowledged is there, and nothing in parts."""
    written = 0
    for thread, acknowledged in last.items():
        (stored,) = ledger.get(f"last/{thread}")
        assert stored is not None and stored.record["n"] in (acknowledged, acknowledged + 1)
        there = ledger.scan(f"k/{thread}/", limit=1_000_000)
        assert [found.record["n"] for found in there] == list(range(1, stored.record["n"] + 1))
        written += len(there)
    assert ledger.counter("written") == written


def test_acknowledged_commits_survive_the_sigkill_of_their_process(backend: Backend) -> None:
    child = backend.child(STREAM)
    last = acknowledged_before_kill(child, child.kill)
    ledger = backend.open()
    if backend.kind == "redis":  # what was on its way may still arrive
        settle(ledger)
    check_stream(ledger, last)
    put(ledger, "k", n=1)


@pytest.mark.parametrize("appendfsync", ["always", "everysec"])
def test_acknowledged_commits_survive_the_sigkill_of_redis(
    appendfsync: Any, tmp_path: Path, redis_executable: None
) -> None:
    server = RedisServer(tmp_path, appendfsync)
    backend = Backend("redis", server.url)
    try:
        child = backend.child(STREAM)
        last = acknowledged_before_kill(child, lambda: server.end(kill=True))
        server.start()
        check_stream(backend.open(), last)
    finally:
        backend.close()
        server.stop()


# Outages of Redis


@pytest.fixture
def redis_executable() -> None:
    """Skips without it."""
    require_redis()


@pytest.fixture
def own_server(tmp_path: Path, redis_executable: None) -> Iterator[RedisServer]:
    """A server that a test may maltreat."""
    server = RedisServer(tmp_path, "everysec")
    yield server
    server.stop()


def failing_calls(ledger: Ledger) -> list[Callable[[], Any]]:
    return [
        lambda: ledger.commit(Transaction(changes=[Put("k", {})])),
        lambda: ledger.get("k"),
        lambda: ledger.scan(""),
        lambda: ledger.counter("c"),
        ledger.ping,
    ]


def test_without_redis_every_call_fails_and_after_its_restart_none(own_server: RedisServer) -> None:
    ledger = RedisLedger(own_server.url, timeout_s=2.0)
    try:
        put(ledger, "before", n=1)
        settle(ledger)
        own_server.end()
        for call in failing_calls(ledger):
            with pytest.raises(UnavailableError, match="does not answer"):
                call()
        listener = Listener(ledger)
        own_server.start()
        assert listener.hears(None), "anything may have changed meanwhile"
        assert read(ledger, "before") == (1, {"n": 1})
        put(ledger, "after", n=2)
        ledger.commit(Transaction(changes=[Put("k", {})], topic="flows again"))
        assert listener.hears("flows again")
    finally:
        ledger.close()


def test_a_restart_between_two_calls_is_not_noticed(own_server: RedisServer) -> None:
    ledger = RedisLedger(own_server.url)
    try:
        for n in range(3):
            futures = [ledger.submit([Transaction(adds=[Add("c", 1)])]) for _ in range(20)]
            assert [future.result() for future in futures] == [[None]] * 20
            own_server.restart(kill=n == 1)
            assert ledger.counter("c") == 20 * (n + 1)
    finally:
        ledger.close()


def test_a_redis_that_hangs_is_unavailable_after_the_timeout(own_server: RedisServer) -> None:
    ledger = RedisLedger(own_server.url, timeout_s=0.3)
    try:
        put(ledger, "k", n=0)
        own_server.pause()
        for call in failing_calls(ledger):
            began_s = time.monotonic()
            with pytest.raises(UnavailableError):
                call()
            assert time.monotonic() - began_s < 3.0
        with pytest.raises(UnavailableError):
            RedisLedger(own_server.url, timeout_s=0.2)
        own_server.resume()
        settle(ledger)
        # A commit that was not answered may have happened, once.
        assert read(ledger, "k")[0] in (1, 2)
        put(ledger, "k", n=3)
        assert read(ledger, "k")[1] == {"n": 3}
    finally:
        own_server.resume()
        ledger.close()


def test_an_unanswered_commit_is_not_repeated_behind_its_callers_back(own_server: RedisServer) -> None:
    ledger = RedisLedger(own_server.url, timeout_s=0.3)
    try:
        for n in range(3):
            own_server.pause()
            with pytest.raises(UnavailableError):
                ledger.commit(Transaction(adds=[Add("c", 1)]))
            own_server.resume()
            ledger.ping()
            assert ledger.counter("c") <= n + 1
    finally:
        own_server.resume()
        ledger.close()


def test_many_threads_may_wait_for_redis_at_once(own_server: RedisServer) -> None:
    ledger = RedisLedger(own_server.url, timeout_s=60.0)
    try:
        own_server.pause()
        with ThreadPoolExecutor(130) as pool:
            waiting = [pool.submit(ledger.counter, "c") for _ in range(130)]
            while sum(future.running() for future in waiting) < 130:
                time.sleep(0.01)
            own_server.resume()
            assert [future.result() for future in waiting] == [0] * 130
    finally:
        own_server.resume()
        ledger.close()


def test_a_redis_that_refuses_writes_changes_nothing(own_server: RedisServer) -> None:
    import redis

    ledger = RedisLedger(own_server.url)
    try:
        put(ledger, "k", n=1)
        with redis.Redis(port=own_server.port) as client:
            client.config_set("maxmemory", "1")
            with pytest.raises(UnavailableError, match="maxmemory"):
                ledger.commit(Transaction(changes=[Put("k", {"n": 2}), Put("l", {})], adds=[Add("c", 1)]))
            assert (read(ledger, "k"), ledger.counter("c")) == ((1, {"n": 1}), 0)
            client.config_set("maxmemory", "0")
            client.script_flush()
        puts = [Transaction(changes=[Put("k", {"n": n})]) for n in range(20)]
        assert ledger.submit(puts).result() == [None] * 20
        assert read(ledger, "k") == (21, {"n": 19})
    finally:
        ledger.close()


@pytest.mark.parametrize("url", ["redis://127.0.0.1:1/0", "redis://user:secret@127.0.0.1:1/0", "http://x"])
def test_no_redis_is_said_without_the_password(url: str) -> None:
    with pytest.raises(UnavailableError) as error:
        RedisLedger(url, timeout_s=0.5)
    assert "secret" not in str(error.value)


# What only SQLite goes through


@pytest.fixture
def no_place(tmp_path: Path) -> Path:
    """A path where no file can be."""
    (tmp_path / "file").write_text("")
    return tmp_path / "file" / "ledger.sqlite"


def test_an_impossible_path_is_unavailable(no_place: Path, tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match="ledger.sqlite"):
        SqliteLedger(no_place)
    with pytest.raises(UnavailableError, match="does not answer"):
        SqliteLedger(tmp_path)
    with pytest.raises(UnavailableError):
        SqliteLedger(Path("/proc/metasearch/ledger.sqlite"))


def test_a_file_that_is_no_database_is_unavailable_and_untouched(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("This is no database. " * 200)
    with pytest.raises(UnavailableError, match="not a database"):
        SqliteLedger(path)
    assert path.read_text() == "This is no database. " * 200


READ_ONLY = """
import os, sys
from pathlib import Path
from common.errors import UnavailableError
from coordinator.store.ledger import Put, Transaction
from coordinator.store.sqlite import SqliteLedger
if os.getuid() == 0:
    os.setgid(65534)
    os.setuid(65534)
try:
    SqliteLedger(Path(sys.argv[1])).commit(Transaction(changes=[Put("k", {})]))
except UnavailableError as error:
    print("unavailable:", error)
"""


def test_a_read_only_folder_is_unavailable() -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        path = Path(folder) / "ledger.sqlite"
        SqliteLedger(path).close()
        path.chmod(0o444)
        Path(folder).chmod(0o555)
        try:
            root = Path(__file__).parents[2]
            found = subprocess.run(
                [sys.executable, "-c", READ_ONLY, str(path)],
                cwd=root,
                env=os.environ | {"PYTHONPATH": str(root)},
                capture_output=True,
                text=True,
                timeout=60,
            )
        finally:
            Path(folder).chmod(0o755)
    assert found.stdout.startswith("unavailable:"), found.stdout + found.stderr


def test_a_full_disk_fails_commits_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    connect = SqliteLedger._connect
    pages = 40

    def small(ledger: SqliteLedger) -> Any:
        connection = connect(ledger)
        connection.execute(f"PRAGMA max_page_count = {pages}")
        return connection

    monkeypatch.setattr(SqliteLedger, "_connect", small)
    ledger = SqliteLedger(tmp_path / "ledger.sqlite")
    try:
        written = 0
        with pytest.raises(UnavailableError, match="full"):
            while True:
                put(ledger, f"k/{written:04d}", text="x" * 3000)
                written += 1
        assert written > 5
        assert len(ledger.scan("k/")) == written
        with pytest.raises(UnavailableError, match="full"):
            ledger.commit(Transaction(changes=[Put(f"m/{n}", {"text": "x" * 3000}) for n in range(99)]))
        assert ledger.scan("m/") == []
        pages = 10_000
        ledger._idle.clear()  # new connections see more room, as everyone does when a disk has some again
        put(ledger, "k/more", text="x" * 3000)
        assert len(ledger.scan("k/")) == written + 1
    finally:
        ledger.close()


def test_a_writer_that_blocks_too_long_makes_commits_unavailable_but_not_reads(tmp_path: Path) -> None:
    import sqlite3

    ledger = SqliteLedger(tmp_path / "ledger.sqlite", busy_timeout_s=0.1)
    other = sqlite3.connect(tmp_path / "ledger.sqlite", isolation_level=None)
    try:
        put(ledger, "k", n=1)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(UnavailableError, match="locked"):
            ledger.commit(Transaction(changes=[Put("k", {"n": 2})]))
        assert read(ledger, "k") == (1, {"n": 1})
        other.execute("ROLLBACK")
        put(ledger, "k", n=3)
        assert read(ledger, "k") == (2, {"n": 3})
    finally:
        other.close()
        ledger.close()


def test_many_short_lived_threads_leave_few_connections(tmp_path: Path) -> None:
    ledger = SqliteLedger(tmp_path / "ledger.sqlite")
    try:
        put(ledger, "k", n=1)
        for _ in range(60):
            thread = threading.Thread(target=ledger.get, args=("k",))
            thread.start()
            thread.join()
        assert len(ledger._idle) < 4
    finally:
        ledger.close()


def test_processes_that_open_a_new_file_together_all_can(tmp_path: Path) -> None:
    backend = Backend("sqlite", str(tmp_path / "ledger.sqlite"))
    try:
        children = [backend.child(RISE, "5", starts=False) for _ in range(4)]
        for child in children:
            tell(child)
        assert [heard(child) for child in children] == ["done"] * 4
        assert read(backend.open(), "n") == (20, {"value": 20})
    finally:
        backend.close()


def test_a_path_too_long_for_a_bell_still_gets_news_by_polling(tmp_path: Path) -> None:
    folder = tmp_path / ("long" * 30)
    ledger, other = SqliteLedger(folder / "ledger.sqlite"), SqliteLedger(folder / "ledger.sqlite")
    try:
        assert not any((folder / "ledger.sqlite.bells").iterdir())
        put(ledger, "k", n=1)
        assert Listener(other).hears(None)
        assert read(other, "k") == (1, {"n": 1})
    finally:
        ledger.close()
        other.close()


def test_bells_of_dead_processes_are_taken_down(tmp_path: Path) -> None:
    backend = Backend("sqlite", str(tmp_path / "ledger.sqlite"))
    try:
        ledger = backend.open()
        child = backend.child(COMMIT_WHEN_TOLD)
        assert heard(child) == "open"
        folder = tmp_path / "ledger.sqlite.bells"
        assert len(list(folder.iterdir())) == 2
        child.send_signal(signal.SIGKILL)
        child.wait()
        put(ledger, "k", n=1)
        settle(ledger)
        assert len(list(folder.iterdir())) == 1
        assert all(stat.S_ISSOCK(bell.stat().st_mode) for bell in folder.iterdir())
    finally:
        backend.close()
    assert list(folder.iterdir()) == []


# Against a model

NAMES = ["a", "a/", "a/1", "ab/1", "é", "\0"]
EXAMPLES = itertools.count()
RECORDS = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)
OPERATIONS = st.builds(
    lambda expects, changes, adds: (expects, changes, adds),
    st.lists(st.tuples(st.sampled_from(NAMES), st.sampled_from([0, 0, 0, 0, 0, 1, -1])), max_size=3),
    st.lists(
        st.tuples(st.sampled_from(NAMES), st.none() | st.dictionaries(st.text(max_size=3), RECORDS, max_size=3)),
        max_size=5,
    ),
    st.lists(
        st.tuples(st.sampled_from(["c", "é"]), st.integers(-5, 5), st.none() | st.integers(-5, 8)),
        max_size=2,
        unique_by=lambda add: add[0],
    ),
)


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(operations=st.lists(OPERATIONS, max_size=12), how=st.sampled_from(["one by one", "together", "in one call"]))
def test_random_transactions_do_what_a_dict_does(ledger: Ledger, operations: list[Any], how: str) -> None:
    records: dict[str, tuple[int, Any]] = {}
    counters: dict[str, int] = {}
    prefix = f"{next(EXAMPLES)}:"
    transactions, futures, expected = [], [], []
    for expects, changes, adds in operations:
        transaction = Transaction(
            [Expect(prefix + name, records.get(name, (0, None))[0] + off) for name, off in expects],
            [Delete(prefix + name) if record is None else Put(prefix + name, record) for name, record in changes],
            [Add(prefix + name, amount, at_most) for name, amount, at_most in adds],
        )
        transactions.append(transaction)
        if how != "in one call":
            futures.append(ledger.submit([transaction]))
        if how == "one by one":
            futures[-1].result(SOON_S)
        failed: Expect | Add | None = next(
            (transaction.expects[n] for n, (_, off) in enumerate(expects) if off),
            None,
        )
        failed = failed or next(
            (
                transaction.adds[n]
                for n, (name, amount, at_most) in enumerate(adds)
                if at_most is not None and counters.get(name, 0) + amount > at_most
            ),
            None,
        )
        expected.append(failed)
        if failed is None:
            for name, record in changes:
                if record is None:
                    records.pop(name, None)
                else:
                    records[name] = (records.get(name, (0, None))[0] + 1, record)
            for name, amount, _ in adds:
                counters[name] = counters.get(name, 0) + amount
    if how == "in one call":
        futures.append(ledger.submit(transactions))
    assert [answer for future in futures for answer in future.result(SOON_S)] == expected
    found = {stored.key.removeprefix(prefix): (stored.revision, stored.record) for stored in ledger.scan(prefix)}
    assert repr(sorted(found.items())) == repr(sorted(records.items()))
    assert list(found) == sorted(records)
    assert [read(ledger, prefix + name) for name in NAMES] == [records.get(name, (0, None)) for name in NAMES]
    assert {name: ledger.counter(prefix + name) for name in ("c", "é")} == {"c": 0, "é": 0} | counters
