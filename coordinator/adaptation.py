"""Stores what adapting a run's prior to a task that a user names has found."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from common.config import StudyConfig
from common.derivation import Limits
from common.messages import AdaptResult
from common.meta.prior import Prior
from common.space.genotype import DerivationRule
from common.storage import ArtifactFolder
from common.tasks import LearningTask
from coordinator.experiment import accuracies
from coordinator.report import Panel, draw_cells, draw_curves
from workers.job import RESULT, describe, find_genotype

NO_LIMITS = Limits()


def store_result(
    folder: Path,
    result: AdaptResult,
    task: LearningTask,
    prior: Prior,
    config: StudyConfig,
    rule: DerivationRule,
    limits: Limits = NO_LIMITS,
) -> Mapping[str, object]:
    """Writes result.json, cells.png and curves.png into `folder`.

    Returns:
        What result.json holds.

    Raises:
        InvalidInputError: no genotype is within the limits, or the rule takes none.
    """
    found = find_genotype(result.probabilities, task, config, rule, limits)
    content = describe(result, task, prior, config, rule, found, limits)
    steps = tuple(evaluation.step for evaluation in result.evaluations)
    curve = {"from the prior": np.asarray(accuracies([result]))}
    draw_curves([Panel(f"{len(task.classes)}-way task", steps, curve, 1 / len(task.classes))], folder / "curves.png")
    draw_cells(found.genotype, folder / "cells.png", "Cells found")
    ArtifactFolder(folder).write(RESULT, json.dumps(content, indent=2).encode())
    return content
