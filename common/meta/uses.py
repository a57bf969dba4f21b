"""Which weights belong to which op: what a hard relaxation leaves out is not learnt, and must not count as learnt."""

import numpy as np
import torch
from numpy.typing import NDArray

from common.config import NetworkConfig, SpaceConfig, StudyConfig
from common.meta.params import BODY, layout_of, named_vectors
from common.nn.supernet import Supernet


def spread_over_ops(values: NDArray[np.float64], config: StudyConfig) -> NDArray[np.float64]:
    """A value per op as one per weight of the body, (size,); 1 for weights of no op: what fits a cell's inputs to it.

    Cells of one kind share their architecture, so that an op is used in all of them or in none.

    Args:
        values: (kind, edge, primitive) row by row, in the order of architecture logits.
        config: of the study.
    """
    sizes, ops = _owners(config.space, config.network)
    return np.repeat(np.append(values, 1.0)[ops], sizes)


def _owners(space: SpaceConfig, network: NetworkConfig) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Of each tensor of the body its size, and the place of its op among the logits, -1 for none."""
    with torch.device("meta"):
        layout = layout_of(named_vectors(Supernet(space, network))[BODY])
    shape = (len(space.cell_kinds), space.topology.num_edges, len(space.ops))
    kinds = tuple(space.cell_kinds)
    ops = []
    for name, _ in layout.entries:
        _, cell, part, *rest = name.split(".")
        if part == "edges":
            kind = kinds.index(network.cells[int(cell)])
            ops.append(int(np.ravel_multi_index((kind, int(rest[0]), space.ops.index(rest[1])), shape)))
        else:
            ops.append(-1)
    return np.array(layout.sizes), np.array(ops)
