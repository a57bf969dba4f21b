"""A supernet that computes with parameters that `functional_call` lends it, as few-shot tasks do."""

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.func import functional_call

from common.config import NetworkConfig, SpaceConfig
from common.nn.cell import Mixture
from common.nn.supernet import Supernet

pytestmark = pytest.mark.usefixtures("one_thread")

SPACE = SpaceConfig(num_nodes=1, primitives=("skip_connect", "avg_pool_3x3", "dil_conv_3x3"))


def gradients(engine: str, recompute: bool, order: int) -> list[Tensor]:
    """Of the sum of squared features, or of the squared length of that gradient, at parameters that are lent."""
    network = NetworkConfig(
        channels=2, cells=("normal", "reduction"), heads={7: 1}, image_channels=1, engine=engine, recompute=recompute
    )
    supernet = Supernet(SPACE, network).double()
    rng = np.random.default_rng(0)
    lent = {
        name: torch.from_numpy(rng.normal(size=tuple(own.shape))).requires_grad_()
        for name, own in supernet.named_parameters()
    }
    mixture = Mixture(torch.from_numpy(rng.random((SPACE.topology.num_edges, len(SPACE.ops)))))
    images = torch.from_numpy(rng.normal(size=(3, 1, 7, 7)))
    features = functional_call(supernet, lent, (images, {"normal": mixture, "reduction": mixture}, 7))
    found = torch.autograd.grad(features.square().sum(), list(lent.values()), create_graph=order == 2)
    if order == 1:
        return list(found)
    length = torch.stack([one.square().sum() for one in found]).sum()
    return list(torch.autograd.grad(length, list(lent.values())))


@pytest.mark.parametrize(("engine", "order"), [("native", 1), ("pytorch", 1), ("pytorch", 2)])
def test_recomputation_uses_the_lent_parameters(engine: str, order: int) -> None:
    kept, again = gradients(engine, False, order), gradients(engine, True, order)
    assert all(torch.equal(one, other) for one, other in zip(kept, again, strict=True))
    assert all(one.norm() > 0 for one in kept)
