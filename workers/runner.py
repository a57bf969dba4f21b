"""Runs adaptation requests one after the other, keeping what is worth keeping between them: a warm supernet."""

from collections.abc import Callable

import torch

from common.config import NetworkConfig, SpaceConfig
from common.messages import AdaptRequest, AdaptResult
from common.meta.prior import Prior
from common.nn.supernet import Supernet, build_supernet
from workers.adapt import adapt
from workers.data.episodes import load_episode
from workers.device import use_single_thread


class TaskRunner:
    """What a worker does, without the actor around it.

    Args:
        device: to compute on.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._warm: tuple[SpaceConfig, NetworkConfig, Supernet] | None = None

    def run(
        self, prior: Prior, request: AdaptRequest, on_step: Callable[[int], None] = lambda step: None
    ) -> AdaptResult:
        """Loads the task's images and adapts to them; see `workers.adapt.adapt`."""
        # Here, not at construction: the setting belongs to the calling thread.
        use_single_thread()
        episode = load_episode(request.task)
        return adapt(prior, request, episode, self._supernet(request.space, request.network), on_step)

    def _supernet(self, space: SpaceConfig, network: NetworkConfig) -> Supernet:
        if self._warm is None or self._warm[:2] != (space, network):
            supernet = build_supernet(space, network, seed=0).to(self.device)
            self._warm = (space, network, supernet)
        return self._warm[2]
