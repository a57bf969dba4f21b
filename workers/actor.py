"""The Ray actor around a `TaskRunner`. No mathematics here."""

import os
import threading
from dataclasses import dataclass

import ray

from common.messages import AdaptRequest, AdaptResult
from common.meta.prior import Prior
from workers.device import choose_device
from workers.runner import TaskRunner

STATUS_GROUP = "status"


@dataclass(frozen=True)
class WorkerStatus:
    """What a worker is doing.

    Attributes:
        name: of the worker.
        pid: of its process.
        device: that it computes on.
        task_id: of the task at hand, None while idle.
        steps_done: inner steps of that task.
    """

    name: str
    pid: int
    device: str
    task_id: str | None
    steps_done: int


class SearchWorker:
    """Adapts to one task at a time; answers for its status meanwhile, on a thread of its own (`STATUS_GROUP`)."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._runner = TaskRunner(choose_device())
        self._lock = threading.Lock()
        self._task_id: str | None = None
        self._steps_done = 0

    def adapt(self, request: AdaptRequest, prior: Prior) -> AdaptResult:
        """Adapts the prior to one task."""
        self._report(request.task.task_id, 0)
        try:
            return self._runner.run(prior, request, lambda step: self._report(request.task.task_id, step))
        finally:
            self._report(None, 0)

    @ray.method(concurrency_group=STATUS_GROUP)
    def status(self) -> WorkerStatus:
        """What the worker is doing right now."""
        with self._lock:
            return WorkerStatus(self._name, os.getpid(), str(self._runner.device), self._task_id, self._steps_done)

    def _report(self, task_id: str | None, steps_done: int) -> None:
        with self._lock:
            self._task_id, self._steps_done = task_id, steps_done

    def __repr__(self) -> str:
        return f"SearchWorker({self._name}, {self._runner.device})"
