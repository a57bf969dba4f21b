"""Everything that crosses the boundary between coordinator and workers."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.config import InnerConfig, NetworkConfig, RelaxationKind, SpaceConfig, StudyConfig
from common.derivation import Limits
from common.meta.prior import Vector
from common.space.genotype import DerivationRule, Genotype
from common.tasks import DatasetFile, LearningTask, TaskChoice


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
        returns_weights: True where the adapted weights themselves are wanted.
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
    returns_weights: bool = False


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
        batch_size: training images per step; fewer than asked for where there are fewer, or memory ran out.
        weights: the local state where it was asked for: `body`, `head/<image size>` and `alpha` as in a prior (and
            `log_sigma/...` under gaussian), `classifier/weight` (classes, features) and `classifier/bias` (classes,).
    """

    task_id: str
    update: LocalUpdate | None
    probabilities: Mapping[str, NDArray[np.float64]]
    train_losses: tuple[float, ...]
    evaluations: tuple[Evaluation, ...]
    adapt_s: float
    images_per_s: float
    batch_size: int = 0
    weights: Mapping[str, NDArray[np.float32]] | None = None


@dataclass(frozen=True)
class JobRequest:
    """A task that a user brings, and all that a worker needs to know to do it from the images to stored results.

    Attributes:
        job_id: names the job and its update.
        attempt: how often it has been started, this time included.
        choice: images and classes.
        file: what to fetch first; it then takes the place of `choice.data.source`. None where the worker has the data.
        config: of the study whose prior is adapted.
        inner: how to adapt.
        version: of the prior.
        derivation: rule that derives the genotype.
        limits: that the derived network has to keep; they need the rule top2_pairs.
        result_url: folder for the results, a local path or any fsspec URL; no other attempt at work may share it.
        returns_update: True where the prior is to learn from the task.
    """

    job_id: str
    attempt: int
    choice: TaskChoice
    file: DatasetFile | None
    config: StudyConfig
    inner: InnerConfig
    version: int
    derivation: DerivationRule
    limits: Limits
    result_url: str
    returns_update: bool


@dataclass(frozen=True)
class Interim:
    """The best that a running job has found so far: at which step, its held-out accuracy, its architecture."""

    step: int
    accuracy: float
    genotype: Genotype


@dataclass(frozen=True)
class ArtifactInfo:
    """A file of results: its name in the folder, its size and its SHA-256."""

    name: str
    num_bytes: int
    sha256: str


@dataclass(frozen=True)
class JobResult:
    """The outcome of a job; the rest is in its folder.

    Attributes:
        job_id: of the job.
        update: for the outer step, under the job's id; None where it was not asked for.
        summary: plain values, as JSON holds them.
        artifacts: the files that the job's manifest lists.
    """

    job_id: str
    update: LocalUpdate | None
    summary: Mapping[str, Any]
    artifacts: tuple[ArtifactInfo, ...]
