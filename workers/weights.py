"""The local posterior over weights while a task is adapted to: a point (map) or a diagonal Gaussian (BASE eq. 7)."""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from common.meta.params import BoundVector, Layout, spread, sum_per_tensor
from common.meta.posterior import kl_weights
from common.meta.prior import Vector


class LocalWeights:
    """One vector of weights: a local copy of the prior's mean, bound to a supernet, that learns.

    Under `gaussian` the supernet computes with weights drawn anew for every step, m + s * eps, and the gradient with
    respect to them becomes the gradient with respect to m and log s (the reparameterisation of BASE eq. 7).

    Args:
        bound: the supernet's parameters; overwritten.
        mean: of the prior, mu.
        log_sigma: of the prior, one per tensor or per element; None under map.
        precision: 1 / sigma^2 under map.
    """

    def __init__(self, bound: BoundVector, mean: Vector, log_sigma: Vector | None, precision: float) -> None:
        self._bound = bound
        device = bound.values.device
        self._prior_mean = torch.tensor(mean, device=device)
        bound.values.data.copy_(self._prior_mean)
        bound.zero_grad_()
        self._precision = precision
        self._prior_log_sigma = None if log_sigma is None else torch.tensor(log_sigma, device=device)
        if self._prior_log_sigma is None:
            self.mean: Tensor = bound.values
            self.log_s: Tensor | None = None
        else:
            self.mean = torch.nn.Parameter(self._prior_mean.clone())
            self.mean.grad = torch.zeros_like(self.mean)
            self.log_s = torch.nn.Parameter(self._prior_log_sigma.clone())
            self.log_s.grad = torch.zeros_like(self.log_s)
        # Of each element, the tensor that it belongs to; made here, as a step that is recorded may not ask the host.
        which = torch.arange(len(self._layout.sizes), dtype=torch.float64, device=device)
        self._tensor_index = spread(which, self._layout).to(torch.int64) if self._shares_scales else None
        self._noise: Tensor | None = None

    @property
    def size(self) -> int:
        """Elements of the vector."""
        return self._bound.layout.size

    def draw_noise(self, generator: np.random.Generator) -> Float[Tensor, "size"] | None:
        """Standard normal noise for one step, on the host (gaussian; under map there is none)."""
        if self.log_s is None:
            return None
        return torch.from_numpy(generator.standard_normal(self.size, dtype=np.float32))

    def use_noise_(self, noise: Float[Tensor, "size"] | None) -> None:
        """Lets the supernet compute with m + s * noise; `noise` comes from `draw_noise` and is on the device."""
        if self.log_s is not None:
            assert noise is not None
            self._noise = noise
            scale = self._elementwise(self.log_s.detach()).exp()
            self._bound.values.data.copy_(self.mean.detach() + scale * noise)

    def use_mean_(self) -> None:
        """Lets the supernet compute with the posterior's mean, for evaluation."""
        if self.log_s is not None:
            self._bound.values.data.copy_(self.mean.detach())

    def start_at_(self, mean: Vector) -> None:
        """Sets the local mean to something else than the prior's, which stays what it is compared with."""
        self.mean.data.copy_(torch.from_numpy(np.array(mean)))

    def zero_grad_(self) -> None:
        """Before a backward pass."""
        self._bound.zero_grad_()

    def add_divergence_grad_(self, beta: float) -> None:
        """After a backward pass: completes the gradients of mean and log s by those of beta * KL(q || p)."""
        gradient = self._bound.gradient
        difference = self.mean.detach() - self._prior_mean
        if self.log_s is None:
            if beta * self._precision > 0:
                gradient.add_(difference, alpha=beta * self._precision)
            return
        assert self._noise is not None and self._prior_log_sigma is not None
        assert self.mean.grad is not None and self.log_s.grad is not None
        log_s = self._elementwise(self.log_s.detach())
        log_sigma = self._elementwise(self._prior_log_sigma)
        self.mean.grad.copy_(gradient + beta * difference * torch.exp(-2 * log_sigma))
        # expm1 is exactly 0 at s = sigma; s^2 / sigma^2 - 1 is rounding noise that Adam would scale up.
        per_element = gradient * self._noise * log_s.exp() + beta * torch.expm1(2 * (log_s - log_sigma))
        self.log_s.grad.copy_(self._reduced(per_element))

    def divergence(self) -> Float[Tensor, ""]:
        """KL(q || p) in nats; under map (precision / 2) |m - mu|^2, which is its part that depends on m."""
        difference = self.mean.detach() - self._prior_mean
        if self.log_s is None:
            return 0.5 * self._precision * difference.square().sum()
        assert self._prior_log_sigma is not None
        return kl_weights(difference, self._elementwise(self.log_s.detach()), self._elementwise(self._prior_log_sigma))

    def difference(self) -> Vector:
        """Local minus prior mean."""
        result: Vector = (self.mean.detach() - self._prior_mean).cpu().numpy()
        return result

    def local_log_sigma(self) -> Vector | None:
        """Local log standard deviations, or None under map."""
        if self.log_s is None:
            return None
        result: Vector = self.log_s.detach().cpu().numpy()
        return result

    @property
    def _shares_scales(self) -> bool:
        return self.log_s is not None and self.log_s.numel() != self.size

    def _elementwise(self, values: Tensor) -> Tensor:
        return values if self._tensor_index is None else values[self._tensor_index]

    def _reduced(self, elements: Tensor) -> Tensor:
        assert self.log_s is not None
        return sum_per_tensor(elements, self._layout) if self._shares_scales else elements

    @property
    def _layout(self) -> Layout:
        return self._bound.layout
