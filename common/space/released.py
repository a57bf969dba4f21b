"""Genotypes that were published, by name."""

from collections.abc import Mapping
from types import MappingProxyType

from common.errors import NotFoundError
from common.space.genotype import Genotype, GenotypeEdge
from common.space.primitives import (
    AVG_POOL,
    DIL_CONV_3,
    DIL_CONV_5,
    MAX_POOL,
    SEP_CONV_3,
    SEP_CONV_5,
    SKIP,
)

NORMAL = "normal"
REDUCTION = "reduction"

_Nodes = tuple[tuple[tuple[str, int], ...], ...]


def _genotype(normal: _Nodes, reduction: _Nodes) -> Genotype:
    """A genotype from its (op, source) pairs, node by node."""
    return Genotype(
        cells={
            kind: tuple(tuple(GenotypeEdge(source=source, primitive=op) for op, source in node) for node in nodes)
            for kind, nodes in ((NORMAL, normal), (REDUCTION, reduction))
        }
    )


CIFAR_TUNED = _genotype(
    normal=(
        ((SKIP, 0), (DIL_CONV_3, 1)),
        ((MAX_POOL, 0), (DIL_CONV_5, 0)),
        ((MAX_POOL, 0), (SEP_CONV_5, 0)),
        ((MAX_POOL, 1), (DIL_CONV_5, 1)),
    ),
    reduction=(
        ((SEP_CONV_3, 0), (SEP_CONV_5, 0)),
        ((MAX_POOL, 0), (SEP_CONV_3, 0)),
        ((SKIP, 0), (AVG_POOL, 3)),
        ((MAX_POOL, 1), (SKIP, 2)),
    ),
)
"""BASE, adapted to CIFAR10 (the authors' released evaluation code)."""

IMAGENET_TUNED = _genotype(
    normal=(
        ((SKIP, 0), (MAX_POOL, 1)),
        ((AVG_POOL, 0), (SEP_CONV_5, 1)),
        ((SEP_CONV_5, 0), (DIL_CONV_5, 3)),
        ((SEP_CONV_5, 0), (SEP_CONV_5, 2)),
    ),
    reduction=(
        ((MAX_POOL, 0), (SEP_CONV_5, 0)),
        ((MAX_POOL, 0), (AVG_POOL, 0)),
        ((SEP_CONV_5, 2), (DIL_CONV_5, 2)),
        ((AVG_POOL, 0), (SEP_CONV_5, 3)),
    ),
)
"""BASE, adapted to ImageNet (the authors' released evaluation code)."""

DARTS_V1 = _genotype(
    normal=(
        ((SEP_CONV_3, 1), (SEP_CONV_3, 0)),
        ((SKIP, 0), (SEP_CONV_3, 1)),
        ((SKIP, 0), (SEP_CONV_3, 1)),
        ((SEP_CONV_3, 0), (SKIP, 2)),
    ),
    reduction=(
        ((MAX_POOL, 0), (MAX_POOL, 1)),
        ((SKIP, 2), (MAX_POOL, 0)),
        ((MAX_POOL, 0), (SKIP, 2)),
        ((SKIP, 2), (AVG_POOL, 0)),
    ),
)
"""DARTS, first order, searched on CIFAR10 (Liu et al. 2019; the public DARTS code)."""

DARTS_V2 = _genotype(
    normal=(
        ((SEP_CONV_3, 0), (SEP_CONV_3, 1)),
        ((SEP_CONV_3, 0), (SEP_CONV_3, 1)),
        ((SEP_CONV_3, 1), (SKIP, 0)),
        ((SKIP, 0), (DIL_CONV_3, 2)),
    ),
    reduction=(
        ((MAX_POOL, 0), (MAX_POOL, 1)),
        ((SKIP, 2), (MAX_POOL, 1)),
        ((MAX_POOL, 0), (SKIP, 2)),
        ((SKIP, 2), (MAX_POOL, 1)),
    ),
)
"""DARTS, second order, searched on CIFAR10 (Liu et al. 2019; the public DARTS code)."""

RELEASED: Mapping[str, Genotype] = MappingProxyType(
    {
        "CIFAR_TUNED": CIFAR_TUNED,
        "IMAGENET_TUNED": IMAGENET_TUNED,
        "DARTS_V1": DARTS_V1,
        "DARTS_V2": DARTS_V2,
    }
)


def released_genotype(name: str) -> Genotype:
    """The published genotype that goes by `name`.

    Raises:
        NotFoundError: there is none; the message lists the names.
    """
    if name not in RELEASED:
        raise NotFoundError(f"there is no genotype {name!r}; released are {', '.join(RELEASED)}")
    return RELEASED[name]
