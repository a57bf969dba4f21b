"""What is kept of the priors that were asked for last, as many as fit."""

from collections import OrderedDict
from typing import Generic, TypeVar

MOST_BYTES = 512 << 20
"""Of the priors in the coordinator's memory, and of those in Ray's object store: 25 as large as the paper's."""

Kept = TypeVar("Kept")


class RecentPriors(Generic[Kept]):
    """Priors, or what stands for them, by their digests; the one that was asked for last always.

    Args:
        most_bytes: that priors take together.
    """

    def __init__(self, most_bytes: int = MOST_BYTES) -> None:
        self._most_bytes = most_bytes
        self._num_bytes = 0
        self._kept: OrderedDict[str, tuple[Kept, int]] = OrderedDict()

    def get(self, digest: str) -> Kept | None:
        """What is kept of a prior, if anything is."""
        if digest not in self._kept:
            return None
        self._kept.move_to_end(digest)
        return self._kept[digest][0]

    def add(self, digest: str, kept: Kept, num_bytes: int) -> None:
        """Keeps one, and lets go of those that were not asked for the longest.

        Args:
            digest: of the prior.
            kept: what is kept of it.
            num_bytes: that the prior takes.
        """
        self._num_bytes += num_bytes - self._kept.pop(digest, (None, 0))[1]
        self._kept[digest] = (kept, num_bytes)
        while self._num_bytes > self._most_bytes and len(self._kept) > 1:
            _, (_, freed) = self._kept.popitem(last=False)
            self._num_bytes -= freed
