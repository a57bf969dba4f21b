"""The outer step: what tasks have learnt moves the prior.

Local posteriors do as in Reptile (BASE: "updated by summarizing" them, a damped M-step); meta-gradients of few-shot
tasks by Adam, or by plain steps (BASE eq. 11).
"""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from common.config import StudyConfig
from common.errors import AdaptationError
from common.few_shot_config import FewShotConfig
from common.messages import PartialSum, Rejection, Update
from common.meta.adam import AdamState, adam_step
from common.meta.params import BODY
from common.meta.posterior import floored_log, log_probabilities
from common.meta.prior import (
    ADAM_FIRST_PREFIX,
    ADAM_SECOND_PREFIX,
    ALPHA,
    LOG_SIGMA_PREFIX,
    Prior,
    Vector,
    alpha_tensor,
)
from common.meta.sums import SECOND_MOMENT_PREFIX, USE, Origin, UpdateSums, alpha_probabilities
from common.space.genotype import Genotype, derive
from common.space.primitives import PARAMETER_FREE

_MIN_VARIANCE = 1e-12
_DECIDED_OVER_UNIFORM = 1.2


def step(prior: Prior, updates: Iterable[Update], config: StudyConfig) -> Prior:
    """The next prior from the updates of one round; bitwise the same for any order of the updates.

    Raises:
        AdaptationError: an update is not acceptable, or there is none.
    """
    outer = OuterStep(prior, config)
    for update in updates:
        rejection = outer.absorb(update)
        if rejection is not None:
            raise AdaptationError(f"update of {rejection.task_id}: {rejection.reason} ({rejection.detail})")
    return outer.finish()


class OuterStep:
    """One outer step, fed update by update or sum by sum as they come; see `UpdateSums`.

    Args:
        prior: the version that all updates must start from, unless they come with an origin; unchanged.
        config: of the study.
    """

    def __init__(self, prior: Prior, config: StudyConfig) -> None:
        self._prior = prior
        self._config = config
        self._sums = UpdateSums(prior, config)

    @property
    def num_accepted(self) -> int:
        """Updates that count so far."""
        return self._sums.num_accepted

    def absorb(self, update: Update, origin: Origin | None = None) -> Rejection | None:
        """Takes one update, or says why not; a rejected update leaves no trace. See `UpdateSums.absorb`."""
        return self._sums.absorb(update, origin)

    def merge(self, partial: PartialSum) -> Rejection | None:
        """Takes the sum of several updates, or says why not, without a trace. Not under robust rules."""
        return self._sums.merge(partial)

    def finish(self) -> Prior:
        """The next version of the prior.

        Raises:
            AdaptationError: nothing was accepted.
        """
        if not self.num_accepted:
            raise AdaptationError(f"no update to version {self._prior.version} was accepted")
        config, prior = self._config, self._prior
        few_shot = config.few_shot
        moved = self._averaged() if few_shot is None else self._descended(few_shot, prior.weight_names)
        vectors = {**prior.vectors, **moved}
        stopped = prior.alpha_stopped
        if learns_alpha(prior, config) and (few_shot is None or few_shot.outer_alpha_lr > 0):
            architecture = self._next_architecture()
            limit = config.outer.max_parameter_free_edges
            if limit is not None and most_parameter_free_edges(architecture[ALPHA], config) > limit:
                stopped = True
            else:
                vectors |= architecture
        _, tau = config.relaxation.at(prior.version + 1, config.rounds)
        return Prior(prior.version + 1, tau, vectors, stopped)

    def _averaged(self) -> dict[str, Vector]:
        """The weights, moved towards the mean of the tasks' own (Reptile)."""
        config, prior = self._config, self._prior
        rate = theta_rate(config, prior.version)
        moved = {}
        for name in self._sums.names:
            if name in (ALPHA, USE) or name.startswith(SECOND_MOMENT_PREFIX):
                continue
            by_use = name == BODY and config.outer.theta_average != "tasks"
            average = self._sums.mean_by_use() if by_use else self._sums.mean(name)
            moved[name] = _as_vector(prior.vectors[name] + rate * average)
            if SECOND_MOMENT_PREFIX + name in self._sums.names:
                scale = LOG_SIGMA_PREFIX + name
                moved[scale] = self._next_log_sigma(name, prior.vectors[scale], average, rate)
        return moved

    def _descended(self, few_shot: FewShotConfig, names: Sequence[str]) -> dict[str, Vector]:
        """Vectors after a step down the mean meta-gradient, and Adam's moments of them. Float64 within the step."""
        prior, moved = self._prior, {}
        for name in names:
            gradient, values = self._sums.mean(name), prior.vectors[name].astype(np.float64)
            is_alpha = name == ALPHA
            if few_shot.sgd is not None:
                rate = few_shot.sgd.alpha_lr if is_alpha else theta_rate(self._config, prior.version)
                moved[name] = _as_vector(values - rate * gradient)
                continue
            adam = few_shot.adam
            first, second = ADAM_FIRST_PREFIX + name, ADAM_SECOND_PREFIX + name
            state = AdamState(values, *(prior.vectors[moment].astype(np.float64) for moment in (first, second)))
            # The architecture's first step is the first after the warm-up.
            num_steps = prior.version + 1 - (self._config.outer.alpha_warmup_rounds if is_alpha else 0)
            rate = adam.alpha_lr if is_alpha else adam.lr
            state = adam_step(state, gradient, num_steps, rate, adam.betas, adam.eps)
            moved |= {key: _as_vector(each) for key, each in zip((name, first, second), state, strict=True)}
        return moved

    def _next_architecture(self) -> dict[str, Vector]:
        """The logits, as logarithms of probabilities, and Adam's moments of them."""
        outer, few_shot, space = self._config.outer, self._config.few_shot, self._config.space
        before = self._prior.vectors[ALPHA]
        moved: dict[str, Vector] = {}
        if few_shot is not None:
            moved = self._descended(few_shot, (ALPHA,))
            logits = alpha_tensor(moved[ALPHA], self._config)
        elif outer.alpha_average == "logits":
            logits = alpha_tensor(before, self._config) + outer.alpha_rate * torch.from_numpy(
                self._sums.mean(ALPHA)
            ).reshape(self._prior.alpha(self._config).shape)
        else:
            mixed = (1 - outer.alpha_rate) * alpha_probabilities(before, self._config)
            mixed += outer.alpha_rate * self._sums.mean(ALPHA)
            logits = floored_log(torch.from_numpy(mixed).reshape(self._prior.alpha(self._config).shape))
        normalised = log_probabilities(logits, space.topology, space.normalisation)
        return {**moved, ALPHA: _as_vector(normalised.reshape(-1).numpy())}

    def _next_log_sigma(self, name: str, before: Vector, average: NDArray[np.float64], rate: float) -> Vector:
        """Damped M-step: sigma*^2 = mean over tasks of s^2 + (m - mu*)^2, with mu* the undamped mean."""
        wanted = self._sums.mean(SECOND_MOMENT_PREFIX + name) - self._sums.per_scale(name, np.square(average))
        variance = (1 - rate) * np.exp(2 * before.astype(np.float64)) + rate * wanted
        return _as_vector(0.5 * np.log(np.maximum(variance, _MIN_VARIANCE)))


def theta_rate(config: StudyConfig, version: int) -> float:
    """Rate of the weights in the step from `version` to the next."""
    first, last = config.outer.theta_rate, config.outer.theta_rate_end
    if config.few_shot is not None:
        sgd = config.few_shot.sgd
        first, last = (config.few_shot.adam.lr, None) if sgd is None else (sgd.lr, sgd.lr_end)
    if last is None:
        return first
    progress = min(version / max(config.rounds - 1, 1), 1.0)
    return first + (last - first) * progress


def learns_alpha(prior: Prior, config: StudyConfig) -> bool:
    """Whether tasks that start from `prior` learn an architecture."""
    has_any = config.few_shot is None or config.few_shot.learns_architecture
    return has_any and not prior.alpha_stopped and prior.version >= config.outer.alpha_warmup_rounds


def prior_genotype(alpha: Vector, config: StudyConfig) -> Genotype:
    """The genotype that architecture logits stand for ("Multi-task Prior" in the paper's tables)."""
    space = config.space
    values = alpha_probabilities(alpha, config).reshape(len(space.cell_kinds), space.topology.num_edges, len(space.ops))
    return derive(dict(zip(space.cell_kinds, values, strict=True)), space.topology, space.ops)


def most_parameter_free_edges(alpha: Vector, config: StudyConfig) -> int:
    """Edges that a pool, a skip or none dominates, in the kind of cell that has most of them.

    An edge that is still undecided, as all are at first, does not count: its strongest op must be clearly more
    probable than each would be under a uniform distribution.
    """
    ops = config.space.ops
    within_edge = torch.softmax(alpha_tensor(alpha, config), dim=-1)
    probability, strongest = within_edge.max(dim=-1)
    is_free = torch.tensor([op in PARAMETER_FREE for op in ops])
    dominated = is_free[strongest] & (probability > _DECIDED_OVER_UNIFORM / len(ops))
    return int(dominated.sum(dim=-1).max())


def _as_vector(values: NDArray[np.float64]) -> Vector:
    vector = values.astype(np.float32)
    vector.setflags(write=False)
    return vector
