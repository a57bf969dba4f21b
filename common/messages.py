"""Everything that crosses the boundary between coordinator and workers."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from common.config import InnerConfig, NetworkConfig, RelaxationKind, SpaceConfig
from common.meta.prior import Vector
from common.tasks import LearningTask


@dataclass(frozen=True)
class AdaptRequest:
    """One task to adapt to, from a prior that travels beside it (once per version, not once per task).

    Attributes:
        study_seed: the study's seed; with the task's id it keys every random number of the adaptation.
        version: the prior's version that the task must start from.
        relaxation: how the posterior is relaxed at that version.
        tau: temperature at that version.
        learns_alpha: False while the weights learn alone.
        eval_steps: steps after which held-out accuracy is measured, ascending; 0 is before the first step.
        returns_update: False where only the evaluation is wanted.
    """

    task: LearningTask
    space: SpaceConfig
    network: NetworkConfig
    inner: InnerConfig
    study_seed: int
    version: int
    relaxation: RelaxationKind
    tau: float
    learns_alpha: bool = True
    eval_steps: tuple[int, ...] = ()
    returns_update: bool = True


@dataclass(frozen=True)
class LocalUpdate:
    """What a task teaches the prior. Never data, never the classifier, never BatchNorm statistics.

    Attributes:
        task_id: the task.
        version: version of the prior that the task started from.
        num_examples: training images, N_t.
        differences: local minus prior for each weight vector the task used (`body` and one `head/<size>`).
        alpha: local architecture logits, all kinds of cell one after the other.
        log_sigma: local log standard deviations, by the same names as `differences`; empty under map.
    """

    task_id: str
    version: int
    num_examples: int
    differences: Mapping[str, Vector]
    alpha: Vector
    log_sigma: Mapping[str, Vector] = field(default_factory=dict)


@dataclass(frozen=True)
class Evaluation:
    """Held-out performance after `step` steps, by batch statistics of the whole test set (transductive)."""

    step: int
    accuracy: float
    loss: float


@dataclass(frozen=True)
class AdaptResult:
    """The outcome of one adaptation.

    Attributes:
        task_id: the task.
        update: for the outer step; None where it was not asked for.
        probabilities: architecture posterior per kind of cell, (num_edges, num_primitives).
        train_losses: objective of every step, in nats.
        evaluations: at the steps that were asked for.
        adapt_s: seconds spent stepping.
        images_per_s: training images per second of that.
    """

    task_id: str
    update: LocalUpdate | None
    probabilities: Mapping[str, NDArray[np.float64]]
    train_losses: tuple[float, ...]
    evaluations: tuple[Evaluation, ...]
    adapt_s: float
    images_per_s: float
