"""The executor that runs tasks in this process, one after the other."""

from collections.abc import Callable, Generator, Sequence

import torch

from common.messages import AdaptResult, PartialSumRequest
from common.meta.prior import Prior
from coordinator.rounds import Request, Result, Supply
from workers.runner import TaskRunner


class LocalExecutor:
    """See `coordinator.rounds.Executor`."""

    max_workers = 1

    def __init__(self, device: torch.device) -> None:
        self._runner = TaskRunner(device)

    def run(
        self, prior: Prior, requests: Sequence[Request], is_over: Callable[[], bool] = lambda: False
    ) -> Generator[Result, None, None]:
        """Yields results in the order of the requests."""
        for request in requests:
            if is_over():
                return
            if isinstance(request, PartialSumRequest):
                yield self._runner.run_many(prior, request)
            else:
                yield self._runner.run(prior, request)

    def stream(self, supply: Supply) -> Generator[AdaptResult, None, None]:
        """Takes a task, yields its result, and takes the next: none is ever stale."""
        while requests := supply.hand_out(1):
            for request in requests:
                yield self._runner.run(supply.prior, request)
