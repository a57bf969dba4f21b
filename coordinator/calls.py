"""Calls to workers as values: what is asked for, what becomes of it."""

import math
from dataclasses import dataclass
from typing import Any

from common.errors import MetaSearchError
from common.messages import (
    AdaptRequest,
    EvaluateRequest,
    FewShotRequest,
    JobRequest,
    PartialSumRequest,
    SweepRequest,
    span_of,
)
from common.meta.prior import Prior
from common.metrics import RetryCause

Call = AdaptRequest | PartialSumRequest | JobRequest | EvaluateRequest | SweepRequest | FewShotRequest
"""What a worker can be asked for."""


@dataclass(frozen=True)
class Outcome:
    """What became of a call.

    Attributes:
        key: of the call.
        result: what it returned, None if it did not.
        error: what it raised on purpose; another attempt would raise it again, unless a resource was missing.
        lost: why its worker had to be replaced; the call may run again.
        uses_attempt: whether a lost call counts as a try; not where its worker was taken away, by preemption or drain.
    """

    key: str
    result: Any = None
    error: MetaSearchError | None = None
    lost: str = ""
    uses_attempt: bool = True

    @property
    def retry_cause(self) -> RetryCause:
        """Why a lost call runs again."""
        return RetryCause.WORKER_LOST if self.uses_attempt else RetryCause.WORKER_TAKEN_AWAY


@dataclass(frozen=True)
class PendingCall:
    """A call under its key, and the prior to start from, where it takes one."""

    key: str
    request: Call
    prior: Prior | None

    @property
    def method(self) -> str:
        """The worker's method that answers it."""
        if isinstance(self.request, PartialSumRequest):
            return "adapt_many"
        if isinstance(self.request, EvaluateRequest):
            return "evaluate"
        if isinstance(self.request, FewShotRequest):
            return "few_shot"
        return "run_job" if isinstance(self.request, JobRequest) else "adapt"

    @property
    def title(self) -> str:
        """What the Ray dashboard calls it, with the job's id where there is one, and the worker's process meanwhile.

        By its beginning deploy/kubernetes (preStop) knows workers that are at work.
        """
        request = self.request
        if isinstance(request, AdaptRequest | PartialSumRequest):
            task = f"adapt {span_of(request.task_ids)}"
            return task if request.job_id is None else f"job {request.job_id}: {task}"
        kind = "adapt" if isinstance(request, JobRequest) else self.method
        return f"job {request.job_id}: {kind}, attempt {request.attempt}"

    @property
    def is_job(self) -> bool:
        """Whether it is a job that holds a worker until it ends, or a part of one: no tasks of meta-training, of which
        there are many; few-shot jobs and sweeps have ways of their own."""
        return isinstance(self.request, JobRequest | EvaluateRequest)

    @property
    def num_tasks(self) -> int:
        """How many tasks its time limit is for."""
        return len(self.request.requests) if isinstance(self.request, PartialSumRequest) else 1


def depth(num_calls: int, first_is_job: bool) -> float:
    """Calls that a worker has, as one looks for the least busy worker; infinite while it is at a job (`is_job`). That
    may take long, and whoever waited behind it could have gone to a worker that is free sooner.

    Args:
        num_calls: that it has.
        first_is_job: whether the one that it works on is a job.
    """
    return math.inf if first_is_job and num_calls == 1 else num_calls


def exhausted(outcome: Outcome, attempts: int) -> str:
    """What to say of a task that was started too often."""
    return (
        f"task {outcome.key} was started {attempts} times without a result; the last time {outcome.lost}. "
        "Look at memory and the worker's log in the Ray dashboard, or raise cluster.max_attempts"
    )
