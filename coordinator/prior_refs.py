"""Priors in Ray's object store, each once."""

from collections import OrderedDict
from typing import Any

import ray

from common.meta.prior import Prior

_KEPT = 8


class PriorRefs:
    """References to the last few priors that were asked for."""

    def __init__(self) -> None:
        self._refs: OrderedDict[str, Any] = OrderedDict()

    def of(self, prior: Prior) -> Any:
        """A reference to a prior, which is stored at the first call of it."""
        digest = prior.digest()
        if digest not in self._refs:
            self._refs[digest] = ray.put(prior)
            while len(self._refs) > _KEPT:
                self._refs.popitem(last=False)
        self._refs.move_to_end(digest)
        return self._refs[digest]
