"""What a simulated service has to do: studies that are meta-trained, and tasks that users submit."""

import math
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
from pydantic import Field

from common.config import Frozen, StudyConfig
from common.data_config import DatasetRef
from common.errors import InvalidInputError
from common.loading import load
from common.messages import (
    AdaptRequest,
    AdaptResult,
    JobRequest,
    JobResult,
    LocalUpdate,
    PartialSum,
    PartialSumRequest,
    statistics_of,
)
from common.meta.aggregate import MAX_VECTORS
from common.meta.params import BODY, head_vector
from common.meta.prior import ALPHA, Prior
from common.meta.sums import UpdateSums
from common.streams import stream
from common.tasks import TaskChoice
from coordinator.calls import Call
from coordinator.simulation.models import TaskTimes

# Times that a submitted task's progress is news: of many workers the dispatcher has no time to ask more often.
_ADAPT_STEPS = 60

Mode = Literal["updates", "sums", "host_sums", "quorum", "buffered"]

WHAT: dict[Mode, str] = {
    "updates": "synchronous; every task returns its update",
    "sums": "synchronous; workers return sums of their tasks (the default)",
    "host_sums": "synchronous; hosts return sums of their workers",
    "quorum": "synchronous, without the last tenth of a round once it is late; workers' sums",
    "buffered": "buffered asynchronous",
}
"""The modes that are compared."""


class Workload(Frozen):
    """What is there to do at any time."""

    studies: int = Field(4, ge=1)
    """Meta-trained side by side; more where a round would have more tasks than one can."""
    tasks_per_worker: float = Field(8.0, gt=0)
    """Tasks in the rounds of all studies together, for each worker."""
    adapt_jobs_per_worker: float = Field(0.5, ge=0)
    """Submitted tasks in the service, for each worker: whenever one ends, another is submitted."""
    adapt_length: float = Field(4.0, gt=0)
    """How many times longer one takes than a task of meta-training, at the mean: the presets' `adapt` has four times
    the steps of `inner`."""

    def tasks_per_round(self, num_workers: int) -> int:
        """Of each study."""
        return min(max(round(self.tasks_per_worker * num_workers / self.studies), 1), MAX_VECTORS)

    def num_studies(self, num_workers: int) -> int:
        """How many there are."""
        return max(self.studies, math.ceil(self.tasks_per_worker * num_workers / self.tasks_per_round(num_workers)))

    def num_adapt_jobs(self, num_workers: int) -> int:
        """How many are in the service."""
        return round(self.adapt_jobs_per_worker * num_workers)


def study_config(mode: Mode, tasks_per_round: int, mean_s: float, seed: int) -> StudyConfig:
    """A study whose vectors are small. All else is as in large ones.

    Raises:
        InvalidInputError: there is no such mode.
    """
    if mode not in WHAT:
        raise InvalidInputError(f"there is no mode {mode!r}; choose from {', '.join(WHAT)}")
    changes = [
        f"seed={seed}",
        "rounds=100000",
        "network.channels=2",
        "space.num_nodes=1",
        "checkpoint.keep_last=1",
        f"adapt.steps={_ADAPT_STEPS}",
        f"families.0.tasks_per_round={tasks_per_round}",
    ]
    if mode == "updates":
        changes.append("cluster.tasks_per_partial_sum=1")
    elif mode == "quorum":
        changes += ["schedule.quorum_fraction=0.9", f"schedule.deadline_s={2 * mean_s}"]
    elif mode == "buffered":
        changes.append("schedule.mode=buffered")
    return load("smoke", changes, environment={})


CHOICE = TaskChoice(data=DatasetRef(source="digits"), classes=("1", "7", "4"), image_size=16)
"""What every submitted task is of."""


def seconds_of(times: TaskTimes, workload: Workload, seed: int) -> Callable[[Call, int], float]:
    """What workers take for calls. Another attempt takes another time: on another worker, perhaps a faster one."""

    def seconds(call: Call, attempt: int) -> float:
        if isinstance(call, JobRequest):
            return workload.adapt_length * times.draw(seed, f"{call.job_id} {attempt}")
        if isinstance(call, AdaptRequest | PartialSumRequest):
            first = call.requests[0] if isinstance(call, PartialSumRequest) else call
            return sum(times.draw(first.study_seed, f"{task_id} {attempt}") for task_id in call.task_ids)
        raise AssertionError(f"no simulated study makes a {type(call).__name__}")

    return seconds


def made_up(call: Call, prior: Prior | None) -> Any:
    """What a worker returns: drawn, in place of learnt, and a function of the task alone."""
    if isinstance(call, JobRequest):
        return JobResult(call.job_id, None, {}, ())
    assert prior is not None, "adapting starts from a prior"
    if isinstance(call, AdaptRequest):
        return _drawn(call, prior)
    assert isinstance(call, PartialSumRequest), f"no simulated study makes a {type(call).__name__}"
    sums = UpdateSums(prior, call.config)
    statistics = {}
    for request in call.requests:
        result = _drawn(request, prior)
        assert result.update is not None and sums.absorb(result.update) is None, "an update like others"
        statistics[result.task_id] = statistics_of(result)
    return PartialSum(prior.version, statistics, (), sums.sums())


def _drawn(request: AdaptRequest, prior: Prior) -> AdaptResult:
    task = request.task
    generator = stream(request.study_seed, task.task_id, "made up")
    names = (BODY, head_vector(task.image_size), ALPHA)
    body, head, alpha = (0.01 * generator.standard_normal(prior.vectors[name].size, dtype=np.float32) for name in names)
    update = LocalUpdate(
        task.task_id,
        request.version,
        num_examples=len(task.classes) * (task.train_per_class or 1),
        differences={BODY: body, names[1]: head},
        alpha=prior.vectors[ALPHA] + alpha,
    )
    return AdaptResult(task.task_id, update, {}, (1.0, 0.5), (), 1.0, 1.0)
