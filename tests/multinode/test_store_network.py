"""The job store's client on a network that loses what it carries, rather than on a server that refuses."""

import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from multinode.hosts import Network, require_hosts
from reference.kept import wait_until
from reference.redis_server import EXECUTABLE, require_redis

from common.errors import UnavailableError
from coordinator.store.ledger import Add, Put, Transaction
from coordinator.store.redis import RedisLedger

PORT = 6379
CUT_S = 20.0

pytestmark = [pytest.mark.multinode, pytest.mark.timeout(300)]


@pytest.fixture
def network() -> Iterator[Network]:
    require_hosts()
    require_redis()
    network = Network(["store", "client"])
    yield network
    network.close()


@pytest.fixture
def ledger(network: Network, tmp_path: Path) -> Iterator[RedisLedger]:
    """On the client's host; the server is on the store's."""
    store = network.hosts["store"]
    options = ("--bind", store.address, "--port", str(PORT), "--protected-mode", "no", "--dir", str(tmp_path))
    server = subprocess.Popen(store.command(EXECUTABLE, *options), stdout=subprocess.DEVNULL)
    found: list[RedisLedger] = []

    def answers() -> bool:
        found.append(RedisLedger(f"redis://{store.address}:{PORT}/0"))
        return True

    with network.hosts["client"].inside():
        wait_until(answers, 30)
        yield found[0]
    found[0].close()
    server.kill()
    server.wait()


def test_calls_fail_in_time_while_the_store_is_cut_off_and_work_soon_after(
    network: Network, ledger: RedisLedger
) -> None:
    assert fails_s(ledger.ping) is None
    network.cut("store")
    for call in (ledger.ping, lambda: ledger.get("key"), lambda: ledger.commit(Transaction(changes=[Put("key", {})]))):
        took_s = fails_s(call)
        assert took_s is not None and took_s < 8.0, "on a connection that was there, and on one to be made"
    network.heal("store")
    took_s = wait_until(lambda: fails_s(ledger.ping) is None, 30)
    print(f"calls work {took_s:.1f} s after the cable was healed")
    assert took_s < 8.0


def test_news_come_again_after_the_store_was_cut_off(network: Network, ledger: RedisLedger) -> None:
    heard: set[str | None] = set()
    ledger.subscribe(heard.add)
    wait_until(lambda: publishes(ledger, "before", heard), 20)
    network.cut("store")
    began_s = time.monotonic()
    while time.monotonic() - began_s < CUT_S:
        fails_s(ledger.ping)  # takes as long as it takes
    network.heal("store")
    took_s = wait_until(lambda: publishes(ledger, "after", heard), 60)
    print(f"news come {took_s:.1f} s after the cable was healed")


def test_a_commit_happens_once_or_not_at_all_on_a_slow_and_lossy_cable(network: Network, ledger: RedisLedger) -> None:
    network.slow_down("store", delay_ms=200.0, loss_fraction=0.05)
    known, unknown = 0, 0
    lock = threading.Lock()

    def commit_some() -> None:
        nonlocal known, unknown
        for _ in range(10):
            try:
                ledger.commit(Transaction(adds=[Add("commits", 1)]))
            except UnavailableError:
                with lock:
                    unknown += 1
            else:
                with lock:
                    known += 1

    threads = [threading.Thread(target=commit_some) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    network.heal("store")
    assert known > 0
    print(f"{known} commits were confirmed, {unknown} were not")
    wait_until(lambda: known <= ledger.counter("commits") <= known + unknown, 30)


def publishes(ledger: RedisLedger, topic: str, heard: set[str | None]) -> bool:
    """Whether a change of a moment ago was heard of."""
    if fails_s(lambda: ledger.commit(Transaction(changes=[Put(topic, {})], topic=topic))) is not None:
        return False
    return topic in heard


def fails_s(call: Callable[[], object]) -> float | None:
    """After how many seconds a call fails; None where it does not."""
    began_s = time.monotonic()
    try:
        call()
    except UnavailableError:
        return time.monotonic() - began_s
    return None
