"""The local posterior over weights: its gradients against autograd through the sampling and torch's own divergence."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence

from common.meta.params import BoundVector
from common.streams import stream
from workers.weights import LocalWeights

pytestmark = pytest.mark.usefixtures("one_thread")

BETA = 0.3
# float32 is what workers use; float64 shows that what is left there is rounding.
DTYPES = pytest.mark.parametrize(
    ("dtype", "rtol"), [(np.float32, 1e-5), (np.float64, 1e-10)], ids=["float32", "float64"]
)
SCALES = pytest.mark.parametrize("scale", ["tensor", "element"])


class Setup:
    """A small network with two weight matrices and two bias vectors, 5 * 3 + 5 + 2 * 5 + 2 = 32 weights."""

    def __init__(self, dtype: type, scale: str | None, precision: float = 0.0) -> None:
        self.module = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2))
        self.module.to(torch.from_numpy(np.empty(0, dtype)).dtype)
        rng = np.random.default_rng(0)
        self.sizes = [15, 5, 10, 2]
        self.mu = rng.normal(size=32).astype(dtype)
        count = {None: 0, "tensor": 4, "element": 32}[scale]
        self.log_sigma = None if scale is None else rng.normal(-1, 0.3, count).astype(dtype)
        self.inputs = torch.tensor(rng.normal(size=(7, 3)).astype(dtype))
        self.targets = torch.tensor(rng.normal(size=(7, 2)).astype(dtype))
        bound = BoundVector(list(self.module.named_parameters()))
        self.local = LocalWeights(bound, self.mu, self.log_sigma, precision)
        # Away from the prior, where the divergence has a gradient.
        self.m = (self.mu + rng.normal(0, 0.5, 32)).astype(dtype)
        self.local.mean.data.copy_(torch.tensor(self.m))
        if self.log_sigma is not None:
            self.log_s = (self.log_sigma + rng.normal(0, 0.5, count)).astype(dtype)
            self.local.log_s.data.copy_(torch.tensor(self.log_s))

    def loss(self) -> Tensor:
        return ((self.module(self.inputs) - self.targets) ** 2).mean()

    def per_element(self, values: Tensor) -> Tensor:
        return (
            values if len(values) == 32 else torch.cat([v.expand(n) for v, n in zip(values, self.sizes, strict=True)])
        )

    def loss_of(self, theta: Tensor) -> Tensor:
        """The same network, written out."""
        hidden = torch.tanh(self.inputs @ theta[:15].reshape(5, 3).T + theta[15:20])
        return ((hidden @ theta[20:30].reshape(2, 5).T + theta[30:32] - self.targets) ** 2).mean()

    def divergence_of(self, m: Tensor, log_s: Tensor) -> Tensor:
        sigma = self.per_element(torch.tensor(self.log_sigma)).exp()
        return kl_divergence(Normal(m, self.per_element(log_s).exp()), Normal(torch.tensor(self.mu), sigma)).sum()


@DTYPES
@SCALES
def test_gaussian_gradients_equal_autograd_through_the_sampling(dtype: type, rtol: float, scale: str):
    setup = Setup(dtype, scale)
    setup.local.use_noise_(setup.local.draw_noise(stream(3)))
    setup.local.zero_grad_()
    setup.loss().backward()
    setup.local.add_divergence_grad_(BETA)

    m = torch.tensor(setup.m, requires_grad=True)
    log_s = torch.tensor(setup.log_s, requires_grad=True)
    eps = torch.tensor(stream(3).standard_normal(32, dtype=np.float32))
    objective = setup.loss_of(m + setup.per_element(log_s).exp() * eps) + BETA * setup.divergence_of(m, log_s)
    of_m, of_log_s = torch.autograd.grad(objective, [m, log_s])

    np.testing.assert_allclose(setup.local.mean.grad, of_m, rtol=rtol, atol=rtol)
    np.testing.assert_allclose(setup.local.log_s.grad, of_log_s, rtol=rtol, atol=rtol)


@DTYPES
@SCALES
def test_gaussian_divergence_equals_torch(dtype: type, rtol: float, scale: str):
    setup = Setup(dtype, scale)
    expected = setup.divergence_of(torch.tensor(setup.m), torch.tensor(setup.log_s))
    assert float(expected) > 1
    assert float(setup.local.divergence()) == pytest.approx(float(expected), rel=rtol)


@SCALES
def test_gaussian_divergence_has_no_gradient_at_the_prior(scale: str):
    setup = Setup(np.float32, scale)
    setup.local.mean.data.copy_(torch.tensor(setup.mu))
    setup.local.log_s.data.copy_(torch.tensor(setup.log_sigma))
    setup.local.use_noise_(setup.local.draw_noise(stream(4)))
    setup.local.zero_grad_()
    setup.local.add_divergence_grad_(1000.0)
    assert not setup.local.mean.grad.any()
    assert not setup.local.log_s.grad.any()
    assert float(setup.local.divergence()) == pytest.approx(0, abs=1e-5)


@SCALES
def test_gaussian_gradients_of_a_step_replace_those_of_the_step_before(scale: str):
    setup = Setup(np.float32, scale)
    gradients = []
    for _ in range(2):
        setup.local.use_noise_(setup.local.draw_noise(stream(3)))
        setup.local.zero_grad_()
        setup.loss().backward()
        setup.local.add_divergence_grad_(BETA)
        gradients.append((setup.local.mean.grad.clone(), setup.local.log_s.grad.clone()))
    assert torch.equal(gradients[0][0], gradients[1][0])
    assert torch.equal(gradients[0][1], gradients[1][1])


@SCALES
def test_gaussian_weights_have_the_posteriors_mean_and_deviation(scale: str):
    setup = Setup(np.float32, scale)
    generator = stream(5)
    draws = []
    for _ in range(400):
        setup.local.use_noise_(setup.local.draw_noise(generator))
        draws.append(torch.cat([p.detach().reshape(-1) for p in setup.module.parameters()]))
    drawn = torch.stack(draws).numpy()
    s = setup.per_element(torch.tensor(setup.log_s)).exp().numpy()
    np.testing.assert_array_less(np.abs(drawn.mean(0) - setup.m), 5 * s / np.sqrt(400))
    np.testing.assert_allclose(drawn.std(0), s, rtol=0.17)


def test_drawing_depends_on_the_stream_alone_and_leaves_the_mean():
    setup = Setup(np.float32, "tensor")
    outputs = []
    for seed in (6, 7, 6):
        setup.local.use_noise_(setup.local.draw_noise(stream(seed)))
        outputs.append(setup.loss().item())
    assert outputs[0] == outputs[2] != outputs[1]
    assert np.array_equal(setup.local.mean.detach(), setup.m)


def test_evaluation_uses_the_mean():
    setup = Setup(np.float64, "element")
    setup.local.use_noise_(setup.local.draw_noise(stream(8)))
    setup.local.use_mean_()
    assert setup.loss().item() == pytest.approx(setup.loss_of(torch.tensor(setup.m)).item(), rel=1e-12)


@DTYPES
@pytest.mark.parametrize("precision", [0.0, 2.5])
def test_map_gradient_equals_autograd(dtype: type, rtol: float, precision: float):
    setup = Setup(dtype, None, precision)
    setup.local.use_noise_(setup.local.draw_noise(stream(3)))
    setup.local.zero_grad_()
    setup.loss().backward()
    setup.local.add_divergence_grad_(BETA)

    m = torch.tensor(setup.m, requires_grad=True)
    half_square = precision / 2 * ((m - torch.tensor(setup.mu)) ** 2).sum()
    (expected,) = torch.autograd.grad(setup.loss_of(m) + BETA * half_square, [m])

    np.testing.assert_allclose(setup.local.mean.grad, expected, rtol=rtol, atol=rtol)
    assert float(setup.local.divergence()) == pytest.approx(half_square.item(), rel=rtol)


def test_map_has_no_scales_and_neither_draws_nor_restores():
    setup = Setup(np.float64, None)
    setup.local.use_noise_(setup.local.draw_noise(stream(3)))
    setup.local.use_mean_()
    assert setup.loss().item() == pytest.approx(setup.loss_of(torch.tensor(setup.m)).item(), rel=1e-12)
    assert setup.local.log_s is None
    assert setup.local.local_log_sigma() is None


@pytest.mark.parametrize("scale", [None, "tensor", "element"])
def test_starts_at_the_prior_with_nothing_learned(scale: str | None):
    setup = Setup(np.float32, scale)
    bound = BoundVector(list(setup.module.named_parameters()))
    bound.gradient.fill_(5.0)
    mu = setup.mu.copy()
    local = LocalWeights(bound, mu, setup.log_sigma, 0.0)
    assert local.size == 32
    assert not local.difference().any()
    assert float(local.divergence()) == pytest.approx(0, abs=1e-6)
    assert not bound.gradient.any()
    assert setup.loss().item() == pytest.approx(setup.loss_of(torch.tensor(mu)).item(), rel=1e-5)
    if scale is not None:
        assert np.array_equal(local.local_log_sigma(), setup.log_sigma)


@pytest.mark.parametrize("scale", [None, "tensor", "element"])
def test_learning_leaves_the_priors_arrays_alone(scale: str | None):
    setup = Setup(np.float32, scale)
    mu = setup.mu.copy()
    log_sigma = None if setup.log_sigma is None else setup.log_sigma.copy()
    parameters = [setup.local.mean] if scale is None else [setup.local.mean, setup.local.log_s]
    for parameter in parameters:
        parameter.data.add_(1.0)
    setup.local.use_noise_(setup.local.draw_noise(stream(1)))
    assert np.array_equal(setup.mu, mu)
    if log_sigma is not None:
        assert np.array_equal(setup.log_sigma, log_sigma)


@pytest.mark.parametrize("scale", [None, "tensor", "element"])
def test_difference_is_local_minus_prior_mean(scale: str | None):
    setup = Setup(np.float32, scale)
    assert np.array_equal(setup.local.difference(), setup.m - setup.mu)
    if scale is not None:
        setup.local.use_noise_(setup.local.draw_noise(stream(2)))  # what is drawn is not what is learned
        assert np.array_equal(setup.local.difference(), setup.m - setup.mu)
        assert np.array_equal(setup.local.local_log_sigma(), setup.log_s)
