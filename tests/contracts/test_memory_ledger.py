"""The ledger in memory does what the one on disk does, whatever is asked of both."""

import itertools
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from common.errors import UnavailableError
from coordinator.store.ledger import Add, Delete, Expect, Ledger, Put, Transaction
from coordinator.store.memory import MemoryLedger
from coordinator.store.sqlite import SqliteLedger

KEYS = ["a", "a/", "a/1", "a/2", "ab/1", "é"]
TRANSACTIONS = st.builds(
    Transaction,
    st.lists(st.builds(Expect, st.sampled_from(KEYS), st.integers(0, 2)), max_size=1),
    st.lists(
        st.builds(Put, st.sampled_from(KEYS), st.fixed_dictionaries({"n": st.integers(0, 9)}))
        | st.builds(Delete, st.sampled_from(KEYS)),
        max_size=4,
    ),
    st.lists(st.builds(Add, st.sampled_from("cd"), st.integers(-2, 5), st.none() | st.integers(0, 8)), max_size=1),
)
SCANS = list(itertools.product(["", "a", "a/", "b"], ["", "a", "a/1", "ab/1", "z"], [1000, 1, 2], [False, True]))
ROUNDS = itertools.count()


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(transactions=st.lists(TRANSACTIONS, max_size=12))
def test_it_answers_as_the_ledger_on_disk_does(tmp_path: Path, transactions: list[Any]) -> None:
    memory, disk = MemoryLedger(), SqliteLedger(tmp_path / f"{next(ROUNDS)}.sqlite")
    try:
        answers = [ledger.submit(transactions).result(10.0) for ledger in (memory, disk)]
        assert answers[0] == answers[1]
        assert memory.get(*KEYS) == disk.get(*KEYS)
        assert [memory.counter(name) for name in "cd"] == [disk.counter(name) for name in "cd"]
        for scan in SCANS:
            assert memory.scan(*scan) == disk.scan(*scan), scan
    finally:
        disk.close()


def test_it_is_a_ledger_that_tells_of_changes_until_it_is_closed() -> None:
    ledger, heard = MemoryLedger(), []
    assert isinstance(ledger, Ledger)
    end = ledger.subscribe(heard.append)
    ledger.commit(Transaction(changes=[Put("a", {})], topic="first"))
    ledger.commit(Transaction([Expect("a", 0)], [Put("a", {})], topic="refused"))
    ledger.commit(Transaction(topic="nothing changes"))
    end()
    ledger.commit(Transaction(changes=[Delete("a")], topic="nobody listens"))
    assert heard == ["first"]
    ledger.close()
    with pytest.raises(UnavailableError, match="closed"):
        ledger.ping()
    with pytest.raises(UnavailableError, match="closed"):
        ledger.submit([Transaction()]).result(1.0)
