"""What deploy/ asks of Prometheus, as values: queries of panels and alerts, the metrics in them, what they compare."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import promql_parser as promql
import yaml

from common.metrics import GATEWAY_METRICS, RAY_METRICS, RAY_PREFIX, Metric, MetricKind

DEPLOY = Path(__file__).parents[2] / "deploy"
PROMETHEUS = DEPLOY / "prometheus"
RULES = PROMETHEUS / "rules.yml"
DASHBOARD = DEPLOY / "grafana" / "dashboards" / "metasearch.json"
_COMPARISONS = ("==", "!=", ">", "<", ">=", "<=")
_VARIABLE = re.compile(r"\$(\w+|\{\w+\})")


@dataclass(frozen=True)
class Asked:
    """A query, and who asks it."""

    where: str
    expr: str


def panels() -> list[dict[str, Any]]:
    """Panels of the dashboard, rows left out."""
    return [panel for panel in json.loads(DASHBOARD.read_text())["panels"] if panel["type"] != "row"]


def panel_queries() -> list[Asked]:
    """With every variable at All."""
    return [
        Asked(f"panel {panel['title']!r}, {target['legendFormat']}", _VARIABLE.sub(".*", target["expr"]))
        for panel in panels()
        for target in panel["targets"]
    ]


def alerts() -> list[dict[str, Any]]:
    """Alerting rules."""
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def compared(expr: str) -> list[str]:
    """What an alert compares: its query without the comparisons."""
    found = list(_left_of_comparisons(promql.parse(expr)))
    assert found, f"{expr} compares nothing"
    return found


def _left_of_comparisons(expr: Any) -> Iterator[str]:
    if isinstance(expr, promql.ParenExpr):
        yield from _left_of_comparisons(expr.expr)
    elif isinstance(expr, promql.BinaryExpr):
        if str(expr.op) not in _COMPARISONS:
            for side in (expr.lhs, expr.rhs):
                yield from _left_of_comparisons(side)
            return
        inner = list(_left_of_comparisons(expr.lhs))
        yield from inner or [str(expr.lhs)]
        if not isinstance(expr.rhs, promql.NumberLiteral):
            yield str(expr.rhs)


def selectors(expr: str) -> list[Any]:
    """The vector selectors of a query."""
    return list(_selectors(promql.parse(expr)))


def _selectors(expr: Any) -> Iterator[Any]:
    if isinstance(expr, promql.VectorSelector):
        yield expr
    elif isinstance(expr, promql.MatrixSelector):
        yield expr.vector_selector
    elif isinstance(expr, promql.BinaryExpr):
        yield from _selectors(expr.lhs)
        yield from _selectors(expr.rhs)
    elif isinstance(expr, promql.Call):
        for argument in expr.args:
            yield from _selectors(argument)
    elif isinstance(expr, promql.AggregateExpr | promql.ParenExpr | promql.SubqueryExpr | promql.UnaryExpr):
        yield from _selectors(expr.expr)
    else:
        assert isinstance(expr, promql.NumberLiteral | promql.StringLiteral), f"what is {type(expr)}?"


def series_of(metric: Metric, prefix: str = "") -> list[str]:
    """The names under which Prometheus has a metric."""
    name = prefix + metric.exported_name
    return [name + end for end in ("_bucket", "_sum", "_count")] if metric.kind is MetricKind.HISTOGRAM else [name]


def known_series() -> dict[str, Metric]:
    """All names of the catalogue in Prometheus, and what they are of."""
    gateway = {name: metric for metric in GATEWAY_METRICS for name in series_of(metric)}
    return gateway | {name: metric for metric in RAY_METRICS for name in series_of(metric, RAY_PREFIX)}
