"""Sweeps between the protocol's messages and our values; see `convert`. Checks all that comes in."""

import json
from collections.abc import Mapping
from typing import Any

from google.protobuf import json_format, struct_pb2

from common.config import DatasetRef
from common.errors import InvalidInputError, NotFoundError
from common.space.genotype import Genotype
from common.sweep_config import SweepConfig, validate_sweep
from common.sweep_plan import Architectures, Candidate, SweepPlan, check_kinds, sweep_recipe
from coordinator.api.errors import FieldError
from coordinator.api.stubs import search_pb2 as pb
from coordinator.jobs import SweepSpec

MOST_TRIALS = 1000  # of a job, whose record lists them all
_FIELD = "spec.sweep"


def sweep_spec(spec: pb.SweepSpec) -> SweepSpec:
    """What a sweep job asks for, but for the study and the data file.

    Raises:
        FieldError: a field is wrong.
    """
    tree = plain(json_format.MessageToDict(spec.config))
    if "study" in tree:
        raise FieldError(f"{_FIELD}.config.study", "leave it out: the job's study is varied")
    try:
        config = validate_sweep(tree)
    except RecursionError:
        raise FieldError(f"{_FIELD}.config", "a value is nested too deeply") from None
    except InvalidInputError as error:
        raise FieldError(f"{_FIELD}.config", str(error).removeprefix("sweep: ")) from None
    if config.num_trials > MOST_TRIALS:
        raise FieldError(f"{_FIELD}.config.trials", f"a job has at most {MOST_TRIALS} trials, got {config.num_trials}")
    if config.architectures is None:
        if spec.architectures:
            raise FieldError(f"{_FIELD}.architectures", "they need [architectures] in config instead of a space")
        return SweepSpec(plan=SweepPlan(config=config))
    return SweepSpec(plan=SweepPlan(config=config, architectures=_architectures(spec, config)))


def _architectures(spec: pb.SweepSpec, config: SweepConfig) -> Architectures:
    assert config.architectures is not None
    candidates = []
    for index, scored in enumerate(spec.architectures):
        try:
            genotype = Genotype.from_json(scored.genotype_json)
        except InvalidInputError as error:
            raise FieldError(f"{_FIELD}.architectures.{index}.genotype_json", str(error)) from None
        candidates.append(Candidate(genotype=genotype, probability=scored.probability))
    if candidates and len(candidates) != config.architectures.top:
        raise FieldError(
            f"{_FIELD}.architectures", f"there are {len(candidates)}, config says top = {config.architectures.top}"
        )
    try:
        recipe = sweep_recipe(config.architectures.recipe, config.architectures.overrides)
        if candidates:
            check_kinds(candidates, recipe)
    except (InvalidInputError, NotFoundError) as error:
        raise FieldError(f"{_FIELD}.config.architectures", str(error)) from None
    data = DatasetRef(source=spec.data.builtin or "uploaded")
    return Architectures(candidates=tuple(candidates), recipe=recipe, data=data)


def sweep_message(spec: SweepSpec, data: pb.DataSource | None) -> pb.SweepSpec:
    """What was asked for."""
    config = struct_pb2.Struct()
    config.update(spec.plan.config.model_dump(mode="json", exclude_defaults=True))
    message = pb.SweepSpec(config=config, data=data)
    if spec.plan.architectures is not None:
        for candidate in spec.plan.architectures.candidates:
            message.architectures.add(genotype_json=candidate.genotype.to_json(), probability=candidate.probability)
    return message


def sweep_result(summary: Mapping[str, Any]) -> pb.SweepResult:
    """What a sweep found."""
    result = pb.SweepResult(
        metric=summary["metric"],
        best=summary["best"],
        best_json=json.dumps(summary["best_content"], sort_keys=True),
        seconds=summary["seconds"],
    )
    for row in summary["trials"]:
        trial = result.trials.add(
            number=row["trial"],
            state=row["state"],
            values_json=json.dumps(row["values"], sort_keys=True),
            rounds=row["rounds"],
            value=row["value"],
            failure=row["failure"],
        )
        if row["interval_95"] is not None:
            trial.low, trial.high = row["interval_95"]
    return result


def plain(value: Any) -> Any:
    """JSON values of a Struct, whose numbers are all floating point: whole ones become integers again."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [plain(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value
