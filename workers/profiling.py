"""Times everything that full networks of one shape are made of, on this machine's device (`metasearch profile`).

Every op and part stands alone, in evaluation mode, with freshly drawn weights, on random maps. Repeats are interleaved:
each goes once through all of them, in an order of its own, so that drift hits all alike, and no op finds its maps in
the cache because it has just run. What was measured is kept after every repeat, in a file beside the table; a call
with the same arguments goes on with it.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from common.errors import ConflictError, CorruptArtifactError, InvalidInputError, NotFoundError
from common.latency import LatencyTable, OpShape, OpTiming, PartTiming, network_ms, op_shapes
from common.network_config import FullNetworkConfig, sized_plans
from common.nn.full import ConvNorm, FullNetwork, ReducedNorm, build_full_network, full_op
from common.space.genotype import Genotype, GenotypeEdge
from common.space.primitives import AVG_POOL, MAX_POOL, SKIP
from common.space.released import NORMAL, REDUCTION
from common.space.topology import NUM_CELL_INPUTS
from common.storage import ArtifactFolder
from common.streams import stream
from workers.device import device_name, elapsed_ms

WARM_UP_REPEATS = 3
# In a row between two events of a GPU, see `elapsed_ms`.
CALLS_ON_GPU = 10
PARTIAL_SUFFIX = ".partial"

Call = Callable[[], object]
OnProgress = Callable[[int, int], None]


@dataclass(frozen=True)
class ProfileSpec:
    """What is profiled.

    Attributes:
        network: its shape.
        primitives: ops to measure, without none.
        num_nodes: per cell.
        batch_size: images that go through together.
        num_threads: of a CPU.
        num_repeats: measurements of each time, after a few that warm up.
    """

    network: FullNetworkConfig
    primitives: tuple[str, ...]
    num_nodes: int = 4
    batch_size: int = 1
    num_threads: int = 1
    num_repeats: int = 30


@dataclass(frozen=True)
class Check:
    """Random genotypes' networks, predicted by a table and measured whole; milliseconds, one of each per genotype."""

    predicted_ms: tuple[float, ...]
    measured_ms: tuple[float, ...]

    @property
    def rank_correlation(self) -> float:
        """Spearman's; NaN for fewer than two networks."""
        if len(self.predicted_ms) < 2:
            return float("nan")
        return float(np.corrcoef(_ranks(self.predicted_ms), _ranks(self.measured_ms))[0, 1])

    @property
    def median_relative_error(self) -> float:
        """Of |predicted - measured| / measured."""
        predicted, measured = np.array(self.predicted_ms), np.array(self.measured_ms)
        return float(np.median(np.abs(predicted - measured) / measured))

    @property
    def median_ratio(self) -> float:
        """Of predicted / measured: below 1 where networks take longer than the sum of their parts."""
        return float(np.median(np.array(self.predicted_ms) / np.array(self.measured_ms)))


def profile(
    spec: ProfileSpec,
    device: torch.device,
    folder: ArtifactFolder,
    name: str,
    on_progress: OnProgress = lambda done, total: None,
    seed: int = 0,
) -> LatencyTable:
    """Measures a table and stores it; goes on with what an interrupted call has left.

    Args:
        spec: what to measure.
        device: to compute on; a CPU computes on `spec.num_threads` threads from here on.
        folder: for the table.
        name: of its file.
        on_progress: called with the measurements done and their total, after each repeat.
        seed: draws weights, maps and the orders of measuring.

    Raises:
        ConflictError: the interrupted call measured something else.
        CorruptArtifactError: what it left is damaged.
        UnavailableError: the storage refuses.
    """
    use_threads(spec.num_threads, device)
    samples = _Samples.of(_header(spec, device), folder, name + PARTIAL_SUFFIX)
    with torch.inference_mode():
        calls, counts = _calls(spec, device, seed)
        num_calls = CALLS_ON_GPU if device.type == "cuda" else 1
        total = len(calls) * spec.num_repeats
        if samples.num_repeats < spec.num_repeats:
            for _ in range(WARM_UP_REPEATS):
                for call in calls.values():
                    elapsed_ms(device, call, num_calls)
        names = list(calls)
        for repeat in range(samples.num_repeats, spec.num_repeats):
            on_progress(repeat * len(calls), total)
            order = stream(seed, "profile order", repeat).permutation(len(names))
            samples.add_({names[index]: elapsed_ms(device, calls[names[index]], num_calls) for index in order})
            folder.write(name + PARTIAL_SUFFIX, samples.to_bytes())
        on_progress(total, total)
    table = _table(spec, device, samples, counts)
    folder.write(name, table.to_json().encode())
    folder.remove(name + PARTIAL_SUFFIX)
    return table


def check(
    table: LatencyTable,
    device: torch.device,
    num_genotypes: int,
    on_progress: OnProgress = lambda done, total: None,
    seed: int = 0,
) -> Check:
    """Measures whole networks of random genotypes as the table's parts were measured: interleaved, medians of repeats.

    Args:
        table: that predicts.
        device: the table's.
        num_genotypes: to draw.
        on_progress: called with the measurements done and their total, after each repeat.
        seed: draws genotypes, weights and images.

    Raises:
        InvalidInputError: the device is another one than the table's.
    """
    if device_name(device) != table.device:
        raise InvalidInputError(f"the table is of {table.device}, this device is {device_name(device)}; profile it")
    use_threads(table.num_threads, device)
    genotypes = [random_genotype(table.primitives, table.num_nodes, seed, index) for index in range(num_genotypes)]
    shape = (table.batch_size, table.network.image_channels, table.network.image_size, table.network.image_size)
    images = _maps(shape, device, seed)
    measured: dict[int, list[float]] = {index: [] for index in range(num_genotypes)}
    total = num_genotypes * table.num_repeats
    with torch.inference_mode():
        networks = [_settled(build_full_network(genotype, table.network, seed), device, seed) for genotype in genotypes]
        for repeat in range(-WARM_UP_REPEATS, table.num_repeats):
            for index in stream(seed, "check order", repeat + WARM_UP_REPEATS).permutation(num_genotypes):
                took_ms = elapsed_ms(device, lambda network=networks[index]: network(images))  # type: ignore[misc]
                if repeat >= 0:
                    measured[int(index)].append(took_ms)
            on_progress(max(repeat + 1, 0) * num_genotypes, total)
    return Check(
        tuple(network_ms(genotype, table) for genotype in genotypes),
        tuple(float(np.median(measured[index])) for index in range(num_genotypes)),
    )


def random_genotype(primitives: Sequence[str], num_nodes: int, seed: int, index: int) -> Genotype:
    """Two different (source, op) pairs per node, all equally likely; the same for the same arguments."""
    random = stream(seed, "random genotype", index)

    def node(number: int) -> tuple[GenotypeEdge, ...]:
        pairs = random.choice((NUM_CELL_INPUTS + number) * len(primitives), 2, replace=False)
        chosen = (divmod(int(pair), len(primitives)) for pair in sorted(pairs))
        return tuple(GenotypeEdge(source=source, primitive=primitives[op]) for source, op in chosen)

    return Genotype(cells={kind: tuple(node(number) for number in range(num_nodes)) for kind in (NORMAL, REDUCTION)})


def use_threads(num_threads: int, device: torch.device) -> None:
    """Threads of this process from here on, where it computes on a CPU."""
    if device.type == "cpu":
        torch.set_num_threads(num_threads)


@dataclass
class _Samples:
    """Times of all repeats so far, milliseconds by what they are of.

    Attributes:
        header: what is measured, in plain values.
    """

    header: Mapping[str, Any]
    by_name: dict[str, list[float]] = field(default_factory=dict)

    @classmethod
    def of(cls, header: Mapping[str, Any], folder: ArtifactFolder, name: str) -> "_Samples":
        """What an interrupted call has left, or none."""
        try:
            content = json.loads(folder.read(name))
            found = cls(content["header"], {str(key): list(values) for key, values in content["samples"].items()})
            found.num_repeats  # noqa: B018 refuses what is damaged
        except NotFoundError:
            return cls(header)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CorruptArtifactError(f"{folder.path(name)} is damaged: {error}; remove it to start anew") from None
        if found.header != header:
            raise ConflictError(
                f"{folder.path(name)} is of an interrupted profile of something else; remove it, or choose another file"
            )
        return found

    @property
    def num_repeats(self) -> int:
        """Complete ones."""
        lengths = {len(values) for values in self.by_name.values()} or {0}
        if len(lengths) > 1:
            raise ValueError("repeats are incomplete")
        return lengths.pop()

    def add_(self, repeat: Mapping[str, float]) -> None:
        for name, took_ms in repeat.items():
            self.by_name.setdefault(name, []).append(took_ms)

    def to_bytes(self) -> bytes:
        return json.dumps({"header": self.header, "samples": self.by_name}).encode()

    def timing(self, name: str) -> dict[str, float]:
        low, median, high = (float(value) for value in np.percentile(self.by_name[name], [25, 50, 75]))
        return {"median_ms": median, "low_ms": low, "high_ms": high}


def _header(spec: ProfileSpec, device: torch.device) -> dict[str, Any]:
    return {
        "device": device_name(device),
        "torch": torch.__version__,
        "network": spec.network.model_dump(mode="json"),
        "primitives": list(spec.primitives),
        "num_nodes": spec.num_nodes,
        "batch_size": spec.batch_size,
        "num_threads": spec.num_threads,
    }


def _table(spec: ProfileSpec, device: torch.device, samples: _Samples, counts: Mapping[str, int]) -> LatencyTable:
    ops = tuple(
        OpTiming(primitive=primitive, shape=shape, **samples.timing(_op_name(primitive, shape)))
        for shape in _shapes(spec)
        for primitive in spec.primitives
    )
    parts = tuple(PartTiming(part=name, count=count, **samples.timing(name)) for name, count in counts.items())
    return LatencyTable(
        device=device_name(device),
        device_type="cuda" if device.type == "cuda" else "cpu",
        torch=torch.__version__,
        num_threads=spec.num_threads,
        batch_size=spec.batch_size,
        num_repeats=samples.num_repeats,
        network=spec.network,
        num_nodes=spec.num_nodes,
        ops=ops,
        parts=parts,
    )


def _shapes(spec: ProfileSpec) -> list[OpShape]:
    """All shapes that ops have in the network, each once."""
    by_place = op_shapes(spec.network, spec.num_nodes).values()
    return list(dict.fromkeys(shape for shapes in by_place for shape in shapes))


def _op_name(primitive: str, shape: OpShape) -> str:
    return f"{primitive}, {shape.channels} channels, size {shape.size}, stride {shape.stride}"


def _calls(spec: ProfileSpec, device: torch.device, seed: int) -> tuple[dict[str, Call], dict[str, int]]:
    """What is timed by name, ops and parts; and how often each part is in the network."""
    calls: dict[str, Call] = {}
    for shape in _shapes(spec):
        maps = _maps((spec.batch_size, shape.channels, shape.size, shape.size), device, seed)
        for primitive in spec.primitives:
            op = full_op(primitive, shape.channels, shape.stride).to(device).eval()
            # Pools and an identity read maps as they are.
            is_rectified = primitive not in (MAX_POOL, AVG_POOL) and not (primitive == SKIP and shape.stride == 1)
            calls[_op_name(primitive, shape)] = _op_call(op, maps, is_rectified)
    counts: dict[str, int] = {}
    for name, call in _parts(spec, device, seed):
        calls.setdefault(name, call)
        counts[name] = counts.get(name, 0) + 1
    return calls, counts


def _parts(spec: ProfileSpec, device: torch.device, seed: int) -> list[tuple[str, Call]]:
    """Every part that all genotypes' networks have, one after the other."""
    batch, network = spec.batch_size, spec.network
    pool = ((GenotypeEdge(source=0, primitive=MAX_POOL),),) * spec.num_nodes
    frame = build_full_network(Genotype(cells={NORMAL: pool, REDUCTION: pool}), network, seed).to(device).eval()
    images = _maps((batch, network.image_channels, network.image_size, network.image_size), device, seed)
    stem = nn.Sequential(*frame.stems)
    parts: list[tuple[str, Call]] = [("stem", lambda: stem(images))]
    size, channels_out = network.image_size, 0
    for plan, size in sized_plans(network, spec.num_nodes):
        for place, channels in enumerate(plan.channels_before):
            reduces = place == 0 and plan.input0_is_larger
            block = (ReducedNorm if reduces else ConvNorm)(channels, plan.channels).to(device).eval()
            maps = _maps((batch, channels, *(2 * size if reduces else size,) * 2), device, seed)
            what = "reducing" if reduces else "fitting"
            parts.append((f"{what} {channels} to {plan.channels} channels, size {size}", _op_call(block, maps, True)))
        size = -(-size // plan.stride)
        nodes = [_maps((batch, plan.channels, size, size), device, seed + node) for node in range(spec.num_nodes)]
        parts.append((f"joining {spec.num_nodes} nodes of {plan.channels} channels, size {size}", _join_call(nodes)))
        channels_out = plan.channels_out
    last = _maps((batch, channels_out, size, size), device, seed)
    parts.append(("classifier", lambda: frame.classifier(last.mean(dim=(2, 3)))))
    return parts


def _op_call(op: nn.Module, maps: Tensor, is_rectified: bool) -> Call:
    return (lambda: op(F.relu(maps))) if is_rectified else (lambda: op(maps))


def _join_call(nodes: Sequence[Tensor]) -> Call:
    """Each node is the sum of two ops' maps; all are joined."""
    return lambda: torch.cat([maps + maps for maps in nodes], dim=1)


def _maps(shape: tuple[int, ...], device: torch.device, seed: int) -> Tensor:
    drawn = stream(seed, "profile maps", *shape).standard_normal(shape, dtype=np.float32)
    return torch.from_numpy(drawn).to(device)


def _settled(network: FullNetwork, device: torch.device, seed: int) -> FullNetwork:
    """In evaluation mode, with the statistics of a batch: else maps shrink cell by cell, to numbers that are slow."""
    config = network.config
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    network = network.to(device).train()
    network(_maps((8, config.image_channels, config.image_size, config.image_size), device, seed))
    return network.eval()


def _ranks(values: Sequence[float]) -> NDArray[np.float64]:
    """From 0, the mean rank for equal values."""
    array = np.array(values)
    below = (array[None, :] < array[:, None]).sum(axis=1)
    equal = (array[None, :] == array[:, None]).sum(axis=1)
    ranks: NDArray[np.float64] = below + (equal - 1) / 2
    return ranks
