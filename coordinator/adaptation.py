"""Stores what adapting a run's prior to a task that a user names has found."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from common.config import StudyConfig
from common.derivation import ScoredGenotype
from common.limits import Limits
from common.messages import AdaptResult
from common.meta.prior import Prior
from common.network_config import network_folder
from common.nn.stored import save_network
from common.space.genotype import DerivationRule
from common.storage import ArtifactFolder
from common.tasks import LearningTask
from coordinator.experiment import accuracies
from coordinator.report import Panel, draw_cells, draw_curves
from workers.inherit import ReadyNetwork, describe_network
from workers.job import describe
from workers.results import RESULT

NO_LIMITS = Limits()


def store_result(
    folder: Path,
    result: AdaptResult,
    task: LearningTask,
    prior: Prior,
    config: StudyConfig,
    found: ScoredGenotype,
    rule: DerivationRule,
    limits: Limits = NO_LIMITS,
    ready: ReadyNetwork | None = None,
) -> Mapping[str, Any]:
    """Writes result.json, cells.png, curves.png and, where there is one, the network into `folder`.

    Returns:
        What result.json holds.
    """
    content = describe(result, task, prior, config, rule, found, limits)
    if ready is not None:
        content["derived_network"] = describe_network(ready, task.classes)
        save_network(network_folder(ArtifactFolder(folder)), ready.network)
    steps = tuple(evaluation.step for evaluation in result.evaluations)
    curve = {"from the prior": np.asarray(accuracies([result]))}
    draw_curves([Panel(f"{len(task.classes)}-way task", steps, curve, 1 / len(task.classes))], folder / "curves.png")
    draw_cells(found.genotype, folder / "cells.png", "Cells found")
    ArtifactFolder(folder).write(RESULT, json.dumps(content, indent=2).encode())
    return content
