"""The command line's side of a study on Ray: connects, starts the coordinator actor, shows progress, ends cleanly."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError
from rich.console import Console

from common.config import ClusterConfig, StudyConfig
from common.errors import UnavailableError
from common.messages import AdaptRequest, AdaptResult, EvaluateRequest, EvaluateResult
from common.meta.prior import Prior
from common.telemetry import query_summary
from coordinator import actor
from coordinator.actor import TrainOutcome, start_coordinator
from coordinator.cluster import Cluster, cause_of, connect, disconnect, worker_resources
from coordinator.interrupts import asked_to_stop
from coordinator.progress import Bar

_POLL_S = 0.5
_STOP_TIMEOUT_S = 30.0


class Session:
    """A coordinator actor on a cluster, seen from the driver.

    Attributes:
        cluster: what it runs on.
        num_workers: that the coordinator holds.
    """

    def __init__(self, cluster: Cluster, handle: Any, console: Console, num_workers: int) -> None:
        self.cluster = cluster
        self.num_workers = num_workers
        self._handle = handle
        self._console = console

    def show_dashboard(self) -> None:
        """Says where the Ray dashboard is, and how to get in."""
        if self.cluster.dashboard_url:
            self._console.print(f"Ray dashboard: {self.cluster.dashboard_url}")
            if self.cluster.needs_token:
                self._console.print("  it asks for a token; `ray get-auth-token` prints it")

    def train(self, run: Path, config: StudyConfig, prior: Prior) -> TrainOutcome:
        """Runs the rounds that are left; see `Coordinator.train`. Ctrl-C gives up the present round and returns.

        Raises:
            MetaSearchError: what the study raised.
        """

        def describe(progress: actor.Progress) -> tuple[int, str]:
            metrics = progress.metrics
            if "query_accuracy" in metrics:
                return progress.version, f"query {query_summary(metrics)}"
            return progress.version, f"loss {metrics['train_loss_last']:.3f}" if metrics else ""

        reference = self._handle.train.remote(str(run.resolve()), config, prior)
        outcome: TrainOutcome = self._follow(reference, "Rounds", prior.version, config.rounds, describe)
        return outcome

    def adapt(self, prior: Prior, requests: Sequence[AdaptRequest], label: str) -> list[AdaptResult]:
        """Adapts to each task; see `Coordinator.adapt`. A single task's bar counts steps, else it counts tasks.

        Raises:
            MetaSearchError: what a task raised.
            KeyboardInterrupt: after Ctrl-C, once the workers have stopped.
        """
        single = len(requests) == 1
        total = requests[0].inner.steps if single else len(requests)

        def describe(progress: actor.Progress) -> tuple[int, str]:
            steps = [worker.steps_done for worker in progress.workers if worker.task_id is not None]
            return (max(steps, default=0) if single else progress.tasks_done), ""

        reference = self._handle.adapt.remote(prior, tuple(requests))
        results: list[AdaptResult] = self._follow(reference, label, 0, total, describe)
        if len(results) < len(requests):
            raise KeyboardInterrupt
        return results

    def meta_test(self, test_folder: Path, prior: Prior, requests: Sequence[AdaptRequest], done: int) -> bool:
        """Learns episodes that are added to the log in `test_folder`; see `Coordinator.meta_test`.

        Args:
            test_folder: exists.
            prior: to start from.
            requests: the episodes that are left.
            done: how many had ended before.

        Returns:
            Whether all of them ended; not after Ctrl-C.

        Raises:
            MetaSearchError: what an episode raised.
        """

        def describe(progress: actor.Progress) -> tuple[int, str]:
            accuracy = progress.metrics.get("accuracy")
            return done + progress.tasks_done, "" if accuracy is None else f"accuracy {accuracy:.3f}"

        reference = self._handle.meta_test.remote(str(test_folder.resolve()), prior, tuple(requests))
        ended: int = self._follow(reference, "Episodes", done, done + len(requests), describe)
        return ended == len(requests)

    def evaluate(self, requests: Sequence[EvaluateRequest], label: str) -> list[EvaluateResult]:
        """Trains and tests full networks side by side; see `Coordinator.evaluate`.

        Raises:
            MetaSearchError: what a training raised.
            KeyboardInterrupt: after Ctrl-C; trainings go on from their last checkpoints another time.
        """

        def describe(progress: actor.Progress) -> tuple[int, str]:
            at_work = [f"{worker.task_id} {worker.steps_done}" for worker in progress.workers if worker.task_id]
            return progress.tasks_done, "epochs: " + ", ".join(at_work) if at_work else ""

        reference = self._handle.evaluate.remote(tuple(requests))
        results: list[EvaluateResult] = self._follow(reference, label, 0, len(requests), describe)
        if len(results) < len(requests):
            raise KeyboardInterrupt
        return results

    def _follow(
        self,
        reference: Any,
        label: str,
        done: int,
        total: int,
        describe: Callable[[actor.Progress], tuple[int, str]],
    ) -> Any:
        """Waits for a call of the coordinator, showing how far it is."""
        with asked_to_stop() as is_asked, Bar(self._console, label, total, done) as bar:
            while True:
                ready, _ = ray.wait([reference], timeout=_POLL_S)
                if ready:
                    return self._result(reference)
                if is_asked():
                    return self._stop(reference)
                done, note = describe(self._progress())
                bar.show(done, note=note)

    def _result(self, reference: Any) -> Any:
        try:
            return ray.get(reference)
        except RayTaskError as error:
            raise cause_of(error) from error
        except RayActorError as error:
            raise UnavailableError(
                f"the coordinator is gone: {str(error).splitlines()[0]}; what was checkpointed can be resumed"
            ) from error

    def _progress(self) -> actor.Progress:
        progress: actor.Progress = self._result(self._handle.progress.remote())
        return progress

    def _stop(self, reference: Any) -> Any:
        self._console.print("Stopping; press Ctrl-C again to stop at once.")
        self._handle.stop.remote()
        ready, _ = ray.wait([reference], timeout=_STOP_TIMEOUT_S)
        if not ready:
            raise KeyboardInterrupt
        return self._result(reference)


@contextmanager
def open_session(name: str, cluster: ClusterConfig, address: str | None, console: Console) -> Iterator[Session]:
    """A session on the cluster at `address`, or on a local one that lasts as long as the session.

    Raises:
        UnavailableError: no cluster, or too small a one.
    """
    connection = connect(address, job_name=f"metasearch {name}")
    try:
        try:
            handle = start_coordinator(name, cluster)
        except RayActorError as error:
            cause = getattr(error, "cause", None)
            raise UnavailableError(str(cause or error).strip().splitlines()[-1]) from error
        except RayTaskError as error:
            raise cause_of(error) from error
        yield Session(connection, handle, console, worker_resources(cluster)[0])
    finally:
        disconnect()
