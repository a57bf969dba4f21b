"""Networks cut out of the supernet: the same logits, and the same course of training, as inside it."""

import copy
import re

import numpy as np
import pytest
import torch
from torch import nn

from common.config import NetworkConfig, SpaceConfig
from common.cost import network_cost
from common.errors import InvalidInputError
from common.network_config import FullNetworkConfig, network_config
from common.nn.calibration import recalibrate_
from common.nn.counting import count_network
from common.nn.derived import cut, genotype_mixtures
from common.nn.export import onnx_difference, to_onnx
from common.nn.native.library import find
from common.nn.source import python_source
from common.nn.stored import load_network, save_network
from common.nn.supernet import build_supernet
from common.space.genotype import Genotype, GenotypeEdge, derive

pytestmark = pytest.mark.usefixtures("one_thread")

ENGINES = ["pytorch"] + (["native"] if find()[0] is not None else [])
NETWORK = NetworkConfig(channels=4, cells=("normal", "reduction", "normal", "reduction"), heads={16: 1, 15: 4, 32: 8})
CLASSES = 5


def random_genotype(space, seed):
    rng = np.random.default_rng(seed)
    shape = (space.topology.num_edges, len(space.ops))
    return derive({kind: rng.random(shape) for kind in space.cell_kinds}, space.topology, space.ops, "sample", seed)


def shares_a_source(genotype):
    nodes = [node for nodes in genotype.cells.values() for node in nodes]
    return any(len({edge.source for edge in node}) < len(node) for node in nodes)


def classifier_for(supernet, dtype=torch.float64):
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return nn.Linear(supernet.num_features, CLASSES).to(dtype)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("profile", "size"), [("darts", 16), ("base+", 15)])
def test_a_cut_network_computes_what_the_supernet_does_with_only_its_ops(engine, profile, size):
    space = SpaceConfig(profile=profile)
    supernet = build_supernet(space, NETWORK.model_copy(update={"engine": engine}), seed=1).double()
    classifier = classifier_for(supernet)
    images = torch.randn(3, 3, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    parallel = 0
    for seed in range(3):
        genotype = random_genotype(space, seed)
        parallel += shares_a_source(genotype)
        # All ops computed and mixed by 0 and 1, and only the genotype's.
        sparse = genotype_mixtures(genotype, space, dtype=torch.float64)
        dense = {kind: type(mixture)(mixture.weights) for kind, mixture in sparse.items()}
        network = cut(supernet, genotype, size, classifier)
        for mixtures in (sparse, dense):
            expected = classifier(supernet(images, mixtures, size))
            assert expected.abs().max() > 0.01
            torch.testing.assert_close(network(images), expected, rtol=0, atol=1e-10)
    assert parallel, "two ops of a node share their source in at least one of the genotypes"


def test_nodes_of_one_or_three_ops_can_be_cut_out_too():
    space = SpaceConfig(num_nodes=2, profile="darts")

    def edges(*ops):
        return tuple(GenotypeEdge(source=source, primitive=primitive) for source, primitive in ops)

    one, three = edges((1, "sep_conv_3x3")), edges((0, "max_pool_3x3"), (0, "skip_connect"), (2, "dil_conv_5x5"))
    genotype = Genotype(cells={"normal": (one, three), "reduction": (edges((0, "skip_connect")), three)})
    supernet = build_supernet(space, NETWORK, seed=1).double()
    classifier = classifier_for(supernet)
    images = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    expected = classifier(supernet(images, genotype_mixtures(genotype, space, dtype=torch.float64), 16))
    torch.testing.assert_close(cut(supernet, genotype, 16, classifier)(images), expected, rtol=0, atol=1e-10)


def test_the_cut_copies():
    space = SpaceConfig(profile="darts")
    supernet = build_supernet(space, NETWORK, seed=1)
    classifier = classifier_for(supernet, torch.float32)
    before = copy.deepcopy(supernet.state_dict())
    network = cut(supernet, random_genotype(space, 0), 16, classifier)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.fill_(7.0)
    assert all(torch.equal(before[name], tensor) for name, tensor in supernet.state_dict().items())
    assert not (classifier.weight == 7.0).any()


@pytest.mark.parametrize("size", [16, 15, 32])
def test_a_cut_network_costs_what_the_formula_for_search_networks_says(size):
    space = SpaceConfig(profile="base+")
    supernet = build_supernet(space, NETWORK, seed=1)
    genotype = random_genotype(space, 5)
    network = cut(supernet, genotype, size, classifier_for(supernet, torch.float32))
    counted = count_network(genotype, network.config).total
    by_formula = network_cost(genotype, space, NETWORK, size, CLASSES)
    of_norms = sum(
        parameter.numel()
        for module in network.modules()
        if isinstance(module, nn.BatchNorm2d)
        for parameter in module.parameters()
    )
    assert counted.num_macs == by_formula.num_macs
    assert counted.num_params == by_formula.num_params + of_norms == sum(p.numel() for p in network.parameters())


def test_a_genotype_of_another_space_is_refused():
    space = SpaceConfig(profile="darts")
    foreign = random_genotype(SpaceConfig(profile="darts", num_nodes=2), 0)
    with pytest.raises(InvalidInputError, match=r"has 2 nodes; space\.num_nodes is 4"):
        genotype_mixtures(foreign, space)
    supernet = build_supernet(space, NETWORK, seed=1)
    with pytest.raises(InvalidInputError, match=r"no head for image_size 64; network\.heads has 15, 16, 32"):
        cut(supernet, random_genotype(space, 0), 64, classifier_for(supernet))


def test_a_kind_of_cell_that_full_networks_do_not_know_is_named():
    space = SpaceConfig(cell_kinds={"flat": 1, "reduction": 2}, profile="darts")
    network = NetworkConfig(channels=4, cells=("flat", "reduction"), heads={16: 4})
    supernet = build_supernet(space, network, seed=1)
    with pytest.raises(InvalidInputError, match=r"space.cell_kinds has 'flat' \(stride 1\); name it so"):
        cut(supernet, random_genotype(space, 0), 16, classifier_for(supernet))


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"motif": "cifar"}, "cells belongs to the search motif; remove it, or set motif to 'search'"),
        ({"stem_stride": None}, "the search motif needs stem_stride"),
        ({"stem_stride": 3}, "stem_stride must be a power of two"),
        ({"auxiliary": True}, "the search motif has no auxiliary classifier; set auxiliary to false"),
        ({"num_cells": 3}, "cells must be 3 (num_cells) of the kinds normal and reduction"),
    ],
)
def test_a_search_motif_that_does_not_fit_is_explained(changes, complaint):
    valid = {"motif": "search", "cells": ("normal", "reduction"), "num_cells": 2, "stem_stride": 4, "auxiliary": False}
    FullNetworkConfig.model_validate(valid)
    with pytest.raises(ValueError, match=re.escape(complaint)):
        FullNetworkConfig.model_validate({**valid, **changes})
    with pytest.raises(InvalidInputError, match="motif must be one of cifar, imagenet, got 'search'"):
        network_config("search")


def cut_network(size=16, seed=4, num_nodes=4, cells=NETWORK.cells):
    space = SpaceConfig(profile="base+", num_nodes=num_nodes)
    supernet = build_supernet(space, NETWORK.model_copy(update={"cells": cells}), seed=1)
    return cut(supernet, random_genotype(space, seed), size, classifier_for(supernet, torch.float32))


def training_images(size=16, count=24):
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(6)) * 0.7 + 0.2


def test_recalibrated_statistics_are_the_averages_over_batches_and_predictions_stand_alone():
    network = cut_network()
    batches = training_images().split(8)
    recalibrate_(network, batches)
    assert not network.training
    first = network.stems[0][0], network.stems[0][1]
    with torch.no_grad():
        maps = [first[0](batch) for batch in batches]
    means = torch.stack([batch.mean(dim=(0, 2, 3)) for batch in maps]).mean(dim=0)
    variances = torch.stack([batch.var(dim=(0, 2, 3)) for batch in maps]).mean(dim=0)
    torch.testing.assert_close(first[1].running_mean, means)
    torch.testing.assert_close(first[1].running_var, variances)
    assert first[1].momentum == 0.1
    with torch.no_grad():
        together = network(batches[0])
        alone = torch.cat([network(image[None]) for image in batches[0]])
    torch.testing.assert_close(alone, together, rtol=1e-4, atol=1e-5)
    again = copy.deepcopy(network.state_dict())
    recalibrate_(network, batches)
    assert all(torch.equal(again[name], tensor) for name, tensor in network.state_dict().items())
    with pytest.raises(InvalidInputError, match="at least one batch"):
        recalibrate_(network, [])


def test_a_cut_network_is_stored_and_taken_away_like_any_other(tmp_path):
    network = cut_network()
    recalibrate_(network, training_images().split(8))
    save_network(tmp_path, network)
    loaded = load_network(tmp_path)
    assert loaded.config == network.config
    assert loaded.genotype == network.genotype
    images = training_images(count=3)
    with torch.no_grad():
        expected = network(images)
        torch.testing.assert_close(loaded(images), expected, rtol=0, atol=0)
        module = tmp_path / "taken.py"
        module.write_text(python_source(network.genotype, network.config, "taken"))
        scope = {"__file__": str(module)}
        exec(compile(module.read_text(), str(module), "exec"), scope)
        torch.testing.assert_close(scope["load"](tmp_path / "weights.safetensors")(images), expected)


def test_a_cut_network_becomes_onnx():
    pytest.importorskip("onnxruntime")
    network = cut_network(size=15, num_nodes=1, cells=("normal", "reduction"))
    recalibrate_(network, training_images(15).split(8))
    assert onnx_difference(network, to_onnx(network), batch=2) < 1e-4
