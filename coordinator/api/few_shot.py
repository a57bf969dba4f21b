"""Few-shot jobs between the protocol's messages and our values; see `convert`. Checks all that comes in."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from common.config import StudyConfig
from common.errors import ConflictError, InvalidInputError
from common.few_shot_config import BatchStatistics
from common.tasks import DatasetFile, FewShotTask
from coordinator.api.errors import FieldError
from coordinator.api.inline_images import MAX_PIXELS, MAX_TOTAL_PIXELS
from coordinator.api.stubs import search_pb2 as pb
from coordinator.jobs import FewShotSpec, Job
from workers.data.handful import Handful
from workers.data.images import Square, decode_squares, num_pixels, stack_images

MAX_IMAGES = 1000
MAX_NAME = 200
_FIELD = "spec.few_shot"

_STATISTICS: Mapping[pb.BatchStatistics, BatchStatistics | None] = MappingProxyType(
    {
        pb.BATCH_STATISTICS_UNSPECIFIED: None,
        pb.BATCH_STATISTICS_TRANSDUCTIVE: "transductive",
        pb.BATCH_STATISTICS_INDUCTIVE: "inductive",
    }
)
_STATISTICS_VALUES: Mapping[BatchStatistics | None, Any] = {name: value for value, name in _STATISTICS.items()}


def few_shot_spec(spec: pb.FewShotSpec, config: StudyConfig) -> FewShotSpec:
    """What a few-shot job asks for, but for the pixels.

    Raises:
        ConflictError: the study is no few-shot study.
        FieldError: a field is wrong.
    """
    if config.few_shot is None:
        raise ConflictError(
            "the study is no few-shot study, so it cannot learn from a handful of images; submit to one whose "
            "configuration has few_shot, or submit an adapt job"
        )
    if spec.statistics not in _STATISTICS:
        raise FieldError(f"{_FIELD}.statistics", f"is unknown, got {spec.statistics}")
    if len(spec.support) + len(spec.queries) > MAX_IMAGES:
        count = len(spec.support) + len(spec.queries)
        raise FieldError(_FIELD, f"has {count} images, at most {MAX_IMAGES} go with a request; send several")
    for index, image in enumerate(spec.support):
        _check_text(image.name, f"{_FIELD}.support.{index}.name")
        if not image.label.strip():
            raise FieldError(
                f"{_FIELD}.support.{index}.label", f"names no class; every support image has one{_of(image)}"
            )
        _check_text(image.label, f"{_FIELD}.support.{index}.label")
    for index, image in enumerate(spec.queries):
        _check_text(image.name, f"{_FIELD}.queries.{index}.name")
        if image.label:
            raise FieldError(f"{_FIELD}.queries.{index}.label", f"leave it out: queries are labelled here{_of(image)}")
    names = [image.name for image in spec.queries]
    for index, name in enumerate(names):
        if not name.strip():
            raise FieldError(f"{_FIELD}.queries.{index}.name", "is empty; predictions go by the queries' names")
        if name in names[:index]:
            raise FieldError(f"{_FIELD}.queries.{index}.name", f"{name!r} names two queries; rename one")
    classes = _classes(spec, config)
    return FewShotSpec(
        task=FewShotTask(
            classes=classes,
            labels=tuple(classes.index(image.label) for image in spec.support),
            support_names=tuple(image.name for image in spec.support),
            query_names=tuple(names),
            image_size=config.families[0].image_size,
        ),
        prior_version=spec.prior_version if spec.HasField("prior_version") else None,
        steps=spec.steps if spec.HasField("steps") else None,
        statistics=_STATISTICS[spec.statistics],
        seed=spec.seed,
    )


def pixels_of(message: pb.FewShotSpec, spec: FewShotSpec) -> bytes:
    """The file of pixels of a job that `few_shot_spec` took; see `workers.data.handful`.

    Raises:
        FieldError: one is no readable image, or too large.
    """
    budget = [MAX_TOTAL_PIXELS]
    size = spec.task.image_size
    support = _squares(message.support, f"{_FIELD}.support", size, budget)
    queries = _squares(message.queries, f"{_FIELD}.queries", size, budget)
    return Handful(stack_images(support), stack_images(queries)).to_bytes()


def pixels_name(job: Job) -> str:
    """Where a job's pixels are, among the artifacts: beside its results."""
    return f"tenants/{job.tenant}/studies/{job.study}/jobs/{job.job_id}/images.npz"


def with_pixels(job: Job, spec: FewShotSpec, pixels: bytes, url: str) -> Job:
    """The job, with the file that its pixels will be in."""
    file = DatasetFile(url=url, sha256=hashlib.sha256(pixels).hexdigest(), suffix=".npz")
    return job.model_copy(update={"spec": spec.model_copy(update={"file": file, "num_bytes": len(pixels)})})


def few_shot_message(spec: FewShotSpec) -> pb.FewShotSpec:
    """What was asked for, without the images' content."""
    task = spec.task
    message = pb.FewShotSpec(statistics=_STATISTICS_VALUES[spec.statistics], seed=spec.seed)
    for name, label in zip(task.support_names, task.labels, strict=True):
        message.support.add(name=name, label=task.classes[label])
    for name in task.query_names:
        message.queries.add(name=name)
    if spec.prior_version is not None:
        message.prior_version = spec.prior_version
    if spec.steps is not None:
        message.steps = spec.steps
    return message


def few_shot_result(summary: Mapping[str, Any]) -> pb.FewShotResult:
    """What was found."""
    same = (
        "classes",
        "num_queries",
        "steps",
        "support_losses_nats",
        "entropy_nats",
        "num_params",
        "has_network",
        "path",
    )
    result = pb.FewShotResult(
        prior_version=summary["prior_version"],
        statistics=_STATISTICS_VALUES[summary["statistics"]],
        genotype_json="" if summary["genotype"] is None else json.dumps(summary["genotype"], sort_keys=True),
        seconds=summary["seconds"],
        **{name: summary[name] for name in same},
    )
    if summary["genotype_probability"] is not None:
        result.genotype_probability = summary["genotype_probability"]
    for prediction in summary["predictions"]:
        result.predictions.add(**prediction)
    return result


def _classes(spec: pb.FewShotSpec, config: StudyConfig) -> tuple[str, ...]:
    """The classes that support images name, sorted: their order is that of the classifier's rows."""
    classes = tuple(sorted({image.label for image in spec.support}))
    ways = config.families[0].num_ways
    if len(classes) < 2:
        raise FieldError(f"{_FIELD}.support", f"has {len(classes)} classes; there is something to tell apart from 2 on")
    if len(classes) > ways:
        raise FieldError(
            f"{_FIELD}.support",
            f"has {len(classes)} classes, the study's prior can tell {ways} apart (num_ways of its tasks): leave some "
            f"out, or train a study with num_ways={len(classes)}",
        )
    return classes


def _squares(images: Sequence[pb.FewShotImage], field: str, image_size: int, budget: list[int]) -> list[Square]:
    squares = []
    for index, image in enumerate(images):
        where = f"{field}.{index}.content"
        if not image.content:
            raise FieldError(where, f"is empty; it holds the image file{_of(image)}")
        try:
            pixels = num_pixels(image.content, "it")
            budget[0] -= pixels
            if pixels > MAX_PIXELS or budget[0] < 0:
                most = f"{MAX_PIXELS}, and {MAX_TOTAL_PIXELS} with all others"
                raise FieldError(where, f"has {pixels} pixels, at most {most}; scale it down{_of(image)}")
            squares += decode_squares(image.content, "it", (image_size,))
        except FieldError:
            raise
        except InvalidInputError as error:
            raise FieldError(where, f"{str(error).removeprefix('it ')}{_of(image)}") from None
    return squares


def _check_text(text: str, field: str) -> None:
    if len(text) > MAX_NAME or not (text.isprintable() or not text):
        raise FieldError(field, f"must be at most {MAX_NAME} printable characters, got {text[:80]!r}")


def _of(image: pb.FewShotImage) -> str:
    """Names an image in a message, where it has a name."""
    return f" ({image.name[:80]!r})" if image.name else ""
