"""What the Ray dashboard calls the calls of workers."""

from dataclasses import replace

import pytest
from reference.priors import smoke_config

from common.messages import EvaluateRequest, FewShotRequest, JobRequest, PartialSumRequest
from common.meta.prior import initial_prior
from coordinator.calls import PendingCall
from coordinator.rounds import plan
from coordinator.study import load_catalogs


def title(request: object) -> str:
    return PendingCall("key", request, None).title  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("kind", "word"), [(JobRequest, "adapt"), (EvaluateRequest, "evaluate"), (FewShotRequest, "few_shot")]
)
def test_the_call_of_a_job_has_its_id_and_attempt(kind: type, word: str) -> None:
    request = object.__new__(kind)
    object.__setattr__(request, "job_id", "0193abc")
    object.__setattr__(request, "attempt", 2)
    assert title(request) == f"job 0193abc: {word}, attempt 2"


def test_the_tasks_of_a_round_have_their_names_and_the_id_of_the_job_that_runs_it() -> None:
    config = smoke_config("families.0.tasks_per_round=2")
    first, second = plan(initial_prior(config), config, load_catalogs(config)).requests
    assert title(first) == "adapt round-00000/family-0/task-00"
    ours = tuple(replace(request, job_id="0193abc") for request in (first, second))
    assert title(ours[1]) == "job 0193abc: adapt round-00000/family-0/task-01"
    together = PartialSumRequest(ours, config)
    assert title(together) == f"job 0193abc: adapt {first.task.task_id} to {second.task.task_id}"
    assert (together.job_id, together.round_number) == ("0193abc", 1)
