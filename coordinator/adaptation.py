"""Adapts a run's prior to one task that a user names, and stores what was found."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common.artifacts import ArtifactFolder
from common.config import DatasetRef, StudyConfig, TaskFamily
from common.errors import InvalidInputError
from common.messages import AdaptResult
from common.meta.prior import Prior
from common.space.genotype import DerivationRule, derive
from common.streams import derived_seed
from common.tasks import LearningTask
from coordinator.experiment import accuracies, environment
from coordinator.report import Panel, draw_cells, draw_curves
from workers.data.episodes import sample_task
from workers.data.sources import load_arrays

TASK_ID = "adapt"


@dataclass(frozen=True)
class TaskChoice:
    """What a user says about a task.

    Attributes:
        data: the images.
        classes: names of classes, or how many to draw from those that meta-training has not seen; empty takes as many
            as the study's first family of tasks has.
        image_size: chooses the head.
        train_per_class: None takes all images that are not held out.
        test_per_class: held out.
        seed: chooses images, and classes where they are drawn.
    """

    data: DatasetRef
    classes: tuple[str, ...] | int | None
    image_size: int
    train_per_class: int | None
    test_per_class: int
    seed: int


def task_of(choice: TaskChoice, config: StudyConfig) -> LearningTask:
    """The task that a user means.

    Raises:
        InvalidInputError: the study has no head for the image size, a class is unknown, or there are too few.
    """
    if choice.image_size not in config.network.heads:
        sizes = ", ".join(str(size) for size in sorted(config.network.heads))
        raise InvalidInputError(f"the study has no head for --image-size {choice.image_size}; it has {sizes}")
    arrays = load_arrays(choice.data, choice.image_size)
    if isinstance(choice.classes, tuple):
        if len(set(choice.classes)) < max(len(choice.classes), 2):
            raise InvalidInputError(f"--classes needs two or more different names, got {', '.join(choice.classes)}")
        return LearningTask(
            task_id=TASK_ID,
            data=choice.data,
            classes=choice.classes,
            image_size=choice.image_size,
            train_per_class=choice.train_per_class,
            test_per_class=choice.test_per_class,
            seed=derived_seed(choice.seed, TASK_ID, "images"),
        )
    if choice.classes is not None and choice.classes < 2:
        raise InvalidInputError(f"--classes must be at least 2, got {choice.classes}")
    learnt_from = any(family.data.source == choice.data.source for family in config.families)
    wanted = min(config.families[0].num_ways, len(arrays.class_names)) if choice.classes is None else choice.classes
    family = TaskFamily(
        data=choice.data,
        image_size=choice.image_size,
        num_ways=wanted,
        test_per_class=choice.test_per_class,
    )
    task = sample_task(arrays, family, "unseen" if learnt_from else "all", TASK_ID, choice.seed)
    return task.model_copy(update={"train_per_class": choice.train_per_class})


def store_result(
    folder: Path, result: AdaptResult, task: LearningTask, prior: Prior, config: StudyConfig, rule: DerivationRule
) -> Mapping[str, object]:
    """Writes result.json, cells.png and curves.png into `folder`.

    Returns:
        What result.json holds.
    """
    space = config.space
    genotype = derive(result.probabilities, space.topology, space.ops, rule, seed=task.seed)
    probabilities = {kind: values.tolist() for kind, values in result.probabilities.items()}
    content = {
        "task": task.model_dump(mode="json"),
        "prior": {"version": prior.version, "sha256": prior.digest()},
        "genotype": json.loads(genotype.to_json()),
        "derivation": rule,
        "architecture_posterior": {"ops": space.ops, "probabilities": probabilities},
        "evaluations": [
            {"step": evaluation.step, "accuracy": evaluation.accuracy, "loss_nats": evaluation.loss}
            for evaluation in result.evaluations
        ],
        "evaluation_mode": "transductive: BatchNorm by the statistics of the test images",
        "train_losses_nats": result.train_losses,
        "adapt_s": result.adapt_s,
        "images_per_s": result.images_per_s,
        "environment": environment(),
    }
    steps = tuple(evaluation.step for evaluation in result.evaluations)
    curve = {"from the prior": np.asarray(accuracies([result]))}
    draw_curves([Panel(f"{len(task.classes)}-way task", steps, curve, 1 / len(task.classes))], folder / "curves.png")
    draw_cells(genotype, folder / "cells.png", "Cells found")
    ArtifactFolder(folder).write("result.json", json.dumps(content, indent=2).encode())
    return content


def evaluation_steps(steps: int) -> tuple[int, ...]:
    """When to measure: 0, 1, 2, 5, 10, 20, 50, ... and at the end."""
    marks = {0, steps}
    scale = 1
    while scale <= steps:
        marks |= {mark for mark in (scale, 2 * scale, 5 * scale) if mark <= steps}
        scale *= 10
    return tuple(sorted(marks))
