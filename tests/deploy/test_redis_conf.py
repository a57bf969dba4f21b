"""Redis as docker-compose.yml runs it: who may do what, and that nothing is lost over a restart."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from reference.compose import ROOT
from reference.gateway import until
from reference.ports import free_ports
from reference.redis_server import EXECUTABLE, require_redis

from coordinator.settings import open_ledger
from coordinator.store.jobs import JobStore


class Server:
    """A Redis with the settings and the users of the deployment, on another port and folder."""

    def __init__(self, folder: Path) -> None:
        (self.port,) = free_ports(1)
        self._folder = folder
        subprocess.run(
            [ROOT / "deploy" / "make-secrets"],
            env=os.environ | {"SECRETS": str(folder)},
            check=True,
            stdout=subprocess.DEVNULL,
        )
        self.url = (folder / "store_url").read_text().strip().replace("redis:6379", f"127.0.0.1:{self.port}")
        conf = (ROOT / "deploy" / "redis.conf").read_text()
        conf = conf.replace("/data", str(folder)).replace("/run/secrets", str(folder))
        self._conf = folder / "redis.conf"
        self._conf.write_text(f"{conf}port {self.port}\nbind 127.0.0.1\nlogfile {folder}/redis.log\n")
        self.start()

    def start(self) -> None:
        self._process = subprocess.Popen([EXECUTABLE, self._conf], stdout=subprocess.DEVNULL)
        until(self.is_well, "Redis to answer")

    def is_well(self) -> bool:
        try:
            return self.client("health", "any").ping() is True
        except redis.ConnectionError:
            return False

    def client(self, user: str | None = None, password: str | None = None) -> redis.Redis:
        return redis.Redis(port=self.port, username=user, password=password, retry=None)

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    require_redis()
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    found = Server(tmp_path)
    yield found
    found.stop()


def test_what_the_job_store_was_told_is_there_after_a_kill(server: Server) -> None:
    ledger = open_ledger(server.url)
    epoch = JobStore(ledger).take_charge("test")
    JobStore(ledger).beat(epoch, {})
    ledger.close()
    server.stop()
    server.start()
    ledger = open_ledger(server.url)
    try:
        assert JobStore(ledger).epoch() == epoch
        assert JobStore(ledger).last_beat()[0] == 1
        JobStore(ledger).beat(epoch, {})
        assert JobStore(ledger).last_beat()[0] == 2
    finally:
        ledger.close()


def test_users_can_do_what_they_are_there_for_and_no_more(server: Server) -> None:
    store = redis.Redis.from_url(server.url)
    assert store.bgrewriteaof()
    for refused in (
        store.flushall,
        store.shutdown,
        lambda: store.set("other", 1),
        lambda: store.config_set("dir", "/"),
    ):
        with pytest.raises(redis.exceptions.NoPermissionError):
            refused()
    with pytest.raises(redis.exceptions.NoPermissionError):
        server.client("health", "any").get("{metasearch}:records")
    with pytest.raises(redis.AuthenticationError):
        server.client().ping()
    with pytest.raises(redis.AuthenticationError):
        server.client("default", "any").ping()
    store.close()
