"""A step of the supernet, forward and backward: soft against hard, and against the naive network of the tests.

Hard (straight-through) computes one op per edge. The naive network computes every op of every edge on its own.
"""

import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from reporting import arguments, console, finish, interleaved, spread

from common.config import NetworkConfig, SpaceConfig
from common.meta.posterior import relax
from common.nn.supernet import build_supernet
from workers.device import use_single_thread

sys.path.insert(0, str(Path(__file__).parents[1]))
from reference.naive_supernet import NaiveSupernet

SEED = 3
# Batch, image size, head stride, channels, cells: the demo's network, and W2 of the DARTS search network.
WORKLOADS = {
    "demo": (32, 32, 4, 16, ("normal", "reduction")),
    "w2": (25, 32, 1, 16, ("normal", "reduction", "normal", "reduction")),
}


def measure(name: str, repeats: int) -> dict[str, object]:
    """Seconds of the three steps and their ratios, on one workload."""
    batch, size, stride, channels, cells = WORKLOADS[name]
    space = SpaceConfig(profile="darts" if name == "w2" else "base")
    network = NetworkConfig(channels=channels, cells=cells, heads={size: stride})
    generator = torch.Generator().manual_seed(SEED)
    images = torch.randn(batch, 3, size, size, generator=generator).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(0, 10, (batch,), generator=generator)
    supernet = build_supernet(space, network, SEED)
    naive = NaiveSupernet(space, network)
    naive.load_state_dict(supernet.state_dict())
    classifier = torch.nn.Linear(supernet.num_features, 10)
    kinds = tuple(space.cell_kinds)
    logits = torch.zeros(len(kinds), space.topology.num_edges, len(space.ops), requires_grad=True)
    noise = torch.from_numpy(np.random.default_rng(SEED).gumbel(size=tuple(logits.shape)).astype(np.float32))

    def step(net: torch.nn.Module, kind: str) -> None:
        mixtures = relax(logits, noise, 1.0, kind, space.topology, space.normalisation).mixtures(kinds)  # type: ignore[arg-type]
        F.cross_entropy(classifier(net(images, mixtures, size)), labels).backward()

    seconds = interleaved(
        {
            "soft": lambda: step(supernet, "gumbel"),
            "hard": lambda: step(supernet, "straight_through"),
            "naive": lambda: step(naive, "gumbel"),
        },
        repeats,
    )
    hard_ratio, naive_ratio = spread(seconds["soft"] / seconds["hard"]), spread(seconds["naive"] / seconds["soft"])
    for label, values in seconds.items():
        value = spread(values * 1e3)
        console.print(f"{name} {label:6s} {value['median']:8.1f} ms ({value['low']:.1f} to {value['high']:.1f})")
    console.print(f"{name} hard is {hard_ratio['median']:.1f}x soft, soft is {naive_ratio['median']:.2f}x naive")
    step_ms = {label: spread(values * 1e3) for label, values in seconds.items()}
    return {"step_ms": step_ms, "soft_over_hard": hard_ratio, "naive_over_soft": naive_ratio}


def main() -> None:
    parser = arguments(__doc__ or "")
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    use_single_thread()
    result = {name: measure(name, options.repeats) for name in WORKLOADS}
    finish(result, {"weights": SEED}, options.json)


if __name__ == "__main__":
    main()
