"""Metrics of actors and drivers, exported by Ray. The only module that knows Ray's metrics."""

import sys
from collections.abc import Iterable
from typing import Any

from ray.util.metrics import Counter, Gauge, Histogram

from common.metrics import PREFIX, Metric, MetricKind

# Rates miss the first increment of a counter that was not there before, and Ray takes no zero: this one vanishes in
# every sum.
_ALMOST_ZERO = sys.float_info.min


class RayMetrics:
    """A `MetricRecorder` that exports through Ray. Only within a Ray actor or driver.

    Counters whose labels are known beforehand are there from the start.

    Args:
        metrics: the ones that this process exports; others are refused.
    """

    def __init__(self, metrics: Iterable[Metric]) -> None:
        self._exported: dict[str, Any] = {}
        for metric in metrics:
            name, keys = f"{PREFIX}{metric.name}", metric.labels
            if metric.kind is MetricKind.HISTOGRAM:
                self._exported[metric.name] = Histogram(name, metric.description, list(metric.buckets), keys)
            elif metric.kind is MetricKind.GAUGE:
                self._exported[metric.name] = Gauge(name, metric.description, keys)
            else:
                self._exported[metric.name] = Counter(name, metric.description, keys)
                for labels in metric.known_labels:
                    self.add(metric, _ALMOST_ZERO, **labels)

    def add(self, metric: Metric, amount: float = 1.0, **labels: str) -> None:
        """See `MetricRecorder`."""
        if amount > 0:
            self._exported[metric.name].inc(amount, labels)

    def set(self, metric: Metric, value: float, **labels: str) -> None:
        """See `MetricRecorder`."""
        self._exported[metric.name].set(float(value), labels)

    def observe(self, metric: Metric, value: float, **labels: str) -> None:
        """See `MetricRecorder`."""
        self._exported[metric.name].observe(float(value), labels)
