"""The requests of both clients, from Python values."""

import json
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from google.protobuf import json_format, struct_pb2

from common.errors import InvalidInputError
from coordinator.api.stubs import search_pb2 as pb


def study_request(
    study_id: str,
    preset: str | None,
    config: Mapping[str, Any] | None,
    overrides: Sequence[str],
    validate_only: bool,
) -> pb.CreateStudyRequest:
    """The request that `create_study` sends.

    Raises:
        InvalidInputError: both or neither of preset and config.
    """
    if (preset is None) == (config is None):
        raise InvalidInputError("create_study takes either a preset or a config")
    request = pb.CreateStudyRequest(study_id=study_id, overrides=overrides, validate_only=validate_only)
    if preset is not None:
        request.preset = preset
    else:
        struct = struct_pb2.Struct()
        struct.update(json.loads(json.dumps(config)))
        request.config.CopyFrom(struct)
    return request


def adapt_spec(source: pb.DataSource, fields: Mapping[str, Any]) -> pb.JobSpec:
    """A job that adapts to `source`.

    Raises:
        InvalidInputError: an unknown field, or a value of the wrong type.
    """
    given = {name: value for name, value in fields.items() if value is not None}
    known = {field.name for field in pb.AdaptSpec.DESCRIPTOR.fields}
    for name in given:
        if name not in known:
            raise InvalidInputError(f"an adapt job has no field {name!r}; it has {', '.join(sorted(known))}")
    try:
        return pb.JobSpec(adapt=pb.AdaptSpec(data=source, **given))
    except (TypeError, ValueError) as error:
        raise InvalidInputError(f"adapt job: {error}") from None


def evaluate_spec(
    source: pb.DataSource, genotype: str | Mapping[str, Any], preset: str, overrides: Sequence[str]
) -> pb.JobSpec:
    """A job that trains the full network of a genotype on `source`."""
    text = genotype if isinstance(genotype, str) else json.dumps(genotype)
    return pb.JobSpec(evaluate=pb.EvaluateSpec(data=source, genotype_json=text, preset=preset, overrides=overrides))


def sweep_spec(
    config: Mapping[str, Any], source: pb.DataSource | None, architectures: Sequence[tuple[str, float]]
) -> pb.JobSpec:
    """A job that sweeps fields of its study's configuration, or trains architectures on `source`."""
    struct = struct_pb2.Struct()
    struct.update(json.loads(json.dumps(config)))
    spec = pb.SweepSpec(config=struct, data=source)
    for genotype_json, probability in architectures:
        spec.architectures.add(genotype_json=genotype_json, probability=probability)
    return pb.JobSpec(sweep=spec)


def few_shot_spec(
    support: Sequence[pb.FewShotImage],
    queries: Sequence[pb.FewShotImage],
    steps: int | None,
    prior_version: int | None,
    statistics: str | None,
    seed: int,
) -> pb.JobSpec:
    """A job that learns from `support` and labels `queries`.

    Raises:
        InvalidInputError: statistics that there are not, or a number out of range.
    """
    name = f"BATCH_STATISTICS_{(statistics or 'unspecified').upper()}"
    if name not in pb.BatchStatistics.keys():  # noqa: SIM118 not a dict
        raise InvalidInputError(f"statistics must be transductive or inductive, got {statistics!r}")
    try:
        return pb.JobSpec(
            few_shot=pb.FewShotSpec(
                support=support,
                queries=queries,
                steps=steps,
                prior_version=prior_version,
                statistics=name,
                seed=seed,
            )
        )
    except ValueError as error:
        raise InvalidInputError(f"few-shot job: {error}") from None


def study_image_size(study: pb.Study) -> int:
    """Pixels of the images of a few-shot study."""
    return int(json_format.MessageToDict(study.config)["families"][0]["image_size"])


def job_request(
    study: str,
    spec: pb.JobSpec,
    request_id: str | None,
    validate_only: bool,
    priority: int | None,
    needs_gpu: bool,
    queue_timeout_s: float,
    max_attempts: int,
) -> pb.CreateJobRequest:
    """The request that `submit` sends; without a `request_id` it has a fresh one."""
    return pb.CreateJobRequest(
        parent=study,
        spec=spec,
        request_id=request_id or str(uuid.uuid4()),
        validate_only=validate_only,
        priority=priority,
        needs_gpu=needs_gpu,
        queue_timeout_s=queue_timeout_s,
        max_attempts=max_attempts,
    )
