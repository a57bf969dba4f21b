"""What all tests share: an image cache of their own, one local Ray cluster, and which of them coverage traces."""

import os
from collections.abc import Generator, Iterator
from pathlib import Path

import coverage
import pytest

from workers.data.cache import CACHE_VARIABLE

# Tests of the pure modules, which alone are measured (tool.coverage.run of pyproject.toml). Tracing doubles the time of
# a test, so that the others go without.
TRACED = (
    "tests/common/",
    "tests/contracts/",
    *(f"tests/workers/test_{name}.py" for name in ("adapt", "few_shot", "turns")),
    *(
        f"tests/coordinator/test_{name}.py"
        for name in ("jobs", "fairness", "scaling", "outer", "rounds", "buffered", "report")
    ),
    *(f"tests/coordinator/test_{name}_few_shot.py" for name in ("outer", "rounds")),
)


def is_traced(item: pytest.Item) -> bool:
    """Whether coverage counts what this test runs."""
    return item.nodeid.startswith(TRACED) and item.get_closest_marker("untraced") is None


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Coverage rests during a test that is not traced, its fixtures included."""
    measurement = None if is_traced(item) else coverage.Coverage.current()
    if measurement is None:
        return (yield)
    measurement.stop()
    try:
        return (yield)
    finally:
        measurement.start()


@pytest.hookimpl(tryfirst=True)  # before xdist looks for the groups
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
def shared_image_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Images are prepared once per test run, by whichever of its processes is first; never in the user's cache."""
    before = os.environ.get(CACHE_VARIABLE)
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent  # of all processes
    os.environ[CACHE_VARIABLE] = str(folder / "image-cache")
    yield folder / "image-cache"
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
def ray_cluster(shared_image_cache: Path) -> Iterator[None]:
    """A local Ray cluster of two logical CPUs for the whole test run."""
    import ray

    from coordinator.cluster import connect, disconnect

    connect(None, include_dashboard=False)
    assert ray.is_initialized()
    yield
    disconnect()
