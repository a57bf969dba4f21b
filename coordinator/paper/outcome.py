"""What a run's folder says about the paper's tables and figures, beside what the paper says: one value.

What has not been run is there too, with the reason why not; nothing is left empty.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.cost import Cost
from common.network_config import network_config
from common.nn.counting import count_network
from common.space.genotype import Genotype
from common.space.released import RELEASED
from common.storage import ArtifactFolder
from coordinator.paper.anchors import PUBLISHED, TITLES, Published, TableName
from coordinator.paper.clusters import Clusters, clusters
from coordinator.paper.experiments import (
    CELL_GROUPS,
    FIGURE3_GROUPS,
    ROWS,
    TABLES,
    PaperConfig,
    TableRow,
    figure4_steps,
)
from coordinator.paper.few_shot_outcome import FewShotOutcome, few_shot_outcome
from coordinator.paper.steps import (
    BASE_ARM,
    FIGURE4,
    FROZEN_ARM,
    META,
    PAPER,
    SCRATCH_ARM,
    adaptation,
    adapted_body,
    evaluation,
    group_genotype,
    num_derived,
    row_genotype,
    stored_config,
    stored_prior,
)
from coordinator.paper.studies import MetaTraining, what_it_took

RESULTS = "results.json"
NO_ARCHITECTURE = "not run: its architecture is not in this package"
ARM_NAMES: Mapping[str, str] = {
    BASE_ARM: "BASE: weights and architecture adapt",
    FROZEN_ARM: "BASE, architecture frozen",
    SCRATCH_ARM: "DARTS supernet from scratch",
}
_PERCENT = 100.0


@dataclass(frozen=True)
class Trained:
    """A full network that was trained and tested.

    Attributes:
        error: on test images, in percent, and the limits of its 95 % interval (of the choice of images).
        error_low: lower limit.
        error_high: upper limit.
        num_train: images that it was trained on.
        num_test: images that it was tested on.
        epochs: of training.
        train_s: seconds of training.
        cost: of the network that was trained.
    """

    error: float
    error_low: float
    error_high: float
    num_train: int
    num_test: int
    epochs: int
    train_s: float
    cost: Cost


@dataclass(frozen=True)
class Row:
    """A row of a table: the paper's, and the run's beside it.

    Attributes:
        published: what the paper says.
        row: what the run trains; None where it has no such architecture.
        genotype: found by the run, or published; None where it is not known yet.
        at_paper_size: cost of the genotype's network at the paper's size, counted.
        trained: None where it has not been run.
        adapt_s: seconds of adaptation that the genotype took; 0 for the prior's own and for published ones.
        why_not: empty where it has been run.
    """

    published: Published
    row: TableRow | None
    genotype: Genotype | None
    at_paper_size: Cost | None
    trained: Trained | None
    adapt_s: float | None
    why_not: str

    @property
    def is_released(self) -> bool:
        """Whether the genotype is a published one."""
        return self.row is not None and self.row.released is not None


@dataclass(frozen=True)
class Table:
    """A table of the paper with the run's figures.

    Attributes:
        name: of the table.
        title: for people.
        images: what the run trains on, for people.
        is_stand_in: whether that takes the place of the paper's images.
        rows: the paper's, in its order; those that the run fills follow the row that they belong to.
    """

    name: TableName
    title: str
    images: str
    is_stand_in: bool
    rows: tuple[Row, ...]


@dataclass(frozen=True, eq=False)
class ThirdFigure:
    """Adapted weights and architecture posteriors of all families of figure 3."""

    weights: Clusters
    architecture: Clusters
    num_weights: int


@dataclass(frozen=True, eq=False)
class FourthFigureOutcome:
    """Accuracies of figure 4.

    Attributes:
        epochs: places of the curves; 0 is before the first step.
        arms: by its name for people, accuracy 0 to 1, (repeats, epochs).
        chance: of guessing.
        images: for people.
    """

    epochs: tuple[int, ...]
    arms: Mapping[str, NDArray[np.float64]]
    chance: float
    images: str


@dataclass(frozen=True)
class Cell:
    """An architecture to draw, or the reason why there is none."""

    key: str
    title: str
    genotype: Genotype | None
    origin: str


@dataclass(frozen=True, eq=False)
class Outcome:
    """Everything a page shows.

    Attributes:
        config: of the run.
        environment: what it was computed with.
        meta: None where the meta-training has not ended.
        tables: the first three.
        few_shot: table 4.
        figure3: None where it has not been run.
        figure4: None where it has not been run.
        cells: found ones, then published ones.
    """

    config: PaperConfig
    environment: Mapping[str, Any]
    meta: MetaTraining | None
    tables: tuple[Table, ...]
    few_shot: FewShotOutcome
    figure3: ThirdFigure | None
    figure4: FourthFigureOutcome | None
    cells: tuple[Cell, ...]


def collect_outcome(folder: Path) -> Outcome:
    """What a run's folder holds.

    Raises:
        NotFoundError: it holds no run of the paper.
        CorruptArtifactError: a file in it is damaged.
    """
    config = stored_config(folder)
    environment = json.loads(ArtifactFolder(folder).read(PAPER))["environment"]
    few_shot = few_shot_outcome(config.few_shot, folder)
    return Outcome(
        config=config,
        environment=environment,
        meta=_meta(folder, config),
        tables=tuple(_table(folder, config, name) for name in TABLES),
        few_shot=few_shot,
        figure3=_figure3(folder, config),
        figure4=_figure4(folder, config),
        cells=_cells(folder, config, few_shot),
    )


def _meta(folder: Path, config: PaperConfig) -> MetaTraining | None:
    return None if stored_prior(folder, config) is None else what_it_took(folder / META, config.study)


def _table(folder: Path, config: PaperConfig, name: TableName) -> Table:
    image_set = config.image_set(name)
    rows: list[Row] = []
    for published in PUBLISHED[name]:
        own = [row for row in ROWS[name] if row.published == published.name]
        if not own:
            rows.append(Row(published, None, None, None, None, None, NO_ARCHITECTURE))
        rows += [_row(folder, config, name, published, row) for row in own]
    return Table(name, TITLES[name], image_set.stand_in or image_set.name, bool(image_set.stand_in), tuple(rows))


def _row(folder: Path, config: PaperConfig, table: TableName, published: Published, row: TableRow) -> Row:
    genotype = row_genotype(config, folder, row)
    result = evaluation(folder, table, row)
    at_paper_size = None
    if genotype is not None:
        motif = config.image_set(table).recipe.motif
        at_paper_size = count_network(genotype, network_config(motif, channels=row.channels)).total
    return Row(
        published=published,
        row=row,
        genotype=genotype,
        at_paper_size=at_paper_size,
        trained=None if result is None else _trained(result),
        adapt_s=_adapt_s(folder, config, row),
        why_not="" if result is not None else f"not run yet: metasearch paper {table}",
    )


def _trained(result: Mapping[str, Any]) -> Trained:
    low, high = result["interval_95"]
    return Trained(
        error=_PERCENT * (1 - result["accuracy"]),
        error_low=_PERCENT * (1 - high),
        error_high=_PERCENT * (1 - low),
        num_train=result["data"]["num_train"],
        num_test=result["num_test"],
        epochs=result["epochs"],
        train_s=result["train_s"],
        cost=Cost(result["network"]["num_params"], result["network"]["num_macs"]),
    )


def _adapt_s(folder: Path, config: PaperConfig, row: TableRow) -> float | None:
    if row.group is None or row.group == "prior":
        return 0.0
    found = [adaptation(folder, row.group, number) for number in range(num_derived(config, row.group))]
    seconds = [float(each["adapt_s"]) for each in found if each is not None]
    return sum(seconds) if len(seconds) == len(found) else None


def _figure3(folder: Path, config: PaperConfig) -> ThirdFigure | None:
    weights: dict[str, list[NDArray[np.float32]]] = {}
    posteriors: dict[str, list[NDArray[np.float64]]] = {}
    for group, name in FIGURE3_GROUPS.items():
        for number in range(config.figure3_tasks):
            found = adaptation(folder, group, number)
            if found is None:
                return None
            matrices = found["architecture_posterior"]["probabilities"]
            vector = np.concatenate([np.ravel(matrices[kind]) for kind in config.study.space.cell_kinds])
            posteriors.setdefault(name, []).append(vector)
            weights.setdefault(name, []).append(adapted_body(folder, group, number))
    (first, *_), *_ = weights.values()
    return ThirdFigure(clusters(weights), clusters(posteriors), first.size)


def _figure4(folder: Path, config: PaperConfig) -> FourthFigureOutcome | None:
    steps = (0, *figure4_steps(config))
    arms: dict[str, NDArray[np.float64]] = {}
    for arm, name in ARM_NAMES.items():
        curves = []
        for number in range(config.figure4.repeats):
            found = adaptation(folder, arm, number, FIGURE4)
            if found is None:
                return None
            by_step = {point["step"]: point["accuracy"] for point in found["evaluations"]}
            curves.append([by_step[step] for step in steps])
        arms[name] = np.array(curves)
    image_set = config.cifar10
    return FourthFigureOutcome(
        epochs=tuple(range(len(steps))),
        arms=arms,
        chance=1 / image_set.tuning.num_ways,
        images=image_set.stand_in or image_set.name,
    )


def _cells(folder: Path, config: PaperConfig, few_shot: FewShotOutcome) -> tuple[Cell, ...]:
    cells = []
    prior = row_genotype(config, folder, TableRow(published="", key="prior", group="prior"))
    why_not = "not run yet: metasearch paper cells"
    origin = "The most probable architecture under the meta-trained prior."
    cells.append(Cell("prior", "BASE (Multi-task Prior)", prior, origin if prior is not None else why_not))
    names = {
        "imagenet32": "BASE (Imagenet32 Tuned)",
        "cifar10_tuned": "BASE (CIFAR10 Tuned)",
        "svhn_tuned": "BASE (SVHN Tuned)",
        "imagenet_tuned": "BASE (Imagenet Tuned)",
    }
    for group in CELL_GROUPS:
        count = num_derived(config, group)
        genotype = group_genotype(config, folder, group, count)
        what = "the posterior" if count == 1 else f"the mean of {count} posteriors"
        origin = f"The most probable architecture under {what} that the prior was adapted to."
        cells.append(Cell(group, names[group], genotype, origin if genotype is not None else why_not))
    for row in few_shot.rows:
        if row.row.variant is not None:
            found = row.genotypes[0] if row.genotypes else None
            origin = "The most probable architecture of the few-shot search for table 4."
            why_not = "not run yet: metasearch paper table4"
            title = f"{row.published.name}, few-shot"
            cells.append(Cell(row.row.key, title, found, origin if found is not None else why_not))
    for name, genotype in RELEASED.items():
        cells.append(Cell(name, f"{name}, published", genotype, "A published genotype; not found by this run."))
    return tuple(cells)
