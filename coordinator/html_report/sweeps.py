"""A sweep in a report: its trials as a table, the metric over their rounds, and over each field that was swept."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from coordinator.html_report.axes import data_table, percent, significant
from coordinator.html_report.charts import Line, line_chart
from coordinator.html_report.markup import Content, Markup, element, joined
from coordinator.html_report.scatter import Point, scatter_chart

MOST_LINES = 8  # the best trials; more could not be told apart
LOG_SCALE_FROM = 30.0  # ratio of the largest to the least value of a field
_RESULT_KIND = "sweep"


@dataclass(frozen=True)
class SweepTable:
    """What a sweep's result says.

    Attributes:
        metric: that trials were compared by.
        is_maximised: whether more of it is better.
        unit: rounds or epochs.
        keys: fields that were swept.
        best: number of the best trial; None where none was measured.
        trials: rows of result.json, see `coordinator.sweep`.
        summary: how it was done, by name.
    """

    metric: str
    is_maximised: bool
    unit: str
    keys: tuple[str, ...]
    best: int | None
    trials: tuple[Mapping[str, Any], ...]
    summary: Mapping[str, str]


def is_sweep(content: Mapping[str, Any]) -> bool:
    """Whether a result is a sweep's."""
    return content.get("kind") == _RESULT_KIND


def sweep_table(content: Mapping[str, Any]) -> SweepTable:
    """What a sweep's result.json says.

    Raises:
        KeyError, TypeError, ValueError: it is not such a result.
    """
    states = [str(row["state"]) for row in content["trials"]]
    counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    return SweepTable(
        metric=str(content["metric"]),
        is_maximised=content["mode"] == "max",
        unit=str(content["unit"]),
        keys=tuple(str(key) for key in content["keys"]),
        best=None if content["best"] is None else int(content["best"]),
        trials=tuple(content["trials"]),
        summary={
            "Trials": f"{len(states)} of {int(content['num_trials'])}: {counts}"
            + ("" if content["is_over"] else "; not over"),
            "Searcher and scheduler": f"{content['searcher']}, {content['scheduler']}",
        },
    )


def sweep_section(table: SweepTable) -> Markup:
    """The section of a page."""
    measured = [row for row in table.trials if row["value"] is not None]
    parts: list[Content] = []
    if table.best is not None:
        parts.append(
            element(
                "p",
                f"Trial {table.best} is best by {table.metric}. The sections below are of its study.",
            )
        )
    if measured:
        parts.append(element("div", _curves(table), *_scatters(table, measured), class_="charts"))
    parts.append(element("h3", "All trials"))
    parts.append(_table(table))
    return joined(*parts)


def _best_first(table: SweepTable) -> list[Mapping[str, Any]]:
    sign = -1 if table.is_maximised else 1
    return sorted(
        table.trials,
        key=lambda row: (row["trial"] != table.best, row["value"] is None, sign * (row["value"] or 0.0)),
    )


def _curves(table: SweepTable) -> Markup:
    shown = [row for row in _best_first(table) if row["curve"]][:MOST_LINES]
    points = {row["trial"]: {int(p["rounds"]): p.get(table.metric) for p in row["curve"]} for row in shown}
    places = sorted({place for by_round in points.values() for place in by_round})
    lines = [
        Line(
            f"trial {row['trial']}",
            [float("nan") if value is None else float(value) for value in map(points[row["trial"]].get, places)],
        )
        for row in shown
    ]
    count = len([row for row in table.trials if row["curve"]])
    which = "" if count <= len(shown) else f", the best {len(shown)} of {count} trials"
    caption = f"{table.metric} over {table.unit}{which}"
    written = percent if table.metric == "accuracy" else significant
    return line_chart(caption, table.unit.capitalize(), table.metric, places, lines, written)


def _scatters(table: SweepTable, measured: Sequence[Mapping[str, Any]]) -> list[Markup]:
    """For every swept field, the metric of each trial over its value."""
    written = percent if table.metric == "accuracy" else significant
    charts = []
    for key in table.keys:
        values = [row["values"][key] for row in measured]
        numeric = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
        is_log = numeric and min(values) > 0 and max(values) >= LOG_SCALE_FROM * min(values)
        texts = [value if isinstance(value, str) else json.dumps(value) for value in values]
        categories = [] if numeric else sorted(set(texts))
        groups: dict[str, list[Point]] = {"trials": [], f"the best, trial {table.best}": []}
        for row, value, text in zip(measured, values, texts, strict=True):
            x = float(value) if numeric else float(categories.index(text))
            group = list(groups.values())[row["trial"] == table.best]
            group.append(Point(f"trial {row['trial']}", x, float(row["value"])))
        shown = {name: points for name, points in groups.items() if points}
        charts.append(
            scatter_chart(
                f"{table.metric} over {key}", key, table.metric, shown, is_log, written=written, categories=categories
            )
        )
    return charts


def _table(table: SweepTable) -> Markup:
    has_tests = any("test" in row for row in table.trials)
    header = ["trial", "state", table.unit, table.metric, "95 % interval", *table.keys]
    header += ["on test images", "parameters"] if has_tests else []
    rows: list[list[Content]] = []
    for row in _best_first(table):
        cells: list[Content] = [
            element("strong", f"{row['trial']} (best)") if row["trial"] == table.best else str(row["trial"]),
            str(row["state"]) + (f": {row['failure']}" if row["failure"] else ""),
            str(row["rounds"]),
            "-" if row["value"] is None else significant(float(row["value"])),
            _limits(row["interval_95"]),
        ]
        values = (row["values"][key] for key in table.keys)
        cells += [significant(value) if isinstance(value, float) else json.dumps(value) for value in values]
        if has_tests:
            test = row.get("test")
            cells.append("-" if test is None else f"{significant(test['accuracy'])} ({_limits(test['interval_95'])})")
            cells.append("-" if test is None else f"{test['num_params']:,}")
        rows.append(cells)
    return data_table(header, rows, "Trials")


def _limits(interval: Sequence[float] | None) -> str:
    return "-" if interval is None else f"{significant(float(interval[0]))} to {significant(float(interval[1]))}"
