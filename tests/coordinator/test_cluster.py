"""How many workers a cluster gives, and what its errors become."""

import socket

import pytest
import ray

from common.config import ClusterConfig
from common.errors import AdaptationError, InvalidInputError, UnavailableError
from coordinator import cluster
from coordinator.cluster import cause_of, connect, worker_resources
from coordinator.nodes import Nodes


@pytest.fixture
def cluster_of(monkeypatch: pytest.MonkeyPatch) -> object:
    def pretend(**resources: float) -> None:
        monkeypatch.setattr(cluster, "look", lambda: Nodes({"node": resources}, {"another": None}))

    return pretend


@pytest.mark.parametrize(
    ("resources", "config", "expected"),
    [
        ({"CPU": 2.0}, {}, (2, 0.0)),
        ({"CPU": 16.0, "GPU": 4.0}, {}, (4, 1.0)),
        ({"CPU": 16.0, "GPU": 4.0}, {"gpus_per_worker": 0.5}, (8, 0.5)),
        ({"CPU": 16.0, "GPU": 4.0}, {"gpus_per_worker": 0}, (16, 0.0)),
        ({"CPU": 2.0, "GPU": 4.0}, {}, (2, 1.0)),
        ({"CPU": 16.0, "GPU": 4.0}, {"num_workers": 3}, (3, 1.0)),
        ({}, {"min_workers": 0, "max_workers": 8, "gpus_per_worker": 1}, (8, 1.0)),
    ],
)
def test_one_worker_per_gpu_else_per_core(
    cluster_of: object, resources: dict[str, float], config: dict[str, float], expected: tuple[int, float]
) -> None:
    cluster_of(**resources)  # type: ignore[operator]
    assert worker_resources(ClusterConfig.model_validate(config)) == expected


@pytest.mark.parametrize(
    ("resources", "config"),
    [({"CPU": 2.0}, {"num_workers": 3}), ({"CPU": 8.0}, {"gpus_per_worker": 1}), ({}, {})],
)
def test_too_small_a_cluster_says_what_it_has_and_what_to_change(
    cluster_of: object, resources: dict[str, float], config: dict[str, float]
) -> None:
    cluster_of(**resources)  # type: ignore[operator]
    with pytest.raises(UnavailableError, match=r"workers of 1 CPU .* lower cluster.num_workers"):
        worker_resources(ClusterConfig.model_validate(config))


def test_workers_of_a_service_may_wait_for_room_but_someone_must_know_whether_they_have_gpus(
    cluster_of: object,
) -> None:
    cluster_of(CPU=2.0)  # type: ignore[operator]
    assert worker_resources(ClusterConfig(num_workers=3), may_wait=True) == (3, 0.0)
    cluster_of()  # type: ignore[operator]
    assert worker_resources(ClusterConfig(num_workers=3, gpus_per_worker=1), may_wait=True) == (3, 1.0)
    assert worker_resources(ClusterConfig(gpus_per_worker=1), may_wait=True) == (0, 1.0)
    with pytest.raises(UnavailableError, match="add nodes"):
        worker_resources(ClusterConfig(num_workers=3), may_wait=True)


def test_no_cluster_at_an_address_is_unavailable_and_names_it() -> None:
    with pytest.raises(UnavailableError, match="127.0.0.1:1"):
        connect("127.0.0.1:1")


def test_a_server_that_accepts_and_does_not_answer_is_unavailable_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "_CONNECT_TIMEOUT_S", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(UnavailableError, match=rf"127.0.0.1:{port}.*does not greet as gRPC within 0.3 s"):
            connect(f"127.0.0.1:{port}")


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_the_address_of_a_cluster_is_told_from_one_where_nothing_answers() -> None:
    cluster._check_answers(ray.get_runtime_context().gcs_address)


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_errors_of_ours_come_back_from_an_actor_as_themselves_others_as_adaptation_errors() -> None:
    @ray.remote
    def fails(ours: bool) -> None:
        raise InvalidInputError("steps must be >= 1") if ours else ZeroDivisionError("division by zero")

    for ours, expected, words in ((True, InvalidInputError, "steps"), (False, AdaptationError, "division by zero")):
        with pytest.raises(ray.exceptions.RayTaskError) as caught:
            ray.get(fails.remote(ours))
        cause = cause_of(caught.value)
        assert type(cause) is expected and words in str(cause)


@pytest.mark.parametrize("failures", [1, 2])
def test_a_local_cluster_that_is_slow_to_start_gets_a_second_try(
    failures: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def init(**options: object) -> object:
        calls.append(options)
        if len(calls) <= failures:
            raise Exception("The current node timed out during startup. This could happen because ...")
        return object()

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    if failures == 1:
        assert connect(None).is_local
    else:
        with pytest.raises(UnavailableError, match="overloaded"):
            connect(None)
    assert len(calls) == 2
