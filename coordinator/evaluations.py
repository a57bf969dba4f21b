"""Trains and tests several full networks on a pool of workers, side by side, each slice by slice."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Protocol

from common.errors import AdaptationError
from common.messages import EvaluateRequest, EvaluateResult
from common.storage import ArtifactFolder
from coordinator.calls import Outcome, exhausted

_POLL_S = 1.0
_ATTEMPT = "attempt-"


class Calls(Protocol):
    """A pool of workers, such as `coordinator.pool.RayPool`."""

    @property
    def num_pending(self) -> int:
        """Calls without an outcome yet."""
        ...

    def submit(self, key: str, request: EvaluateRequest, prior: None) -> None:
        """Queues a call."""
        ...

    def poll(self, timeout_s: float) -> list[Outcome]:
        """What has ended."""
        ...

    def give_up(self) -> None:
        """Forgets all calls."""
        ...


def evaluate_all(
    calls: Calls,
    requests: Sequence[EvaluateRequest],
    max_attempts: int,
    should_stop: Callable[[], bool] = lambda: False,
    on_result: Callable[[EvaluateResult], None] = lambda result: None,
) -> Mapping[str, EvaluateResult]:
    """Runs evaluations to their ends, whatever happens to single workers.

    Args:
        calls: runs them.
        requests: `result_url` is a folder of the evaluation's own; results are in its newest attempt, see
            `attempts_in`. What an earlier call left unfinished there goes on from its newest checkpoint.
        max_attempts: times that one is started before it counts as failed.
        should_stop: asked at least once a second.
        on_result: called with each that has ended.

    Returns:
        Results by job id; those that had not ended when it was stopped are missing.

    Raises:
        AdaptationError: one was started `max_attempts` times without a result.
        MetaSearchError: what one raised on purpose.
    """
    current = {request.job_id: _next_attempt(request) for request in requests}
    lost = dict.fromkeys(current, 0)
    results: dict[str, EvaluateResult] = {}
    for key, request in current.items():
        calls.submit(key, request, None)
    try:
        while calls.num_pending and not should_stop():
            for outcome in calls.poll(_POLL_S):
                key = outcome.key
                if outcome.error is not None:
                    raise type(outcome.error)(f"{key}: {outcome.error}") from outcome.error
                if outcome.lost:
                    lost[key] += outcome.uses_attempt
                    if lost[key] >= max_attempts:
                        raise AdaptationError(exhausted(outcome, lost[key]))
                    # In a folder of its own: whoever was believed dead may still be writing.
                    current[key] = replace(
                        current[key],
                        attempt=current[key].attempt + 1,
                        result_url=f"{_base(current[key].result_url)}/{_ATTEMPT}{current[key].attempt + 1}",
                    )
                elif outcome.result.summary is not None:
                    results[key] = outcome.result
                    on_result(outcome.result)
                    continue
                calls.submit(key, current[key], None)
    finally:
        calls.give_up()
    return results


def attempts_in(url: str) -> list[str]:
    """Folders of the attempts at an evaluation, oldest first."""
    names = [name for name in ArtifactFolder(url).names("", "") if name.startswith(_ATTEMPT)]
    return [f"{url}/{name}" for name in sorted(names, key=lambda name: int(name.removeprefix(_ATTEMPT)))]


def _next_attempt(request: EvaluateRequest) -> EvaluateRequest:
    attempts = attempts_in(request.result_url)
    number = int(attempts[-1].rpartition("-")[2]) + 1 if attempts else 1
    return replace(request, attempt=number, result_url=f"{request.result_url}/{_ATTEMPT}{number}")


def _base(url: str) -> str:
    return url.rpartition("/")[0]
