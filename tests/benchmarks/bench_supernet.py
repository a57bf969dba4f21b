"""A step of the supernet, forward and backward, against the naive network of the tests, all in one run.

Soft mixtures compute every op of every edge; the naive network does so edge by edge, as the public DARTS code. Hard
(straight-through) mixtures compute one op per edge; the naive network then is a single-path network after GDAS. Peak
memory is that of a process of its own, beyond what it held before the step. It grows in proportion to the batch, and is
taken at a smaller one where the naive network would need more than 20 GB.
"""

import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from reporting import arguments, console, finish, interleaved, spread

from common.config import NetworkConfig, SpaceConfig
from common.meta.posterior import relax
from common.nn.native.library import find
from common.nn.supernet import build_supernet

sys.path.append(str(Path(__file__).parents[1]))
from reference.naive_supernet import NaiveSupernet

SEED = 3
# Space, batch, image size, head stride, channels, cells, classes: as the DARTS search network, and the demo's.
_NORMAL, _REDUCTION = "normal", "reduction"
WORKLOADS: dict[str, tuple[Any, ...]] = {
    "w1": ("darts", 64, 32, 1, 16, (_NORMAL, _NORMAL, _REDUCTION, _NORMAL, _NORMAL, _REDUCTION, _NORMAL, _NORMAL), 10),
    "w2": ("darts", 25, 32, 1, 16, (_NORMAL, _REDUCTION, _NORMAL, _REDUCTION), 5),
    "demo": ("base", 32, 32, 4, 16, (_NORMAL, _REDUCTION), 10),
}
NETWORKS = ("native", "pytorch", "naive")
# Of the peak, where it is not the workload's.
MEMORY_BATCH = {"w1": 16}


class Workload:
    """Networks with equal weights, and what they are fed."""

    def __init__(self, name: str, networks: tuple[str, ...] = NETWORKS, batch: int | None = None) -> None:
        profile, full_batch, self.size, stride, channels, cells, classes = WORKLOADS[name]
        batch = batch or full_batch
        self.space = SpaceConfig(profile=profile)
        generator = torch.Generator().manual_seed(SEED)
        # Plain for the naive network, as public code feeds it; channels last for ours, as workers do.
        self.images = torch.randn(batch, 3, self.size, self.size, generator=generator)
        self.images_last = self.images.contiguous(memory_format=torch.channels_last)
        self.labels = torch.randint(0, classes, (batch,), generator=generator)
        self.nets: dict[str, torch.nn.Module] = {}
        for network in networks:
            engine = "native" if network == "native" else "pytorch"
            config = NetworkConfig(channels=channels, cells=cells, heads={self.size: stride}, engine=engine)
            supernet = build_supernet(self.space, config, SEED)
            self.num_features = supernet.num_features
            if network == "naive":
                naive = NaiveSupernet(self.space, config)
                naive.load_state_dict(supernet.state_dict())
                self.nets[network] = naive
            else:
                self.nets[network] = supernet
        self.classifier = torch.nn.Linear(self.num_features, classes)
        self.kinds = tuple(self.space.cell_kinds)
        shape = (len(self.kinds), self.space.topology.num_edges, len(self.space.ops))
        self.logits = torch.zeros(shape, requires_grad=True)
        self.noise = torch.from_numpy(np.random.default_rng(SEED).gumbel(size=shape).astype(np.float32))

    def step(self, network: str, kind: str = "gumbel") -> None:
        """Forward, cross-entropy, backward."""
        net = self.nets[network]
        relaxed = relax(self.logits, self.noise, 1.0, kind, self.space.topology, self.space.normalisation)  # type: ignore[arg-type]
        images = self.images if network == "naive" else self.images_last
        features = net(images, relaxed.mixtures(self.kinds), self.size)
        F.cross_entropy(self.classifier(features), self.labels).backward()
        for parameter in (*net.parameters(), *self.classifier.parameters(), self.logits):
            parameter.grad = None

    def flops(self) -> int:
        """Of the convolutions of a soft step: two for each multiplication with addition, forward and twice backward."""
        total = 0

        def count(module: torch.nn.Conv2d, _: object, output: torch.Tensor) -> None:
            nonlocal total
            total += 3 * 2 * output.numel() * module.weight[0].numel()

        convolutions = [module for module in self.nets["pytorch"].modules() if isinstance(module, torch.nn.Conv2d)]
        hooks = [convolution.register_forward_hook(count) for convolution in convolutions]
        self.step("pytorch")
        for hook in hooks:
            hook.remove()
        return total


def matmul_flops_per_s(repeats: int) -> float:
    """What this machine reaches in a product of large matrices."""
    size = 2048
    left, right = torch.randn(size, size), torch.randn(size, size)
    seconds = interleaved({"matmul": lambda: left @ right}, 5 * repeats)["matmul"]
    return float(2 * size**3 / np.median(seconds))


def peak_bytes(name: str, network: str, threads: int) -> int:
    """Of a soft step, in a process of its own."""
    command = [sys.executable, __file__, "peak", name, network, str(threads)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def print_peak(name: str, network: str, threads: int) -> None:
    """`peak`: the second step's peak, when buffers are as they stay."""
    torch.set_num_threads(threads)
    workload = Workload(name, (network,), MEMORY_BATCH.get(name))
    before = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    for _ in range(2):
        workload.step(network)
    # Not `ru_maxrss`, which a child begins with from its parent.
    status = Path("/proc/self/status").read_text().splitlines()
    print((int(next(line.split()[1] for line in status if line.startswith("VmHWM:"))) << 10) - before)


def measure(name: str, repeats: int, peak_flops_per_s: float) -> dict[str, Any]:
    """Ratios of one workload."""
    workload = Workload(name)
    steps: dict[str, Callable[[], object]] = {
        f"{network} {mode}": lambda network=network, kind=kind: workload.step(network, kind)  # type: ignore[misc]
        for network in NETWORKS
        for mode, kind in (("soft", "gumbel"), ("hard", "straight_through"))
    }
    seconds = interleaved(steps, repeats)
    for label, values in seconds.items():
        value = spread(values * 1e3)
        console.print(f"{name} {label:13s} {value['median']:9.1f} ms ({value['low']:.1f} to {value['high']:.1f})")
    threads = torch.get_num_threads()
    peaks = {network: peak_bytes(name, network, threads) for network in NETWORKS}
    for network, bytes_ in peaks.items():
        console.print(f"{name} {network:8s} peak {bytes_ / 2**20:8.0f} MiB")
    flops = workload.flops()
    result: dict[str, Any] = {
        "soft_ratio": spread(seconds["naive soft"] / seconds["native soft"]),
        "hard_ratio": spread(seconds["naive hard"] / seconds["native hard"]),
        "pytorch_ratio": spread(seconds["naive soft"] / seconds["pytorch soft"]),
        "native_over_pytorch": spread(seconds["pytorch soft"] / seconds["native soft"]),
        "soft_over_hard": spread(seconds["native soft"] / seconds["native hard"]),
        "memory_ratio": peaks["native"] / peaks["naive"],
        "of_matmul_peak": float(flops / np.median(seconds["native soft"]) / peak_flops_per_s),
        "step_ms": {label: spread(values * 1e3) for label, values in seconds.items()},
        "peak_bytes": peaks,
        "peak_batch": MEMORY_BATCH.get(name, WORKLOADS[name][1]),
        "gflops_per_step": flops / 1e9,
    }
    soft, hard, pytorch = (result[f"{ratio}_ratio"]["median"] for ratio in ("soft", "hard", "pytorch"))
    console.print(
        f"{name} soft {soft:.1f}x, hard {hard:.1f}x, PyTorch's cells {pytorch:.2f}x the naive network; "
        f"{result['memory_ratio']:.2f} of its memory; {result['of_matmul_peak']:.2f} of the matmul peak"
    )
    return result


def main() -> None:
    """Prints ratios."""
    if sys.argv[1:2] == ["peak"]:
        print_peak(sys.argv[2], sys.argv[3], int(sys.argv[4]))
        return
    parser = arguments(__doc__ or "")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--workload", action="append", choices=list(WORKLOADS), help="all where not given; repeatable")
    options = parser.parse_args()
    library, problem = find()
    if library is None:
        sys.exit(problem)
    torch.set_num_threads(options.threads)
    peak = matmul_flops_per_s(options.repeats)
    result: dict[str, Any] = {name: measure(name, options.repeats, peak) for name in options.workload or WORKLOADS}
    result |= {"threads": options.threads, "variant": library.variant, "matmul_gflops_per_s": peak / 1e9}
    finish(result, {"weights": SEED}, options.json)


if __name__ == "__main__":
    main()
