"""Sweeps on a real Ray cluster: killed, with all that they hold, and restored."""

import json
import logging
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import ray
from reference.priors import smoke_config
from reference.processes import descendants

from common.artifacts import PriorStore
from common.config import ClusterConfig
from common.errors import UnavailableError
from common.messages import JobResult, SweepRequest
from common.sweep_config import validate_sweep
from common.sweep_plan import SweepPlan
from common.sweep_space import configured
from coordinator import study
from coordinator.calls import Outcome
from coordinator.local import LocalExecutor
from coordinator.pool import RayPool
from coordinator.tuning import check_installed
from workers.device import choose_device

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster", "one_thread")]

STUDY = smoke_config("rounds=3", "families.0.tasks_per_round=2")


def plan(**fields: object) -> SweepPlan:
    return SweepPlan(config=validate_sweep({"tasks": 2, "scheduler": "none", **fields}), study=STUDY)


def until(pool: RayPool, done: Callable[[], object], outcomes: list[Outcome]) -> None:
    deadline_s = time.monotonic() + 120
    while not done():
        assert time.monotonic() < deadline_s, outcomes
        outcomes += pool.poll(0.2)


def test_a_killed_sweep_frees_what_it_held_and_goes_on_to_the_prior_of_an_undisturbed_study(tmp_path: Path) -> None:
    space = {"inner.theta.lr": {"choice": [0.1]}, "inner.steps": {"grid": [2, 4]}}
    request = SweepRequest("job-1", 1, plan(space=space, trials=1), str(tmp_path / "sweep"), str(tmp_path / "attempt"))
    pool = RayPool(f"test-{os.getpid()}", 2, 0.0, ClusterConfig(), time.monotonic, logging.getLogger("test"))
    outcomes: list[Outcome] = []
    try:
        pool.submit("job-1", request, None)

        def found(pattern: str) -> list[Path]:
            return list((tmp_path / "sweep" / "tune").glob(pattern))

        until(pool, lambda: found("trial-*/checkpoint_*") or outcomes, outcomes)
        assert not outcomes and pool.max_workers == 1, "one worker makes room, one is left to others"
        (status,) = [each for each in pool.status() if each.task_id == "job-1"]
        (process,) = descendants(status.pid)
        os.kill(process, signal.SIGKILL)
        until(pool, lambda: outcomes, outcomes)
        assert outcomes.pop().lost == "the process of the sweep died"
        until(pool, lambda: pool.num_workers == 2, outcomes)
        pool.submit("job-1", request, None)
        until(pool, lambda: outcomes, outcomes)
        (outcome,) = outcomes
        assert outcome.error is None, outcome.error
        result = outcome.result
        assert isinstance(result, JobResult)
        trials = result.summary["trials"]
        assert [(each["trial"], each["state"], each["rounds"]) for each in trials] == [
            (0, "complete", 3),
            (1, "complete", 3),
        ]
        names = [artifact.name for artifact in result.artifacts]
        assert names == ["result.json", "best.json", "config.json", "00000003.safetensors", "00000003.json"]
        for row in json.loads((tmp_path / "attempt" / "result.json").read_text())["trials"]:
            assert [point["rounds"] for point in row["curve"]] == [1, 2, 3], "nothing is lost, or done twice"
        best = PriorStore(tmp_path / "sweep" / "best")
        config, alone = best.load_config(), PriorStore(tmp_path / "alone")
        assert config == configured(STUDY, trials[result.summary["best"]]["values"])
        executor = LocalExecutor(choose_device())
        prior = study.run(study.begin(alone, config), config, executor, alone, [], time.monotonic)
        assert best.load().digest() == prior.digest()
        until(pool, lambda: pool.num_workers == 2, outcomes)
    finally:
        pool.close()
    assert ray.is_initialized()


def test_a_searcher_whose_package_is_missing_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    config = plan(space={"inner.steps": {"randint": [1, 4]}}, searcher="optuna").config
    with pytest.raises(UnavailableError, match=r"pip install 'meta-arch-search\[sweep\]'"):
        check_installed(config)
