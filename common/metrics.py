"""What the service measures: the catalogue of its metrics, and who takes the values.

Every metric of the service is a constant here, and exporters refuse any other. Prometheus sees `exported_name`; Ray,
which exports those of actors, puts `ray_` in front. Labels are kinds, states and reasons, never ids; those whose values
are known beforehand list them. Only names of studies are up to users: see `StudyLabels`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import product
from types import MappingProxyType
from typing import Protocol

from common.telemetry import ROUND_METRICS, metric_name

PREFIX = "metasearch_"
RAY_PREFIX = "ray_"
MAX_STUDIES = 50
OTHER = "other"
_LATENCY_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
_WORK_S = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0, 14400.0)


class MetricKind(StrEnum):
    """What can be done with the values of a metric."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True)
class Metric:
    """One metric, with all its labels.

    Attributes:
        name: ends in the unit, where there is one.
        kind: of the values.
        description: for people.
        labels: their names.
        values: all values of a label, where they are known beforehand.
        buckets: upper bounds of a histogram's, ascending.
    """

    name: str
    kind: MetricKind
    description: str
    labels: tuple[str, ...] = ()
    values: Mapping[str, Sequence[str]] = field(default_factory=dict, hash=False)
    buckets: tuple[float, ...] = ()

    @property
    def exported_name(self) -> str:
        """As a gateway exports it; those of actors have `RAY_PREFIX` in front, those of histograms more behind."""
        return f"{PREFIX}{self.name}" + ("_total" if self.kind is MetricKind.COUNTER else "")

    @property
    def known_labels(self) -> list[dict[str, str]]:
        """All combinations of labels; none where a label's values are not known beforehand."""
        if any(label not in self.values for label in self.labels):
            return []
        return [
            dict(zip(self.labels, found, strict=True))
            for found in product(*(self.values[name] for name in self.labels))
        ]


class MetricRecorder(Protocol):
    """Takes values, from any thread, and never fails for what a value is."""

    def add(self, metric: Metric, amount: float = 1.0, **labels: str) -> None:
        """Adds to a counter; nothing where `amount` is 0."""
        ...

    def set(self, metric: Metric, value: float, **labels: str) -> None:
        """Sets a gauge."""
        ...

    def observe(self, metric: Metric, value: float, **labels: str) -> None:
        """Counts a value in a histogram."""
        ...


class NothingRecorded:
    """A recorder for where nobody looks."""

    def add(self, metric: Metric, amount: float = 1.0, **labels: str) -> None:
        """See `MetricRecorder`."""

    def set(self, metric: Metric, value: float, **labels: str) -> None:
        """See `MetricRecorder`."""

    def observe(self, metric: Metric, value: float, **labels: str) -> None:
        """See `MetricRecorder`."""


class StudyLabels:
    """Labels of studies. Their names are up to users, and their number has no bound; a process exports `limit` of them.

    A gauge of a study is worth a label: two studies that train side by side would overwrite each other's. The studies
    that move first have it until the process ends; later ones share one, `OTHER`.
    """

    def __init__(self, limit: int = MAX_STUDIES) -> None:
        self._limit = limit
        self._known: set[tuple[str, str]] = set()

    def of(self, tenant: str, study: str) -> dict[str, str]:
        """Labels of the gauges of a study."""
        if len(self._known) < self._limit:
            self._known.add((tenant, study))
        if (tenant, study) in self._known:
            return {"tenant": tenant, "study": study}
        return {"tenant": OTHER, "study": OTHER}


JOB_KINDS = ("adapt", "meta_train", "evaluate", "sweep", "few_shot")


class RetryCause(StrEnum):
    """Why work runs again."""

    WORKER_LOST = "worker_lost"
    WORKER_TAKEN_AWAY = "worker_taken_away"
    CONFLICT = "conflict"
    DATA_UNAVAILABLE = "data_unavailable"
    STORAGE_UNAVAILABLE = "storage_unavailable"
    COORDINATOR_LOST = "coordinator_lost"
    DRAINED = "drained"
    PAUSED = "paused"


def _counter(name: str, description: str, **values: Sequence[str]) -> Metric:
    return Metric(name, MetricKind.COUNTER, description, tuple(values), _known(values))


def _gauge(name: str, description: str, **values: Sequence[str]) -> Metric:
    return Metric(name, MetricKind.GAUGE, description, tuple(values), _known(values))


def _histogram(name: str, description: str, buckets: tuple[float, ...], **values: Sequence[str]) -> Metric:
    return Metric(name, MetricKind.HISTOGRAM, description, tuple(values), _known(values), buckets)


def _known(values: Mapping[str, Sequence[str]]) -> Mapping[str, Sequence[str]]:
    return MappingProxyType({name: tuple(each) for name, each in values.items() if each})


# Of the job store, by whoever calls it: gateways and the coordinator.

_STORE_CALLS = ("commit", "get", "scan", "counter", "ping")
STORE_SECONDS = _histogram("store_seconds", "Seconds of a call to the job store", _LATENCY_S, call=_STORE_CALLS)
STORE_ERRORS = _counter("store_errors", "Calls that the job store did not answer", call=_STORE_CALLS)
STORE_METRICS = (STORE_SECONDS, STORE_ERRORS)

# Of processes that can be drained: gateways and the coordinator.

DRAINING = _gauge("draining", "1 while the process hands its work over and takes no more, else 0")

# Of gateways.

RPCS = _counter("rpcs", "Calls that have ended, by gRPC method and status code", method=(), code=())
RPC_SECONDS = _histogram("rpc_seconds", "Seconds from a unary call to its answer, by method", _LATENCY_S, method=())
OPEN_STREAMS = _gauge("open_streams", "Streaming calls under way, by method; those of WatchJob are watches", method=())
UPLOAD_BYTES = _counter("upload_bytes", "Bytes of data sets that were received")
STORE_UP = _gauge("store_up", "1 while the job store answers this gateway, else 0")

# Of the job store's content, as gateways see it: they go on where the coordinator does not.

QUEUE_DEPTH = _gauge("queue_depth", "Jobs in the queue, by kind", kind=JOB_KINDS)
QUEUE_AGE_SECONDS = _gauge(
    "queue_age_seconds", "Seconds since the submission of the oldest job in the queue, by kind", kind=JOB_KINDS
)
JOBS = _gauge("jobs", "Jobs that have not ended, by state", state=("queued", "paused", "running"))
JOBS_FINISHED = _counter(
    "jobs_finished", "Jobs that have ended since the job store was made", state=("succeeded", "failed", "cancelled")
)
COORDINATOR_BEATS = _counter("coordinator_beats", "Signs of life of coordinators since the job store was made")
COORDINATOR_EPOCH = _gauge("coordinator_epoch", "Coordinators that have taken charge since the job store was made")
CONTENT_METRICS = (QUEUE_DEPTH, QUEUE_AGE_SECONDS, JOBS, JOBS_FINISHED, COORDINATOR_BEATS, COORDINATOR_EPOCH)

MEASURED_METRICS = (RPCS, RPC_SECONDS, OPEN_STREAMS, UPLOAD_BYTES, STORE_UP, DRAINING, *STORE_METRICS)
GATEWAY_METRICS = (*MEASURED_METRICS, *CONTENT_METRICS)

# Of the coordinator.

JOBS_STARTED = _counter("jobs_started", "Attempts at jobs that were started", kind=JOB_KINDS)
JOBS_RUNNING = _gauge("jobs_running", "Jobs at hand", kind=JOB_KINDS)
JOBS_FAILED = _counter(
    "jobs_failed",
    "Jobs that have failed, by kind and reason",
    kind=JOB_KINDS,
    reason=(
        "INVALID_INPUT",
        "NOT_FOUND",
        "CORRUPT_ARTIFACT",
        "ADAPTATION_FAILED",
        "ATTEMPTS_EXHAUSTED",
        "RESOURCE_UNAVAILABLE",
        "DEADLINE_EXCEEDED",
        "INTERNAL",
    ),
)
JOB_SECONDS = _histogram(
    "job_seconds", "Seconds from the submission of a job to its success, by kind", _WORK_S, kind=JOB_KINDS
)
RETRIES = _counter(
    "retries", "Jobs that went back to the queue, and tasks of rounds that were run again", cause=tuple(RetryCause)
)
UPDATES_ACCEPTED = _counter("updates_accepted", "Updates of tasks that entered a prior")
UPDATES_REJECTED = _counter(
    "updates_rejected",
    "Updates of tasks that did not, by reason",
    reason=("not_finite", "wrong_shape", "wrong_version", "bad_weight", "out_of_range", "unexpected_task", "too_stale"),
)
WORKERS = _gauge(
    "workers",
    "Worker actors: that run, that wait for room or start, that there should be, that are lent to sweeps, that leave",
    state=("running", "starting", "wanted", "lent", "leaving"),
)
WORKERS_REPLACED = _counter("workers_replaced", "Workers that died or hung, and were replaced")
ROUND_SECONDS = _histogram("round_seconds", ROUND_METRICS["round_seconds"], _WORK_S)
_STALENESS = ("staleness_mean", "staleness_max")  # 0 of a round that is silent about it
_ROUND_LABELS: Mapping[str, tuple[str, ...]] = {
    "alpha_entropy": ("cell",),
    "parameter_free_ops": ("cell",),
    "strongest_op_edges": ("cell", "op"),
}
ROUND_GAUGES: Mapping[str, Metric] = MappingProxyType(
    {
        name: Metric(name, MetricKind.GAUGE, description, ("tenant", "study", *_ROUND_LABELS.get(name, ())))
        for name, description in ROUND_METRICS.items()
        if name != ROUND_SECONDS.name
    }
)
"""Of the latest round of each study, by their names in `ROUND_METRICS`."""
ROUND_EXPORTS = (ROUND_SECONDS, *ROUND_GAUGES.values())

COORDINATOR_METRICS = (
    JOBS_STARTED,
    JOBS_RUNNING,
    JOBS_FAILED,
    JOB_SECONDS,
    RETRIES,
    UPDATES_ACCEPTED,
    UPDATES_REJECTED,
    WORKERS,
    WORKERS_REPLACED,
    DRAINING,
    *STORE_METRICS,
    *ROUND_EXPORTS,
)

# Of workers.

CALLS = ("adapt", "adapt_many", "run_job", "evaluate", "few_shot")
ADAPT_SECONDS = _histogram(
    "adapt_seconds",
    "Seconds of a worker's call that came to its end: to adapt to one task or to several, to do an adapt job or a "
    "few-shot job, to train a full network for a while",
    _WORK_S,
    call=CALLS,
)
WORKER_STEPS = _counter("worker_steps", "Inner steps of tasks, and training steps of full networks")
WORKER_BUSY_SECONDS = _counter("worker_busy_seconds", "Seconds in which a worker was at work")

WORKER_METRICS = (ADAPT_SECONDS, WORKER_STEPS, WORKER_BUSY_SECONDS)

RAY_METRICS = (*COORDINATOR_METRICS, *WORKER_METRICS)


def record_round(recorder: MetricRecorder, values: Mapping[str, float], labels: Mapping[str, str]) -> None:
    """Records what a round has measured.

    Args:
        recorder: takes it.
        values: by the names of `ROUND_METRICS`, their own labels behind `/`; of a whole round, or of a version alone.
        labels: of the study, see `StudyLabels`.
    """
    is_whole = ROUND_SECONDS.name in values
    for name, value in {**(dict.fromkeys(_STALENESS, 0.0) if is_whole else {}), **values}.items():
        if name == ROUND_SECONDS.name:
            recorder.observe(ROUND_SECONDS, value)
            continue
        metric = ROUND_GAUGES[metric_name(name)]
        own = dict(zip(_ROUND_LABELS.get(metric.name, ()), name.split("/")[1:], strict=True))
        recorder.set(metric, value, **labels, **own)
