"""Means of many vectors that come out bitwise the same in whatever order the vectors arrive."""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from common.config import OuterConfig

# Fixed point: a value x counts as the integer round(x * 2^40). Integer sums are exact, hence the same in any order.
# Resolution 9e-13, five digits finer than float32 weights need; 4096 values of MAX_MAGNITUDE still fit 63 bits.
_FRACTION_BITS = 40
MAX_MAGNITUDE = 1024.0
MAX_VECTORS = 4096
# Weights are integers too, in units of 2^-20.
_WEIGHT_UNITS = 1 << 20
# Elements that are converted at a time: three buffers of them stay in the L2 cache.
_CHUNK = 16_384


class Aggregator(Protocol):
    """Takes vectors one by one, then gives their mean."""

    def add(self, vector: NDArray[np.floating], weight: float) -> None:
        """Takes one vector (size,) with a weight > 0; `|vector * weight|` must not exceed `MAX_MAGNITUDE`."""
        ...

    def result(self) -> NDArray[np.float64]:
        """The mean (size,) of what was added, which must be something."""
        ...


def aggregator(size: int, config: OuterConfig) -> Aggregator:
    """An empty aggregator of vectors of `size` by the configured rule."""
    if config.rule == "median":
        return _Stacked(size, trim_fraction=None)
    if config.rule == "trimmed_mean":
        return _Stacked(size, trim_fraction=config.trim_fraction)
    return FixedPointMean(size)


class FixedPointMean:
    """Weighted mean by exact integer sums. Memory does not grow with the number of vectors."""

    def __init__(self, size: int) -> None:
        self._total = np.zeros(size, np.int64)
        self._weight_units = 0
        self._num_vectors = 0

    def add(self, vector: NDArray[np.floating], weight: float) -> None:
        """See `Aggregator.add`."""
        assert self._num_vectors < MAX_VECTORS, "more vectors than the fixed-point range is made for"
        units = max(round(weight * _WEIGHT_UNITS), 1)
        factor = units / _WEIGHT_UNITS * 2.0**_FRACTION_BITS
        scaled = np.empty(min(_CHUNK, len(vector)), np.float64)
        integers = np.empty_like(scaled, dtype=np.int64)
        for start in range(0, len(vector), _CHUNK):
            part = vector[start : start + _CHUNK]
            reals, whole = scaled[: len(part)], integers[: len(part)]
            np.multiply(part, factor, out=reals, dtype=np.float64)
            np.rint(reals, out=reals)
            whole[:] = reals
            self._total[start : start + _CHUNK] += whole
        self._weight_units += units
        self._num_vectors += 1

    def result(self) -> NDArray[np.float64]:
        """See `Aggregator.result`."""
        return self._total / (2.0**_FRACTION_BITS * (self._weight_units / _WEIGHT_UNITS))


class _Stacked:
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
