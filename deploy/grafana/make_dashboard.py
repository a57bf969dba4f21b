"""Writes dashboards/metasearch.json, the Grafana dashboard of the service.

    python deploy/grafana/make_dashboard.py [--check]

With `--check` nothing is written: the exit status says whether the file is as it would be. The panels are in
service_panels.py and learning_panels.py.
"""

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from learning_panels import LEARNING
from panels import BLUE, ORANGE, VERMILION, Panel
from service_panels import GATEWAY, GLANCE, JOBS, NODES, STORE, WORK

from common.metrics import JOB_KINDS
from common.space.primitives import (
    AVG_POOL,
    CONV_7X1_1X7,
    DIL_CONV_3,
    DIL_CONV_5,
    MAX_POOL,
    NONE,
    SEP_CONV_3,
    SEP_CONV_5,
    SEP_CONV_7,
    SKIP,
)

FILE = Path(__file__).parent / "dashboards" / "metasearch.json"
UID = "metasearch"
ROWS = (GLANCE, JOBS, WORK, LEARNING, GATEWAY, STORE, NODES)
_FIRST_ID = 101
_GRID = 24
_SOURCE = {"type": "prometheus", "uid": "${datasource}"}
# Okabe and Ito's colours, which people with any colour vision tell apart.
_GREY, _SKY, _GREEN, _YELLOW, _PURPLE = "#7F7F7F", "#56B4E9", "#009E73", "#F0E442", "#CC79A7"
_DARK, _MINT = "#003F5C", "#8FD3BE"
_PALETTE = (BLUE, ORANGE, _GREEN, _PURPLE, _SKY, VERMILION, _YELLOW, _GREY)
# Ops without weights are warm, convolutions cool.
_OPS = {NONE: _GREY, SKIP: VERMILION, MAX_POOL: ORANGE, AVG_POOL: _YELLOW} | {
    **{SEP_CONV_3: BLUE, SEP_CONV_5: _SKY, SEP_CONV_7: _DARK},
    **{DIL_CONV_3: _GREEN, DIL_CONV_5: _MINT, CONV_7X1_1X7: _PURPLE},
}
_COLOURS: Mapping[str, str] = {
    **dict(zip(JOB_KINDS, _PALETTE, strict=False)),
    **_OPS,
    **{"queued": ORANGE, "paused": _PURPLE, "running": BLUE, "starting": ORANGE, "wanted": _GREY, "lent": _PURPLE},
    **{"succeeded": BLUE, "failed": VERMILION, "cancelled": _GREY, "accepted": BLUE, "OK": BLUE},
    **{"INTERNAL": VERMILION, "UNAVAILABLE": ORANGE, "UNKNOWN": _PURPLE, "normal": BLUE, "reduction": ORANGE},
    **{"CPU": BLUE, "memory": ORANGE, "GPU": _GREEN, "GPU memory": _PURPLE, "object store": _SKY},
}


def dashboard() -> dict[str, Any]:
    """The dashboard as Grafana reads it."""
    return {
        "uid": UID,
        "title": "Metasearch",
        "description": "The meta architecture search service. Made by deploy/grafana/make_dashboard.py.",
        "tags": ["metasearch"],
        "timezone": "browser",
        "editable": True,
        "graphTooltip": 1,
        "time": {"from": "now-1h", "to": "now"},
        "refresh": "10s",
        "schemaVersion": 38,
        "version": 1,
        "templating": {"list": list(_variables())},
        "annotations": {"list": [_alerts()]},
        "panels": list(_panels()),
    }


def _variables() -> Iterator[dict[str, Any]]:
    """The first two are set by the Ray dashboard where it embeds this one."""
    yield {"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus", "hide": 0}
    for name, label, metric in (
        ("SessionName", "Ray session", "ray_node_cpu_count"),
        ("tenant", "Tenant", 'ray_metasearch_prior_version{SessionName=~"$SessionName"}'),
        ("study", "Study", 'ray_metasearch_prior_version{SessionName=~"$SessionName", tenant=~"$tenant"}'),
    ):
        yield {
            "name": name,
            "label": label,
            "type": "query",
            "datasource": _SOURCE,
            "query": {"query": f"label_values({metric}, {name})", "refId": name},
            "refresh": 2,
            "sort": 2 if name == "SessionName" else 1,
            "includeAll": True,
            "allValue": ".*",
            "multi": name != "SessionName",
            "current": {"selected": True, "text": "All", "value": "$__all"},
            "hide": 0,
        }


def _alerts() -> dict[str, Any]:
    return {
        "name": "Alerts",
        "datasource": _SOURCE,
        "enable": True,
        "iconColor": VERMILION,
        "expr": 'max by (alertname, severity) (ALERTS{alertname=~"Metasearch.*", alertstate="firing"})',
        "titleFormat": "{{alertname}}",
    }


def _panels() -> Iterator[dict[str, Any]]:
    top, number = 0, _FIRST_ID
    for row in ROWS:
        yield {
            "type": "row",
            "id": number,
            "title": row.title,
            "collapsed": False,
            "gridPos": {"h": 1, "w": _GRID, "x": 0, "y": top},
            "panels": [],
        }
        top, left, number = top + 1, 0, number + 1
        for panel in row.panels:
            if left + panel.width > _GRID:
                top, left = top + row.height, 0
            place = {"h": row.height, "w": panel.width, "x": left, "y": top}
            yield {**_drawn(panel), "id": panel.panel_id or number, "gridPos": place}
            left, number = left + panel.width, number + 1
        top += row.height


def _drawn(panel: Panel) -> dict[str, Any]:
    return {
        "type": panel.kind,
        "title": panel.title,
        "description": panel.description,
        "datasource": _SOURCE,
        "targets": [
            {"refId": chr(ord("A") + index), "datasource": _SOURCE, "expr": query.expr, "legendFormat": query.legend}
            for index, query in enumerate(panel.queries)
        ],
        "fieldConfig": {"defaults": _defaults(panel), "overrides": list(_overrides(panel))},
        "options": _STAT if panel.kind == "stat" else _LINES,
    }


_STAT: Mapping[str, Any] = {
    "graphMode": "area",
    "colorMode": "value",
    "justifyMode": "auto",
    "textMode": "value",
    "orientation": "auto",
    "reduceOptions": {"values": False, "calcs": ["lastNotNull"]},
}
_LINES: Mapping[str, Any] = {
    "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []},
    "tooltip": {"mode": "multi", "sort": "desc"},
}


def _defaults(panel: Panel) -> dict[str, Any]:
    steps = [
        {"color": colour, "value": start if index else None} for index, (colour, start) in enumerate(panel.steps)
    ] or [{"color": BLUE, "value": None}]
    found: dict[str, Any] = {
        "unit": panel.unit,
        "min": 0,
        "thresholds": {"mode": "absolute", "steps": steps},
    }
    if panel.maximum is not None:
        found["max"] = panel.maximum
    if panel.kind == "stat":
        return {**found, "color": {"mode": "thresholds"}}
    # Shades differ in lightness, which all eyes see; names that are known have colours of their own.
    return {
        **found,
        "color": {"mode": "shades", "fixedColor": BLUE},
        "custom": {
            "drawStyle": "line",
            "lineWidth": 2,
            "fillOpacity": 40 if panel.stacked else 0,
            "showPoints": "never",
            "spanNulls": False,
            "stacking": {"mode": "normal" if panel.stacked else "none", "group": "A"},
            "thresholdsStyle": {"mode": "dashed" if panel.steps else "off"},
        },
    }


def _overrides(panel: Panel) -> Iterator[dict[str, Any]]:
    if panel.kind == "stat":
        return
    if any(query.legend in ("{{kind}}", "{{state}}", "{{op}}", "{{code}}") for query in panel.queries):
        names = [name for name in _COLOURS if _belongs(name, panel)]
    else:
        names = [query.legend for query in panel.queries if query.legend in _COLOURS]
    for name in names:
        yield {
            "matcher": {"id": "byName", "options": name},
            "properties": [{"id": "color", "value": {"mode": "fixed", "fixedColor": _COLOURS[name]}}],
        }


_VALUES: Mapping[str, Sequence[str]] = {
    "{{kind}}": JOB_KINDS,
    "{{op}}": tuple(_OPS),
    "{{code}}": ("OK", "INTERNAL", "UNAVAILABLE", "UNKNOWN"),
    "{{state}}": (
        *("queued", "paused", "running"),
        *("starting", "wanted", "lent"),
        "succeeded",
        "failed",
        "cancelled",
    ),
}


def _belongs(name: str, panel: Panel) -> bool:
    return any(name in _VALUES.get(query.legend, ()) for query in panel.queries)


def main() -> int:
    """Writes the file, or compares it."""
    text = json.dumps(dashboard(), indent=2) + "\n"
    if "--check" in sys.argv[1:]:
        return int(FILE.read_text("utf-8") != text)
    FILE.write_text(text, "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
