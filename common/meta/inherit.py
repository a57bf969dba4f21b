"""Weights that travel as vectors, back in a network: what a job hands over when it returns one that is ready to use."""

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from common.config import NetworkConfig, SpaceConfig
from common.meta.few_shot_network import FewShotNetwork
from common.meta.params import BODY, head_vector, layout_of, named_vectors
from common.nn.derived import cut
from common.nn.full import FullNetwork
from common.nn.supernet import Supernet, build_supernet
from common.space.genotype import Genotype

# Names of the classifier beside the vectors of a prior.
CLASSIFIER_WEIGHT = "classifier/weight"
CLASSIFIER_BIAS = "classifier/bias"


def inherited_network(
    weights: Mapping[str, NDArray[np.float32]],
    genotype: Genotype,
    space: SpaceConfig,
    network: NetworkConfig,
    image_size: int,
) -> FullNetwork:
    """The derived network with the weights of an adapted supernet; see `common.nn.derived.cut`.

    Args:
        weights: `body`, `head/<image size>`, `classifier/weight` and `classifier/bias`, as in `AdaptResult.weights`;
            under gaussian their means count.
        genotype: an architecture of the space.
        space: of the supernet.
        network: of the supernet.
        image_size: picks the head.

    Raises:
        InvalidInputError: as `cut`.
    """
    supernet = build_supernet(space, network, seed=0)
    load_vectors_(supernet, {name: weights[name] for name in (BODY, head_vector(image_size))})
    matrix = torch.from_numpy(np.array(weights[CLASSIFIER_WEIGHT]))
    classifier = nn.Linear(matrix.shape[1], matrix.shape[0])
    classifier.load_state_dict({"weight": matrix, "bias": torch.from_numpy(np.array(weights[CLASSIFIER_BIAS]))})
    return cut(supernet, genotype, image_size, classifier)


@torch.no_grad()
def genotype_network(network: FewShotNetwork, genotype: Genotype, parameters: Tensor) -> FullNetwork:
    """The network of a few-shot study of one genotype, by itself; see `common.nn.derived.cut`.

    Args:
        network: of the study.
        genotype: of the study.
        parameters: all of them, as the network takes them.
    """
    assert isinstance(network.module, Supernet), "a genotype's network is the supernet's, with binary weights"
    supernet = build_supernet(network.space, network.module.network, seed=0)
    supernet.load_state_dict(network.weights(parameters), strict=False)  # what is missing is cut away
    weight, bias = network.classifier(parameters)
    classifier = nn.Linear(weight.shape[1], weight.shape[0])
    classifier.load_state_dict({"weight": weight, "bias": bias})
    return cut(supernet, genotype, network.image_size, classifier)


@torch.no_grad()
def load_vectors_(supernet: Supernet, vectors: Mapping[str, NDArray[np.float32]]) -> None:
    """Copies vectors of weights, by their names in a prior, into a supernet; other weights stay."""
    named = named_vectors(supernet)
    for name, vector in vectors.items():
        parts = torch.from_numpy(np.array(vector)).split(list(layout_of(named[name]).sizes))
        for (_, parameter), part in zip(named[name], parts, strict=True):
            parameter.copy_(part.view(parameter.shape))
