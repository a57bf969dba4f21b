"""The configuration of a study: one frozen tree, validated once, stored with every artifact."""

import json
from collections.abc import Mapping
from typing import Any, Literal, Self, get_args

from pydantic import Field, ValidationError, field_validator, model_validator

from common.data_config import DatasetRef as DatasetRef
from common.data_config import Split as Split
from common.errors import InvalidInputError
from common.few_shot_config import FewShotConfig
from common.inner_config import AdamConfig as AdamConfig
from common.inner_config import AugmentConfig as AugmentConfig
from common.inner_config import CostPenalty as CostPenalty
from common.inner_config import HardKind as HardKind
from common.inner_config import InnerConfig as InnerConfig
from common.inner_config import RelaxationConfig as RelaxationConfig
from common.inner_config import RelaxationKind as RelaxationKind
from common.inner_config import SgdConfig as SgdConfig
from common.latency import misfit
from common.outer_config import OuterConfig as OuterConfig
from common.outer_config import TrialsConfig as TrialsConfig
from common.schedule_config import MAX_UPDATES
from common.schedule_config import ScheduleConfig as ScheduleConfig
from common.space.primitives import PRIMITIVES, PROFILES, ProfileName
from common.space.released import NORMAL, REDUCTION
from common.space.topology import Topology
from common.values import Fraction as Fraction
from common.values import Frozen as Frozen
from common.values import NonNegativeFloat as NonNegativeFloat
from common.values import PositiveFloat as PositiveFloat
from common.values import explain as explain

Normalisation = Literal["edge", "node"]
Precision = Literal["float32", "bfloat16"]


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
    kind of stride 2 halves height and width and doubles the channels. Kept in the order of their names, in which
    architecture weights are laid out."""
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
        # They are rows of the architecture logits. Neither the stored configuration nor a request over gRPC keeps the
        # order of a mapping, and equal configurations give equal priors.
        return dict(sorted(kinds.items()))

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
    """Worker actors, always as many. Where neither this nor a range is given, all that the cluster has room for, as its
    nodes come and go: one per GPU, else one single-threaded worker per CPU core."""
    min_workers: int | None = Field(None, ge=0)
    """With `max_workers`: workers that are kept without any work; 1 where not given. Few-shot jobs take seconds, so
    they want one that is warm. With 0 a cluster may be left without nodes, and the next job waits for one."""
    max_workers: int | None = Field(None, ge=1)
    """Makes the number of workers a range: as many as there is work for, up to this, whether there is room for them or
    not. Those that wait for room make Ray's autoscaler add nodes. Needs `gpus_per_worker`."""
    idle_s: PositiveFloat = 60.0
    """With `max_workers`: workers of which there was no need for so long are ended, so that an autoscaler can remove
    their nodes."""
    gpus_per_worker: NonNegativeFloat | None = None
    """Where not given, 1 if the cluster has GPUs, else 0."""
    task_timeout_s: PositiveFloat = 3600.0
    """A task that takes longer is given up: its worker is replaced and the task runs again."""
    max_attempts: int = Field(4, ge=1)
    """Times a task is started before the round fails."""
    tasks_per_partial_sum: int = Field(4, ge=1)
    """Most tasks whose updates a worker adds up before it returns them, as one vector; a worker that dies loses no
    more. Fewer where workers would be idle, and 1 under rules that need every update. Results are the same."""

    @model_validator(mode="after")
    def _one_size(self) -> Self:
        if self.max_workers is None:
            if self.min_workers is not None:
                raise ValueError(f"min_workers is {self.min_workers}, the low end of a range; give max_workers too")
            return self
        if self.num_workers is not None:
            raise ValueError(
                f"num_workers is {self.num_workers} and max_workers {self.max_workers}; give num_workers for a fixed "
                "number, or min_workers and max_workers for a range"
            )
        if self.least_workers > self.max_workers:
            raise ValueError(f"min_workers is {self.least_workers}, max_workers {self.max_workers}; lower min_workers")
        if self.gpus_per_worker is None:
            raise ValueError(
                f"max_workers is {self.max_workers}, gpus_per_worker is not given; a cluster whose nodes come and go "
                "does not tell it: set gpus_per_worker, to 0 for workers without a GPU"
            )
        return self

    @property
    def least_workers(self) -> int:
        """The low end of a range."""
        return 1 if self.min_workers is None else self.min_workers

    def with_workers(self, number: int) -> Self:
        """The same with so many workers; with a range, one that ends there."""
        if self.max_workers is None:
            return self.model_copy(update={"num_workers": number})
        return self.model_copy(update={"max_workers": number, "min_workers": min(self.least_workers, number)})


class CheckpointConfig(Frozen):
    """Which versions of the prior stay on disk."""

    every_rounds: int = Field(1, ge=1)
    keep_last: int = Field(3, ge=1)


class StudyConfig(Frozen):
    """Everything that decides what a study computes. Equal configurations give bitwise equal priors, but for schedules
    that let speed decide."""

    seed: int = Field(0, ge=0)
    rounds: int = Field(50, ge=1)
    space: SpaceConfig = SpaceConfig()
    network: NetworkConfig = NetworkConfig()
    relaxation: RelaxationConfig = RelaxationConfig()
    inner: InnerConfig = InnerConfig()
    adapt: InnerConfig = InnerConfig()
    outer: OuterConfig = OuterConfig()
    few_shot: FewShotConfig | None = None
    """With it, tasks are few-shot episodes, and their meta-gradients move the prior. `inner` and `adapt` then say
    nothing, and of `outer` all but its rates: how updates are averaged, and what guards the architecture."""
    families: tuple[TaskFamily, ...] = Field((TaskFamily(),), min_length=1)
    schedule: ScheduleConfig = ScheduleConfig()
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
        if self.tasks_per_round > MAX_UPDATES:
            raise ValueError(
                f"families have {self.tasks_per_round:,} tasks per round together, exact sums hold {MAX_UPDATES:,}; "
                "lower tasks_per_round, and raise rounds"
            )
        has_head = self.few_shot is None or self.few_shot.network != "four_convolutions"
        for family in self.families:
            if has_head and family.image_size not in self.network.heads:
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
        if self.few_shot is not None:
            problem = self._few_shot_misfit(self.few_shot)
            if problem is not None:
                raise ValueError(problem)
        problem = self.schedule.misfit(self.outer)
        if problem is not None:
            raise ValueError(problem)
        return self

    @property
    def tasks_per_round(self) -> int:
        """Tasks of all families together."""
        return sum(family.tasks_per_round for family in self.families)

    def _few_shot_misfit(self, few_shot: FewShotConfig) -> str | None:
        for name, values in (
            ("num_ways", {family.num_ways for family in self.families}),
            ("image_size", {family.image_size for family in self.families}),
        ):
            if len(values) > 1:
                found = ", ".join(str(value) for value in sorted(values))
                return f"families have {name} {found}; a few-shot study learns one classifier and one head: give one"
        if self.inner.weights != "map":
            return (
                f"inner.weights is {self.inner.weights!r}, few_shot learns points; set inner.weights and adapt.weights "
                "to 'map'"
            )
        for name, inner in (("inner", self.inner), ("adapt", self.adapt)):
            if inner.cost is not None:
                return f"{name}.cost is given, few_shot knows no cost penalty; leave it out"
        if self.outer.alpha_trials is not None:
            return "outer.alpha_trials is given, few_shot learns the architecture by gradients; leave it out"
        if self.outer.theta_average != "tasks":
            return (
                f"outer.theta_average is {self.outer.theta_average!r}, few_shot averages gradients over all tasks; set "
                "it to 'tasks'"
            )
        if few_shot.learns_architecture:
            return self._few_shot_relaxation_misfit(few_shot)
        for name in ("alpha_warmup_rounds", "max_parameter_free_edges"):
            if getattr(self.outer, name) != OuterConfig.model_fields[name].default:
                return (
                    f"outer.{name} is {getattr(self.outer, name)}, few_shot.network {few_shot.network!r} learns no "
                    "architecture that it could guard; leave it out"
                )
        if few_shot.genotype is not None:
            for kind in self.network.cells:
                if kind not in few_shot.genotype.cells:
                    known = ", ".join(few_shot.genotype.cells)
                    return f"network.cells names {kind!r}, few_shot.genotype has {known}; give it that kind of cell"
        return None

    def _few_shot_relaxation_misfit(self, few_shot: FewShotConfig) -> str | None:
        relaxation = self.relaxation
        kinds = [relaxation.kind] + ([] if relaxation.hard_after_round is None else [relaxation.hard_kind])
        hard = [kind for kind in kinds if kind in get_args(HardKind)]
        if hard and few_shot.method in ("exact", "finite_difference"):
            return (
                f"relaxation has {hard[0]!r}, whose draws jump, so few_shot.method {few_shot.method!r} has no "
                "derivative to take; set few_shot.method to 'first_order' or 'reptile', or relaxation.kind to 'gumbel' "
                "or 'softmax'"
            )
        if "single_path" in hard and relaxation.path_per == "task":
            return "relaxation.path_per is 'task', few_shot draws for every step; set it to 'step'"
        return None

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
