"""Distributions over architectures and weights: probabilities, relaxations, divergences, densities.

Architecture logits of all kinds of cell form one tensor (kind, edge, primitive). How they are grouped into categoricals
is a matter of normalisation: per `edge` over its ops, or per `node` over all its (source, op) pairs.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from common.config import Normalisation, RelaxationKind
from common.nn.cell import Mixture
from common.space.genotype import EDGES_PER_NODE
from common.space.topology import Topology

# Probabilities of a prior never fall below this, so that logarithms and divergences stay finite.
MIN_PROBABILITY = 1e-6


def log_probabilities(
    logits: Float[Tensor, "*kinds edge primitive"], topology: Topology, normalisation: Normalisation
) -> Float[Tensor, "*kinds edge primitive"]:
    """log softmax(logits) within each categorical (BASE eq. 2: z ~ Cat(alpha))."""
    if normalisation == "edge":
        return F.log_softmax(logits, dim=-1)
    num_primitives = logits.shape[-1]
    blocks = _node_blocks(logits, topology)
    return torch.cat([_unblock(F.log_softmax(block, dim=-1), num_primitives) for block in blocks], dim=-2)


def probabilities(
    logits: Float[Tensor, "*kinds edge primitive"], topology: Topology, normalisation: Normalisation
) -> Float[Tensor, "*kinds edge primitive"]:
    """softmax(logits) within each categorical."""
    return log_probabilities(logits, topology, normalisation).exp()


def floored_log(values: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Logarithm of probabilities, which are first raised to `MIN_PROBABILITY`."""
    return values.clamp_min(MIN_PROBABILITY).log()


def num_categoricals(topology: Topology, normalisation: Normalisation) -> int:
    """Categoricals per kind of cell."""
    return topology.num_edges if normalisation == "edge" else topology.num_nodes


@dataclass(frozen=True)
class Relaxed:
    """A sample of all architecture weights that gradients flow through.

    Attributes:
        weights: (kind, edge, primitive).
        active: per kind and edge the columns to compute; None is all.
    """

    weights: Float[Tensor, "kind edge primitive"]
    active: tuple[tuple[tuple[int, ...], ...], ...] | None

    def mixtures(self, kinds: Sequence[str]) -> dict[str, Mixture]:
        """By kind of cell, as the supernet takes them."""
        return {
            kind: Mixture(self.weights[index], None if self.active is None else self.active[index])
            for index, kind in enumerate(kinds)
        }


def relax(
    logits: Float[Tensor, "kind edge primitive"],
    noise: Float[Tensor, "kind edge primitive"] | None,
    tau: float,
    kind: RelaxationKind,
    topology: Topology,
    normalisation: Normalisation,
    none_column: int | None = None,
) -> Relaxed:
    """Architecture weights from logits (BASE eq. 7-8).

    Args:
        logits: of the posterior, phi.
        noise: standard Gumbel noise; ignored by `softmax`. None leaves it out.
        tau: temperature > 0.
        kind: `gumbel` is softmax((phi + g) / tau); `softmax` leaves out g; `straight_through` takes the largest entry
            of each categorical in the forward pass and the gumbel gradient in the backward pass, and asks for no other
            op to be computed (as GDAS does); `single_path` is `single_path`'s, below.
        topology: edges of a cell.
        normalisation: what makes a categorical.
        none_column: of the op `none`, which `single_path` never takes; None where there is none.
    """
    if kind == "single_path":
        log_p = log_probabilities(logits, topology, normalisation)
        return single_path(log_p if noise is None else log_p + noise, tau, topology, none_column)
    noisy = logits if kind == "softmax" or noise is None else logits + noise
    soft = probabilities(noisy / tau, topology, normalisation)
    if kind != "straight_through":
        return Relaxed(soft, None)
    return _straight_through(one_hot_of_largest(soft.detach(), topology, normalisation), soft)


def single_path(
    scores: Float[Tensor, "kind edge primitive"], tau: float, topology: Topology, none_column: int | None
) -> Relaxed:
    """The two best (source, op) pairs of each node with weight 1, all others with 0: one derived network.

    With scores log p + g, g standard Gumbel noise, it is a draw without replacement, as the derivation `sample` makes
    one; with log p alone it is what the derivation `top2_pairs` keeps, ties included. The gradient is that of
    2 softmax(scores / tau) over all pairs of a node (reconstruction, after the straight-through estimator).

    Args:
        scores: any finite values.
        tau: temperature > 0 of the gradient.
        topology: edges of a cell.
        none_column: of the op `none`, which is never taken; None where there is none.
    """
    num_primitives = scores.shape[-1]
    if none_column is not None:
        excluded = torch.arange(num_primitives, device=scores.device) == none_column
        scores = scores.masked_fill(excluded, -torch.inf)
    hard, soft = [], []
    for block in _node_blocks(scores, topology):
        # A stable sort, so that equal scores go to the lowest flat index.
        best = block.detach().argsort(dim=-1, descending=True, stable=True)[..., :EDGES_PER_NODE]
        kept = torch.zeros_like(block).scatter(-1, best, 1.0)
        hard.append(_unblock(kept * block.isfinite(), num_primitives))
        soft.append(_unblock(EDGES_PER_NODE * F.softmax(block / tau, dim=-1), num_primitives))
    return _straight_through(torch.cat(hard, dim=-2), torch.cat(soft, dim=-2))


def one_hot_of_largest(
    values: Float[Tensor, "*kinds edge primitive"], topology: Topology, normalisation: Normalisation
) -> Float[Tensor, "*kinds edge primitive"]:
    """1 at the first largest entry of each categorical, else 0."""
    num_primitives = values.shape[-1]
    blocks = [values] if normalisation == "edge" else _node_blocks(values, topology)
    ones = [torch.zeros_like(block).scatter(-1, block.argmax(dim=-1, keepdim=True), 1.0) for block in blocks]
    if normalisation == "edge":
        return ones[0]
    return torch.cat([_unblock(block, num_primitives) for block in ones], dim=-2)


def evaluation_weights(
    logits: Float[Tensor, "kind edge primitive"],
    tau: float,
    kind: RelaxationKind,
    topology: Topology,
    normalisation: Normalisation,
) -> Float[Tensor, "kind edge primitive"]:
    """Weights to evaluate a posterior with: the noise-free mixture that training saw on average (reconstruction)."""
    return probabilities(logits / tau if kind == "softmax" else logits, topology, normalisation)


def _straight_through(hard: Tensor, soft: Tensor) -> Relaxed:
    """`hard` in the forward pass, the gradient of `soft` in the backward pass; only ops with a weight are computed."""
    chosen = hard.bool().tolist()
    active = tuple(
        tuple(tuple(column for column, on in enumerate(edge) if on) for edge in cell_kind) for cell_kind in chosen
    )
    # In this order: hard + soft - soft would not be exactly one in floating point.
    return Relaxed(hard + (soft - soft.detach()), active)


def kl_architecture(
    logits: Float[Tensor, "*kinds edge primitive"],
    prior_logits: Float[Tensor, "*kinds edge primitive"],
    topology: Topology,
    normalisation: Normalisation,
) -> Float[Tensor, ""]:
    """KL(q(z) || p(z)) in nats, summed over all categoricals (BASE eq. 9, in closed form)."""
    log_q = log_probabilities(logits, topology, normalisation)
    log_p = log_probabilities(prior_logits, topology, normalisation)
    q = log_q.exp()
    # p - q sums to zero; with it the gradient at q = p is exactly zero, not rounding noise that Adam would scale up.
    return (q * (log_q - log_p) + (log_p.exp() - q)).sum()


def kl_weights(
    difference: Float[Tensor, "size"], log_s: Float[Tensor, "size"], log_sigma: Float[Tensor, "size"]
) -> Float[Tensor, ""]:
    """KL(N(m, s^2) || N(mu, sigma^2)) in nats, summed over elements; `difference` is m - mu (BASE eq. 9)."""
    scaled = (torch.exp(2 * log_s) + difference.square()) * torch.exp(-2 * log_sigma)
    return (log_sigma - log_s + 0.5 * scaled - 0.5).sum()


def entropy(
    logits: Float[Tensor, "*kinds edge primitive"], topology: Topology, normalisation: Normalisation
) -> Float[Tensor, "*kinds"]:
    """Mean entropy of the categoricals of each kind of cell, in nats."""
    log_p = log_probabilities(logits, topology, normalisation)
    total = -(log_p.exp() * log_p).sum(dim=(-2, -1))
    return total / num_categoricals(topology, normalisation)


def relaxed_log_density(
    sample: Float[Tensor, "*batch primitive"], logits: Float[Tensor, "*batch primitive"], tau: float
) -> Float[Tensor, "*batch"]:
    """Log density of a Gumbel-softmax sample of one categorical (BASE eq. 8; Maddison et al. 2017, def. 1)."""
    n = sample.shape[-1]
    log_p = F.log_softmax(logits, dim=-1)
    log_z = sample.log()
    constant = torch.lgamma(torch.tensor(float(n), dtype=sample.dtype)) + (n - 1) * torch.log(
        torch.tensor(tau, dtype=sample.dtype)
    )
    return constant - n * torch.logsumexp(log_p - tau * log_z, dim=-1) + (log_p - (tau + 1) * log_z).sum(dim=-1)


def _node_blocks(values: Tensor, topology: Topology) -> list[Tensor]:
    """All (source, op) pairs of each node side by side: per node (*kinds, num_sources * num_primitives)."""
    rows = [topology.edges_into(node) for node in range(topology.num_nodes)]
    return [values[..., edges.start : edges.stop, :].flatten(-2) for edges in rows]


def _unblock(block: Tensor, num_primitives: int) -> Tensor:
    return block.reshape(*block.shape[:-1], -1, num_primitives)
