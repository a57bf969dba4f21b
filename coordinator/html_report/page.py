"""The page: a report as one HTML file. Pure; the same report gives the same bytes.

No script, no font, no image comes from elsewhere. It follows the reader's choice of light or dark, prints in black on
white with everything unfolded, and is as narrow as a telephone where it has to be.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from common.space.topology import Topology
from common.telemetry import metric_name
from coordinator.html_report.axes import data_table, percent, significant
from coordinator.html_report.cells import cell_figures, source_name
from coordinator.html_report.charts import Line, heatmap, line_chart, path_chart, stacked_bars
from coordinator.html_report.document import document
from coordinator.html_report.front import front_section
from coordinator.html_report.markup import Content, Markup, element, joined
from coordinator.html_report.parts import chart_grid, duration, facts_list, missing, ranges
from coordinator.html_report.pca import Components
from coordinator.html_report.records import configuration, environment, provenance
from coordinator.html_report.report import Accuracy, Kind, Report
from coordinator.html_report.sweeps import sweep_section

LEAST_TOP = 0.5  # probability of a heatmap's darkest field at least: an undecided posterior should look pale

_KINDS: Mapping[Kind, str] = {
    "run": "Meta-training run",
    "demo": "Demo",
    "adaptation": "Adaptation to one task",
    "evaluation": "Full network, trained and tested",
    "few_shot": "Images labelled by a handful of others",
    "sweep": "Sweep",
    "front": "Pareto front of one prior",
}
_OF_ONE_TASK = ("adaptation", "few_shot")
_NO_ARCHITECTURE = "The study learns weights alone: few_shot.network gives its network."


def page(report: Report) -> str:
    """A report as an HTML document."""
    front = () if report.front is None else (("front", "Cost and quality", front_section(report.front)),)
    sections = (
        ("summary", "Summary", _summary(report)),
        *([] if report.sweep is None else [("trials", "Trials", sweep_section(report.sweep))]),
        *front,
        *([("labels", "Labels", _labels(report))] if report.predictions else []),
        ("curves", "Learning curves", _curves(report)),
        ("cells", "Cells", _cells(report)),
        ("posterior", "Architecture posterior", _posterior(report)),
        ("components", "Course of the prior", _components(report)),
        ("cost", "Cost", _cost(report)),
        ("configuration", "Configuration", configuration(report)),
        ("environment", "Environment", environment(report)),
        ("provenance", "Provenance", provenance(report)),
    )
    if report.kind == "front":  # the rest is in the run's report
        sections = (sections[0], *front, sections[-1])
    if report.kind == "evaluation":  # no architecture was learnt
        sections = tuple(section for section in sections if section[0] not in ("posterior", "components"))
    return document(f"{report.name}: {_KINDS[report.kind].lower()}", _KINDS[report.kind], report.name, sections)


def _summary(report: Report) -> Markup:
    facts: list[tuple[str, str]] = [("What", _KINDS[report.kind])]
    if report.task is not None:
        facts.append(("Task", _task(report.task)))
    if report.began is not None:
        facts.append(("Began", report.began))
    if report.ended is not None:
        facts.append(("Ended", report.ended))
    facts += [(f"Took ({name})", duration(value)) for name, value in report.seconds.items()]
    facts += report.summary.items()
    if report.sweep is not None:
        facts += report.sweep.summary.items()
    if report.config is not None and report.kind == "run":
        done = int(report.rounds[-1]["prior_version"]) if report.rounds else max(report.versions, default=0)
        facts.append(("Rounds", f"{done} of {report.config.rounds}"))
    if report.rounds and "train_loss_last" in report.rounds[-1]:
        first, last = (report.rounds[-1].get(f"train_loss_{end}", float("nan")) for end in ("first", "last"))
        facts.append(("Loss in the last round", f"{first:.3f} to {last:.3f} nats"))
    if report.rounds and "query_accuracy" in report.rounds[-1]:
        facts.append(("Query accuracy in the last round", percent(report.rounds[-1]["query_accuracy"])))
    facts += [(f"Accuracy, {panel.title}: {arm}", _last(panel, arm)) for panel in report.accuracy for arm in panel.arms]
    if report.found is not None and report.found.cost is not None:
        cost = report.found.cost
        facts.append(("Derived network", f"{cost.num_params:,} parameters, {cost.num_macs:,} MACs"))
    wrong = [file for file in report.files if file.state in ("altered", "missing")]
    notes = [element("p", note, class_="bad") for note in report.notes]
    if wrong:
        names = ", ".join(file.name for file in wrong)
        notes.append(element("p", f"Not as the manifests say: {names}.", class_="bad"))
    return joined(*notes, facts_list(facts))


def _labels(report: Report) -> Markup:
    rows = [[each.name, each.label, percent(each.probability)] for each in report.predictions]
    return data_table(["image", "label", "probability"], rows, "Labels")


def _curves(report: Report) -> Markup:
    charts: list[Markup] = []
    step = "Epoch" if report.kind == "evaluation" else "Adaptation step"
    for panel in report.accuracy:
        lines = [Line(arm, curve.mean, curve.low, curve.high) for arm, curve in panel.arms.items()]
        level = None if panel.chance is None else ("chance", panel.chance)
        has_bands = any(curve.low is not None for curve in panel.arms.values())
        images = "Accuracy" if report.kind == "evaluation" else "Accuracy on held-out images"
        caption = f"{images}, {panel.title}" + (", with 95 % intervals over tasks" if has_bands else "")
        chart = line_chart(caption, f"{step}s", "Accuracy", panel.steps, lines, percent, (0.0, 1.0), level)
        charts.append(chart)
    if report.train_losses:
        steps = range(1, len(report.train_losses) + 1)
        losses = [Line("Loss (nats)", report.train_losses)]
        charts.append(
            line_chart(
                f"Training objective, {step.split()[-1].lower()} by {step.split()[-1].lower()}",
                step,
                "Loss (nats)",
                steps,
                losses,
            )
        )
    if report.rounds:
        lines = [
            Line("first step", _metric(report, "train_loss_first")),
            Line("last step", _metric(report, "train_loss_last")),
        ]
        caption = "Training objective of a round's tasks, mean over its tasks"
        charts.append(line_chart(caption, "Round", "Loss (nats)", _versions(report), lines))
        moves = [Line("Length of the move", _metric(report, "update_norm"))]
        if "query_accuracy" in report.rounds[-1]:
            charts += _query_charts(report)
        caption = "How far a round moved the prior's weights"
        charts.append(line_chart(caption, "Round", "Length of the move", _versions(report), moves))
        if any(values.get("staleness_max") for values in report.rounds):
            stale = [Line("mean", _metric(report, "staleness_mean")), Line("at most", _metric(report, "staleness_max"))]
            caption = "Staleness: versions made since a version's tasks began"
            charts.append(line_chart(caption, "Round", "Versions", _versions(report), stale))
    if not charts:
        return missing("There are no learning curves: no round has ended yet, or rounds.jsonl is not in the folder.")
    return chart_grid(charts)


def _query_charts(report: Report) -> list[Markup]:
    """What few-shot tasks of meta-training did on their query images."""
    accuracy = [Line("Accuracy", _metric(report, "query_accuracy"))]
    losses = [Line("Loss (nats)", _metric(report, "query_loss"))]
    caption = "on the query images of a round's tasks, after their last step"
    versions = _versions(report)
    return [
        line_chart(f"Accuracy {caption}", "Round", "Accuracy", versions, accuracy, percent, (0.0, 1.0)),
        line_chart(f"Loss {caption}", "Round", "Loss (nats)", versions, losses),
    ]


def _cells(report: Report) -> Markup:
    if report.found is None and _has_no_architecture(report):
        return missing(_NO_ARCHITECTURE)
    if report.found is None:
        return missing("There is no architecture to draw: the folder holds no intact prior.")
    origin = report.found.origin
    if report.found.probability is not None:
        origin += f" Its probability is {significant(report.found.probability)}."
    return joined(element("p", origin), cell_figures(report.found.genotype))


def _has_no_architecture(report: Report) -> bool:
    """Whether the study's network leaves no architecture to learn."""
    few_shot = None if report.config is None else report.config.few_shot
    return few_shot is not None and not few_shot.learns_architecture


def _posterior(report: Report) -> Markup:
    if _has_no_architecture(report):
        return missing(_NO_ARCHITECTURE)
    parts: list[Content] = []
    if report.posteriors:
        kinds = list(report.posteriors[0].probabilities)
        if report.kind in _OF_ONE_TASK:
            parts.append(element("p", "The adapted posterior: on every edge, the probability of each op."))
        else:
            shown = ", ".join(posterior.label for posterior in report.posteriors)
            count = len(report.versions)
            kept = "all" if count == len(report.posteriors) else f"of the {count}"
            sentence = f"On every edge, the probability of each op. Shown: version {shown}, {kept} that are kept"
            which = "" if kept == "all" else f" ({ranges(report.versions)})"
            parts.append(element("p", f"{sentence}{which}. checkpoint.keep_last says how many are."))
        for kind in kinds:
            top = max(LEAST_TOP, *(float(posterior.probabilities[kind].max()) for posterior in report.posteriors))
            maps = [
                heatmap(
                    f"{kind} cell, {'adapted' if report.kind == 'adaptation' else f'version {posterior.label}'}",
                    _edge_names(len(posterior.probabilities[kind])),
                    report.ops,
                    posterior.probabilities[kind],
                    top,
                )
                for posterior in report.posteriors
            ]
            parts.append(chart_grid(maps))
    else:
        parts.append(missing("There are no heatmaps: the folder holds no intact prior."))
    parts.append(element("h3", "Entropy and strongest ops over the rounds"))
    charts = [*_entropy(report), *_histograms(report)]
    if charts:
        parts.append(chart_grid(charts))
    elif report.entropies:
        values = ", ".join(f"{kind} {value:.3f} nats" for kind, value in report.entropies.items())
        parts.append(element("p", f"Mean entropy of the adapted posterior: {values}. An adaptation has no rounds."))
    else:
        parts.append(missing("They are not in the folder: metasearch train writes them to rounds.jsonl."))
    return joined(*parts)


def _entropy(report: Report) -> list[Markup]:
    kinds = _kinds(report, "alpha_entropy")
    if not kinds:
        return []
    lines = [Line(f"{kind} cell", _metric(report, f"alpha_entropy/{kind}")) for kind in kinds]
    level = None
    if report.config is not None and report.config.space.normalisation == "edge":
        level = ("undecided", float(np.log(len(report.config.space.ops))))
    caption = "Mean entropy of the architecture's categoricals"
    return [line_chart(caption, "Round", "Entropy (nats)", _versions(report), lines, level=level)]


def _histograms(report: Report) -> list[Markup]:
    charts = []
    for kind in _kinds(report, "strongest_op_edges"):
        prefix = f"strongest_op_edges/{kind}/"
        ops = [name.removeprefix(prefix) for name in report.rounds[-1] if name.startswith(prefix)]
        counts = {op: [value if value == value else 0.0 for value in _metric(report, prefix + op)] for op in ops}
        caption = f"Edges by their most probable op, {kind} cell"
        charts.append(stacked_bars(caption, "Round", "Edges", _versions(report), counts))
    return charts


def _components(report: Report) -> Markup:
    count = len(report.component_versions)
    if report.kind in _OF_ONE_TASK:
        return missing("An adaptation starts from one version of a prior; its course is in the run's report.")
    if report.weight_components is None:
        return missing(
            f"Principal components need at least 3 versions of the prior, {count} are kept; "
            "set checkpoint.keep_last to keep more."
        )
    names = [str(version) for version in report.component_versions]
    charts = [_component_chart("Weights", report.weight_components, names)]
    if report.architecture_components is not None:
        charts.insert(0, _component_chart("Architecture posterior", report.architecture_components, names))
    text = (
        f"The first two principal components of {count} kept versions ({ranges(report.component_versions)}), "
        "in their order. Points are labelled by version."
    )
    return joined(element("p", text), chart_grid(charts))


def _component_chart(what: str, components: Components, names: Sequence[str]) -> Markup:
    first, second = components.explained
    if first == 0:
        return missing(f"{what}: the kept versions do not differ.")
    caption = f"{what}: {percent(first + second)} of the variance"
    labels = (f"component 1 ({percent(first)})", f"component 2 ({percent(second)})")
    return path_chart(caption, *labels, names, components.points)


def _cost(report: Report) -> Markup:
    facts: list[tuple[str, str]] = []
    if report.found is not None and report.found.cost is not None:
        facts.append(("Parameters of the derived network", f"{report.found.cost.num_params:,}"))
        facts.append(("Multiply-accumulates for one image", f"{report.found.cost.num_macs:,}"))
    facts += [(f"Took ({name})", duration(value)) for name, value in report.seconds.items()]
    if report.images_per_s is not None:
        facts.append(("Training images per second", significant(report.images_per_s)))
    if report.rounds:
        speeds = [value for value in _metric(report, "images_per_second") if value == value]
        if speeds:
            median = f"{significant(float(np.median(speeds)))} (median of the rounds)"
            facts.append(("Training images per second of a worker", median))
    if not facts:
        return missing("Nothing about cost is in the folder: it holds neither rounds nor an intact prior.")
    charts = []
    if report.rounds:
        speed = [Line("Images per second", _metric(report, "images_per_second"))]
        charts.append(
            line_chart("Training images per second of a worker", "Round", "Images per second", _versions(report), speed)
        )
        seconds = [Line("Seconds", _metric(report, "round_seconds"))]
        charts.append(line_chart("Wall clock of a round", "Round", "Seconds", _versions(report), seconds))
    return joined(
        facts_list(facts), element("h3", "Over the rounds") if charts else "", chart_grid(charts) if charts else ""
    )


def _task(task: Mapping[str, Any]) -> str:
    classes = task["classes"]
    return f"{len(classes)} classes of {task['data']['source']}, {task['image_size']} pixels"


def _last(panel: Accuracy, arm: str) -> str:
    curve = panel.arms[arm]
    text = f"{percent(curve.mean[-1])} after {panel.steps[-1]} steps"
    if curve.low is not None and curve.high is not None:
        text += f" (95 % interval {percent(curve.low[-1])} to {percent(curve.high[-1])})"
    return text


def _metric(report: Report, name: str) -> list[float]:
    """A metric over the rounds; NaN where a round has none."""
    return [values.get(name, float("nan")) for values in report.rounds]


def _versions(report: Report) -> list[float]:
    return [values["prior_version"] for values in report.rounds]


def _kinds(report: Report, metric: str) -> list[str]:
    """Kinds of cell that a metric has, in order."""
    if not report.rounds:
        return []
    names = [name for name in report.rounds[-1] if metric_name(name) == metric]
    return list(dict.fromkeys(name.split("/")[1] for name in names if "/" in name))


def _edge_names(num_edges: int) -> list[str]:
    """Names of the edges of a cell with that many of them: "node 0 to 3"."""
    num_nodes = next(nodes for nodes in range(1, num_edges + 1) if Topology(nodes).num_edges >= num_edges)
    return [f"{_short(edge.source)}\N{RIGHTWARDS ARROW}{edge.node}" for edge in Topology(num_nodes).edges][:num_edges]


def _short(source: int) -> str:
    return source_name(source).removeprefix("node ")
