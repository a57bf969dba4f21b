"""A recorder of metrics that keeps what it is told, and refuses what does not fit the catalogue."""

from collections import defaultdict

from common.metrics import Metric, MetricKind


class RecordedMetrics:
    """By name and label values: sums of counters, last values of gauges, all values of histograms."""

    def __init__(self) -> None:
        self.counters: dict[tuple[str, ...], float] = defaultdict(float)
        self.gauges: dict[tuple[str, ...], float] = {}
        self.observed: dict[tuple[str, ...], list[float]] = defaultdict(list)

    def add(self, metric: Metric, amount: float = 1.0, **labels: str) -> None:
        assert amount >= 0
        self.counters[self._key(metric, MetricKind.COUNTER, labels)] += amount

    def set(self, metric: Metric, value: float, **labels: str) -> None:
        self.gauges[self._key(metric, MetricKind.GAUGE, labels)] = value

    def observe(self, metric: Metric, value: float, **labels: str) -> None:
        self.observed[self._key(metric, MetricKind.HISTOGRAM, labels)].append(value)

    def _key(self, metric: Metric, kind: MetricKind, labels: dict[str, str]) -> tuple[str, ...]:
        assert metric.kind is kind
        assert set(labels) == set(metric.labels), metric.name
        for name, value in labels.items():
            assert value in metric.values.get(name, (value,)), f"{value} is no known {name} of {metric.name}"
        return (metric.name, *(labels[name] for name in metric.labels))
