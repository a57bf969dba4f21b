"""What all tests share: an image cache of their own, and one local Ray cluster."""

import os
from collections.abc import Iterator

import pytest

from workers.data.cache import CACHE_VARIABLE


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Of several processes, one has the tests on the shared Ray cluster, one those that start clusters of their own.

    The other tests of a file stay together, and share what it sets up.
    """

    def group(item: pytest.Item) -> str:
        if "ray_cluster" in getattr(item, "fixturenames", ()):
            return "ray: the shared cluster"
        return "ray: own clusters" if item.get_closest_marker("ray") else item.nodeid.split("::")[0]

    items.sort(key=lambda item: group(item).startswith("ray: "), reverse=True)  # they take longest
    for item in items:
        item.add_marker(pytest.mark.xdist_group(group(item)))


@pytest.fixture(scope="session", autouse=True)
def shared_image_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Images are prepared once per test run, never in the user's cache."""
    before = os.environ.get(CACHE_VARIABLE)
    os.environ[CACHE_VARIABLE] = str(tmp_path_factory.mktemp("image-cache"))
    yield
    if before is None:
        del os.environ[CACHE_VARIABLE]
    else:
        os.environ[CACHE_VARIABLE] = before


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Torch computes on one thread, as workers do."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def ray_cluster(shared_image_cache: None) -> Iterator[None]:
    """A local Ray cluster of two logical CPUs for the whole test run."""
    import ray

    from coordinator.cluster import connect, disconnect

    connect(None, include_dashboard=False)
    assert ray.is_initialized()
    yield
    disconnect()
