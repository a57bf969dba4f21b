"""Comparisons on fresh tasks: arms (a prior and a way to adapt) against each other, task by task."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from common.config import InnerConfig, Split, StudyConfig, TaskFamily
from common.messages import AdaptRequest, AdaptResult
from common.meta.prior import Prior
from common.tasks import LearningTask
from workers.data.episodes import sample_task
from workers.data.sources import load_arrays

RunRequests = Callable[[Prior, Sequence[AdaptRequest], str], Sequence[AdaptResult]]


@dataclass(frozen=True)
class Arm:
    """One side of a comparison.

    Attributes:
        name: for tables and legends.
        prior: where adaptation starts.
        inner: how it goes on; in a few-shot study `few_shot` says that.
        learns_alpha: False freezes the architecture.
    """

    name: str
    prior: Prior
    inner: InnerConfig
    learns_alpha: bool = True


def fresh_tasks(family: TaskFamily, split: Split, num_tasks: int, seed: int) -> list[LearningTask]:
    """Tasks that no study of another seed draws."""
    arrays = load_arrays(family.data, family.image_size)
    return [sample_task(arrays, family, split, f"fresh/{seed}/task-{index:03d}", seed) for index in range(num_tasks)]


def adapt_request(task: LearningTask, arm: Arm, config: StudyConfig, eval_steps: Sequence[int]) -> AdaptRequest:
    """The request to adapt `arm` to `task`. All arms draw the same random numbers."""
    relaxation, _ = config.relaxation.at(arm.prior.version, config.rounds)
    last = last_step(arm.inner, config)
    return AdaptRequest(
        task=task,
        space=config.space,
        network=config.network,
        inner=arm.inner,
        study_seed=config.seed,
        version=arm.prior.version,
        relaxation=relaxation,
        tau=arm.prior.tau,
        learns_alpha=arm.learns_alpha,
        eval_steps=tuple(step for step in eval_steps if step <= last),
        returns_update=False,
        few_shot=config.few_shot,
    )


def last_step(inner: InnerConfig, config: StudyConfig) -> int:
    """Steps of an adaptation: those of `inner`, but in a few-shot study those that it tests with."""
    return inner.steps if config.few_shot is None else config.few_shot.test_steps


def compare(
    arms: Sequence[Arm], tasks: Sequence[LearningTask], config: StudyConfig, eval_steps: Sequence[int], run: RunRequests
) -> dict[str, list[AdaptResult]]:
    """Every arm on every task; results by arm, in the order of the tasks."""
    return {
        arm.name: list(run(arm.prior, [adapt_request(task, arm, config, eval_steps) for task in tasks], arm.name))
        for arm in arms
    }


def accuracies(results: Sequence[AdaptResult]) -> NDArray[np.float64]:
    """Held-out accuracy 0..1, (num_tasks, num_eval_steps)."""
    return np.array([[evaluation.accuracy for evaluation in result.evaluations] for result in results])
