"""Full networks: published counts, shapes, drop path, the auxiliary classifier; counts by formula against hooks."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from common.cost import Cost
from common.errors import InvalidInputError
from common.network_config import FullNetworkConfig, cell_plans, network_config
from common.nn.counting import NetworkCount, count_network
from common.nn.full import FullCell, FullNetwork, build_full_network, drop_path
from common.space.genotype import Genotype, GenotypeEdge
from common.space.primitives import NONE, PRIMITIVES
from common.space.released import CIFAR_TUNED, DARTS_V1, DARTS_V2, IMAGENET_TUNED, RELEASED

pytestmark = pytest.mark.usefixtures("one_thread")

OPS = tuple(name for name in PRIMITIVES if name != NONE)
ALMOST_ONE = 1 - 1e-12  # a probability that leaves out everything in all but one of 10^12 draws


def tiny(motif: str = "cifar", **options: object) -> FullNetworkConfig:
    return network_config(motif, **{"channels": 4, "num_cells": 3, "num_classes": 5, "image_size": 16, **options})


def one_node(*ops: tuple[str, int]) -> Genotype:
    node = tuple(GenotypeEdge(source=source, primitive=name) for name, source in ops)
    return Genotype(cells={"normal": (node,), "reduction": (node,)})


@st.composite
def genotypes(draw: st.DrawFn) -> Genotype:
    """Any number of nodes, other ones per kind, up to four ops per node, some from one source."""

    def node(index: int) -> tuple[GenotypeEdge, ...]:
        pairs = st.tuples(st.integers(0, 1 + index), st.sampled_from(OPS))
        chosen = draw(st.lists(pairs, min_size=1, max_size=4, unique=True))
        return tuple(GenotypeEdge(source=source, primitive=primitive) for source, primitive in chosen)

    return Genotype(
        cells={kind: tuple(node(index) for index in range(draw(st.integers(1, 4)))) for kind in ("reduction", "normal")}
    )


@st.composite
def configs(draw: st.DrawFn) -> FullNetworkConfig:
    return tiny(
        draw(st.sampled_from(["cifar", "imagenet"])),
        channels=draw(st.sampled_from([2, 4, 6])),
        num_cells=draw(st.integers(1, 4)),
        image_size=draw(st.integers(1, 21)),
        image_channels=draw(st.sampled_from([1, 3])),
    )


class Recorder:
    """What the modules of a network really do: shapes of cells, parameters and multiply-accumulates."""

    def __init__(self, network: FullNetwork) -> None:
        self.shapes: list[tuple[int, ...]] = []
        self.macs = 0
        for name, module in network.named_modules():
            if isinstance(module, FullCell):
                module.register_forward_hook(self._see_cell)
            elif isinstance(module, nn.Conv2d | nn.Linear) and not name.startswith("auxiliary"):
                module.register_forward_hook(self._count)
        named = dict(network.named_parameters())
        self.num_params = sum(value.numel() for name, value in named.items() if not name.startswith("auxiliary"))
        self.num_params_with_auxiliary = sum(value.numel() for value in named.values())

    def _see_cell(self, module: nn.Module, inputs: object, output: Tensor) -> None:
        self.shapes.append(tuple(output.shape[1:]))

    def _count(self, module: nn.Module, inputs: object, output: Tensor) -> None:
        assert isinstance(module, nn.Conv2d | nn.Linear)
        # The formula of the convention: output pixels times (channels in / groups) times the kernel's area.
        self.macs += output.numel() // output.shape[0] * module.weight[0].numel()


def check_counts(genotype: Genotype, config: FullNetworkConfig) -> NetworkCount:
    """Formula against hooks, on the meta device, where nothing is computed."""
    with torch.device("meta"):
        network = FullNetwork(genotype, config)
        recorder = Recorder(network)
        network.training_logits(torch.empty(2, config.image_channels, config.image_size, config.image_size))
    count = count_network(genotype, config)
    assert count.total == Cost(recorder.num_params, recorder.macs)
    assert count.num_params_with_auxiliary == recorder.num_params_with_auxiliary
    assert [(cell.channels, cell.size, cell.size) for cell in count.cells] == recorder.shapes
    return count


@pytest.mark.parametrize(
    ("genotype", "motif", "options", "num_params", "with_auxiliary", "num_macs"),
    [
        # Of the released networks: 3.1 M and 4.9 M parameters in the paper.
        pytest.param(CIFAR_TUNED, "cifar", {}, 3_145_490, 3_630_108, 500_128_000, id="CIFAR_TUNED"),
        pytest.param(IMAGENET_TUNED, "imagenet", {}, 4_872_640, 6_133_416, 549_978_816, id="IMAGENET_TUNED"),
        # The public DARTS code prints 3.349342 MB for its network; that is without the auxiliary classifier.
        pytest.param(DARTS_V2, "cifar", {"channels": 36}, 3_349_342, 3_825_768, 528_359_040, id="DARTS_V2"),
        pytest.param(
            DARTS_V2,
            "cifar",
            {"channels": 36, "num_cells": 10, "num_classes": 5},
            1_593_149,
            2_065_730,
            255_221_568,
            id="DARTS_V2, few-shot",
        ),
    ],
)
def test_published_networks_have_their_published_counts(
    genotype: Genotype, motif: str, options: dict[str, int], num_params: int, with_auxiliary: int, num_macs: int
) -> None:
    count = check_counts(genotype, network_config(motif, **options))
    assert count.total == Cost(num_params, num_macs)
    assert count.num_params_with_auxiliary == with_auxiliary


def test_cells_of_the_published_networks_have_their_shapes() -> None:
    cifar = count_network(CIFAR_TUNED, network_config("cifar"))
    assert [(cell.channels, cell.size) for cell in cifar.cells] == [(160, 32)] * 6 + [(320, 16)] * 7 + [(640, 8)] * 7
    assert [index for index, cell in enumerate(cifar.cells) if cell.kind == "reduction"] == [6, 13]
    imagenet = count_network(IMAGENET_TUNED, network_config("imagenet"))
    assert [(cell.channels, cell.size) for cell in imagenet.cells] == [(192, 28)] * 4 + [(384, 14)] * 5 + [(768, 7)] * 5
    assert [index for index, cell in enumerate(imagenet.cells) if cell.kind == "reduction"] == [4, 9]


def test_counts_of_one_cell_are_those_worked_out_by_hand() -> None:
    # Stem: 9 * 1 * 6 weights and 2 * 6 of BatchNorm, 5x5. One reduction cell of 4 channels: two 1x1 blocks of 6 * 4
    # weights and 8 of BatchNorm on 5x5; a reducing skip of 16 + 8 and a separable convolution of 2 * (9 * 4 + 16 + 8),
    # on 3x3. Classifier: 4 * 3 weights and 3 biases.
    config = tiny(channels=2, num_cells=1, num_classes=3, image_size=5, image_channels=1)
    count = count_network(one_node(("skip_connect", 0), ("sep_conv_3x3", 1)), config)
    assert count.total.num_params == (54 + 12) + 2 * (24 + 8) + (16 + 8) + 2 * (36 + 16 + 8) + 15
    assert count.total.num_macs == 54 * 25 + 2 * 24 * 25 + 16 * 9 + 2 * (36 + 16) * 9 + 12
    # 1x1 of 4 * 128, 2x2 of 128 * 768, their BatchNorm, a linear layer of 768 * 3 and 3 biases.
    assert count.num_auxiliary_params == 512 + 256 + 4 * 128 * 768 + 1536 + 2307


@pytest.mark.untraced
@settings(max_examples=30, deadline=None)
@given(genotypes(), configs())
def test_counts_by_formula_are_what_the_network_does(genotype: Genotype, config: FullNetworkConfig) -> None:
    check_counts(genotype, config)


@settings(max_examples=20, deadline=None)
@given(genotypes(), configs())
def test_any_genotype_trains_and_classifies(genotype: Genotype, config: FullNetworkConfig) -> None:
    network = build_full_network(genotype, config, seed=0)
    images = torch.randn(2, config.image_channels, config.image_size, config.image_size + 2)
    logits, auxiliary = network.training_logits(images, 0.3)
    assert auxiliary is not None
    assert logits.shape == auxiliary.shape == (2, 5)
    (logits.square().sum() + auxiliary.square().sum()).backward()
    assert all(torch.isfinite(p.grad).all() for p in network.parameters() if p.grad is not None)
    assert network.classifier.weight.grad is not None and network.auxiliary is not None
    assert network.auxiliary.conv1.weight.grad is not None
    network.eval()
    assert torch.equal(network(images), network.training_logits(images)[0])


@pytest.mark.parametrize("name", sorted(RELEASED))
@pytest.mark.parametrize(("motif", "size"), [("cifar", 13), ("imagenet", 45)])
def test_released_genotypes_take_odd_sizes(name: str, motif: str, size: int) -> None:
    config = tiny(motif, image_size=size)
    count = check_counts(RELEASED[name], config)
    assert build_full_network(RELEASED[name], config, 0)(torch.randn(2, 3, size, size)).shape == (2, 5)
    assert count.cells[-1].size == (4 if motif == "cifar" else 2)  # 13 -> 7 -> 4; 45 -> 23 -> 12 -> 6 -> 3 -> 2


def test_a_node_is_the_sum_of_its_ops() -> None:
    # Against each op by itself: a skip, a pool and a convolution of the second input.
    config = tiny(num_cells=4)
    plan = next(plan for plan in cell_plans(CIFAR_TUNED, config) if plan.kind == "normal")
    cell = FullCell(one_node(("skip_connect", 0), ("max_pool_3x3", 1), ("dil_conv_5x5", 1)), plan).eval()
    before0, before1 = torch.randn(2, 12, 8, 8), torch.randn(2, 12, 8, 8)
    x0 = cell.preprocess[0](before0.relu())
    x1 = cell.preprocess[1](before1.relu())
    conv = cell.nodes[0][2]
    expected = x0 + nn.functional.max_pool2d(x1, 3, 1, 1) + conv.norm(conv.pointwise(conv.depthwise(x1.relu())))
    assert torch.allclose(cell(before0, before1), expected, atol=1e-6)


def test_pools_have_no_batch_norm_and_others_have_one_with_scale_and_shift() -> None:
    network = build_full_network(IMAGENET_TUNED, tiny("imagenet"), 0)
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    assert all(norm.affine and norm.track_running_stats for norm in norms)
    pools = [m for cell in network.cells for m in cell.modules() if isinstance(m, nn.MaxPool2d | nn.AvgPool2d)]
    assert pools and all(not list(pool.children()) for pool in pools)
    assert all(not pool.count_include_pad for pool in pools if isinstance(pool, nn.AvgPool2d))


def test_auxiliary_logits_come_in_training_alone_and_where_there_is_a_tower() -> None:
    images = torch.randn(2, 3, 16, 16)
    network = build_full_network(CIFAR_TUNED, tiny(), 0)
    assert network.training_logits(images)[1] is not None
    assert network.eval().training_logits(images)[1] is None
    assert build_full_network(CIFAR_TUNED, tiny(auxiliary=False), 0).training_logits(images)[1] is None


def test_the_auxiliary_classifier_reads_the_second_reduction() -> None:
    network = build_full_network(CIFAR_TUNED, tiny(num_cells=8), 0)
    seen: list[Tensor] = []
    network.cells[5].register_forward_hook(lambda module, inputs, output: seen.append(output))
    assert network.auxiliary is not None
    network.auxiliary.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    network.training_logits(torch.randn(2, 3, 16, 16))
    assert seen[0] is seen[1] and network.config.cell_kinds[5] == "reduction"


@pytest.mark.parametrize(("motif", "map_size"), [("cifar", 8), ("imagenet", 7)])
def test_auxiliary_pooling_is_the_published_one_at_the_published_size(motif: str, map_size: int) -> None:
    network = build_full_network(CIFAR_TUNED, tiny(motif), 0).eval()
    tower = network.auxiliary
    assert tower is not None
    maps = torch.randn(2, 64, map_size, map_size)
    stride = 3 if motif == "cifar" else 2
    pooled = nn.functional.avg_pool2d(maps.relu(), 5, stride)
    assert pooled.shape[2:] == (2, 2)
    wide = tower.norm2(tower.conv2(tower.norm1(tower.conv1(pooled)).relu())).relu()
    assert torch.allclose(tower(maps), tower.classifier(wide[:, :, 0, 0]), atol=1e-6)
    assert isinstance(tower.norm2, nn.BatchNorm2d) == (motif == "cifar")


def test_drop_path_leaves_out_whole_images_and_keeps_the_expectation() -> None:
    maps = torch.randn(4000, 2, 3, 3)
    dropped = drop_path(maps, 0.25, torch.Generator().manual_seed(0))
    kept = dropped.flatten(1).abs().sum(dim=1) > 0
    assert torch.allclose(dropped[kept], maps[kept] / 0.75)
    assert (dropped[~kept] == 0).all()
    assert abs(kept.double().mean() - 0.75) < 0.03  # more than four standard deviations


def test_drop_path_is_a_function_of_its_generator() -> None:
    network = build_full_network(CIFAR_TUNED, tiny(), 0)
    images = torch.randn(4, 3, 16, 16)

    def run(seed: int) -> Tensor:
        return network.training_logits(images, 0.5, torch.Generator().manual_seed(seed))[0]

    assert torch.equal(run(1), run(1))
    assert not torch.equal(run(1), run(2))


def test_drop_path_never_falls_on_an_identity() -> None:
    # In the normal cell both skips are identities. In the reduction cell the one from an input is a convolution.
    ops = (("max_pool_3x3", 0), ("skip_connect", 1))
    nodes = tuple((GenotypeEdge(source=source, primitive=name),) for name, source in ops)
    genotype = Genotype(cells={"normal": nodes, "reduction": nodes})
    plans = {plan.kind: plan for plan in cell_plans(genotype, tiny())}  # the last of each kind
    for kind, is_kept in (("normal", True), ("reduction", False)):
        before0, before1 = plans[kind].channels_before
        size0 = 16 if plans[kind].input0_is_larger else 8
        cell = FullCell(genotype, plans[kind])
        pooled, skipped = cell(torch.randn(2, before0, size0, size0), torch.randn(2, before1, 8, 8), ALMOST_ONE).chunk(
            2, dim=1
        )
        assert (pooled == 0).all()
        assert (skipped != 0).any() == is_kept


def test_drop_path_is_off_in_evaluation() -> None:
    network = build_full_network(CIFAR_TUNED, tiny(), 0).eval()
    images = torch.randn(2, 3, 16, 16)
    assert torch.equal(network(images, ALMOST_ONE), network(images))


def test_the_same_seed_draws_the_same_network_and_leaves_the_generator_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first = build_full_network(DARTS_V1, tiny(), 3).state_dict()
    assert torch.equal(torch.rand(1), expected)
    second = build_full_network(DARTS_V1, tiny(), 3).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    other = build_full_network(DARTS_V1, tiny(), 4).state_dict()
    assert not torch.equal(first["classifier.weight"], other["classifier.weight"])


@pytest.mark.parametrize("prob", [-0.1, 1.0, 1.5, float("nan")])
def test_an_impossible_drop_path_is_refused(prob: float) -> None:
    network = build_full_network(CIFAR_TUNED, tiny(), 0)
    with pytest.raises(InvalidInputError, match=r"drop_path_prob must be in \[0, 1\)"):
        network(torch.randn(2, 3, 16, 16), prob)


def test_images_of_other_channels_are_refused() -> None:
    network = build_full_network(CIFAR_TUNED, tiny(image_channels=1), 0)
    with pytest.raises(InvalidInputError, match="must have 1 channels, got 3; set image_channels"):
        network(torch.randn(2, 3, 16, 16))


def test_other_kinds_of_cell_are_refused() -> None:
    genotype = Genotype(cells={"flat": CIFAR_TUNED.cells["normal"]})
    for build in (count_network, FullNetwork):
        with pytest.raises(InvalidInputError, match="needs the cell kinds normal and reduction; the genotype has flat"):
            build(genotype, tiny())


@pytest.mark.parametrize(
    ("motif", "options", "complaint"),
    [
        ("svhn", {}, "motif must be one of cifar, imagenet, got 'svhn'"),
        ("cifar", {"channels": 7}, "network: channels: Input should be a multiple of 2"),
        ("cifar", {"num_cells": 0}, "network: num_cells: Input should be greater than or equal to 1"),
        ("cifar", {"image_channels": 2}, "network: image_channels: Input should be 1 or 3"),
        ("cifar", {"depth": 2}, "network: depth: no such field"),
    ],
)
def test_wrong_options_are_refused_by_name(motif: str, options: dict[str, int], complaint: str) -> None:
    with pytest.raises(InvalidInputError, match=complaint):
        network_config(motif, **options)
