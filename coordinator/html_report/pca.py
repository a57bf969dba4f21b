"""Principal components of a few long vectors, by their Gram matrix."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Components:
    """The first two principal components.

    Attributes:
        points: (num_vectors, 2), coordinates about the mean.
        explained: shares of the variance that the two hold, 0 to 1; both 0 where the vectors do not differ.
    """

    points: NDArray[np.float64]
    explained: tuple[float, float]


def principal_components(vectors: Sequence[NDArray[np.floating]]) -> Components:
    """The first two principal components of at least three vectors of one length.

    The Gram matrix is as small as there are few vectors, whatever their length. Signs are set so that the largest
    coordinate of each component is positive, which makes the answer one.
    """
    mean = np.mean(vectors, axis=0, dtype=np.float64)
    gram = np.empty((len(vectors), len(vectors)))
    for row, vector in enumerate(vectors):
        centred = vector - mean  # one at a time: all of them in float64 would take twice their memory
        for column in range(row + 1):
            gram[row, column] = gram[column, row] = centred @ (vectors[column] - mean)
    values, directions = np.linalg.eigh(gram)
    spread = np.clip(values[::-1][:2], 0.0, None)
    points = directions[:, ::-1][:, :2] * np.sqrt(spread)
    largest = points[np.abs(points).argmax(axis=0), range(2)]
    total = float(np.trace(gram))
    shares = spread / total if total > 0 else np.zeros(2)
    return Components(points * np.where(largest < 0, -1.0, 1.0), (float(shares[0]), float(shares[1])))
