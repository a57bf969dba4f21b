"""What all tests share: an image cache of their own, and one local Ray cluster."""

import os
from collections.abc import Iterator

import pytest

from workers.data.cache import CACHE_VARIABLE


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """On two cores: tests of a file share what it sets up, and no two Ray clusters start beside each other."""

    def uses_ray(item: pytest.Item) -> bool:
        return item.get_closest_marker("ray") is not None or "ray_cluster" in getattr(item, "fixturenames", ())

    items.sort(key=uses_ray, reverse=True)  # they take longest
    for item in items:
        item.add_marker(pytest.mark.xdist_group("ray" if uses_ray(item) else item.nodeid.split("::")[0]))


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
