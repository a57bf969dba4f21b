"""Jobs that evaluate, from the queue to their result: real job store, real computation, no Ray."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from common.config import DatasetRef
from common.errors import InvalidInputError, MetaSearchError, UnavailableError
from common.evaluate_config import load_evaluate_config
from common.loading import load
from common.messages import EvaluateRequest, EvaluateResult, Interim
from common.space.released import DARTS_V2
from coordinator.calls import Outcome
from coordinator.dispatcher import Dispatcher
from coordinator.jobs import EvaluateSpec, FailureReason, Job, JobState
from coordinator.scaling import Load
from coordinator.settings import ServiceSettings
from coordinator.store.jobs import JobStore
from coordinator.store.records import Quota, Study
from coordinator.store.sqlite import SqliteLedger
from workers.actor import WorkerStatus
from workers.job import run_evaluation

pytestmark = pytest.mark.usefixtures("one_thread")

STUDY = load("smoke", ["network.channels=2"], environment={})
SPEC = EvaluateSpec(
    genotype=DARTS_V2,
    config=load_evaluate_config("smoke", ["epochs=2", "train_per_class=15", "test_per_class=10"]),
    data=DatasetRef(source="digits"),
)


def looks() -> Callable[[], float]:
    """A clock that moves on at every look."""
    now_s = iter(range(10**6))
    return lambda: float(next(now_s))


class OneWorker:
    """Runs calls in this process, one per poll, each for a few steps; `fate` may have it otherwise."""

    gpus_per_worker = 0.0
    num_workers = 1
    num_by_state: Mapping[str, int] = {"running": 1, "starting": 0, "wanted": 1, "lent": 0, "leaving": 0}
    num_replaced = 0
    max_workers = 1

    def __init__(self) -> None:
        self.waiting: list[tuple[str, EvaluateRequest]] = []
        self.results: list[EvaluateResult] = []
        self.attempts: list[int] = []
        self.fate: Callable[[int], Outcome | None] = lambda number: None
        self.statuses: list[WorkerStatus] = []

    @property
    def num_pending(self) -> int:
        return len(self.waiting)

    def expect(self, load: Load) -> None:
        assert load == Load(), "all the workers that there may be are there"

    def submit(self, key: str, request: Any, prior: Any) -> None:
        assert prior is None and isinstance(request, EvaluateRequest)
        self.waiting.append((key, request))

    def poll(self, timeout_s: float) -> list[Outcome]:
        if not self.waiting:
            return []
        key, request = self.waiting.pop(0)
        self.attempts.append(request.attempt)
        fate = self.fate(len(self.attempts))
        if fate is not None:
            return [replace(fate, key=key)]
        try:
            result = run_evaluation(replace(request, slice_s=4.0), torch.device("cpu"), clock_s=looks())
        except MetaSearchError as error:
            return [Outcome(key, error=error)]
        self.results.append(result)
        return [Outcome(key, result)]

    def abandon(self, key: str) -> None:
        self.waiting = [call for call in self.waiting if call[0] != key]

    def status(self, timeout_s: float = 2.0) -> list[WorkerStatus]:
        return self.statuses


class Scene:
    def __init__(self, folder: Path) -> None:
        self.store = JobStore(SqliteLedger(folder / "jobs.sqlite"))
        self.store.create_study(
            Study(tenant="lab", study="digits", config=STUDY.model_dump(mode="json"), created_s=0.0)
        )
        settings = ServiceSettings(store="sqlite:unused", artifacts=str(folder / "artifacts"))
        self.pool = OneWorker()
        self.dispatcher = Dispatcher(
            self.store, self.pool, settings, "test", looks(), looks(), logging.getLogger("test")
        )

    def submit(self, spec: EvaluateSpec = SPEC) -> Job:
        job = Job(tenant="lab", study="digits", job_id="0001", created_s=0.0, spec=spec)
        return self.store.create_job(job, None, Quota())

    def job(self) -> Job:
        return self.store.get_job("lab", "digits", "0001").job

    def turn_until(self, condition: Callable[[], bool]) -> Job:
        for _ in range(200):
            if condition():
                return self.job()
            self.dispatcher.turn(0.0)
        raise AssertionError(f"it never came to it: {self.job()}")

    def finish(self) -> Job:
        return self.turn_until(lambda: self.job().state.is_terminal)


@pytest.fixture
def scene(tmp_path: Path) -> Any:
    made = Scene(tmp_path)
    yield made
    made.dispatcher.close()
    made.store.ledger.close()


def files_of(scene: Scene, job: Job) -> set[str]:
    """What is in the job's folder, once all that was begun in the background is done."""
    scene.dispatcher.background.submit(int).result(timeout=30)
    url = scene.dispatcher.priors.url_of(job).removeprefix("file://")
    return {path.name for path in Path(url).parent.iterdir()}


def weights_of(job: Job) -> str:
    result: Any = job.result
    return next(artifact["sha256"] for artifact in result["artifacts"] if artifact["name"] == "weights.safetensors")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> str:
    """SHA-256 of the network's weights, computed in one call."""
    request = EvaluateRequest(
        "job", 1, SPEC.genotype, SPEC.config, SPEC.data, None, str(tmp_path_factory.mktemp("job") / "attempt"), 1e9
    )
    torch.set_num_threads(1)
    return run_evaluation(request, torch.device("cpu")).artifacts[0].sha256


def test_a_job_is_many_calls_of_one_attempt(scene: Scene, undisturbed: str) -> None:
    scene.submit()
    job = scene.finish()
    assert job.state is JobState.SUCCEEDED and job.attempt == 1
    assert len(scene.pool.attempts) > 2 and set(scene.pool.attempts) == {1}
    assert weights_of(job) == undisturbed
    result: Any = job.result
    assert 0 <= result["summary"]["accuracy_low"] <= result["summary"]["accuracy"] <= 1


def test_a_lost_worker_costs_an_attempt_and_the_next_goes_on(scene: Scene, undisturbed: str) -> None:
    scene.pool.fate = lambda number: Outcome("", lost="the worker died") if number == 2 else None
    scene.submit()
    job = scene.finish()
    assert job.state is JobState.SUCCEEDED and (job.attempt, job.failures) == (2, 1)
    assert weights_of(job) == undisturbed
    done = [result.epochs_done for result in scene.pool.results]
    assert done == sorted(done), "what was stored is not done again"
    assert files_of(scene, job) == {f"attempt-{job.epoch}-2"}, "folders of lost attempts are removed at the end"
    result: Any = job.result
    kept = {path.name for path in Path(result["url"].removeprefix("file://")).iterdir()}
    assert kept == {"manifest.json"} | {artifact["name"] for artifact in result["artifacts"]}


def test_what_a_job_is_to_be_resumed_from_stays_until_the_store_knows_that_it_has_ended(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_answer(*arguments: object) -> None:
        raise UnavailableError("the store does not answer")

    scene.pool.fate = lambda number: Outcome("", lost="the worker died") if number == 2 else None
    scene.submit()
    with monkeypatch.context() as patch:
        patch.setattr(scene.store, "succeed", no_answer)
        job = scene.turn_until(lambda: bool(scene.pool.results and scene.pool.results[-1].summary))
        assert job.state is JobState.RUNNING
        assert files_of(scene, job) == {f"attempt-{job.epoch}-1", f"attempt-{job.epoch}-2"}
    job = scene.finish()
    assert files_of(scene, job) == {f"attempt-{job.epoch}-2"}


def test_a_pause_takes_effect_between_calls_and_burns_no_attempt(scene: Scene, undisturbed: str) -> None:
    scene.submit()
    scene.turn_until(lambda: len(scene.pool.results) == 1)
    scene.store.suspend_job("lab", "digits", "0001", True)
    job = scene.turn_until(lambda: scene.job().state is JobState.QUEUED)
    assert job.suspended and job.failures == 0
    calls = len(scene.pool.attempts)
    for _ in range(5):
        scene.dispatcher.turn(0.0)
    assert len(scene.pool.attempts) == calls
    scene.store.suspend_job("lab", "digits", "0001", False)
    assert weights_of(scene.finish()) == undisturbed


def test_a_cancel_takes_the_call_back(scene: Scene) -> None:
    scene.submit()
    scene.turn_until(lambda: len(scene.pool.results) == 1)
    scene.store.cancel_job("lab", "digits", "0001", 1.0)
    assert scene.finish().state is JobState.CANCELLED
    assert not scene.pool.waiting


def test_progress_counts_epochs_and_never_backwards(scene: Scene) -> None:
    scene.submit()
    scene.turn_until(lambda: scene.job().state is JobState.RUNNING)
    (run,) = scene.dispatcher._runs
    at_work = WorkerStatus("w", 1, "cpu", "0001", 1, Interim(1, 0.5, DARTS_V2))
    expected = {"done": 1, "total": 2, "worker": "w", "accuracy": 0.5, "genotype_json": DARTS_V2.to_json()}
    assert run.progress({"0001": at_work}) == expected
    run.last_progress = expected
    assert run.progress({"0001": replace(at_work, steps_done=0, interim=None)}) == expected
    assert run.progress({}) is None


def test_what_another_attempt_would_meet_again_fails_the_job(scene: Scene) -> None:
    scene.pool.fate = lambda number: Outcome("", error=InvalidInputError("digits: no such class"))
    scene.submit()
    job = scene.finish()
    assert job.state is JobState.FAILED and job.failure is not None
    assert job.failure.reason is FailureReason.INVALID_INPUT and "no such class" in job.failure.message
