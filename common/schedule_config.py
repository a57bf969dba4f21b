"""When a round ends, or whether there are rounds at all, as a value. No torch."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from common.outer_config import OuterConfig
from common.values import Frozen, NonNegativeFloat, PositiveFloat

MAX_UPDATES = 4096
"""Updates that a version can be made of: what exact sums have room for, see `common.meta.aggregate`."""
_FIELDS_OF = {
    "synchronous": ("quorum_fraction", "deadline_s"),
    "buffered": ("buffer_size", "max_in_flight", "staleness_power", "max_staleness"),
}


class ScheduleConfig(Frozen):
    """When the prior moves (service design: "Modes"; the paper's rounds are synchronous, the rest is reconstruction).

    synchronous: once all tasks of a round are back, so that a prior does not depend on who was fast. With a deadline,
    rounds that are late go on without their stragglers.
    buffered: whenever enough updates are back, while other tasks go on (buffered asynchronous aggregation, Nguyen et
    al. 2022). No worker ever waits for another. What a prior learns then depends on who was fast, and is logged; every
    version counts as a round.
    """

    mode: Literal["synchronous", "buffered"] = "synchronous"

    quorum_fraction: Annotated[float, Field(gt=0, le=1)] = 1.0
    """synchronous: share of a round's tasks without whose updates it does not go on, deadline or not."""
    deadline_s: PositiveFloat | None = None
    """synchronous: seconds from the start of a round after which it goes on with a quorum; its other tasks are given
    up, and count as late."""

    buffer_size: int | None = Field(None, ge=1, le=MAX_UPDATES)
    """buffered: updates that make a version; where not given, as many as a round has tasks."""
    max_in_flight: int | None = Field(None, ge=1)
    """buffered: most tasks under way at a time; where not given, two per worker."""
    staleness_power: NonNegativeFloat = 0.5
    """buffered: an update weighs (1 + staleness) to minus this power, its staleness being the number of versions that
    were made since it began."""
    max_staleness: int = Field(10, ge=0)
    """buffered: an update with more staleness is rejected."""

    @property
    def is_plain(self) -> bool:
        """Whether every task of a round counts, so that the prior is a function of the configuration and data alone."""
        return self.mode == "synchronous" and self.deadline_s is None

    def staleness_weight(self, staleness: int) -> float:
        """What the weight of an update is multiplied by."""
        return float((1 + staleness) ** -self.staleness_power)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        for mode, names in _FIELDS_OF.items():
            for name in names:
                if mode != self.mode and getattr(self, name) != type(self).model_fields[name].default:
                    raise ValueError(
                        f"{name} is {getattr(self, name)}, mode {self.mode!r} has none; leave it out, or set mode to "
                        f"{mode!r}"
                    )
        if self.quorum_fraction < 1 and self.deadline_s is None:
            raise ValueError(
                f"quorum_fraction is {self.quorum_fraction:g}, and is asked for after a deadline only; set "
                "schedule.deadline_s"
            )
        if self.quorum_fraction == 1 and self.deadline_s is not None:
            raise ValueError(
                f"deadline_s is {self.deadline_s:g}, and a quorum of all tasks waits for them anyway; set "
                "schedule.quorum_fraction below 1"
            )
        return self

    def misfit(self, outer: OuterConfig) -> str | None:
        """What is wrong with the outer step under this schedule."""
        least = outer.min_accepted_fraction
        if self.deadline_s is not None and self.quorum_fraction < least:
            return (
                f"schedule.quorum_fraction is {self.quorum_fraction:g}, and a round fails with fewer updates than "
                f"outer.min_accepted_fraction, {least:g}; raise the one or lower the other"
            )
        if self.mode == "buffered" and least == 0:
            return (
                "outer.min_accepted_fraction is 0, so a buffer would wait for good updates without end where there are "
                "none; raise it"
            )
        if self.mode == "buffered" and self.staleness_power > 0 and outer.rule in ("median", "trimmed_mean"):
            return f"outer.rule {outer.rule!r} has no weights; set schedule.staleness_power to 0"
        return None
