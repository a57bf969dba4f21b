"""What a penalty counts, as additive terms: of the network of the search's layout, of a full network, or by a table."""

from collections.abc import Mapping
from dataclasses import dataclass

from common.config import CostPenalty, NetworkConfig, SpaceConfig
from common.cost import cost_model
from common.errors import InvalidInputError
from common.latency import NS_PER_MS, OpKey, latency_terms, misfit
from common.nn.counting import full_cost_model
from common.space.genotype import EDGES_PER_NODE
from common.space.primitives import NONE
from common.space.topology import NUM_CELL_INPUTS


@dataclass(frozen=True)
class Expense:
    """The additive cost of every genotype in one measure, in the measure's unit.

    Attributes:
        constant: what all genotypes share.
        ops: what one such op adds, over all cells of its kind.
    """

    constant: float
    ops: Mapping[OpKey, float]


def expense_of(
    penalty: CostPenalty, space: SpaceConfig, network: NetworkConfig, image_size: int, num_classes: int
) -> Expense:
    """The terms that a penalty's expected cost is made of.

    Args:
        penalty: says what is measured, of which network.
        space: the kinds of cell and candidate ops.
        network: the search's layout, which is measured where the penalty names no other.
        image_size: of the task, in pixels.
        num_classes: of the task; networks that the penalty names have their own.

    Raises:
        InvalidInputError: the table, or the network, does not fit the space or the task.
    """
    if penalty.table is not None:
        problem = misfit(penalty.table, space.cell_kinds, space.ops, space.num_nodes, image_size)
        if problem is not None:
            raise InvalidInputError(problem)
        terms = latency_terms(penalty.table)
        return Expense(terms.constant / NS_PER_MS, {key: ns / NS_PER_MS for key, ns in terms.ops.items()})
    if penalty.network is None:
        model = cost_model(space, network, image_size, num_classes)
    else:
        model = full_cost_model(space, penalty.network)
    if penalty.measure == "params":
        return Expense(model.constant.num_params, {key: cost.num_params for key, cost in model.ops.items()})
    return Expense(model.constant.num_macs, {key: cost.num_macs for key, cost in model.ops.items()})


def smallest(expense: Expense, space: SpaceConfig) -> float:
    """The least that a genotype with two ops per node costs."""
    total = expense.constant
    for kind in space.cell_kinds:
        for node in range(space.num_nodes):
            costs = [
                expense.ops[kind, source < NUM_CELL_INPUTS, name]
                for source in range(NUM_CELL_INPUTS + node)
                for name in space.ops
                if name != NONE
            ]
            total += sum(sorted(costs)[:EDGES_PER_NODE])
    return total
