"""Networks cut out of the supernet: the ops of one genotype with the weights that they have there.

The derived network keeps the search network's motif: its head, its preprocessing, its cells and channels, the task's
classifier. Every node is the sum of the genotype's ops, each with weight 1: the z of BASE eq. 1, which is binary. So
the derived network is the supernet under `genotype_mixtures`, to rounding, where both take BatchNorm's statistics from
the batch; the soft mixtures of a search, whose weights sum to 1 per edge, are other networks.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from common.config import SpaceConfig
from common.cost import check_fits
from common.network_config import derived_config, stem_widths
from common.nn.cell import Mixture
from common.nn.full import FullNetwork, build_full_network
from common.nn.supernet import Supernet
from common.space.genotype import Genotype
from common.space.topology import CellEdge, Topology


def genotype_mixtures(
    genotype: Genotype,
    space: SpaceConfig,
    device: torch.device | None = None,
    dtype: torch.dtype = torch.float32,
) -> dict[str, Mixture]:
    """Architecture weights under which the supernet is the genotype's network: 1 for its ops, no other computed.

    Args:
        genotype: any number of ops per node; two of a node may share their source.
        space: of the supernet.
        device: of the weights; torch's default one where not given.
        dtype: of the weights.

    Raises:
        InvalidInputError: the genotype is none of the space.
    """
    check_fits(genotype, space)
    indices = _edge_indices(space.topology)
    mixtures = {}
    for kind, nodes in genotype.cells.items():
        active: list[list[int]] = [[] for _ in range(space.topology.num_edges)]
        for node, edges in enumerate(nodes):
            for edge in edges:
                active[indices[CellEdge(node, edge.source)]].append(space.ops.index(edge.primitive))
        weights = torch.zeros(space.topology.num_edges, len(space.ops), dtype=dtype)
        for index, columns in enumerate(active):
            weights[index, columns] = 1.0
        mixtures[kind] = Mixture(weights.to(device), tuple(tuple(sorted(columns)) for columns in active))
    return mixtures


def cut(supernet: Supernet, genotype: Genotype, image_size: int, classifier: nn.Linear) -> FullNetwork:
    """A copy of the genotype's part of a supernet, as a network of its own, in training mode.

    In training mode its logits are those of `classifier` on the supernet's features under `genotype_mixtures`. For
    evaluation mode its BatchNorm statistics must be measured first, see `common.nn.calibration`; scales and shifts,
    which the search network's BatchNorm lacks, are 1 and 0.

    Args:
        supernet: unchanged.
        genotype: any number of ops per node.
        image_size: picks the head.
        classifier: of the task; copied.

    Raises:
        InvalidInputError: the genotype is none of the supernet's space, or as `derived_config`.
    """
    check_fits(genotype, supernet.space)
    config = derived_config(supernet.space, supernet.network, image_size, classifier.out_features)
    source = supernet.state_dict()
    weights = {"classifier.weight": classifier.weight, "classifier.bias": classifier.bias}
    # A convolution of the stem is followed by BatchNorm, and but for the last by a ReLU.
    for index in range(len(stem_widths(config))):
        weights[f"stems.0.{3 * index}.weight"] = source[f"heads.{image_size}.convs.{index}.weight"]
    for index, kind in enumerate(config.cell_kinds):
        weights |= _cell_weights(source, f"cells.{index}.", genotype, kind, supernet.space.topology)
    network = build_full_network(genotype, config, seed=0)
    network = network.to(device=classifier.weight.device, dtype=classifier.weight.dtype)
    left, unknown = network.load_state_dict(weights, strict=False)
    assert not unknown and set(left) <= _norm_names(network), "every weight but BatchNorm's own is cut out"
    return network


def _cell_weights(
    source: Mapping[str, Tensor], prefix: str, genotype: Genotype, kind: str, topology: Topology
) -> dict[str, Tensor]:
    """Weights of one cell, by their names in the derived network."""
    indices = _edge_indices(topology)
    renamed = {f"{prefix}preprocess.": f"{prefix}preprocess."}
    for node, edges in enumerate(genotype.cells[kind]):
        for position, edge in enumerate(edges):
            index = indices[CellEdge(node, edge.source)]
            renamed[f"{prefix}edges.{index}.{edge.primitive}."] = f"{prefix}nodes.{node}.{position}."
    return {
        target + name.removeprefix(origin): tensor
        for origin, target in renamed.items()
        for name, tensor in source.items()
        if name.startswith(origin)
    }


def _norm_names(network: FullNetwork) -> set[str]:
    """Names of all that BatchNorm keeps: scales, shifts, statistics."""
    norms = [(name, module) for name, module in network.named_modules() if isinstance(module, nn.BatchNorm2d)]
    return {f"{name}.{own}" for name, module in norms for own in module.state_dict()}


def _edge_indices(topology: Topology) -> dict[CellEdge, int]:
    return {edge: index for index, edge in enumerate(topology.edges)}
