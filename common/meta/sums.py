"""The sums that an outer step is made of: updates are checked, weighed and added, on workers or where the step is."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from common.config import OuterConfig, StudyConfig
from common.messages import LocalUpdate, MetaGradient, PartialSum, Rejection, RejectionReason, Update, span_of
from common.meta.aggregate import MAX_MAGNITUDE, Aggregator, FixedPointMean, FixedPointSum, added, aggregator
from common.meta.params import BODY, HEAD_PREFIX, Layout, layout_of, named_vectors
from common.meta.posterior import MIN_PROBABILITY, probabilities
from common.meta.prior import ALPHA, LOG_SIGMA_PREFIX, Prior, Vector, alpha_tensor
from common.meta.uses import spread_over_ops
from common.nn.supernet import Supernet

SECOND_MOMENT_PREFIX = "second_moment/"
USE = "use"
_Problem = tuple[RejectionReason, str]


@dataclass(frozen=True)
class Origin:
    """Where an update began that is to move a later version (buffered asynchronous mode; reconstruction).

    What a task has learnt are moves from its origin, and they count as if made from the version that they meet.
    Differences and gradients are such moves already. The architecture's posterior goes as far from the version that it
    meets as it is from its origin, in probabilities or in logits, whichever are averaged; the standard deviations of
    gaussian weights are the task's own. Averaging a stale posterior as it is would undo what was learnt meanwhile.

    Attributes:
        version: of the prior there.
        alpha: architecture logits there; None where the prior has no architecture.
        weight: that the update's own weight is multiplied by, > 0.
    """

    version: int
    alpha: Vector | None
    weight: float


class UpdateSums:
    """Sums over the updates of one round, or of some of its tasks, fed update by update as they come.

    What is averaged has a name: weights that of their vector in the prior (`body`, `head/<image size>`: differences),
    the architecture `alpha` (probabilities, or differences of logits), under gaussian `second_moment/<weights>`, and
    `use`, what each op's differences are divided by (see `outer.theta_average`). In few-shot studies it is the
    gradients of all vectors, by their names in the prior: the sums' resolution of 2^-40 (9e-13) is far below the eps of
    Adam, which gradients have to exceed to move anything (see `MetaAdamConfig.eps`).
    Memory does not grow with the number of updates under a mean. Updates must not change after they were absorbed.

    Args:
        prior: the version that all updates must start from, unless they come with an origin; unchanged.
        config: of the study.
    """

    def __init__(self, prior: Prior, config: StudyConfig) -> None:
        self._prior = prior
        self._config = config
        self._aggregators: dict[str, Aggregator] = {}
        self._layouts = _layouts(config) if _has_tensor_scales(config) else {}
        self.num_accepted = 0

    def absorb(self, update: Update, origin: Origin | None = None) -> Rejection | None:
        """Takes one update, or says why not; a rejected update leaves no trace.

        Args:
            update: what a task has learnt.
            origin: where it began, if not from the version that the sums are for.
        """
        rejection = check(self._prior, update, self._config, origin)
        if rejection is not None:
            return rejection
        weight = _weight(update, self._config, origin)
        for name, vector in self._summands(update, origin):
            self._aggregator(name).add(vector, weight)
        self.num_accepted += 1
        return None

    def _summands(self, update: Update, origin: Origin | None) -> Iterator[tuple[str, NDArray[np.floating]]]:
        """What an update adds, by the name of what is averaged."""
        outer = self._config.outer
        moves = update.gradients if isinstance(update, MetaGradient) else update.differences
        clip = _clip_factor(moves, outer)
        for name, vector in moves.items():
            yield name, vector if clip == 1.0 else vector.astype(np.float64) * clip
        if isinstance(update, MetaGradient):
            return
        for name in update.log_sigma:
            yield SECOND_MOMENT_PREFIX + name, self._second_moment(name, update)
        yield ALPHA, _alpha_coordinates(self._prior, update.alpha, self._config, origin)
        if outer.theta_average != "tasks":
            yield USE, _counted_use(self._prior, update, outer)

    def merge(self, partial: PartialSum) -> Rejection | None:
        """Takes the updates of several tasks, or says why none of them counts; then they leave no trace.

        Not under robust rules, which need every update by itself.
        """
        rejection = self._check_partial(partial)
        if rejection is not None:
            return rejection
        for name, part in partial.sums.items():
            mean = self._aggregator(name)
            assert isinstance(mean, FixedPointMean), f"updates cannot be summed under {self._config.outer.rule}"
            mean.merge(part)
        self.num_accepted += len(partial.statistics)
        return None

    def sums(self) -> dict[str, FixedPointSum]:
        """What was added, by name; nothing may be absorbed afterwards. Not under robust rules."""
        found = {}
        for name, mean in self._aggregators.items():
            assert isinstance(mean, FixedPointMean), f"updates cannot be summed under {self._config.outer.rule}"
            found[name] = mean.sum()
        return found

    @property
    def names(self) -> tuple[str, ...]:
        """What has a mean."""
        return tuple(self._aggregators)

    def mean(self, name: str) -> NDArray[np.float64]:
        """The mean (size,) over the tasks that have the vector."""
        return self._aggregators[name].result()

    def mean_by_use(self) -> NDArray[np.float64]:
        """The mean (size,) of the differences of the body, each divided by the mean use of its op; 0 where that is 0.

        Weights of no op, which every step uses, have the plain mean.
        """
        use = self.mean(USE)
        divisor = spread_over_ops(np.where(use > 0, use, 1.0), self._config)
        average: NDArray[np.float64] = np.divide(self.mean(BODY), divisor)
        return average

    def per_scale(self, name: str, elements: NDArray[np.float64]) -> NDArray[np.float64]:
        """Means over the elements of weights `name` that share a standard deviation."""
        if name not in self._layouts:
            return elements
        sizes = self._layouts[name].sizes
        # By numpy, whose sums do not depend on the number of threads as torch's do.
        return np.array([part.mean() for part in np.split(elements, np.cumsum(sizes)[:-1])])

    def _aggregator(self, name: str) -> Aggregator:
        if name not in self._aggregators:
            self._aggregators[name] = aggregator(self._prior.vectors[_moved_by(name)].size, self._config.outer)
        return self._aggregators[name]

    def _check_partial(self, partial: PartialSum) -> Rejection | None:
        def rejected(reason: RejectionReason, detail: str) -> Rejection:
            return Rejection(span_of(partial.task_ids), reason, detail)

        version, vectors = self._prior.version, self._prior.vectors
        if partial.version != version:
            return rejected(RejectionReason.WRONG_VERSION, f"starts from {partial.version}, the prior is {version}")
        for name, part in partial.sums.items():
            moved = _moved_by(name)
            if moved not in vectors or part.totals.shape != vectors[moved].shape:
                expected = vectors[moved].shape if moved in vectors else "no such vector"
                detail = f"the sum of {name} has shape {part.totals.shape}, expected {expected}"
                return rejected(RejectionReason.WRONG_SHAPE, detail)
        learnt = set(self._prior.learnt_names)
        if self._config.few_shot is not None and partial.statistics and set(partial.sums) != learnt:
            return rejected(RejectionReason.WRONG_SHAPE, f"needs {sorted(learnt)}, got {sorted(partial.sums)}")
        return None

    def _second_moment(self, name: str, update: LocalUpdate) -> NDArray[np.float64]:
        """s^2 + (m - mu)^2, averaged over the elements that share a standard deviation."""
        variance: NDArray[np.float64] = np.exp(2 * update.log_sigma[name].astype(np.float64))
        return variance + self.per_scale(name, np.square(update.differences[name].astype(np.float64)))


def merged(parts: Sequence[PartialSum]) -> PartialSum:
    """One partial sum of the tasks of several: to the bit what one worker would have made of all these tasks.

    Args:
        parts: at least one, of one version; no task is in two of them.
    """
    versions = {part.version for part in parts}
    assert len(versions) == 1, f"sums of versions {sorted(versions)} do not add up"
    by_name: dict[str, list[FixedPointSum]] = {}
    for part in parts:
        for name, summed in part.sums.items():
            by_name.setdefault(name, []).append(summed)
    statistics = {task_id: found for part in parts for task_id, found in part.statistics.items()}
    assert len(statistics) == sum(len(part.statistics) for part in parts), "a task is in two of the sums"
    rejections = tuple(rejection for part in parts for rejection in part.rejections)
    sums = {name: added(summands) for name, summands in by_name.items()}
    return PartialSum(versions.pop(), statistics, rejections, sums)


def check(prior: Prior, update: Update, config: StudyConfig, origin: Origin | None = None) -> Rejection | None:
    """Why an update must not touch the prior, or None."""

    def rejected(reason: RejectionReason, detail: str) -> Rejection:
        return Rejection(update.task_id, reason, detail)

    version = prior.version if origin is None else origin.version
    if update.version != version:
        return rejected(RejectionReason.WRONG_VERSION, f"starts from {update.version}, the prior is {version}")
    if update.num_examples <= 0:
        return rejected(RejectionReason.BAD_WEIGHT, f"num_examples must be > 0, got {update.num_examples}")
    weight = _weight(update, config, origin)
    if not 0 < weight <= MAX_MAGNITUDE:
        return rejected(RejectionReason.BAD_WEIGHT, f"weight {weight:g} is not in 0..{MAX_MAGNITUDE:g}")
    if isinstance(update, MetaGradient) != (config.few_shot is not None):
        wanted = "a difference" if config.few_shot is None else "a meta-gradient"
        return rejected(RejectionReason.WRONG_SHAPE, f"needs {wanted}, got a {type(update).__name__}")
    problem = _missing_gradients(prior, update) if isinstance(update, MetaGradient) else _misshapen(prior, update)
    if problem is not None:
        return rejected(*problem)
    for name, vector in _vectors_of(update).items():
        if name not in prior.vectors or vector.shape != prior.vectors[name].shape:
            expected = prior.vectors[name].shape if name in prior.vectors else "no such vector"
            return rejected(RejectionReason.WRONG_SHAPE, f"{name} has shape {vector.shape}, expected {expected}")
        largest = _largest_magnitude(vector)
        if not math.isfinite(largest):
            return rejected(RejectionReason.NOT_FINITE, f"{name} has NaN or infinite values")
        if largest * max(weight, 1.0) > MAX_MAGNITUDE:
            return rejected(RejectionReason.OUT_OF_RANGE, f"{name} has values beyond {MAX_MAGNITUDE:g}")
    problem = _too_far(prior, update, weight, config, origin) if isinstance(update, LocalUpdate) else None
    return None if problem is None else rejected(*problem)


def _missing_gradients(prior: Prior, update: MetaGradient) -> _Problem | None:
    if set(update.gradients) != set(prior.learnt_names):
        detail = f"needs gradients of {sorted(prior.learnt_names)}, got {sorted(update.gradients)}"
        return RejectionReason.WRONG_SHAPE, detail
    return None


def _misshapen(prior: Prior, update: LocalUpdate) -> _Problem | None:
    heads = [name for name in update.differences if name.startswith(HEAD_PREFIX)]
    if BODY not in update.differences or len(heads) != 1 or len(update.differences) != 2:
        return RejectionReason.WRONG_SHAPE, f"needs body and one head, got {sorted(update.differences)}"
    scales = {LOG_SIGMA_PREFIX + name for name in update.log_sigma}
    wanted = {LOG_SIGMA_PREFIX + name for name in update.differences} & set(prior.vectors)
    if scales != wanted:
        return RejectionReason.WRONG_SHAPE, f"needs {sorted(wanted)}, got {sorted(scales)}"
    if update.use is not None and update.use.shape != update.alpha.shape:
        return RejectionReason.WRONG_SHAPE, f"{USE} has shape {update.use.shape}, not that of {ALPHA}"
    if update.use is not None and not (update.use.min() >= 0 and update.use.max() <= 1):
        return RejectionReason.OUT_OF_RANGE, f"{USE} has values that are no shares of the steps"
    return None


def _vectors_of(update: Update) -> Mapping[str, Vector]:
    """By the vector of the prior that each is as long as."""
    if isinstance(update, MetaGradient):
        return update.gradients
    scales = {LOG_SIGMA_PREFIX + name: vector for name, vector in update.log_sigma.items()}
    return {**update.differences, **scales, ALPHA: update.alpha}


def _too_far(
    prior: Prior, update: LocalUpdate, weight: float, config: StudyConfig, origin: Origin | None
) -> _Problem | None:
    """What is summed of an update besides its own vectors must be in range too."""
    if _largest_magnitude(_alpha_coordinates(prior, update.alpha, config, origin)) * max(weight, 1.0) > MAX_MAGNITUDE:
        return RejectionReason.OUT_OF_RANGE, f"{ALPHA} is further than {MAX_MAGNITUDE:g} from the prior's"
    for name, log_sigma in update.log_sigma.items():
        furthest = _largest_magnitude(update.differences[name])
        widest = min(float(log_sigma.max(initial=0.0)), math.log(MAX_MAGNITUDE))
        if (furthest**2 + math.exp(2 * widest)) * max(weight, 1.0) > MAX_MAGNITUDE:
            return RejectionReason.OUT_OF_RANGE, f"variance of {name} is beyond {MAX_MAGNITUDE:g}"
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


def _weight(update: Update, config: StudyConfig, origin: Origin | None) -> float:
    own = task_weight(update.num_examples, config)
    return own if origin is None else own * origin.weight


def alpha_probabilities(alpha: Vector, config: StudyConfig) -> NDArray[np.float64]:
    """Probabilities (size,) that architecture logits (size,) stand for."""
    space = config.space
    values = probabilities(alpha_tensor(alpha, config), space.topology, space.normalisation)
    flat: NDArray[np.float64] = values.reshape(-1).numpy()
    return flat


def _alpha_coordinates(
    prior: Prior, alpha: Vector, config: StudyConfig, origin: Origin | None = None
) -> NDArray[np.float64]:
    """What is averaged: probabilities, moved as far as the prior was since the origin; or differences of logits."""
    before = prior.vectors[ALPHA] if origin is None or origin.alpha is None else origin.alpha
    if config.outer.alpha_average == "logits":
        return alpha.astype(np.float64) - before
    own = alpha_probabilities(alpha, config)
    if origin is None:
        return own
    return own + (alpha_probabilities(prior.vectors[ALPHA], config) - alpha_probabilities(before, config))


def _moved_by(name: str) -> str:
    """The vector of the prior that a mean moves, or that it has an element for each element of."""
    if name.startswith(SECOND_MOMENT_PREFIX):
        return LOG_SIGMA_PREFIX + name.removeprefix(SECOND_MOMENT_PREFIX)
    return ALPHA if name == USE else name


def _counted_use(prior: Prior, update: LocalUpdate, outer: OuterConfig) -> NDArray[np.float64]:
    """What a task adds to the divisor of each op: its share of steps (uses), or 1 if that is not 0 (users)."""
    use = np.ones(prior.vectors[ALPHA].size) if update.use is None else update.use.astype(np.float64)
    return use if outer.theta_average == "uses" else (use > 0).astype(np.float64)


def _largest_magnitude(vector: NDArray[np.floating]) -> float:
    """The largest absolute value, NaN if any is; without temporaries as large as the vector."""
    return float(np.maximum(-vector.min(initial=0.0), vector.max(initial=0.0)))


def _clip_factor(differences: Mapping[str, Vector], outer: OuterConfig) -> float:
    if outer.rule != "clipped_mean":
        return 1.0
    squares = sum(float(np.square(differences[name], dtype=np.float64).sum()) for name in sorted(differences))
    return float(min(1.0, outer.clip_norm / max(squares**0.5, MIN_PROBABILITY)))


def _has_tensor_scales(config: StudyConfig) -> bool:
    return config.inner.weights == "gaussian" and config.inner.gaussian_scale == "tensor"


def _layouts(config: StudyConfig) -> dict[str, Layout]:
    with torch.device("meta"):
        supernet = Supernet(config.space, config.network)
    return {name: layout_of(named) for name, named in named_vectors(supernet).items()}
