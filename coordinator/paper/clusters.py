"""How posteriors of several families of tasks lie to each other: components, silhouettes, spreads (figure 3)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import silhouette_samples

from coordinator.html_report.pca import Components, principal_components


@dataclass(frozen=True, eq=False)
class Clusters:
    """Vectors of several families, seen together.

    Attributes:
        families: of each vector.
        components: the first two principal components of all vectors.
        silhouettes: per family, mean silhouette of its vectors (Rousseeuw 1987), -1 to 1: how much nearer a vector
            lies to its own family than to the next one. Of whole vectors, not of their two components.
        silhouette: mean over all vectors.
        spreads: per family, mean distance of its vectors from their mean, divided by the mean over families.
        nearest: per family, the family whose mean is nearest to its own.
    """

    families: tuple[str, ...]
    components: Components
    silhouettes: Mapping[str, float]
    silhouette: float
    spreads: Mapping[str, float]
    nearest: Mapping[str, str]


def clusters(vectors: Mapping[str, Sequence[NDArray[np.floating]]]) -> Clusters:
    """Compares families of vectors of one length.

    Args:
        vectors: by family, at least two vectors of each, at least two families.
    """
    names = tuple(name for name, of_family in vectors.items() for _ in of_family)
    rows = [vector for of_family in vectors.values() for vector in of_family]
    silhouettes = silhouette_samples(np.stack(rows), names)
    means = {name: np.mean(of_family, axis=0, dtype=np.float64) for name, of_family in vectors.items()}
    spreads = {
        name: float(np.mean([np.linalg.norm(vector - means[name]) for vector in of_family]))
        for name, of_family in vectors.items()
    }
    scale = float(np.mean(list(spreads.values()))) or 1.0
    nearest = {
        name: min((other for other in means if other != name), key=lambda other: np.linalg.norm(means[other] - mean))
        for name, mean in means.items()
    }
    return Clusters(
        families=names,
        components=principal_components(rows),
        silhouettes={
            name: float(np.mean([value for value, of in zip(silhouettes, names, strict=True) if of == name]))
            for name in vectors
        },
        silhouette=float(np.mean(silhouettes)),
        spreads={name: spread / scale for name, spread in spreads.items()},
        nearest=nearest,
    )
