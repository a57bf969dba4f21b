"""The gateway's metrics for Prometheus: of its calls, of what the job store holds; and the port that tells them."""

from collections.abc import Callable, Iterator
from threading import Thread
from typing import Any
from wsgiref.simple_server import WSGIServer

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    start_http_server,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from common.errors import InvalidInputError, UnavailableError
from common.metrics import (
    CONTENT_METRICS,
    COORDINATOR_BEATS,
    COORDINATOR_EPOCH,
    JOB_KINDS,
    JOBS,
    JOBS_FINISHED,
    MEASURED_METRICS,
    QUEUE_AGE_SECONDS,
    QUEUE_DEPTH,
    Metric,
    MetricKind,
)
from coordinator.store.overview import Overview, Waiting

_KINDS = {MetricKind.COUNTER: Counter, MetricKind.GAUGE: Gauge, MetricKind.HISTOGRAM: Histogram}


class PrometheusMetrics:
    """A `MetricRecorder` that holds what the gateway measures until somebody asks.

    Counters whose labels are known beforehand are there from the start.

    Attributes:
        registry: what is exported; of this object alone.
    """

    def __init__(self) -> None:
        disable_created_metrics()  # when a series began is worth no series of its own
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._exported: dict[str, Any] = {}
        self._children: dict[tuple[str, tuple[str, ...]], Any] = {}
        for metric in MEASURED_METRICS:
            options = {"buckets": metric.buckets} if metric.buckets else {}
            exported = _KINDS[metric.kind](
                metric.exported_name, metric.description, metric.labels, registry=self.registry, **options
            )
            self._exported[metric.name] = exported
            for labels in metric.known_labels if metric.labels else ():
                exported.labels(**labels)

    def add(self, metric: Metric, amount: float = 1.0, **labels: str) -> None:
        """See `MetricRecorder`."""
        self._child(metric, labels).inc(amount)

    def set(self, metric: Metric, value: float, **labels: str) -> None:
        """See `MetricRecorder`."""
        self._child(metric, labels).set(value)

    def observe(self, metric: Metric, value: float, **labels: str) -> None:
        """See `MetricRecorder`."""
        self._child(metric, labels).observe(value)

    def _child(self, metric: Metric, labels: dict[str, str]) -> Any:
        """What has these labels. Kept here: the client's own `labels` takes as long as all else."""
        if not metric.labels:
            return self._exported[metric.name]
        key = (metric.name, tuple(labels[name] for name in metric.labels))
        child = self._children.get(key)
        if child is None:
            child = self._children[key] = self._exported[metric.name].labels(*key[1])
        return child


class ContentCollector(Collector):
    """What the job store holds, as of the last look.

    Args:
        now_s: seconds since 1970.
    """

    def __init__(self, now_s: Callable[[], float]) -> None:
        self._now_s = now_s
        self.latest: Overview | None = None

    def describe(self) -> list[Any]:
        """See `Collector`; the registry asks before there was a look."""
        return [_family(metric) for metric in CONTENT_METRICS]

    def collect(self) -> Iterator[Any]:
        """See `Collector`."""
        found = self.latest
        if found is None:
            return
        depths, ages = _family(QUEUE_DEPTH), _family(QUEUE_AGE_SECONDS)
        for kind in sorted({*JOB_KINDS, *found.waiting}):
            waiting = found.waiting.get(kind, Waiting(0, None))
            depths.add_metric([kind], waiting.num_jobs)
            age_s = 0.0 if waiting.oldest_s is None else max(self._now_s() - waiting.oldest_s, 0.0)
            ages.add_metric([kind], age_s)
        jobs, finished = _family(JOBS), _family(JOBS_FINISHED)
        num_waiting = sum(waiting.num_jobs for waiting in found.waiting.values())
        for state, count in (("queued", num_waiting), ("paused", found.num_paused), ("running", found.num_running)):
            jobs.add_metric([state], count)
        for state, count in found.num_finished.items():
            finished.add_metric([state], count)
        beats, epoch = _family(COORDINATOR_BEATS), _family(COORDINATOR_EPOCH)
        beats.add_metric([], found.num_beats)
        epoch.add_metric([], found.epoch)
        yield from (depths, ages, jobs, finished, beats, epoch)


def _family(metric: Metric) -> Any:
    kind = CounterMetricFamily if metric.kind is MetricKind.COUNTER else GaugeMetricFamily
    return kind(metric.exported_name, metric.description, labels=metric.labels)


class MetricsServer:
    """Serves a registry over HTTP, from threads of its own.

    Args:
        listen: HOST:PORT; port 0 takes a free one.
        registry: what is told.

    Raises:
        InvalidInputError: `listen` is not HOST:PORT.
        UnavailableError: it cannot be had.
    """

    def __init__(self, listen: str, registry: CollectorRegistry) -> None:
        host, _, port_text = listen.rpartition(":")
        if not host or not port_text.isdecimal() or int(port_text) > 65535:
            raise InvalidInputError(f"metrics_listen must be HOST:PORT, got {listen!r}; 127.0.0.1:9464 for example")
        self._server: WSGIServer
        self._thread: Thread
        try:
            self._server, self._thread = start_http_server(int(port_text), host.strip("[]"), registry)
        except OSError as error:
            raise UnavailableError(
                f"cannot listen on metrics_listen {listen}: {error.strerror or error}; choose another port, or leave "
                "metrics_listen empty for no metrics"
            ) from None
        self.port = int(self._server.server_port)
        self.url = f"http://{host}:{self.port}/metrics"

    def close(self) -> None:
        """Ends it."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
