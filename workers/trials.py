"""Trials: an architecture learnt from how well sampled genotypes do, each trained for a few steps by itself.

A score-function step (REINFORCE, Williams 1992) in place of the gradient through the supernet, which learns what
lowers the loss of a mixture in which all ops help each other, and comes to prefer pools. A trial asks what a user will
ask of the genotype: its own network, trained on its own, on images it has not seen (reconstruction; the paper learns
by gradient alone).
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from common.config import InnerConfig, SgdConfig, SpaceConfig, TrialsConfig
from common.messages import AdaptRequest, AdaptResult, LocalUpdate
from common.meta.params import flatten, named_vectors
from common.meta.prior import ALPHA, Prior, Vector
from common.nn.supernet import Supernet, build_supernet
from common.space.genotype import Genotype, derive
from common.streams import derived_seed
from workers.adapt import adapt
from workers.data.episodes import Episode


def with_trials(
    result: AdaptResult,
    prior: Prior,
    request: AdaptRequest,
    episode: Episode,
    supernet: Supernet,
    on_trial: Callable[[int], None] = lambda trial: None,
) -> AdaptResult:
    """The result of an adaptation whose update moves the architecture by trials; as it is without an update.

    Args:
        result: of adapting to the task with a fixed architecture.
        prior: where both start.
        request: with `trials`.
        episode: held-out images score the genotypes, as a query set does.
        supernet: scratch memory.
        on_trial: called with the number of trials that are over.

    Raises:
        InvalidInputError: as `workers.adapt.adapt`.
    """
    assert request.trials is not None, "who asks for trials says how to make them"
    if result.update is None:
        return result
    assert isinstance(result.update, LocalUpdate), "few-shot studies have no trials"
    genotypes = sampled_genotypes(prior, request)
    start = prior if request.trials.weights == "prior" else with_fresh_weights(prior, request, supernet)
    scores = []
    for genotype in genotypes:
        scores.append(trial_accuracy(genotype, start, request, episode, supernet))
        on_trial(len(scores))
    alpha = moved_logits(prior.vectors[ALPHA], genotypes, np.array(scores), request.space, request.trials)
    return replace(result, update=replace(result.update, alpha=alpha))


def sampled_genotypes(prior: Prior, request: AdaptRequest) -> tuple[Genotype, ...]:
    """Genotypes drawn from the prior by rule `sample`, the same ones for the same request."""
    assert request.trials is not None
    space = request.space
    # The softmax's constant is of no account: only differences of logits within a node decide what is drawn.
    logits = prior.vectors[ALPHA].astype(np.float64)
    values = np.exp(logits - logits.max()).reshape(len(space.cell_kinds), space.topology.num_edges, len(space.ops))
    probabilities = dict(zip(space.cell_kinds, values, strict=True))
    return tuple(
        derive(probabilities, space.topology, space.ops, "sample", _seed(request, "genotype", number))
        for number in range(request.trials.num_genotypes)
    )


def trial_accuracy(
    genotype: Genotype, start: Prior, request: AdaptRequest, episode: Episode, supernet: Supernet
) -> float:
    """Held-out accuracy of the network of `genotype`, 0 to 1, after a short training of its own from `start`.

    Trials of one task see the same batches.
    """
    assert request.trials is not None
    inner = trial_inner(request.trials)
    trial = replace(
        request,
        inner=inner,
        genotype=genotype,
        start=None,
        trials=None,
        learns_alpha=False,
        eval_steps=(inner.steps,),
        returns_update=False,
        returns_weights=False,
    )
    return adapt(start, trial, episode, supernet).evaluations[-1].accuracy


def trial_inner(trials: TrialsConfig) -> InnerConfig:
    """How a genotype of a trial is trained: SGD whose rate falls to zero."""
    theta = SgdConfig(lr=trials.lr, lr_end=0.0, momentum=0.9, weight_decay=0.0)
    return InnerConfig(steps=trials.steps, batch_size=trials.batch_size, theta=theta)


def with_fresh_weights(prior: Prior, request: AdaptRequest, supernet: Supernet) -> Prior:
    """`prior` with weights as they are drawn before any training; others for every task."""
    fresh = build_supernet(supernet.space, supernet.network, _seed(request, "fresh weights"))
    vectors = {name: flatten(named).numpy() for name, named in named_vectors(fresh).items()}
    return replace(prior, vectors={**prior.vectors, **vectors})


def moved_logits(
    alpha: Vector, genotypes: Sequence[Genotype], scores: NDArray[np.float64], space: SpaceConfig, trials: TrialsConfig
) -> Vector:
    """Logits after one score-function step: a pair gains what its genotypes have above the mean of the task's.

    The task's difficulty drops out with the mean. A share of each gain is that of all pairs with the same op in the
    same kind of cell together: ops differ more than places do, and what is known of a pair that was hardly ever drawn
    is mostly what is known of its op.

    Args:
        alpha: logits (kinds * edges * primitives,) that the genotypes were drawn from.
        genotypes: of the trials.
        scores: their accuracies.
        space: what logits stand for.
        trials: rate, and the share.
    """
    gains = np.zeros((len(space.cell_kinds), space.topology.num_edges, len(space.ops)))
    for genotype, advantage in zip(genotypes, scores - scores.mean(), strict=True):
        for index, kind in enumerate(space.cell_kinds):
            for node, edges in enumerate(genotype.cells[kind]):
                for edge in edges:
                    row = space.topology.edges_into(node)[edge.source]
                    gains[index, row, space.ops.index(edge.primitive)] += advantage
    share = trials.shared_by_op
    gains = (1 - share) * gains + share * gains.sum(axis=1, keepdims=True)
    moved: Vector = (alpha + trials.rate * gains.reshape(-1)).astype(np.float32)
    return moved


def _seed(request: AdaptRequest, *keys: str | int) -> int:
    return derived_seed(request.study_seed, request.task.task_id, "trials", *keys)
