"""What clients send, before anything is sent."""

import uuid
from typing import Any

import pytest

from common.errors import InvalidInputError
from coordinator.api.requests import JobOptions, job_of, job_request
from coordinator.api.stubs import search_pb2 as pb

DATA = pb.DataSource(builtin="digits")
TRAINING = pb.JobSpec(meta_train=pb.MetaTrainSpec())


def test_fields_of_a_job_and_its_options_are_told_apart() -> None:
    spec_of, options = job_of(None, {"steps": 3, "priority": 7, "seed": None})
    assert options == {"priority": 7}
    assert spec_of(DATA) == pb.JobSpec(adapt=pb.AdaptSpec(data=DATA, steps=3))
    request = job_request("studies/a", spec_of(DATA), options)
    assert (request.parent, request.priority) == ("studies/a", 7)
    assert uuid.UUID(request.request_id).version == 4


@pytest.mark.parametrize(
    ("spec", "fields", "words"),
    [
        (TRAINING, {"steps": 3}, "leave out steps"),
        (None, {"stepz": 3}, "no field 'stepz'"),
        (None, {"steps": "many"}, "steps of a job cannot be 'many'"),
    ],
)
def test_what_does_not_fit_a_job_is_refused(spec: pb.JobSpec | None, fields: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidInputError, match=words):
        job_of(spec, fields)[0](DATA)


def test_options_of_the_wrong_kind_and_a_job_of_nothing_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="priority of a job cannot be 'high'"):
        job_request("studies/a", TRAINING, JobOptions(priority="high"))  # type: ignore[typeddict-item]
    with pytest.raises(InvalidInputError, match="data or spec"):
        job_of(None, {})[0](None)
