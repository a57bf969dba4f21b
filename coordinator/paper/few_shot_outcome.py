"""What a run's folder says about table 4, beside what the paper says: one value."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common.cost import Cost
from common.few_shot_config import BatchStatistics
from common.space.genotype import Genotype
from coordinator.meta_test import MetaTestResult
from coordinator.paper.anchors import PUBLISHED_FEW_SHOT, PublishedFewShot
from coordinator.paper.few_shot import (
    FEW_SHOT_ROWS,
    FewShotRow,
    FewShotTable,
    full_cost,
    search_study,
    trained_cost,
    training_study,
)
from coordinator.paper.few_shot_steps import genotype_of, search_run, test_result, training_run
from coordinator.paper.studies import what_it_took
from coordinator.report import mean_interval

_PERCENT = 100.0
_NOT_YET = "not run yet: metasearch paper table4"


@dataclass(frozen=True)
class FewShotTested:
    """A row's networks, one for each time that it was run, after meta-training and test.

    Attributes:
        accuracy: after the last inner step, in percent: the mean over episodes of what the networks reach on average.
        low: lower limit of its 95 % interval (Student's t over episodes, not over seeds).
        high: upper limit.
        by_repeat: the mean of each network.
        num_episodes: of the test.
        steps: inner steps.
        evaluation: whose BatchNorm statistics query images were tested with.
        paths: what computed the cells.
        costs: of the networks that were trained.
        search_s: seconds of one worker's device, of all searches; None where there was none.
        training_s: likewise, of all meta-trainings.
    """

    accuracy: float
    low: float
    high: float
    by_repeat: tuple[float, ...]
    num_episodes: int
    steps: int
    evaluation: BatchStatistics
    paths: tuple[str, ...]
    costs: tuple[Cost, ...]
    search_s: float | None
    training_s: float


@dataclass(frozen=True)
class FewShotRowOutcome:
    """A row of the table: the paper's, and the run's beside it.

    Attributes:
        published: what the paper says.
        row: what the run does for it.
        genotypes: one for each time, as far as they are known; none of four convolutions.
        at_paper_size: cost of the networks at full scale, counted; empty where they are not known yet.
        tested: None where it has not been run.
        why_not: empty where it has been run.
    """

    published: PublishedFewShot
    row: FewShotRow
    genotypes: tuple[Genotype, ...]
    at_paper_size: tuple[Cost, ...]
    tested: FewShotTested | None
    why_not: str


@dataclass(frozen=True)
class FewShotOutcome:
    """Table 4 with the run's figures.

    Attributes:
        config: of the table.
        images: what the run learns from, for people.
        rows: the paper's, in its order.
        num_classes: by part of the split; empty where nothing has been tested.
        split_sha256: of the names of the classes of all parts; empty likewise.
    """

    config: FewShotTable
    images: str
    rows: tuple[FewShotRowOutcome, ...]
    num_classes: Mapping[str, int]
    split_sha256: str

    @property
    def is_stand_in(self) -> bool:
        """Whether other images take the place of the paper's."""
        return bool(self.config.stand_in)


def few_shot_outcome(table: FewShotTable, folder: Path) -> FewShotOutcome:
    """What a run's folder holds of table 4.

    Raises:
        CorruptArtifactError: a file in it is damaged.
    """
    rows = {row.published: row for row in FEW_SHOT_ROWS}
    results = [found for row in FEW_SHOT_ROWS if (found := test_result(table, folder, row, 0)) is not None]
    plan = results[0][0].plan if results else None
    return FewShotOutcome(
        config=table,
        images=table.stand_in or table.name,
        rows=tuple(_row(table, folder, published, rows[published.name]) for published in PUBLISHED_FEW_SHOT),
        num_classes={} if plan is None else plan.num_classes,
        split_sha256="" if plan is None else plan.split_sha256,
    )


def _row(table: FewShotTable, folder: Path, published: PublishedFewShot, row: FewShotRow) -> FewShotRowOutcome:
    repeats = range(table.repeats)
    found = [genotype_of(table, folder, row, repeat) for repeat in repeats]
    genotypes = tuple(genotype for genotype in found if genotype is not None)
    if row.variant is None:
        genotypes = genotypes[:1]  # the same every time
    networks: tuple[Genotype | None, ...] = (None,) if row.baseline is not None else genotypes
    results = [each for repeat in repeats if (each := test_result(table, folder, row, repeat)) is not None]
    tested = None if len(results) < table.repeats else _tested(table, folder, row, found, networks, results)
    return FewShotRowOutcome(
        published=published,
        row=row,
        genotypes=genotypes,
        at_paper_size=tuple(full_cost(table.search.space, each) for each in networks),
        tested=tested,
        why_not="" if tested is not None else _NOT_YET,
    )


def _tested(
    table: FewShotTable,
    folder: Path,
    row: FewShotRow,
    genotypes: Sequence[Genotype | None],
    networks: Sequence[Genotype | None],
    results: Sequence[tuple[MetaTestResult, list[float]]],
) -> FewShotTested:
    first = results[0][0]
    by_episode = _PERCENT * np.mean([accuracies for _, accuracies in results], axis=0)
    interval = mean_interval(by_episode[:, None])
    low, high = float(interval.low[0]), float(interval.high[0])
    variant = row.variant
    searches = [
        what_it_took(search_run(folder, row, repeat), search_study(table, variant, repeat)).device_s
        for repeat in range(table.repeats)
        if variant is not None
    ]
    trainings = [
        what_it_took(training_run(folder, row, repeat), training_study(table, row, genotype, repeat)).device_s
        for repeat, genotype in enumerate(genotypes)
    ]
    return FewShotTested(
        accuracy=float(interval.mean[0]),
        low=max(low, 0.0),
        high=min(high, _PERCENT),
        by_repeat=tuple(_PERCENT * result.last.mean for result, _ in results),
        num_episodes=table.episodes,
        steps=first.plan.few_shot.test_steps,
        evaluation=first.evaluation,
        paths=tuple(sorted({path for result, _ in results for path in result.paths})),
        costs=tuple(trained_cost(table, row, genotype) for genotype in networks),
        search_s=sum(searches) if searches else None,
        training_s=sum(trainings),
    )
