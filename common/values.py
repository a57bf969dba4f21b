"""The base of every value that comes from outside, ranges of numbers, and how a mistake in a value is explained."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

PositiveFloat = Annotated[float, Field(gt=0)]
NonNegativeFloat = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
LearningRate = Annotated[float, Field(gt=0, le=1000)]
LearningRateOrZero = Annotated[float, Field(ge=0, le=1000)]


class Frozen(BaseModel):
    """Base of every value that comes from outside: immutable, and unknown fields are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)


def explain(error: ValidationError) -> str:
    """One line for each problem that pydantic found: field, reason, value."""
    lines = []
    for problem in error.errors(include_url=False):
        where = ".".join(str(part) for part in problem["loc"])
        reason = problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "extra_forbidden":
            reason = "no such field; check the spelling"
        value = "" if isinstance(problem["input"], dict | list | BaseModel) else f" (got {problem['input']!r})"
        lines.append(f"{where}: {reason}{value}" if where else f"{reason}{value}")
    return "; ".join(lines)
