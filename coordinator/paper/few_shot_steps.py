"""Carries out table 4, step by step, into a run's folder; what is there already is not done again.

few_shot/ROW/NUMBER/search/      the search of a genotype, for each time: a run as `metasearch train` leaves it
few_shot/ROW/NUMBER/training/    likewise, the meta-training of the row's network; its test/ is of `metasearch test`
"""

from collections.abc import Sequence
from pathlib import Path

from common.config import StudyConfig
from common.messages import AdaptRequest
from common.meta.prior import ALPHA, Prior
from common.space.genotype import Genotype
from common.storage import ArtifactFolder
from coordinator import meta_test
from coordinator.meta_test_run import run_meta_test
from coordinator.outer import prior_genotype
from coordinator.paper.few_shot import (
    FEW_SHOT_ROWS,
    VARIANTS,
    FewShotRow,
    FewShotTable,
    given_genotype,
    search_study,
    training_study,
)
from coordinator.paper.studies import Lazily, Say, finished_prior, meta_train
from workers.data.arrays import ClassArrays
from workers.data.sources import load_arrays

FEW_SHOT = "few_shot"


def run_few_shot(table: FewShotTable, folder: Path, workers: Lazily, say: Say) -> None:
    """Searches, trains and tests what table 4 lacks.

    Args:
        table: of the run.
        folder: of the run.
        workers: compute it.
        say: tells people what happens.

    Raises:
        KeyboardInterrupt: it was interrupted; another call goes on.
        MetaSearchError: what a step raised.
    """
    arrays = load_arrays(table.family.data, table.family.image_size)
    for repeat in range(table.repeats):
        for row in FEW_SHOT_ROWS:
            genotype = given_genotype(row)
            if row.variant is not None:
                config = search_study(table, row.variant, repeat)
                label = f"{_label(table, row, repeat)}, search by {VARIANTS[row.variant]}"
                prior = meta_train(search_run(folder, row, repeat), config, label, workers, say)
                genotype = prior_genotype(prior.vectors[ALPHA], config)
            config = training_study(table, row, genotype, repeat)
            run, label = training_run(folder, row, repeat), _label(table, row, repeat)
            prior = meta_train(run, config, f"{label}, training", workers, say)
            _test(table, config, prior, run, arrays, label, workers, say)


def search_run(folder: Path, row: FewShotRow, repeat: int) -> Path:
    """Folder of a row's search."""
    return folder / FEW_SHOT / row.key / str(repeat) / "search"


def training_run(folder: Path, row: FewShotRow, repeat: int) -> Path:
    """Folder of the meta-training of a row's network."""
    return folder / FEW_SHOT / row.key / str(repeat) / "training"


def genotype_of(table: FewShotTable, folder: Path, row: FewShotRow, repeat: int) -> Genotype | None:
    """A row's genotype; None where there is none, or its search has not ended."""
    if row.variant is None:
        return given_genotype(row)
    config = search_study(table, row.variant, repeat)
    prior = finished_prior(search_run(folder, row, repeat), config)
    return None if prior is None else prior_genotype(prior.vectors[ALPHA], config)


def test_result(
    table: FewShotTable, folder: Path, row: FewShotRow, repeat: int
) -> tuple[meta_test.MetaTestResult, list[float]] | None:
    """What the test of a row's network found, and the accuracy, 0 to 1, of every episode; None where it has not ended.

    Raises:
        CorruptArtifactError: a file of it is damaged.
    """
    run = training_run(folder, row, repeat)
    for result in meta_test.read_results(run):
        plan = result.plan
        if (plan.split, plan.seed, result.num_episodes) == ("unseen", table.test_seed, table.episodes):
            found = meta_test.read_episodes(ArtifactFolder(run / meta_test.FOLDER / plan.name), plan)
            return result, [found[number].accuracy[-1] for number in range(table.episodes)]
    return None


def _test(
    table: FewShotTable,
    config: StudyConfig,
    prior: Prior,
    run: Path,
    arrays: ClassArrays,
    label: str,
    workers: Lazily,
    say: Say,
) -> None:
    options = meta_test.MetaTestOptions(split="unseen", seed=table.test_seed)
    plan = meta_test.plan_meta_test(prior, config, options, arrays, meta_test.family_of(config, options))
    folder = run / meta_test.FOLDER / plan.name

    def learn(requests: Sequence[AdaptRequest], done: int) -> bool:
        say(f"{label}, test: {len(requests)} episodes")
        return workers.get().meta_test(folder, prior, requests, done)

    if run_meta_test(folder, plan, prior, config, arrays, table.episodes, learn) is None:
        raise KeyboardInterrupt


def _label(table: FewShotTable, row: FewShotRow, repeat: int) -> str:
    time = "" if table.repeats == 1 else f", time {repeat + 1} of {table.repeats}"
    return f"{row.published}{time}"
