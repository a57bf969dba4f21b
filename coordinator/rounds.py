"""A round as plain values: which tasks, what came back, the next prior. No Ray, no clock, no disk."""

import math
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from common.config import StudyConfig, TaskFamily
from common.errors import AdaptationError
from common.intake import Intake
from common.messages import (
    AdaptRequest,
    AdaptResult,
    PartialSum,
    PartialSumRequest,
    Rejection,
    RejectionReason,
    TaskStatistics,
    span_of,
    statistics_of,
)
from common.meta.aggregate import is_summable
from common.meta.posterior import entropy
from common.meta.prior import ALPHA, Prior
from common.meta.sums import alpha_probabilities
from common.space.genotype import Genotype, derive
from common.streams import derived_seed
from common.tasks import LearningTask
from common.telemetry import FEW_SHOT_METRICS
from coordinator.outer import OuterStep, learns_alpha, prior_genotype
from workers.data.arrays import ClassArrays
from workers.data.episodes import sample_task

Request = AdaptRequest | PartialSumRequest
Result = AdaptResult | PartialSum


class Supply(Protocol):
    """Tasks that are taken one after the other; see `coordinator.buffered.BufferedAggregation`."""

    @property
    def prior(self) -> Prior:
        """That tasks which are handed out now start from."""
        ...

    def hand_out(self, most: int) -> Sequence[AdaptRequest]:
        """The next tasks, at most so many; none where no more are wanted for now."""
        ...

    def hand_out_again(self, task_id: str) -> AdaptRequest:
        """A task that was handed out, and whose result is lost."""
        ...


class Executor(Protocol):
    """Runs adaptation requests, somewhere."""

    @property
    def max_workers(self) -> int:
        """Tasks that can run at the same time."""
        ...

    def run(
        self, prior: Prior, requests: Sequence[Request], is_over: Callable[[], bool] = ...
    ) -> Generator[Result, None, None]:
        """Yields one result per request, in the order in which they finish: an `AdaptResult` for an `AdaptRequest`, a
        `PartialSum` for a `PartialSumRequest`. Closing the iterator gives up the rest.

        Args:
            prior: to start from.
            requests: of it.
            is_over: asked about once a second, or between tasks; once true, the rest is given up.

        Raises:
            AdaptationError: a task failed more often than allowed.
        """
        ...

    def stream(self, supply: Supply) -> Generator[AdaptResult, None, None]:
        """Yields results in the order in which they finish, and takes more tasks as it has room for them, until there
        are none. Closing the iterator gives up the rest.

        A task whose result is lost is handed out again.

        Raises:
            AdaptationError: a task failed more often than allowed.
        """
        ...


@dataclass(frozen=True)
class RoundPlan:
    """The tasks that make version + 1 out of version, sorted by task id."""

    version: int
    requests: tuple[AdaptRequest, ...]


def plan(prior: Prior, config: StudyConfig, catalogs: Sequence[ClassArrays]) -> RoundPlan:
    """The round that follows from a prior: a pure function of (version, configuration, data).

    Args:
        prior: where the round starts.
        config: of the study.
        catalogs: images of each family of tasks, in the order of `config.families`.
    """
    requests = [request_of(number, prior, config, catalogs) for number in numbers_of(prior.version, config)]
    return RoundPlan(prior.version, tuple(sorted(requests, key=lambda request: request.task.task_id)))


def numbers_of(version: int, config: StudyConfig) -> range:
    """The numbers of the tasks of a round."""
    return range(version * config.tasks_per_round, (version + 1) * config.tasks_per_round)


def task_id_of(number: int, config: StudyConfig) -> str:
    """The id of a task by its number; see `common.intake`."""
    _, task_id = _family_and_id(number, config)
    return task_id


def _family_and_id(number: int, config: StudyConfig) -> tuple[int, str]:
    drawn_in, place = divmod(number, config.tasks_per_round)
    index = 0
    while place >= config.families[index].tasks_per_round:
        place -= config.families[index].tasks_per_round
        index += 1
    return index, f"round-{drawn_in:05d}/family-{index}/task-{place:02d}"


def request_of(number: int, prior: Prior, config: StudyConfig, catalogs: Sequence[ClassArrays]) -> AdaptRequest:
    """What a worker is asked for to adapt a prior to the task of a number: a pure function, too.

    The task itself depends on its number alone, not on the prior that it meets.
    """
    index, task_id = _family_and_id(number, config)
    family = config.families[index]
    relaxation, _ = config.relaxation.at(prior.version, config.rounds)
    is_learning = learns_alpha(prior, config)
    few_shot = config.few_shot
    trials = config.outer.alpha_trials if is_learning else None
    kind = relaxation if config.inner.relaxation == "prior" else config.inner.relaxation
    draws_genotypes = few_shot is None and kind == "single_path" and config.relaxation.path_per == "task"
    return AdaptRequest(
        task=drawn_task(catalogs[index], family, config, task_id),
        space=config.space,
        network=config.network,
        inner=config.inner,
        study_seed=config.seed,
        version=prior.version,
        relaxation=relaxation,
        tau=prior.tau,
        learns_alpha=is_learning and trials is None,
        eval_steps=() if few_shot is None else (few_shot.steps,),
        trials=trials,
        genotype=drawn_genotype(prior, config, task_id) if draws_genotypes else None,
        few_shot=few_shot,
    )


def drawn_task(arrays: ClassArrays, family: TaskFamily, config: StudyConfig, task_id: str) -> LearningTask:
    """A task of meta-training. An episode of few-shot learning has all of its support images, or is none.

    Raises:
        InvalidInputError: the source has too few classes with enough images.
    """
    least = 1 if config.few_shot is None else family.train_per_class
    return sample_task(arrays, family, "meta_train", task_id, config.seed, least)


def drawn_genotype(prior: Prior, config: StudyConfig, task_id: str) -> Genotype:
    """The one network that a task trains: a draw from the prior, without replacement within a node."""
    space = config.space
    shape = (len(space.cell_kinds), space.topology.num_edges, len(space.ops))
    values = alpha_probabilities(prior.vectors[ALPHA], config).reshape(shape)
    by_kind = dict(zip(space.cell_kinds, values, strict=True))
    return derive(by_kind, space.topology, space.ops, "sample", derived_seed(config.seed, task_id, "path"))


def bundled(requests: Sequence[AdaptRequest], config: StudyConfig, num_workers: int) -> tuple[Request, ...]:
    """The requests of a round as they are handed out: neighbours together where their updates may come back as a sum.

    Each of `num_workers` gets at least two bundles, so that none is idle while another has work left. The prior is the
    same for any bundles.
    """
    size = min(config.cluster.tasks_per_partial_sum, math.ceil(len(requests) / (2 * max(num_workers, 1))))
    if size <= 1 or not is_summable(config.outer):
        return tuple(requests)
    bundles = [tuple(requests[start : start + size]) for start in range(0, len(requests), size)]
    return tuple(bundle[0] if len(bundle) == 1 else PartialSumRequest(bundle, config) for bundle in bundles)


class Round:
    """A running round: absorbs results as they come, then steps.

    Args:
        prior: where it starts; unchanged.
        plan: its tasks.
        config: of the study.
    """

    def __init__(self, prior: Prior, plan: RoundPlan, config: StudyConfig) -> None:
        self._prior = prior
        self._config = config
        self._waiting = {request.task.task_id for request in plan.requests}
        self._num_tasks = len(plan.requests)
        self._outer = OuterStep(prior, config)
        self._statistics: dict[str, TaskStatistics] = {}
        self.rejections: list[Rejection] = []

    def absorb(self, result: Result) -> Rejection | None:
        """Takes the result of planned tasks, once; says why if it does not count, a partial sum as a whole.

        Tasks that a partial sum has left out do not count either: they are among `rejections` from then on.
        """
        if not self._waiting.issuperset(result.task_ids) or len(set(result.task_ids)) < len(result.task_ids):
            detail = "not planned in this round, or absorbed before"
            return self._reject(Rejection(span_of(result.task_ids), RejectionReason.UNEXPECTED_TASK, detail))
        self._waiting.difference_update(result.task_ids)
        if isinstance(result, PartialSum):
            rejection = self._outer.merge(result)
            statistics = result.statistics
        elif result.update is None or result.update.task_id != result.task_id:
            detail = "the result carries no update of its task"
            return self._reject(Rejection(result.task_id, RejectionReason.UNEXPECTED_TASK, detail))
        else:
            rejection = self._outer.absorb(result.update)
            statistics = {result.task_id: statistics_of(result)}
        if rejection is not None:
            return self._reject(rejection)
        self._statistics.update(statistics)
        if isinstance(result, PartialSum):
            self.rejections.extend(result.rejections)
        return None

    @property
    def is_complete(self) -> bool:
        """Whether every planned task has come back."""
        return not self._waiting

    @property
    def has_quorum(self) -> bool:
        """Whether enough updates were accepted to go on without the other tasks, after the deadline."""
        return self._outer.num_accepted >= self._config.schedule.quorum_fraction * self._num_tasks

    @property
    def intake(self) -> Intake | None:
        """Which tasks count by now; None where there is no deadline, so that nothing depends on who was fast."""
        if self._config.schedule.is_plain:
            return None
        version = self._prior.version
        numbers = {task_id_of(number, self._config): number for number in numbers_of(version, self._config)}
        accepted = sorted(numbers[task_id] for task_id in self._statistics)
        refused = numbers.keys() - self._statistics.keys() - self._waiting
        return Intake(
            accepted=tuple((number, version) for number in accepted),
            rejected=tuple(sorted(numbers[task_id] for task_id in refused)),
        )

    def finish(self) -> tuple[Prior, dict[str, float]]:
        """The next prior and the round's metrics (see `common.telemetry.ROUND_METRICS`).

        Raises:
            AdaptationError: too few updates were accepted.
        """
        accepted = self._outer.num_accepted
        if accepted < self._config.outer.min_accepted_fraction * self._num_tasks or not accepted:
            reasons = "; ".join(f"{r.task_id}: {r.reason} ({r.detail})" for r in self.rejections)
            raise AdaptationError(
                f"{accepted} of {self._num_tasks} updates to version {self._prior.version} are acceptable: {reasons}"
            )
        following = self._outer.finish()
        # In task order, so that the metrics too do not depend on who finished first.
        statistics = [self._statistics[task_id] for task_id in sorted(self._statistics)]
        metrics = round_metrics(self._prior, following, statistics, self.rejections, self._config)
        return following, {**metrics, "tasks_late": len(self._waiting)}

    def _reject(self, rejection: Rejection) -> Rejection:
        self.rejections.append(rejection)
        return rejection


def round_metrics(
    before: Prior,
    following: Prior,
    statistics: Sequence[TaskStatistics],
    rejections: Sequence[Rejection],
    config: StudyConfig,
    staleness: Sequence[int] = (0,),
) -> dict[str, float]:
    """The metrics of a new version (see `common.telemetry.ROUND_METRICS`), but for its time.

    Args:
        before: the version before.
        following: the new one.
        statistics: of the tasks whose updates entered, in an order that does not depend on who finished first.
        rejections: since the version before.
        config: of the study.
        staleness: of the updates that entered.
    """
    first, last, speed = np.mean([(s.train_loss_first, s.train_loss_last, s.images_per_s) for s in statistics], axis=0)
    return {
        "prior_version": following.version,
        "tau": before.tau,
        "tasks_accepted": len(statistics),
        "tasks_rejected": len(rejections),
        "tasks_stale": sum(each.reason is RejectionReason.TOO_STALE for each in rejections),
        "tasks_late": 0,
        "staleness_mean": float(np.mean(staleness)),
        "staleness_max": max(staleness),
        "train_loss_first": float(first),
        "train_loss_last": float(last),
        "images_per_second": float(speed),
        "update_norm": _distance(before, following),
        **query_metrics(statistics),
        **architecture_metrics(following, config),
    }


def rejected_by(result: Result, rejection: Rejection | None) -> tuple[Rejection, ...]:
    """All of a result that does not count, given what `Round.absorb` said of it."""
    if rejection is not None:
        return (rejection,)
    return result.rejections if isinstance(result, PartialSum) else ()


def query_metrics(statistics: Sequence[TaskStatistics]) -> Mapping[str, float]:
    """What few-shot tasks measure on their query images; nothing of other tasks."""
    return {
        name: float(np.mean(values))
        for name in FEW_SHOT_METRICS
        if (values := [value for each in statistics if (value := getattr(each, name)) is not None])
    }


def architecture_metrics(prior: Prior, config: StudyConfig) -> Mapping[str, float]:
    """What the architecture looks like: entropy, and the histogram of ops, in which a collapse shows; nothing where the
    prior has none."""
    if not prior.has_architecture:
        return {}
    space = config.space
    alpha = prior.alpha(config)
    genotype = prior_genotype(prior.vectors[ALPHA], config)
    values: dict[str, float] = {}
    entropies = entropy(alpha, space.topology, space.normalisation)
    for index, kind in enumerate(space.cell_kinds):
        values[f"alpha_entropy/{kind}"] = float(entropies[index])
        values[f"parameter_free_ops/{kind}"] = genotype.num_parameter_free(kind)
        strongest = torch.bincount(alpha[index].argmax(dim=-1), minlength=len(space.ops))
        for op, count in zip(space.ops, strongest.tolist(), strict=True):
            values[f"strongest_op_edges/{kind}/{op}"] = count
    return values


def _distance(before: Prior, after: Prior) -> float:
    squares = sum(
        float(np.square(after.vectors[name].astype(np.float64) - before.vectors[name]).sum())
        for name in before.weight_names
    )
    return float(squares**0.5)
