"""Meta-tests: plans, folders that go on, and intervals by hand. See test_meta_test_cli for the command."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.config import DatasetRef, StudyConfig
from common.errors import ConflictError, CorruptArtifactError, InvalidInputError
from common.loading import load
from common.meta.prior import Prior, initial_prior
from common.storage import ArtifactFolder
from coordinator.meta_test import (
    EPISODES,
    EpisodeOutcome,
    MetaTestOptions,
    MetaTestPlan,
    begin,
    episode_of_task,
    episode_request,
    family_of,
    opened_log,
    plan_meta_test,
    read_episodes,
    summarise,
)
from workers.data.arrays import ClassArrays
from workers.data.sources import load_arrays
from workers.data.splits import classes_of


@pytest.fixture(scope="module")
def config() -> StudyConfig:
    return load("few_shot_smoke", environment={})


@pytest.fixture(scope="module")
def prior(config: StudyConfig) -> Prior:
    return initial_prior(config)


@pytest.fixture(scope="module")
def arrays(config: StudyConfig) -> ClassArrays:
    family = config.families[0]
    return load_arrays(family.data, family.image_size)


@pytest.fixture
def plan(prior: Prior, config: StudyConfig, arrays: ClassArrays) -> MetaTestPlan:
    return planned(prior, config, arrays)


def planned(prior: Prior, config: StudyConfig, arrays: ClassArrays, **options: Any) -> MetaTestPlan:
    asked = MetaTestOptions(**options)
    return plan_meta_test(prior, config, asked, arrays, family_of(config, asked))


def outcome(episode: int, plan: MetaTestPlan, accuracy: float = 0.5) -> EpisodeOutcome:
    count = len(plan.eval_steps)
    return EpisodeOutcome(
        episode=episode, accuracy=(accuracy,) * count, loss_nats=(1.0,) * count, adapt_s=0.1, path="native"
    )


def test_episodes_are_of_unseen_classes_and_a_function_of_the_plan(
    plan: MetaTestPlan, prior: Prior, config: StudyConfig, arrays: ClassArrays
) -> None:
    requests = [episode_request(plan, prior, config, arrays, number) for number in range(12)]
    family = config.families[0]
    unseen = {arrays.class_names[index] for index in classes_of(arrays, "unseen", family.data)}
    for number, request in enumerate(requests):
        assert episode_of_task(request.task.task_id) == number
        assert set(request.task.classes) <= unseen
        assert (request.task.train_per_class, request.task.test_per_class) == (
            family.train_per_class,
            family.test_per_class,
        )
        assert not request.returns_update and request.few_shot == config.few_shot
        assert request.eval_steps[0] == 0 and request.eval_steps[-1] == config.few_shot.test_steps  # type: ignore[union-attr]
    assert requests == [episode_request(plan, prior, config, arrays, number) for number in range(12)]
    other = episode_request(planned(prior, config, arrays, seed=1), prior, config, arrays, 0)
    assert other.task.seed != requests[0].task.seed


def test_validation_episodes_are_of_other_classes(prior: Prior, config: StudyConfig, arrays: ClassArrays) -> None:
    validation = planned(prior, config, arrays, split="validation")
    drawn = [set(episode_request(validation, prior, config, arrays, number).task.classes) for number in range(9)]
    data = config.families[0].data
    kept = {arrays.class_names[index] for index in classes_of(arrays, "validation", data)}
    assert set().union(*drawn) <= kept
    assert validation.num_classes == {
        part: len(classes_of(arrays, part, data))  # type: ignore[arg-type]
        for part in ("meta_train", "validation", "unseen")
    }


def test_equal_plans_share_a_folder_and_no_others_do(
    plan: MetaTestPlan, prior: Prior, config: StudyConfig, arrays: ClassArrays
) -> None:
    options: list[dict[str, Any]] = [
        {"seed": 1},
        {"shots": 3},
        {"queries": 2},
        {"steps": 1},
        {"split": "validation"},
        {"evaluation": "inductive"},
    ]
    names = {plan.name, *(planned(prior, config, arrays, **changes).name for changes in options)}
    assert len(names) == 1 + len(options)
    assert plan.name == planned(prior, config, arrays).name
    # What the study says anyway is no other plan.
    assert plan.name == planned(prior, config, arrays, ways=plan.family.num_ways).name


def test_statistics_are_named_in_the_title(prior: Prior, config: StudyConfig, arrays: ClassArrays) -> None:
    assert "transductive" in planned(prior, config, arrays, evaluation="transductive").title
    assert "inductive" in planned(prior, config, arrays, evaluation="inductive").title


def test_all_classes_of_another_source_are_new(tmp_path: Path, prior: Prior, config: StudyConfig) -> None:
    path = tmp_path / "mine.npz"
    np.savez(path, images=np.zeros((30, 16, 16), np.uint8), labels=np.repeat(np.arange(3), 10))
    data = DatasetRef(source=str(path))
    plan = planned(prior, config, load_arrays(data, 16), data=data)
    assert plan.split == "all"
    assert plan.family.data == data


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ways": 4}, r"--ways is 4, the prior's classifier is of 3 classes"),
        ({"image_size": 84}, "--image-size is 84, the prior's weights are of images of 16 pixels"),
        ({"queries": 500}, "num_ways is 3: lower num_ways or the images per class"),
        ({"shots": 500}, "num_ways is 3: lower num_ways or the images per class"),
    ],
)
def test_episodes_that_cannot_be_are_refused(
    prior: Prior, config: StudyConfig, arrays: ClassArrays, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidInputError, match=message):
        planned(prior, config, arrays, **options)


def test_run_of_another_kind_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="none of few-shot learning.*metasearch train few_shot"):
        family_of(load("smoke", environment={}), MetaTestOptions())


def test_a_folder_goes_on_with_its_own_test_only(
    tmp_path: Path, plan: MetaTestPlan, prior: Prior, config: StudyConfig, arrays: ClassArrays
) -> None:
    folder = ArtifactFolder(tmp_path)
    begin(folder, plan)
    begin(folder, plan)
    with pytest.raises(ConflictError, match="another test"):
        begin(folder, planned(prior, config, arrays, seed=1))


def test_episodes_outlive_a_crash_in_the_middle_of_a_line(tmp_path: Path, plan: MetaTestPlan) -> None:
    folder = ArtifactFolder(tmp_path)
    assert read_episodes(folder, plan) == {}
    with opened_log(tmp_path) as log:
        for number in (3, 0):
            log.add(outcome(number, plan))
            assert number in read_episodes(folder, plan)  # at once
    path = tmp_path / EPISODES
    path.write_bytes(path.read_bytes()[:-9])
    assert read_episodes(folder, plan) == {3: outcome(3, plan)}
    with opened_log(tmp_path) as log:
        log.add(outcome(0, plan))
    assert read_episodes(folder, plan) == {3: outcome(3, plan), 0: outcome(0, plan)}


def test_damaged_line_is_named(tmp_path: Path, plan: MetaTestPlan) -> None:
    with opened_log(tmp_path) as log:
        log.add(outcome(0, plan))
    line = (tmp_path / EPISODES).read_text()
    (tmp_path / EPISODES).write_text("{}\n" + line)
    with pytest.raises(CorruptArtifactError, match=r"line 1 of .*episodes\.jsonl is damaged"):
        read_episodes(ArtifactFolder(tmp_path), plan)


def test_mean_and_interval_are_those_of_students_t(plan: MetaTestPlan) -> None:
    values = [0.2, 0.4, 0.9]
    result = summarise(plan, [outcome(number, plan, value) for number, value in enumerate(values)], {"torch": "x"})
    # Quantile 0.975 of Student's t with two degrees of freedom, from a table.
    half_width = 4.3027 * np.std(values, ddof=1) / math.sqrt(3)
    assert result.num_episodes == 3
    assert result.last.mean == pytest.approx(0.5)
    assert result.last.low == pytest.approx(0.5 - half_width, abs=1e-4)
    assert result.last.high == pytest.approx(0.5 + half_width, abs=1e-4)
    assert result.chance == pytest.approx(1 / 3)
    assert result.paths == {"native": 3}
    assert list(result.accuracy) == [str(step) for step in plan.eval_steps]
    assert summarise(plan, [outcome(0, plan)], {}).last.low is None
