"""Costs by formula against numbers worked out by hand and against the convolutions that the real supernet runs."""

import numpy as np
import pytest
import torch
from torch import nn

from common.config import NetworkConfig, SpaceConfig
from common.cost import Cost, four_convolutions_cost, network_cost
from common.errors import InvalidInputError
from common.nn.cell import Mixture
from common.nn.four_convolutions import FourConvolutions
from common.nn.supernet import build_supernet
from common.space.genotype import Genotype, GenotypeEdge, derive
from common.space.primitives import NONE, PRIMITIVES

NUM_CLASSES = 7
BATCH_SIZE = 2  # BatchNorm needs two values per channel, and the smallest maps have one pixel

SPACES = {
    "darts": SpaceConfig(profile="darts", num_nodes=2),
    "base": SpaceConfig(profile="base", num_nodes=4),
    "base+": SpaceConfig(profile="base+", num_nodes=3),
    "other_kinds": SpaceConfig(profile="base+", num_nodes=1, cell_kinds={"up": 2, "flat": 1, "down": 2}),
}
NETWORKS = {
    "darts": NetworkConfig(channels=4, heads={32: 2, 33: 4}),
    "base": NetworkConfig(channels=6, cells=("reduction", "normal"), image_channels=1, heads={28: 1, 15: 2}),
    "base+": NetworkConfig(channels=8, cells=("normal", "reduction", "reduction", "normal"), heads={37: 8, 22: 2}),
    "other_kinds": NetworkConfig(channels=2, cells=("up", "flat", "down", "up"), heads={17: 1, 13: 4}),
}

TINY_SPACE = SpaceConfig(
    primitives=("none", "max_pool_3x3", "skip_connect", "sep_conv_3x3", "conv_7x1_1x7"),
    num_nodes=1,
    cell_kinds={"reduction": 2},
)
TINY_NETWORK = NetworkConfig(channels=2, cells=("reduction",), image_channels=1, heads={5: 2})


def one_node(*ops: tuple[int, str]) -> Genotype:
    return Genotype(cells={"reduction": (tuple(GenotypeEdge(source=source, primitive=name) for source, name in ops),)})


def everywhere(primitive: str, space: SpaceConfig) -> Genotype:
    """`primitive` on every edge of every kind of cell, so any number of ops per node."""
    nodes = tuple(
        tuple(GenotypeEdge(source=source, primitive=primitive) for source in range(2 + node))
        for node in range(space.num_nodes)
    )
    return Genotype(cells=dict.fromkeys(space.cell_kinds, nodes))


def drawn(space: SpaceConfig, seed: int) -> Genotype:
    uniform = np.ones((space.topology.num_edges, len(space.ops)))
    return derive(dict.fromkeys(space.cell_kinds, uniform), space.topology, space.ops, "sample", seed)


def counted_cost(genotype: Genotype, space: SpaceConfig, network: NetworkConfig, image_size: int) -> Cost:
    """What the modules of the real supernet do when it computes only the genotype's ops."""
    # Modules are called one by one; the native cell calls none.
    supernet = build_supernet(space, network.model_copy(update={"engine": "pytorch"}), seed=0)
    classifier = nn.Linear(supernet.num_features, NUM_CLASSES)
    weights: dict[nn.Module, int] = {}
    macs: list[int] = []

    def count(module: nn.Module, _inputs: object, output: torch.Tensor) -> None:
        weights[module] = sum(parameter.numel() for parameter in module.parameters())
        macs.append(output.numel() * module.weight[0].numel())

    for module in [*supernet.modules(), classifier]:
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(count)
    mixtures = {}
    for kind, nodes in genotype.cells.items():
        active: list[list[int]] = [[] for _ in space.topology.edges]
        for index, edges in enumerate(nodes):
            for edge in edges:
                active[space.topology.edges_into(index)[edge.source]].append(space.ops.index(edge.primitive))
        hard = torch.ones(space.topology.num_edges, len(space.ops))
        mixtures[kind] = Mixture(hard, tuple(tuple(columns) for columns in active))
    with torch.no_grad():
        classifier(supernet(torch.randn(BATCH_SIZE, 3, image_size, image_size), mixtures, image_size))
    return Cost(sum(weights.values()), sum(macs) // BATCH_SIZE)


def test_cost_of_a_reduction_cell_is_that_worked_out_by_hand():
    # Head: 9 * 1 * 6 weights, 5x5 -> 3x3. Preprocessing: 2 * 6 * 4 weights on 3x3. Cell: 4 channels, 3x3 -> 2x2.
    # Skip of stride 2: 4 * 4 weights on 2x2. 1x7: 7 * 4 * 4 on 3x2 (rows, columns); 7x1: as many on 2x2.
    # Classifier: 4 * 3 weights and 3 biases.
    cost = network_cost(one_node((0, "skip_connect"), (1, "conv_7x1_1x7")), TINY_SPACE, TINY_NETWORK, 5, 3)
    assert cost == Cost(
        num_params=54 + 48 + 16 + 112 + 112 + 15, num_macs=54 * 9 + 48 * 9 + 16 * 4 + 112 * 6 + 112 * 4 + 12
    )


def test_separable_convolution_counts_twice_and_pool_not_at_all():
    # Beside the 117 weights of head, preprocessing and classifier: twice (9 * 4 + 4 * 4) weights, on 2x2 each.
    cost = network_cost(one_node((0, "max_pool_3x3"), (1, "sep_conv_3x3")), TINY_SPACE, TINY_NETWORK, 5, 3)
    assert cost == Cost(num_params=117 + 104, num_macs=486 + 432 + 12 + 104 * 4)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("name", "image_size"), [(name, size) for name in SPACES for size in NETWORKS[name].heads])
def test_cost_is_what_the_supernet_runs_for_drawn_genotypes(name, image_size, seed):
    space, network = SPACES[name], NETWORKS[name]
    genotype = drawn(space, seed)
    expected = counted_cost(genotype, space, network, image_size)
    assert network_cost(genotype, space, network, image_size, NUM_CLASSES) == expected


@pytest.mark.parametrize("primitive", [name for name in PRIMITIVES if name != NONE])
def test_cost_is_what_the_supernet_runs_for_every_primitive(primitive):
    space, network = SPACES["base+"], NETWORKS["base+"]
    genotype = everywhere(primitive, space)
    assert network_cost(genotype, space, network, 37, NUM_CLASSES) == counted_cost(genotype, space, network, 37)


def test_kind_of_cell_that_the_network_lacks_costs_nothing():
    normal_only = NetworkConfig(channels=4, cells=("normal",), heads={8: 2})
    pools, convs = (everywhere(name, SPACES["base"]).cells for name in ("max_pool_3x3", "sep_conv_5x5"))
    light = Genotype(cells={"normal": convs["normal"], "reduction": pools["reduction"]})
    heavy = Genotype(cells={"normal": convs["normal"], "reduction": convs["reduction"]})
    costs = [network_cost(genotype, SPACES["base"], normal_only, 8, 2) for genotype in (light, heavy)]
    assert costs[0] == costs[1]


def test_image_size_without_a_head_is_refused():
    with pytest.raises(InvalidInputError, match=r"no head for image_size 6; network.heads has 5"):
        network_cost(one_node((0, "skip_connect")), TINY_SPACE, TINY_NETWORK, 6, 3)


def test_classifier_without_classes_is_refused():
    with pytest.raises(InvalidInputError, match="num_classes must be >= 1, got 0"):
        network_cost(one_node((0, "skip_connect")), TINY_SPACE, TINY_NETWORK, 5, 0)


def test_network_with_a_kind_that_the_space_lacks_is_refused():
    with pytest.raises(InvalidInputError, match="network.cells names 'normal'; space.cell_kinds has reduction"):
        network_cost(one_node((0, "skip_connect")), TINY_SPACE, NetworkConfig(heads={5: 2}), 5, 3)


@pytest.mark.parametrize(
    ("genotype", "message"),
    [
        (one_node((0, "dil_conv_3x3")), "has the op 'dil_conv_3x3'; the space has none, max_pool_3x3"),
        (everywhere("skip_connect", SPACES["base"]), "cell kinds normal, reduction; space.cell_kinds has reduction"),
        (Genotype(cells={"reduction": one_node((0, "skip_connect")).cells["reduction"] * 2}), "has 2 nodes; .* is 1"),
    ],
)
def test_genotype_of_another_space_is_refused(genotype, message):
    with pytest.raises(InvalidInputError, match=message):
        network_cost(genotype, TINY_SPACE, TINY_NETWORK, 5, 3)


@pytest.mark.parametrize(("filters", "image_size"), [(64, 84), (3, 28)])
def test_cost_of_four_convolutions_is_what_the_network_runs(filters, image_size):
    network = FourConvolutions(3, filters, image_size)
    num_macs = 0

    def count(module, inputs, output):
        nonlocal num_macs
        num_macs += output.numel() * module.weight[0].numel()

    for conv in network.convs:
        conv.register_forward_hook(count)
    with torch.no_grad():
        network(torch.zeros(1, 3, image_size, image_size))
    weights = sum(parameter.numel() for parameter in network.parameters())
    features = network.num_features
    expected = Cost(weights + 5 * features + 5, num_macs + 5 * features)
    assert four_convolutions_cost(3, filters, image_size, 5) == expected
