"""Networks of few-shot studies as functions of one flat vector: weights, classifier, and logits where there are any."""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call

from common.config import NetworkConfig, SpaceConfig, StudyConfig
from common.errors import InvalidInputError
from common.few_shot_config import FewShotConfig
from common.meta.params import ALPHA, BODY, CLASSIFIER, flatten, layout_of, named_vectors
from common.meta.posterior import log_probabilities
from common.nn.cell import FUSED_TYPES, Mixture
from common.nn.derived import genotype_mixtures
from common.nn.four_convolutions import NUM_BLOCKS, FourConvolutions
from common.nn.native.library import choose
from common.nn.supernet import Supernet
from common.space.genotype import Genotype
from common.space.topology import CellEdge
from common.streams import derived_seed

Path = Literal["native", "pytorch"]
"""What computes cells; four convolutions are PyTorch's."""


class FewShotNetwork:
    """A network of a few-shot study, for tasks of `num_ways` classes and images of one size.

    Its parameters are one vector: those of `names` in the prior, one after the other.

    Args:
        few_shot: which network.
        space: of the supernet, and of a genotype's network, which is the supernet's with binary weights.
        network: likewise.
        image_size: height and width in pixels.
        num_ways: classes of a task.
        device: to compute on.
        dtype: to compute in.

    Raises:
        InvalidInputError: no head for the image size, images too small, a genotype that is none of the space.
        UnavailableError: `network.engine` is native, and the native cell is not there.
    """

    def __init__(
        self,
        few_shot: FewShotConfig,
        space: SpaceConfig,
        network: NetworkConfig,
        image_size: int,
        num_ways: int,
        device: torch.device | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.space = space
        self.num_ways = num_ways
        self.image_size = image_size
        self.genotype: Mapping[str, Mixture] | None = None
        self.path: Path = "pytorch"
        module: FourConvolutions | Supernet
        if few_shot.network == "four_convolutions":
            if image_size < 2**NUM_BLOCKS:
                raise InvalidInputError(
                    f"four convolutions halve images four times, image_size is {image_size}; set it to at least "
                    f"{2**NUM_BLOCKS}"
                )
            module = FourConvolutions(network.image_channels, few_shot.filters, image_size)
            named: Mapping[str, Sequence[tuple[str, nn.Parameter]]] = {BODY: list(module.named_parameters())}
        else:
            if image_size not in network.heads:
                sizes = ", ".join(str(size) for size in sorted(network.heads))
                raise InvalidInputError(f"no head for image_size {image_size}; network.heads has {sizes}")
            own = {"heads": {image_size: network.heads[image_size]}, "engine": engine_of(few_shot, network)}
            module = Supernet(space, network.model_copy(update=own))
            named = named_vectors(module)
            on_cpu = device is None or device.type == "cpu"
            if on_cpu and dtype in FUSED_TYPES and choose(module.network.engine) is not None:
                self.path = "native"
            if few_shot.genotype is not None:
                self.genotype = genotype_mixtures(few_shot.genotype, space, device, dtype)
                kept = _names_of_ops(module, few_shot.genotype)
                named = {vector: [each for each in of_it if kept(each[0])] for vector, of_it in named.items()}
        self.module = module.to(device, dtype)
        self.has_architecture = few_shot.network == "supernet"
        self._weights = [each for of_vector in named.values() for each in of_vector]
        self._layout = layout_of(self._weights)
        self._weight_sizes = {name: layout_of(of_vector).size for name, of_vector in named.items()}
        self._alpha_shape = (len(space.cell_kinds), space.topology.num_edges, len(space.ops))
        self.sizes: Mapping[str, int] = {
            **self._weight_sizes,
            CLASSIFIER: num_ways * (module.num_features + 1),
            **({ALPHA: int(np.prod(self._alpha_shape))} if self.has_architecture else {}),
        }

    @property
    def names(self) -> tuple[str, ...]:
        """Of the vectors that the parameters consist of, as in a prior: `body`, `head/<image size>`, `classifier`, and
        `alpha` where the architecture learns."""
        return tuple(self.sizes)

    @property
    def size(self) -> int:
        """Elements of the vector of all parameters."""
        return sum(self.sizes.values())

    def initial_vectors(self, seed: int) -> dict[str, NDArray[np.float32]]:
        """First values of all vectors: weights as torch draws them, a classifier of zeros, every architecture equally
        likely.

        An episode's labels are in random order, so no row of the classifier is better placed than another: they start
        alike, and the first inner step tells them apart.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            fresh: nn.Module
            if isinstance(self.module, FourConvolutions):
                fresh = FourConvolutions(self.module.image_channels, self.module.filters, self.image_size)
            else:
                fresh = Supernet(self.space, self.module.network)
        drawn = dict(fresh.named_parameters())
        values = flatten([(name, drawn[name]) for name, _ in self._weights])
        logits = log_probabilities(torch.zeros(self._alpha_shape), self.space.topology, self.space.normalisation)
        others = {CLASSIFIER: torch.zeros(self.sizes[CLASSIFIER]), ALPHA: logits.reshape(-1)}
        vectors = dict(zip(self._weight_sizes, torch.split(values, list(self._weight_sizes.values())), strict=True))
        vectors |= {name: others[name] for name in self.sizes if name in others}
        return {name: vector.numpy() for name, vector in vectors.items()}

    def split(self, parameters: Float[Tensor, "size"]) -> dict[str, Tensor]:
        """Views of the vector of all parameters, by name."""
        return dict(zip(self.sizes, torch.split(parameters, list(self.sizes.values())), strict=True))

    def weights(self, parameters: Float[Tensor, "size"]) -> dict[str, Tensor]:
        """Views of the weights among the parameters, by their names in `module`."""
        values = torch.split(parameters[: self._layout.size], list(self._layout.sizes))
        return {name: value.view(shape) for (name, shape), value in zip(self._layout.entries, values, strict=True)}

    def classifier(
        self, parameters: Float[Tensor, "size"]
    ) -> tuple[Float[Tensor, "label feature"], Float[Tensor, "label"]]:
        """Weight and bias of the classifier among the parameters."""
        values = self.split(parameters)[CLASSIFIER]
        weight = values[: -self.num_ways].view(self.num_ways, self.module.num_features)
        return weight, values[-self.num_ways :]

    def alpha(self, parameters: Float[Tensor, "size"]) -> Float[Tensor, "kind edge primitive"]:
        """The architecture logits among the parameters."""
        return self.split(parameters)[ALPHA].view(self._alpha_shape)

    def logits(
        self,
        parameters: Float[Tensor, "size"],
        images: Float[Tensor, "batch channels height width"],
        mixtures: Mapping[str, Mixture] | None,
    ) -> Float[Tensor, "batch label"]:
        """Logits of the classes; a pure function.

        Args:
            parameters: all of them.
            images: grayscale or colour.
            mixtures: architecture weights per kind of cell, where the architecture learns; of these `parameters` too,
                if the architecture is to have a gradient.
        """
        arguments: tuple[object, ...] = (images,)
        if isinstance(self.module, Supernet):
            used = mixtures if self.genotype is None else self.genotype
            assert used is not None, "architecture weights of a network whose architecture learns"
            arguments = (images, used, self.image_size)
        # No parameter has two names, and to look for such takes a third of a step.
        features = functional_call(self.module, self.weights(parameters), arguments, tie_weights=False)
        return F.linear(features, *self.classifier(parameters))


def network_of(config: StudyConfig, device: torch.device | None = None) -> FewShotNetwork:
    """The network of a few-shot study."""
    assert config.few_shot is not None, "a few-shot study"
    family = config.families[0]  # all have the same image size and number of classes
    return FewShotNetwork(config.few_shot, config.space, config.network, family.image_size, family.num_ways, device)


def initial_vectors(config: StudyConfig) -> dict[str, NDArray[np.float32]]:
    """What the first prior of a few-shot study consists of, but for Adam's moments."""
    return network_of(config).initial_vectors(derived_seed(config.seed, "supernet"))


def engine_of(few_shot: FewShotConfig, network: NetworkConfig) -> Literal["auto", "native", "pytorch"]:
    """What computes cells: PyTorch where derivatives of derivatives are wanted, which the native cell does not have.

    Raises:
        InvalidInputError: the native cell is asked for all the same.
    """
    if few_shot.method != "exact":
        return network.engine
    if network.engine == "native":
        raise InvalidInputError(
            "network.engine is 'native', which has no second derivatives, and few_shot.method is 'exact'; set "
            "network.engine to 'auto', or few_shot.method to 'finite_difference'"
        )
    return "pytorch"


def _names_of_ops(module: Supernet, genotype: Genotype) -> Callable[[str], bool]:
    """Whether a parameter, by its name, is of an op that the genotype's network has, or of no op."""
    edges = module.space.topology.edges
    kept = {
        (str(cell), str(edges.index(CellEdge(node, edge.source))), edge.primitive)
        for cell, kind in enumerate(module.network.cells)
        for node, pairs in enumerate(genotype.cells[kind])
        for edge in pairs
    }

    def is_kept(name: str) -> bool:
        match name.split("."):
            case ["cells", cell, "edges", edge, primitive, *_]:
                return (cell, edge, primitive) in kept
        return True

    return is_kept
