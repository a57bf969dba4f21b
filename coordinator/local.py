"""The executor that runs tasks in this process, one after the other."""

from collections.abc import Generator, Sequence

import torch

from common.messages import PartialSumRequest
from common.meta.prior import Prior
from coordinator.rounds import Request, Result
from workers.runner import TaskRunner


class LocalExecutor:
    """See `coordinator.rounds.Executor`."""

    max_workers = 1

    def __init__(self, device: torch.device) -> None:
        self._runner = TaskRunner(device)

    def run(self, prior: Prior, requests: Sequence[Request]) -> Generator[Result, None, None]:
        """Yields results in the order of the requests."""
        for request in requests:
            if isinstance(request, PartialSumRequest):
                yield self._runner.run_many(prior, request)
            else:
                yield self._runner.run(prior, request)
