"""The directed graph of a cell: two inputs, then nodes that each see everything before them.

Sources are numbered as in the paper: 0 and 1 are the outputs of the two cells before, 2 + n is node n of this cell.
Edges are numbered node by node, each node's sources ascending; architecture logits have one row per edge.
"""

from dataclasses import dataclass
from functools import cached_property

from common.errors import InvalidInputError

NUM_CELL_INPUTS = 2


@dataclass(frozen=True, order=True)
class CellEdge:
    """A connection from `source` (0 .. node + 1) to `node` (0 .. num_nodes - 1)."""

    node: int
    source: int


@dataclass(frozen=True)
class Topology:
    """The edges of a cell with `num_nodes` >= 1 intermediate nodes (4 in BASE, which makes 14 edges)."""

    num_nodes: int

    def __post_init__(self) -> None:
        if self.num_nodes < 1:
            raise InvalidInputError(f"num_nodes must be >= 1, got {self.num_nodes}; set space.num_nodes")

    @cached_property
    def edges(self) -> tuple[CellEdge, ...]:
        """All edges in order."""
        return tuple(
            CellEdge(node, source) for node in range(self.num_nodes) for source in range(NUM_CELL_INPUTS + node)
        )

    @property
    def num_edges(self) -> int:
        """Two for the first node, one more for each further node."""
        return self.num_nodes * (self.num_nodes + 3) // 2

    def edges_into(self, node: int) -> range:
        """Indices of the edges that end in `node`, sources ascending."""
        first = node * (node + 3) // 2
        return range(first, first + NUM_CELL_INPUTS + node)

    def edges_from(self, source: int) -> tuple[int, ...]:
        """Indices of the edges that start in `source`, nodes ascending."""
        return tuple(index for index, edge in enumerate(self.edges) if edge.source == source)
