"""The expected cost of a posterior, against enumeration and finite differences, and its limits."""

import itertools

import numpy as np
import pytest
import torch
from reference.latency_tables import latency_table

from common.config import CostPenalty, NetworkConfig, SpaceConfig, validate
from common.cost import network_cost
from common.errors import InvalidInputError
from common.expense import expense_of
from common.latency import network_ms
from common.meta.expected_cost import ExpectedCost, expected_cost, kept_probabilities
from common.meta.posterior import probabilities
from common.network_config import network_config
from common.nn.counting import count_network
from common.space.genotype import Genotype, GenotypeEdge, derive
from common.space.primitives import NONE

OPS = ("sep_conv_3x3", "none", "skip_connect")
NETWORK = NetworkConfig(channels=4, cells=("normal", "reduction"), heads={16: 2})
FULL = network_config("cifar", channels=4, num_cells=3, image_size=16)
TABLE = latency_table(("sep_conv_3x3", "skip_connect"), lambda name, shape: shape.size / 7 + len(name), network=FULL)

PENALTIES = {
    "params": CostPenalty(measure="params", target=400, weight=0.7),
    "macs": CostPenalty(measure="macs", target=2e4, weight=0.7),
    "params of a full network": CostPenalty(measure="params", target=900, weight=0.7, network=FULL),
    "latency": CostPenalty(measure="latency", target=20, weight=0.7, table=TABLE),
}


def space_of(normalisation: str, num_nodes: int = 2) -> SpaceConfig:
    return SpaceConfig(primitives=OPS, num_nodes=num_nodes, normalisation=normalisation)


def built(penalty: CostPenalty, space: SpaceConfig) -> ExpectedCost:
    expense = expense_of(penalty, space, NETWORK, 16, 3)
    return expected_cost(expense, space, penalty.target, torch.device("cpu"), torch.float64)


def measured(penalty: CostPenalty, genotype: Genotype, space: SpaceConfig) -> float:
    if penalty.table is not None:
        return network_ms(genotype, penalty.table)
    if penalty.network is not None:
        return count_network(genotype, penalty.network).total.num_params
    cost = network_cost(genotype, space, NETWORK, 16, 3)
    return cost.num_params if penalty.measure == "params" else cost.num_macs


def mean_over_genotypes(penalty: CostPenalty, logits: torch.Tensor, space: SpaceConfig) -> float:
    """The sum over every genotype of its cost times the chance to draw it, pair after pair, node by node."""
    matrices = probabilities(logits, space.topology, space.normalisation).numpy()
    kept = [column for column, name in enumerate(space.ops) if name != NONE]
    nodes = []
    for kind, node in itertools.product(range(2), range(space.num_nodes)):
        values = matrices[kind][list(space.topology.edges_into(node))][:, kept].ravel()
        p = values / values.sum()
        edges = [
            GenotypeEdge(source=index // len(kept), primitive=space.ops[kept[index % len(kept)]])
            for index in range(p.size)
        ]
        nodes.append(
            [
                ((edges[a], edges[b]), p[a] * p[b] / (1 - p[a]) + p[b] * p[a] / (1 - p[b]))
                for a, b in itertools.combinations(range(p.size), 2)
            ]
        )
    total = 0.0
    for chosen in itertools.product(*nodes):
        pairs = [pair for pair, _ in chosen]
        genotype = Genotype(
            cells={"normal": tuple(pairs[: space.num_nodes]), "reduction": tuple(pairs[space.num_nodes :])}
        )
        total += measured(penalty, genotype, space) * float(np.prod([chance for _, chance in chosen]))
    return total


def random_logits(space: SpaceConfig, seed: int, scale: float = 1.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    shape = (2, space.topology.num_edges, len(space.ops))
    return scale * torch.randn(shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("normalisation", ["edge", "node"])
@pytest.mark.parametrize("name", PENALTIES)
def test_the_expected_cost_is_the_mean_over_every_genotype(name: str, normalisation: str):
    penalty = PENALTIES[name]
    # Of two nodes there are 8100 genotypes, of one 36: enough where each takes a walk through a network.
    space = space_of(normalisation, num_nodes=1 if penalty.network is not None else 2)
    logits = random_logits(space, seed=1)
    expected = mean_over_genotypes(penalty, logits, space)
    assert float(built(penalty, space).relative(logits)) * penalty.target == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("normalisation", ["edge", "node"])
@pytest.mark.parametrize("name", PENALTIES)
def test_its_gradient_is_that_of_finite_differences(name: str, normalisation: str):
    space = space_of(normalisation)
    cost = built(PENALTIES[name], space)
    logits = random_logits(space, seed=2, scale=2.0).requires_grad_()
    assert float(cost.relative(logits.detach())) > 1, "else there is no penalty to differentiate"
    assert torch.autograd.gradcheck(lambda alpha: cost.penalty(alpha, 0.7), (logits,), eps=1e-6, atol=1e-8)


def test_a_decided_posterior_is_expected_to_cost_what_its_derived_network_does():
    space = space_of("edge")
    logits = random_logits(space, seed=3, scale=30.0)
    matrices = probabilities(logits, space.topology, "edge").numpy()
    genotype = derive(dict(zip(space.cell_kinds, matrices, strict=True)), space.topology, space.ops)
    penalty = PENALTIES["macs"]
    found = float(built(penalty, space).relative(logits)) * penalty.target
    assert found == pytest.approx(measured(penalty, genotype, space), rel=0.02)


def test_two_candidates_are_kept_even_where_one_has_all_probability():
    log_p = torch.tensor([0.0, -800.0, -801.0], dtype=torch.float64, requires_grad=True)
    kept = kept_probabilities(log_p)
    # The second draw is between the others: e to 1.
    share = float(np.e / (np.e + 1))
    assert kept.tolist() == pytest.approx([1.0, share, 1 - share])
    (gradient,) = torch.autograd.grad(kept[1], log_p)
    assert torch.isfinite(gradient).all()


def test_nothing_is_penalised_below_the_target():
    space = space_of("edge")
    penalty = PENALTIES["params"].model_copy(update={"target": 1e9})
    logits = random_logits(space, seed=4).requires_grad_()
    value = built(penalty, space).penalty(logits, 5.0)
    value.backward()
    assert float(value.detach()) == 0
    assert logits.grad is not None
    assert not logits.grad.any()


@pytest.mark.parametrize(
    ("cost", "message"),
    [
        ({"measure": "latency", "target": 1, "weight": 1}, "latency needs a table"),
        ({"measure": "macs", "target": 0, "weight": 1}, "target"),
        ({"measure": "macs", "target": 1, "weight": -1}, "weight"),
        ({"measure": "watts", "target": 1, "weight": 1}, "measure"),
        (
            {"measure": "latency", "target": 1, "weight": 1, "table": TABLE.model_dump(mode="json")},
            "adapt.cost: the latency table is of cells of 2 nodes",
        ),
    ],
)
def test_a_penalty_that_makes_no_sense_is_refused_with_its_field(cost, message):
    with pytest.raises(InvalidInputError, match=message):
        validate({"adapt": {"cost": cost}})


def test_a_table_of_another_image_size_is_refused_when_the_task_is_known():
    with pytest.raises(InvalidInputError, match="of images of 16 pixels, the task has 32"):
        expense_of(PENALTIES["latency"], space_of("edge"), NETWORK, 32, 3)
