"""Tasks without rounds on a pool of workers: as results come back, others are handed out."""

from collections import Counter
from collections.abc import Callable, Generator
from typing import Protocol

from common.errors import AdaptationError
from common.messages import AdaptRequest, AdaptResult
from common.meta.prior import Prior
from coordinator.calls import Outcome, exhausted
from coordinator.rounds import Supply

_POLL_S = 1.0


class Calls(Protocol):
    """A pool of workers, such as `coordinator.pool.RayPool`."""

    @property
    def max_workers(self) -> int:
        """Workers, those that are starting included."""
        ...

    @property
    def num_pending(self) -> int:
        """Calls without an outcome yet."""
        ...

    def submit(self, key: str, request: AdaptRequest, prior: Prior) -> None:
        """Queues a call."""
        ...

    def poll(self, timeout_s: float) -> list[Outcome]:
        """What has ended."""
        ...

    def give_up(self) -> None:
        """Forgets all calls."""
        ...


def stream(
    calls: Calls,
    supply: Supply,
    per_worker: int,
    max_attempts: int,
    should_stop: Callable[[], bool] = lambda: False,
) -> Generator[AdaptResult, None, None]:
    """Results as they come; see `coordinator.rounds.Executor.stream`. Not while other calls are pending.

    Args:
        calls: runs the tasks.
        supply: where they come from.
        per_worker: tasks that a worker has or waits to have, at most.
        max_attempts: times that a task is started before it counts as failed.
        should_stop: asked at least once a second; once true, it ends early.

    Raises:
        AdaptationError: a task was started `max_attempts` times without a result.
        MetaSearchError: what a task raised on purpose; another attempt would raise it again.
    """
    lost: Counter[str] = Counter()
    try:
        while not should_stop():
            for request in supply.hand_out(max(per_worker * calls.max_workers - calls.num_pending, 0)):
                calls.submit(request.task.task_id, request, supply.prior)
            if not calls.num_pending:
                return
            for outcome in calls.poll(_POLL_S):
                if outcome.error is not None:
                    raise type(outcome.error)(f"task {outcome.key}: {outcome.error}") from outcome.error
                if outcome.lost:
                    lost[outcome.key] += outcome.uses_attempt
                    if lost[outcome.key] >= max_attempts:
                        raise AdaptationError(exhausted(outcome, lost[outcome.key]))
                    # From the latest version: it would only be staler.
                    calls.submit(outcome.key, supply.hand_out_again(outcome.key), supply.prior)
                    continue
                yield outcome.result
    finally:
        calls.give_up()
