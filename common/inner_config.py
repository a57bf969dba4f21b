"""The inner loop as a value: how one task is adapted to, and how its architecture is relaxed meanwhile. No torch."""

from collections.abc import Mapping
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from common.latency import LatencyTable
from common.network_config import FullNetworkConfig
from common.space.primitives import PRIMITIVES
from common.values import Fraction, Frozen, LearningRate, LearningRateOrZero, NonNegativeFloat, PositiveFloat

RelaxationKind = Literal["gumbel", "softmax", "straight_through", "single_path"]
HardKind = Literal["straight_through", "single_path"]


class RelaxationConfig(Frozen):
    """How a posterior over architectures becomes mixture weights while training (BASE eq. 7-8)."""

    kind: RelaxationKind = "gumbel"
    """gumbel (the paper), softmax (no noise), straight_through (one sampled op per categorical), single_path (two
    sampled (source, op) pairs per node, none never among them: the networks that derivation keeps)."""
    hard_after_round: int | None = Field(None, ge=0)
    """Switch to `hard_kind` from this round on. Hard sampling from the first step learns little."""
    hard_kind: HardKind = "straight_through"
    """What `hard_after_round` switches to."""
    path_per: Literal["step", "task"] = "step"
    """single_path draws a network for every step; or, in meta-training, one for every task, whose architecture then
    does not learn: what the prior's weights are made for is to be fine-tuned in one network."""
    tau_start: PositiveFloat = 5.0
    """Temperature of version 0 ..."""
    tau_end: PositiveFloat = 0.5
    """... and of the last version; exponential in between (reconstruction: the paper's schedule is lost)."""

    def at(self, version: int, num_rounds: int) -> tuple[RelaxationKind, float]:
        """Relaxation and temperature while adapting from prior `version` of a study of `num_rounds` rounds."""
        progress = min(version / max(num_rounds - 1, 1), 1.0)
        tau = self.tau_start * (self.tau_end / self.tau_start) ** progress
        hard = self.hard_after_round is not None and version >= self.hard_after_round
        return (self.hard_kind if hard else self.kind), tau


class SgdConfig(Frozen):
    """SGD on the weights."""

    lr: LearningRate = 0.025
    lr_end: LearningRateOrZero | None = None
    """With it, the rate falls along a cosine from `lr` to `lr_end` within the task."""
    momentum: Fraction = 0.9
    weight_decay: NonNegativeFloat = 3e-4


class AdamConfig(Frozen):
    """Adam on the architecture logits. No weight decay: the KL divergence to the prior takes its place."""

    lr: LearningRateOrZero = 0.01
    """0 freezes the architecture."""
    betas: tuple[Fraction, Fraction] = (0.5, 0.999)


class AugmentConfig(Frozen):
    """Random changes to training images, made on the device."""

    crop_padding: int = Field(0, ge=0)
    """Pixels of padding before a random crop back to the image size; 0 is off."""
    flip: bool = False
    """Mirror half of the images left to right."""


class CostPenalty(Frozen):
    """A differentiable penalty on what the network that a posterior stands for is expected to cost (reconstruction).

    The loss gets `weight` times max(E[cost] / `target` - 1, 0), in nats; E is over genotypes drawn by rule `sample` of
    `common.space.genotype.derive`, see `common.meta.expected_cost`. The idea of an expected cost in the loss is that of
    FBNet (Wu et al. 2019) and ProxylessNAS (Cai et al. 2019).
    """

    measure: Literal["params", "macs", "latency"]
    """Parameters, multiply-accumulates of one image, or milliseconds by a latency table."""
    target: PositiveFloat
    """In the measure's unit. What is expected to cost no more is not penalised."""
    weight: NonNegativeFloat
    """Nats that an expected cost of twice the target adds to the loss."""
    network: FullNetworkConfig | None = None
    """The full network whose parameters or multiply-accumulates count; where not given, the network of the search's own
    layout, as in `common.cost`. A latency table has its own."""
    table: LatencyTable | None = None
    """What `metasearch profile` measured, for latency; a file or `--set` may name the table's file instead."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if (self.measure == "latency") != (self.table is not None):
            raise ValueError("the measure latency needs a table, and the others take none; see metasearch profile")
        if self.table is not None and self.network is not None:
            raise ValueError("network: leave it out; the latency table says which network it is of")
        return self


class InnerConfig(Frozen):
    """The inner loop: how one task is adapted to (BASE alg. 1 and eq. 10)."""

    steps: int = Field(300, ge=1)
    batch_size: int = Field(64, ge=2)
    theta: SgdConfig = SgdConfig()
    alpha: AdamConfig = AdamConfig()
    clip_norm: PositiveFloat | None = 5.0
    """Largest norm of the gradient of weights and classifier together."""
    relaxation: RelaxationKind | Literal["prior"] = "prior"
    """The prior's relaxation of the moment, or another one. The temperature is always the prior's."""
    level: Literal["single", "bilevel"] = "single"
    """single: one backward gives both gradients. bilevel: weights learn on one half of the training images, the
    architecture on the other (DARTS, first order)."""
    weights: Literal["map", "gaussian"] = "map"
    """Posterior over weights: a point, or a diagonal Gaussian."""
    gaussian_scale: Literal["tensor", "element"] = "tensor"
    """One standard deviation per tensor, or per element (doubles what travels)."""
    log_sigma: float = -5.0
    """Logarithm of the prior's first standard deviation of the weights (gaussian)."""
    log_sigma_lr: NonNegativeFloat = 0.01
    beta_theta: NonNegativeFloat | None = None
    """Factor of the KL divergence of the weights; 1 / (number of training images) where not given."""
    beta_alpha: NonNegativeFloat | None = None
    """Factor of the KL divergence of the architecture; 1 / (number of training images) where not given."""
    prior_precision: NonNegativeFloat = 0.0
    """1 / sigma^2 of the weights' prior under map; 0 is plain Reptile."""
    op_penalty: Mapping[str, NonNegativeFloat] = {}
    """Per op: added to the loss times the op's mean probability. A guard against collapse."""
    cost: CostPenalty | None = None
    """Presses the architecture towards what a device can afford; none where not given."""
    augment: AugmentConfig = AugmentConfig()

    @field_validator("op_penalty")
    @classmethod
    def _known(cls, penalties: Mapping[str, float]) -> Mapping[str, float]:
        for name in penalties:
            if name not in PRIMITIVES:
                raise ValueError(f"unknown op {name!r}; use ops out of {', '.join(PRIMITIVES)}")
        return penalties
