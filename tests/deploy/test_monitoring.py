"""What deploy/ has for Prometheus and Grafana, without either: queries parse, and name what is exported."""

import json
import re
import shutil
import subprocess
import sys
from itertools import combinations
from pathlib import Path
from typing import Any

import promql_parser as promql
import pytest
import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard
from reference.monitoring import (
    DASHBOARD,
    DEPLOY,
    PROMETHEUS,
    Asked,
    alerts,
    compared,
    known_series,
    panel_queries,
    panels,
    selectors,
)

from common.space.primitives import PARAMETER_FREE, PRIMITIVES
from coordinator.settings import ENVIRONMENT_PREFIX, ServiceSettings

ALERTS = alerts()
QUERIES = [*panel_queries(), *(Asked(f"alert {rule['alert']}", rule["expr"]) for rule in ALERTS)]
KNOWN = known_series()
ADDED_BY_RAY = {"SessionName", "NodeAddress", "WorkerId", "Component", "Version"}
ADDED_BY_PROMETHEUS = {"job", "instance", "le"}
# Ray's own, of nodes and actors, and those of any process.
FOREIGN = re.compile(r"ray_(node|object_store)_\w+|ray_actors|process_\w+")
RUNBOOK = DEPLOY / "README.md"


def promtool(*arguments: str | Path) -> str:
    if shutil.which("promtool") is None:
        pytest.skip("promtool is missing; Debian has it in the package prometheus")
    done = subprocess.run(["promtool", *map(str, arguments)], capture_output=True, text=True, cwd=PROMETHEUS)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


# Queries


@pytest.mark.parametrize("asked", QUERIES, ids=lambda asked: asked.where)
def test_a_query_parses_and_asks_for_what_is_exported(asked: Asked) -> None:
    assert isinstance(promql.parse(asked.expr), promql.Expr)
    for selector in selectors(asked.expr):
        matchers = list(selector.matchers.matchers)
        patterns = [each.value for each in matchers if each.name == "__name__"]
        names = [name for name in KNOWN if re.fullmatch(patterns[0], name)] if patterns else [selector.name]
        assert names
        for name in names:
            if FOREIGN.fullmatch(name):
                continue
            assert name in KNOWN, f"{name} is not in the catalogue"
            metric = KNOWN[name]
            for each in matchers:
                if each.name == "__name__":
                    continue
                added = ADDED_BY_PROMETHEUS | (ADDED_BY_RAY if name.startswith("ray_") else set())
                assert each.name in {*metric.labels, *added}, f"{name} has no label {each.name}"
                if str(each.op) in ("MatchOp.Equal", "=") and each.name in metric.values:
                    assert each.value in metric.values[each.name], f"{each.name} of {name} is never {each.value}"


def test_what_ray_adds_is_aggregated_away() -> None:
    """Every process and every restart has labels of its own; a bare selector would draw a line for each."""
    bare = re.compile(r"^ray_metasearch_\w+(\{[^}]*\})?$")
    assert not [asked for asked in QUERIES if bare.match(asked.expr.strip())]


def test_panels_of_rays_metrics_are_of_the_session_that_is_chosen() -> None:
    for panel in panels():
        for target in panel["targets"]:
            for selector in selectors(target["expr"].replace("$", "")):
                if selector.name.startswith("ray_"):
                    names = {each.name for each in selector.matchers.matchers}
                    assert "SessionName" in names, f"{panel['title']}: {selector.name}"


# The dashboard


def dashboard() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(DASHBOARD.read_text())
    return found


def test_the_dashboard_is_as_its_generator_makes_it() -> None:
    script = DEPLOY / "grafana" / "make_dashboard.py"
    done = subprocess.run([sys.executable, str(script), "--check"], cwd=DEPLOY.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr or f"run python {script.relative_to(DEPLOY.parent)}"


def test_grafanas_own_model_knows_every_field_of_the_dashboard() -> None:
    register_default_plugins()
    read = json.loads(json.dumps(Dashboard.from_json(dashboard()), cls=JSONEncoder))
    # The title of an annotation belongs to the Prometheus plugin, which the model leaves out.
    assert lost(dashboard(), read) == ["/annotations/list/0/titleFormat"]


def lost(before: Any, after: Any, path: str = "") -> list[str]:
    """Where a value is missing or another one."""
    if isinstance(before, dict) and isinstance(after, dict):
        keys = ((key, before[key], after.get(key)) for key in before)
        return [place for key, one, other in keys for place in lost(one, other, f"{path}/{key}")]
    if isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        both = enumerate(zip(before, after, strict=True))
        return [place for index, (one, other) in both for place in lost(one, other, f"{path}/{index}")]
    return [] if before == after else [path]


def test_panels_have_ids_of_their_own_and_places_that_do_not_overlap() -> None:
    everything = dashboard()["panels"]
    ids = [panel["id"] for panel in everything]
    assert len(set(ids)) == len(ids)
    for panel in everything:
        place = panel["gridPos"]
        assert place["x"] >= 0 and place["x"] + place["w"] <= 24 and place["w"] > 0 and place["h"] > 0
    for one, other in combinations((panel["gridPos"] for panel in everything), 2):
        apart = (
            one["x"] + one["w"] <= other["x"]
            or other["x"] + other["w"] <= one["x"]
            or one["y"] + one["h"] <= other["y"]
            or other["y"] + other["h"] <= one["y"]
        )
        assert apart, f"{one} and {other} overlap"


def test_every_panel_says_what_it_shows_in_which_unit() -> None:
    for panel in panels():
        assert panel["title"] and len(panel["description"].split()) >= 4, panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        assert all(target["legendFormat"] for target in panel["targets"])
    titles = [panel["title"] for panel in panels()]
    assert len(set(titles)) == len(titles)


def test_no_panel_tells_two_lines_apart_by_red_and_green() -> None:
    """Colours are Okabe and Ito's, and two shades of them; in one panel no two names have the same."""
    palette = {"#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#7F7F7F"}
    used = set(re.findall(r"#[0-9A-Fa-f]{6}", DASHBOARD.read_text()))
    assert used <= palette | {"#003F5C", "#8FD3BE"}
    for panel in panels():
        overrides = panel["fieldConfig"]["overrides"]
        colours = [each["properties"][0]["value"]["fixedColor"] for each in overrides]
        if {each["matcher"]["options"] for each in overrides} <= set(PRIMITIVES):
            assert len(set(colours)) == len(colours), panel["title"]


def test_variables_are_those_that_the_ray_dashboard_sets_and_the_panels_use() -> None:
    variables = [variable["name"] for variable in dashboard()["templating"]["list"]]
    assert variables == ["datasource", "SessionName", "tenant", "study"]
    used = set(re.findall(r"\$\{?(\w+)", json.dumps(dashboard()["panels"])))
    assert used == set(variables)


def test_provisioning_fits_together() -> None:
    """Names that one file gives and another asks for."""
    grafana = DEPLOY / "grafana"
    (source,) = yaml.safe_load((grafana / "provisioning/datasources/prometheus.yml").read_text())["datasources"]
    (provider,) = yaml.safe_load((grafana / "provisioning/dashboards/metasearch.yml").read_text())["providers"]
    head = dict(
        line.split("=", 1) for line in (grafana / "ray-head.env").read_text().splitlines() if line and line[0] != "#"
    )
    assert head["RAY_GRAFANA_DEFAULT_DASHBOARD_UID"] == dashboard()["uid"]
    assert head["RAY_PROMETHEUS_NAME"] == source["name"]
    assert head["RAY_PROMETHEUS_HOST"] == source["url"]
    ini = (grafana / "grafana.ini").read_text()
    assert f"default_home_dashboard_path = {provider['options']['path']}/{DASHBOARD.name}" in ini
    scrape = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())
    assert source["jsonData"]["timeInterval"] == scrape["global"]["scrape_interval"]


def test_the_overview_page_of_the_ray_dashboard_finds_the_panels_that_it_embeds() -> None:
    by_id = {panel["id"]: panel["title"] for panel in panels()}
    assert (by_id[24], by_id[41]) == ("Nodes", "Utilisation")


# Rules


def test_prometheus_takes_the_configuration_and_the_rules() -> None:
    assert "SUCCESS" in promtool("check", "config", PROMETHEUS / "prometheus.yml")
    assert f"{len(ALERTS)} rules found" in promtool("check", "rules", PROMETHEUS / "rules.yml")


def test_alerts_fire_when_they_should_and_at_no_other_time() -> None:
    assert "SUCCESS" in promtool("test", "rules", PROMETHEUS / "rules_test.yml")


def test_every_alert_is_tried_both_ways() -> None:
    tests = yaml.safe_load((PROMETHEUS / "rules_test.yml").read_text())["tests"]
    tried = [case for test in tests for case in test["alert_rule_test"]]
    names = {rule["alert"] for rule in ALERTS}
    assert {case["alertname"] for case in tried if case.get("exp_alerts")} == names
    assert {case["alertname"] for case in tried if not case.get("exp_alerts")} == names


@pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: rule["alert"])
def test_an_alert_says_what_it_means_and_where_to_read_on(rule: dict[str, Any]) -> None:
    assert rule["labels"]["severity"] in ("critical", "warning")
    assert rule["annotations"]["summary"] and len(rule["annotations"]["description"].split()) >= 8
    anchor = rule["alert"].lower()
    assert rule["annotations"]["runbook_url"] == f"deploy/README.md#{anchor}"
    assert compared(rule["expr"])
    if not RUNBOOK.exists():
        pytest.skip("deploy/README.md is not written yet")
    headings = re.findall(r"^#+ +(.+?)\s*$", RUNBOOK.read_text(), re.MULTILINE)
    anchors = {re.sub(r"[^\w\- ]", "", heading).lower().replace(" ", "-") for heading in headings}
    assert anchor in anchors, f"deploy/README.md has no heading {rule['alert']}"


def test_the_alert_about_collapse_knows_all_ops_without_parameters() -> None:
    (rule,) = [rule for rule in ALERTS if rule["alert"] == "MetasearchAlphaCollapse"]
    pattern = re.search(r'op=~"([^"]+)"', rule["expr"])
    assert pattern is not None
    assert {op for op in PRIMITIVES if re.fullmatch(pattern[1], op)} == set(PARAMETER_FREE)


def test_jobs_that_are_scraped_have_the_ports_of_the_settings() -> None:
    jobs = {
        job["job_name"]: job for job in yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())["scrape_configs"]
    }
    assert jobs["metasearch-gateway"]["dns_sd_configs"][0]["port"] == 9464
    assert "metrics_listen" in ServiceSettings.model_fields
    assert f"{ENVIRONMENT_PREFIX}METRICS_LISTEN=0.0.0.0:9464" in (PROMETHEUS / "prometheus.yml").read_text()
