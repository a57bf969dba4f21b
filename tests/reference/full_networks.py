"""Small full networks whose BatchNorm statistics are those of some images, so that evaluation mode means something."""

import torch

from common.network_config import network_config
from common.nn.full import FullNetwork, build_full_network
from common.space.genotype import Genotype


def trained(genotype: Genotype, motif: str = "cifar", num_cells: int = 3, image_size: int = 16) -> FullNetwork:
    """A network of 4 channels and 5 classes after some forward passes in training mode, in which it is left."""
    config = network_config(motif, channels=4, num_cells=num_cells, num_classes=5, image_size=image_size)
    network = build_full_network(genotype, config, seed=0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for _ in range(8):
            network.training_logits(torch.randn(8, 3, image_size, image_size, generator=generator))
    return network
