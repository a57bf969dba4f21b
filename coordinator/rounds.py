"""A round as plain values: which tasks, what came back, the next prior. No Ray, no clock, no disk."""

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from common.config import StudyConfig
from common.errors import AdaptationError
from common.messages import AdaptRequest, AdaptResult
from common.meta.posterior import entropy
from common.meta.prior import ALPHA, Prior
from coordinator.outer import OuterStep, Rejection, RejectionReason, learns_alpha, prior_genotype
from workers.data.arrays import ClassArrays
from workers.data.episodes import sample_task


class Executor(Protocol):
    """Runs adaptation requests, somewhere."""

    def run(self, prior: Prior, requests: Sequence[AdaptRequest]) -> Generator[AdaptResult, None, None]:
        """Yields one result per request, in the order in which they finish. Closing the iterator gives up the rest.

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
    relaxation, _ = config.relaxation.at(prior.version, config.rounds)
    requests = []
    for index, (family, arrays) in enumerate(zip(config.families, catalogs, strict=True)):
        for number in range(family.tasks_per_round):
            task_id = f"round-{prior.version:05d}/family-{index}/task-{number:02d}"
            requests.append(
                AdaptRequest(
                    task=sample_task(arrays, family, "meta_train", task_id, config.seed),
                    space=config.space,
                    network=config.network,
                    inner=config.inner,
                    study_seed=config.seed,
                    version=prior.version,
                    relaxation=relaxation,
                    tau=prior.tau,
                    learns_alpha=learns_alpha(prior, config),
                )
            )
    return RoundPlan(prior.version, tuple(sorted(requests, key=lambda request: request.task.task_id)))


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
        self._statistics: dict[str, tuple[float, float, float]] = {}
        self.rejections: list[Rejection] = []

    def absorb(self, result: AdaptResult) -> Rejection | None:
        """Takes the result of one planned task, once; says why if it does not count."""
        if result.task_id not in self._waiting:
            detail = "not planned in this round, or absorbed before"
            return self._reject(Rejection(result.task_id, RejectionReason.UNEXPECTED_TASK, detail))
        self._waiting.remove(result.task_id)
        if result.update is None or result.update.task_id != result.task_id:
            detail = "the result carries no update of its task"
            return self._reject(Rejection(result.task_id, RejectionReason.UNEXPECTED_TASK, detail))
        rejection = self._outer.absorb(result.update)
        if rejection is not None:
            return self._reject(rejection)
        self._statistics[result.task_id] = (result.train_losses[0], result.train_losses[-1], result.images_per_s)
        return None

    @property
    def is_complete(self) -> bool:
        """Whether every planned task has come back."""
        return not self._waiting

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
        first, last, speed = np.mean([self._statistics[task_id] for task_id in sorted(self._statistics)], axis=0)
        return following, {
            "prior_version": following.version,
            "tau": self._prior.tau,
            "tasks_accepted": accepted,
            "tasks_rejected": len(self.rejections),
            "train_loss_first": float(first),
            "train_loss_last": float(last),
            "images_per_second": float(speed),
            "update_norm": _distance(self._prior, following),
            **architecture_metrics(following, self._config),
        }

    def _reject(self, rejection: Rejection) -> Rejection:
        self.rejections.append(rejection)
        return rejection


def architecture_metrics(prior: Prior, config: StudyConfig) -> Mapping[str, float]:
    """What the architecture looks like: entropy, and the histogram of ops, in which a collapse shows."""
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
