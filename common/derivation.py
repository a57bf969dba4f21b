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

from common.config import NetworkConfig, SpaceConfig
from common.cost import Cost, check_fits, cost_model
from common.errors import InvalidInputError
from common.limits import Limits, Resource, resources_of
from common.nn.counting import full_cost_model
from common.space.genotype import EDGES_PER_NODE, Genotype, GenotypeEdge, derive
from common.space.primitives import NONE
from common.space.topology import NUM_CELL_INPUTS

_BLOCK = 256

Probabilities = Mapping[str, NDArray[np.floating]]


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
    model = cost_model(space, network, image_size, num_classes)
    total = model.constant
    for kind in space.cell_kinds:
        for node in range(space.num_nodes):
            costs = [model.op(kind, edge.source, edge.primitive) for edge in _candidates(space, node)]
            total += Cost(
                sum(sorted(cost.num_params for cost in costs)[:EDGES_PER_NODE]),
                sum(sorted(cost.num_macs for cost in costs)[:EDGES_PER_NODE]),
            )
    return total


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
    if limits.network is None:
        model = cost_model(space, network, image_size, num_classes)
    else:
        model = full_cost_model(space, limits.network)
    resources = resources_of(limits, model, space, image_size)
    nodes = _nodes(probabilities, space)
    options = [0] * len(nodes)
    if resources:
        costs = [_option_costs(node, resources) for node in nodes]
        room = np.array([resource.room for resource in resources], dtype=np.int64)
        if (sum(of_node[0] for of_node in costs) > room).any():
            found = _cheapest([node.surprisals for node in nodes], costs, room)
            if found is None:
                raise InvalidInputError(_why_none(resources, costs))
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


def _option_costs(node: _Node, resources: Sequence[Resource]) -> NDArray[np.int64]:
    """(num_options, num_resources), what each option of a node takes of them in all cells of its kind."""
    keys = [(node.kind, edge.source < NUM_CELL_INPUTS, edge.primitive) for edge in node.candidates]
    table = np.array([[resource.of_op[key] for resource in resources] for key in keys], dtype=np.int64)
    chosen: NDArray[np.int64] = table[node.pairs].sum(axis=1)
    return chosen


def _why_none(resources: Sequence[Resource], costs: Sequence[NDArray[np.int64]]) -> str:
    """The message for limits that no genotype respects."""
    problems = []
    for column, resource in enumerate(resources):
        least = resource.constant + sum(int(of_node[:, column].min()) for of_node in costs)
        if least > resource.constant + resource.room:
            problems.append(f"{resource.field} is {resource.most}, the smallest network has {resource.written(least)}")
    if problems:
        return f"no genotype of the space respects the limits: {'; '.join(problems)}; raise the limit"
    # Each alone is possible: the shortest list of limits that together are not, and what the last of them would take.
    for count in range(2, len(resources) + 1):
        *kept, last = resources[:count]
        values = [of_node[:, count - 1].astype(np.float64) for of_node in costs]
        room = np.array([resource.room for resource in kept], dtype=np.int64)
        within = _cheapest(values, [of_node[:, : count - 1] for of_node in costs], room)
        assert within is not None
        fewest = sum(int(of_node[option, count - 1]) for of_node, option in zip(costs, within, strict=True))
        if fewest > last.room:
            break
    limits = " and ".join(f"at most {resource.field} {resource.most}" for resource in resources[:count])
    return (
        f"no genotype of the space has {limits}, though each alone is possible; with {_few(kept)} it takes "
        f"{last.written(last.constant + fewest)}; raise one of the limits"
    )


def _few(kept: Sequence[Resource]) -> str:
    return " and ".join(
        "so little latency" if resource.unit == "ms" else f"so few {resource.unit}" for resource in kept
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
    if costs.shape[1] > 2:
        return _undominated_of_many(values, costs, order)
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


def _undominated_of_many(
    values: NDArray[np.float64], costs: NDArray[np.int64], order: NDArray[np.int64]
) -> NDArray[np.int64]:
    """As `_undominated`, for any number of costs: block by block against what was kept before.

    Args:
        values: (num_elements,).
        costs: (num_elements, num_resources).
        order: of the elements by first cost, then the others, then value: none is dominated by a later one.
    """
    points = np.column_stack([costs, values])[order] if values.size else np.zeros((0, costs.shape[1] + 1))
    kept = np.zeros(len(order), dtype=bool)
    for start in range(0, len(order), _BLOCK):
        block = points[start : start + _BLOCK]
        earlier = points[:start][kept[:start]]
        alive = np.ones(len(block), dtype=bool)
        for first in range(0, len(earlier), _BLOCK * _BLOCK // len(block)):
            some = earlier[first : first + _BLOCK * _BLOCK // len(block)]
            alive &= ~np.any((some[None, :, :] <= block[:, None, :]).all(axis=2), axis=1)
        within = (block[None, :, :] <= block[:, None, :]).all(axis=2)
        # Of two in a block, the earlier one dominates, of equals too; a dominated one's dominator dominates as well.
        alive &= ~np.any(np.tril(within, -1), axis=1)
        kept[start : start + len(block)] = alive
    return order[kept]
