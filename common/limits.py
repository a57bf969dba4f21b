"""What a derived network may cost, and how much of it is left for ops."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from pydantic import Field, model_validator

from common.config import Frozen, PositiveFloat, SpaceConfig
from common.cost import CostModel
from common.errors import InvalidInputError
from common.latency import NS_PER_MS, LatencyTable, OpKey, latency_terms, limit_ns, misfit
from common.network_config import FullNetworkConfig

UNLIMITED = 2**62  # above every cost, and within int64 after subtractions


class Limits(Frozen):
    """What a derived network may cost: parameters and multiply-accumulates, and its latency on a device.

    The first two are of the network of the search's layout, by the conventions of `common.cost`, or of the full network
    that `network` names, by those of `common.nn.counting`. The latency is of the full network that the table is of.
    """

    max_params: int | None = Field(None, ge=1)
    """Most parameters, classifier included; no limit where not given."""
    max_macs: int | None = Field(None, ge=1)
    """Most multiply-accumulates for one image; no limit where not given."""
    max_latency_ms: PositiveFloat | None = None
    """Longest latency by the table; no limit where not given."""
    latency_table: LatencyTable | None = None
    """What `metasearch profile` measured; goes with `max_latency_ms`."""
    network: FullNetworkConfig | None = None
    """What the first two limits are of; the network of the search's layout where not given."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.max_latency_ms is not None and self.latency_table is None:
            raise ValueError("max_latency_ms needs a latency_table; make one: metasearch profile")
        if self.latency_table is not None and self.max_latency_ms is None:
            raise ValueError("latency_table goes with max_latency_ms; set a limit, or leave the table out")
        if self.network is not None and self.max_params is None and self.max_macs is None:
            raise ValueError("network goes with max_params or max_macs; set a limit, or leave the network out")
        return self

    def plain(self) -> dict[str, Any]:
        """As results hold them: a latency table by its device and digest, and only where there is one."""
        values: dict[str, Any] = {"max_params": self.max_params, "max_macs": self.max_macs}
        if self.network is not None:
            values["network"] = self.network.model_dump(mode="json")
        if self.latency_table is not None:
            text = self.latency_table.to_json()
            values["max_latency_ms"] = self.max_latency_ms
            values["latency_table"] = {
                "device": self.latency_table.device,
                "sha256": hashlib.sha256(text.encode()).hexdigest(),
                "network": self.latency_table.network.model_dump(mode="json"),
            }
        return values


@dataclass(frozen=True)
class Resource:
    """What a limit is set on.

    Attributes:
        field: of `Limits`.
        most: its limit.
        unit: what is counted.
        constant: what all genotypes take of it.
        per_unit: how much of the sums' whole numbers make one of the unit; sums are exact.
        room: whole numbers that are left for ops; negative where the constant part is too much.
        of_op: what an op takes, by kind of cell, whether it reads an input of the cell, and primitive.
    """

    field: str
    most: float
    unit: str
    constant: int
    per_unit: int
    room: int
    of_op: Mapping[OpKey, int]

    def written(self, total: int) -> str:
        """A total, with its unit."""
        return f"{total if self.per_unit == 1 else f'{total / self.per_unit:.6g}'} {self.unit}"


def resources_of(limits: Limits, model: CostModel, space: SpaceConfig, image_size: int) -> list[Resource]:
    """What is limited."""
    resources = []
    for name, unit, constant, of_op in (
        ("max_params", "parameters", model.constant.num_params, {key: op.num_params for key, op in model.ops.items()}),
        (
            "max_macs",
            "multiply-accumulates",
            model.constant.num_macs,
            {key: op.num_macs for key, op in model.ops.items()},
        ),
    ):
        most = getattr(limits, name)
        if most is not None:
            resources.append(Resource(name, most, unit, constant, 1, min(most, UNLIMITED) - constant, of_op))
    if limits.latency_table is not None and limits.max_latency_ms is not None:
        problem = misfit(limits.latency_table, space.cell_kinds, space.ops, space.num_nodes, image_size)
        if problem is not None:
            raise InvalidInputError(problem)
        terms = latency_terms(limits.latency_table)
        room = min(limit_ns(limits.max_latency_ms), UNLIMITED) - terms.constant
        most = limits.max_latency_ms
        resources.append(Resource("max_latency_ms", most, "ms", terms.constant, NS_PER_MS, room, terms.ops))
    return resources
