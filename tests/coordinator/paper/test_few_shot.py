"""Table 4 as values: what is compared, and that it is compared on equal terms."""

import pytest

from common.meta.few_shot_network import network_of
from common.space.released import RELEASED
from coordinator.paper.anchors import PUBLISHED_FEW_SHOT
from coordinator.paper.few_shot import (
    FEW_SHOT_ROWS,
    full_cost,
    full_few_shot,
    search_study,
    smoke_few_shot,
    trained_cost,
    training_study,
)

FULL = full_few_shot("/images")
SMOKE = smoke_few_shot()


def test_every_row_of_the_paper_has_one_that_is_run():
    assert [row.published for row in FEW_SHOT_ROWS] == [row.name for row in PUBLISHED_FEW_SHOT]
    assert [row.accuracy for row in PUBLISHED_FEW_SHOT] == [63.11, 65.99, None, 65.40, 66.2]


@pytest.mark.parametrize("table", [FULL, SMOKE], ids=["full", "smoke"])
def test_all_networks_are_trained_on_the_same_episodes_and_as_many(table):
    genotype = RELEASED["DARTS_V2"]
    for row in FEW_SHOT_ROWS:
        study = training_study(table, row, None if row.baseline is not None else genotype, 0)
        assert study.families == table.search.families and study.rounds == table.rounds
        assert study.seed == table.search.seed
        assert study.few_shot.steps == table.search.few_shot.steps
        if row.baseline != "reptile":
            same = {"network": "four_convolutions", "genotype": None}
            assert study.few_shot.model_copy(update=same) == table.baselines["maml"].few_shot
        assert study.few_shot.test_steps == table.search.few_shot.test_steps
        assert study.few_shot.evaluation == "transductive"
        assert study.few_shot.network == ("genotype" if row.baseline is None else "four_convolutions")
        assert training_study(table, row, study.few_shot.genotype, 1).seed == study.seed + 1
    (family,) = table.search.families
    assert (family.num_ways, family.train_per_class) == (5, 5)


def test_searches_differ_in_the_relaxation_alone():
    gumbel, softmax = (search_study(FULL, variant, 0) for variant in ("gumbel", "softmax"))
    assert gumbel.relaxation == FULL.search.relaxation and gumbel.relaxation.kind == "gumbel"
    assert softmax.relaxation.kind == "softmax"
    assert softmax.relaxation.tau_start == softmax.relaxation.tau_end == 1.0
    assert softmax.model_copy(update={"relaxation": gumbel.relaxation}) == gumbel


def test_full_scale_is_second_order_on_mini_imagenet_two_times():
    assert FULL.search.few_shot.method == FULL.baselines["maml"].few_shot.method == "exact"
    assert FULL.family.data.source == "mini_imagenet" and FULL.family.data.root == "/images"
    assert (FULL.family.image_size, FULL.repeats, FULL.episodes) == (84, 2, 600)
    assert not FULL.stand_in and SMOKE.stand_in


def test_networks_of_full_scale_have_the_papers_parameters():
    assert full_cost(FULL.search.space, None).num_params == 121_093  # the paper: 0.1 million
    millions = [full_cost(FULL.search.space, genotype).num_params / 1e6 for genotype in RELEASED.values()]
    assert min(millions) > 1.0 and max(millions) < 1.4  # the paper: 1.2 million
    for row in FEW_SHOT_ROWS:
        genotype = None if row.baseline is not None else RELEASED["DARTS_V2"]
        assert trained_cost(FULL, row, genotype) == full_cost(FULL.search.space, genotype)


def test_parameters_are_those_that_the_trained_network_has():
    for row in (FEW_SHOT_ROWS[0], FEW_SHOT_ROWS[2]):
        genotype = None if row.baseline is not None else RELEASED["DARTS_V2"]
        network = network_of(training_study(SMOKE, row, genotype, 0))
        assert trained_cost(SMOKE, row, genotype).num_params == network.size
