"""The space of a sweep: fields of a study's configuration, and the values that each may take. No torch, no Ray."""

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import product
from typing import Any, Self

import numpy as np
from pydantic import Field, JsonValue, model_validator

from common.config import Frozen, StudyConfig, validate
from common.errors import InvalidInputError
from common.loading import assign_field
from common.streams import stream

MOST_COMBINATIONS = 1000  # of a grid
_CHECKED = 200  # points that are drawn to see whether the space fits the configuration
_FIELDS = ","

Values = Mapping[str, Any]
"""A value per key of the space; a key names one field, or several by commas, which then take the same value."""


class Domain(Frozen):
    """The values that a field may take: exactly one of these, as in Ray Tune."""

    choice: tuple[JsonValue, ...] | None = Field(None, min_length=1)
    """One of them."""
    grid: tuple[JsonValue, ...] | None = Field(None, min_length=1)
    """Each of them, with every value of the other grids."""
    uniform: tuple[float, float] | None = None
    """From the first up to the second."""
    loguniform: tuple[float, float] | None = None
    """Likewise, the logarithm uniform."""
    quniform: tuple[float, float, float] | None = None
    """From the first to the second, rounded to multiples of the third."""
    randint: tuple[int, int] | None = None
    """Whole numbers from the first up to, but not including, the second."""
    lograndint: tuple[int, int] | None = None
    """Likewise, the logarithm uniform."""

    @model_validator(mode="after")
    def _one(self) -> Self:
        if sum(getattr(self, name) is not None for name in type(self).model_fields) != 1:
            kinds = ", ".join(type(self).model_fields)
            raise ValueError(f"give exactly one of {kinds}, for example {{ uniform = [0.1, 1.0] }}")
        if self.kind in ("choice", "grid"):
            return self
        low, high, *steps = self.parameters
        if not low < high:
            raise ValueError(f"{self.kind} needs a lower limit below the upper one, got {low} and {high}")
        if self.kind in ("loguniform", "lograndint") and low <= 0:
            raise ValueError(f"{self.kind} needs a lower limit above 0, got {low}")
        if steps and not 0 < steps[0] <= high - low:
            raise ValueError(f"quniform needs a step above 0 and no wider than the range, got {steps[0]}")
        return self

    @property
    def kind(self) -> str:
        """Which one it is."""
        return next(name for name in type(self).model_fields if getattr(self, name) is not None)

    @property
    def parameters(self) -> Any:
        """Values or limits of the one that is given."""
        return getattr(self, self.kind)

    @property
    def is_listed(self) -> bool:
        """Whether its values are listed one by one."""
        return self.kind in ("choice", "grid")

    @property
    def is_whole(self) -> bool:
        """Whether its values are whole numbers."""
        return self.kind in ("randint", "lograndint")

    @property
    def ends(self) -> tuple[Any, ...]:
        """Every value of a list; the least and the greatest value of a range."""
        if self.is_listed:
            return tuple(self.parameters)
        low, high = self.parameters[:2]
        return (low, high - 1) if self.is_whole else (low, high)

    def clipped(self, value: Any) -> Any:
        """The nearest value of a range; listed values are left alone."""
        if self.is_listed:
            return value
        if self.kind == "quniform":
            value = round(value / self.parameters[2]) * self.parameters[2]
        return min(max(value, self.ends[0]), self.ends[1])

    def draw(self, random: np.random.Generator) -> Any:
        """A value of the domain."""
        if self.is_listed:
            return self.parameters[int(random.integers(len(self.parameters)))]
        low, high = self.ends
        if self.kind in ("loguniform", "lograndint"):
            value = math.exp(random.uniform(math.log(low), math.log(high)))
        else:
            value = float(random.uniform(low, high))
        return self.clipped(round(value) if self.is_whole else value)


Space = Mapping[str, Domain]


def fields_of(key: str) -> tuple[str, ...]:
    """The fields of a key of the space."""
    return tuple(part.strip() for part in key.split(_FIELDS))


def configured(base: StudyConfig, values: Values) -> StudyConfig:
    """The configuration of a trial.

    Raises:
        InvalidInputError: a field is unknown, out of range or of the wrong type.
    """
    tree = base.model_dump(mode="json")
    for key, value in values.items():
        for field in fields_of(key):
            assign_field(tree, field, value)
    return validate(tree)


def check_space(
    space: Space, base: StudyConfig, seed: int, also: Callable[[StudyConfig], None] = lambda config: None
) -> None:
    """Refuses a space with values that the configuration does not take: every listed value, the ends of every range,
    each with drawn values of the other fields; all combinations of a grid.

    Args:
        space: what is swept.
        base: of the other fields.
        seed: draws points.
        also: refuses configurations for another reason.

    Raises:
        InvalidInputError: names field, value and what is allowed.
    """
    for values in _points(space, seed):
        try:
            config = configured(base, values)
            also(config)
        except InvalidInputError as error:
            raise InvalidInputError(f"[space] {_written(values, str(error))}: {error}") from None
        for family in base.families:
            if family.image_size not in config.network.heads:
                raise InvalidInputError(
                    f"[space] {_written(values, 'network.heads')}: network.heads has no image size "
                    f"{family.image_size}, on whose tasks all trials are compared; add it"
                )


def _points(space: Space, seed: int) -> Iterator[dict[str, Any]]:
    """Points of the space that show whether it fits: ends of each domain, then drawn ones; or the whole grid."""
    random = stream(seed, "sweep", "check")
    if combinations_of(space.values()) <= MOST_COMBINATIONS and all(domain.is_listed for domain in space.values()):
        for combination in product(*(domain.parameters for domain in space.values())):
            yield dict(zip(space, combination, strict=True))
        return

    def drawn() -> dict[str, Any]:
        return {key: domain.draw(random) for key, domain in space.items()}

    for key, domain in space.items():
        for end in domain.ends:
            yield {**drawn(), key: end}
    for _ in range(_CHECKED):
        yield drawn()


def _written(values: Values, reason: str) -> str:
    """The values that a reason speaks of; all of them where it names none."""
    named = {key: value for key, value in values.items() if any(field in reason for field in fields_of(key))}
    return ", ".join(f"{key} = {json.dumps(value)}" for key, value in (named or values).items())


def combinations_of(domains: Iterable[Domain]) -> int:
    """Combinations of the listed values."""
    return math.prod(len(domain.parameters) for domain in domains if domain.is_listed)
