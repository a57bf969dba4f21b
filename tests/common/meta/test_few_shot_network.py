"""Networks of few-shot studies as functions of one vector: sizes, paths, odd image sizes, whose statistics count."""

from typing import Any, get_args

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.config import NetworkConfig, SpaceConfig
from common.errors import InvalidInputError
from common.few_shot_config import FewShotConfig, MetaGradientMethod
from common.meta.embedding import meta_gradient
from common.meta.few_shot_network import FewShotNetwork, Path
from common.nn.cell import Mixture
from common.nn.derived import cut
from common.nn.native.library import find
from common.nn.ops import take_statistics, use_statistics
from common.nn.supernet import Supernet
from common.space.genotype import Genotype, derive

pytestmark = pytest.mark.usefixtures("one_thread")

WAYS = 5
SPACE = SpaceConfig(num_nodes=2, primitives=("max_pool_3x3", "skip_connect", "sep_conv_3x3", "conv_7x1_1x7"))
NETWORK = NetworkConfig(
    channels=2, cells=("normal", "reduction", "reduction"), image_channels=1, heads={84: 2, 9: 1, 10: 1, 28: 4}
)
NATIVE: Path = "native" if find()[0] is not None else "pytorch"


def genotype() -> Genotype:
    rng = np.random.default_rng(4)
    shape = (SPACE.topology.num_edges, len(SPACE.ops))
    return derive({kind: rng.random(shape) for kind in SPACE.cell_kinds}, SPACE.topology, SPACE.ops, "top2_pairs")


def built(size: int, engine: str = "auto", **few_shot: Any) -> FewShotNetwork:
    network = NETWORK.model_copy(update={"engine": engine})
    return FewShotNetwork(FewShotConfig(**few_shot), SPACE, network, size, WAYS, dtype=torch.float64)


def parameters_of(network: FewShotNetwork) -> Tensor:
    vectors = network.initial_vectors(seed=0)
    start = torch.cat([torch.from_numpy(vectors[name]) for name in network.names]).double()
    # A classifier of zeros would hide all the rest.
    return start + 0.1 * torch.randn(start.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def images_of(size: int, number: int = 4) -> Tensor:
    return torch.randn(number, 1, size, size, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def mixtures_of(network: FewShotNetwork, parameters: Tensor) -> dict[str, Mixture] | None:
    if not network.has_architecture:
        return None
    weights = F.softmax(network.alpha(parameters), dim=-1)
    return {kind: Mixture(weights[index]) for index, kind in enumerate(SPACE.cell_kinds)}


def gradient(network: FewShotNetwork, size: int, parameters: Tensor) -> Tensor:
    leaf = parameters.clone().requires_grad_()
    logits = network.logits(leaf, images_of(size), mixtures_of(network, leaf))
    (found,) = torch.autograd.grad(F.cross_entropy(logits, torch.arange(4)), leaf)
    return found


@pytest.mark.parametrize(("filters", "size"), [(64, 121_093), (32, 32_901)])
def test_four_convolutions_have_the_published_number_of_parameters(filters: int, size: int) -> None:
    few_shot = FewShotConfig(network="four_convolutions", filters=filters)
    assert FewShotNetwork(few_shot, SpaceConfig(), NetworkConfig(), 84, 5).size == size


def test_four_convolutions_are_a_plain_sequence_of_torch_modules() -> None:
    network = built(28, network="four_convolutions", filters=3)
    parameters = parameters_of(network)
    layers: list[nn.Module] = []
    for width in (1, 3, 3, 3):
        norm = nn.BatchNorm2d(3, track_running_stats=False)
        layers += [nn.Conv2d(width, 3, 3, padding=1), norm, nn.ReLU(), nn.MaxPool2d(2)]
    plain = nn.Sequential(*layers, nn.Flatten(), nn.Linear(3, WAYS)).double()
    lent = dict(network.module.named_parameters())
    values = dict(zip(lent, parameters.split([one.numel() for one in lent.values()] + [3 * WAYS + WAYS]), strict=False))
    convs = [layer for layer in layers if isinstance(layer, nn.Conv2d)]
    norms = [layer for layer in layers if isinstance(layer, nn.BatchNorm2d)]
    with torch.no_grad():
        for index, (conv, norm) in enumerate(zip(convs, norms, strict=True)):
            assert conv.bias is not None
            conv.weight.copy_(values[f"convs.{index}.weight"].view_as(conv.weight))
            conv.bias.copy_(values[f"convs.{index}.bias"])
            norm.weight.copy_(values[f"scales.{index}"])
            norm.bias.copy_(values[f"shifts.{index}"])
        last = plain[-1]
        assert isinstance(last, nn.Linear)
        last.weight.copy_(parameters[-4 * WAYS : -WAYS].view(WAYS, 3))
        last.bias.copy_(parameters[-WAYS:])
    torch.testing.assert_close(network.logits(parameters, images_of(28), None), plain(images_of(28)))


@pytest.mark.parametrize("method", get_args(MetaGradientMethod))
def test_only_the_exact_method_takes_pytorchs_cells(method: MetaGradientMethod) -> None:
    assert built(10, method=method).path == ("pytorch" if method == "exact" else NATIVE)


def test_the_native_cell_is_refused_where_second_derivatives_are_wanted() -> None:
    with pytest.raises(InvalidInputError, match=r"network\.engine is 'native'.*set .*'finite_difference'"):
        built(10, engine="native", method="exact")


@pytest.mark.skipif(NATIVE != "native", reason="the native cell was not built")
@pytest.mark.parametrize("size", [9, 10, 84])
@pytest.mark.parametrize("name", ["supernet", "genotype"])
def test_both_paths_agree_for_odd_sizes_on_the_way(name: str, size: int) -> None:
    # 84 -> 42 -> 21 -> 11; 9 -> 5 -> 3; 10 -> 5 -> 3.
    of_it = {"network": name, "genotype": genotype() if name == "genotype" else None}
    native, pytorch = (built(size, engine, method="first_order", **of_it) for engine in ("native", "pytorch"))
    assert (native.path, pytorch.path) == ("native", "pytorch")
    parameters = parameters_of(native)
    torch.testing.assert_close(
        gradient(native, size, parameters), gradient(pytorch, size, parameters), rtol=1e-9, atol=1e-11
    )


def test_calls_leave_no_trace() -> None:
    network, parameters = built(10, method="first_order"), parameters_of(built(10, method="first_order"))
    own = {name: one.detach().clone() for name, one in network.module.named_parameters()}
    first = gradient(network, 10, parameters)
    gradient(network, 10, 2 * parameters)
    assert torch.equal(gradient(network, 10, parameters), first)
    assert torch.equal(gradient(built(10, method="first_order"), 10, parameters), first)
    assert all(torch.equal(one, own[name]) for name, one in network.module.named_parameters())


def test_the_network_of_a_genotype_has_its_parameters_only_and_is_the_derived_network() -> None:
    network = built(9, network="genotype", genotype=genotype())
    parameters = parameters_of(network)
    assert network.names == ("body", "head/9", "classifier")
    assert isinstance(network.module, Supernet)
    classifier = nn.Linear(network.module.num_features, WAYS).double()
    split = network.split(parameters)
    with torch.no_grad():
        values = torch.cat([split["body"], split["head/9"]])
        for (name, shape), part in zip(network._layout.entries, values.split(list(network._layout.sizes)), strict=True):
            network.module.get_parameter(name).copy_(part.view(shape))
        classifier.weight.copy_(split["classifier"][:-WAYS].view_as(classifier.weight))
        classifier.bias.copy_(split["classifier"][-WAYS:])
    derived = cut(network.module, genotype(), 9, classifier)
    norms = sum(one.numel() for name, one in derived.named_parameters() if _is_of_norm(derived, name))
    assert network.size == sum(one.numel() for one in derived.parameters()) - norms
    expected = derived(images_of(9))
    torch.testing.assert_close(network.logits(parameters, images_of(9), None), expected, rtol=1e-9, atol=1e-11)


def _is_of_norm(network: nn.Module, name: str) -> bool:
    return isinstance(network.get_submodule(name.rpartition(".")[0]), nn.BatchNorm2d)


@pytest.mark.parametrize("name", ["supernet", "genotype", "four_convolutions"])
def test_initial_vectors_are_those_of_the_seed_with_an_impartial_classifier(name: str) -> None:
    network = built(28, network=name, genotype=genotype() if name == "genotype" else None)
    first, again, other = (network.initial_vectors(seed) for seed in (0, 0, 1))
    assert {each: len(vector) for each, vector in first.items()} == dict(network.sizes)
    assert all(np.array_equal(vector, again[each]) for each, vector in first.items())
    assert not np.array_equal(first["body"], other["body"])
    assert not first["classifier"].any()


@pytest.mark.parametrize("name", ["supernet", "four_convolutions"])
def test_statistics_that_are_taken_normalise_other_images_one_by_one(name: str) -> None:
    network = built(28, network=name, filters=3)
    parameters = parameters_of(network)
    mixtures = mixtures_of(network, parameters)
    support, queries = images_of(28, 6), images_of(28, 3) + 0.5
    with torch.no_grad():
        with take_statistics() as statistics:
            taught = network.logits(parameters, support, mixtures)
        with use_statistics(statistics):
            again = network.logits(parameters, support, mixtures)
        with use_statistics(statistics):
            together = network.logits(parameters, queries, mixtures)
        with use_statistics(statistics):
            alone = network.logits(parameters, queries[:1], mixtures)
        by_their_own = network.logits(parameters, queries, mixtures)
    torch.testing.assert_close(taught, again)
    torch.testing.assert_close(together[:1], alone)
    assert (together - by_their_own).abs().max() > 1e-3


def test_kinks_spoil_finite_differences_unless_none_lies_between_the_two_points() -> None:
    network = built(28, network="four_convolutions", filters=4)
    start = parameters_of(network)
    rates = torch.full_like(start, 0.05)

    def objective(images: Tensor) -> Any:
        return lambda parameters: F.cross_entropy(network.logits(parameters, images, None), torch.arange(5))

    inner, query = [objective(images_of(28, 5))] * 3, objective(images_of(28, 5) + 0.3)
    exact = meta_gradient("exact", start, rates, inner, query).gradient

    def error(displacement: float) -> float:
        found = meta_gradient("finite_difference", start, rates, inner, query, displacement).gradient
        return float((found - exact).norm() / exact.norm())

    # Each kink of ReLU or max pooling on the way adds its jump, divided by the displacement.
    assert error(1e-2) > 0.01
    assert error(1e-5) < 1e-6
