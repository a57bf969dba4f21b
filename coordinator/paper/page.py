"""The page of a run of the paper's experiments. Pure: an outcome in, one self-contained HTML file out."""

from collections.abc import Sequence

from common.config import StudyConfig
from coordinator.html_report.axes import data_table, percent
from coordinator.html_report.cells import cell_figures
from coordinator.html_report.charts import Line, line_chart
from coordinator.html_report.document import document
from coordinator.html_report.markup import Content, Markup, element, joined
from coordinator.html_report.parts import duration
from coordinator.html_report.reading import flattened
from coordinator.html_report.scatter import Point, scatter_chart
from coordinator.paper import few_shot_tables
from coordinator.paper.anchors import FEW_SHOT_TITLE, META_EPOCHS, META_TASKS, SOURCE
from coordinator.paper.clusters import Clusters
from coordinator.paper.few_shot_outcome import FewShotOutcome
from coordinator.paper.outcome import Outcome, Table
from coordinator.paper.places import Place, is_ours, published_places, run_places
from coordinator.paper.tables import NOT_RUN, UNKNOWN, long_table, notes
from coordinator.report import mean_interval


def page(outcome: Outcome) -> str:
    """An outcome as an HTML document; the same outcome gives the same bytes."""
    sections = (
        ("summary", "Summary", _summary(outcome)),
        *((table.name, table.title, _table(outcome, table)) for table in outcome.tables),
        ("table4", FEW_SHOT_TITLE, _few_shot(outcome.few_shot)),
        ("figure2", "Figure 2: search cost and error", _figure2(outcome)),
        ("figure3", "Figure 3: posteriors of tasks", _figure3(outcome)),
        ("figure4", "Figure 4: fast adaptation", _figure4(outcome)),
        ("cells", "Cells", _cells(outcome)),
        ("configuration", "Configuration", _configuration(outcome)),
        ("environment", "Environment", _facts(list(outcome.environment.items()))),
    )
    name = f"Meta Architecture Search, {outcome.config.scale} scale"
    return document(name, "The paper's experiments", name, sections)


def _summary(outcome: Outcome) -> Markup:
    config = outcome.config
    stand_ins = [table for table in outcome.tables if table.is_stand_in]
    said: list[Content] = [element("p", f"The paper: {SOURCE}. Its figures stand beside this run's.")]
    if stand_ins:
        images = "; ".join(f"{config.image_set(table.name).name}: {table.images}" for table in stand_ins)
        said.append(
            element(
                "p",
                "This run is small, and other images stand in for the paper's. It shows that every step works; its "
                f"errors are not to be compared with the paper's. In place of {images}.",
            )
        )
    sizes = ", ".join(f"{family.image_size} pixels ({family.data.source})" for family in config.study.families)
    if stand_ins:
        said.append(element("p", f"In place of Imagenet32, Imagenet64 and Imagenet224: {sizes}."))
    few_shot = outcome.few_shot
    if few_shot.is_stand_in:
        said.append(element("p", f"In place of {few_shot.config.name}: {few_shot.images}."))
    rows = [row for table in outcome.tables for row in table.rows if row.row is not None]
    facts: list[tuple[str, Content]] = []
    if outcome.meta is None:
        facts.append(("Meta-training", "not run"))
    else:
        meta = outcome.meta
        facts.append(
            (
                "Meta-training",
                f"{meta.rounds} epochs of {meta.tasks_per_round} tasks; the paper: {META_EPOCHS} of {META_TASKS}",
            )
        )
        facts.append(("It took", f"{duration(meta.seconds)} on {meta.num_workers} workers; the paper: 8 GPU-days"))
    facts += [
        ("Networks trained and tested", f"{sum(row.trained is not None for row in rows)} of {len(rows)}"),
        ("Few-shot networks trained and tested", _count(few_shot)),
        ("Figure 2", "run" if _own_places(outcome) else "the paper's part alone; this run's: not run"),
        ("Figure 3", "run" if outcome.figure3 is not None else "not run"),
        ("Figure 4", "run" if outcome.figure4 is not None else "not run"),
    ]
    return joined(*said, _facts(facts))


def _table(outcome: Outcome, table: Table) -> Markup:
    header, rows = long_table(table, outcome.meta)
    marked = [_marked(cells, row.row is not None) for row, cells in zip(table.rows, rows, strict=True)]
    first, *others = notes(outcome, table)
    return joined(element("p", first), data_table(header, marked, table.title), _listed(others))


def _few_shot(found: FewShotOutcome) -> Markup:
    header, rows = few_shot_tables.long_table(found)
    marked = [_marked(cells, True) for cells in rows]
    first, *others = few_shot_tables.notes(found)
    return joined(element("p", first), data_table(header, marked, FEW_SHOT_TITLE), _listed(others))


def _count(found: FewShotOutcome) -> str:
    return f"{sum(row.tested is not None for row in found.rows)} of {len(found.rows)}"


def _marked(cells: Sequence[str], is_run: bool) -> list[Content]:
    """A row of a table: the name stands out where the run has such a row, what is unknown or not run steps back."""
    name: Content = element("strong", cells[0]) if is_run else cells[0]
    return [name, *(element("span", cell, class_="note") if cell in (NOT_RUN, UNKNOWN) else cell for cell in cells[1:])]


def _listed(notes: Sequence[str]) -> Markup:
    return element("ul", *(element("li", note) for note in notes), class_="note")


def _own_places(outcome: Outcome) -> tuple[Place, ...]:
    table = next(table for table in outcome.tables if table.name == "imagenet")
    return run_places(table, outcome.meta)


def _figure2(outcome: Outcome) -> Markup:
    points = [Point(place.name, place.cost, place.error) for place in published_places() if not is_ours(place)]
    ours = [Point(place.name, place.cost, place.error) for place in published_places() if is_ours(place)]
    charts = [
        scatter_chart(
            "The paper: ImageNet, as reported",
            "Search, GPU-days (log)",
            "Top-1 error (%)",
            {"others": points, "BASE, meta-training included": ours},
            is_log=True,
            has_names=True,
        )
    ]
    own = _own_places(outcome)
    table = next(table for table in outcome.tables if table.name == "imagenet")
    if own:
        groups = {place.name: [Point(place.name, place.cost, place.error, place.low, place.high)] for place in own}
        label = "Search, seconds of one worker"
        charts.append(scatter_chart(f"This run: {table.images}", label, "Top-1 error (%)", groups))
    text = (
        "Rows with both figures in the paper. The prior's ImageNet error could not be recovered from its text. "
        + (
            "This run's axes are its own: neither its errors nor its costs are comparable with the paper's. "
            if own
            else ""
        )
        + ("Bars are 95 % intervals of the choice of test images." if own else "")
    )
    rest = Markup() if own else _missing("This run's part was not run: metasearch paper figure2.")
    return joined(element("p", text), element("div", *charts, class_="charts"), rest)


def _figure3(outcome: Outcome) -> Markup:
    found = outcome.figure3
    if found is None:
        return _missing("Not run: metasearch paper figure3.")
    count = outcome.config.figure3_tasks
    text = (
        f"The prior was adapted {count} times to tasks of each family, always for "
        f"{outcome.config.study.adapt.steps} steps. Weights are the {found.num_weights:,} of the cells; heads and "
        "classifiers are left out. Silhouettes (-1 to 1, of whole vectors) say how much nearer a posterior lies to its "
        "own family than to the next. The paper shows CIFAR10 closest together, Imagenet224 near Imagenet64, and "
        "CIFAR10 as a cluster of its own near Imagenet32."
    )
    parts = (("Weights of the cells", found.weights), ("Architecture posterior", found.architecture))
    charts = [_component_chart(title, group) for title, group in parts]
    rows = [
        [
            family,
            *(
                value
                for _, group in parts
                for value in (
                    f"{group.silhouettes[family]:+.3f}",
                    f"{group.spreads[family]:.2f}",
                    group.nearest[family],
                )
            ),
        ]
        for family in parts[0][1].silhouettes
    ]
    rows.append(["all", f"{found.weights.silhouette:+.3f}", "", "", f"{found.architecture.silhouette:+.3f}", "", ""])
    header = [
        "family",
        *(f"{what}: {name}" for what in ("weights", "architecture") for name in ("silhouette", "spread", "nearest")),
    ]
    note = "Spread: mean distance from the family's mean, as a multiple of the families' average."
    return joined(
        element("p", text),
        element("div", *charts, class_="charts"),
        element("h3", "Silhouettes"),
        data_table(header, rows, "Silhouettes"),
        element("p", note, class_="note"),
    )


def _component_chart(title: str, group: Clusters) -> Markup:
    first, second = group.components.explained
    groups: dict[str, list[Point]] = {}
    for number, (family, (x, y)) in enumerate(zip(group.families, group.components.points.tolist(), strict=True)):
        groups.setdefault(family, []).append(Point(str(number % (len(group.families) // len(group.silhouettes))), x, y))
    return scatter_chart(
        f"{title}: {percent(first + second)} of the variance",
        f"component 1 ({percent(first)})",
        f"component 2 ({percent(second)})",
        groups,
    )


def _figure4(outcome: Outcome) -> Markup:
    found = outcome.figure4
    if found is None:
        return _missing("Not run: metasearch paper figure4.")
    lines = []
    for name, values in found.arms.items():
        interval = mean_interval(values)
        lines.append(Line(name, interval.mean.tolist(), interval.low.tolist(), interval.high.tolist()))
    figure = outcome.config.figure4
    text = (
        f"{figure.repeats} times with other images and orders; all arms see the same images in the same order. Bands "
        "are 95 % intervals over these. BASE draws Gumbel noise at every step, as in meta-training; from scratch there "
        "is none, as in DARTS. Accuracy is transductive: BatchNorm takes the statistics of the held-out images. The "
        "paper shows BASE above both others."
    )
    caption = f"Accuracy while adapting to {found.images}"
    places = [float(epoch) for epoch in found.epochs]
    chart = line_chart(caption, "Epochs", "Accuracy", places, lines, percent, (0.0, 1.0), ("chance", found.chance))
    return joined(element("p", text), element("div", chart, class_="charts"))


def _cells(outcome: Outcome) -> Markup:
    parts: list[Content] = []
    for cell in outcome.cells:
        parts.append(element("h3", cell.title))
        if cell.genotype is None:
            parts.append(_missing(cell.origin))
        else:
            parts += [element("p", cell.origin), cell_figures(cell.genotype)]
    return joined(*parts)


def _configuration(outcome: Outcome) -> Markup:
    defaults = dict(flattened(StudyConfig().model_dump(mode="json")))
    rows = [
        [element("code", name), element("code", str(value))]
        for name, value in flattened(outcome.config.model_dump(mode="json"))
        if defaults.get(name.removeprefix("study.")) != value
    ]
    table = data_table(["field", "value"], rows, "Configuration")
    title = f"{len(rows)} fields of the run; of the study, those that differ from their defaults"
    return element("details", element("summary", title), table, class_="printed")


def _facts(facts: Sequence[tuple[str, Content]]) -> Markup:
    pairs = (element("div", element("dt", name), element("dd", str(value))) for name, value in facts)
    return element("dl", *pairs, class_="facts")


def _missing(sentence: str) -> Markup:
    return element("p", sentence, class_="missing")
