"""The size of a network cut out of a search network, as a value; no torch."""

from common.config import NetworkConfig, SpaceConfig
from common.errors import InvalidInputError
from common.network_config import STRIDES, FullNetworkConfig
from common.space.released import NORMAL, REDUCTION


def derived_config(space: SpaceConfig, network: NetworkConfig, image_size: int, num_classes: int) -> FullNetworkConfig:
    """The size of a network cut out of a search network; its genotype and weights are all else there is to know.

    Args:
        space: of the search network.
        network: of the search network.
        image_size: picks the head.
        num_classes: rows of the classifier.

    Raises:
        InvalidInputError: there is no head for the image size, or a kind of cell has no place in a full network.
    """
    if image_size not in network.heads:
        sizes = ", ".join(str(size) for size in sorted(network.heads))
        raise InvalidInputError(f"no head for image_size {image_size}; network.heads has {sizes}")
    for kind, stride in space.cell_kinds.items():
        if STRIDES.get(kind) != stride:
            raise InvalidInputError(
                f"a network of its own has cells of the kinds {NORMAL} (stride 1) and {REDUCTION} (stride 2); "
                f"space.cell_kinds has {kind!r} (stride {stride}); name it so"
            )
    return FullNetworkConfig(
        motif="search",
        channels=network.channels,
        num_cells=len(network.cells),
        num_classes=num_classes,
        image_size=image_size,
        image_channels=network.image_channels,
        auxiliary=False,
        cells=network.cells,
        stem_stride=network.heads[image_size],
    )
