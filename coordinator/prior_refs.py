"""Priors in Ray's object store, each once."""

from typing import Any

import ray

from common.meta.prior import Prior
from coordinator.recent_priors import RecentPriors


class PriorRefs:
    """References to the priors that were asked for last."""

    def __init__(self) -> None:
        self._refs: RecentPriors[Any] = RecentPriors()

    def of(self, prior: Prior) -> Any:
        """A reference to a prior, which is stored at the first call of it."""
        ref = self._refs.get(prior.digest())
        if ref is None:
            ref = ray.put(prior)
            self._refs.add(prior.digest(), ref, prior.num_bytes)
        return ref
