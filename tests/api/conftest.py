"""One gateway for all tests of the API; every test has tenants of its own."""

import asyncio
import inspect
import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from reference.gateway import Gateway, PlayedCoordinator, running

from coordinator.api.client import AsyncSearchClient, SearchClient

ALLOWED_URLS = ("s3://vision/open/", "https://data.example/sets/")
NUM_TENANTS = 1000
_numbers = itertools.count()


@pytest.fixture(scope="session", autouse=True)
def no_settings_from_outside() -> Iterator[None]:
    patch = pytest.MonkeyPatch()
    for name in list(os.environ):
        if name.startswith(("METASEARCH_ADDRESS", "METASEARCH_TOKEN", "METASEARCH_CA", "METASEARCH_SE")):
            patch.delenv(name)
    yield
    patch.undo()


@pytest.fixture(scope="session")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    quotas = {"small": {"max_queued": 2, "max_stored_bytes": 1500, "max_studies": 2}, "tiny": {"max_stored_bytes": 400}}
    folder = tmp_path_factory.mktemp("gateway")
    new = Gateway(folder, allowed_urls=ALLOWED_URLS, quotas=quotas, max_upload_bytes=8 << 20)
    for tenant in quotas:
        new.token(tenant)
    new.token("viewers", "viewer")
    new.add_tokens(f"tenant-{number}" for number in range(NUM_TENANTS))  # no test waits for a new one to be noticed
    new.start()
    yield new
    new.stop()


@pytest.fixture(scope="session")
def coordinator(gateway: Gateway) -> Iterator[PlayedCoordinator]:
    played = PlayedCoordinator(gateway)
    yield played
    played.close()


def next_tenant() -> str:
    number = next(_numbers)
    assert number < NUM_TENANTS, "raise NUM_TENANTS"
    return f"tenant-{number}"


@pytest.fixture
def tenant() -> str:
    return next_tenant()


@pytest.fixture
def other_tenant() -> str:
    return next_tenant()


@pytest.fixture
def client(gateway: Gateway, tenant: str) -> Iterator[SearchClient]:
    with gateway.client(tenant, patience_s=5.0) as found:
        yield found


class Blocking:
    """An AsyncSearchClient, called like a SearchClient."""

    def __init__(self, *args: Any, **options: Any) -> None:
        self._loop = asyncio.new_event_loop()

        async def make() -> AsyncSearchClient:
            return AsyncSearchClient(*args, **options)

        self._client = self._loop.run_until_complete(make())

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            found = getattr(self._client, name)(*args, **options)
            return self._iterate(found) if inspect.isasyncgen(found) else self._loop.run_until_complete(found)

        return call

    def _iterate(self, stream: Any) -> Iterator[Any]:
        try:
            while True:
                try:
                    yield self._loop.run_until_complete(anext(stream))
                except StopAsyncIteration:
                    return
        finally:
            self._loop.run_until_complete(stream.aclose())

    def shut_down(self) -> None:
        self._loop.run_until_complete(self._client.close())
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.close()


@pytest.fixture(params=["sync", "async"])
def either(request: pytest.FixtureRequest, gateway: Gateway, tenant: str) -> Iterator[Any]:
    """Both clients, one after the other."""
    if request.param == "sync":
        with gateway.client(tenant, patience_s=5.0) as found:
            yield found
    else:
        blocking = Blocking(gateway.address, gateway.token(tenant), patience_s=5.0)
        yield blocking
        blocking.shut_down()


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """An image folder of two classes."""
    for index, name in enumerate(("ants", "bees")):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(2):
            pixels = np.full((8, 8, 3), 60 * index + number, np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{number}.png")
    return tmp_path / "photos"


@pytest.fixture
def own_gateway(tmp_path: Path) -> Iterator[Gateway]:
    """A gateway that the test may stop, break or kill."""
    with running(tmp_path / "own", drain_s=2.0) as found:
        yield found
