"""A Pareto front: networks of one prior and one task, under limits, by what they cost and how good they are.

A front's folder:
    plan.json            what is wanted, see `ParetoPlan`; written first
    posterior-0.json     the posterior that adapting with the first penalty weight gave; and so on
    networks/0/, ...     trained networks, where they are wanted, see `workers.evaluate`
    pareto.png           the front
    pareto.json          the front, see `Front`; written last
"""

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from common.config import CostPenalty, NonNegativeFloat, PositiveFloat, SpaceConfig, StudyConfig
from common.cost import Cost, network_cost
from common.derivation import genotype_probability, select
from common.errors import ConflictError, CorruptArtifactError, NotFoundError
from common.evaluate_config import EvaluateConfig
from common.expense import expense_of, smallest
from common.latency import LatencyTable, network_ms
from common.limits import Limits
from common.network_config import FullNetworkConfig
from common.nn.counting import count_network
from common.space.genotype import Genotype
from common.storage import ArtifactFolder
from common.tasks import LearningTask
from common.value_file import ValueFile
from common.values import Frozen

PICTURE, NETWORKS = "pareto.png", "networks"

Measure = Literal["params", "macs", "latency"]
Probabilities = Mapping[str, NDArray[np.float64]]

UNITS: Mapping[Measure, str] = {"params": "parameters", "macs": "MACs", "latency": "ms"}


class ParetoPlan(Frozen):
    """What a front is of."""

    prior: str
    """SHA-256 of the prior."""
    task: LearningTask
    steps: int
    """Of adaptation."""
    measure: Measure
    """What limits and penalties are on."""
    network: FullNetworkConfig | None
    """The full network whose cost counts; None is the network of the search's layout."""
    table: LatencyTable | None
    limits: tuple[PositiveFloat, ...] | None
    """Ascending; None chooses `num_limits` between the smallest network and the one without a limit."""
    num_limits: int = Field(4, ge=1, le=100)
    weights: Annotated[tuple[NonNegativeFloat, ...], Field(min_length=1)] = (0.0,)
    """Of the penalty, ascending: the prior is adapted once with each."""
    target: PositiveFloat | None
    """Of the penalty."""
    recipe: EvaluateConfig | None
    """How networks are trained; None leaves them untrained."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if any(self.weights) and self.target is None:
            raise ValueError("target: a penalty needs one; give --target in the measure's unit")
        if self.measure == "latency" and self.table is None:
            raise ValueError("table: the measure latency needs one; give --latency-table")
        for name in ("weights", "limits"):
            values = getattr(self, name) or ()
            if list(values) != sorted(set(values)):
                raise ValueError(f"{name}: must be ascending and different, got {', '.join(map(str, values))}")
        return self

    def penalty(self, weight: float) -> CostPenalty | None:
        """What the adaptation with a weight is pressed by."""
        return self.measured().model_copy(update={"weight": weight}) if weight else None

    def measured(self) -> CostPenalty:
        """What is measured, without pressure."""
        table = self.table if self.measure == "latency" else None
        network = None if table is not None else self.network
        return CostPenalty(measure=self.measure, target=self.target or 1.0, weight=0.0, network=network, table=table)

    def limit(self, most: float | None) -> Limits:
        """At most so much of the measure."""
        if most is None:
            return Limits()
        if self.measure == "latency":
            return Limits(max_latency_ms=most, latency_table=self.table)
        name = "max_params" if self.measure == "params" else "max_macs"
        return Limits.model_validate({name: int(most), "network": self.network})


class Origin(Frozen):
    """How a network was found: under which limit, from the posterior of which penalty weight."""

    weight: float
    limit: float | None


class FrontPoint(Frozen):
    """A network of a front."""

    genotype: Genotype
    origins: tuple[Origin, ...]
    """All ways to find it."""
    probability: float
    """That drawing from the posterior of the smallest weight gives exactly it."""
    num_params: int
    num_macs: int
    latency_ms: float | None = None
    """By the table."""
    accuracy: float | None = None
    """0 to 1, on test images after training from scratch."""
    interval_95: tuple[float, float] | None = None
    """Of the accuracy: covers the choice of test images, not that of seeds."""
    is_dominated: bool = False
    """Another point costs no more and is no worse, and differs; by the values themselves, not their intervals."""

    def cost(self, measure: Measure) -> float:
        """In the measure's unit."""
        if measure == "latency":
            assert self.latency_ms is not None
            return self.latency_ms
        return self.num_params if measure == "params" else self.num_macs

    @property
    def quality(self) -> float:
        """What is to be high: the accuracy, of an untrained network its probability."""
        return self.probability if self.accuracy is None else self.accuracy


class AdaptedAccuracy(Frozen):
    """Held-out accuracy of the supernet that was adapted with a penalty weight."""

    weight: float
    accuracy: float
    expected: float
    """The measure's expectation over the posterior, in its unit, see `common.meta.expected_cost`."""


class Front(Frozen):
    """What was found, cheapest first."""

    format: Literal[1] = 1
    measure: Measure
    task: str
    """In words."""
    prior: str
    """SHA-256."""
    network: str
    """What costs are of, in words."""
    device: str | None = None
    """That the table is of."""
    num_test: int | None = None
    """Test images of trained networks."""
    recipe: str | None = None
    """In words."""
    adapted: tuple[AdaptedAccuracy, ...]
    points: Annotated[tuple[FrontPoint, ...], Field(min_length=1)]


PLAN = ValueFile(ParetoPlan, "plan.json", "holds no plan of a front", "remove the folder")
FRONT = ValueFile(Front, "pareto.json", "holds no front; make one with metasearch pareto", "compute it again")


def check_plan(folder: ArtifactFolder, plan: ParetoPlan) -> bool:
    """Whether the folder holds a front of this plan; False where it holds none.

    Raises:
        ConflictError: the folder's front is of something else.
        CorruptArtifactError: its plan is damaged.
    """
    try:
        stored = PLAN.read(folder)
    except NotFoundError:
        return False
    before, now = stored.model_dump(mode="json"), plan.model_dump(mode="json")
    for name in (name for name in now if before[name] != now[name]):
        raise ConflictError(f"{folder.url} holds a front of another {name}; give the same options, or another --out")
    return True


def begin(folder: ArtifactFolder, plan: ParetoPlan) -> None:
    """Stores the plan, or goes on with the same one.

    Raises:
        ConflictError: see `check_plan`, also for the other error.
    """
    if not check_plan(folder, plan):
        PLAN.store(folder, plan)


def default_limits(plan: ParetoPlan, probabilities: Probabilities, config: StudyConfig) -> tuple[float, ...]:
    """Limits at even distances between the cost of the smallest network and of the one without a limit."""
    size, num_classes = plan.task.image_size, len(plan.task.classes)
    free = select(probabilities, config.space, config.network, size, num_classes, Limits()).genotype
    most = _cost_of(plan, free, config)
    least = smallest(expense_of(plan.measured(), config.space, config.network, size, num_classes), config.space)
    shares = [(index + 1) / (plan.num_limits + 1) for index in range(plan.num_limits)]
    limits = (least + share * (most - least) for share in shares)
    return tuple(dict.fromkeys(limit if plan.measure == "latency" else float(int(limit)) for limit in limits))


def find_points(
    plan: ParetoPlan, limits: Sequence[float], posteriors: Sequence[Probabilities], config: StudyConfig
) -> tuple[FrontPoint, ...]:
    """The most probable network under each limit, and without, by each posterior; each once, cheapest first.

    Args:
        plan: of the front.
        limits: in the measure's unit.
        posteriors: by the plan's weights.
        config: of the study.

    Raises:
        InvalidInputError: no network keeps a limit.
    """
    space, network = config.space, config.network
    size, num_classes = plan.task.image_size, len(plan.task.classes)
    found: dict[str, tuple[Genotype, list[Origin]]] = {}
    for weight, posterior in zip(plan.weights, posteriors, strict=True):
        for limit in (*limits, None):
            genotype = select(posterior, space, network, size, num_classes, plan.limit(limit)).genotype
            found.setdefault(genotype.to_json(), (genotype, []))[1].append(Origin(weight=weight, limit=limit))
    points = [
        _point(plan, genotype, tuple(origins), genotype_probability(genotype, posteriors[0], space), config)
        for genotype, origins in found.values()
    ]
    return marked(points, plan.measure)


def marked(points: Sequence[FrontPoint], measure: Measure) -> tuple[FrontPoint, ...]:
    """The points, cheapest first, with those marked that another one dominates."""

    def dominates(one: FrontPoint, other: FrontPoint) -> bool:
        no_worse = one.cost(measure) <= other.cost(measure) and one.quality >= other.quality
        return no_worse and (one.cost(measure) < other.cost(measure) or one.quality > other.quality)

    ordered = sorted(points, key=lambda point: (point.cost(measure), -point.quality, point.genotype.to_json()))
    return tuple(
        point.model_copy(update={"is_dominated": any(dominates(one, point) for one in points)}) for point in ordered
    )


def with_accuracy(point: FrontPoint, result: Mapping[str, Any]) -> FrontPoint:
    """A point whose network was trained; `result` is what its evaluation found."""
    interval = (float(result["interval_95"][0]), float(result["interval_95"][1]))
    return point.model_copy(update={"accuracy": float(result["accuracy"]), "interval_95": interval})


def posterior_bytes(probabilities: Probabilities, accuracy: float) -> bytes:
    """An adaptation's posterior and held-out accuracy, as they are stored."""
    values = {kind: matrix.tolist() for kind, matrix in probabilities.items()}
    return json.dumps({"accuracy": accuracy, "probabilities": values}).encode()


def read_posterior(folder: ArtifactFolder, index: int, space: SpaceConfig) -> tuple[Probabilities, float] | None:
    """What adapting with the plan's weight number `index` gave; None where it was not done yet.

    Raises:
        CorruptArtifactError: it is damaged.
    """
    name = posterior_name(index)
    try:
        content = json.loads(folder.read(name))
        probabilities = {kind: np.array(content["probabilities"][kind], np.float64) for kind in space.cell_kinds}
        if any(matrix.shape != (space.topology.num_edges, len(space.ops)) for matrix in probabilities.values()):
            raise ValueError("probabilities have another shape")
        return probabilities, float(content["accuracy"])
    except NotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptArtifactError(f"{folder.path(name)} is damaged: {error}; remove it") from None


def posterior_name(index: int) -> str:
    """Of the file of the plan's weight number `index`."""
    return f"posterior-{index}.json"


def _point(
    plan: ParetoPlan, genotype: Genotype, origins: tuple[Origin, ...], probability: float, config: StudyConfig
) -> FrontPoint:
    cost = _counted(plan, genotype, config)
    return FrontPoint(
        genotype=genotype,
        origins=origins,
        probability=probability,
        num_params=cost.num_params,
        num_macs=cost.num_macs,
        latency_ms=None if plan.table is None else network_ms(genotype, plan.table),
    )


def _counted(plan: ParetoPlan, genotype: Genotype, config: StudyConfig) -> Cost:
    if plan.network is not None:
        return count_network(genotype, plan.network).total
    return network_cost(genotype, config.space, config.network, plan.task.image_size, len(plan.task.classes))


def _cost_of(plan: ParetoPlan, genotype: Genotype, config: StudyConfig) -> float:
    return _point(plan, genotype, (), 0.0, config).cost(plan.measure)
