"""Choosing genotypes: against every genotype of small spaces, with probabilities by exact sequential draws."""

import itertools
import math
import re
from collections import Counter
from fractions import Fraction
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from reference.latency_tables import latency_table

from common.config import NetworkConfig, SpaceConfig
from common.cost import Cost, network_cost
from common.derivation import (
    ScoredGenotype,
    _undominated,
    genotype_probability,
    select,
    smallest_cost,
    top_genotypes,
)
from common.errors import InvalidInputError
from common.latency import OpShape
from common.limits import Limits
from common.network_config import network_config
from common.nn.counting import count_network, full_cost_model
from common.space.genotype import Genotype, GenotypeEdge, derive
from common.space.primitives import NONE, PRIMITIVES

# Two kinds, two nodes, two ops that cost something else in parameters than in multiply-accumulates: 8100 genotypes.
SPACE = SpaceConfig(primitives=("sep_conv_3x3", "none", "dil_conv_5x5"), num_nodes=2)
NETWORK = NetworkConfig(channels=4, cells=("normal", "reduction", "normal", "reduction", "normal"), heads={16: 1})
NUM_CLASSES = 3

# The same with one kind: 90 genotypes.
ONE_KIND = SpaceConfig(primitives=SPACE.primitives, num_nodes=2, cell_kinds={"normal": 1})

ONE_NODE = SpaceConfig(primitives=("none", "skip_connect", "max_pool_3x3"), num_nodes=1, cell_kinds={"normal": 1})

# One kind, ops whose parameters and multiply-accumulates rank differently, also by source: 540 genotypes.
VARIED = SpaceConfig(primitives=("sep_conv_3x3", "dil_conv_5x5", "conv_7x1_1x7"), num_nodes=2, cell_kinds={"up": 2})
VARIED_NETWORK = NetworkConfig(channels=2, cells=("up", "up", "up"), heads={16: 1})

# Of every profile's size, for what need not enumerate.
LARGE = SpaceConfig(profile="base+", num_nodes=4)
LARGE_NETWORK = NetworkConfig(heads={32: 2})


def drawn_pairs(weights: list[int]) -> dict[frozenset[int], Fraction]:
    """Exact chances of the sets of two indices that drawing one after the other gives; ties of 0 to the lowest."""
    pairs: dict[frozenset[int], Fraction] = {}

    def chances(left: list[int]) -> dict[int, Fraction]:
        total = sum(weights[index] for index in left)
        return {index: Fraction(weights[index], total) for index in left} if total else {left[0]: Fraction(1)}

    everything = list(range(len(weights)))
    for first, chance in chances(everything).items():
        if chance:
            for second, next_chance in chances([index for index in everything if index != first]).items():
                pair = frozenset((first, second))
                pairs[pair] = pairs.get(pair, Fraction(0)) + chance * next_chance
    return pairs


def every_cell_of(space: SpaceConfig) -> list[tuple[tuple[GenotypeEdge, ...], ...]]:
    kept = [name for name in space.ops if name != NONE]
    nodes = [
        list(
            itertools.combinations(
                [GenotypeEdge(source=source, primitive=name) for source in range(2 + node) for name in kept], 2
            )
        )
        for node in range(space.num_nodes)
    ]
    return list(itertools.product(*nodes))


@cache
def every_cell() -> list[tuple[tuple[GenotypeEdge, ...], ...]]:
    return every_cell_of(SPACE)


@cache
def every_varied_cost() -> dict[tuple[tuple[GenotypeEdge, ...], ...], Cost]:
    return {
        cell: network_cost(Genotype(cells={"up": cell}), VARIED, VARIED_NETWORK, 16, 2)
        for cell in every_cell_of(VARIED)
    }


@cache
def every_genotype() -> list[Genotype]:
    pairs = itertools.product(every_cell(), every_cell())
    return [Genotype(cells={"normal": normal, "reduction": reduction}) for normal, reduction in pairs]


@cache
def every_cost() -> list[Cost]:
    return [network_cost(genotype, SPACE, NETWORK, 16, NUM_CLASSES) for genotype in every_genotype()]


@cache
def texts() -> dict[str, int]:
    return {genotype.to_json(): index for index, genotype in enumerate(every_genotype())}


def every_cell_probability(weights: np.ndarray) -> list[float]:
    """In the order of `every_cell`."""
    kept = [column for column, name in enumerate(SPACE.ops) if name != NONE]
    nodes = []
    for node in range(SPACE.num_nodes):
        flat = weights[list(SPACE.topology.edges_into(node))][:, kept].ravel().tolist()
        pairs = drawn_pairs(flat)
        indices = itertools.combinations(range(len(flat)), 2)
        nodes.append([pairs.get(frozenset(pair), Fraction(0)) for pair in indices])
    return [float(math.prod(chances)) for chances in itertools.product(*nodes)]


def every_probability(weights: dict[str, np.ndarray]) -> list[float]:
    """In the order of `every_genotype`."""
    kinds = [every_cell_probability(weights[kind]) for kind in ("normal", "reduction")]
    return [math.prod(chances) for chances in itertools.product(*kinds)]


@st.composite
def weights(draw, space):
    """Small integers, so with ties, zeros, and rows that are nothing else."""
    shape = (space.topology.num_edges, len(space.ops))
    values = st.lists(st.sampled_from([0, 0, 1, 1, 2, 3, 7]), min_size=math.prod(shape), max_size=math.prod(shape))
    return {kind: np.array(draw(values)).reshape(shape) for kind in space.cell_kinds}


@st.composite
def limits(draw):
    """Neither, either or both limits, at or one below the cost of some genotype."""

    def limit(costs: list[int]) -> int | None:
        place = draw(st.none() | st.integers(0, len(costs) - 1))
        return None if place is None else costs[place] - draw(st.integers(0, 1))

    params = sorted({cost.num_params for cost in every_cost()})
    macs = sorted({cost.num_macs for cost in every_cost()})
    return Limits(max_params=limit(params), max_macs=limit(macs))


@st.composite
def close_posteriors(draw):
    """A space and a posterior with ties, values that differ in the last bit, and values many decades apart."""
    primitives = tuple(draw(st.lists(st.sampled_from(PRIMITIVES), min_size=2, max_size=6, unique=True)))
    space = SpaceConfig(primitives=primitives, num_nodes=draw(st.integers(1, 3)))
    base = draw(st.floats(0.01, 1.0))
    values = [base]
    for _ in range(4):
        values.append(float(np.nextafter(values[-1], 2.0)))
    values += [0.0, base / 3, 1e-20, 1e-300, 5e-324]
    shape = (space.topology.num_edges, len(primitives))
    matrix = st.lists(st.sampled_from(values), min_size=math.prod(shape), max_size=math.prod(shape))
    return space, {kind: np.array(draw(matrix)).reshape(shape) for kind in space.cell_kinds}


def random_posterior(space: SpaceConfig, seed: int) -> dict[str, np.ndarray]:
    logits = np.random.default_rng(seed).normal(size=(len(space.cell_kinds), space.topology.num_edges, len(space.ops)))
    values = np.exp(logits) / np.exp(logits).sum(axis=2, keepdims=True)
    return dict(zip(space.cell_kinds, values, strict=True))


def one_node_posterior(*values: float, none: float = 0.0) -> dict[str, np.ndarray]:
    """Of `ONE_NODE`: skip and pool of source 0, skip and pool of source 1."""
    return {"normal": np.array([[none, *values[:2]], [none, *values[2:]]])}


def one_node_pair(first: int, second: int) -> Genotype:
    ops = [(0, "skip_connect"), (0, "max_pool_3x3"), (1, "skip_connect"), (1, "max_pool_3x3")]
    kept = tuple(GenotypeEdge(source=ops[index][0], primitive=ops[index][1]) for index in (first, second))
    return Genotype(cells={"normal": (kept,)})


def fits(cost: Cost, limits: Limits) -> bool:
    return cost.num_params <= (limits.max_params or math.inf) and cost.num_macs <= (limits.max_macs or math.inf)


def chosen(posterior: dict[str, np.ndarray], limits: Limits) -> ScoredGenotype:
    return select(posterior, SPACE, NETWORK, 16, NUM_CLASSES, limits)


def test_probability_of_a_pair_adds_both_orders_of_drawing():
    posterior = one_node_posterior(0.4, 0.3, 0.2, 0.1)
    expected = 0.4 * 0.3 / 0.6 + 0.3 * 0.4 / 0.7
    assert genotype_probability(one_node_pair(0, 1), posterior, ONE_NODE) == pytest.approx(expected, rel=1e-12)


def test_probability_ignores_none_scale_and_order_of_ops():
    posterior = one_node_posterior(4, 3, 2, 1, none=90)
    expected = 0.3 * 0.1 / 0.7 + 0.1 * 0.3 / 0.9
    assert genotype_probability(one_node_pair(3, 1), posterior, ONE_NODE) == pytest.approx(expected, rel=1e-12)


def test_probability_is_accurate_where_one_op_has_nearly_all():
    # Beside a certain op, the second is drawn from what is left: 3 to 1.
    posterior = one_node_posterior(1.0, 3e-30, 1e-30, 0.0)
    found = [genotype_probability(one_node_pair(0, second), posterior, ONE_NODE) for second in (1, 2, 3)]
    assert found == pytest.approx([0.75, 0.25, 0.0], rel=1e-12)


@pytest.mark.parametrize(
    ("values", "pair"), [((0, 0, 0, 1.0), (0, 3)), ((0, 1.0, 0, 0), (0, 1)), ((0, 0, 0, 0), (0, 1))]
)
def test_probability_is_all_on_what_sample_draws_where_nothing_else_is_possible(values, pair):
    posterior = one_node_posterior(*values)
    assert genotype_probability(one_node_pair(*pair), posterior, ONE_NODE) == 1.0
    assert derive(posterior, ONE_NODE.topology, ONE_NODE.ops, "sample", 3) == one_node_pair(*pair)
    assert sum(one.probability for one in top_genotypes(posterior, ONE_NODE, 6)) == 1.0


def test_probability_is_how_often_sample_draws_a_genotype():
    posterior, num_draws = one_node_posterior(0.5, 0.3, 0.15, 0.05), 3000
    draws = Counter(
        derive(posterior, ONE_NODE.topology, ONE_NODE.ops, "sample", seed).to_json() for seed in range(num_draws)
    )
    for pair in itertools.combinations(range(4), 2):
        chance = genotype_probability(one_node_pair(*pair), posterior, ONE_NODE)
        error = math.sqrt(chance * (1 - chance) / num_draws)
        assert draws[one_node_pair(*pair).to_json()] / num_draws == pytest.approx(chance, abs=4 * error)


def test_genotype_that_does_not_keep_two_ops_is_never_drawn():
    single = Genotype(cells={"normal": ((GenotypeEdge(source=0, primitive="skip_connect"),),)})
    assert genotype_probability(single, one_node_posterior(1, 1, 1, 1), ONE_NODE) == 0.0


@settings(max_examples=50, deadline=None)
@given(weights(ONE_KIND))
def test_probabilities_of_all_genotypes_sum_to_one_and_are_the_exact_ones(posterior):
    scored = top_genotypes(posterior, ONE_KIND, 1000)
    found = {one.genotype.cells["normal"]: one.probability for one in scored}
    assert len(scored) == len(every_cell())
    assert [found[cell] for cell in every_cell()] == pytest.approx(
        every_cell_probability(posterior["normal"]), rel=1e-10
    )
    assert math.fsum(found.values()) == pytest.approx(1.0, rel=1e-10)


@settings(max_examples=50, deadline=None)
@given(weights(SPACE), st.integers(1, 200))
def test_top_genotypes_are_the_most_probable_of_all_in_order(posterior, k):
    scored = top_genotypes(posterior, SPACE, k)
    found = [one.probability for one in scored]
    assert found == sorted(found, reverse=True)
    assert found == pytest.approx(sorted(every_probability(posterior), reverse=True)[:k], rel=1e-10)
    assert len({one.genotype.to_json() for one in scored}) == k
    assert found[0] == genotype_probability(scored[0].genotype, posterior, SPACE)


@settings(deadline=None)
@given(close_posteriors())
def test_first_genotype_is_that_of_rule_top2_pairs(case):
    space, posterior = case
    if set(space.ops) == {NONE}:
        return
    best = top_genotypes(posterior, space, 1)[0].genotype
    assert best == derive(posterior, space.topology, space.ops, "top2_pairs")


@pytest.mark.parametrize(
    ("values", "pairs"),
    [
        ((1, 1, 1, 1), [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]),
        ((1, 2, 1, 1), [(0, 1), (1, 2), (1, 3), (0, 2), (0, 3), (2, 3)]),  # what has the most probable op is ahead
    ],
)
def test_ties_go_to_the_ops_that_come_first(values, pairs):
    scored = top_genotypes(one_node_posterior(*values), ONE_NODE, 6)
    assert [one.genotype for one in scored] == [one_node_pair(*pair) for pair in pairs]


def test_order_does_not_depend_on_the_order_of_kinds():
    posterior = {kind: np.ones((5, 3)) for kind in ("normal", "reduction")}
    backwards = dict(reversed(posterior.items()))
    other = SpaceConfig(primitives=SPACE.primitives, num_nodes=2, cell_kinds={"reduction": 2, "normal": 1})
    assert top_genotypes(posterior, SPACE, 40) == top_genotypes(backwards, other, 40)


@pytest.mark.untraced
@settings(max_examples=100, deadline=None)
@given(weights(SPACE), limits())
def test_select_finds_the_most_probable_genotype_within_limits(posterior, limits):
    probabilities = every_probability(posterior)
    feasible = [p for p, cost in zip(probabilities, every_cost(), strict=True) if fits(cost, limits)]
    if not feasible:
        with pytest.raises(InvalidInputError, match="no genotype of the space"):
            chosen(posterior, limits)
        return
    found = chosen(posterior, limits)
    index = texts()[found.genotype.to_json()]
    assert fits(every_cost()[index], limits)
    assert found.probability == pytest.approx(max(feasible), rel=1e-10)
    assert found.probability == pytest.approx(probabilities[index], rel=1e-10)


@pytest.mark.untraced
@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32), st.floats(0.1, 3.0), st.integers(0, 539), st.integers(0, 539))
def test_select_trades_parameters_against_multiply_accumulates(seed, sharpness, first, second):
    posterior = {"up": random_posterior(VARIED, seed)["up"] ** sharpness}
    costs = list(every_varied_cost().values())
    limits = Limits(max_params=costs[first].num_params, max_macs=costs[second].num_macs)
    ranked = top_genotypes(posterior, VARIED, len(costs))
    expected = next((one for one in ranked if fits(every_varied_cost()[one.genotype.cells["up"]], limits)), None)
    if expected is None:
        with pytest.raises(InvalidInputError, match="each alone is possible"):
            select(posterior, VARIED, VARIED_NETWORK, 16, 2, limits)
        return
    assert select(posterior, VARIED, VARIED_NETWORK, 16, 2, limits).genotype == expected.genotype


@pytest.mark.untraced
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("resources", [("max_params",), ("max_macs",), ("max_params", "max_macs")])
def test_select_finds_in_a_large_space_what_enumeration_finds(seed, resources):
    posterior = random_posterior(LARGE, seed)
    ranked = top_genotypes(posterior, LARGE, 1500)
    costs = [network_cost(one.genotype, LARGE, LARGE_NETWORK, 32, 10) for one in ranked]
    light = min(costs[:400], key=lambda cost: cost.num_params)
    limits = Limits(**{name: {"max_params": light.num_params, "max_macs": light.num_macs}[name] for name in resources})
    expected = next(one for one, cost in zip(ranked, costs, strict=True) if fits(cost, limits))
    assert expected != ranked[0]
    found = select(posterior, LARGE, LARGE_NETWORK, 32, 10, limits)
    assert found.genotype == expected.genotype
    assert found.probability == pytest.approx(expected.probability, rel=1e-12)


def test_select_without_limits_gives_the_top_genotype():
    posterior = random_posterior(SPACE, seed=0)
    assert chosen(posterior, Limits()) == top_genotypes(posterior, SPACE, 1)[0]


def test_select_gives_the_top_genotype_where_it_respects_the_limits_exactly():
    posterior = random_posterior(SPACE, seed=1)
    best = top_genotypes(posterior, SPACE, 1)[0]
    cost = network_cost(best.genotype, SPACE, NETWORK, 16, NUM_CLASSES)
    assert chosen(posterior, Limits(max_params=cost.num_params, max_macs=cost.num_macs)) == best


def test_select_takes_a_genotype_of_probability_zero_where_no_other_respects_the_limit():
    posterior = {kind: np.tile([1.0, 0.0, 0.0], (5, 1)) for kind in ("normal", "reduction")}
    smallest = min(cost.num_params for cost in every_cost())
    found = chosen(posterior, Limits(max_params=smallest))
    assert found.probability == 0.0
    assert network_cost(found.genotype, SPACE, NETWORK, 16, NUM_CLASSES).num_params == smallest


def test_smallest_cost_is_the_least_of_all_genotypes_for_each_resource_alone():
    assert smallest_cost(SPACE, NETWORK, 16, NUM_CLASSES) == Cost(
        min(cost.num_params for cost in every_cost()), min(cost.num_macs for cost in every_cost())
    )


@pytest.mark.parametrize("resource", ["params", "macs"])
def test_limit_below_the_smallest_network_is_refused_with_its_size(resource):
    smallest = min(getattr(cost, f"num_{resource}") for cost in every_cost())
    message = f"max_{resource} is {smallest - 1}, the smallest network has {smallest} "
    with pytest.raises(InvalidInputError, match=re.escape(message)):
        chosen(random_posterior(SPACE, seed=0), Limits(**{f"max_{resource}": smallest - 1}))


def test_limits_that_only_conflict_together_are_refused_with_what_it_would_take():
    max_params = min(cost.num_params for cost in every_cost())
    max_macs = min(cost.num_macs for cost in every_cost())
    fewest = min(cost.num_macs for cost in every_cost() if cost.num_params <= max_params)
    assert fewest > max_macs
    message = (
        f"max_params {max_params} and at most max_macs {max_macs}, though each alone is possible; "
        f"with so few parameters it takes {fewest} multiply-accumulates"
    )
    with pytest.raises(InvalidInputError, match=re.escape(message)):
        chosen(random_posterior(SPACE, seed=0), Limits(max_params=max_params, max_macs=max_macs))


def test_limits_below_one_are_refused():
    with pytest.raises(ValidationError, match="greater than or equal to 1"):
        Limits(max_params=0)


def test_no_genotypes_are_not_a_request():
    with pytest.raises(InvalidInputError, match="k must be >= 1, got 0"):
        top_genotypes(random_posterior(SPACE, seed=0), SPACE, 0)


@pytest.mark.parametrize(
    ("posterior", "message"),
    [
        ({"normal": np.ones((5, 3))}, "of the cell kinds normal; space.cell_kinds has normal, reduction"),
        ({"normal": np.ones((5, 3)), "reduction": np.ones((5, 2))}, r"'reduction' must have shape \(5, 3\)"),
        ({"normal": np.ones((5, 3)), "reduction": np.full((5, 3), np.nan)}, "must be finite and non-negative"),
    ],
)
def test_posterior_of_another_space_is_refused(posterior, message):
    with pytest.raises(InvalidInputError, match=message):
        top_genotypes(posterior, SPACE, 1)


def odd_times(name: str, shape: OpShape) -> float:
    """Times that rank neither as parameters do nor as multiply-accumulates."""
    return (1.37 if name == "dil_conv_5x5" else 0.91) * (3 - shape.stride) + 0.013 * shape.size


TIMES = latency_table(("sep_conv_3x3", "dil_conv_5x5"), odd_times)


@cache
def every_latency_ns() -> list[int]:
    """By the table's own entries, cell by cell: a walk of its own."""
    took = {(time.primitive, time.shape): round(time.median_ms * 1e6) for time in TIMES.ops}
    # Cells of five, 4 channels and 16 pixels at first: see tests/common/test_latency.py.
    cells = (
        ("normal", 4, 16, 1),
        ("reduction", 8, 16, 2),
        ("normal", 8, 8, 1),
        ("reduction", 16, 8, 2),
        ("normal", 16, 4, 1),
    )
    totals = []
    for genotype in every_genotype():
        total = 2 * 500_000
        for kind, channels, size, stride in cells:
            for edge in (edge for node in genotype.cells[kind] for edge in node):
                shape = (size, stride) if edge.source < 2 else (size // stride, 1)
                total += took[edge.primitive, OpShape(channels=channels, size=shape[0], stride=shape[1])]
        totals.append(total)
    return totals


@st.composite
def device_limits(draw):
    """A latency at, or a nanosecond below, that of some genotype; with it neither, either or both other limits."""
    index = draw(st.integers(0, len(every_genotype()) - 1))
    other = draw(st.integers(0, len(every_genotype()) - 1))
    most_ns = every_latency_ns()[index] - draw(st.sampled_from([0, 1]))
    cost = every_cost()[other]
    return Limits(
        max_latency_ms=most_ns / 1e6,
        latency_table=TIMES,
        max_params=cost.num_params if draw(st.booleans()) else None,
        max_macs=cost.num_macs if draw(st.booleans()) else None,
    )


@settings(max_examples=60, deadline=None)
@given(weights(SPACE), device_limits())
def test_select_finds_the_most_probable_genotype_within_a_latency(posterior, limits):
    most_ns = math.floor(limits.max_latency_ms * 1e6)
    feasible = [
        p
        for p, cost, ns in zip(every_probability(posterior), every_cost(), every_latency_ns(), strict=True)
        if fits(cost, limits) and ns <= most_ns
    ]
    if not feasible:
        with pytest.raises(InvalidInputError, match="no genotype of the space"):
            chosen(posterior, limits)
        return
    found = chosen(posterior, limits)
    index = texts()[found.genotype.to_json()]
    assert every_latency_ns()[index] <= most_ns
    assert fits(every_cost()[index], limits)
    assert found.probability == pytest.approx(max(feasible), rel=1e-9)


def test_a_latency_that_nothing_keeps_is_refused_and_the_smallest_named():
    least = min(every_latency_ns())
    with pytest.raises(InvalidInputError, match=f"the smallest network has {least / 1e6:.6g} ms"):
        chosen(random_posterior(SPACE, seed=0), Limits(max_latency_ms=(least - 1) / 1e6, latency_table=TIMES))


def test_three_limits_that_only_conflict_together_are_refused():
    fewest = min(cost.num_params for cost in every_cost())
    quickest = min(every_latency_ns())
    pairs = zip(every_cost(), every_latency_ns(), strict=True)
    within = min(ns for cost, ns in pairs if cost.num_params == fewest)
    assert within > quickest, "the fewest parameters are not the quickest"
    limits = Limits(max_params=fewest, max_macs=10**9, max_latency_ms=(within - 1) / 1e6, latency_table=TIMES)
    with pytest.raises(InvalidInputError, match=f"it takes {within / 1e6:.6g} ms; raise one of the limits"):
        chosen(random_posterior(SPACE, seed=0), limits)


def test_limits_of_a_full_network_count_what_its_formula_counts():
    network = network_config("cifar", channels=4, num_cells=5, num_classes=3, image_size=16)
    posterior = random_posterior(SPACE, seed=1)
    ranked = top_genotypes(posterior, SPACE, 300)
    macs = [count_network(one.genotype, network).total.num_macs for one in ranked]
    most = min(macs[:250])
    found = chosen(posterior, Limits(max_macs=most, network=network))
    assert found.genotype == ranked[next(index for index, count in enumerate(macs) if count <= most)].genotype
    assert found.genotype != ranked[0].genotype


def test_the_cost_model_of_full_networks_adds_up_to_their_count():
    for motif, size in (("cifar", 19), ("imagenet", 100)):
        network = network_config(motif, channels=6, num_cells=7, num_classes=5, image_size=size)
        model = full_cost_model(LARGE, network)
        random = np.random.default_rng(2)
        for _ in range(5):
            posterior = {kind: random.random((LARGE.topology.num_edges, 10)) for kind in LARGE.cell_kinds}
            genotype = derive(posterior, LARGE.topology, LARGE.ops)
            total = model.constant
            for kind, nodes in genotype.cells.items():
                for edge in (edge for node in nodes for edge in node):
                    total += model.op(kind, edge.source, edge.primitive)
            assert total == count_network(genotype, network).total


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"max_latency_ms": 1.0}, "needs a latency_table"),
        ({"latency_table": TIMES}, "goes with max_latency_ms"),
        ({"max_latency_ms": 0.0, "latency_table": TIMES}, "greater than 0"),
        ({"max_latency_ms": math.inf, "latency_table": TIMES}, "finite"),
        ({"network": TIMES.network}, "goes with max_params or max_macs"),
    ],
)
def test_limits_that_lack_what_they_need_are_refused(values, message):
    with pytest.raises(ValidationError, match=message):
        Limits(**values)


def test_a_table_of_another_image_size_is_refused():
    limits = Limits(max_latency_ms=1e3, latency_table=TIMES)
    with pytest.raises(InvalidInputError, match="of images of 16 pixels, the task has 32"):
        select(random_posterior(SPACE, seed=0), SPACE, NetworkConfig(heads={32: 2}), 32, 3, limits)


@pytest.mark.parametrize("num_resources", [2, 3])
def test_what_is_dominated_is_found_as_pair_by_pair(num_resources):
    random = np.random.default_rng(3)
    costs = random.integers(0, 6, (700, num_resources))
    values = random.integers(0, 6, 700).astype(np.float64)
    points = np.column_stack([costs, values])
    kept = _undominated(values, costs)
    best = {tuple(p) for p in points.tolist() if not any(np.all(q <= p) and np.any(q < p) for q in points)}
    assert {tuple(points[index].tolist()) for index in kept} == best
    assert len(kept) == len(best), "of equals, one"
