"""Reads what a folder holds - a run's, a demo's, an adaptation's, a job's - into the value that a page is made of."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from common.config import validate
from common.errors import CorruptArtifactError, InvalidInputError, NotFoundError
from common.storage import ArtifactFolder
from common.telemetry import ROUND_METRICS, metric_name
from coordinator.html_report.kept_priors import derived_cost, found_by, read_priors
from coordinator.html_report.provenance import StoredFile, stored_files
from coordinator.html_report.reading import RESULT, TIME, genotype_of, modified, plain_facts, read_config, read_json
from coordinator.html_report.report import Accuracy, Curve, Found, Origin, Report
from coordinator.html_report.results import result_report
from coordinator.html_report.sweeps import is_sweep, sweep_table
from coordinator.pareto import FRONT

CONFIG, ROUNDS, LOG = "config.json", "rounds.jsonl", "train.log"
BEST, BEST_TRIAL = "best.json", "best"  # of a sweep
ADAPTATION = "adapt"  # where `metasearch adapt` leaves its results in a run's folder
PARETO = "pareto"  # likewise `metasearch pareto`
META_TESTS = "test"  # likewise `metasearch test`, a folder for each
DEMO_PRIORS = "service/artifacts/tenants/local/studies/demo/priors"
_LOG_LINE = re.compile(r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d),\d+ .* round (\d+)/")


def collect(folder: Path, origin: Origin | None = None, leave_out: Path | None = None) -> Report:
    """What a folder holds.

    Args:
        folder: of a run, a demo, an adaptation, or with a job's artifacts.
        origin: where it comes from, if the folder is but a copy; else the folder itself.
        leave_out: a file in it that is no part of it, such as an earlier report.

    Raises:
        NotFoundError: it is no such folder.
        CorruptArtifactError: a file of it cannot be understood; the message names it.
        UnavailableError: a file cannot be read.
    """
    origin = origin or Origin(folder.resolve().name)
    if not folder.is_dir():
        raise NotFoundError(f"there is no folder {folder}; give the folder of a run, a demo or an adaptation")
    files = stored_files(folder, origin.manifest, leave_out)
    if (folder / RESULT).is_file() and is_sweep(read_json(folder / RESULT)):
        return _sweep(folder, origin, files)
    if (folder / CONFIG).is_file():
        return _run(folder, origin, files)
    if (folder / FRONT.name).is_file():
        front = FRONT.read(ArtifactFolder(folder))
        ended = origin.ended or modified(folder / FRONT.name)
        facts = {"prior": front.prior}
        return Report("front", origin.name, origin.began, ended, facts=facts, files=files, front=front)
    if not (folder / RESULT).is_file():
        raise NotFoundError(
            f"{folder} holds neither {CONFIG} nor {RESULT}; give the folder of a run (metasearch train --run), a demo, "
            "an adaptation (metasearch adapt --out), or of a job's artifacts (metasearch result JOB --out)"
        )
    content = read_json(folder / RESULT)
    try:
        if "panels" in content:
            return _demo(folder, content, origin, files)
        return result_report(folder, content, origin, files)
    except (KeyError, TypeError, ValueError, AttributeError, InvalidInputError) as error:
        raise CorruptArtifactError(
            f"{folder / RESULT} is not a result of metasearch demo, adapt, evaluate, label or submit "
            f"({type(error).__name__}: {error}); fetch or compute it again"
        ) from None


def _run(folder: Path, origin: Origin, files: tuple[StoredFile, ...]) -> Report:
    config = read_config(folder / CONFIG)
    priors = read_priors(folder, "priors", config)
    rounds = _rounds(folder / ROUNDS)
    began, ended = _log_times(folder / LOG, rounds)
    adaptation = folder / ADAPTATION
    accuracy: tuple[Accuracy, ...] = ()
    if (adaptation / RESULT).is_file():
        accuracy = collect(adaptation).accuracy
    accuracy += _meta_tests(folder)
    return Report(
        kind="run",
        name=origin.name,
        began=origin.began or began,
        ended=origin.ended or ended,
        rounds=rounds,
        accuracy=accuracy,
        seconds={"all rounds": sum(values.get("round_seconds", 0.0) for values in rounds)} if rounds else {},
        found=found_by(priors, config),
        ops=config.space.ops,
        posteriors=priors.posteriors,
        versions=priors.versions,
        architecture_components=priors.architecture,
        weight_components=priors.weights,
        component_versions=priors.component_versions,
        config=config,
        files=files,
        notes=priors.notes,
        front=FRONT.read(ArtifactFolder(folder / PARETO)) if (folder / PARETO / FRONT.name).is_file() else None,
    )


def _meta_tests(run: Path) -> tuple[Accuracy, ...]:
    """Accuracy on test episodes, of each test that ended."""
    if not (run / META_TESTS).is_dir():
        return ()
    from coordinator.meta_test import read_results

    found = []
    for result in read_results(run):
        points = [result.accuracy[str(step)] for step in result.plan.eval_steps]
        is_single = any(point.low is None for point in points)
        curve = Curve(
            tuple(point.mean for point in points),
            None if is_single else tuple(point.low for point in points if point.low is not None),
            None if is_single else tuple(point.high for point in points if point.high is not None),
        )
        title = f"{result.plan.title}, {result.num_episodes} episodes"
        arm = f"from version {result.plan.version}"
        found.append(Accuracy(title, result.plan.eval_steps, {arm: curve}, result.chance))
    return tuple(found)


def _sweep(folder: Path, origin: Origin, files: tuple[StoredFile, ...]) -> Report:
    """A sweep, with what its best trial's run holds: in `best`, or in the folder itself where a job's was fetched."""
    content = read_json(folder / RESULT)
    try:
        table = sweep_table(content)
        seconds = {"all trials": float(content["seconds"])}
        genotype = read_json(folder / BEST).get("genotype") if (folder / BEST).is_file() else None
        found = (
            None if genotype is None else Found(genotype_of(genotype), f"The best architecture, of trial {table.best}.")
        )
    except (KeyError, TypeError, ValueError, AttributeError, InvalidInputError) as error:
        raise CorruptArtifactError(
            f"{folder / RESULT} is not a result of metasearch sweep ({type(error).__name__}: {error}); compute it again"
        ) from None
    run = next((place for place in (folder / BEST_TRIAL, folder) if (place / CONFIG).is_file()), None)
    best = Report(kind="sweep", name="", found=found) if run is None else _run(run, Origin(origin.name), ())
    ended = origin.ended or modified(folder / RESULT)
    return replace(
        best, kind="sweep", name=origin.name, began=origin.began, ended=ended, seconds=seconds, files=files, sweep=table
    )


def _demo(folder: Path, content: Mapping[str, Any], origin: Origin, files: tuple[StoredFile, ...]) -> Report:
    config = validate(content["config"])
    priors = read_priors(folder, DEMO_PRIORS, config)
    genotype = genotype_of(content["genotype"])
    return Report(
        kind="demo",
        name=origin.name,
        began=origin.began,
        ended=origin.ended or modified(folder / RESULT),
        accuracy=tuple(_panel(title, arms) for title, arms in content["panels"].items()),
        seconds={"preparing and meta-training": float(content["train_s"]), "all": float(content["total_s"])},
        found=Found(genotype, "Derived from the mean posterior over the digit tasks.", derived_cost(genotype, config)),
        ops=config.space.ops,
        posteriors=priors.posteriors,
        versions=priors.versions,
        architecture_components=priors.architecture,
        weight_components=priors.weights,
        component_versions=priors.component_versions,
        config=config,
        environment=dict(content["environment"]),
        facts=plain_facts(content, ("prior",)),
        files=files,
        notes=priors.notes,
    )


def _panel(title: str, arms: Mapping[str, Mapping[str, Mapping[str, float]]]) -> Accuracy:
    steps = tuple(sorted({int(step) for points in arms.values() for step in points}))
    missing = {"mean": float("nan"), "low": float("nan"), "high": float("nan")}
    curves = {}
    for arm, points in arms.items():
        rows = [points.get(str(step), missing) for step in steps]
        mean, low, high = (tuple(float(row[key]) for row in rows) for key in ("mean", "low", "high"))
        # An interval over one task has no width to speak of.
        is_single = all(limit != limit for limit in low)
        curves[arm] = Curve(mean) if is_single else Curve(mean, low, high)
    return Accuracy(title, steps, curves)


def _rounds(path: Path) -> tuple[Mapping[str, float], ...]:
    """Metrics by round; a last line that a crash cut short is left out."""
    if not path.is_file():
        return ()
    lines = path.read_text("utf-8", errors="replace").splitlines()
    rounds: list[Mapping[str, float]] = []
    for index, line in enumerate(lines):
        try:
            values = json.loads(line)
            rounds.append({str(name): float(value) for name, value in values.items() if _is_catalogued(name)})
            rounds[-1]["prior_version"]
        except (ValueError, TypeError, AttributeError, KeyError):
            if index == len(lines) - 1:
                rounds = rounds[:index]
                break
            raise CorruptArtifactError(
                f"line {index + 1} of {path} is not a round's metrics; remove the line, or the file to do without"
            ) from None
    return tuple(rounds)


def _is_catalogued(name: str) -> bool:
    return metric_name(name) in ROUND_METRICS


def _log_times(path: Path, rounds: Sequence[Mapping[str, float]]) -> tuple[str | None, str | None]:
    """When the first round of a log began and the last one ended, as the log has it: local to where it was written."""
    if not path.is_file():
        return None, None
    lines = path.read_text("utf-8", errors="replace").splitlines()
    ends = [(datetime.fromisoformat(match[1]), int(match[2])) for line in lines if (match := _LOG_LINE.match(line))]
    if not ends:
        return None, None
    (first, number), (last, _) = ends[0], ends[-1]
    seconds = {values["prior_version"]: values.get("round_seconds", 0.0) for values in rounds}
    began = first - timedelta(seconds=seconds.get(number, 0.0))
    return began.strftime(TIME), last.strftime(TIME)
