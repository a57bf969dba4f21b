"""The catalogue of metrics, and what is recorded under its names."""

import re
from pathlib import Path

import pytest
from reference.recorded_metrics import RecordedMetrics

from common import metrics
from common.messages import RejectionReason
from common.metrics import (
    GATEWAY_METRICS,
    JOB_KINDS,
    JOBS_FAILED,
    RAY_METRICS,
    RETRIES,
    ROUND_GAUGES,
    UPDATES_REJECTED,
    Metric,
    MetricKind,
    NothingRecorded,
    RetryCause,
    StudyLabels,
    record_round,
)
from coordinator.jobs import AdaptSpec, EvaluateSpec, FailureReason, FewShotSpec, MetaTrainSpec, SweepSpec

ROOT = Path(__file__).parents[2]
CATALOGUE = {metric.name: metric for metric in (*GATEWAY_METRICS, *RAY_METRICS)}
CONSTANTS = {name: value for name, value in vars(metrics).items() if isinstance(value, Metric)}


def test_every_metric_is_in_the_catalogue_of_a_process_under_one_definition() -> None:
    assert set(CONSTANTS.values()) | set(ROUND_GAUGES.values()) == set(CATALOGUE.values())
    assert all(CATALOGUE[metric.name] == metric for metric in (*GATEWAY_METRICS, *RAY_METRICS))


def test_every_metric_of_the_catalogue_is_recorded_somewhere_and_by_nothing_else() -> None:
    code = {
        path: path.read_text() for room in ("common", "workers", "coordinator") for path in (ROOT / room).rglob("*.py")
    }
    del code[ROOT / "common" / "metrics.py"]
    for name in CONSTANTS:
        uses = sum(len(re.findall(rf"\b{name}\b", text.partition("\n\n\n")[2])) for text in code.values())
        own = re.findall(
            rf"\(.*\b{name}\b", (ROOT / "common" / "metrics.py").read_text().partition("def record_round")[2]
        )
        assert uses or own, f"{name} is exported, and nothing records it"
    importers = {
        path.name for path, text in code.items() if re.search(r"import.*prometheus_client|ray\.util\.metrics", text)
    }
    assert importers <= {"ray_metrics.py", "exporter.py"}
    assert "ray.util.metrics" in code[ROOT / "workers" / "ray_metrics.py"]


@pytest.mark.parametrize("metric", CATALOGUE.values(), ids=lambda metric: metric.name)
def test_a_metric_says_what_it_is(metric: Metric) -> None:
    assert re.fullmatch(r"[a-z][a-z0-9_]*[a-z0-9]", metric.name)
    assert not metric.name.endswith("_total"), "exporters add it to counters"
    assert len(metric.description.split()) >= 3
    assert (metric.kind is MetricKind.HISTOGRAM) == bool(metric.buckets)
    assert list(metric.buckets) == sorted(set(metric.buckets)) and all(bound > 0 for bound in metric.buckets)
    if metric.kind is MetricKind.HISTOGRAM:
        assert metric.name.endswith("_seconds")
    assert set(metric.values) <= set(metric.labels)
    assert not any(label.endswith("_id") or label in ("id", "job", "task", "worker") for label in metric.labels)


def test_values_of_labels_are_those_of_the_code() -> None:
    kinds = [
        spec.model_fields["kind"].default for spec in (AdaptSpec, MetaTrainSpec, EvaluateSpec, SweepSpec, FewShotSpec)
    ]
    assert tuple(kinds) == JOB_KINDS
    assert JOBS_FAILED.values["reason"] == tuple(FailureReason)
    assert set(UPDATES_REJECTED.values["reason"]) >= set(RejectionReason)
    assert RETRIES.values["cause"] == tuple(RetryCause)


def test_known_labels_are_all_combinations_or_none() -> None:
    metric = Metric("things", MetricKind.COUNTER, "", ("a", "b"), {"a": ("1", "2"), "b": ("x",)})
    assert metric.known_labels == [{"a": "1", "b": "x"}, {"a": "2", "b": "x"}]
    assert Metric("things", MetricKind.COUNTER, "").known_labels == [{}]
    assert Metric("things", MetricKind.COUNTER, "", ("a", "b"), {"a": ("1",)}).known_labels == []
    assert metric.exported_name == "metasearch_things_total"
    assert Metric("depth", MetricKind.GAUGE, "").exported_name == "metasearch_depth"


def test_studies_beyond_the_limit_share_a_label_and_the_first_keep_theirs() -> None:
    labels = StudyLabels(limit=2)
    first, second = {"tenant": "a", "study": "x"}, {"tenant": "b", "study": "x"}
    assert labels.of("a", "x") == first
    assert labels.of("b", "x") == second
    assert labels.of("c", "y") == labels.of("d", "z") == {"tenant": "other", "study": "other"}
    assert labels.of("a", "x") == first
    assert labels.of("b", "x") == second


def test_a_round_is_recorded_with_the_labels_of_its_study_and_its_own() -> None:
    recorded = RecordedMetrics()
    values = {
        "prior_version": 3,
        "round_seconds": 2.5,
        "alpha_entropy/normal": 1.5,
        "strongest_op_edges/reduction/skip_connect": 4,
    }
    record_round(recorded, values, {"tenant": "lab", "study": "digits"})
    assert recorded.gauges == {
        ("prior_version", "lab", "digits"): 3,
        ("alpha_entropy", "lab", "digits", "normal"): 1.5,
        ("strongest_op_edges", "lab", "digits", "reduction", "skip_connect"): 4,
        # Nothing was said of it: the round was synchronous.
        ("staleness_mean", "lab", "digits"): 0.0,
        ("staleness_max", "lab", "digits"): 0.0,
    }
    assert recorded.observed == {("round_seconds",): [2.5]}


def test_a_version_that_no_round_made_has_no_staleness_and_a_round_keeps_its_own() -> None:
    recorded = RecordedMetrics()
    record_round(recorded, {"prior_version": 1}, {"tenant": "", "study": "a"})
    assert recorded.gauges == {("prior_version", "", "a"): 1}
    record_round(recorded, {"round_seconds": 1.0, "staleness_max": 3.0}, {"tenant": "", "study": "a"})
    assert recorded.gauges["staleness_max", "", "a"] == 3.0


def test_nothing_recorded_takes_everything() -> None:
    nothing = NothingRecorded()
    nothing.add(RETRIES, cause="paused")
    nothing.set(ROUND_GAUGES["tau"], 1.0, tenant="", study="")
    nothing.observe(metrics.ROUND_SECONDS, 1.0)
