"""The experiments as values: the paper's numbers at full scale, and what each target needs."""

import pytest

from common.errors import InvalidInputError
from coordinator.paper.anchors import PUBLISHED
from coordinator.paper.experiments import (
    ROWS,
    data_needed,
    figure4_steps,
    groups_of,
    needs_figure4,
    needs_prior,
    recipe_of,
    tables_of,
    target_named,
)
from coordinator.paper.scales import full_config, smoke_config
from workers.data.sources import SOURCES

FULL = full_config("/prepared", "/downloads")
SMOKE = smoke_config(has_fashion_mnist=False)


def test_full_scale_is_the_papers():
    assert FULL.study.rounds == 130
    assert [family.tasks_per_round for family in FULL.study.families] == [8, 8, 8]
    assert [family.image_size for family in FULL.study.families] == [32, 64, 224]
    assert {family.num_ways for family in FULL.study.families} == {10}
    assert FULL.imagenet.tuning.num_tasks == FULL.num_posteriors == 8
    epochs = [FULL.image_set(table).recipe.epochs for table in ("cifar10", "svhn", "imagenet")]
    assert epochs == [600, 160, 375]
    assert len(figure4_steps(FULL)) == 6
    assert figure4_steps(FULL)[0] == 781  # 50,000 images in batches of 64


def test_every_row_that_is_run_stands_beside_one_of_the_papers():
    for table, rows in ROWS.items():
        assert {row.published for row in rows} <= {row.name for row in PUBLISHED[table]}
        assert len({row.key for row in rows}) == len(rows)


def test_darts_has_its_own_width_at_full_scale_alone():
    (row,) = (row for row in ROWS["svhn"] if row.key == "darts_v2")
    assert recipe_of(FULL.svhn, row).channels == 36
    assert recipe_of(SMOKE.svhn, row).channels == SMOKE.svhn.recipe.channels


def test_smoke_scale_downloads_nothing_and_says_what_stands_in():
    for target in ("all", "figure4", "table4"):
        assert not any(SOURCES[reference.source].downloads for reference, _ in data_needed(SMOKE, target))
    assert all(SMOKE.image_set(table).stand_in for table in ROWS)
    assert not any(FULL.image_set(table).stand_in for table in ROWS)


def test_targets_need_their_steps_and_no_others():
    assert tables_of("figure2") == ("imagenet",)
    assert groups_of("svhn") == ("imagenet32", "svhn_tuned")
    assert groups_of("figure3") == ("imagenet32", "imagenet64", "imagenet224", "cifar10")
    assert groups_of("figure4") == () and needs_figure4("figure4")
    assert tables_of("cells") == () and not needs_figure4("cells")
    assert needs_prior("all") and not needs_prior("table4")
    assert set(groups_of("all")) >= set(groups_of("cells")) | set(groups_of("figure3"))


def test_images_are_needed_at_the_sizes_of_search_and_training():
    imagenet = {size for reference, size in data_needed(FULL, "imagenet") if reference.source == "imagenet"}
    assert imagenet == {32, 64, 224, 256}
    assert all(reference.source != "svhn" for reference, _ in data_needed(FULL, "cifar10"))


def test_unknown_target_is_named_with_the_known_ones():
    with pytest.raises(InvalidInputError, match=r"TARGET must be one of cifar10, .*table4, got 'table5'"):
        target_named("table5")
