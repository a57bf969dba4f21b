"""BatchNorm statistics of a network whose weights were learnt without any: measured by forward passes."""

from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from common.errors import InvalidInputError
from common.nn.full import FullNetwork


@torch.no_grad()
def recalibrate_(network: FullNetwork, batches: Iterable[Float[Tensor, "batch channels height width"]]) -> None:
    """Sets every BatchNorm's running mean and variance to the averages over `batches`, one forward pass each.

    A layer sees what the layers before it make by the statistics of the same batch, as it did while the weights were
    learnt. Afterwards the network is in evaluation mode, in which a prediction does not depend on the other images.

    Args:
        network: its weights stay.
        batches: of training images, each of at least two.

    Raises:
        InvalidInputError: there is no batch.
    """
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain average over the batches
    network.train()
    count = 0
    for images in batches:
        network(images)
        count += 1
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    network.eval()
    if not count:
        raise InvalidInputError("BatchNorm statistics need at least one batch of training images, got none")
