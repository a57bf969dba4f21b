"""The supernet against a naive one that computes every op of every edge by itself: outputs and all gradients."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from reference.naive_supernet import NaiveSupernet
from torch import Tensor

from common.config import NetworkConfig, SpaceConfig
from common.errors import InvalidInputError
from common.nn.cell import Mixture
from common.nn.native.library import find
from common.nn.supernet import Supernet
from common.space.primitives import PRIMITIVES, PROFILES

pytestmark = pytest.mark.usefixtures("one_thread")

TOLERANCE = 1e-10
HARD_STYLES = ("subset", "one_per_edge", "pair_per_node")
MORE_KINDS = {"early": 1, "down": 2, "late": 1, "narrow": 2}


@dataclass(frozen=True)
class Case:
    """One comparison: a search space, a network, and the shape of what it reads."""

    space: SpaceConfig
    network: NetworkConfig
    image_size: int
    height: int
    width: int
    batch: int = 3
    image_channels: int = 3
    style: str = "soft"
    seed: int = 0


@pytest.fixture(scope="module", autouse=True, params=["native", "pytorch"])
def engine(request: pytest.FixtureRequest) -> Iterator[str]:
    """Everything holds for the native cell and for PyTorch's."""
    library, problem = find()
    if request.param == "native" and library is None:
        pytest.skip(problem)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("common.nn.supernet.choose", lambda engine: library if request.param == "native" else None)
        yield request.param


def small(
    kinds: tuple[str, ...] = ("normal", "reduction"), stride: int = 1, channels: int = 2, image_channels: int = 3
) -> NetworkConfig:
    return NetworkConfig(channels=channels, cells=kinds, heads={16: stride}, image_channels=image_channels)


def draw_active(space: SpaceConfig, style: str, rng: np.random.Generator) -> tuple[tuple[int, ...], ...] | None:
    """Columns that are computed, per edge; `subset` leaves about one edge in four without any."""
    num_ops = len(space.ops)
    topology = space.topology
    if style == "soft":
        return None
    if style == "subset":
        sizes = rng.integers(0, num_ops + 1, topology.num_edges) * (rng.random(topology.num_edges) > 0.25)
        return tuple(tuple(rng.permutation(num_ops)[:size].tolist()) for size in sizes)
    if style == "one_per_edge":
        return tuple((int(rng.integers(num_ops)),) for _ in range(topology.num_edges))
    assert style == "pair_per_node"
    active: list[tuple[int, ...]] = [()] * topology.num_edges
    for node in range(topology.num_nodes):
        into = topology.edges_into(node)
        for pair in rng.choice(len(into) * num_ops, size=2, replace=False):
            edge, column = divmod(int(pair), num_ops)
            active[into[edge]] += (column,)
    return tuple(active)


def draw_mixtures(case: Case) -> dict[str, Mixture]:
    rng = np.random.default_rng(case.seed)
    shape = (case.space.topology.num_edges, len(case.space.ops))
    return {
        kind: Mixture(
            weights=torch.from_numpy(rng.uniform(0.1, 1.0, shape)).requires_grad_(),
            active=draw_active(case.space, case.style, rng),
        )
        for kind in case.space.cell_kinds
    }


def draw_images(case: Case) -> Tensor:
    rng = np.random.default_rng(case.seed + 1)
    shape = (case.batch, case.image_channels, case.height, case.width)
    return torch.from_numpy(rng.standard_normal(shape)).requires_grad_()


def build_pair(case: Case) -> tuple[Supernet, NaiveSupernet]:
    """Both networks in double precision with equal weights."""
    with torch.random.fork_rng():
        torch.manual_seed(case.seed)
        real = Supernet(case.space, case.network).double()
        naive = NaiveSupernet(case.space, case.network).double()
    naive.load_state_dict(real.state_dict(), strict=True)
    return real, naive


def gradients_of(network: torch.nn.Module, case: Case) -> tuple[Tensor, dict[str, Tensor]]:
    """Features, and the gradient of a random projection of them to everything that has one; zeros where none."""
    images, mixtures = draw_images(case), draw_mixtures(case)
    features = network(images, mixtures, case.image_size)
    inputs = dict(network.named_parameters())
    inputs["images"] = images
    inputs |= {f"mixtures.{kind}": mixture.weights for kind, mixture in mixtures.items()}
    if not features.requires_grad:
        return features, {name: torch.zeros_like(tensor) for name, tensor in inputs.items()}
    direction = torch.from_numpy(np.random.default_rng(case.seed + 2).standard_normal(tuple(features.shape)))
    grads = torch.autograd.grad((features * direction).sum(), list(inputs.values()), allow_unused=True)
    return features.detach(), {
        name: torch.zeros_like(tensor) if grad is None else grad
        for (name, tensor), grad in zip(inputs.items(), grads, strict=True)
    }


def assert_close(name: str, actual: Tensor, expected: Tensor) -> None:
    assert actual.shape == expected.shape, name
    assert torch.isfinite(actual).all(), name
    error = (actual - expected).abs().max().item()
    allowed = TOLERANCE * max(expected.abs().max().item(), 1e-2)
    assert error <= allowed, f"{name}: differs by {error:.1e}, allowed are {allowed:.1e}"


def assert_exact(case: Case) -> None:
    real, naive = build_pair(case)
    features, grads = gradients_of(real, case)
    expected_features, expected_grads = gradients_of(naive, case)
    assert_close("features", features, expected_features)
    assert grads.keys() == expected_grads.keys()
    for name, grad in grads.items():
        assert_close(name, grad, expected_grads[name])


# Exactness


@pytest.mark.parametrize("style", ["soft", *HARD_STYLES])
@pytest.mark.parametrize("profile", sorted(PROFILES))
def test_outputs_and_gradients_are_exact_for_every_profile(profile, style):
    assert_exact(Case(SpaceConfig(profile=profile), small(), 16, 11, 11, style=style))


@pytest.mark.parametrize("style", ["soft", *HARD_STYLES])
@pytest.mark.parametrize("kinds", [("normal",), ("reduction",), ("reduction", "reduction"), ("reduction", "normal")])
def test_outputs_and_gradients_are_exact_for_every_order_of_cells(kinds, style):
    space = SpaceConfig(num_nodes=2, cell_kinds={kind: SpaceConfig().cell_kinds[kind] for kind in set(kinds)})
    assert_exact(Case(space, small(kinds), 16, 9, 9, style=style))


@pytest.mark.parametrize("primitive", [name for name in PRIMITIVES if name != "none"])
@pytest.mark.parametrize("kind", ["normal", "reduction"])
@pytest.mark.parametrize("size", [(8, 8), (15, 19), (7, 10)])
def test_every_op_is_exact_by_itself(primitive, kind, size):
    space = SpaceConfig(primitives=(primitive, "none"), num_nodes=2, cell_kinds={kind: SpaceConfig().cell_kinds[kind]})
    assert_exact(Case(space, small((kind,), channels=4), 16, *size))


@pytest.mark.parametrize("num_nodes", [1, 2, 3, 4])
@pytest.mark.parametrize("style", ["soft", "subset"])
def test_outputs_and_gradients_are_exact_for_every_number_of_nodes(num_nodes, style):
    assert_exact(Case(SpaceConfig(num_nodes=num_nodes), small(), 16, 10, 10, style=style))


@pytest.mark.parametrize("size", [(21, 21), (15, 19), (13, 8), (5, 5), (3, 2), (2, 2), (1, 1)])
@pytest.mark.parametrize("style", ["soft", "subset"])
def test_outputs_and_gradients_are_exact_for_odd_and_tiny_images(size, style):
    space = SpaceConfig(num_nodes=2)
    assert_exact(Case(space, small(("normal", "reduction", "normal", "reduction")), 16, *size, batch=4, style=style))


@pytest.mark.parametrize("batch", [2, 3, 4, 5])
def test_outputs_and_gradients_are_exact_for_every_batch(batch):
    assert_exact(Case(SpaceConfig(num_nodes=2), small(), 16, 9, 9, batch=batch))


@pytest.mark.parametrize("stride", [1, 2, 4, 8])
@pytest.mark.parametrize("channels", [2, 4, 8])
def test_outputs_and_gradients_are_exact_for_every_head_stride(stride, channels):
    space = SpaceConfig(primitives=("none", "max_pool_3x3", "sep_conv_3x3"), num_nodes=1)
    assert_exact(Case(space, small(stride=stride, channels=channels), 16, 19, 22))


@pytest.mark.parametrize(("network_channels", "image_channels"), [(3, 1), (1, 3), (1, 1)])
@pytest.mark.parametrize("stride", [1, 4])
def test_grayscale_is_repeated_and_colour_is_averaged(network_channels, image_channels, stride):
    network = small(stride=stride, image_channels=network_channels)
    assert_exact(Case(SpaceConfig(num_nodes=1), network, 16, 12, 12, image_channels=image_channels))


@pytest.mark.parametrize("style", ["soft", *HARD_STYLES])
def test_outputs_and_gradients_are_exact_with_more_than_two_kinds_of_cell(style):
    space = SpaceConfig(num_nodes=2, cell_kinds=MORE_KINDS)
    assert_exact(Case(space, small(("early", "down", "late", "early", "narrow")), 16, 13, 13, style=style))


@pytest.mark.parametrize("image_size", [8, 16, 32])
def test_every_image_size_has_its_own_head(image_size):
    network = NetworkConfig(channels=2, cells=("normal",), heads={32: 4, 8: 1, 16: 2})
    case = Case(SpaceConfig(num_nodes=1, cell_kinds={"normal": 1}), network, image_size, image_size, image_size)
    assert_exact(case)
    _, grads = gradients_of(build_pair(case)[0], case)
    moved = {name.split(".")[1] for name, grad in grads.items() if name.startswith("heads.") and grad.any()}
    assert moved == {str(image_size)}


def test_weights_of_zero_and_below_count_like_any_other():
    case = Case(SpaceConfig(num_nodes=2), small(), 16, 9, 9)
    real, naive = build_pair(case)
    gradients = []
    for network in (real, naive):
        mixtures = draw_mixtures(case)
        for mixture in mixtures.values():
            with torch.no_grad():
                mixture.weights[:, ::2] = 0.0
                mixture.weights[0] *= -1
        network(draw_images(case), mixtures, 16).square().sum().backward()
        gradients.append({kind: mixture.weights.grad for kind, mixture in mixtures.items()})
    for kind, grad in gradients[0].items():
        assert grad[:, 1::2].any()
        assert_close(kind, grad, gradients[1][kind])


@st.composite
def cases(draw, styles):
    num_kinds = draw(st.integers(1, 3))
    strides = {f"kind{index}": draw(st.sampled_from([1, 2])) for index in range(num_kinds)}
    kinds = draw(st.permutations([*strides, *draw(st.lists(st.sampled_from(sorted(strides)), max_size=1))]))
    # Not only the profiles: any order, any selection.
    primitives = draw(
        st.one_of(
            st.sampled_from(list(PROFILES.values())),
            st.lists(st.sampled_from(PRIMITIVES), min_size=2, max_size=6, unique=True).map(tuple),
        )
    )
    stride = draw(st.sampled_from([1, 2, 4]))
    num_reductions = sum(strides[kind] == 2 for kind in kinds)
    assume(num_reductions <= 2)
    # The smallest map keeps 2 x 2 pixels: BatchNorm over two values is a sign function, and no double is precise then.
    pixels = st.builds(
        lambda smallest, less: smallest * stride * 2**num_reductions - less,
        st.integers(2, 3 if num_reductions else 9),
        st.integers(0, stride * 2**num_reductions - 1),
    )
    return Case(
        space=SpaceConfig(primitives=primitives, num_nodes=draw(st.integers(1, 4)), cell_kinds=strides),
        network=small(tuple(kinds), stride, draw(st.sampled_from([2, 4])), draw(st.sampled_from([1, 3]))),
        image_size=16,
        height=draw(pixels),
        width=draw(pixels),
        batch=draw(st.integers(2, 5)),
        image_channels=draw(st.sampled_from([1, 3])),
        style=draw(st.sampled_from(styles)),
        seed=draw(st.integers(0, 2**31)),
    )


@pytest.mark.untraced
@settings(max_examples=30, deadline=None, derandomize=True)
@given(cases(styles=("soft",)))
def test_random_soft_mixtures_are_exact(case):
    assert_exact(case)


@pytest.mark.untraced
@settings(max_examples=50, deadline=None, derandomize=True)
@given(cases(styles=HARD_STYLES))
def test_random_hard_mixtures_are_exact(case):
    assert_exact(case)


@pytest.mark.parametrize("style", ["soft", "one_per_edge"])
def test_second_derivatives_are_exact(style, engine):
    # Few-shot adaptation differentiates through its inner steps.
    case = Case(SpaceConfig(num_nodes=2), small(), 16, 8, 8, style=style)
    results = []
    if engine == "native":
        network, _ = build_pair(case)
        loss = network(draw_images(case), draw_mixtures(case), 16).square().sum()
        with pytest.raises(InvalidInputError, match="network.engine must be pytorch"):
            torch.autograd.grad(loss, list(network.parameters()), create_graph=True, allow_unused=True)
        return
    for network in build_pair(case):
        mixtures = draw_mixtures(case)
        inputs = [*network.parameters(), *(mixture.weights for mixture in mixtures.values())]
        loss = network(draw_images(case), mixtures, 16).square().sum()
        grads = torch.autograd.grad(loss, inputs, create_graph=True, allow_unused=True)
        used = [(tensor, grad) for tensor, grad in zip(inputs, grads, strict=True) if grad is not None]
        norm = sum(grad.square().sum() for _, grad in used)
        curvature = torch.autograd.grad(norm, inputs, allow_unused=True)
        results.append(
            [torch.zeros_like(tensor) if grad is None else grad for tensor, grad in zip(inputs, curvature, strict=True)]
        )
    largest = max(expected.abs().max().item() for expected in results[1])
    assert largest > 0
    for actual, expected in zip(*results, strict=True):
        assert (actual - expected).abs().max().item() <= 1e-9 * largest


# Hard mode


@pytest.mark.parametrize("style", HARD_STYLES)
def test_ops_that_are_not_active_get_no_gradient(style):
    case = Case(SpaceConfig(), small(), 16, 9, 9, style=style)
    real, _ = build_pair(case)
    _, grads = gradients_of(real, case)
    num_inactive_parameters = 0
    for kind, mixture in draw_mixtures(case).items():
        assert mixture.active is not None
        for edge, columns in enumerate(mixture.active):
            inactive = [column for column in range(len(case.space.ops)) if column not in columns]
            assert not grads[f"mixtures.{kind}"][edge, inactive].any()
            for position, cell_kind in enumerate(case.network.cells):
                if cell_kind != kind:
                    continue
                for column in inactive:
                    prefix = f"cells.{position}.edges.{edge}.{case.space.ops[column]}."
                    for name, grad in grads.items():
                        if name.startswith(prefix):
                            num_inactive_parameters += 1
                            assert not grad.any(), name
    assert num_inactive_parameters > 0


@pytest.mark.parametrize("style", HARD_STYLES)
def test_weights_of_ops_that_are_not_active_do_not_matter(style):
    case = Case(SpaceConfig(num_nodes=3), small(), 16, 9, 9, style=style)
    real, _ = build_pair(case)
    mixtures = draw_mixtures(case)
    changed = {}
    for kind, mixture in mixtures.items():
        weights = torch.full_like(mixture.weights, 1e6)
        for edge, columns in enumerate(mixture.active):
            weights[edge, list(columns)] = mixture.weights[edge, list(columns)].detach()
        changed[kind] = replace(mixture, weights=weights)
    images = draw_images(case)
    assert torch.equal(real(images, mixtures, 16), real(images, changed, 16))


def test_hard_mode_with_every_op_active_is_soft_mode():
    case = Case(SpaceConfig(num_nodes=2), small(), 16, 9, 9)
    real, _ = build_pair(case)
    soft = draw_mixtures(case)
    everything = (tuple(range(len(case.space.ops))),) * case.space.topology.num_edges
    hard = {kind: replace(mixture, active=everything) for kind, mixture in soft.items()}
    images = draw_images(case)
    assert_close("features", real(images, hard, 16), real(images, soft, 16))


@pytest.mark.parametrize("kinds", [("normal",), ("reduction",), ("normal", "reduction", "normal")])
@pytest.mark.parametrize("columns", [(), (0,)], ids=["nothing", "none"])
def test_cells_without_an_active_op_put_out_zeros(kinds, columns):
    space = SpaceConfig(num_nodes=2, cell_kinds={kind: SpaceConfig().cell_kinds[kind] for kind in set(kinds)})
    case = Case(space, small(kinds), 16, 9, 7)
    assert space.ops[0] == "none"
    real, naive = build_pair(case)
    mixtures = {
        kind: replace(mixture, active=(columns,) * space.topology.num_edges)
        for kind, mixture in draw_mixtures(case).items()
    }
    features = real(draw_images(case), mixtures, 16)
    assert features.shape == naive(draw_images(case), mixtures, 16).shape
    assert not features.any()


# What forward promises


@pytest.mark.parametrize("style", ["soft", "one_per_edge"])
@pytest.mark.parametrize("with_grad", [True, False])
def test_forward_leaves_its_inputs_and_weights_alone(style, with_grad):
    case = Case(SpaceConfig(num_nodes=2), small(), 16, 9, 9, style=style)
    real, _ = build_pair(case)
    images, mixtures = draw_images(case).detach(), draw_mixtures(case)
    state = {name: tensor.clone() for name, tensor in real.state_dict().items()}
    with torch.set_grad_enabled(with_grad):
        real(images, mixtures, 16)
    assert torch.equal(images, draw_images(case))
    for kind, mixture in draw_mixtures(case).items():
        assert torch.equal(mixtures[kind].weights, mixture.weights)
        assert mixtures[kind].active == mixture.active
    assert real.state_dict().keys() == state.keys()
    for name, tensor in real.state_dict().items():
        assert torch.equal(tensor, state[name]), name


@pytest.mark.parametrize("style", ["soft", "one_per_edge"])
def test_forward_is_the_same_without_gradients(style):
    case = Case(SpaceConfig(), small(), 16, 9, 9, style=style)
    real, _ = build_pair(case)
    images, mixtures = draw_images(case), draw_mixtures(case)
    expected = real(images, mixtures, 16)
    with torch.no_grad():
        assert_close("no_grad", real(images, mixtures, 16), expected)
    with torch.inference_mode():
        assert_close("inference_mode", real(images, mixtures, 16), expected)


def test_training_and_evaluation_mode_are_the_same():
    case = Case(SpaceConfig(), small(), 16, 9, 9)
    real, _ = build_pair(case)
    images, mixtures = draw_images(case), draw_mixtures(case)
    in_training = real.train()(images, mixtures, 16)
    in_evaluation = real.eval()(images, mixtures, 16)
    assert torch.equal(in_training, in_evaluation)


def test_forward_does_not_depend_on_what_was_computed_before():
    case = Case(SpaceConfig(num_nodes=2), small(), 16, 9, 9)
    real, _ = build_pair(case)
    first = real(draw_images(case), draw_mixtures(case), 16)
    other = replace(case, height=12, width=10, batch=5, style="subset", seed=9)
    real(draw_images(other), draw_mixtures(other), 16)
    assert torch.equal(real(draw_images(case), draw_mixtures(case), 16), first)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_memory_layout_of_images_does_not_matter(dtype):
    case = Case(SpaceConfig(num_nodes=2), small(), 16, 9, 9)
    real, _ = build_pair(case)
    real = real.to(dtype)
    results = []
    for layout in (torch.channels_last, torch.contiguous_format):
        images = draw_images(case).detach().to(dtype).contiguous(memory_format=layout).requires_grad_()
        mixtures = {kind: replace(m, weights=m.weights.detach().to(dtype)) for kind, m in draw_mixtures(case).items()}
        features = real(images, mixtures, 16)
        (grad,) = torch.autograd.grad((features * features.detach().sin()).sum(), images)
        results.append((features, grad))
    for actual, expected in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-3 * expected.abs().max().item())


def test_weights_may_be_passed_instead_of_the_modules_own():
    case = Case(SpaceConfig(num_nodes=2), small(), 16, 9, 9)
    real, _ = build_pair(case)
    other, _ = build_pair(replace(case, seed=5))
    images, mixtures = draw_images(case), draw_mixtures(case)
    passed = torch.func.functional_call(real, dict(other.named_parameters()), (images, mixtures, 16))
    assert torch.equal(passed, other(images, mixtures, 16))
    assert not torch.equal(passed, real(images, mixtures, 16))


def test_features_are_as_many_as_the_last_cell_has_channels():
    space = SpaceConfig(num_nodes=3)
    case = Case(space, small(("reduction", "normal", "reduction"), channels=4), 16, 9, 9, batch=2)
    real, _ = build_pair(case)
    assert real(draw_images(case), draw_mixtures(case), 16).shape == (2, 3 * 4 * 2 * 2)


@pytest.mark.parametrize("image_size", [9, 0, 24])
def test_an_image_size_without_a_head_is_refused_with_those_that_have_one(image_size):
    network = NetworkConfig(channels=2, cells=("normal", "reduction"), heads={16: 2, 32: 4})
    case = Case(SpaceConfig(num_nodes=1), network, image_size, 16, 16)
    real, _ = build_pair(case)
    with pytest.raises(InvalidInputError, match=rf"{image_size}\D+16, 32"):
        real(draw_images(case), draw_mixtures(case), image_size)


@pytest.mark.parametrize("shape", [(9, 8), (8, 9), (9, 10), (10, 9)])
def test_architecture_weights_of_the_wrong_shape_are_refused(shape):
    case = Case(SpaceConfig(num_nodes=3), small(), 16, 9, 9)  # 9 edges, 9 ops
    real, _ = build_pair(case)
    mixtures = draw_mixtures(case)
    mixtures["reduction"] = Mixture(weights=torch.ones(shape, dtype=torch.float64), active=None)
    with pytest.raises(InvalidInputError, match=r"'reduction'.*\(9, 9\)"):
        real(draw_images(case), mixtures, 16)


@pytest.mark.parametrize("kind", ["normal", "reduction"])
def test_a_kind_of_cell_without_architecture_weights_is_refused_by_name(kind):
    case = Case(SpaceConfig(num_nodes=1), small(), 16, 9, 9)
    real, _ = build_pair(case)
    mixtures = draw_mixtures(case)
    del mixtures[kind]
    with pytest.raises(InvalidInputError, match=kind):
        real(draw_images(case), mixtures, 16)


def test_a_list_of_active_ops_that_does_not_fit_the_edges_is_refused():
    case = Case(SpaceConfig(num_nodes=1), small(), 16, 9, 9)
    real, _ = build_pair(case)
    mixtures = draw_mixtures(case)
    mixtures["normal"] = replace(mixtures["normal"], active=((0,),))
    with pytest.raises(InvalidInputError, match="'normal'"):
        real(draw_images(case), mixtures, 16)


@pytest.mark.parametrize("image_channels", [2, 4])
def test_images_that_are_neither_grayscale_nor_colour_are_refused(image_channels):
    case = Case(SpaceConfig(num_nodes=1), small(), 16, 9, 9, image_channels=image_channels)
    real, _ = build_pair(case)
    with pytest.raises(InvalidInputError, match=f"got {image_channels}"):
        real(draw_images(case), draw_mixtures(case), 16)


# What it holds


def test_the_state_is_weights_alone():
    real = Supernet(SpaceConfig(profile="base+"), small())
    assert list(real.buffers()) == []
    assert real.state_dict().keys() == dict(real.named_parameters()).keys()
    assert all(name.endswith(".weight") for name in real.state_dict())


@pytest.mark.parametrize("profile", sorted(PROFILES))
def test_names_and_shapes_of_all_weights_are_those_of_the_naive_network(profile):
    space = SpaceConfig(profile=profile, cell_kinds=MORE_KINDS)
    network = NetworkConfig(channels=6, cells=("down", "early", "narrow", "late", "down"), heads={8: 1, 32: 4, 64: 16})
    real = {name: tuple(tensor.shape) for name, tensor in Supernet(space, network).state_dict().items()}
    naive = {name: tuple(tensor.shape) for name, tensor in NaiveSupernet(space, network).state_dict().items()}
    assert real == naive


def test_darts_body_has_the_published_number_of_weights():
    # The public DARTS search network (8 ops, C = 16, 8 cells, 10 classes) has 1,930,618 parameters. Its stem, a 3x3
    # convolution from 3 to 48 channels with an affine BatchNorm, and its classifier are not part of a body.
    stem = 3 * 48 * 9 + 2 * 48
    classifier = 256 * 10 + 10
    real = Supernet(SpaceConfig(profile="darts"), NetworkConfig())
    body = sum(tensor.numel() for name, tensor in real.named_parameters() if name.startswith("cells."))
    assert body == 1_930_618 - stem - classifier == 1_926_656
    assert {name.split(".")[0] for name, _ in real.named_parameters()} == {"cells", "heads"}


def test_darts_heads_have_the_number_of_weights_of_the_specification():
    real = Supernet(SpaceConfig(profile="darts"), NetworkConfig())
    sizes = {
        size: [tuple(tensor.shape) for name, tensor in real.named_parameters() if name.startswith(f"heads.{size}.")]
        for size in (32, 64, 224)
    }
    assert sizes == {
        32: [(48, 3, 3, 3)],
        64: [(48, 3, 3, 3)],
        224: [(8, 3, 3, 3), (16, 8, 3, 3), (48, 16, 3, 3)],
    }


def test_darts_space_has_224_architecture_logits():
    space = SpaceConfig(profile="darts")
    assert len(space.cell_kinds) * space.topology.num_edges * len(space.ops) == 2 * 14 * 8 == 224
