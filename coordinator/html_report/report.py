"""What a page is made of, as values."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from common.config import StudyConfig
from common.cost import Cost
from common.space.genotype import Genotype
from coordinator.html_report.pca import Components
from coordinator.html_report.provenance import Manifest, StoredFile
from coordinator.html_report.sweeps import SweepTable
from coordinator.pareto import Front

Kind = Literal["run", "demo", "adaptation", "evaluation", "few_shot", "sweep", "front"]

Probabilities = Mapping[str, NDArray[np.float64]]


@dataclass(frozen=True)
class Curve:
    """Accuracy 0 to 1 after each of a panel's steps; the limits are None for a single task."""

    mean: tuple[float, ...]
    low: tuple[float, ...] | None = None
    high: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Accuracy:
    """Learning curves on the same tasks, by the way to adapt; or of a network, by the images it is tested on.

    Attributes:
        title: what the tasks are.
        steps: adaptation steps, or epochs, ascending.
        arms: curve by the way's name.
        chance: accuracy of guessing; None where it is not recorded.
    """

    title: str
    steps: tuple[int, ...]
    arms: Mapping[str, Curve]
    chance: float | None = None


@dataclass(frozen=True, eq=False)
class Posterior:
    """Probabilities of the ops, (num_edges, num_ops) by kind of cell, and what they belong to."""

    label: str
    probabilities: Probabilities


@dataclass(frozen=True)
class Found:
    """An architecture that was derived, and where it comes from."""

    genotype: Genotype
    origin: str
    cost: Cost | None = None
    probability: float | None = None


@dataclass(frozen=True)
class Prediction:
    """The label of a query image, and its probability."""

    name: str
    label: str
    probability: float


@dataclass(frozen=True)
class Origin:
    """Where a downloaded folder's content comes from, and what its source says about it.

    Attributes:
        name: for example of a job.
        began: when the work began, ISO 8601.
        ended: when it ended.
        manifest: by name, what the files should be.
    """

    name: str
    began: str | None = None
    ended: str | None = None
    manifest: Mapping[str, Manifest] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Report:
    """Everything that a page shows; what the folder does not hold is empty or None.

    Attributes:
        kind: of the folder.
        name: of the run, demo, adaptation or job.
        began: ISO 8601, as far as the folder says.
        ended: likewise.
        rounds: metrics of every round, ascending; see `ROUND_METRICS`.
        task: what an adaptation adapted to.
        summary: further lines of the summary, by name.
        accuracy: learning curves.
        train_losses: nats; one per step, of an evaluation one per epoch.
        seconds: durations by what they are of.
        images_per_s: of an adaptation's training.
        found: the architecture.
        ops: names of a posterior's columns.
        posteriors: of the versions shown, ascending; of an adaptation, its own.
        versions: all versions kept.
        entropies: mean entropy, nats, by kind of cell, of the last posterior; empty for a run, whose rounds have them.
        architecture_components: principal components of the kept versions' probabilities, with their versions.
        weight_components: of their weights.
        component_versions: the versions that the components are of.
        config: the resolved configuration.
        environment: what was computed with.
        facts: further values of an adaptation by name, such as its prior.
        files: all files, by name.
        notes: what could not be read, one sentence each.
        sweep: its trials; all else is then of the best one.
        front: networks under several limits.
        predictions: of a few-shot job.
    """

    kind: Kind
    name: str
    began: str | None = None
    ended: str | None = None
    rounds: tuple[Mapping[str, float], ...] = ()
    task: Mapping[str, Any] | None = None
    summary: Mapping[str, str] = field(default_factory=dict)
    accuracy: tuple[Accuracy, ...] = ()
    train_losses: tuple[float, ...] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)
    images_per_s: float | None = None
    found: Found | None = None
    ops: tuple[str, ...] = ()
    posteriors: tuple[Posterior, ...] = ()
    versions: tuple[int, ...] = ()
    entropies: Mapping[str, float] = field(default_factory=dict)
    architecture_components: Components | None = None
    weight_components: Components | None = None
    component_versions: tuple[int, ...] = ()
    config: StudyConfig | None = None
    environment: Mapping[str, Any] | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    files: tuple[StoredFile, ...] = ()
    notes: tuple[str, ...] = ()
    sweep: SweepTable | None = None
    front: Front | None = None
    predictions: tuple[Prediction, ...] = ()
