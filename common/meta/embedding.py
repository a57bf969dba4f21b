"""Meta-gradients: how the query loss after a few inner steps depends on where they started (BASE eq. 10-11).

All parameters of a task, weights and architecture logits together, are one vector phi. Inner steps are plain gradient
descent, phi[t+1] = phi[t] - rates * grad L_t(phi[t]), so the query loss has the gradient
product over t of (I - H_t diag(rates)) applied to grad L_query(phi[T]), H_t the Hessian of L_t at phi[t]
(reconstruction: the paper's equations are lost, its prose says that the optimization embedding is differentiated).

There is no KL divergence to the prior in these losses: after a handful of steps it has hardly a gradient, and the prior
would be learnt from it directly, besides through the steps.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from common.few_shot_config import MetaGradientMethod

Vector = Float[Tensor, "size"]
Objective = Callable[[Vector], Float[Tensor, ""]]
"""A loss in nats of all parameters; equal parameters give equal losses: its batch and its noise are fixed."""


@dataclass(frozen=True)
class MetaGradientEstimate:
    """What a method makes of a task.

    Attributes:
        gradient: (size,) of the query loss with respect to the parameters that the steps started from; of `reptile`,
            start minus end.
        end: (size,) parameters after the last step.
        losses: of each inner step, before it.
        query_loss: at `end`; None where the method does not look at it.
    """

    gradient: Vector
    end: Vector
    losses: tuple[Tensor, ...]
    query_loss: Tensor | None


def meta_gradient(
    method: MetaGradientMethod,
    start: Vector,
    rates: Vector,
    inner: Sequence[Objective],
    query: Objective,
    displacement: float = 0.1,
) -> MetaGradientEstimate:
    """The gradient of the query loss with respect to `start`, by a method of `FewShotConfig.method`.

    Args:
        method: exact differentiates through the steps, so its objectives must be differentiable twice, and its memory
            grows with their number. The others take first derivatives alone, one graph at a time.
        start: unchanged.
        rates: of the inner steps, one per parameter.
        inner: the objective of each step.
        query: what the end is judged by; `reptile` does not look at it.
        displacement: see `finite_difference`.
    """
    if method == "exact":
        return exact(start, rates, inner, query)
    iterates, losses = descend(start, rates, inner)
    if method == "reptile":
        return MetaGradientEstimate(start.detach() - iterates[-1], iterates[-1], losses, None)
    query_loss, gradient = value_and_gradient(query, iterates[-1])
    if method == "finite_difference":
        gradient = finite_difference(gradient, iterates[:-1], rates, inner, displacement)
    return MetaGradientEstimate(gradient, iterates[-1], losses, query_loss)


def descend(start: Vector, rates: Vector, inner: Sequence[Objective]) -> tuple[tuple[Vector, ...], tuple[Tensor, ...]]:
    """The parameters before every inner step and after the last one, and the loss before each."""
    iterates, losses = [start.detach()], []
    for objective in inner:
        loss, gradient = value_and_gradient(objective, iterates[-1])
        iterates.append(iterates[-1] - rates * gradient)
        losses.append(loss)
    return tuple(iterates), tuple(losses)


def exact(start: Vector, rates: Vector, inner: Sequence[Objective], query: Objective) -> MetaGradientEstimate:
    """By automatic differentiation through all steps."""
    leaf = start.detach().requires_grad_()
    parameters, losses = leaf, []
    with torch.enable_grad():
        for objective in inner:
            loss = objective(parameters)
            (gradient,) = torch.autograd.grad(loss, parameters, create_graph=True)
            parameters = parameters - rates * gradient
            losses.append(loss.detach())
        query_loss = query(parameters)
        (gradient,) = torch.autograd.grad(query_loss, leaf)
    return MetaGradientEstimate(gradient, parameters.detach(), tuple(losses), query_loss.detach())


def finite_difference(
    query_gradient: Vector, iterates: Sequence[Vector], rates: Vector, inner: Sequence[Objective], displacement: float
) -> Vector:
    """The same product of matrices from the right, each Hessian applied by a central difference of gradients.

    Two gradients per step, and no graph longer than one of them. The error is quadratic in `displacement` where the
    loss is smooth. Where it has kinks (ReLU, max pooling) those that lie between the two points count as curvature.

    Args:
        query_gradient: at the end.
        iterates: parameters before each step.
        rates: of the steps.
        inner: the objective of each step.
        displacement: Euclidean length of the way to either side, over all parameters.
    """
    gradient = query_gradient
    for parameters, objective in zip(reversed(iterates), reversed(inner), strict=True):
        direction = rates * gradient
        length = float(direction.norm())
        if length == 0:
            continue
        offset = direction * (displacement / length)
        _, ahead = value_and_gradient(objective, parameters + offset)
        _, behind = value_and_gradient(objective, parameters - offset)
        gradient = gradient - (ahead - behind) * (length / (2 * displacement))
    return gradient


def value_and_gradient(objective: Objective, parameters: Vector) -> tuple[Tensor, Vector]:
    """A loss and its gradient; nothing of the graph is left."""
    leaf = parameters.detach().requires_grad_()
    with torch.enable_grad():
        loss = objective(leaf)
        (gradient,) = torch.autograd.grad(loss, leaf)
    return loss.detach(), gradient
