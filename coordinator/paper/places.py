"""Search cost against error, as points: figure 2. Pure."""

from dataclasses import dataclass

from coordinator.paper.anchors import PUBLISHED
from coordinator.paper.outcome import Table
from coordinator.paper.studies import MetaTraining


@dataclass(frozen=True)
class Place:
    """A point of figure 2.

    Attributes:
        name: of the architecture.
        cost: of its search.
        error: top-1, in percent.
        low: lower limit of the error; None where there is none.
        high: upper limit.
    """

    name: str
    cost: float
    error: float
    low: float | None = None
    high: float | None = None


def published_places() -> tuple[Place, ...]:
    """Search cost in GPU-days, the meta-training included, against ImageNet error, as far as the paper has both."""
    return tuple(
        Place(row.name, row.total_days, row.error)
        for row in PUBLISHED["imagenet"]
        if row.total_days is not None and row.error is not None
    )


def run_places(table: Table, meta: MetaTraining | None) -> tuple[Place, ...]:
    """The same of a run, in seconds of one worker's device. Published genotypes have none: their search was not run."""
    return tuple(
        Place(
            row.published.name,
            meta.device_s + row.adapt_s,
            row.trained.error,
            row.trained.error_low,
            row.trained.error_high,
        )
        for row in table.rows
        if meta is not None and row.trained is not None and row.adapt_s is not None and not row.is_released
    )


def is_ours(place: Place) -> bool:
    """Whether a point is of the method at hand."""
    return place.name.startswith("BASE")
