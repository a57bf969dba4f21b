"""Parameters as flat vectors: the vector, the module and the gradients share their memory."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from common.config import NetworkConfig, SpaceConfig
from common.meta.params import (
    BODY,
    BoundVector,
    Layout,
    flatten,
    head_vector,
    layout_of,
    named_vectors,
    spread,
    sum_per_tensor,
)
from common.nn.supernet import build_supernet


def small_module() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2, bias=False))


def bound_module() -> tuple[nn.Module, BoundVector]:
    module = small_module()
    return module, BoundVector(list(module.named_parameters()))


def test_layout_lists_names_and_shapes_in_order():
    layout = layout_of(list(small_module().named_parameters()))
    assert layout == Layout((("0.weight", (4, 3)), ("0.bias", (4,)), ("1.weight", (2, 4))))
    assert layout.sizes == (12, 4, 8)
    assert layout.size == 24


def test_layout_counts_a_scalar_as_one_element():
    assert Layout((("scale", ()), ("matrix", (2, 3)))).sizes == (1, 6)
    assert Layout(()).size == 0


def test_flatten_joins_row_by_row_and_copies():
    module = nn.Module()
    module.a = nn.Parameter(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    module.b = nn.Parameter(torch.tensor([5.0]))
    flat = flatten(list(module.named_parameters()))
    assert flat.tolist() == [1, 2, 3, 4, 5]
    assert not flat.requires_grad
    flat.zero_()
    assert module.a.sum() == 10


def test_binding_keeps_what_the_module_computes():
    inputs = torch.randn(5, 3, generator=torch.Generator().manual_seed(1))
    expected = small_module()(inputs)
    module, bound = bound_module()
    assert torch.equal(module(inputs), expected)
    assert torch.equal(bound.values, flatten(list(module.named_parameters())))


def test_writing_to_the_vector_changes_the_module():
    module, bound = bound_module()
    bound.values.data.copy_(torch.arange(24.0))
    assert module[0].weight.tolist() == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10, 11]]
    assert module[0].bias.tolist() == [12, 13, 14, 15]
    assert module[1].weight.tolist() == [[16, 17, 18, 19], [20, 21, 22, 23]]


def test_gradients_of_the_module_are_views_of_the_vectors():
    module, bound = bound_module()
    inputs = torch.randn(5, 3, generator=torch.Generator().manual_seed(1))
    plain = small_module()
    plain(inputs).square().sum().backward()
    expected = torch.cat([parameter.grad.reshape(-1) for parameter in plain.parameters()])

    for round_number in range(3):
        bound.zero_grad_()
        assert not bound.gradient.any()
        module(inputs).square().sum().backward()
        assert torch.equal(bound.gradient, expected), round_number
        for parameter in module.parameters():
            assert parameter.grad.untyped_storage().data_ptr() == bound.gradient.untyped_storage().data_ptr()


def test_gradients_add_up_until_they_are_set_to_zero():
    module, bound = bound_module()
    inputs = torch.ones(2, 3)
    module(inputs).sum().backward()
    once = bound.gradient.clone()
    module(inputs).sum().backward()
    assert torch.equal(bound.gradient, 2 * once)


@pytest.mark.parametrize(
    "optimizer",
    [lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.01), lambda p: torch.optim.Adam(p, 0.1)],
    ids=["sgd", "adam"],
)
def test_an_optimizer_of_the_vector_moves_the_module_as_one_of_its_parameters_would(optimizer):
    inputs = torch.randn(5, 3, generator=torch.Generator().manual_seed(1))
    module, bound = bound_module()
    of_vector = optimizer([bound.values])
    plain = small_module()
    of_parameters = optimizer(plain.parameters())
    for _ in range(4):
        bound.zero_grad_()
        module(inputs).square().sum().backward()
        of_vector.step()
        of_parameters.zero_grad()
        plain(inputs).square().sum().backward()
        of_parameters.step()
    for name, parameter in plain.named_parameters():
        assert not torch.equal(parameter, dict(small_module().named_parameters())[name])
        torch.testing.assert_close(module.get_parameter(name), parameter)


def test_binding_again_leaves_the_vector_before_behind():
    module, first = bound_module()
    second = BoundVector(list(module.named_parameters()))
    first.values.data.zero_()
    assert module[0].weight.abs().sum() > 0
    module(torch.ones(1, 3)).sum().backward()
    assert second.gradient.any()
    assert not first.gradient.any()


def test_spread_repeats_each_value_for_its_tensor():
    layout = Layout((("a", (2, 2)), ("b", ()), ("c", (3,))))
    assert spread(torch.tensor([1.0, 2.0, 3.0]), layout).tolist() == [1, 1, 1, 1, 2, 3, 3, 3]


def test_sum_per_tensor_sums_each_tensor():
    layout = Layout((("a", (2, 2)), ("b", ()), ("c", (3,))))
    assert sum_per_tensor(torch.arange(8.0), layout).tolist() == [6, 4, 18]


shapes = st.lists(st.lists(st.integers(1, 4), max_size=3).map(tuple), min_size=1, max_size=5)


@settings(deadline=None, max_examples=50)
@given(shapes, st.integers(0, 2**32 - 1))
def test_spread_and_sum_per_tensor_are_transposes(shapes: list[tuple[int, ...]], seed: int):
    layout = Layout(tuple((str(index), shape) for index, shape in enumerate(shapes)))
    rng = np.random.default_rng(seed)
    per_tensor, elements = torch.tensor(rng.normal(size=len(shapes))), torch.tensor(rng.normal(size=layout.size))
    left = torch.dot(spread(per_tensor, layout), elements)
    right = torch.dot(per_tensor, sum_per_tensor(elements, layout))
    assert left.item() == pytest.approx(right.item(), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("heads", [{16: 4}, {32: 2, 8: 1, 224: 8}], ids=["one_head", "three_heads"])
def test_vectors_are_the_body_and_one_per_head_with_every_parameter_in_one(heads: dict[int, int]):
    network = NetworkConfig(channels=4, cells=("normal", "reduction"), heads=heads)
    supernet = build_supernet(SpaceConfig(num_nodes=2), network, seed=0)
    vectors = named_vectors(supernet)

    assert set(vectors) == {BODY} | {f"head/{size}" for size in heads}
    order = [name for name, _ in supernet.named_parameters()]
    for vector, named in vectors.items():
        names = [name for name, _ in named]
        assert names == sorted(names, key=order.index)
        prefix = "cells." if vector == BODY else f"heads.{vector.removeprefix('head/')}."
        assert all(name.startswith(prefix) for name in names)
        for name, parameter in named:
            assert parameter is supernet.get_parameter(name)
    assert sorted(name for named in vectors.values() for name, _ in named) == sorted(order)


def test_head_vectors_are_named_by_image_size():
    assert head_vector(224) == "head/224"
