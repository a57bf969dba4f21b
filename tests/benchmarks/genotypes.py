"""Random genotypes, for benchmarks to compare with."""

import numpy as np

from common.config import SpaceConfig
from common.space.genotype import Genotype, derive


def random_genotype(space: SpaceConfig, seed: int) -> Genotype:
    """Two distinct (source, op) pairs per node, all equally likely, `none` left out."""
    uniform = np.ones((space.topology.num_edges, len(space.ops)))
    return derive(dict.fromkeys(space.cell_kinds, uniform), space.topology, space.ops, "sample", seed)
