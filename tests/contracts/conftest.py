"""Both backends, for suites that hold for each."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from contracts.backends import Backend
from reference.redis_server import RedisServer, require_redis

from coordinator.store import redis
from coordinator.store.jobs import JobStore
from coordinator.store.ledger import Ledger


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """One server for the whole run; who uses it leaves it running."""
    require_redis()
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    yield server
    server.stop()


@pytest.fixture(autouse=True)
def quick_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hundreds of ledgers are closed here."""
    monkeypatch.setattr(redis, "_LISTEN_S", 0.01)


@pytest.fixture(params=["sqlite", "redis"])
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Backend]:
    """An empty place."""
    if request.param == "sqlite":
        found = Backend("sqlite", str(tmp_path / "ledger.sqlite"))
    else:
        server = request.getfixturevalue("redis_server")
        server.flush()
        found = Backend("redis", server.url)
    yield found
    found.close()


@pytest.fixture
def ledger(backend: Backend) -> Ledger:
    """An empty ledger."""
    return backend.open()


@pytest.fixture
def store(ledger: Ledger) -> JobStore:
    """A job store on an empty ledger."""
    return JobStore(ledger)
