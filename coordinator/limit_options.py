"""Options of the command line that limit what a derived network may cost."""

from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError

from common.errors import InvalidInputError
from common.latency import read_table
from common.limits import Limits
from common.values import explain

MaxParamsOption = Annotated[int | None, typer.Option(min=1, help="Parameters that the genotype may have.")]
MaxMacsOption = Annotated[int | None, typer.Option(min=1, help="Multiply-accumulates that it may take.")]
MaxLatencyOption = Annotated[
    float | None, typer.Option(help="Milliseconds that its full network may take by --latency-table.")
]
LatencyTableOption = Annotated[
    Path | None, typer.Option(help="What `metasearch profile` measured; goes with --max-latency-ms.")
]


def limits_of(
    max_params: int | None, max_macs: int | None, max_latency_ms: float | None, latency_table: Path | None
) -> Limits:
    """The limits that a user's options make.

    Raises:
        NotFoundError: there is no such table.
        InvalidInputError: the file holds none, or one of latency and table is missing, or a limit is out of range.
    """
    if (max_latency_ms is None) != (latency_table is None):
        given = "--latency-table" if max_latency_ms is None else "--max-latency-ms"
        other = "--max-latency-ms" if max_latency_ms is None else "--latency-table"
        raise InvalidInputError(f"{given} goes with {other}; give both, or neither")
    try:
        return Limits(
            max_params=max_params,
            max_macs=max_macs,
            max_latency_ms=max_latency_ms,
            latency_table=None if latency_table is None else read_table(latency_table),
        )
    except ValidationError as error:
        raise InvalidInputError(f"limits: {explain(error)}") from None
