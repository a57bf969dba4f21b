"""A sweep as values: what is tried, how far its trials are, what came out; and how a folder holds it. No Ray.

A sweep's folder:
    sweep.json        what is tried, see `SweepPlan`; written first
    tune/             the state of Ray Tune, and the trials' checkpoints
    result.json       the trials as a table, see `describe`; written when the sweep ends or is stopped
    best.json         configuration of the best trial, for `metasearch train`; of architectures, the best genotype
    best/             the best trial's folder: of a run (`coordinator.trial`), or of an evaluation (`workers.evaluate`)
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from common.errors import AdaptationError, ConflictError, NotFoundError
from common.storage import ArtifactFolder
from common.sweep_plan import SweepPlan
from common.sweep_space import Values, configured
from common.value_file import ValueFile
from workers.score import wilson_interval

PLAN = ValueFile(SweepPlan, "sweep.json", "holds no sweep; start one with metasearch sweep FILE --run")
RESULT, BEST, BEST_FOLDER = "result.json", "best.json", "best"

State = Literal["waiting", "running", "complete", "stopped", "failed"]


@dataclass(frozen=True)
class Trial:
    """How far a trial is.

    Attributes:
        number: from 0, in the order in which trials were begun.
        state: complete has run all its rounds; stopped was ended before, by the scheduler or the budget.
        values: by key of the space; of architectures, which candidate.
        rounds: rounds (epochs) done.
        value: the metric, as it was measured last; None where it was not.
        measured: all that was measured last.
        curve: what was measured after so many rounds, from the start.
        failure: why it failed.
        folder: URL of its latest checkpoint; None where there is none.
    """

    number: int
    state: State
    values: Values
    rounds: int = 0
    value: float | None = None
    measured: Mapping[str, Any] = field(default_factory=dict)
    curve: tuple[Mapping[str, Any], ...] = ()
    failure: str = ""
    folder: str | None = None


def check_same_plan(stored: SweepPlan, given: SweepPlan) -> None:
    """Refuses to go on with another sweep; its budget may change.

    Raises:
        ConflictError: names what differs.
    """
    free = {"config": {"max_seconds"}}
    before, now = (plan.model_dump(mode="json", exclude=free) for plan in (stored, given))
    for part in before:
        if before[part] != now[part]:
            raise ConflictError(
                f"the sweep was started with another {part}; resume without the file, or choose another --run"
            )


def store_results(
    folder: ArtifactFolder, plan: SweepPlan, trials: Sequence[Trial], is_over: bool, seconds: float
) -> dict[str, Any]:
    """Stores the table of the trials, and the best one's configuration and folder.

    Args:
        folder: of the sweep.
        plan: what is tried.
        trials: as far as they are.
        is_over: whether all of them are.
        seconds: spent so far, over all resumptions.

    Returns:
        What result.json holds.

    Raises:
        UnavailableError: the storage refuses.
    """
    content = described(plan, trials, is_over, seconds)
    best = best_of(trials, plan)
    if best is not None:
        assert best.folder is not None
        folder.write(BEST, dumped(best_content(best, plan)))
        folder.copy_tree(best.folder, BEST_FOLDER)
    folder.write(RESULT, dumped(content))
    return content


def spent_s(folder: ArtifactFolder) -> float:
    """Seconds that a sweep has taken so far, as far as its result says."""
    try:
        return float(json.loads(folder.read(RESULT))["seconds"])
    except (NotFoundError, ValueError, KeyError, TypeError):
        return 0.0


def best_of(trials: Sequence[Trial], plan: SweepPlan) -> Trial | None:
    """The trial whose last measurement is best, among those that ran all their rounds; among all, where none did."""
    known = [trial for trial in trials if trial.value is not None and math.isfinite(trial.value) and trial.folder]
    complete = [trial for trial in known if trial.state == "complete"]
    sign = 1 if plan.config.is_maximised else -1
    return max(complete or known, key=lambda trial: (sign * (trial.value or 0.0), -trial.number), default=None)


def described(plan: SweepPlan, trials: Sequence[Trial], is_over: bool, seconds: float) -> dict[str, Any]:
    """What result.json holds: plain values."""
    best = best_of(trials, plan)
    return {
        "kind": "sweep",
        "metric": plan.config.metric,
        "mode": "max" if plan.config.is_maximised else "min",
        "unit": plan.unit,
        "most_rounds": plan.most_rounds,
        "num_trials": plan.config.num_trials,
        "searcher": plan.config.searcher,
        "scheduler": plan.config.scheduler,
        "is_over": is_over,
        "seconds": seconds,
        "best": None if best is None else best.number,
        "keys": sorted({key for trial in trials for key in trial.values})
        if plan.architectures
        else [*plan.config.space],
        "trials": [_row(trial, plan) for trial in trials],
    }


def best_content(trial: Trial, plan: SweepPlan) -> dict[str, Any]:
    """What best.json holds: a study's configuration; or a genotype, and what its network came to."""
    if plan.architectures is None:
        assert plan.study is not None
        return configured(plan.study, trial.values).model_dump(mode="json")
    candidate = plan.architectures.candidates[trial.values["architecture"]]
    return {"genotype": candidate.genotype.model_dump(mode="json"), **_row(trial, plan)}


def check_any(trials: Sequence[Trial], plan: SweepPlan) -> Trial:
    """The best trial.

    Raises:
        AdaptationError: not one was measured; says why the first one failed.
    """
    best = best_of(trials, plan)
    if best is None:
        reasons = [trial.failure for trial in trials if trial.failure]
        raise AdaptationError(f"no trial came to a result: {reasons[0] if reasons else 'none ran long enough'}")
    return best


def _row(trial: Trial, plan: SweepPlan) -> dict[str, Any]:
    row: dict[str, Any] = {
        "trial": trial.number,
        "state": trial.state,
        "values": dict(trial.values),
        "rounds": trial.rounds,
        "value": trial.value,
        "interval_95": interval_of(trial),
        "curve": [dict(point) for point in trial.curve],
        "failure": trial.failure,
    }
    for name in ("accuracy", "loss_nats", "test"):
        if name in trial.measured:
            row[name] = trial.measured[name]
    if plan.architectures is not None:
        row["probability"] = plan.architectures.candidates[trial.values["architecture"]].probability
    return row


def interval_of(trial: Trial) -> list[float] | None:
    """The 95 % interval of a trial's accuracy: over its fresh tasks, or, of a full network, its validation images."""
    if "num_images" in trial.measured:
        num_images = int(trial.measured["num_images"])
        return list(wilson_interval(round(trial.measured["accuracy"] * num_images), num_images))
    values = trial.measured.get("accuracies", ())
    if len(values) < 2:
        return None
    import numpy as np

    from coordinator.report import mean_interval

    found = mean_interval(np.array(values)[:, None])
    return [max(float(found.low[0]), 0.0), min(float(found.high[0]), 1.0)]  # an accuracy: no more than that is possible


def dumped(content: Mapping[str, Any]) -> bytes:
    """JSON for a file."""
    return json.dumps(content, indent=2).encode()
