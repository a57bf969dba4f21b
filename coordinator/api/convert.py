"""Between the protocol's messages and our values, as `sweeps` and `few_shot`; no others know both. Checks all input."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from google.protobuf import json_format, struct_pb2, timestamp_pb2
from pydantic import ValidationError

from common.config import DatasetRef, StudyConfig, explain, validate
from common.derived_config import derived_config
from common.errors import ConflictError, InvalidInputError, NotFoundError
from common.evaluate_config import EvaluateConfig, load_evaluate_config
from common.latency import MAX_TABLE_BYTES, LatencyTable
from common.limits import Limits
from common.loading import apply_overrides, preset_names, preset_tree
from common.network_config import cell_plans
from common.space.genotype import DerivationRule, Genotype
from common.space.released import RELEASED
from common.tasks import DatasetFile, TaskChoice
from coordinator.api.errors import FieldError
from coordinator.api.few_shot import few_shot_message, few_shot_result, few_shot_spec
from coordinator.api.stubs import search_pb2 as pb
from coordinator.api.sweeps import plain, sweep_message, sweep_result, sweep_spec
from coordinator.jobs import (
    AdaptSpec,
    EvaluateSpec,
    FailureReason,
    FewShotSpec,
    Job,
    JobSpec,
    JobState,
    MetaTrainSpec,
    SweepSpec,
)
from coordinator.store.records import DatasetRecord, Head, PriorPointer, Study

_RECIPE = "cifar10"

_RULES: Mapping[pb.DerivationRule, DerivationRule] = {
    pb.DERIVATION_RULE_UNSPECIFIED: "top2_pairs",
    pb.DERIVATION_RULE_TOP2_PAIRS: "top2_pairs",
    pb.DERIVATION_RULE_DARTS: "darts",
    pb.DERIVATION_RULE_SAMPLE: "sample",
}
_STATES: Mapping[JobState, Any] = {state: pb.JobState.Value(f"JOB_STATE_{state.name}") for state in JobState}
_REASONS: Mapping[FailureReason, Any] = {
    reason: pb.FailureReason.Value(f"FAILURE_REASON_{reason.name}") for reason in FailureReason
}


# Requests


def study_config(request: pb.CreateStudyRequest) -> StudyConfig:
    """The configuration that a new study asks for.

    Raises:
        FieldError: no base, no such preset, a wrong field.
    """
    base = request.WhichOneof("base")
    if base is None:
        raise FieldError("base", f"give a preset ({', '.join(preset_names())}) or a config")
    if base == "preset":
        if request.preset not in preset_names():
            raise FieldError("preset", f"must be one of {', '.join(preset_names())}, got {request.preset[:80]!r}")
        tree = preset_tree(request.preset)
    else:
        tree = plain(json_format.MessageToDict(request.config))
    try:
        apply_overrides(tree, list(request.overrides))
        return validate(tree)
    except RecursionError:
        raise FieldError("overrides", "a value is nested too deeply") from None
    except InvalidInputError as error:
        raise FieldError("overrides" if "--set" in str(error) else base, str(error)) from None


def job_spec(spec: pb.JobSpec, config: StudyConfig) -> JobSpec:
    """What a job asks for, but for the data file (see `server`).

    Raises:
        FieldError: no kind, or a field out of range.
        ConflictError: jobs of this kind are not for this study.
    """
    kind = spec.WhichOneof("kind")
    if kind is None:
        raise FieldError("spec.kind", "give adapt, meta_train, evaluate, sweep or few_shot")
    try:
        if kind == "meta_train":
            return MetaTrainSpec(until_version=spec.meta_train.until_version or None)
        if kind == "evaluate":
            return _evaluate_spec(spec.evaluate)
        if kind == "sweep":
            return sweep_spec(spec.sweep)
        if kind == "few_shot":
            return few_shot_spec(spec.few_shot, config)
        return _adapt_spec(spec.adapt, config)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(["spec", kind, *(str(part) for part in first["loc"])])
        raise FieldError(where, explain(error).partition(": ")[2] or first["msg"]) from None


def _adapt_spec(spec: pb.AdaptSpec, config: StudyConfig) -> AdaptSpec:
    if config.few_shot is not None:
        raise ConflictError(
            "the study is a few-shot study, whose prior learns from a handful of images; submit a few_shot job, or "
            "adapt in a study without few_shot"
        )
    if spec.derivation not in _RULES:
        raise FieldError("spec.adapt.derivation", f"is unknown, got {spec.derivation}")
    if _RULES[spec.derivation] != "top2_pairs" and (spec.max_params or spec.max_macs or spec.max_latency_ms):
        raise FieldError("spec.adapt.derivation", "limits need DERIVATION_RULE_TOP2_PAIRS; change it, or remove them")
    if spec.classes and spec.num_ways:
        raise FieldError("spec.adapt.num_ways", "leave it out where classes are named")
    counts = ("num_ways", "image_size", "train_per_class", "test_per_class", "steps", "fine_tune_steps")
    for name in (*counts, "max_params", "max_macs"):
        if getattr(spec, name) < 0:
            raise FieldError(f"spec.adapt.{name}", f"must be at least 0, got {getattr(spec, name)}")
    if spec.num_ways == 1 or len(spec.classes) == 1:
        raise FieldError("spec.adapt.classes", "a task has at least 2 classes")
    if len(set(spec.classes)) != len(spec.classes):
        raise FieldError("spec.adapt.classes", "names a class twice; remove one")
    if spec.contribute and spec.HasField("prior_version"):
        raise FieldError("spec.adapt.prior_version", "leave it out with contribute, which starts from the latest")
    size = spec.image_size or config.families[0].image_size
    if size not in config.network.heads:
        sizes = ", ".join(str(known) for known in sorted(config.network.heads))
        raise FieldError("spec.adapt.image_size", f"must be one of the study's {sizes}, got {size}")
    if spec.fine_tune_steps:
        try:
            derived_config(config.space, config.network, size, num_classes=2)  # any number will do
        except InvalidInputError as error:
            raise FieldError("spec.adapt.fine_tune_steps", f"leave it out; {error}") from None
    choice = TaskChoice(
        data=DatasetRef(source=spec.data.builtin or "uploaded"),
        classes=tuple(spec.classes) or spec.num_ways or None,
        image_size=size,
        train_per_class=spec.train_per_class or None,
        test_per_class=spec.test_per_class or 20,
        seed=spec.seed,
    )
    limits = Limits(
        max_params=spec.max_params or None,
        max_macs=spec.max_macs or None,
        max_latency_ms=spec.max_latency_ms or None,
        latency_table=_latency_table(spec),
    )
    return AdaptSpec(
        choice=choice,
        prior_version=spec.prior_version if spec.HasField("prior_version") else None,
        steps=spec.steps or None,
        derivation=_RULES[spec.derivation],
        limits=limits,
        fine_tune_steps=spec.fine_tune_steps or None,
        contribute=spec.contribute,
    )


def _latency_table(spec: pb.AdaptSpec) -> LatencyTable | None:
    if not (math.isfinite(spec.max_latency_ms) and spec.max_latency_ms >= 0):
        raise FieldError("spec.adapt.max_latency_ms", f"must be finite and at least 0, got {spec.max_latency_ms}")
    if bool(spec.max_latency_ms) != bool(spec.latency_table_json):
        missing, given = ("latency_table_json", "max_latency_ms")
        if spec.latency_table_json:
            missing, given = given, missing
        raise FieldError(f"spec.adapt.{missing}", f"goes with {given}; give both, or neither")
    if not spec.latency_table_json:
        return None
    if len(spec.latency_table_json.encode()) > MAX_TABLE_BYTES:
        raise FieldError("spec.adapt.latency_table_json", f"has at most {MAX_TABLE_BYTES} bytes")
    try:
        return LatencyTable.from_json(spec.latency_table_json)
    except InvalidInputError as error:
        raise FieldError("spec.adapt.latency_table_json", str(error)) from None


def _evaluate_spec(spec: pb.EvaluateSpec) -> EvaluateSpec:
    try:
        genotype = RELEASED.get(spec.genotype_json) or Genotype.from_json(spec.genotype_json)
    except InvalidInputError as error:
        raise FieldError("spec.evaluate.genotype_json", str(error)) from None
    try:
        config = load_evaluate_config(spec.preset or _RECIPE, list(spec.overrides))
        # Any number of classes and channels will do to find a kind of cell that no full network has.
        tuple(cell_plans(genotype, config.network(2, 1)))
    except RecursionError:
        raise FieldError("spec.evaluate.overrides", "a value is nested too deeply") from None
    except NotFoundError as error:
        raise FieldError("spec.evaluate.preset", str(error)) from None
    except InvalidInputError as error:
        field = "genotype_json" if "cell kinds" in str(error) else "overrides"
        raise FieldError(f"spec.evaluate.{field}", str(error)) from None
    data = DatasetRef(source=spec.data.builtin or "uploaded")
    return EvaluateSpec(genotype=genotype, config=config, data=data)


def with_file(
    spec: AdaptSpec | EvaluateSpec | SweepSpec, name: str, file: DatasetFile
) -> AdaptSpec | EvaluateSpec | SweepSpec:
    """The same, with data that workers fetch."""
    if isinstance(spec, SweepSpec):
        assert spec.plan.architectures is not None
        images = {"data": DatasetRef(source=name), "file": file}
        chosen = spec.plan.architectures.model_copy(update=images)
        return SweepSpec(plan=spec.plan.model_copy(update={"architectures": chosen}))
    if isinstance(spec, EvaluateSpec):
        return spec.model_copy(update={"data": spec.data.model_copy(update={"source": name}), "file": file})
    data = spec.choice.data.model_copy(update={"source": name})
    return spec.model_copy(update={"choice": spec.choice.model_copy(update={"data": data}), "file": file})


def job_states(values: Sequence[int]) -> frozenset[JobState]:
    """States to list.

    Raises:
        FieldError: one is unknown.
    """
    known = {value: state for state, value in _STATES.items()}
    for value in values:
        if value not in known:
            raise FieldError("states", f"has an unknown state {value}")
    return frozenset(known[value] for value in values)


# Responses


def study_message(study: Study, head: Head) -> pb.Study:
    """A study."""
    config = struct_pb2.Struct()
    config.update(study.config)
    return pb.Study(
        name=study.name,
        config=config,
        create_time=_time(study.created_s),
        prior_version=head.version,
        prior_sha256=head.digest,
    )


def prior_message(study: str, pointer: PriorPointer) -> pb.Prior:
    """A version of the prior."""
    return pb.Prior(
        name=f"studies/{study}/priors/{pointer.version}",
        version=pointer.version,
        sha256=pointer.digest,
        create_time=_time(pointer.created_s),
        made_by=f"studies/{study}/jobs/{pointer.made_by}" if pointer.made_by else "",
        metrics=pointer.metrics,
    )


def dataset_message(dataset: DatasetRecord) -> pb.Dataset:
    """An uploaded file."""
    return pb.Dataset(
        name=f"datasets/{dataset.sha256}",
        title=dataset.title,
        num_bytes=dataset.num_bytes,
        suffix=dataset.suffix,
        create_time=_time(dataset.created_s),
    )


def job_message(job: Job) -> pb.Job:
    """A job, with its progress or its result."""
    message = pb.Job(
        name=job.name,
        spec=_spec_message(job.spec),
        state=_STATES[job.state],
        priority=job.priority,
        needs_gpu=job.needs_gpu,
        paused=job.suspended,
        attempt=job.attempt,
        create_time=_time(job.created_s),
        note=job.note,
    )
    if job.started_s is not None:
        message.start_time.CopyFrom(_time(job.started_s))
    if job.finished_s is not None:
        message.end_time.CopyFrom(_time(job.finished_s))
    if job.progress:
        message.progress.CopyFrom(json_format.ParseDict(dict(job.progress), pb.Progress(), ignore_unknown_fields=True))
    if job.failure is not None:
        message.failure.reason = _REASONS[job.failure.reason]
        message.failure.message = job.failure.message
    if job.result is not None:
        result: Any = job.result
        for artifact in result.get("artifacts", ()):
            message.artifacts.add(**artifact)
        summary = result["summary"]
        if job.spec.kind == "adapt":
            message.adapt_result.CopyFrom(_adapt_result(summary))
        elif job.spec.kind == "evaluate":
            message.evaluate_result.CopyFrom(_evaluate_result(summary))
        elif job.spec.kind == "sweep":
            message.sweep_result.CopyFrom(sweep_result(summary))
        elif job.spec.kind == "few_shot":
            message.few_shot_result.CopyFrom(few_shot_result(summary))
        else:
            message.meta_train_result.CopyFrom(pb.MetaTrainResult(**summary))
    return message


def _adapt_result(summary: Mapping[str, Any]) -> pb.AdaptResult:
    result = pb.AdaptResult(
        prior_version=summary["prior_version"],
        genotype_json=_json(summary["genotype"]),
        genotype_probability=summary["probability"],
        entropy_nats=summary["entropy_nats"],
        accuracy=summary["accuracy"],
        num_params=summary["num_params"],
        num_macs=summary["num_macs"],
    )
    for scored in summary["top_genotypes"]:
        result.top_genotypes.add(genotype_json=_json(scored["genotype"]), probability=scored["probability"])
    for evaluation in summary["evaluations"]:
        result.evaluations.add(**evaluation)
    if summary.get("latency_ms") is not None:
        result.latency_ms = summary["latency_ms"]
    if summary.get("contributed_version") is not None:
        result.contributed_version = summary["contributed_version"]
    if summary.get("fine_tuned") is not None:
        result.fine_tuned.CopyFrom(pb.FineTuned(**summary["fine_tuned"]))
    return result


def _evaluate_result(summary: Mapping[str, Any]) -> pb.EvaluateResult:
    fields = {name: value for name, value in summary.items() if name not in ("genotype", "learning_curve")}
    result = pb.EvaluateResult(genotype_json=_json(summary["genotype"]), **fields)
    for record in summary["learning_curve"]:
        result.learning_curve.add(**record)
    return result


def _spec_message(spec: JobSpec) -> pb.JobSpec:
    if isinstance(spec, MetaTrainSpec):
        return pb.JobSpec(meta_train=pb.MetaTrainSpec(until_version=spec.until_version or 0))
    if isinstance(spec, EvaluateSpec):
        return pb.JobSpec(
            evaluate=pb.EvaluateSpec(
                data=_data_message(spec.data.source, spec.file),
                genotype_json=spec.genotype.to_json(),
                preset=_RECIPE,
                overrides=_recipe_overrides(spec.config),
            )
        )
    if isinstance(spec, FewShotSpec):
        return pb.JobSpec(few_shot=few_shot_message(spec))
    if isinstance(spec, SweepSpec):
        chosen = spec.plan.architectures
        data = None if chosen is None else _data_message(chosen.data.source, chosen.file)
        return pb.JobSpec(sweep=sweep_message(spec, data))
    choice = spec.choice
    classes = choice.classes if isinstance(choice.classes, tuple) else ()
    message = pb.AdaptSpec(
        data=_data_message(choice.data.source, spec.file),
        classes=classes,
        num_ways=choice.classes if isinstance(choice.classes, int) else 0,
        image_size=choice.image_size,
        train_per_class=choice.train_per_class or 0,
        test_per_class=choice.test_per_class,
        steps=spec.steps or 0,
        seed=choice.seed,
        derivation=next(value for value, rule in _RULES.items() if value and rule == spec.derivation),
        max_params=spec.limits.max_params or 0,
        max_macs=spec.limits.max_macs or 0,
        fine_tune_steps=spec.fine_tune_steps or 0,
        max_latency_ms=spec.limits.max_latency_ms or 0.0,
        latency_table_json="" if spec.limits.latency_table is None else spec.limits.latency_table.to_json(),
        contribute=spec.contribute,
    )
    if spec.prior_version is not None:
        message.prior_version = spec.prior_version
    return pb.JobSpec(adapt=message)


def _data_message(source: str, file: DatasetFile | None) -> pb.DataSource:
    if file is None:
        return pb.DataSource(builtin=source)
    if file.sha256 is not None:
        return pb.DataSource(dataset=f"datasets/{file.sha256}")
    return pb.DataSource(url=file.url)


def _recipe_overrides(config: EvaluateConfig) -> list[str]:
    """What makes a recipe of the default one; no field has None but by default."""
    tree, plain = config.model_dump(mode="json"), load_evaluate_config(_RECIPE).model_dump(mode="json")
    return [f"{name}={json.dumps(value)}" for name, value in tree.items() if value != plain[name]]


def _json(genotype: Any) -> str:
    return json.dumps(genotype, sort_keys=True)


def _time(seconds: float) -> timestamp_pb2.Timestamp:
    whole = int(seconds)
    return timestamp_pb2.Timestamp(seconds=whole, nanos=int((seconds - whole) * 1e9))
