"""Reads what a folder holds - a run's, a demo's, an adaptation's, a job's - into one value that a page can be made of.

Torch is imported only where priors are read.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from common.config import StudyConfig, validate
from common.cost import Cost, network_cost
from common.errors import CorruptArtifactError, InvalidInputError, NotFoundError, UnavailableError
from common.space.genotype import Genotype, derive
from common.storage import ArtifactFolder
from common.telemetry import ROUND_METRICS, metric_name
from coordinator.html_report.axes import evenly
from coordinator.html_report.pca import Components, principal_components
from coordinator.html_report.provenance import PRIOR_STEM, StoredFile, stored_files
from coordinator.html_report.report import Accuracy, Curve, Found, Origin, Posterior, Report
from coordinator.html_report.sweeps import is_sweep, sweep_table
from coordinator.pareto import FRONT

if TYPE_CHECKING:
    from common.meta.prior import Prior

CONFIG, ROUNDS, LOG, RESULT = "config.json", "rounds.jsonl", "train.log", "result.json"
BEST, BEST_TRIAL = "best.json", "best"  # of a sweep
ADAPTATION = "adapt"  # where `metasearch adapt` leaves its results in a run's folder
PARETO = "pareto"  # likewise `metasearch pareto`
META_TESTS = "test"  # likewise `metasearch test`, a folder for each
DEMO_PRIORS = "service/artifacts/tenants/local/studies/demo/priors"
MOST_HEATMAPS = 6  # versions shown
MOST_COMPONENTS = 64  # versions whose weights are in memory together
_TIME = "%Y-%m-%d %H:%M:%S"
_LOG_LINE = re.compile(r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d),\d+ .* round (\d+)/")


@dataclass(frozen=True, eq=False)
class _Priors:
    """What the kept priors of a study say."""

    versions: tuple[int, ...] = ()
    posteriors: tuple[Posterior, ...] = ()
    component_versions: tuple[int, ...] = ()
    architecture: Components | None = None
    weights: Components | None = None
    notes: tuple[str, ...] = ()


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
    if (folder / RESULT).is_file() and is_sweep(_json(folder / RESULT)):
        return _sweep(folder, origin, files)
    if (folder / CONFIG).is_file():
        return _run(folder, origin, files)
    if (folder / FRONT.name).is_file():
        front = FRONT.read(ArtifactFolder(folder))
        ended = origin.ended or _modified(folder / FRONT.name)
        facts = {"prior": front.prior}
        return Report("front", origin.name, origin.began, ended, facts=facts, files=files, front=front)
    if not (folder / RESULT).is_file():
        raise NotFoundError(
            f"{folder} holds neither {CONFIG} nor {RESULT}; give the folder of a run (metasearch train --run), a demo, "
            "an adaptation (metasearch adapt --out), or of a job's artifacts (metasearch result JOB --out)"
        )
    content = _json(folder / RESULT)
    try:
        if "panels" in content:
            return _demo(folder, content, origin, files)
        return _adaptation(folder, content, origin, files)
    except (KeyError, TypeError, ValueError, AttributeError, InvalidInputError) as error:
        raise CorruptArtifactError(
            f"{folder / RESULT} is not a result of metasearch demo, adapt or submit ({type(error).__name__}: {error}); "
            "fetch or compute it again"
        ) from None


def _run(folder: Path, origin: Origin, files: tuple[StoredFile, ...]) -> Report:
    config = _config(folder / CONFIG)
    priors = _read_priors(folder, "priors", config)
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
        found=_found_by(priors, config),
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
    content = _json(folder / RESULT)
    try:
        table = sweep_table(content)
        seconds = {"all trials": float(content["seconds"])}
        genotype = _json(folder / BEST).get("genotype") if (folder / BEST).is_file() else None
        found = (
            None if genotype is None else Found(_genotype(genotype), f"The best architecture, of trial {table.best}.")
        )
    except (KeyError, TypeError, ValueError, AttributeError, InvalidInputError) as error:
        raise CorruptArtifactError(
            f"{folder / RESULT} is not a result of metasearch sweep ({type(error).__name__}: {error}); compute it again"
        ) from None
    run = next((place for place in (folder / BEST_TRIAL, folder) if (place / CONFIG).is_file()), None)
    best = Report(kind="sweep", name="", found=found) if run is None else _run(run, Origin(origin.name), ())
    ended = origin.ended or _modified(folder / RESULT)
    return replace(
        best, kind="sweep", name=origin.name, began=origin.began, ended=ended, seconds=seconds, files=files, sweep=table
    )


def _demo(folder: Path, content: Mapping[str, Any], origin: Origin, files: tuple[StoredFile, ...]) -> Report:
    config = validate(content["config"])
    priors = _read_priors(folder, DEMO_PRIORS, config)
    genotype = _genotype(content["genotype"])
    return Report(
        kind="demo",
        name=origin.name,
        began=origin.began,
        ended=origin.ended or _modified(folder / RESULT),
        accuracy=tuple(_panel(title, arms) for title, arms in content["panels"].items()),
        seconds={"preparing and meta-training": float(content["train_s"]), "all": float(content["total_s"])},
        found=Found(genotype, "Derived from the mean posterior over the digit tasks.", _cost(genotype, config)),
        ops=config.space.ops,
        posteriors=priors.posteriors,
        versions=priors.versions,
        architecture_components=priors.architecture,
        weight_components=priors.weights,
        component_versions=priors.component_versions,
        config=config,
        environment=dict(content["environment"]),
        facts=_plain_facts(content, ("prior",)),
        files=files,
        notes=priors.notes,
    )


def _adaptation(folder: Path, content: Mapping[str, Any], origin: Origin, files: tuple[StoredFile, ...]) -> Report:
    posterior = content["architecture_posterior"]
    ops = tuple(str(name) for name in posterior["ops"])
    probabilities = {kind: np.array(rows, dtype=np.float64) for kind, rows in posterior["probabilities"].items()}
    for kind, matrix in probabilities.items():
        if matrix.ndim != 2 or matrix.shape[1] != len(ops):
            raise ValueError(f"probabilities of {kind} must have one column per op, got the shape {matrix.shape}")
    evaluations = content["evaluations"]
    num_classes = len(content["task"]["classes"])
    cost = content.get("network")
    panels = [(f"{num_classes}-way task", "from the prior", evaluations)]
    if "derived_network" in content:
        panels.append(("Derived network, fine-tuned", "inherited weights", content["derived_network"]["evaluations"]))
    return Report(
        kind="adaptation",
        name=origin.name,
        began=origin.began,
        ended=origin.ended or _modified(folder / RESULT),
        task=content["task"],
        accuracy=tuple(
            Accuracy(
                title,
                tuple(int(each["step"]) for each in of_panel),
                {arm: Curve(tuple(float(each["accuracy"]) for each in of_panel))},
                1 / num_classes,
            )
            for title, arm, of_panel in panels
        ),
        train_losses=tuple(float(loss) for loss in content["train_losses_nats"]),
        seconds={"adaptation": float(content["adapt_s"])},
        images_per_s=float(content["images_per_s"]),
        found=Found(
            _genotype(content["genotype"]),
            f"Derived from the adapted posterior by the rule {content['derivation']}.",
            None if cost is None else Cost(int(cost["num_params"]), int(cost["num_macs"])),
            content.get("probability"),
        ),
        ops=ops,
        posteriors=(Posterior("adapted", probabilities),),
        entropies={kind: float(value) for kind, value in posterior["entropy_nats"].items()},
        environment=dict(content["environment"]),
        facts=_plain_facts(content, ("prior", "job", "limits", "evaluation_mode", "batch_size"))
        | _plain_facts(content.get("derived_network", {}), ("inductive", "inductive_mode", "input", "fine_tune_s")),
        files=files,
    )


def _read_priors(folder: Path, below: str, config: StudyConfig) -> _Priors:
    """Posteriors and components of the priors in `folder`/`below`; one that is damaged is noted and left out."""
    stems = [path.stem for path in sorted((folder / below).glob("*.json")) if PRIOR_STEM.match(path.stem)]
    if not stems:
        return _Priors()
    from common.artifacts import load_prior

    wanted = [stems[index] for index in evenly(len(stems), MOST_COMPONENTS)]
    notes: list[str] = []
    priors: list[Prior] = []
    for stem in wanted:
        version = int(stem[:8])
        try:
            priors.append(load_prior(ArtifactFolder(folder), f"{below}/{stem}", version))
        except NotFoundError:
            continue  # a run that goes on has removed it meanwhile
        except CorruptArtifactError as error:
            notes.append(f"Prior version {version} is left out, as it is damaged: {error}.")
    if not priors:
        return _Priors(notes=tuple(notes))
    found = [_probabilities(prior, config) for prior in priors if prior.has_architecture]
    shown = evenly(len(found), MOST_HEATMAPS)
    architecture = weights = None
    if len(found) >= 3:
        architecture = principal_components([np.concatenate([each.ravel() for each in by.values()]) for by in found])
    if len(priors) >= 3:
        weights = principal_components(
            [np.concatenate([prior.vectors[name] for name in sorted(prior.weight_names)]) for prior in priors]
        )
    return _Priors(
        versions=tuple(int(stem[:8]) for stem in stems),
        posteriors=tuple(Posterior(str(priors[index].version), found[index]) for index in shown),
        component_versions=tuple(prior.version for prior in priors),
        architecture=architecture,
        weights=weights,
        notes=tuple(notes),
    )


def _probabilities(prior: "Prior", config: StudyConfig) -> dict[str, NDArray[np.float64]]:
    from common.meta.posterior import probabilities

    space = config.space
    matrices = probabilities(prior.alpha(config), space.topology, space.normalisation).numpy()
    return dict(zip(space.cell_kinds, matrices, strict=True))


def _found_by(priors: _Priors, config: StudyConfig) -> Found | None:
    """The architecture that the latest kept version stands for, or the study's own."""
    if config.few_shot is not None and config.few_shot.genotype is not None:
        genotype = config.few_shot.genotype
        return Found(genotype, "The study's own, which learns weights alone.", _cost(genotype, config))
    if not priors.posteriors:
        return None
    latest = priors.posteriors[-1]
    genotype = derive(latest.probabilities, config.space.topology, config.space.ops)
    return Found(genotype, f"Derived from version {latest.label} of the prior.", _cost(genotype, config))


def _cost(genotype: Genotype, config: StudyConfig) -> Cost:
    """Of the derived network for tasks of the first family."""
    family = config.families[0]
    return network_cost(genotype, config.space, config.network, family.image_size, family.num_ways)


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


def _plain_facts(content: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Values of a result by dotted name; what is not there is left out."""
    return {
        name: value
        for key in names
        if key in content
        for name, value in flattened(content[key], key)
        if value is not None
    }


def flattened(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Leaves of a tree of tables and lists of tables, by dotted name; lists of plain values stay whole."""
    if isinstance(value, Mapping) and value:
        for key in value:
            yield from flattened(value[key], f"{name}.{key}" if name else str(key))
    elif isinstance(value, list | tuple) and value and all(isinstance(each, Mapping) for each in value):
        for index, each in enumerate(value):
            yield from flattened(each, f"{name}.{index}")
    else:
        yield name, value


def _genotype(content: Any) -> Genotype:
    return Genotype.from_json(json.dumps(content))


def _config(path: Path) -> StudyConfig:
    try:
        return validate(_json(path))
    except InvalidInputError as error:
        raise CorruptArtifactError(
            f"{path} is not a configuration of this version: {error}; restore it, or use the version that wrote it"
        ) from None


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise UnavailableError(f"cannot read {path}: {error}; check permissions") from None
    except ValueError as error:
        raise CorruptArtifactError(f"{path} is not JSON: {error}; restore it, or compute it again") from None
    if not isinstance(content, dict):
        raise CorruptArtifactError(f"{path} must hold a JSON object; restore it, or compute it again")
    return content


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
    return began.strftime(_TIME), last.strftime(_TIME)


def _modified(path: Path) -> str:
    return datetime.fromtimestamp(path.stat().st_mtime, UTC).strftime(f"{_TIME} UTC")
