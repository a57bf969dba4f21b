"""Genotypes: JSON, legality, and the derivation rules against genotypes worked out by hand and plain enumeration."""

import itertools
import json
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from common.errors import InvalidInputError
from common.space.genotype import Genotype, GenotypeEdge, derive
from common.space.primitives import NONE, PRIMITIVES, PROFILES
from common.space.topology import Topology

OPS = ("none", "max_pool_3x3", "skip_connect", "sep_conv_3x3")
SHORT = {
    "skip": "skip_connect",
    "max": "max_pool_3x3",
    "avg": "avg_pool_3x3",
    "sep3_": "sep_conv_3x3",
    "sep5_": "sep_conv_5x5",
    "dil3_": "dil_conv_3x3",
    "dil5_": "dil_conv_5x5",
}
RELEASED = {
    "cifar_tuned": {
        "normal": "skip0 dil3_1 | max0 dil5_0 | max0 sep5_0 | max1 dil5_1",
        "reduction": "sep3_0 sep5_0 | max0 sep3_0 | skip0 avg3 | max1 skip2",
    },
    "imagenet_tuned": {
        "normal": "skip0 max1 | avg0 sep5_1 | sep5_0 dil5_3 | sep5_0 sep5_2",
        "reduction": "max0 sep5_0 | max0 avg0 | sep5_2 dil5_2 | avg0 sep5_3",
    },
}
SKIP_EDGE = {"source": 0, "primitive": "skip_connect"}


def edges(*pairs: tuple[int, str]) -> tuple[GenotypeEdge, ...]:
    return tuple(GenotypeEdge(source=source, primitive=primitive) for source, primitive in pairs)


def released(name: str) -> Genotype:
    """A genotype in the notation of the released ones: op, then its source."""
    return Genotype(
        cells={
            kind: tuple(edges(*((int(op[-1]), SHORT[op[:-1]]) for op in node.split())) for node in text.split(" | "))
            for kind, text in RELEASED[name].items()
        }
    )


def one_cell(nodes: object) -> str:
    return json.dumps({"cells": {"normal": nodes}})


def posterior_of(genotype: Genotype, kind: str, primitives: tuple[str, ...]) -> np.ndarray:
    """Probabilities that put 10 % more on each kept pair than on any other."""
    topology = Topology(len(genotype.cells[kind]))
    matrix = np.full((topology.num_edges, len(primitives)), 1 / len(primitives))
    for node, kept in enumerate(genotype.cells[kind]):
        for edge in kept:
            matrix[topology.edges_into(node)[edge.source], primitives.index(edge.primitive)] += 0.1
    return matrix


@st.composite
def genotypes(draw):
    def node(index):
        pairs = st.tuples(st.integers(0, 1 + index), st.sampled_from([name for name in PRIMITIVES if name != NONE]))
        return edges(*draw(st.lists(pairs, min_size=1, max_size=3, unique=True)))

    kinds = draw(st.lists(st.text(min_size=1, max_size=8), min_size=1, max_size=3, unique=True))
    return Genotype(cells={kind: tuple(node(index) for index in range(draw(st.integers(1, 4)))) for kind in kinds})


@st.composite
def posteriors(draw):
    """A topology, ops with `none` anywhere or nowhere, and probabilities with many ties."""
    topology = Topology(draw(st.integers(1, 4)))
    primitives = tuple(draw(st.lists(st.sampled_from(PRIMITIVES), min_size=1, max_size=6, unique=True)))
    if primitives == (NONE,):
        primitives = (NONE, "skip_connect")
    values = st.lists(
        st.integers(0, 6).map(lambda sixths: sixths / 6),
        min_size=topology.num_edges * len(primitives),
        max_size=topology.num_edges * len(primitives),
    )
    return topology, primitives, np.array(draw(values)).reshape(topology.num_edges, len(primitives))


# The first node's best two ops share source 1; the second node's best is its last source.
TWO_NODES = np.array(
    [
        [0.50, 0.10, 0.25, 0.15],  # node 0 from input 0
        [0.20, 0.30, 0.26, 0.24],  # node 0 from input 1
        [0.10, 0.60, 0.20, 0.10],  # node 1 from input 0
        [0.90, 0.05, 0.03, 0.02],  # node 1 from input 1
        [0.01, 0.09, 0.20, 0.70],  # node 1 from node 0
    ]
)


def test_top2_pairs_keeps_two_ops_of_one_source_in_flat_order():
    genotype = derive({"normal": TWO_NODES}, Topology(2), OPS, "top2_pairs")
    assert genotype.cells == {
        "normal": (
            edges((1, "max_pool_3x3"), (1, "skip_connect")),  # .30 and .26, ahead of .25 from input 0
            edges((0, "max_pool_3x3"), (2, "sep_conv_3x3")),  # .60 and .70, emitted by source
        )
    }


def test_top2_pairs_is_the_default_rule():
    assert derive({"normal": TWO_NODES}, Topology(2), OPS) == derive(
        {"normal": TWO_NODES}, Topology(2), OPS, "top2_pairs"
    )


def test_darts_keeps_distinct_sources_strongest_first():
    genotype = derive({"normal": TWO_NODES}, Topology(2), OPS, "darts")
    assert genotype.cells == {
        "normal": (
            edges((1, "max_pool_3x3"), (0, "skip_connect")),  # .30, then .25; the .50 of none does not count
            edges((2, "sep_conv_3x3"), (0, "max_pool_3x3")),  # .70, then .60
        )
    }


def test_every_kind_is_derived_from_its_own_probabilities():
    genotype = derive({"a": TWO_NODES, "b": TWO_NODES[:, [0, 3, 2, 1]]}, Topology(2), OPS)
    assert genotype.cells["a"][1] == edges((0, "max_pool_3x3"), (2, "sep_conv_3x3"))
    assert genotype.cells["b"][1] == edges((0, "sep_conv_3x3"), (2, "max_pool_3x3"))


def test_ties_go_to_the_lowest_flat_index():
    flat = np.full((5, 4), 0.25)
    top2 = derive({"normal": flat}, Topology(2), OPS, "top2_pairs")
    darts = derive({"normal": flat}, Topology(2), OPS, "darts")
    assert top2.cells["normal"] == (edges((0, "max_pool_3x3"), (0, "skip_connect")),) * 2
    assert darts.cells["normal"] == (edges((0, "max_pool_3x3"), (1, "max_pool_3x3")),) * 2


@pytest.mark.parametrize("rule", ["top2_pairs", "darts", "sample"])
def test_none_is_never_kept_even_with_all_the_probability(rule):
    primitives = ("skip_connect", "none", "sep_conv_3x3")
    only_none = np.tile([0.0, 1.0, 0.0], (9, 1))
    genotype = derive({"normal": only_none}, Topology(3), primitives, rule)
    kept = [edge.primitive for node in genotype.cells["normal"] for edge in node]
    assert len(kept) == 6
    assert NONE not in kept


def test_columns_behind_none_keep_their_names():
    primitives = ("skip_connect", "none", "sep_conv_3x3")
    matrix = np.array([[0.1, 0.8, 0.1], [0.1, 0.0, 0.9]])
    for rule in ("top2_pairs", "darts"):
        kept = derive({"normal": matrix}, Topology(1), primitives, rule).cells["normal"][0]
        assert GenotypeEdge(source=1, primitive="sep_conv_3x3") in kept


@pytest.mark.parametrize("rule", ["top2_pairs", "darts", "sample"])
def test_a_node_with_one_candidate_per_source_takes_both_sources(rule):
    matrix = np.array([[0.4, 0.6], [0.9, 0.1]])
    genotype = derive({"normal": matrix}, Topology(1), ("none", "skip_connect"), rule)
    assert genotype.cells["normal"] == (edges((0, "skip_connect"), (1, "skip_connect")),)


@given(posteriors())
def test_top2_pairs_agrees_with_enumeration(case):
    topology, primitives, matrix = case
    genotype = derive({"normal": matrix}, topology, primitives, "top2_pairs")
    for node, kept in enumerate(genotype.cells["normal"]):
        pairs = [
            (-matrix[edge, column], source, column)
            for source, edge in enumerate(topology.edges_into(node))
            for column, name in enumerate(primitives)
            if name != NONE
        ]
        best = sorted((source, column) for _, source, column in sorted(pairs)[:2])
        assert kept == edges(*((source, primitives[column]) for source, column in best))


@given(posteriors())
def test_darts_agrees_with_enumeration(case):
    topology, primitives, matrix = case
    genotype = derive({"normal": matrix}, topology, primitives, "darts")
    for node, kept in enumerate(genotype.cells["normal"]):
        strongest = []
        for source, edge in enumerate(topology.edges_into(node)):
            columns = [column for column, name in enumerate(primitives) if name != NONE]
            column = min(columns, key=lambda column: (-matrix[edge, column], column))
            strongest.append((-matrix[edge, column], source, column))
        assert kept == edges(*((source, primitives[column]) for _, source, column in sorted(strongest)[:2]))


@given(posteriors(), st.sampled_from(["top2_pairs", "darts"]), st.integers(-8, 8))
def test_only_the_ranking_of_probabilities_counts(case, rule, exponent):
    topology, primitives, matrix = case
    scaled = {"normal": matrix * 2.0**exponent}
    assert derive({"normal": matrix}, topology, primitives, rule) == derive(scaled, topology, primitives, rule)


@given(posteriors(), st.sampled_from(["top2_pairs", "darts", "sample"]), st.integers(0, 2**40))
def test_every_rule_gives_a_legal_genotype_and_leaves_its_input_alone(case, rule, seed):
    topology, primitives, matrix = case
    before = matrix.copy()
    genotype = derive({"normal": matrix}, topology, primitives, rule, seed)
    assert np.array_equal(matrix, before)
    assert Genotype.from_json(genotype.to_json()) == genotype
    assert [len(node) for node in genotype.cells["normal"]] == [2] * topology.num_nodes


def test_single_precision_probabilities_are_accepted():
    assert derive({"normal": TWO_NODES.astype(np.float32)}, Topology(2), OPS) == derive(
        {"normal": TWO_NODES}, Topology(2), OPS
    )


def test_sample_frequencies_are_those_of_drawing_two_without_replacement():
    primitives = ("skip_connect", "none", "sep_conv_3x3")
    matrix = np.array([[0.05, 0.5, 0.10], [0.15, 0.0, 0.20]])
    weight = {(0, "skip_connect"): 0.1, (0, "sep_conv_3x3"): 0.2, (1, "skip_connect"): 0.3, (1, "sep_conv_3x3"): 0.4}
    num_draws = 4000
    counts = Counter(
        derive({"normal": matrix}, Topology(1), primitives, "sample", seed).cells["normal"][0]
        for seed in range(num_draws)
    )
    statistic = 0.0
    for a, b in itertools.combinations(weight, 2):
        probability = weight[a] * weight[b] * (1 / (1 - weight[a]) + 1 / (1 - weight[b]))
        expected = num_draws * probability
        statistic += (counts.pop(edges(a, b), 0) - expected) ** 2 / expected
    assert not counts, "pairs are emitted in flat order, and nothing else is drawn"
    assert statistic < 20.5  # 99.9 % quantile of chi-square with 5 degrees of freedom


def test_sample_draws_no_pair_of_probability_zero_while_others_are_left():
    matrix = np.array([[0.7, 0.0, 0.3, 0.0], [0.2, 0.0, 0.0, 0.8]])
    for seed in range(50):
        node = derive({"normal": matrix}, Topology(1), OPS, "sample", seed).cells["normal"][0]
        assert node == edges((0, "skip_connect"), (1, "sep_conv_3x3"))


def test_sample_is_a_function_of_its_seed_and_differs_between_nodes_and_kinds():
    topology = Topology(4)
    flat = np.full((topology.num_edges, len(PROFILES["base"])), 1 / 9)

    def draw(seed):
        return derive({"normal": flat, "reduction": flat}, topology, PROFILES["base"], "sample", seed)

    assert draw(3) == draw(3)
    assert len({draw(seed).to_json() for seed in range(20)}) == 20
    first_nodes = [draw(seed).cells for seed in range(20)]
    assert any(cells["normal"][0] != cells["reduction"][0] for cells in first_nodes)
    assert any(cells["normal"][0] != cells["normal"][1] for cells in first_nodes)


def test_sample_of_one_kind_does_not_depend_on_the_other_kinds():
    flat = np.full((5, 4), 0.25)
    alone = derive({"normal": flat}, Topology(2), OPS, "sample", 5)
    beside = derive({"reduction": TWO_NODES, "normal": flat}, Topology(2), OPS, "sample", 5)
    assert alone.cells["normal"] == beside.cells["normal"]


def test_an_unknown_rule_is_refused_with_the_known_ones():
    with pytest.raises(InvalidInputError, match=r"derive must be one of top2_pairs, darts, sample, got 'best'"):
        derive({"normal": TWO_NODES}, Topology(2), OPS, "best")


@pytest.mark.parametrize("rule", ["top2_pairs", "darts", "sample"])
def test_nothing_to_choose_from_is_refused(rule):
    with pytest.raises(InvalidInputError, match="at least one kind of cell, and one op beside none"):
        derive({}, Topology(2), OPS, rule)
    with pytest.raises(InvalidInputError, match="at least one kind of cell, and one op beside none"):
        derive({"normal": np.ones((5, 1))}, Topology(2), ("none",), rule)


@pytest.mark.parametrize("shape", [(5, 3), (4, 4), (4, 5), (20,), (1, 5, 4)])
def test_a_wrong_shape_is_refused_with_the_right_one(shape):
    with pytest.raises(InvalidInputError, match=r"'normal' must have shape \(5, 4\), got \("):
        derive({"normal": np.ones(shape)}, Topology(2), OPS)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, -1e-9])
def test_probabilities_that_are_no_probabilities_are_refused(bad):
    matrix = TWO_NODES.copy()
    matrix[3, 2] = bad
    with pytest.raises(InvalidInputError, match="'normal' must be finite and non-negative"):
        derive({"normal": matrix}, Topology(2), OPS)


@given(genotypes())
def test_json_round_trip(genotype):
    text = genotype.to_json()
    assert Genotype.from_json(text) == genotype
    assert Genotype.from_json(text.encode()) == genotype
    assert Genotype.from_json(text).to_json() == text


def test_equal_genotypes_give_equal_text_whatever_the_order_of_kinds():
    cells = {"normal": (edges((0, "skip_connect")),), "reduction": (edges((1, "max_pool_3x3")),)}
    swapped = dict(reversed(cells.items()))
    assert Genotype(cells=cells).to_json() == Genotype(cells=swapped).to_json()
    assert json.loads(Genotype(cells=cells).to_json()) == {
        "cells": {
            "normal": [[{"source": 0, "primitive": "skip_connect"}]],
            "reduction": [[{"source": 1, "primitive": "max_pool_3x3"}]],
        }
    }


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "genotype: Invalid JSON"),
        ("cells", "genotype: Invalid JSON"),
        (b"\xff\xfe", "genotype: Invalid JSON"),
        ('{"cells": {"normal": [[{"source": 0,', "genotype: Invalid JSON"),
        ("[]", "genotype: Input should be an object"),
        ("null", "genotype: Input should be an object"),
        ("{}", "cells: Field required"),
        ('{"cells": []}', "cells: Input should be an object"),
        ('{"cells": {}}', "^genotype: cells must name at least one kind of cell$"),
        (json.dumps({"cells": {"normal": [[SKIP_EDGE]]}, "alpha": 1}), "alpha: Extra inputs"),
        (one_cell([]), r"cells.normal must have at least one node"),
        (one_cell([[]]), r"cells.normal\[0\] has no op; give at least one"),
        (one_cell([[SKIP_EDGE], []]), r"cells.normal\[1\] has no op"),
        (one_cell([[SKIP_EDGE, SKIP_EDGE]]), r"cells.normal\[0\] has the same op from the same source twice"),
        (one_cell([[{"source": 0, "primitive": "none"}]]), r"primitive 'none'; use one of max_pool_3x3, avg"),
        (one_cell([[{"source": 0, "primitive": "conv_9x9"}]]), r"primitive 'conv_9x9'; use one of max_pool_3x3, avg"),
        (one_cell([[{"source": 0, "primitive": 3}]]), r"cells.normal.0.0.primitive: Input should be a valid string"),
        (one_cell([[{"source": 0}]]), r"cells.normal.0.0.primitive: Field required"),
        (one_cell([[{"primitive": "skip_connect"}]]), r"cells.normal.0.0.source: Field required"),
        (one_cell([[{**SKIP_EDGE, "weight": 1}]]), r"cells.normal.0.0.weight: Extra inputs"),
        (one_cell([[{**SKIP_EDGE, "source": 2}]]), r"cells.normal\[0\] has source 2; node 0 sees 0 to 1"),
        (one_cell([[SKIP_EDGE], [{**SKIP_EDGE, "source": 3}]]), r"normal\[1\] has source 3; node 1 sees 0 to 2"),
        (one_cell([[{**SKIP_EDGE, "source": -1}]]), r"has source -1; node 0 sees 0 to 1"),
        (one_cell([[{**SKIP_EDGE, "source": 0.5}]]), r"cells.normal.0.0.source: Input should be a valid integer"),
        (one_cell([[{**SKIP_EDGE, "source": "1"}]]), r"cells.normal.0.0.source: Input should be a valid integer"),
        (one_cell([[{**SKIP_EDGE, "source": True}]]), r"cells.normal.0.0.source: Input should be a valid integer"),
        (one_cell([[{**SKIP_EDGE, "source": None}]]), r"cells.normal.0.0.source: Input should be a valid integer"),
        (one_cell([[["skip_connect", 0]]]), r"cells.normal.0.0: Input should be an object"),
        (one_cell([SKIP_EDGE]), r"cells.normal.0: Input should be a valid array"),
        (one_cell({"0": [SKIP_EDGE]}), r"cells.normal: Input should be a valid array"),
    ],
)
def test_bad_json_is_refused_by_place_and_reason(text, complaint):
    with pytest.raises(InvalidInputError, match=complaint):
        Genotype.from_json(text)


def test_every_op_but_none_may_stand_in_a_genotype():
    kept = tuple((index % 2, name) for index, name in enumerate(PRIMITIVES) if name != NONE)
    genotype = Genotype(cells={"normal": (edges(*kept),)})
    assert [edge.primitive for edge in genotype.cells["normal"][0]] == [name for name in PRIMITIVES if name != NONE]


def test_a_node_may_take_two_ops_from_one_source_and_one_op_from_two():
    Genotype(cells={"normal": (edges((0, "skip_connect"), (0, "max_pool_3x3")),)})
    Genotype(cells={"normal": (edges((0, "skip_connect"), (1, "skip_connect")),)})


def test_a_genotype_cannot_be_changed():
    genotype = released("cifar_tuned")
    with pytest.raises(ValidationError, match="frozen"):
        genotype.cells = {}
    with pytest.raises(ValidationError, match="frozen"):
        genotype.cells["normal"][0][0].source = 1


def test_pooling_and_skip_connections_are_counted_per_kind():
    genotype = released("cifar_tuned")
    assert genotype.num_parameter_free("normal") == 4  # skip, max, max, max
    assert genotype.num_parameter_free("reduction") == 5  # max, skip, avg, max, skip


@pytest.mark.parametrize("name", sorted(RELEASED))
def test_released_genotypes_are_representable(name):
    genotype = released(name)
    assert Genotype.from_json(genotype.to_json()) == genotype
    assert {kind: len(nodes) for kind, nodes in genotype.cells.items()} == {"normal": 4, "reduction": 4}


def test_half_of_the_nodes_of_the_released_genotypes_take_both_inputs_from_one_source():
    same_source = {
        (name, kind): sum(len({edge.source for edge in node}) == 1 for node in nodes)
        for name in RELEASED
        for kind, nodes in released(name).cells.items()
    }
    assert same_source == {
        ("cifar_tuned", "normal"): 3,
        ("cifar_tuned", "reduction"): 2,
        ("imagenet_tuned", "normal"): 0,
        ("imagenet_tuned", "reduction"): 3,
    }  # 8 of 16


def test_ops_of_the_released_genotypes():
    slots = Counter(
        edge.primitive
        for name in RELEASED
        for nodes in released(name).cells.values()
        for node in nodes
        for edge in node
    )
    assert slots == {
        "sep_conv_5x5": 9,
        "max_pool_3x3": 8,
        "skip_connect": 4,
        "dil_conv_5x5": 4,
        "avg_pool_3x3": 4,
        "sep_conv_3x3": 2,
        "dil_conv_3x3": 1,
    }


@pytest.mark.parametrize("name", sorted(RELEASED))
def test_top2_pairs_recovers_the_released_genotypes_and_darts_cannot(name):
    genotype = released(name)
    primitives = PROFILES["base+"]
    probabilities = {kind: posterior_of(genotype, kind, primitives) for kind in genotype.cells}
    assert derive(probabilities, Topology(4), primitives, "top2_pairs") == genotype
    by_darts = derive(probabilities, Topology(4), primitives, "darts")
    assert all(len({edge.source for edge in node}) == 2 for nodes in by_darts.cells.values() for node in nodes)
    assert by_darts != genotype
