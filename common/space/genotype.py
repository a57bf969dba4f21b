"""Genotypes: which ops a cell keeps, as a value with JSON, and the rules that derive one from a posterior."""

import json
from collections.abc import Mapping
from typing import Literal, Self, get_args

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from common.errors import InvalidInputError
from common.space.primitives import NONE, PARAMETER_FREE, PRIMITIVES
from common.space.topology import NUM_CELL_INPUTS, Topology
from common.streams import stream

DerivationRule = Literal["top2_pairs", "darts", "sample"]
EDGES_PER_NODE = 2


class GenotypeEdge(BaseModel):
    """One kept op: `primitive` applied to `source` (0 and 1 are the cell's inputs, 2 + n is node n)."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    source: int
    primitive: str


class Genotype(BaseModel):
    """The architecture of every kind of cell: per kind, per node, the ops that feed the node.

    Two ops of one node may share their source (8 of the 16 nodes of the released BASE genotypes do), as long as the
    ops differ.

    Raises:
        InvalidInputError: from `from_json`, when a primitive is unknown, a source lies ahead of its node, or a node
            has no op or the same op twice.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    cells: Mapping[str, tuple[tuple[GenotypeEdge, ...], ...]]

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.cells:
            raise ValueError("cells must name at least one kind of cell")
        for kind, nodes in self.cells.items():
            if not nodes:
                raise ValueError(f"cells.{kind} must have at least one node")
            for index, edges in enumerate(nodes):
                where = f"cells.{kind}[{index}]"
                if not edges:
                    raise ValueError(f"{where} has no op; give at least one")
                if len(set(edges)) != len(edges):
                    raise ValueError(f"{where} has the same op from the same source twice; remove one")
                for edge in edges:
                    if edge.primitive not in PRIMITIVES or edge.primitive == NONE:
                        known = ", ".join(name for name in PRIMITIVES if name != NONE)
                        raise ValueError(f"{where} has primitive {edge.primitive!r}; use one of {known}")
                    if not 0 <= edge.source < NUM_CELL_INPUTS + index:
                        raise ValueError(
                            f"{where} has source {edge.source}; node {index} sees 0 to {NUM_CELL_INPUTS + index - 1}"
                        )
        return self

    def to_json(self) -> str:
        """Compact JSON with sorted kinds; equal genotypes give equal text."""
        return json.dumps(self.model_dump(mode="json"), sort_keys=True)

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """The inverse of `to_json`.

        Raises:
            InvalidInputError: when the text is not JSON or not a legal genotype.
        """
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            problem = error.errors(include_url=False)[0]
            where = ".".join(str(part) for part in problem["loc"]) or "genotype"
            raise InvalidInputError(f"{where}: {problem['msg'].removeprefix('Value error, ')}") from None

    def num_parameter_free(self, kind: str) -> int:
        """How many of the ops of `kind` are pooling or skip connections."""
        return sum(edge.primitive in PARAMETER_FREE for node in self.cells[kind] for edge in node)


def derive(
    probabilities: Mapping[str, NDArray[np.floating]],
    topology: Topology,
    primitives: tuple[str, ...],
    rule: DerivationRule = "top2_pairs",
    seed: int = 0,
) -> Genotype:
    """The discrete architecture that a posterior stands for.

    Args:
        probabilities: per kind of cell, (num_edges, num_primitives), non-negative.
        topology: the edges that the rows stand for.
        primitives: the ops that the columns stand for.
        rule: `top2_pairs` ranks all (source, op) pairs of a node and keeps the best two, in flat order
            (reconstruction: the rule that fits the released genotypes); `darts` keeps, per node, the two sources whose
            best op is strongest, one op each, strongest first (the public DARTS code); `sample` draws two pairs of a
            node without replacement, in flat order. `none` is never kept; ties go to the lowest flat index.
        seed: for `sample` alone.

    Returns:
        A genotype with two ops per node (fewer only where a node has fewer candidates).

    Raises:
        InvalidInputError: on an unknown rule, nothing to choose from, a wrong shape, or values that are not finite and
            non-negative.
    """
    if rule not in get_args(DerivationRule):
        raise InvalidInputError(f"derive must be one of {', '.join(get_args(DerivationRule))}, got {rule!r}")
    if not probabilities or set(primitives) <= {NONE}:
        raise InvalidInputError("derive needs at least one kind of cell, and one op beside none")
    cells: dict[str, tuple[tuple[GenotypeEdge, ...], ...]] = {}
    for kind, matrix in probabilities.items():
        expected = (topology.num_edges, len(primitives))
        if matrix.shape != expected:
            raise InvalidInputError(f"probabilities of {kind!r} must have shape {expected}, got {matrix.shape}")
        values = matrix.astype(np.float64)
        if not np.isfinite(values).all() or (values < 0).any():
            raise InvalidInputError(f"probabilities of {kind!r} must be finite and non-negative")
        cells[kind] = tuple(
            _derive_node(values[list(topology.edges_into(node))], primitives, rule, seed, f"{kind}/{node}")
            for node in range(topology.num_nodes)
        )
    return Genotype(cells=cells)


def _derive_node(
    values: NDArray[np.float64], primitives: tuple[str, ...], rule: DerivationRule, seed: int, key: str
) -> tuple[GenotypeEdge, ...]:
    """Ops of one node from its (num_sources, num_primitives) probabilities."""
    kept = [column for column, name in enumerate(primitives) if name != NONE]
    candidates = values[:, kept]
    if rule == "darts":
        best = candidates.argmax(axis=1)
        strength = candidates.max(axis=1)
        sources = np.argsort(-strength, kind="stable")[:EDGES_PER_NODE]
        chosen = [(int(source), int(best[source])) for source in sources]
    else:
        flat = candidates.ravel()
        if rule == "sample":
            # Gumbel-top-k: the k largest of log p + Gumbel noise are a draw without replacement.
            with np.errstate(divide="ignore"):
                flat = np.log(flat) + stream(seed, "derive", key).gumbel(size=flat.size)
        top = np.sort(np.argsort(-flat, kind="stable")[:EDGES_PER_NODE])
        chosen = [divmod(int(index), len(kept)) for index in top]
    return tuple(GenotypeEdge(source=source, primitive=primitives[kept[column]]) for source, column in chosen)
