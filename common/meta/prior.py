"""The prior: what all tasks of a study share, as a value. A new version is a new value."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from common.config import InnerConfig, StudyConfig
from common.meta.few_shot_network import initial_vectors
from common.meta.params import ALPHA as ALPHA
from common.meta.params import HEAD_PREFIX, flatten, layout_of, named_vectors
from common.meta.posterior import log_probabilities
from common.nn.supernet import Supernet, build_supernet
from common.streams import derived_seed

Vector = NDArray[np.float32]

LOG_SIGMA_PREFIX = "log_sigma/"
ADAM_FIRST_PREFIX = "adam/first/"
ADAM_SECOND_PREFIX = "adam/second/"
_ADAM_PREFIXES = (ADAM_FIRST_PREFIX, ADAM_SECOND_PREFIX)
_PREFIXES = (LOG_SIGMA_PREFIX, *_ADAM_PREFIXES)  # of what belongs to another vector
_OF_ARCHITECTURE = (ALPHA, ADAM_FIRST_PREFIX + ALPHA, ADAM_SECOND_PREFIX + ALPHA)


@dataclass(frozen=True)
class Prior:
    """Parameters of the prior over weights and architectures (BASE eq. 2).

    Attributes:
        version: outer steps so far.
        tau: temperature that tasks which start from this version use.
        vectors: float32 by name. `body` and `head/<image size>` are means of the weights, `alpha` the architecture
            logits (kind, edge, primitive) row by row, `log_sigma/<weights>` log standard deviations (gaussian only). In
            few-shot studies also the `classifier`, and Adam's moments `adam/first/<vector>` and `adam/second/<vector>`
            of each; and no `alpha` where the network has an architecture of its own.
        alpha_stopped: the architecture no longer learns (see outer.max_parameter_free_edges).
    """

    version: int
    tau: float
    vectors: Mapping[str, Vector]
    alpha_stopped: bool = False

    @property
    def weight_names(self) -> tuple[str, ...]:
        """Names of the vectors of weights, a classifier's included."""
        return tuple(name for name in self.vectors if name != ALPHA and not name.startswith(_PREFIXES))

    @property
    def learnt_names(self) -> tuple[str, ...]:
        """Names of what a meta-gradient has a part for: weights, and the architecture where there is one."""
        return (*self.weight_names, ALPHA) if self.has_architecture else self.weight_names

    @property
    def has_architecture(self) -> bool:
        """Whether there are architecture logits."""
        return ALPHA in self.vectors

    @property
    def num_bytes(self) -> int:
        """Bytes of its vectors."""
        return sum(vector.nbytes for vector in self.vectors.values())

    def digest(self) -> str:
        """SHA-256 over everything in it; equal priors have equal digests. Computed once: values do not change."""
        return self._digest

    @cached_property
    def _digest(self) -> str:
        hasher = hashlib.sha256()
        header = [self.version, self.tau.hex(), self.alpha_stopped]
        hasher.update(json.dumps(header).encode())
        for name in sorted(self.vectors):
            vector = np.ascontiguousarray(self.vectors[name], dtype="<f4")
            hasher.update(json.dumps([name, vector.shape]).encode())
            hasher.update(vector.data)
        return hasher.hexdigest()

    def alpha(self, config: StudyConfig) -> Tensor:
        """A copy of the architecture logits, (kind, edge, primitive), float64."""
        return alpha_tensor(self.vectors[ALPHA], config)


def alpha_tensor(alpha: Vector, config: StudyConfig) -> Tensor:
    """A flat vector of architecture logits as (kind, edge, primitive), float64."""
    space = config.space
    shape = (len(space.cell_kinds), space.topology.num_edges, len(space.ops))
    return torch.tensor(alpha, dtype=torch.float64).reshape(shape)


def initial_prior(config: StudyConfig) -> Prior:
    """Version 0: freshly drawn weights, and every architecture equally likely."""
    vectors = _initial_vectors(config) if config.few_shot is None else initial_vectors(config)
    if config.few_shot is not None and config.few_shot.sgd is None:
        vectors |= {prefix + name: np.zeros_like(vectors[name]) for name in vectors for prefix in _ADAM_PREFIXES}
    _, tau = config.relaxation.at(0, config.rounds)
    return Prior(version=0, tau=tau, vectors=vectors)


def _initial_vectors(config: StudyConfig) -> dict[str, Vector]:
    supernet = build_supernet(config.space, config.network, derived_seed(config.seed, "supernet"))
    vectors = {name: flatten(named).numpy() for name, named in named_vectors(supernet).items()}
    vectors |= _initial_log_sigma(supernet, config.inner)
    space = config.space
    logits = torch.zeros(len(space.cell_kinds), space.topology.num_edges, len(space.ops))
    vectors[ALPHA] = log_probabilities(logits, space.topology, space.normalisation).reshape(-1).numpy()
    return vectors


def with_theta_of(prior: Prior, donor: Prior) -> Prior:
    """`prior` with the weights of another prior of the same study, for ablations."""
    return replace(prior, vectors={**donor.vectors, **_architecture(prior)})


def with_alpha_of(prior: Prior, donor: Prior) -> Prior:
    """`prior` with the architecture of another prior of the same study, for ablations."""
    return replace(prior, vectors={**prior.vectors, **_architecture(donor)})


def image_sizes(prior: Prior) -> tuple[int, ...]:
    """Image sizes that the prior has heads for, ascending."""
    return tuple(sorted(int(name.removeprefix(HEAD_PREFIX)) for name in prior.vectors if name.startswith(HEAD_PREFIX)))


def _architecture(prior: Prior) -> dict[str, Vector]:
    return {name: prior.vectors[name] for name in _OF_ARCHITECTURE if name in prior.vectors}


def _initial_log_sigma(supernet: Supernet, inner: InnerConfig) -> dict[str, Vector]:
    if inner.weights == "map":
        return {}
    sizes = {
        name: len(named) if inner.gaussian_scale == "tensor" else layout_of(named).size
        for name, named in named_vectors(supernet).items()
    }
    return {LOG_SIGMA_PREFIX + name: np.full(size, inner.log_sigma, np.float32) for name, size in sizes.items()}
