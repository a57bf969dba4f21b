"""Adam on a vector, as values: the optimizer of the outer step, whose state is a part of the prior."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class AdamState(NamedTuple):
    """Where Adam is with a vector: its values and the running means of its gradient and of its square, each (size,)."""

    values: NDArray[np.float64]
    first: NDArray[np.float64]
    second: NDArray[np.float64]


def adam_step(
    state: AdamState,
    gradient: NDArray[np.float64],
    num_steps: int,
    lr: float,
    betas: tuple[float, float],
    eps: float,
) -> AdamState:
    """The next state (Kingma & Ba 2015, algorithm 1), in float64; equal to torch.optim.Adam.

    Args:
        state: before; unchanged.
        gradient: (size,), of what is minimised.
        num_steps: steps of this vector up to and with this one, at least 1.
        lr: rate.
        betas: decay of the two means.
        eps: added to the root of the second.
    """
    beta1, beta2 = betas
    first = beta1 * state.first + (1 - beta1) * gradient
    second = beta2 * state.second + (1 - beta2) * np.square(gradient)
    root = np.sqrt(second / (1 - beta2**num_steps))
    values = state.values - lr / (1 - beta1**num_steps) * first / (root + eps)
    return AdamState(values, first, second)
