"""A study of the service whose tasks go to workers in bundles: real job store, real computation, no Ray."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from common.artifacts import PriorStore
from common.errors import MetaSearchError
from common.loading import load
from common.messages import AdaptRequest, PartialSumRequest
from common.meta.prior import Prior
from coordinator import study
from coordinator.calls import Outcome
from coordinator.dispatcher import Dispatcher
from coordinator.jobs import Job, JobState, MetaTrainSpec
from coordinator.local import LocalExecutor
from coordinator.scaling import Load
from coordinator.settings import ServiceSettings
from coordinator.store.jobs import JobStore
from coordinator.store.records import Quota, Study
from coordinator.store.sqlite import SqliteLedger

pytestmark = pytest.mark.usefixtures("one_thread")

CONFIG = load(
    "smoke",
    ["rounds=2", "network.channels=2", "inner.steps=1", "families.0.tasks_per_round=5"],
    environment={},
)


class OneWorker:
    """Runs calls in this process, one per poll; loses each of them the first `times_lost` times."""

    gpus_per_worker = 0.0
    num_workers = 1
    num_by_state: Mapping[str, int] = {"running": 1, "starting": 0, "wanted": 1, "lent": 0, "leaving": 0}
    num_replaced = 0
    max_workers = 1

    def __init__(self, times_lost: int = 0) -> None:
        self.times_lost = times_lost
        self.executor = LocalExecutor(torch.device("cpu"))
        self.waiting: list[tuple[str, AdaptRequest | PartialSumRequest, Prior]] = []
        self.begun: list[str] = []
        self.job_ids: set[str | None] = set()

    @property
    def num_pending(self) -> int:
        return len(self.waiting)

    def expect(self, load: Load) -> None:
        assert load == Load(), "all the workers that there may be are there"

    def submit(self, key: str, request: Any, prior: Prior) -> None:
        self.waiting.append((key, request, prior))

    def poll(self, timeout_s: float) -> list[Outcome]:
        if not self.waiting:
            return []
        key, request, prior = self.waiting.pop(0)
        self.begun.append(key)
        self.job_ids.add(request.job_id)
        if self.begun.count(key) <= self.times_lost:
            return [Outcome(key, lost="the worker died")]
        try:
            (result,) = self.executor.run(prior, [request])
        except MetaSearchError as error:
            return [Outcome(key, error=error)]
        return [Outcome(key, result)]

    def abandon(self, key: str) -> None:
        self.waiting = [call for call in self.waiting if call[0] != key]

    def status(self, timeout_s: float = 2.0) -> list[Any]:
        return []


def train(folder: Path, pool: OneWorker) -> Job:
    """The job of a whole study, when it has ended."""
    store = JobStore(SqliteLedger(folder / "jobs.sqlite"))
    store.create_study(Study(tenant="lab", study="digits", config=CONFIG.model_dump(mode="json"), created_s=0.0))
    job = Job(tenant="lab", study="digits", job_id="0001", created_s=0.0, spec=MetaTrainSpec())
    job = store.create_job(job, None, Quota())
    settings = ServiceSettings(store="sqlite:unused", artifacts=str(folder / "artifacts"))
    ticks = iter(range(1_000_000))
    clock = lambda: float(next(ticks))  # noqa: E731
    dispatcher = Dispatcher(store, pool, settings, "test", clock, clock, logging.getLogger("test"))
    try:
        while not job.state.is_terminal:
            dispatcher.turn(0.0)
            job = store.get_job(job.tenant, job.study, job.job_id).job
    finally:
        dispatcher.close()
        store.ledger.close()
    return job


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> str:
    """SHA-256 of the prior without a service, every task with an update of its own."""
    alone = CONFIG.model_copy(update={"cluster": CONFIG.cluster.model_copy(update={"tasks_per_partial_sum": 1})})
    store = PriorStore(tmp_path_factory.mktemp("trained"))
    executor = LocalExecutor(torch.device("cpu"))
    return study.run(study.begin(store, alone), alone, executor, store, [], lambda: 0.0).digest()


def bundles_of(version: int) -> list[str]:
    """Keys of the calls of a round: five tasks in bundles of three, as one worker is to have two."""
    task = f"round-{version:05d}/family-0/task"
    return [f"0001/{task}-00 to {task}-02", f"0001/{task}-03 to {task}-04"]


def test_bundles_of_tasks_make_the_same_prior_as_tasks_one_by_one(tmp_path: Path, trained: str) -> None:
    pool = OneWorker()
    job = train(tmp_path, pool)
    assert job.state is JobState.SUCCEEDED
    assert job.result["summary"]["prior_sha256"] == trained  # type: ignore[index, call-overload]
    assert pool.begun == [*bundles_of(0), *bundles_of(1)]
    assert pool.job_ids == {job.job_id}, "for logs and the dashboard"


def test_a_bundle_that_is_lost_runs_again_to_the_same_prior(tmp_path: Path, trained: str) -> None:
    pool = OneWorker(times_lost=1)
    job = train(tmp_path, pool)
    assert job.result["summary"]["prior_sha256"] == trained  # type: ignore[index, call-overload]
    assert sorted(pool.begun) == sorted(2 * [*bundles_of(0), *bundles_of(1)])
    assert job.attempt == 1


def test_a_bundle_that_is_always_lost_fails_the_job_by_its_tasks(tmp_path: Path) -> None:
    pool = OneWorker(times_lost=100)
    job = train(tmp_path, pool)
    assert job.state is JobState.FAILED and job.failure is not None
    span = bundles_of(0)[0].removeprefix("0001/")
    assert f"task {span} was started 4 times without a result" in job.failure.message
