"""Adam on a vector: the optimizer that torch has, as a pure function."""

import numpy as np
import pytest
import torch

from common.meta.adam import AdamState, adam_step


@pytest.mark.parametrize(
    ("lr", "betas", "eps"), [(1e-3, (0.9, 0.999), 1e-8), (0.05, (0.0, 0.99), 1e-9), (0.3, (0.5, 0.0), 1e-2)]
)
def test_adam_is_that_of_torch(lr: float, betas: tuple[float, float], eps: float) -> None:
    generator = np.random.default_rng(0)
    start = generator.normal(size=50)
    parameter = torch.nn.Parameter(torch.tensor(start))
    optimizer = torch.optim.Adam([parameter], lr, betas, eps)
    state = AdamState(start, np.zeros(50), np.zeros(50))
    for num_steps in range(1, 301):
        # Magnitudes from far below eps to far above it.
        gradient = generator.normal(size=50) * 10.0 ** generator.integers(-12, 3, 50)
        parameter.grad = torch.tensor(gradient)
        optimizer.step()
        state = adam_step(state, gradient, num_steps, lr, betas, eps)
    moments = optimizer.state[parameter]
    for ours, theirs in zip(state, (parameter, moments["exp_avg"], moments["exp_avg_sq"]), strict=True):
        np.testing.assert_allclose(ours, theirs.detach().numpy(), rtol=1e-10, atol=1e-10)


def test_the_first_step_is_as_long_as_the_rate_whatever_the_gradient() -> None:
    # m / (1 - beta1) is the gradient and v / (1 - beta2) its square: g / (|g| + eps).
    state = AdamState(np.zeros(3), np.zeros(3), np.zeros(3))
    moved = adam_step(state, np.array([4.0, -0.25, 0.0]), 1, 0.1, (0.9, 0.999), 1e-9)
    assert moved.values == pytest.approx([-0.1, 0.1, 0.0], rel=1e-8)
    assert moved.first == pytest.approx([0.4, -0.025, 0.0])
    assert moved.second == pytest.approx([0.016, 0.0000625, 0.0])


def test_the_state_before_is_unchanged() -> None:
    state = AdamState(np.ones(2), np.ones(2), np.ones(2))
    adam_step(state, np.ones(2), 2, 0.1, (0.9, 0.999), 1e-8)
    assert all((part == 1).all() for part in state)
