"""The executor that runs tasks in this process, one after the other."""

from collections.abc import Generator, Sequence

import torch

from common.messages import AdaptRequest, AdaptResult
from common.meta.prior import Prior
from workers.runner import TaskRunner


class LocalExecutor:
    """See `coordinator.rounds.Executor`."""

    def __init__(self, device: torch.device) -> None:
        self._runner = TaskRunner(device)

    def run(self, prior: Prior, requests: Sequence[AdaptRequest]) -> Generator[AdaptResult, None, None]:
        """Yields results in the order of the requests."""
        for request in requests:
            yield self._runner.run(prior, request)
