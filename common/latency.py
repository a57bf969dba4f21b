"""Latency tables: what the parts of full networks take on one device, as a value with JSON. No torch.

A full network's latency is predicted as a sum: what all genotypes share (stem, blocks that fit a cell's inputs, joining
of nodes, classifier), and one term for each op that the genotype keeps, in every cell of its kind. That parts add up is
an approximation; `metasearch profile --check` measures how good it is on the device at hand. (Tables of measured ops as
in FBNet, Wu et al. 2019, and ProxylessNAS, Cai et al. 2019.)
"""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, ValidationError, model_validator

from common.errors import InvalidInputError, NotFoundError, UnavailableError
from common.network_config import FullNetworkConfig, sized_plans
from common.space.genotype import Genotype
from common.space.primitives import NONE, PRIMITIVES
from common.space.released import NORMAL, REDUCTION
from common.space.topology import NUM_CELL_INPUTS
from common.values import Frozen, explain

MAX_TABLE_BYTES = 1 << 16
NS_PER_MS = 1_000_000

OpKey = tuple[str, bool, str]
"""Kind of cell, whether the op reads an input of its cell (where the kind's stride applies), and primitive."""

Milliseconds = Annotated[float, Field(ge=0, le=1e9)]
Count = Annotated[int, Field(ge=1, le=1 << 20)]


class Timing(Frozen):
    """How long something took, over the table's repeats."""

    median_ms: Milliseconds
    low_ms: Milliseconds
    """First quartile."""
    high_ms: Milliseconds
    """Third quartile."""

    @property
    def median_ns(self) -> int:
        """The median, in whole nanoseconds: sums of them are exact."""
        return round(self.median_ms * NS_PER_MS)


class OpShape(Frozen):
    """What an op reads and does; all but its primitive."""

    channels: Count
    size: Count
    """Height and width in pixels of the maps that it reads."""
    stride: Literal[1, 2]


class OpTiming(Timing):
    """An op of one shape, the ReLU before it included where it has one."""

    primitive: str
    shape: OpShape


class PartTiming(Timing):
    """A part that networks of all genotypes share."""

    part: Annotated[str, Field(min_length=1, max_length=80)]
    count: Count
    """How often it is in the network."""


class LatencyTable(Frozen):
    """Measured times of everything that networks of one shape are made of, on one device."""

    format: Literal[1] = 1
    device: Annotated[str, Field(max_length=200)]
    """As its maker calls it."""
    device_type: Literal["cpu", "cuda"]
    torch: Annotated[str, Field(max_length=80)]
    """Version that computed."""
    num_threads: Count
    """Of a CPU; one process."""
    batch_size: Count
    """Images that go through the network together; all times are of a batch."""
    num_repeats: Count
    """Measurements of each time."""
    network: FullNetworkConfig
    num_nodes: int = Field(ge=1, le=16)
    """Per cell."""
    ops: Annotated[tuple[OpTiming, ...], Field(min_length=1, max_length=200)]
    parts: Annotated[tuple[PartTiming, ...], Field(max_length=200)]

    @model_validator(mode="after")
    def _is_complete(self) -> Self:
        for primitive in self.primitives:
            if primitive not in PRIMITIVES or primitive == NONE:
                raise ValueError(f"ops has the unknown op {primitive!r}; profile the network again")
        keys = Counter((timing.primitive, timing.shape) for timing in self.ops)
        for shape in {shape for shapes in op_shapes(self.network, self.num_nodes).values() for shape in shapes}:
            for primitive in self.primitives:
                if keys[primitive, shape] != 1:
                    raise ValueError(
                        f"ops has {keys[primitive, shape]} times of {primitive} with {shape.channels} channels, size "
                        f"{shape.size}, stride {shape.stride}, and needs one; profile the network again"
                    )
        return self

    @property
    def primitives(self) -> tuple[str, ...]:
        """Ops that were measured, in the order of `PRIMITIVES`."""
        names = {timing.primitive for timing in self.ops}
        return tuple(name for name in PRIMITIVES if name in names) + tuple(sorted(names - set(PRIMITIVES)))

    def to_json(self) -> str:
        """Compact JSON; equal tables give equal text."""
        return self.model_dump_json()

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """The inverse of `to_json`.

        Raises:
            InvalidInputError: it is too long, or no table.
        """
        if len(text) > MAX_TABLE_BYTES:
            raise InvalidInputError(f"a latency table has at most {MAX_TABLE_BYTES} bytes, got {len(text)}")
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            raise InvalidInputError(f"latency table: {explain(error)[:500]}") from None


@dataclass(frozen=True)
class LatencyTerms:
    """The additive latency of every genotype, in nanoseconds.

    Attributes:
        constant: what all genotypes share.
        ops: what one such op adds, over all cells of its kind.
    """

    constant: int
    ops: Mapping[OpKey, int]


def op_shapes(network: FullNetworkConfig, num_nodes: int) -> dict[tuple[str, bool], list[OpShape]]:
    """Shapes of an op in all cells of a kind, by kind and whether the op reads an input of its cell."""
    shapes: dict[tuple[str, bool], list[OpShape]] = {
        (kind, from_input): [] for kind in (NORMAL, REDUCTION) for from_input in (True, False)
    }
    for plan, size in sized_plans(network, num_nodes):
        stride = 2 if plan.stride == 2 else 1
        shapes[plan.kind, True].append(OpShape(channels=plan.channels, size=size, stride=stride))
        shapes[plan.kind, False].append(OpShape(channels=plan.channels, size=-(-size // stride), stride=1))
    return shapes


def latency_terms(table: LatencyTable) -> LatencyTerms:
    """What `network_ms` adds up, for all genotypes."""
    by_op = {(timing.primitive, timing.shape): timing.median_ns for timing in table.ops}
    ops = {
        (kind, from_input, primitive): sum(by_op[primitive, shape] for shape in shapes)
        for (kind, from_input), shapes in op_shapes(table.network, table.num_nodes).items()
        for primitive in table.primitives
    }
    return LatencyTerms(sum(part.count * part.median_ns for part in table.parts), ops)


def network_ms(genotype: Genotype, table: LatencyTable) -> float:
    """The predicted latency of the network that `genotype` stands for, in milliseconds per batch.

    Raises:
        InvalidInputError: the table lacks an op or a kind of cell of the genotype, or is of another number of nodes.
    """
    terms = latency_terms(table)
    total = terms.constant
    for kind, source, primitive in _kept(genotype):
        key = kind, source < NUM_CELL_INPUTS, primitive
        if key not in terms.ops:
            raise InvalidInputError(
                f"the latency table has no {primitive} in a {kind} cell; profile a space that has it"
            )
        total += terms.ops[key]
    if any(len(nodes) != table.num_nodes for nodes in genotype.cells.values()):
        raise InvalidInputError(f"the latency table is of cells of {table.num_nodes} nodes, the genotype has others")
    return total / NS_PER_MS


def misfit(
    table: LatencyTable,
    cell_kinds: Mapping[str, int],
    ops: Sequence[str],
    num_nodes: int,
    image_size: int | None = None,
) -> str | None:
    """Why a table says nothing about a search space, in a sentence; None where it fits.

    Args:
        table: of one network.
        cell_kinds: the space's kinds of cell, with their strides.
        ops: its candidate ops.
        num_nodes: per cell.
        image_size: of the task, in pixels; not looked at where None.
    """
    if dict(cell_kinds) != {NORMAL: 1, REDUCTION: 2}:
        return (
            f"a latency table is of networks with the cell kinds {NORMAL} (stride 1) and {REDUCTION} (stride 2); "
            f"space.cell_kinds has {', '.join(f'{kind} (stride {stride})' for kind, stride in cell_kinds.items())}"
        )
    if num_nodes != table.num_nodes:
        return f"the latency table is of cells of {table.num_nodes} nodes, space.num_nodes is {num_nodes}; profile anew"
    missing = [name for name in ops if name != NONE and name not in table.primitives]
    if missing:
        return f"the latency table lacks {', '.join(missing)}, which the space has; profile them"
    if image_size is not None and image_size != table.network.image_size:
        return (
            f"the latency table is of images of {table.network.image_size} pixels, the task has {image_size}; "
            f"profile with --image-size {image_size}"
        )
    return None


def read_table(path: str | Path) -> LatencyTable:
    """The table in a file.

    Raises:
        NotFoundError: there is no such file.
        UnavailableError: it cannot be read.
        InvalidInputError: it holds no table.
    """
    try:
        text = Path(path).read_bytes()
    except FileNotFoundError:
        raise NotFoundError(f"there is no latency table {path}; make one: metasearch profile --out {path}") from None
    except OSError as error:
        raise UnavailableError(f"cannot read {path}: {error}") from None
    try:
        return LatencyTable.from_json(text)
    except InvalidInputError as error:
        raise InvalidInputError(f"{path}: {error}") from None


def limit_ns(max_latency_ms: float) -> int:
    """A limit in whole nanoseconds, rounded down, so that what keeps it keeps the limit too."""
    return math.floor(max_latency_ms * NS_PER_MS)


def _kept(genotype: Genotype) -> Iterator[tuple[str, int, str]]:
    for kind, nodes in genotype.cells.items():
        for node in nodes:
            for edge in node:
                yield kind, edge.source, edge.primitive
