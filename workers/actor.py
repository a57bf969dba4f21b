"""The Ray actor around a `TaskRunner`. No mathematics here."""

import os
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import ray

from common.errors import AdaptationError, MetaSearchError
from common.log_fields import log_fields
from common.messages import (
    AdaptRequest,
    AdaptResult,
    EvaluateRequest,
    EvaluateResult,
    FewShotRequest,
    Interim,
    JobRequest,
    JobResult,
    PartialSum,
    PartialSumRequest,
    span_of,
)
from common.meta.prior import Prior
from common.metrics import WORKER_METRICS
from common.telemetry import logger_for
from workers.device import choose_device
from workers.few_shot_job import run_few_shot
from workers.job import run_evaluation, run_job
from workers.meter import Meter
from workers.ray_metrics import RayMetrics
from workers.runner import TaskRunner
from workers.training import TrainProgress
from workers.turns import Turns

STATUS_GROUP = "status"
QUICK_GROUP = "quick"
_REMEMBERED_CALLS = 16  # more than ever are at a worker


@dataclass(frozen=True)
class WorkerStatus:
    """What a worker is doing.

    Attributes:
        name: of the worker.
        pid: of its process.
        device: that it computes on.
        task_id: of the task or job at hand, None while idle.
        steps_done: inner steps of that task, epochs of a full network, or trials of a sweep that are over.
        interim: best found so far, for a job.
        metrics: of a sweep, see `Progress` in search.proto.
        node_id: of the Ray node that it is on.
    """

    name: str
    pid: int
    device: str
    task_id: str | None
    steps_done: int
    interim: Interim | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    node_id: str = ""

    @property
    def short_name(self) -> str:
        """The name among the workers of its coordinator, such as `worker-3`."""
        return self.name.rpartition("/")[2]


class SearchWorker:
    """Adapts to one task at a time; answers for its status meanwhile, on a thread of its own (`STATUS_GROUP`).

    Few-shot jobs have a thread too (`QUICK_GROUP`): they do not wait for the task at hand, but go between two of its
    steps, with a runner of their own.

    Args:
        name: of the actor; the part after the last slash names the worker among those of its coordinator.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._short_name = name.rpartition("/")[2]
        self._log = logger_for("worker")
        self._runner = TaskRunner(choose_device())
        self._quick_runner = TaskRunner(self._runner.device)
        self._turns = Turns()
        self._meter = Meter(RayMetrics(WORKER_METRICS), time.monotonic)
        self._lock = threading.Lock()
        self._task_id: str | None = None
        self._steps_done = 0
        self._interim: Interim | None = None
        self._begun: deque[str] = deque(maxlen=_REMEMBERED_CALLS)
        self._withdrawn: set[str] = set()
        self._handing_over = threading.Event()

    def adapt(self, request: AdaptRequest, prior: Prior) -> AdaptResult:
        """Adapts the prior to one task."""
        with self._at_work_on(request.task.task_id, "adapt", **_fields_of(request)):
            return self._runner.run(prior, request, self._note_step)

    def adapt_many(self, request: PartialSumRequest, prior: Prior) -> PartialSum:
        """Adapts the prior to several tasks, one after the other, and adds up their updates.

        Raises:
            MetaSearchError: what a task raised on purpose, or an AdaptationError; it names the task.
        """
        with self._at_work_on(request.task_ids[0], "adapt_many", **_fields_of(request)):
            try:
                return self._runner.run_many(prior, request, self._note_task, self._note_step)
            except Exception as error:
                kind = type(error) if isinstance(error, MetaSearchError) else AdaptationError
                raise kind(f"task {self._task_id}: {error}") from error

    def run_job(self, request: JobRequest, prior: Prior) -> JobResult:
        """Does all of a job; see `workers.job.run_job`."""
        with self._at_work_on(request.job_id, "run_job", job=request.job_id, attempt=request.attempt):
            return run_job(self._runner, prior, request, self._note_step, self._note_interim)

    def evaluate(self, request: EvaluateRequest) -> EvaluateResult:
        """Does a part of a job that trains a full network; see `workers.job.run_evaluation`."""

        def note(progress: TrainProgress) -> None:
            self._note_step(progress.epochs_done)
            if progress.last is not None and progress.last.accuracy is not None:
                self._note_interim(Interim(progress.epochs_done, progress.last.accuracy, request.genotype))

        with self._at_work_on(request.job_id, "evaluate", job=request.job_id, attempt=request.attempt):
            return run_evaluation(request, self._runner.device, note, self._handing_over.is_set)

    @ray.method(concurrency_group=QUICK_GROUP)
    def few_shot(self, request: FewShotRequest, prior: Prior) -> JobResult:
        """Does all of a few-shot job; see `workers.few_shot_job.run_few_shot`."""
        fields = {"job": request.job_id, "attempt": request.attempt}
        with self._logged(**fields), self._turns.quick(), self._meter.call("few_shot"):
            return run_few_shot(self._quick_runner, prior, request)

    @ray.method(concurrency_group=STATUS_GROUP, enable_task_events=False)  # asked for all the time
    def status(self) -> WorkerStatus:
        """What the worker is doing right now."""
        self._meter.look()
        with self._lock:
            device = str(self._runner.device)
            return WorkerStatus(
                self._name,
                os.getpid(),
                device,
                self._task_id,
                self._steps_done,
                self._interim,
                node_id=ray.get_runtime_context().get_node_id() if ray.is_initialized() else "",
            )

    @ray.method(concurrency_group=STATUS_GROUP, enable_task_events=False)
    def withdraw(self, call_id: str) -> bool:
        """Calls off a call that waits here, so that another worker can have it.

        Args:
            call_id: Ray's id of the call.

        Returns:
            Whether it had not begun, and never will.
        """
        with self._lock:
            if call_id in self._begun:
                return False
            self._withdrawn.add(call_id)
            return True

    @ray.method(concurrency_group=STATUS_GROUP)
    def hand_over(self) -> None:
        """The worker is about to be taken away: work that stores checkpoints stops at its next step."""
        self._handing_over.set()

    @contextmanager
    def _at_work_on(self, task_id: str, call: str, **fields: object) -> Iterator[None]:
        """While it works on something that `status` tells of; `fields` say in the log what."""
        call_id = (ray.get_runtime_context().get_task_id() if ray.is_initialized() else None) or ""
        with self._lock:
            if call_id in self._withdrawn:
                raise AdaptationError(f"{task_id} was called off before it began")
            self._begun.append(call_id)
            self._task_id = task_id
        try:
            with self._logged(**fields), self._turns.long(), self._meter.call(call):
                yield
        finally:
            with self._lock:
                self._task_id, self._steps_done, self._interim = None, 0, None

    @contextmanager
    def _logged(self, **fields: object) -> Iterator[None]:
        """Logs when a call begins, and how it ends."""
        started_s = time.monotonic()
        with log_fields(worker=self._short_name, **fields):
            self._log.info("begins")
            try:
                yield
            except Exception as error:
                self._log.warning("failed after %.2f s: %s", time.monotonic() - started_s, error)
                raise
            self._log.info("done in %.2f s", time.monotonic() - started_s)

    def _note_task(self, task_id: str) -> None:
        with self._lock:
            self._task_id, self._steps_done = task_id, 0

    def _note_step(self, steps_done: int) -> None:
        with self._lock:
            self._steps_done = steps_done
        self._meter.step()
        self._turns.give_way()

    def _note_interim(self, interim: Interim) -> None:
        with self._lock:
            self._interim = interim

    def __repr__(self) -> str:
        """For the Ray dashboard, which asks once, when the actor has started; its tasks say what it is doing."""
        return f"{self._short_name} on {self._runner.device}"


def _fields_of(request: AdaptRequest | PartialSumRequest) -> Mapping[str, object]:
    """What log lines about it say."""
    return {"job": request.job_id, "round": request.round_number, "task": span_of(request.task_ids)}
