"""The requests of both clients, from Python values."""

import json
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypedDict, TypeVar, cast

from google.protobuf import json_format, struct_pb2
from google.protobuf.message import Message

from common.errors import InvalidInputError
from coordinator.api.stubs import search_pb2 as pb

PAGE_SIZE = 1000  # the most that the service gives

_M = TypeVar("_M", bound=Message)

SpecOf = Callable[[pb.DataSource | None], pb.JobSpec]
"""A job, but for its images, which may have to be uploaded first."""


class JobOptions(TypedDict, total=False):
    """What can be said of any job.

    Attributes:
        request_id: a UUID4; the same again returns the same job. A fresh one where not given.
        validate_only: checks, and creates nothing.
        priority: 0 to 9.
        needs_gpu: only run on workers with a GPU.
        queue_timeout_s: seconds after which a job that has not started fails.
        max_attempts: times that it is started before it fails.
    """

    request_id: str | None
    validate_only: bool
    priority: int | None
    needs_gpu: bool
    queue_timeout_s: float
    max_attempts: int


def page_request(method: str, token: str, **fields: Any) -> Message:
    """The request for one page of what a method lists; an empty token asks for the first."""
    request: Message = getattr(pb, f"{method}Request")(page_size=PAGE_SIZE, page_token=token, **fields)
    return request


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


def job_of(spec: pb.JobSpec | None, fields: Mapping[str, Any]) -> tuple[SpecOf, JobOptions]:
    """What `submit` was asked for: the given job, or else one that adapts; and its options, which are among `fields`.

    Raises:
        InvalidInputError: fields of an adapt job beside another one.
    """
    options = cast(JobOptions, {name: fields[name] for name in JobOptions.__annotations__ if name in fields})
    adapting = {name: value for name, value in fields.items() if name not in options}
    if spec is None:
        return lambda source: adapt_spec(source, adapting), options
    if adapting:
        raise InvalidInputError(f"spec says what the job is; leave out {', '.join(adapting)}")
    return lambda source: spec, options


def adapt_spec(source: pb.DataSource | None, fields: Mapping[str, Any]) -> pb.JobSpec:
    """A job that adapts to `source`.

    Raises:
        InvalidInputError: no source, an unknown field, or a value of the wrong type.
    """
    if source is None:
        raise InvalidInputError("submit needs data or spec")
    given = {name: value for name, value in fields.items() if value is not None}
    known = {field.name for field in pb.AdaptSpec.DESCRIPTOR.fields}
    for name in given:
        if name not in known:
            raise InvalidInputError(f"an adapt job has no field {name!r}; it has {', '.join(sorted(known))}")
    return pb.JobSpec(adapt=_message(pb.AdaptSpec, {"data": source, **given}))


def meta_train_spec(until_version: int) -> SpecOf:
    """A job that runs the study's rounds."""
    return lambda source: pb.JobSpec(meta_train=pb.MetaTrainSpec(until_version=until_version))


def evaluate_spec(genotype: str | Mapping[str, Any], preset: str, overrides: Sequence[str]) -> SpecOf:
    """A job that trains the full network of a genotype."""
    text = genotype if isinstance(genotype, str) else json.dumps(genotype)
    return lambda source: pb.JobSpec(
        evaluate=pb.EvaluateSpec(data=source, genotype_json=text, preset=preset, overrides=overrides)
    )


def sweep_spec(config: Mapping[str, Any], architectures: Sequence[tuple[str, float]]) -> SpecOf:
    """A job that sweeps fields of its study's configuration, or trains architectures."""
    struct = struct_pb2.Struct()
    struct.update(json.loads(json.dumps(config)))
    candidates = [pb.ScoredGenotype(genotype_json=text, probability=probability) for text, probability in architectures]
    return lambda source: pb.JobSpec(sweep=pb.SweepSpec(config=struct, data=source, architectures=candidates))


def few_shot_spec(
    support: Sequence[pb.FewShotImage],
    queries: Sequence[pb.FewShotImage],
    steps: int | None,
    prior_version: int | None,
    statistics: str | None,
    seed: int,
) -> SpecOf:
    """A job that learns from `support` and labels `queries`.

    Raises:
        InvalidInputError: statistics that there are not, or a value of the wrong type.
    """
    name = f"BATCH_STATISTICS_{(statistics or 'unspecified').upper()}"
    if name not in pb.BatchStatistics.keys():  # noqa: SIM118 not a dict
        raise InvalidInputError(f"statistics must be transductive or inductive, got {statistics!r}")
    try:
        spec = pb.FewShotSpec(
            support=support,
            queries=queries,
            steps=steps,
            prior_version=prior_version,
            statistics=name,
            seed=seed,
        )
    except (TypeError, ValueError) as error:
        raise InvalidInputError(f"few-shot job: {error}") from None
    return lambda source: pb.JobSpec(few_shot=spec)


def study_image_size(study: pb.Study) -> int:
    """Pixels of the images of a few-shot study."""
    return int(json_format.MessageToDict(study.config)["families"][0]["image_size"])


def job_request(study: str, spec: pb.JobSpec, options: JobOptions) -> pb.CreateJobRequest:
    """The request that creates a job; without a `request_id` it has a fresh one.

    Raises:
        InvalidInputError: an unknown option, or a value of the wrong type.
    """
    given: dict[str, Any] = {**options, "request_id": options.get("request_id") or str(uuid.uuid4())}
    return _message(pb.CreateJobRequest, {"parent": study, "spec": spec, **given})


def _message(kind: type[_M], fields: Mapping[str, Any]) -> _M:
    """A message; a value of the wrong type is named."""
    for name, value in fields.items():
        try:
            kind(**{name: value})
        except (TypeError, ValueError) as error:
            raise InvalidInputError(f"{name} of a job cannot be {value!r}: {error}") from None
    return kind(**fields)
