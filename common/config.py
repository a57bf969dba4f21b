"""The configuration of a study: one frozen tree, validated once, stored with every artifact."""

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, field_validator, model_validator

from common.data_config import DatasetRef as DatasetRef
from common.data_config import Fraction
from common.data_config import Split as Split
from common.errors import InvalidInputError
from common.few_shot_config import FewShotConfig
from common.latency import LatencyTable, misfit
from common.network_config import FullNetworkConfig
from common.space.primitives import PRIMITIVES, PROFILES, ProfileName
from common.space.released import NORMAL, REDUCTION
from common.space.topology import Topology
from common.values import Frozen as Frozen
from common.values import explain as explain

RelaxationKind = Literal["gumbel", "softmax", "straight_through", "single_path"]
HardKind = Literal["straight_through", "single_path"]
Normalisation = Literal["edge", "node"]
Precision = Literal["float32", "bfloat16"]
PositiveFloat = Annotated[float, Field(gt=0)]
NonNegativeFloat = Annotated[float, Field(ge=0)]


class SpaceConfig(Frozen):
    """What architectures there are (BASE app. A)."""

    profile: ProfileName = "base"
    """Named list of candidate ops: darts (8), base (9), base+ (10)."""
    primitives: tuple[str, ...] | None = None
    """An own list of candidate ops, instead of a profile."""
    num_nodes: int = Field(4, ge=1, le=16)
    """Intermediate nodes per cell."""
    cell_kinds: Mapping[str, Literal[1, 2]] = {"normal": 1, "reduction": 2}
    """Kinds of cell by name, and the stride of their input edges. Cells of one kind share their architecture; a
    kind of stride 2 halves height and width and doubles the channels."""
    normalisation: Normalisation = "edge"
    """One categorical per edge, or one per node over all its (source, op) pairs."""

    @field_validator("primitives")
    @classmethod
    def _known(cls, names: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if names is not None:
            for name in names:
                if name not in PRIMITIVES:
                    raise ValueError(f"unknown op {name!r}; use ops out of {', '.join(PRIMITIVES)}")
            if len(set(names)) != len(names):
                raise ValueError("an op is listed twice; remove one")
            if set(names) <= {"none"}:
                raise ValueError("list at least one op beside none")
        return names

    @field_validator("cell_kinds")
    @classmethod
    def _some(cls, kinds: Mapping[str, int]) -> Mapping[str, int]:
        if not kinds:
            raise ValueError("name at least one kind of cell")
        return kinds

    @property
    def ops(self) -> tuple[str, ...]:
        """Candidate ops, in the order of the columns of all architecture weights."""
        return PROFILES[self.profile] if self.primitives is None else self.primitives

    @property
    def topology(self) -> Topology:
        """The edges of every cell."""
        return Topology(self.num_nodes)


class NetworkConfig(Frozen):
    """The supernet (BASE app. A; the motif figure is lost, so the body is the DARTS search network: reconstruction)."""

    channels: int = Field(16, ge=2, multiple_of=2)
    """Channels per node of the first cell."""
    cells: tuple[str, ...] = ("normal", "normal", "reduction", "normal", "normal", "reduction", "normal", "normal")
    """Kind of each cell, first to last."""
    image_channels: Literal[1, 3] = 3
    """Channels the heads read. Grayscale images are repeated, colour images averaged to luminance, as needed."""
    heads: Mapping[int, int] = {32: 2, 64: 2, 224: 8}
    """Stride of the head of each image size in pixels; a power of two. Heads are not shared between sizes."""

    engine: Literal["auto", "native", "pytorch"] = "auto"
    """What computes cells on a CPU: the native cell where it was built (`auto`), only that, or only PyTorch."""
    recompute: bool = False
    """Keep only the cells' inputs and outputs for the backward pass, which computes the rest again: a fraction of the
    memory for about a third more time. Results are the same."""
    precision: Precision = "float32"
    """bfloat16 computes maps in it (torch's autocast) with PyTorch's cells; parameters, their gradients, loss and
    optimizers stay float32. For GPUs; a CPU is slower with it."""
    cuda_graphs: bool = True
    """Record a step once per task and launch it as one, where the device is a GPU. Without effect on a CPU, and under
    straight_through and single_path, whose steps differ in which ops they run."""

    @field_validator("cells")
    @classmethod
    def _not_empty(cls, cells: tuple[str, ...]) -> tuple[str, ...]:
        if not cells:
            raise ValueError("list at least one cell")
        return cells

    @field_validator("heads")
    @classmethod
    def _powers(cls, heads: Mapping[int, int]) -> Mapping[int, int]:
        if not heads:
            raise ValueError("register at least one image size, for example {32 = 2}")
        for size, stride in heads.items():
            if size < 1 or stride < 1 or stride & (stride - 1) or stride > size:
                raise ValueError(f"head {size} has stride {stride}; use a power of two from 1 to the image size")
        return heads

    @model_validator(mode="after")
    def _computable(self) -> Self:
        if self.engine == "native" and self.precision != "float32":
            raise ValueError(f"engine 'native' computes in float32, not {self.precision}; set network.engine to 'auto'")
        return self


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

    lr: PositiveFloat = 0.025
    lr_end: NonNegativeFloat | None = None
    """With it, the rate falls along a cosine from `lr` to `lr_end` within the task."""
    momentum: Fraction = 0.9
    weight_decay: NonNegativeFloat = 3e-4


class AdamConfig(Frozen):
    """Adam on the architecture logits. No weight decay: the KL divergence to the prior takes its place."""

    lr: NonNegativeFloat = 0.01
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


class TrialsConfig(Frozen):
    """An architecture learnt from trials: per task some genotypes are drawn from the prior, each is trained by itself
    for a few steps, and held-out accuracy moves the logits (score-function gradient; reconstruction)."""

    num_genotypes: int = Field(8, ge=2)
    """Per task."""
    steps: int = Field(40, ge=1)
    batch_size: int = Field(32, ge=2)
    lr: PositiveFloat = 0.1
    """At first; along a cosine to zero."""
    weights: Literal["fresh", "prior"] = "fresh"
    """Where training starts: weights drawn anew for each task, or the prior's."""
    rate: PositiveFloat = 10.0
    """Nats that a pair's logit gains for each unit of accuracy that its genotypes have above the task's mean."""
    shared_by_op: Fraction = 0.5
    """Share of a gain that all pairs with the same op in the same kind of cell have in common."""


class OuterConfig(Frozen):
    """The outer step: how local parameters move the prior (Reptile)."""

    theta_rate: Fraction = 1.0
    """Share of the mean difference that the weights move by in the first round ..."""
    theta_rate_end: Fraction | None = None
    """... and in the last; linear in between."""
    theta_average: Literal["tasks", "users", "uses"] = "tasks"
    """What the summed difference of an op's weights is divided by. tasks: all of them. users: the tasks that computed
    the op in at least one step. uses: the sum over tasks of the share of steps that computed it, as if every step had.
    Under the last two, an op that no task computed stays as it is; only hard relaxations leave any out."""
    alpha_rate: Fraction = 0.6
    alpha_average: Literal["probability", "logits"] = "probability"
    """probability: the arithmetic mean of the posteriors (the M-step of the ELBO); logits: the geometric one."""
    rule: Literal["mean", "clipped_mean", "median", "trimmed_mean"] = "mean"
    clip_norm: PositiveFloat = 10.0
    """clipped_mean: longest difference that counts in full."""
    trim_fraction: Annotated[float, Field(ge=0, lt=0.5)] = 0.1
    """trimmed_mean: share of values dropped at each end, per coordinate."""
    weighting: Literal["uniform", "examples"] = "uniform"
    examples_power: NonNegativeFloat = 1.0
    """examples: a task weighs (number of training images) to this power."""
    alpha_trials: TrialsConfig | None = None
    """Learn the architecture from trials; from gradients where not given. Needs alpha_average 'logits' and
    space.normalisation 'node', since scores add up and sources compete."""
    alpha_warmup_rounds: int = Field(0, ge=0)
    """Rounds in which the weights learn alone. A guard against collapse."""
    max_parameter_free_edges: int | None = Field(None, ge=0)
    """Stop learning the architecture once a pool, skip or none dominates more edges of a kind of cell than this."""
    min_accepted_fraction: Fraction = 0.5
    """A round whose accepted updates are fewer than this share of its tasks fails."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.weighting != "uniform" and self.rule in ("median", "trimmed_mean"):
            raise ValueError(f"rule {self.rule!r} has no weights; set outer.weighting to 'uniform'")
        if self.theta_average != "tasks" and self.rule in ("median", "trimmed_mean"):
            raise ValueError(
                f"rule {self.rule!r} is no sum to divide by {self.theta_average}; "
                "set outer.theta_average to 'tasks', or outer.rule to 'mean'"
            )
        if self.alpha_trials is not None and self.alpha_average != "logits":
            raise ValueError(
                f"alpha_trials moves logits, alpha_average is {self.alpha_average!r}; "
                "set outer.alpha_average to 'logits'"
            )
        return self


class TaskFamily(Frozen):
    """Learning tasks of one kind, drawn from one source at one image size."""

    data: DatasetRef = DatasetRef()
    image_size: int = Field(32, ge=4)
    num_ways: int = Field(10, ge=2)
    """Classes per task."""
    train_per_class: int = Field(20, ge=1)
    test_per_class: int = Field(20, ge=1)
    tasks_per_round: int = Field(2, ge=1)


class ClusterConfig(Frozen):
    """Workers and what is done when one fails."""

    num_workers: int | None = Field(None, ge=1)
    """Worker actors; where not given, one per GPU, else one single-threaded worker per CPU core."""
    gpus_per_worker: NonNegativeFloat | None = None
    """Where not given, 1 if the cluster has GPUs, else 0."""
    task_timeout_s: PositiveFloat = 3600.0
    """A task that takes longer is given up: its worker is replaced and the task runs again."""
    max_attempts: int = Field(4, ge=1)
    """Times a task is started before the round fails."""
    tasks_per_partial_sum: int = Field(4, ge=1)
    """Most tasks whose updates a worker adds up before it returns them, as one vector; a worker that dies loses no
    more. Fewer where workers would be idle, and 1 under rules that need every update. Results are the same."""


class CheckpointConfig(Frozen):
    """Which versions of the prior stay on disk."""

    every_rounds: int = Field(1, ge=1)
    keep_last: int = Field(3, ge=1)


class StudyConfig(Frozen):
    """Everything that decides what a study computes. Equal configurations give bitwise equal priors."""

    seed: int = Field(0, ge=0)
    rounds: int = Field(50, ge=1)
    space: SpaceConfig = SpaceConfig()
    network: NetworkConfig = NetworkConfig()
    relaxation: RelaxationConfig = RelaxationConfig()
    inner: InnerConfig = InnerConfig()
    adapt: InnerConfig = InnerConfig()
    outer: OuterConfig = OuterConfig()
    few_shot: FewShotConfig | None = None
    """With it, tasks are few-shot episodes, and their meta-gradients move the prior; `inner`, `adapt` and `outer` then
    say nothing."""
    families: tuple[TaskFamily, ...] = Field((TaskFamily(),), min_length=1)
    checkpoint: CheckpointConfig = CheckpointConfig()
    cluster: ClusterConfig = ClusterConfig()

    @model_validator(mode="after")
    def _fits(self) -> Self:
        for kind in self.network.cells:
            if kind not in self.space.cell_kinds:
                known = ", ".join(self.space.cell_kinds)
                raise ValueError(f"network.cells names {kind!r}; space.cell_kinds has {known}")
        for kind in self.space.cell_kinds:
            if kind not in self.network.cells:
                raise ValueError(f"space.cell_kinds has {kind!r}, which no cell of network.cells is; remove it")
        for family in self.families:
            if family.image_size not in self.network.heads:
                sizes = ", ".join(str(size) for size in self.network.heads)
                raise ValueError(
                    f"families has image_size {family.image_size}, network.heads has {sizes}; "
                    f"register it, for example network.heads.{family.image_size} = 2"
                )
        for name, inner in (("inner", self.inner), ("adapt", self.adapt)):
            if inner.cost is not None:
                problem = self._cost_misfit(inner.cost)
                if problem is not None:
                    raise ValueError(f"{name}.cost: {problem}")
        if self.inner.weights != self.adapt.weights or self.inner.gaussian_scale != self.adapt.gaussian_scale:
            raise ValueError("inner.weights and adapt.weights must agree (gaussian_scale too): they share one prior")
        if self.outer.alpha_trials is not None and self.space.normalisation != "node":
            raise ValueError(
                f"outer.alpha_trials chooses sources too, space.normalisation is {self.space.normalisation!r}; "
                "set space.normalisation to 'node'"
            )
        if self.outer.theta_average != "tasks" and self.inner.weights != "map":
            raise ValueError(
                f"outer.theta_average {self.outer.theta_average!r} knows no standard deviations; "
                "set inner.weights and adapt.weights to 'map'"
            )
        return self

    def _cost_misfit(self, cost: CostPenalty) -> str | None:
        space = self.space
        if cost.table is not None:
            return misfit(cost.table, space.cell_kinds, space.ops, space.num_nodes)
        if cost.network is not None and dict(space.cell_kinds) != {NORMAL: 1, REDUCTION: 2}:
            return f"a full network needs the cell kinds {NORMAL} (stride 1) and {REDUCTION} (stride 2)"
        return None

    def to_json(self) -> str:
        """Canonical JSON: sorted keys, every default spelled out."""
        return json.dumps(self.model_dump(mode="json"), sort_keys=True, indent=2)


def validate(tree: Mapping[str, Any]) -> StudyConfig:
    """A `StudyConfig` from plain values.

    Raises:
        InvalidInputError: names every wrong field, its value and what is allowed.
    """
    try:
        return StudyConfig.model_validate(tree)
    except ValidationError as error:
        raise InvalidInputError("configuration: " + explain(error)) from None
