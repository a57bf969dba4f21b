"""Everything that crosses the boundary between coordinator and workers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.config import (
    DatasetRef,
    InnerConfig,
    NetworkConfig,
    RelaxationKind,
    SpaceConfig,
    StudyConfig,
    TrialsConfig,
)
from common.evaluate_config import EvaluateConfig
from common.few_shot_config import FewShotConfig
from common.limits import Limits
from common.meta.aggregate import FixedPointSum
from common.meta.prior import Vector
from common.space.genotype import DerivationRule, Genotype
from common.sweep_plan import SweepPlan
from common.tasks import DatasetFile, FewShotTask, LearningTask, TaskChoice


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
        genotype: with it, only its ops are computed, each with weight 1: the derived network learns, by itself, and the
            architecture neither learns nor is relaxed.
        trials: with it, the update's architecture comes from trials; see `workers.trials`.
        few_shot: with it, the task is a few-shot episode, learnt by these rules in place of `inner`; its update is a
            `MetaGradient`, and its evaluations are of the query images.
        start: local weights to start from instead of the prior's and a classifier of zeros, as in
            `AdaptResult.weights`; of these `body`, the head and the classifier count.
        job_id: of the service's job that the task is for, if any: for logs and the dashboard.
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
    genotype: Genotype | None = None
    trials: TrialsConfig | None = None
    start: Mapping[str, Vector] | None = None
    few_shot: FewShotConfig | None = None
    job_id: str | None = None

    @property
    def task_ids(self) -> tuple[str, ...]:
        """Of its one task."""
        return (self.task.task_id,)

    @property
    def round_number(self) -> int | None:
        """The version that its round makes; None where it is part of none."""
        return self.version + 1 if self.returns_update else None


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
        use: of each op, in the order of `alpha`, the share of the steps that computed it, 0 to 1; None where all did.
    """

    task_id: str
    version: int
    num_examples: int
    differences: Mapping[str, Vector]
    alpha: Vector
    log_sigma: Mapping[str, Vector] = field(default_factory=dict)
    use: Vector | None = None


@dataclass(frozen=True)
class MetaGradient:
    """What a few-shot task teaches the prior: the gradient of its query loss, in nats, with respect to the prior.

    Attributes:
        task_id: the task.
        version: version of the prior that the task started from.
        num_examples: support images.
        gradients: by vector of the prior: every vector of weights that the network has, the classifier's, and `alpha`
            where the network is a supernet.
    """

    task_id: str
    version: int
    num_examples: int
    gradients: Mapping[str, Vector]


Update = LocalUpdate | MetaGradient


@dataclass(frozen=True)
class Evaluation:
    """Held-out performance after `step` steps, by batch statistics of the whole test set (transductive) unless a
    few-shot task's configuration says otherwise."""

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
            `log_sigma/...` under gaussian), `classifier/weight` (classes, features) and `classifier/bias` (classes,);
            of a few-shot task all vectors, as in its prior.
        path: what computed the cells of a few-shot task's steps, `native` or `pytorch`; None of others.
    """

    task_id: str
    update: Update | None
    probabilities: Mapping[str, NDArray[np.float64]]
    train_losses: tuple[float, ...]
    evaluations: tuple[Evaluation, ...]
    adapt_s: float
    images_per_s: float
    batch_size: int = 0
    weights: Mapping[str, NDArray[np.float32]] | None = None
    path: str | None = None

    @property
    def task_ids(self) -> tuple[str, ...]:
        """Of its one task."""
        return (self.task_id,)


@dataclass(frozen=True)
class PartialSumRequest:
    """Tasks of one round to adapt to one after the other; only the sum of their updates is wanted.

    Attributes:
        requests: at least one, all of one version.
        config: of the study; says what is averaged, and how.
    """

    requests: tuple[AdaptRequest, ...]
    config: StudyConfig

    @property
    def task_ids(self) -> tuple[str, ...]:
        """Of all its tasks, in their order."""
        return tuple(request.task.task_id for request in self.requests)

    @property
    def job_id(self) -> str | None:
        """See `AdaptRequest`."""
        return self.requests[0].job_id

    @property
    def round_number(self) -> int | None:
        """See `AdaptRequest`."""
        return self.requests[0].round_number


class RejectionReason(StrEnum):
    """Why an update does not count."""

    NOT_FINITE = "not_finite"
    WRONG_SHAPE = "wrong_shape"
    WRONG_VERSION = "wrong_version"
    BAD_WEIGHT = "bad_weight"
    OUT_OF_RANGE = "out_of_range"
    UNEXPECTED_TASK = "unexpected_task"
    TOO_STALE = "too_stale"


@dataclass(frozen=True)
class Rejection:
    """An update, or a partial sum as a whole, that does not count, and why."""

    task_id: str
    reason: RejectionReason
    detail: str


@dataclass(frozen=True)
class TaskStatistics:
    """What a round's metrics need of a task.

    Attributes:
        train_loss_first: objective of its first step, nats; of a few-shot task the support images' cross-entropy, under
            the prior's own parameters.
        train_loss_last: of its last step.
        images_per_s: training images per second.
        query_loss: of a few-shot task, the query images' cross-entropy after the last step, nats.
        query_accuracy: likewise their accuracy, 0 to 1.
    """

    train_loss_first: float
    train_loss_last: float
    images_per_s: float
    query_loss: float | None = None
    query_accuracy: float | None = None


@dataclass(frozen=True)
class PartialSum:
    """The updates of several tasks, added up exactly: to the outer step the same as one by one.

    Attributes:
        version: of the prior that the tasks started from.
        statistics: of each task that counts, by its id.
        rejections: of the others.
        sums: by what is averaged; see `common.meta.sums.UpdateSums`.
    """

    version: int
    statistics: Mapping[str, TaskStatistics]
    rejections: tuple[Rejection, ...]
    sums: Mapping[str, FixedPointSum]

    @property
    def task_ids(self) -> tuple[str, ...]:
        """Of all its tasks, whether they count or not."""
        return (*self.statistics, *(rejection.task_id for rejection in self.rejections))


def span_of(task_ids: Sequence[str]) -> str:
    """Names several tasks, as people read it: the first to the last of them by id."""
    return min(task_ids) if len(task_ids) == 1 else f"{min(task_ids)} to {max(task_ids)}"


def statistics_of(result: AdaptResult) -> TaskStatistics:
    """What a round's metrics need of a result."""
    query = result.evaluations[-1] if isinstance(result.update, MetaGradient) and result.evaluations else None
    return TaskStatistics(
        train_loss_first=result.train_losses[0],
        train_loss_last=result.train_losses[-1],
        images_per_s=result.images_per_s,
        query_loss=None if query is None else query.loss,
        query_accuracy=None if query is None else query.accuracy,
    )


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
        fine_tune_steps: with them, the derived network is cut out of the adapted supernet, fine-tuned for so many steps
            and stored too.
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
    fine_tune_steps: int | None = None


@dataclass(frozen=True)
class FewShotRequest:
    """A handful of images that a user brings, and all that a worker needs to learn and to label by them.

    Attributes:
        job_id: names the job.
        attempt: how often it has been started, this time included.
        task: classes, labels and names.
        file: the task's pixels, see `workers.data.handful`.
        config: of the study, which is a few-shot study; `config.few_shot` has the job's steps and statistics.
        version: of the prior.
        seed: of the noise, where architectures are sampled.
        result_url: folder for the results, a local path or any fsspec URL; no other attempt at work may share it.
    """

    job_id: str
    attempt: int
    task: FewShotTask
    file: DatasetFile
    config: StudyConfig
    version: int
    seed: int
    result_url: str


@dataclass(frozen=True)
class EvaluateRequest:
    """A full network to train from scratch and to test, for a while: the next call goes on where this one stops.

    Attributes:
        job_id: names the job.
        attempt: how often it has been started, this time included.
        genotype: of the network.
        config: the recipe.
        data: images; with `file`, `data.source` is only their name.
        file: what to fetch first. None where the worker has the data.
        result_url: folder for the results of this attempt, next to those of earlier ones, whose checkpoints it goes on
            from. No other attempt at work may share it.
        slice_s: seconds of training after which the call stops, so that others get their turn.
    """

    job_id: str
    attempt: int
    genotype: Genotype
    config: EvaluateConfig
    data: DatasetRef
    file: DatasetFile | None
    result_url: str
    slice_s: float


@dataclass(frozen=True)
class SweepRequest:
    """A sweep to run, on workers of its own; goes on with what earlier attempts left.

    Attributes:
        job_id: names the job.
        attempt: how often it has been started, this time included.
        plan: what to try.
        state_url: folder of the sweep, the same for all attempts, of which one runs at a time.
        result_url: folder for the results of this attempt.
    """

    job_id: str
    attempt: int
    plan: SweepPlan
    state_url: str
    result_url: str


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
    update: Update | None
    summary: Mapping[str, Any]
    artifacts: tuple[ArtifactInfo, ...]


@dataclass(frozen=True)
class EvaluateResult:
    """What a call with an `EvaluateRequest` came to.

    Attributes:
        job_id: of the job.
        epochs_done: so far.
        summary: plain values, as JSON holds them; None where the training is not over.
        artifacts: the files that the job's manifest lists; none where the training is not over.
    """

    job_id: str
    epochs_done: int
    summary: Mapping[str, Any] | None
    artifacts: tuple[ArtifactInfo, ...]
