"""Where to draw the parts of a cell: a layered layout, left to right, in which every op has a place of its own.

Layers alternate: nodes of one depth, then the ops that feed the nodes of the next depth. An edge that spans several
layers holds a place in each layer it passes, so nothing is drawn over it and it is drawn over nothing. Orders within
layers are swept for few crossings (Sugiyama's method), then heights are least squares. Lengths are inches, y grows
upwards.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls  # type: ignore[import-untyped]  # comes with scikit-learn

from common.space.genotype import GenotypeEdge
from common.space.topology import NUM_CELL_INPUTS
from common.streams import stream

INPUT_WIDTH, NODE_WIDTH, NODE_HEIGHT, LABEL_HEIGHT = 0.6, 0.36, 0.34, 0.25
PORT_SPACING = 0.1  # between arrows at one node
CLEARANCE = 0.13  # between neighbours in a layer
NARROWEST_GAP, WIDEST_GAP = 0.34, 0.95  # between layers
STEEPNESS = 0.3  # gap per inch that an arrow climbs
MARGIN = 0.18
NUM_STARTS, NUM_SWEEPS, NUM_CANDIDATES = 30, 8, 12
ANCHOR = 1e-3  # pull of every height towards 0, which settles where the drawing as a whole lies

Key = tuple[str, int, int]  # ("node", source number, 0), ("op", node, index) or ("via", chain, layer)
Layers = list[list[Key]]


@dataclass(frozen=True)
class Box:
    """A rectangle by its centre."""

    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True, eq=False)
class Route:
    """An arrow into a node, or from a node to the output.

    Attributes:
        primitive: the op; None for the concatenation.
        source: number of the source, as in a genotype.
        target: number of the node as if it were a source; the output follows the last node.
        index: which of the target's ops.
        label: place of the op's name; None for the concatenation.
        points: (1 + 3 num_pieces, 2), control points of cubic Bézier pieces.
    """

    primitive: str | None
    source: int
    target: int
    index: int
    label: Box | None
    points: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class CellLayout:
    """A placed cell: boxes of the two inputs, the nodes and the output, in this order, and the arrows."""

    nodes: tuple[Box, ...]
    routes: tuple[Route, ...]
    width: float
    height: float


@dataclass(frozen=True)
class _Chain:
    """The keys an edge passes, one per layer, from its source to its target."""

    primitive: str | None
    index: int
    first_layer: int
    keys: tuple[Key, ...]


def lay_out(nodes: Sequence[Sequence[GenotypeEdge]], label_widths: Mapping[str, float]) -> CellLayout:
    """Places for one kind of cell.

    Args:
        nodes: per node, the ops that feed it.
        label_widths: per primitive, the width of its label in inches.

    Returns:
        Boxes that do not overlap, and arrows that touch no box but their own.
    """
    chains = _chains(nodes)
    layers, segments = _layers(chains)
    sizes = _sizes(chains, label_widths)
    placements = [(order, _heights(order, segments, sizes)) for order in _orders(layers, segments)]
    order, heights = min(placements, key=lambda placement: _bending(segments, placement[1]))
    return _assemble(chains, order, segments, sizes, heights)


def _chains(nodes: Sequence[Sequence[GenotypeEdge]]) -> list[_Chain]:
    depths = [0] * NUM_CELL_INPUTS
    for edges in nodes:
        depths.append(1 + max(depths[edge.source] for edge in edges))
    output = (len(depths), 2 * max(depths) + 1)
    chains: list[_Chain] = []

    def add(primitive: str | None, index: int, source: int, target: tuple[int, int]) -> None:
        number, last_layer = target
        first_layer = 2 * depths[source]
        vias: list[Key] = [("via", len(chains), layer) for layer in range(first_layer + 1, last_layer)]
        if primitive is not None:
            vias[-1] = ("op", number, index)
        keys: tuple[Key, ...] = (("node", source, 0), *vias, ("node", number, 0))
        chains.append(_Chain(primitive, index, first_layer, keys))

    for node, edges in enumerate(nodes):
        number = NUM_CELL_INPUTS + node
        for index, edge in enumerate(edges):
            add(edge.primitive, index, edge.source, (number, 2 * depths[number]))
    for node in range(len(nodes)):
        add(None, 0, NUM_CELL_INPUTS + node, output)
    return chains


def _layers(chains: Sequence[_Chain]) -> tuple[Layers, list[list[tuple[Key, Key]]]]:
    """Keys of every layer, and per gap between layers the pairs of keys that an arrow joins."""
    num_layers = max(chain.first_layer + len(chain.keys) for chain in chains)
    layers: list[dict[Key, None]] = [{} for _ in range(num_layers)]
    segments: list[list[tuple[Key, Key]]] = [[] for _ in range(num_layers - 1)]
    layers[0] = {("node", source, 0): None for source in range(NUM_CELL_INPUTS)}  # an input may feed nothing
    for chain in chains:
        for offset, key in enumerate(chain.keys):
            layers[chain.first_layer + offset][key] = None
        for offset, pair in enumerate(pairwise(chain.keys)):
            segments[chain.first_layer + offset].append(pair)
    return [list(layer) for layer in layers], segments


def _sizes(chains: Sequence[_Chain], label_widths: Mapping[str, float]) -> dict[Key, tuple[float, float]]:
    """(width, height) of every key; nodes with many arrows are taller."""
    sizes: dict[Key, tuple[float, float]] = {}
    output = chains[-1].keys[-1]
    for end in (0, -1):
        ends = [chain.keys[end] for chain in chains]
        for key in [*ends, *(("node", source, 0) for source in range(NUM_CELL_INPUTS))]:
            width = INPUT_WIDTH if key[1] < NUM_CELL_INPUTS else NODE_WIDTH
            height = max(NODE_HEIGHT, PORT_SPACING * (ends.count(key) + 1))
            sizes[key] = (INPUT_WIDTH if key == output else width, max(height, sizes.get(key, (0.0, 0.0))[1]))
    for chain in chains:
        for key in chain.keys[1:-1]:
            sizes[key] = (0.0, 0.0)
        if chain.primitive is not None:
            sizes[chain.keys[-2]] = (label_widths[chain.primitive], LABEL_HEIGHT)
    return sizes


def _orders(layers: Layers, segments: list[list[tuple[Key, Key]]]) -> list[Layers]:
    """Orders of few crossings: barycentre sweeps from several starts, all the best distinct ones."""
    random = stream(0, "cell layout")
    found: list[Layers] = []
    fewest = np.inf
    for start in range(NUM_STARTS):
        order = [list(layer) for layer in layers]
        if start:
            for layer in order:
                random.shuffle(layer)
        for sweep in range(2 * NUM_SWEEPS):
            _sweep_(order, segments, forward=sweep % 2 == 0)
            crossings = _num_crossings(order, segments)
            if crossings < fewest:
                fewest, found = crossings, []
            if crossings == fewest and order not in found:
                found.append([list(layer) for layer in order])
    return found[:NUM_CANDIDATES]


def _sweep_(order: Layers, segments: list[list[tuple[Key, Key]]], forward: bool) -> None:
    """Sorts each layer by the mean place of its neighbours in the layer before (after, if not `forward`)."""
    for step in range(len(segments)):
        gap = step if forward else len(segments) - 1 - step
        fixed, free = (gap, gap + 1) if forward else (gap + 1, gap)
        places = {key: place for place, key in enumerate(order[fixed])}
        neighbours: dict[Key, list[int]] = {key: [] for key in order[free]}
        for left, right in segments[gap]:
            moved, still = (right, left) if forward else (left, right)
            neighbours[moved].append(places[still])
        means = {
            key: float(np.mean(neighbours[key])) if neighbours[key] else float(place)
            for place, key in enumerate(order[free])
        }
        order[free].sort(key=means.__getitem__)


def _num_crossings(order: Layers, segments: list[list[tuple[Key, Key]]]) -> int:
    places = {key: place for layer in order for place, key in enumerate(layer)}
    return sum(
        (places[a] - places[b]) * (places[c] - places[d]) < 0
        for pairs in segments
        for (a, c), (b, d) in combinations(pairs, 2)
    )


def _straightness(left: Key, right: Key) -> float:
    """Weight of a piece of an arrow: long arrows should be straight most of all."""
    return (1.0, 12.0, 200.0)[(left[0] == "via") + (right[0] == "via")]


def _bending(segments: list[list[tuple[Key, Key]]], heights: Mapping[Key, float]) -> float:
    pairs = (pair for gap in segments for pair in gap)
    return sum(_straightness(*pair) * (heights[pair[0]] - heights[pair[1]]) ** 2 for pair in pairs)


def _heights(
    order: Layers, segments: list[list[tuple[Key, Key]]], sizes: Mapping[Key, tuple[float, float]]
) -> dict[Key, float]:
    """y of every key: least bending under the order and the clearances.

    The quadratic programme min |A y| subject to C y >= d is solved exactly as a least distance problem (Lawson and
    Hanson 1974, chapter 23), which is one non-negative least squares problem.
    """
    columns = {key: column for column, key in enumerate(key for layer in order for key in layer)}
    identity = np.eye(len(columns))
    pieces = [
        np.sqrt(_straightness(left, right)) * (identity[columns[left]] - identity[columns[right]])
        for left, right in (pair for gap in segments for pair in gap)
    ]
    neighbours = [pair for layer in order for pair in pairwise(layer)]
    above = np.stack([identity[columns[upper]] - identity[columns[lower]] for lower, upper in neighbours])
    distances = np.array([(sizes[a][1] + sizes[b][1]) / 2 + CLEARANCE for a, b in neighbours])
    triangle: NDArray[np.float64] = np.linalg.qr(np.vstack([*pieces, ANCHOR * identity])).R
    rotated = np.linalg.solve(triangle.T, above.T)  # (num_keys, num_neighbours)
    system = np.vstack([rotated, distances])
    goal = np.append(np.zeros(len(columns)), 1.0)
    residual = system @ nnls(system, goal)[0] - goal
    heights = np.linalg.solve(triangle, -residual[:-1] / residual[-1])
    if heights[columns["node", 0, 0]] < heights[columns["node", 1, 0]]:
        heights = -heights  # upside down it is as good, and c_{k-2} is expected on top
    return dict(zip(columns, heights.tolist(), strict=True))


def _assemble(
    chains: Sequence[_Chain],
    order: Layers,
    segments: list[list[tuple[Key, Key]]],
    sizes: Mapping[Key, tuple[float, float]],
    heights: Mapping[Key, float],
) -> CellLayout:
    """Boxes and arrows in the drawing's coordinates."""
    low = min(heights[key] - sizes[key][1] / 2 for key in heights) - MARGIN
    high = max(heights[key] + sizes[key][1] / 2 for key in heights) + MARGIN
    spans: list[tuple[float, float]] = []
    right = MARGIN
    for index, layer in enumerate(order):
        left = right
        right = left + max(sizes[key][0] for key in layer)
        spans.append((left, right))
        if index < len(segments):
            climb = max(abs(heights[a] - heights[b]) for a, b in segments[index])
            right += min(max(STEEPNESS * climb, NARROWEST_GAP), WIDEST_GAP)
    boxes = {
        key: Box(sum(span) / 2, heights[key] - low, *sizes[key])
        for layer, span in zip(order, spans, strict=True)
        for key in layer
    }
    leaves = _ports(chains, boxes, end=0)
    enters = _ports(chains, boxes, end=-1)
    routes = []
    for number, chain in enumerate(chains):
        first, last = boxes[chain.keys[0]], boxes[chain.keys[-1]]
        label = boxes[chain.keys[-2]] if chain.primitive is not None else None
        points = [(first.x + first.width / 2, leaves[number])]
        for offset, key in enumerate(chain.keys):
            box, (left, right) = boxes[key], spans[chain.first_layer + offset]
            if offset:
                y = enters[number] if key == chain.keys[-1] else box.y
                _curve_to_(points, (last.x - last.width / 2 if key == chain.keys[-1] else left, y))
            if key != chain.keys[-1]:
                _curve_to_(points, (right, points[-1][1]))
        routes.append(Route(chain.primitive, chain.keys[0][1], chain.keys[-1][1], chain.index, label, np.array(points)))
    nodes = tuple(boxes[key] for key in sorted(key for key in boxes if key[0] == "node"))
    return CellLayout(nodes, tuple(routes), right + MARGIN, high - low)


def _ports(chains: Sequence[_Chain], boxes: Mapping[Key, Box], end: Literal[0, -1]) -> list[float]:
    """Per chain, the y at which it leaves its source (`end` 0) or enters its target (-1): spread, and uncrossed."""
    next_key = 1 if end == 0 else -2
    ports = [0.0] * len(chains)
    for key in {chain.keys[end] for chain in chains}:
        here = [number for number, chain in enumerate(chains) if chain.keys[end] == key]
        here.sort(key=lambda number: boxes[chains[number].keys[next_key]].y)
        for place, number in enumerate(here):
            ports[number] = boxes[key].y + PORT_SPACING * (place - (len(here) - 1) / 2)
    return ports


def _curve_to_(points: list[tuple[float, float]], end: tuple[float, float]) -> None:
    """Appends a piece that leaves and arrives level."""
    x, y = points[-1]
    middle = (x + end[0]) / 2
    points += [(middle, y), (middle, end[1]), end]
