"""Made-up latency tables: times that no device has, to compute with by hand."""

from collections.abc import Callable

from common.latency import LatencyTable, OpShape, OpTiming, PartTiming, op_shapes
from common.network_config import FullNetworkConfig, network_config


def latency_table(
    primitives: tuple[str, ...],
    took_ms: Callable[[str, OpShape], float],
    num_nodes: int = 2,
    network: FullNetworkConfig | None = None,
    part_ms: float = 0.5,
) -> LatencyTable:
    """A table with `took_ms` for every op of every shape, and one part, twice in the network."""
    network = network or network_config("cifar", channels=4, num_cells=5, image_size=16)
    shapes = {shape: None for shapes in op_shapes(network, num_nodes).values() for shape in shapes}
    return LatencyTable(
        device="abacus",
        device_type="cpu",
        torch="2",
        num_threads=1,
        batch_size=1,
        num_repeats=1,
        network=network,
        num_nodes=num_nodes,
        ops=tuple(
            OpTiming(primitive=name, shape=shape, median_ms=took_ms(name, shape), low_ms=0, high_ms=0)
            for shape in shapes
            for name in primitives
        ),
        parts=(PartTiming(part="beads", count=2, median_ms=part_ms, low_ms=0, high_ms=0),),
    )
