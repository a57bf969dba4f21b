"""The expected cost of the network that an architecture posterior stands for, and its penalty (reconstruction).

A derived network keeps two of each node's (source, op) pairs, `none` left out. So the expectation is over genotypes
that rule `sample` of `common.space.genotype.derive` draws: per node two pairs without replacement, with probabilities
p_a that are renormalised over the node's candidates, however the categoricals are cut (per edge or per node).
With pi_a, the probability that pair a is kept,

    pi_a = p_a + sum over b != a of p_b p_a / (1 - p_b),        the pi_a of a node sum to 2,
    E[cost] = constant + sum over kinds of cell, nodes and pairs of pi_a cost_a,

which is exact, as costs add up (`common.cost`). As the posterior gets decided, pi tends to 1 for the two most probable
pairs and to 0 for the others: E[cost] tends to the cost of the network that rule `top2_pairs` derives. The penalty is
weight * max(E[cost] / target - 1, 0). That an expected cost enters the loss is the idea of FBNet (Wu et al. 2019) and
ProxylessNAS (Cai et al. 2019), whose layers keep one op each.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from common.config import SpaceConfig
from common.expense import Expense
from common.meta.posterior import log_probabilities
from common.space.primitives import NONE
from common.space.topology import NUM_CELL_INPUTS


@dataclass(frozen=True, eq=False)
class ExpectedCost:
    """A function of architecture logits; `none` may be among the ops.

    Attributes:
        space: what the logits stand for.
        constant: what all genotypes cost, as a share of the target.
        costs: per node, (kinds, sources * ops without none): what each pair adds, as a share of the target.
        columns: of the ops that can be kept.
    """

    space: SpaceConfig
    constant: float
    costs: tuple[Tensor, ...]
    columns: Tensor

    def relative(self, logits: Float[Tensor, "kind edge primitive"]) -> Float[Tensor, ""]:
        """E[cost] / target."""
        topology = self.space.topology
        log_p = logits
        if self.space.normalisation == "edge":
            log_p = log_probabilities(logits, topology, "edge")
        # Per node, logits are logarithms up to a constant that renormalising takes away: what is left out is without a
        # gradient then, not with a rounding error that Adam would scale up.
        log_p = log_p.index_select(-1, self.columns)
        total = logits.new_zeros(())
        for node, costs in enumerate(self.costs):
            edges = topology.edges_into(node)
            kept = kept_probabilities(log_p[:, edges.start : edges.stop].flatten(-2))
            total = total + (kept * costs).sum()
        return total + self.constant

    def penalty(self, logits: Float[Tensor, "kind edge primitive"], weight: float) -> Float[Tensor, ""]:
        """`weight` times the share by which the expected cost exceeds the target; 0 where it does not."""
        return weight * (self.relative(logits) - 1).clamp_min(0.0)


def kept_probabilities(log_p: Float[Tensor, "*kinds pair"]) -> Float[Tensor, "*kinds pair"]:
    """The probability of each candidate to be one of two that are drawn without replacement.

    Args:
        log_p: logarithms of probabilities up to a constant, of at least two candidates.
    """
    first = torch.softmax(log_p, dim=-1)
    # Row b: the second draw after b. A softmax over the rest: 1 - p_b would cancel where p_b is near 1.
    size = log_p.shape[-1]
    itself = torch.eye(size, dtype=torch.bool, device=log_p.device)
    rest = log_p.unsqueeze(-2).expand(*log_p.shape[:-1], size, size).masked_fill(itself, float("-inf"))
    second = (first.unsqueeze(-1) * torch.softmax(rest, dim=-1)).sum(dim=-2)
    return first + second


def expected_cost(
    expense: Expense, space: SpaceConfig, target: float, device: torch.device, dtype: torch.dtype = torch.float32
) -> ExpectedCost:
    """The expected cost, relative to `target`, of posteriors over `space`."""
    kept = [column for column, name in enumerate(space.ops) if name != NONE]
    costs = []
    for node in range(space.num_nodes):
        rows = [
            [
                expense.ops[kind, source < NUM_CELL_INPUTS, space.ops[column]] / target
                for source in range(NUM_CELL_INPUTS + node)
                for column in kept
            ]
            for kind in space.cell_kinds
        ]
        costs.append(torch.tensor(rows, dtype=dtype, device=device))
    return ExpectedCost(space, expense.constant / target, tuple(costs), torch.tensor(kept, device=device))
