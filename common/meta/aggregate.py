"""Means of many vectors that come out bitwise the same in whatever order the vectors arrive."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from common.config import OuterConfig
from common.nn.native.library import find
from common.schedule_config import MAX_UPDATES

# Fixed point: a value x counts as the integer round(x * 2^40). Integer sums are exact, hence the same in any order.
# Resolution 9e-13, five digits finer than float32 weights need; 4096 values of MAX_MAGNITUDE still fit 63 bits.
_FRACTION_BITS = 40
MAX_MAGNITUDE = 1024.0
MAX_VECTORS = MAX_UPDATES
# Weights are integers too, in units of 2^-20.
_WEIGHT_UNITS = 1 << 20
# Vectors that wait to be added together: the totals, twice as wide, are then read and written once for all of them.
MAX_PENDING = 8
# Elements that numpy converts at a time: three buffers of them stay in the L2 cache.
_CHUNK = 16_384
# Elements that are finished together.
_PART = 65_536


class Aggregator(ABC):
    """Takes vectors one by one, then gives their mean."""

    @abstractmethod
    def add(self, vector: NDArray[np.floating], weight: float) -> None:
        """Takes one vector (size,) with a weight > 0; `|vector * weight|` must not exceed `MAX_MAGNITUDE`.

        The vector is kept, not copied: it must not change afterwards.
        """

    @abstractmethod
    def result(self) -> NDArray[np.float64]:
        """The mean (size,) of what was added, which must be something; once, and nothing may be added afterwards."""


def aggregator(size: int, config: OuterConfig) -> Aggregator:
    """An empty aggregator of vectors of `size` by the configured rule."""
    if config.rule == "median":
        return _Stacked(size, trim_fraction=None)
    if config.rule == "trimmed_mean":
        return _Stacked(size, trim_fraction=config.trim_fraction)
    return FixedPointMean(size)


def is_summable(config: OuterConfig) -> bool:
    """Whether the rule is a mean, of which parts can be summed apart; robust rules need every vector."""
    return config.rule in ("mean", "clipped_mean")


@dataclass(frozen=True)
class FixedPointSum:
    """A weighted sum of vectors, exactly.

    Attributes:
        totals: (size,), in units of 2^-40.
        weight_units: sum of the weights, in units of 2^-20.
        num_vectors: that were added.
    """

    totals: NDArray[np.int64]
    weight_units: int
    num_vectors: int


def added(sums: Sequence[FixedPointSum]) -> FixedPointSum:
    """The sum of at least one sum, exactly; none of them is changed."""
    totals = sums[0].totals.copy()
    for other in sums[1:]:
        totals += other.totals
    return FixedPointSum(totals, sum(each.weight_units for each in sums), sum(each.num_vectors for each in sums))


class FixedPointMean(Aggregator):
    """Weighted mean by exact integer sums. Memory does not grow with the number of vectors: a few wait, no more."""

    def __init__(self, size: int) -> None:
        self._totals = np.zeros(size, np.int64)
        self._weight_units = 0
        self._num_vectors = 0
        self._pending: list[tuple[NDArray[np.floating], float]] = []

    def add(self, vector: NDArray[np.floating], weight: float) -> None:
        """See `Aggregator.add`."""
        assert vector.shape == self._totals.shape, f"{vector.shape} instead of {self._totals.shape}"
        self._count(1)
        units = max(round(weight * _WEIGHT_UNITS), 1)
        self._weight_units += units
        self._pending.append((vector, units / _WEIGHT_UNITS * 2.0**_FRACTION_BITS))
        if len(self._pending) == MAX_PENDING:
            self._flush()

    def merge(self, other: FixedPointSum) -> None:
        """Adds all that was added to `other`, to the same bits as one by one."""
        self._count(other.num_vectors)
        self._weight_units += other.weight_units
        self._totals += other.totals

    def sum(self) -> FixedPointSum:
        """What was added. Its totals are not copied, so nothing may be added afterwards."""
        self._flush()
        return FixedPointSum(self._totals, self._weight_units, self._num_vectors)

    def result(self) -> NDArray[np.float64]:
        """See `Aggregator.result`."""
        divisor = 2.0**_FRACTION_BITS * (self._weight_units / _WEIGHT_UNITS)
        # In place, while a part is in the cache: fresh memory, and another pass, cost more than the division.
        library, _ = find()
        divide = _divide_fixed_point if library is None else library.divide_fixed_point
        for start in range(0, self._totals.size, _PART):
            part = slice(start, start + _PART)
            self._add_pending(part)
            divide(self._totals[part], divisor)
        mean = self._totals.view(np.float64)
        self._pending.clear()
        self._totals = np.zeros(0, np.int64)
        return mean

    def _count(self, num_vectors: int) -> None:
        self._num_vectors += num_vectors
        assert self._num_vectors <= MAX_VECTORS, "more vectors than the fixed-point range is made for"

    def _flush(self) -> None:
        self._add_pending(slice(None))
        self._pending.clear()

    def _add_pending(self, part: slice) -> None:
        library, _ = find()
        add = _add_fixed_point if library is None else library.add_fixed_point
        by_type: dict[type, list[tuple[NDArray[np.floating], float]]] = {np.float32: [], np.float64: []}
        for vector, factor in self._pending:
            dtype = np.float32 if vector.dtype == np.float32 else np.float64
            by_type[dtype].append((np.ascontiguousarray(vector[part], dtype), factor))
        for pairs in by_type.values():
            if pairs:
                add(self._totals[part], *zip(*pairs, strict=True))


def _add_fixed_point(
    totals: NDArray[np.int64], vectors: Sequence[NDArray[np.floating]], factors: Sequence[float]
) -> None:
    """What `Library.add_fixed_point` does, to the same bits, where there is no library."""
    scaled = np.empty(min(_CHUNK, totals.size), np.float64)
    integers = np.empty_like(scaled, dtype=np.int64)
    for start in range(0, totals.size, _CHUNK):
        part = totals[start : start + _CHUNK]
        reals, whole = scaled[: part.size], integers[: part.size]
        for vector, factor in zip(vectors, factors, strict=True):
            np.multiply(vector[start : start + _CHUNK], factor, out=reals, dtype=np.float64)
            np.rint(reals, out=reals)
            whole[:] = reals
            part += whole


def _divide_fixed_point(totals: NDArray[np.int64], divisor: float) -> None:
    """What `Library.divide_fixed_point` does, to the same bits, where there is no library."""
    np.divide(totals, divisor, out=totals.view(np.float64))


class _Stacked(Aggregator):
    """Robust means per coordinate, of unweighted vectors. Keeps all of them; sorting makes their order irrelevant."""

    def __init__(self, size: int, trim_fraction: float | None) -> None:
        self._size = size
        self._trim_fraction = trim_fraction
        self._vectors: list[NDArray[np.floating]] = []

    def add(self, vector: NDArray[np.floating], weight: float) -> None:
        """See `Aggregator.add`; all weights are equal (see `OuterConfig`)."""
        self._vectors.append(vector)

    def result(self) -> NDArray[np.float64]:
        """See `Aggregator.result`."""
        count = len(self._vectors)
        result = np.empty(self._size, np.float64)
        for start in range(0, self._size, _CHUNK):
            part = np.stack([vector[start : start + _CHUNK] for vector in self._vectors]).astype(np.float64)
            part.sort(axis=0)
            if self._trim_fraction is None:
                kept = part[(count - 1) // 2 : count // 2 + 1]
            else:
                trimmed = int(count * self._trim_fraction)
                kept = part[trimmed : count - trimmed]
            result[start : start + _CHUNK] = kept.mean(axis=0)
        return result
