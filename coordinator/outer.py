"""The outer step: local posteriors move the prior (Reptile; BASE: "updated by summarizing" them, a damped M-step)."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import torch
from numpy.typing import NDArray

from common.config import OuterConfig, StudyConfig
from common.errors import AdaptationError
from common.messages import LocalUpdate
from common.meta.params import BODY, HEAD_PREFIX, Layout, layout_of, named_vectors, sum_per_tensor
from common.meta.posterior import MIN_PROBABILITY, floored_log, log_probabilities, probabilities
from common.meta.prior import ALPHA, LOG_SIGMA_PREFIX, Prior, Vector, alpha_tensor
from common.nn.supernet import Supernet
from common.space.genotype import Genotype, derive
from common.space.primitives import PARAMETER_FREE
from coordinator.aggregate import MAX_MAGNITUDE, Aggregator, aggregator

_MIN_VARIANCE = 1e-12
_DECIDED_OVER_UNIFORM = 1.2


class RejectionReason(StrEnum):
    """Why an update does not count."""

    NOT_FINITE = "not_finite"
    WRONG_SHAPE = "wrong_shape"
    WRONG_VERSION = "wrong_version"
    BAD_WEIGHT = "bad_weight"
    OUT_OF_RANGE = "out_of_range"
    UNEXPECTED_TASK = "unexpected_task"


@dataclass(frozen=True)
class Rejection:
    """An update that does not count, and why."""

    task_id: str
    reason: RejectionReason
    detail: str


def step(prior: Prior, updates: Iterable[LocalUpdate], config: StudyConfig) -> Prior:
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
    """One outer step, fed update by update as they come; memory does not grow with their number under a mean.

    Args:
        prior: the version that all updates must start from; unchanged.
        config: of the study.
    """

    def __init__(self, prior: Prior, config: StudyConfig) -> None:
        self._prior = prior
        self._config = config
        self._means: dict[str, Aggregator] = {}
        self._second_moments: dict[str, Aggregator] = {}
        self._alpha = aggregator(prior.vectors[ALPHA].size, config.outer)
        self._layouts = _layouts(config) if _has_tensor_scales(config) else {}
        self.num_accepted = 0

    def absorb(self, update: LocalUpdate) -> Rejection | None:
        """Takes one update, or says why not; a rejected update leaves no trace."""
        rejection = check(self._prior, update, self._config)
        if rejection is not None:
            return rejection
        outer = self._config.outer
        weight = task_weight(update.num_examples, self._config)
        clip = _clip_factor(update.differences, outer)
        for name, difference in update.differences.items():
            clipped = difference if clip == 1.0 else difference.astype(np.float64) * clip
            self._add(self._means, name, clipped, weight)
            if name in update.log_sigma:
                self._add(self._second_moments, name, self._second_moment(name, difference, update), weight)
        self._alpha.add(self._alpha_coordinates(update.alpha), weight)
        self.num_accepted += 1
        return None

    def finish(self) -> Prior:
        """The next version of the prior.

        Raises:
            AdaptationError: nothing was accepted.
        """
        if not self.num_accepted:
            raise AdaptationError(f"no update to version {self._prior.version} was accepted")
        config, prior = self._config, self._prior
        rate = theta_rate(config, prior.version)
        vectors = dict(prior.vectors)
        for name, mean in self._means.items():
            average = mean.result()
            vectors[name] = _as_vector(prior.vectors[name] + rate * average)
            if name in self._second_moments:
                scale = LOG_SIGMA_PREFIX + name
                vectors[scale] = self._next_log_sigma(name, prior.vectors[scale], average, rate)
        stopped = prior.alpha_stopped
        if learns_alpha(prior, config):
            alpha = self._next_alpha()
            limit = config.outer.max_parameter_free_edges
            if limit is not None and most_parameter_free_edges(alpha, config) > limit:
                stopped = True
            else:
                vectors[ALPHA] = alpha
        _, tau = config.relaxation.at(prior.version + 1, config.rounds)
        return Prior(prior.version + 1, tau, vectors, stopped)

    def _add(self, aggregators: dict[str, Aggregator], name: str, vector: NDArray[np.floating], weight: float) -> None:
        if name not in aggregators:
            aggregators[name] = aggregator(vector.size, self._config.outer)
        aggregators[name].add(vector, weight)

    def _alpha_coordinates(self, alpha: Vector) -> NDArray[np.float64]:
        """What is averaged: probabilities, or differences of logits."""
        if self._config.outer.alpha_average == "logits":
            return alpha.astype(np.float64) - self._prior.vectors[ALPHA]
        return _flat_probabilities(alpha, self._config)

    def _next_alpha(self) -> Vector:
        outer, space = self._config.outer, self._config.space
        before = self._prior.vectors[ALPHA]
        if outer.alpha_average == "logits":
            logits = alpha_tensor(before, self._config) + outer.alpha_rate * torch.from_numpy(
                self._alpha.result()
            ).reshape(self._prior.alpha(self._config).shape)
        else:
            mixed = (1 - outer.alpha_rate) * _flat_probabilities(before, self._config)
            mixed += outer.alpha_rate * self._alpha.result()
            logits = floored_log(torch.from_numpy(mixed).reshape(self._prior.alpha(self._config).shape))
        normalised = log_probabilities(logits, space.topology, space.normalisation)
        return _as_vector(normalised.reshape(-1).numpy())

    def _second_moment(self, name: str, difference: Vector, update: LocalUpdate) -> NDArray[np.float64]:
        """s^2 + (m - mu)^2, averaged over the elements that share a standard deviation."""
        variance = np.exp(2 * update.log_sigma[name].astype(np.float64))
        return variance + self._per_scale(name, np.square(difference.astype(np.float64)))

    def _next_log_sigma(self, name: str, before: Vector, average: NDArray[np.float64], rate: float) -> Vector:
        """Damped M-step: sigma*^2 = mean over tasks of s^2 + (m - mu*)^2, with mu* the undamped mean."""
        wanted = self._second_moments[name].result() - self._per_scale(name, np.square(average))
        variance = (1 - rate) * np.exp(2 * before.astype(np.float64)) + rate * wanted
        return _as_vector(0.5 * np.log(np.maximum(variance, _MIN_VARIANCE)))

    def _per_scale(self, name: str, elements: NDArray[np.float64]) -> NDArray[np.float64]:
        if name not in self._layouts:
            return elements
        layout = self._layouts[name]
        sums = sum_per_tensor(torch.from_numpy(elements), layout)
        means: NDArray[np.float64] = (sums / torch.tensor(layout.sizes)).numpy()
        return means


def check(prior: Prior, update: LocalUpdate, config: StudyConfig) -> Rejection | None:
    """Why an update must not touch the prior, or None."""

    def rejected(reason: RejectionReason, detail: str) -> Rejection:
        return Rejection(update.task_id, reason, detail)

    if update.version != prior.version:
        return rejected(RejectionReason.WRONG_VERSION, f"starts from {update.version}, the prior is {prior.version}")
    if update.num_examples <= 0:
        return rejected(RejectionReason.BAD_WEIGHT, f"num_examples must be > 0, got {update.num_examples}")
    weight = task_weight(update.num_examples, config)
    if not 0 < weight <= MAX_MAGNITUDE:
        return rejected(RejectionReason.BAD_WEIGHT, f"weight {weight:g} is not in 0..{MAX_MAGNITUDE:g}")
    heads = [name for name in update.differences if name.startswith(HEAD_PREFIX)]
    if BODY not in update.differences or len(heads) != 1 or len(update.differences) != 2:
        return rejected(RejectionReason.WRONG_SHAPE, f"needs body and one head, got {sorted(update.differences)}")
    scales = {LOG_SIGMA_PREFIX + name: vector for name, vector in update.log_sigma.items()}
    wanted = {LOG_SIGMA_PREFIX + name for name in update.differences} & set(prior.vectors)
    if set(scales) != wanted:
        return rejected(RejectionReason.WRONG_SHAPE, f"needs {sorted(wanted)}, got {sorted(scales)}")
    for name, vector in {**update.differences, **scales, ALPHA: update.alpha}.items():
        if name not in prior.vectors or vector.shape != prior.vectors[name].shape:
            expected = prior.vectors[name].shape if name in prior.vectors else "no such vector"
            return rejected(RejectionReason.WRONG_SHAPE, f"{name} has shape {vector.shape}, expected {expected}")
        largest = _largest_magnitude(vector)
        if not math.isfinite(largest):
            return rejected(RejectionReason.NOT_FINITE, f"{name} has NaN or infinite values")
        if largest * max(weight, 1.0) > MAX_MAGNITUDE:
            return rejected(RejectionReason.OUT_OF_RANGE, f"{name} has values beyond {MAX_MAGNITUDE:g}")
    for name, log_sigma in update.log_sigma.items():
        # Their sum of squares is summed in fixed point too.
        furthest = _largest_magnitude(update.differences[name])
        widest = min(float(log_sigma.max(initial=0.0)), math.log(MAX_MAGNITUDE))
        if (furthest**2 + math.exp(2 * widest)) * max(weight, 1.0) > MAX_MAGNITUDE:
            return rejected(RejectionReason.OUT_OF_RANGE, f"variance of {name} is beyond {MAX_MAGNITUDE:g}")
    return None


def task_weight(num_examples: int, config: StudyConfig) -> float:
    """Weight of a task in the mean; 1 for a task with as many training images as the first family plans."""
    if config.outer.weighting == "uniform":
        return 1.0
    nominal = config.families[0].num_ways * config.families[0].train_per_class
    try:
        return float((num_examples / nominal) ** config.outer.examples_power)
    except OverflowError:
        return math.inf  # no such task; `check` rejects it


def theta_rate(config: StudyConfig, version: int) -> float:
    """Rate of the weights in the step from `version` to the next."""
    outer = config.outer
    if outer.theta_rate_end is None:
        return outer.theta_rate
    progress = min(version / max(config.rounds - 1, 1), 1.0)
    return outer.theta_rate + (outer.theta_rate_end - outer.theta_rate) * progress


def learns_alpha(prior: Prior, config: StudyConfig) -> bool:
    """Whether tasks that start from `prior` learn an architecture."""
    return not prior.alpha_stopped and prior.version >= config.outer.alpha_warmup_rounds


def prior_genotype(alpha: Vector, config: StudyConfig) -> Genotype:
    """The genotype that architecture logits stand for ("Multi-task Prior" in the paper's tables)."""
    space = config.space
    values = _flat_probabilities(alpha, config).reshape(len(space.cell_kinds), space.topology.num_edges, len(space.ops))
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


def _flat_probabilities(alpha: Vector, config: StudyConfig) -> NDArray[np.float64]:
    space = config.space
    values = probabilities(alpha_tensor(alpha, config), space.topology, space.normalisation)
    flat: NDArray[np.float64] = values.reshape(-1).numpy()
    return flat


def _largest_magnitude(vector: Vector) -> float:
    """The largest absolute value, NaN if any is; without temporaries as large as the vector."""
    return float(np.maximum(-vector.min(initial=0.0), vector.max(initial=0.0)))


def _clip_factor(differences: Mapping[str, Vector], outer: OuterConfig) -> float:
    if outer.rule != "clipped_mean":
        return 1.0
    squares = sum(float(np.square(differences[name], dtype=np.float64).sum()) for name in sorted(differences))
    return float(min(1.0, outer.clip_norm / max(squares**0.5, MIN_PROBABILITY)))


def _as_vector(values: NDArray[np.float64]) -> Vector:
    vector = values.astype(np.float32)
    vector.setflags(write=False)
    return vector


def _has_tensor_scales(config: StudyConfig) -> bool:
    return config.inner.weights == "gaussian" and config.inner.gaussian_scale == "tensor"


def _layouts(config: StudyConfig) -> dict[str, Layout]:
    with torch.device("meta"):
        supernet = Supernet(config.space, config.network)
    return {name: layout_of(named) for name, named in named_vectors(supernet).items()}
