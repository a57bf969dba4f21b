"""Choosing genotypes from a posterior: how probable one is, the k most probable, the most probable within limits.

The distribution is that of rule `sample` of `common.space.genotype.derive`: at every node, two of its (source, op)
pairs are drawn without replacement, `none` left out. Nodes are independent, so a genotype's probability is a product
over nodes, its cost a sum, and both searches here are exact.
"""

import heapq
import math
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from common.config import Frozen, NetworkConfig, SpaceConfig
from common.cost import Cost, CostModel, check_fits, cost_model
from common.errors import InvalidInputError
from common.space.genotype import EDGES_PER_NODE, Genotype, GenotypeEdge, derive
from common.space.primitives import NONE
from common.space.topology import NUM_CELL_INPUTS

_UNLIMITED = 2**62  # above every cost, and within int64 after subtractions

Probabilities = Mapping[str, NDArray[np.floating]]


class Limits(Frozen):
    """What a derived network may cost, by the conventions of `common.cost`."""

    max_params: int | None = Field(None, ge=1)
    """Most parameters, classifier included; no limit where not given."""
    max_macs: int | None = Field(None, ge=1)
    """Most multiply-accumulates for one image; no limit where not given."""


@dataclass(frozen=True)
class ScoredGenotype:
    """A genotype, and the probability (0 to 1) that drawing from the posterior gives exactly it."""

    genotype: Genotype
    probability: float


def genotype_probability(genotype: Genotype, probabilities: Probabilities, space: SpaceConfig) -> float:
    """The probability that rule `sample` draws exactly `genotype`, in whatever order it lists a node's ops.

    The product over nodes of p_a p_b / (1 - p_a) + p_a p_b / (1 - p_b) for a node's ops a and b, p renormalised over
    the node's candidates. Where fewer than two candidates have any probability, ties go to the lowest flat index, as
    in `derive`.

    Args:
        genotype: 0 is the answer if a node has not exactly two ops.
        probabilities: per kind of cell, (num_edges, num_primitives), non-negative.
        space: what the rows and columns stand for.

    Raises:
        InvalidInputError: when the genotype or the probabilities do not fit the space.
    """
    check_fits(genotype, space)
    surprisals = []
    for node in _nodes(probabilities, space):
        pair = sorted(node.candidates.index(edge) for edge in genotype.cells[node.kind][node.index])
        if len(pair) != EDGES_PER_NODE:
            return 0.0
        surprisals.append(float(node.surprisals[(node.pairs == pair).all(axis=1).argmax()]))
    return math.exp(-math.fsum(surprisals))


def top_genotypes(probabilities: Probabilities, space: SpaceConfig, k: int) -> list[ScoredGenotype]:
    """The `k` most probable genotypes, most probable first; all of them where the space has fewer.

    The first is the one that `derive` gives by rule `top2_pairs`. Ties go to the genotype whose nodes rank their ops
    best, kinds in alphabetical order, then nodes, first to last.

    Args:
        probabilities: per kind of cell, (num_edges, num_primitives), non-negative.
        space: what the rows and columns stand for.
        k: >= 1.

    Raises:
        InvalidInputError: when `k` is less than 1, or the probabilities do not fit the space.
    """
    if k < 1:
        raise InvalidInputError(f"k must be >= 1, got {k}")
    nodes = _nodes(probabilities, space)
    best: list[ScoredGenotype] = []
    for surprisal, options in _by_surprisal([node.surprisals.tolist() for node in nodes]):
        best.append(ScoredGenotype(_genotype(nodes, options), math.exp(-surprisal)))
        if len(best) == k:
            break
    return best


def smallest_cost(space: SpaceConfig, network: NetworkConfig, image_size: int, num_classes: int) -> Cost:
    """The fewest parameters and, independently, the fewest multiply-accumulates of a genotype with two ops per node.

    One genotype need not have both.

    Raises:
        InvalidInputError: as `common.cost.network_cost`.
    """
    return _smallest(space, cost_model(space, network, image_size, num_classes))


def check_feasible(
    limits: Limits, space: SpaceConfig, network: NetworkConfig, image_size: int, num_classes: int
) -> None:
    """Refuses limits that no genotype of the space respects, whatever the posterior.

    Raises:
        InvalidInputError: see `select`.
    """
    if limits != Limits():
        uniform = np.full((space.topology.num_edges, len(space.ops)), 1 / len(space.ops))
        select(dict.fromkeys(space.cell_kinds, uniform), space, network, image_size, num_classes, limits)


def select(
    probabilities: Probabilities,
    space: SpaceConfig,
    network: NetworkConfig,
    image_size: int,
    num_classes: int,
    limits: Limits,
) -> ScoredGenotype:
    """The most probable genotype whose network respects `limits`; the first of `top_genotypes` where that one does.

    Exact: a dynamic program over the nodes, which keeps every combination of costs and probability that no other
    one is at least as good as in all respects. Takes milliseconds for cells of 4 nodes, and 0.2 s where the posterior
    favours just what costs most.

    Args:
        probabilities: per kind of cell, (num_edges, num_primitives), non-negative.
        space: what the rows and columns stand for.
        network: the layout of the network.
        image_size: height and width in pixels; picks the head.
        num_classes: rows of the classifier, >= 1.
        limits: what the network may cost.

    Raises:
        InvalidInputError: when no genotype respects the limits, with the smallest cost there is; or as
            `common.cost.network_cost` and `top_genotypes`.
    """
    model = cost_model(space, network, image_size, num_classes)
    nodes = _nodes(probabilities, space)
    costs = [_option_costs(node, model) for node in nodes]
    room = _room(limits, model.constant)
    options = [0] * len(nodes)
    if (sum(of_node[0] for of_node in costs) > room).any():
        limited = np.array([limits.max_params is not None, limits.max_macs is not None])
        found = _cheapest(
            [node.surprisals for node in nodes], [of_node[:, limited] for of_node in costs], room[limited]
        )
        if found is None:
            raise InvalidInputError(_why_none(limits, model.constant, _smallest(space, model), costs, room))
        options = found
    surprisal = math.fsum(float(node.surprisals[option]) for node, option in zip(nodes, options, strict=True))
    return ScoredGenotype(_genotype(nodes, options), math.exp(-surprisal))


@dataclass(frozen=True)
class _Node:
    """What one node of one kind of cell may keep.

    Attributes:
        kind: of the cell.
        index: of the node in the cell.
        candidates: its (source, op) pairs, in flat order.
        pairs: (num_options, 2), positions in `candidates`, ascending; the most probable option comes first.
        surprisals: (num_options,), -log of each option's probability in nats, ascending, infinite for 0.
    """

    kind: str
    index: int
    candidates: tuple[GenotypeEdge, ...]
    pairs: NDArray[np.int64]
    surprisals: NDArray[np.float64]


def _nodes(probabilities: Probabilities, space: SpaceConfig) -> list[_Node]:
    """The nodes of all kinds of cell, kinds in alphabetical order."""
    if set(probabilities) != set(space.cell_kinds):
        raise InvalidInputError(
            f"probabilities are of the cell kinds {', '.join(sorted(probabilities)) or 'none'}; "
            f"space.cell_kinds has {', '.join(sorted(space.cell_kinds))}"
        )
    derive(probabilities, space.topology, space.ops)  # for its checks of shapes and values
    columns = [column for column, name in enumerate(space.ops) if name != NONE]
    nodes = []
    for kind in sorted(space.cell_kinds):
        for index in range(space.num_nodes):
            values = probabilities[kind][list(space.topology.edges_into(index))][:, columns].astype(np.float64)
            nodes.append(_Node(kind, index, _candidates(space, index), *_ranked_pairs(values.ravel())))
    return nodes


def _candidates(space: SpaceConfig, node: int) -> tuple[GenotypeEdge, ...]:
    """The (source, op) pairs of a node in flat order; at least two, since every node sees both inputs."""
    return tuple(
        GenotypeEdge(source=source, primitive=name)
        for source in range(NUM_CELL_INPUTS + node)
        for name in space.ops
        if name != NONE
    )


def _ranked_pairs(values: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """All pairs of a node's candidates, most probable first, and their surprisals in nats.

    Every step of the arithmetic is monotone as rounded, and ties go by rank, so that the first pair is always that of
    the two largest values.
    """
    order = np.argsort(-values, kind="stable")
    ranks = np.argsort(order)
    first, second = np.triu_indices(values.size, 1)
    scaled = values / (values.max() or 1.0)
    if np.count_nonzero(scaled) < EDGES_PER_NODE:
        chances = (ranks[first] + ranks[second] == 1).astype(np.float64)
    else:
        # What is left after one candidate, summed without it: 1 - p would cancel where p is near 1.
        rests = np.array([math.fsum(np.delete(scaled, index)) for index in range(scaled.size)])
        shares = scaled / math.fsum(scaled)
        chances = shares[first] * (scaled[second] / rests[first]) + shares[second] * (scaled[first] / rests[second])
    better, worse = np.minimum(ranks[first], ranks[second]), np.maximum(ranks[first], ranks[second])
    by_chance = np.lexsort((worse, better, -chances))
    with np.errstate(divide="ignore"):
        surprisals = -np.log(np.minimum(chances[by_chance], 1.0))
    return np.stack([first, second], axis=1)[by_chance], np.maximum.accumulate(surprisals)


def _genotype(nodes: Sequence[_Node], options: Sequence[int]) -> Genotype:
    """The genotype that keeps one option of each node."""
    cells: dict[str, list[tuple[GenotypeEdge, ...]]] = {}
    for node, option in zip(nodes, options, strict=True):
        cells.setdefault(node.kind, []).append(tuple(node.candidates[index] for index in node.pairs[option]))
    return Genotype(cells={kind: tuple(kept) for kind, kept in cells.items()})


def _by_surprisal(lists: Sequence[Sequence[float]]) -> Iterator[tuple[float, tuple[int, ...]]]:
    """All combinations of one element of each ascending list, by ascending sum, then by position.

    Each combination is reached once, from the one whose last position above 0 is one less; its sum is no smaller, as
    `fsum` rounds the exact sum.
    """
    first = (0,) * len(lists)
    heap = [(math.fsum(values[0] for values in lists), first)]
    while heap:
        total, positions = heapq.heappop(heap)
        yield total, positions
        last = max((index for index, position in enumerate(positions) if position), default=0)
        for index in range(last, len(lists)):
            if positions[index] + 1 < len(lists[index]):
                following = (*positions[:index], positions[index] + 1, *positions[index + 1 :])
                sums = (values[position] for values, position in zip(lists, following, strict=True))
                heapq.heappush(heap, (math.fsum(sums), following))


def _smallest(space: SpaceConfig, model: CostModel) -> Cost:
    """See `smallest_cost`."""
    total = model.constant
    for kind in space.cell_kinds:
        for node in range(space.num_nodes):
            costs = [model.op(kind, edge.source, edge.primitive) for edge in _candidates(space, node)]
            total += Cost(
                sum(sorted(cost.num_params for cost in costs)[:EDGES_PER_NODE]),
                sum(sorted(cost.num_macs for cost in costs)[:EDGES_PER_NODE]),
            )
    return total


def _option_costs(node: _Node, model: CostModel) -> NDArray[np.int64]:
    """(num_options, 2), parameters and multiply-accumulates of each option of a node in all cells of its kind."""
    costs = [model.op(node.kind, edge.source, edge.primitive) for edge in node.candidates]
    table = np.array([(cost.num_params, cost.num_macs) for cost in costs], dtype=np.int64)
    chosen: NDArray[np.int64] = table[node.pairs].sum(axis=1)
    return chosen


def _room(limits: Limits, constant: Cost) -> NDArray[np.int64]:
    """(2,), the parameters and multiply-accumulates left for ops; negative where the constant part is too much."""
    most = [_UNLIMITED if limit is None else min(limit, _UNLIMITED) for limit in (limits.max_params, limits.max_macs)]
    return np.array(most, dtype=np.int64) - np.array([constant.num_params, constant.num_macs], dtype=np.int64)


def _why_none(
    limits: Limits, constant: Cost, smallest: Cost, costs: Sequence[NDArray[np.int64]], room: NDArray[np.int64]
) -> str:
    """The message for limits that no genotype respects."""
    problems = []
    if limits.max_params is not None and limits.max_params < smallest.num_params:
        problems.append(f"max_params is {limits.max_params}, the smallest network has {smallest.num_params} parameters")
    if limits.max_macs is not None and limits.max_macs < smallest.num_macs:
        problems.append(
            f"max_macs is {limits.max_macs}, the smallest network has {smallest.num_macs} multiply-accumulates"
        )
    if problems:
        return f"no genotype of the space respects the limits: {'; '.join(problems)}; raise the limit"
    macs = [of_node[:, 1] for of_node in costs]
    within = _cheapest(
        [of_node.astype(np.float64) for of_node in macs], [of_node[:, :1] for of_node in costs], room[:1]
    )
    assert within is not None
    fewest = constant.num_macs + sum(int(of_node[option]) for of_node, option in zip(macs, within, strict=True))
    return (
        f"no genotype of the space has at most max_params {limits.max_params} and at most max_macs {limits.max_macs}, "
        f"though each alone is possible; with so few parameters it takes {fewest} multiply-accumulates; "
        "raise one of the limits"
    )


def _cheapest(
    values: Sequence[NDArray[np.float64]], costs: Sequence[NDArray[np.int64]], room: NDArray[np.int64]
) -> list[int] | None:
    """The option of each node whose values have the smallest sum, while the sums of costs stay within `room`.

    Args:
        values: per node, (num_options,), non-negative, may be infinite.
        costs: per node, (num_options, num_resources), non-negative.
        room: (num_resources,).

    Returns:
        An option per node, or None where nothing fits.
    """
    kept = [_undominated(of_node, costs[node]) for node, of_node in enumerate(values)]
    rest = np.sum([of_node.min(axis=0) for of_node in costs], axis=0)
    states_value, states_cost = np.zeros(1), np.zeros((1, len(room)), dtype=np.int64)
    steps = []
    for node, options in enumerate(kept):
        rest = rest - costs[node].min(axis=0)
        value = (states_value[:, None] + values[node][options]).ravel()
        cost = (states_cost[:, None] + costs[node][options]).reshape(-1, len(room))
        alive = np.flatnonzero((cost + rest <= room).all(axis=1))
        alive = alive[_undominated(value[alive], cost[alive])]
        states_value, states_cost = value[alive], cost[alive]
        steps.append(alive)
    if not states_value.size:
        return None
    state = int(states_value.argmin())
    chosen = []
    for options, alive in zip(reversed(kept), reversed(steps), strict=True):
        state, option = divmod(int(alive[state]), len(options))
        chosen.append(int(options[option]))
    return chosen[::-1]


def _undominated(values: NDArray[np.float64], costs: NDArray[np.int64]) -> NDArray[np.int64]:
    """Indices of the elements to which no other one is at least as good in value and every cost; of equals, one."""
    order = np.lexsort((values, *costs.T[::-1]))
    if costs.shape[1] == 1:
        ordered = values[order]
        best_before = np.minimum.accumulate(np.concatenate([[np.inf], ordered[:-1]]))
        keep = ordered < best_before
        keep[:1] = True
        return order[keep]
    # Among what costs less of the first resource: costs of the second, ascending, whose best values descend.
    stair_costs: list[int] = []
    stair_values: list[float] = []
    kept = []
    for index, cost, value in zip(order.tolist(), costs[order, 1].tolist(), values[order].tolist(), strict=True):
        place = bisect_right(stair_costs, cost)
        if place and stair_values[place - 1] <= value:
            continue
        kept.append(index)
        end = place
        while end < len(stair_values) and stair_values[end] >= value:
            end += 1
        stair_costs[place:end] = [cost]
        stair_values[place:end] = [value]
    return np.array(kept, dtype=np.int64)
