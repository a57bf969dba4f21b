"""Sweep jobs, from the queue to their result: real job store, a pool that plays; no Ray."""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from reference.priors import smoke_config

from common.config import DatasetRef
from common.messages import ArtifactInfo, JobResult, SweepRequest
from common.sweep_config import validate_sweep
from common.sweep_plan import Architectures, SweepPlan, sweep_recipe
from coordinator.calls import Outcome
from coordinator.dispatcher import Dispatcher
from coordinator.jobs import Job, JobState, SweepSpec
from coordinator.scaling import Load
from coordinator.settings import ServiceSettings
from coordinator.store.jobs import JobStore
from coordinator.store.records import Quota, Study
from coordinator.store.sqlite import SqliteLedger
from workers.actor import WorkerStatus

STUDY = smoke_config("rounds=3")
SPACE = SweepPlan(config=validate_sweep({"space": {"inner.steps": {"choice": [1, 2]}}, "trials": 4}))


class PlayedPool:
    """Takes sweeps, and ends them as a test says."""

    gpus_per_worker = 0.0
    num_workers = 2
    num_by_state: Mapping[str, int] = {"running": 2, "starting": 0, "wanted": 2, "lent": 0, "leaving": 0}
    num_replaced = 0
    max_workers = 2
    num_pending = 0

    def __init__(self) -> None:
        self.requests: dict[str, SweepRequest] = {}
        self.all: list[SweepRequest] = []
        self.outcomes: list[Outcome] = []
        self.statuses: list[WorkerStatus] = []

    def expect(self, load: Load) -> None:
        assert load == Load(), "all the workers that there may be are there"

    def submit(self, key: str, request: Any, prior: Any) -> None:
        assert prior is None
        self.requests[key] = request
        self.all.append(request)

    def poll(self, timeout_s: float) -> list[Outcome]:
        outcomes, self.outcomes = self.outcomes, []
        return outcomes

    def abandon(self, key: str) -> None:
        self.requests.pop(key, None)

    def status(self, timeout_s: float = 2.0) -> list[WorkerStatus]:
        return self.statuses


class Scene:
    def __init__(self, folder: Path) -> None:
        self.now_s = 0.0
        self.store = JobStore(SqliteLedger(folder / "jobs.sqlite"))
        self.store.create_study(Study(tenant="lab", study="one", config=STUDY.model_dump(mode="json"), created_s=0.0))
        settings = ServiceSettings(store="sqlite:unused", artifacts=str(folder / "artifacts"))
        self.pool = PlayedPool()
        clock = self.clock
        self.dispatcher = Dispatcher(self.store, self.pool, settings, "test", clock, clock, logging.getLogger("test"))

    def clock(self) -> float:
        self.now_s += 1.0
        return self.now_s

    def submit(self, plan: SweepPlan) -> None:
        job = Job(tenant="lab", study="one", job_id="0001", created_s=0.0, spec=SweepSpec(plan=plan))
        self.store.create_job(job, None, Quota())

    def job(self) -> Job:
        return self.store.get_job("lab", "one", "0001").job

    def turn_until(self, condition: Callable[[], Any]) -> Job:
        for _ in range(200):
            if condition():
                return self.job()
            self.dispatcher.turn(0.0)
        raise AssertionError(f"it never came to it: {self.job()}")


@pytest.fixture
def scene(tmp_path: Path) -> Any:
    made = Scene(tmp_path)
    yield made
    made.dispatcher.close()
    made.store.ledger.close()


def test_a_lost_sweep_costs_an_attempt_and_the_next_has_the_same_state(scene: Scene) -> None:
    scene.submit(SPACE)
    scene.turn_until(lambda: scene.pool.requests)
    scene.pool.statuses = [WorkerStatus("s", 1, "", "0001", 1, metrics={"best_value": 0.5, "trials_running": 2.0})]
    job = scene.turn_until(lambda: scene.job().progress)
    assert job.progress == {
        "done": 1,
        "total": 4,
        "accuracy": 0.5,
        "metrics": {"best_value": 0.5, "trials_running": 2.0},
    }
    scene.pool.outcomes = [Outcome("0001", lost="the process of the sweep died")]
    scene.turn_until(lambda: len(scene.pool.all) == 2)
    first, second = scene.pool.all
    assert first.plan.study == second.plan.study == STUDY
    assert first.state_url == second.state_url and first.result_url != second.result_url
    summary = {"metric": "accuracy", "best": 0, "seconds": 1.0, "trials": [], "best_content": {}}
    scene.pool.outcomes = [Outcome("0001", JobResult("0001", None, summary, (ArtifactInfo("result.json", 2, "ab"),)))]
    job = scene.turn_until(lambda: scene.job().state.is_terminal)
    assert job.state is JobState.SUCCEEDED and (job.attempt, job.failures) == (2, 1)
    result: Any = job.result
    assert result["summary"] == summary and result["url"] == second.result_url


def test_a_pause_and_a_cancel_take_the_sweep_back(scene: Scene) -> None:
    scene.submit(SPACE)
    scene.turn_until(lambda: scene.pool.requests)
    scene.store.suspend_job("lab", "one", "0001", True)
    job = scene.turn_until(lambda: scene.job().state is JobState.QUEUED)
    assert job.failures == 0 and not scene.pool.requests
    scene.store.suspend_job("lab", "one", "0001", False)
    scene.turn_until(lambda: scene.pool.requests)
    scene.store.cancel_job("lab", "one", "0001", 1.0)
    assert scene.turn_until(lambda: scene.job().state.is_terminal).state is JobState.CANCELLED
    assert not scene.pool.requests


def test_architectures_are_those_of_the_studys_prior_where_none_are_given(scene: Scene) -> None:
    chosen = Architectures(candidates=(), recipe=sweep_recipe("smoke", []), data=DatasetRef(source="digits"))
    scene.submit(SweepPlan(config=validate_sweep({"architectures": {"top": 3}}), architectures=chosen))
    scene.turn_until(lambda: scene.pool.requests)
    found = scene.pool.all[0].plan.architectures
    assert found is not None and len({each.genotype.to_json() for each in found.candidates}) == 3
    assert found.recipe == chosen.recipe and found.data == chosen.data
