"""The Ray coordinator actor: holds the prior, runs the rounds, checkpoints. Only wiring here."""

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray

from common.artifacts import PriorStore
from common.config import ClusterConfig, StudyConfig
from common.messages import AdaptRequest, AdaptResult, EvaluateRequest, EvaluateResult, Rejection
from common.meta.prior import Prior
from common.telemetry import MetricSink, logger_for
from coordinator import study
from coordinator.cluster import worker_resources
from coordinator.evaluations import evaluate_all
from coordinator.meta_test import opened_log, outcome_of
from coordinator.nodes import NodeWatch
from coordinator.pool import RayPool
from coordinator.rounds import Result, rejected_by
from coordinator.scaling import Scaling
from coordinator.sinks import JsonLinesSink, LogSink, RayMetricsSink, TensorBoardSink
from workers.actor import WorkerStatus

STATUS_GROUP = "status"


@dataclass(frozen=True)
class Progress:
    """How far the coordinator is.

    Attributes:
        version: of the present prior.
        num_rounds: of the study.
        tasks_done: tasks of the present call whose results came back.
        metrics: of the last round.
        workers_replaced: workers that died or hung.
        workers: what they are doing.
    """

    version: int
    num_rounds: int
    tasks_done: int
    metrics: dict[str, float]
    workers_replaced: int
    workers: tuple[WorkerStatus, ...]


@dataclass(frozen=True)
class TrainOutcome:
    """Where training ended.

    Attributes:
        version: of the last prior.
        digest: of the last prior.
        is_complete: whether all rounds were run.
    """

    version: int
    digest: str
    is_complete: bool


class Coordinator:
    """Drives one study on the cluster. Worker actors belong to it and go when it goes.

    Args:
        name: in the dashboard.
        cluster: workers to hold.
    """

    def __init__(self, name: str, cluster: ClusterConfig) -> None:
        self._name = name
        self._log = logger_for("coordinator")
        num_workers, gpus_per_worker = worker_resources(cluster)
        self._max_attempts = cluster.max_attempts
        self._stop = threading.Event()
        scaling = Scaling(cluster)
        self._pool = RayPool(
            name,
            scaling.first(num_workers),
            gpus_per_worker,
            cluster,
            time.monotonic,
            self._log,
            self._stop.is_set,
            scaling=scaling,
            nodes=NodeWatch(self._log).latest,
        )
        self._version = 0
        self._num_rounds = 0
        self._tasks_done = 0
        self._metrics: dict[str, float] = {}

    def train(self, run_folder: str, config: StudyConfig, prior: Prior) -> TrainOutcome:
        """Runs the rounds that are left, from `prior` on, and stores them in `run_folder`."""
        folder = Path(run_folder)
        self._log = logger_for("coordinator", folder / "train.log")
        self._version, self._num_rounds = prior.version, config.rounds
        sinks: list[MetricSink] = [
            LogSink(self._log, config.rounds),
            JsonLinesSink(folder / "rounds.jsonl", prior.version),
            TensorBoardSink(folder / "tensorboard", prior.version),
            RayMetricsSink(folder.name),
        ]
        try:
            last = study.run(
                prior,
                config,
                self._pool,
                PriorStore(folder),
                sinks,
                time.monotonic,
                self._stop.is_set,
                self._on_result,
                self._on_round,
            )
        finally:
            for sink in sinks:
                sink.close()
            self._metrics = {}  # who asks before the next call has begun is not told of this one
        return TrainOutcome(last.version, last.digest(), last.version >= config.rounds)

    def adapt(self, prior: Prior, requests: Sequence[AdaptRequest]) -> list[AdaptResult]:
        """Adapts to each task, all from the same prior; results in the order of the requests."""
        self._tasks_done = 0
        results = {}
        for result in self._pool.run(prior, requests):
            assert isinstance(result, AdaptResult)
            results[result.task_id] = result
            self._tasks_done += 1
        return [results[request.task.task_id] for request in requests if request.task.task_id in results]

    def meta_test(self, test_folder: str, prior: Prior, requests: Sequence[AdaptRequest]) -> int:
        """Learns episodes, all from the same prior, and adds each to the log in `test_folder` as it ends.

        Returns:
            How many ended; fewer than asked for after `stop`.
        """
        self._tasks_done = 0
        self._metrics = {}
        total = 0.0
        with opened_log(Path(test_folder)) as log:
            for result in self._pool.run(prior, requests):
                assert isinstance(result, AdaptResult)
                outcome = outcome_of(result)
                log.add(outcome)
                self._tasks_done += 1
                total += outcome.accuracy[-1]
                self._metrics = {"accuracy": total / self._tasks_done}
        self._metrics = {}
        return self._tasks_done

    def evaluate(self, requests: Sequence[EvaluateRequest]) -> list[EvaluateResult]:
        """Trains and tests full networks side by side; results in the order of the requests, as far as they ended."""
        self._tasks_done = 0

        def count(result: EvaluateResult) -> None:
            self._tasks_done += 1

        found = evaluate_all(self._pool, requests, self._max_attempts, self._stop.is_set, count)
        return [found[request.job_id] for request in requests if request.job_id in found]

    @ray.method(concurrency_group=STATUS_GROUP, enable_task_events=False)  # asked for all the time
    def progress(self) -> Progress:
        """How far it is, at this moment."""
        return Progress(
            self._version,
            self._num_rounds,
            self._tasks_done,
            self._metrics,
            self._pool.num_replaced,
            tuple(self._pool.status()),
        )

    @ray.method(concurrency_group=STATUS_GROUP)
    def stop(self) -> None:
        """Gives up the present round; `train` then returns. What was checkpointed stays."""
        self._stop.set()

    def _on_result(self, result: Result, rejection: Rejection | None) -> None:
        self._tasks_done += len(result.task_ids)
        for one in rejected_by(result, rejection):
            self._log.warning("rejected %s: %s (%s)", one.task_id, one.reason, one.detail)

    def _on_round(self, prior: Prior, metrics: Any) -> None:
        self._version = prior.version
        self._metrics = dict(metrics)

    def __repr__(self) -> str:
        """For the Ray dashboard, which asks once, when the actor has started; its tasks say what it is doing."""
        return f"coordinator of {self._name}"


def start_coordinator(name: str, cluster: ClusterConfig) -> Any:
    """Starts the coordinator actor and waits until it holds its workers."""
    actor_class: Any = ray.remote(concurrency_groups={STATUS_GROUP: 2}, num_cpus=0)(Coordinator)  # type: ignore[call-overload]
    handle = actor_class.options(name=name).remote(name, cluster)
    ray.get(handle.progress.remote())
    return handle
