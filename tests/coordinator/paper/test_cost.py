"""What full scale costs: counted, and held against the paper's own 8 GPU-days."""

import pytest
import torch
from torch import nn

from common.loading import load
from common.nn.cell import Mixture
from common.nn.supernet import build_supernet
from coordinator.paper.cost import costs, few_shot_passes, meta_macs, search_macs
from coordinator.paper.scales import full_config

FULL = full_config(None, None)


def test_multiply_accumulates_of_a_search_network_are_those_that_its_convolutions_do():
    study = load("smoke", ["network.engine=pytorch"], environment={})
    supernet = build_supernet(study.space, study.network, seed=0)
    counted = 0

    def count(module, inputs, output):
        nonlocal counted
        counted += output.numel() * module.weight[0].numel()

    for module in supernet.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(count)
    shape = (study.space.topology.num_edges, len(study.space.ops))
    mixtures = {kind: Mixture(torch.full(shape, 0.1)) for kind in study.space.cell_kinds}
    with torch.no_grad():
        supernet(torch.zeros(1, study.network.image_channels, 16, 16), mixtures, 16)
    assert search_macs(study, 16, 3) == counted + 3 * supernet.num_features


def test_meta_training_costs_what_the_paper_reports():
    first, *_ = costs(FULL, "cells")
    assert first.days == 8
    assert first.hours == 192


def test_other_steps_cost_by_their_share_of_multiply_accumulates():
    items = {item.name: item.days for item in costs(FULL, "figure3")}
    # 8 tasks of 1200 steps of 64 images, against 130 rounds of 8 tasks of 300 steps at each of three sizes.
    per_image = {size: search_macs(FULL.study, size, 10) for size in (32, 64, 224)}
    whole = 130 * 8 * 300 * 64 * sum(per_image.values())
    assert meta_macs(FULL.study) == whole
    assert items["8 adaptations: imagenet64"] == pytest.approx(8 * 8 * 1200 * 64 * per_image[64] / whole)


def test_trainings_cost_by_the_networks_that_are_counted():
    (training,) = (item for item in costs(FULL, "svhn") if item.name.startswith("Table 2"))
    # Three networks that are not found yet count as the published one, 500,128,000 multiply-accumulates; DARTS's has
    # 36 channels, 528,359,040 by `metasearch inspect`.
    images = 73_257 * 160
    assert training.days == pytest.approx(8 * images * (3 * 500_128_000 + 528_359_040) / meta_macs(FULL.study))


def test_a_meta_gradient_costs_by_the_gradients_that_it_takes():
    family = FULL.few_shot.family
    few_shot = FULL.few_shot.search.few_shot
    # 5 steps on 25 support images and a loss on 75 query images; a gradient is three passes.
    expected = {"first_order": 3 * (5 * 25 + 75), "exact": 3 * (3 * 5 * 25 + 75), "reptile": 3 * 5 * 100}
    expected["finite_difference"] = expected["exact"]
    found = {m: few_shot_passes(few_shot.model_copy(update={"method": m}), family) for m in expected}
    assert found == expected


def test_table_4_costs_its_own_studies_alone():
    items = {item.name: item.days for item in costs(FULL, "table4")}
    assert len(items) == 7 and not any("Meta-training" in name for name in items)
    # Two times 60,000 rounds of 4 episodes, at the rate of the meta-training.
    passes = 2 * 60_000 * 4 * 3 * (3 * 5 * 25 + 75)
    expected = 8 * passes * search_macs(FULL.few_shot.search, 84, 5) / (3 * meta_macs(FULL.study))
    assert items["Search by Gumbel-softmax: 2 x 60,000 rounds of 4 episodes"] == pytest.approx(expected)
