"""Steps of the inner loop on this machine, timed: what each way to compute them takes."""

import time
from dataclasses import dataclass

import numpy as np
import torch

from common.config import NetworkConfig, StudyConfig
from common.messages import AdaptRequest
from common.meta.prior import initial_prior
from common.nn.native.library import find
from common.nn.supernet import build_supernet
from workers.adapt import InnerLoop
from workers.data.episodes import episode_of, sample_task
from workers.data.sources import load_arrays
from workers.device import EAGER_STEPS, use_single_thread

# Untimed steps: up to the one that is recorded, and two more.
WARM_UP_STEPS = EAGER_STEPS + 3


@dataclass(frozen=True)
class Workload:
    """What was timed, and where.

    Attributes:
        device: as its maker calls it.
        source: of the images.
        image_size: in pixels.
        batch_size: images per step.
        num_classes: of the task.
        channels: of the first cell's nodes.
        num_cells: of the supernet.
        relaxation: of the architecture.
    """

    device: str
    source: str
    image_size: int
    batch_size: int
    num_classes: int
    channels: int
    num_cells: int
    relaxation: str

    @property
    def summary(self) -> str:
        """In a line."""
        return (
            f"{self.num_cells} cells of {self.channels} channels, {self.relaxation}; batches of {self.batch_size} "
            f"{self.source} images of {self.image_size} pixels, {self.num_classes} classes"
        )


@dataclass(frozen=True)
class StepTimes:
    """How long steps of one variant took.

    Attributes:
        name: of the variant.
        median_ms: per step.
        low_ms, high_ms: its quartiles.
        images_per_s: training images per second, at the median.
        peak_bytes: most memory that the device held for it at once, prior and images included; None on a CPU, where
            processes share what is freed.
    """

    name: str
    median_ms: float
    low_ms: float
    high_ms: float
    images_per_s: float
    peak_bytes: int | None


def time_steps(
    config: StudyConfig, source: str | None, device: torch.device, num_steps: int
) -> tuple[Workload, list[StepTimes]]:
    """Times steps of a task of the study's first family.

    Args:
        config: space, network, inner loop and tasks.
        source: of the images; the family's own where None.
        device: to compute on; a CPU computes on one thread from here on.
        num_steps: to time, of each variant.

    Raises:
        InvalidInputError: the source has too few classes or images for a task of the family; and see
            `workers.data.sources.load_arrays`, also for the other errors.
    """
    use_single_thread()
    family = config.families[0].model_copy(update={"test_per_class": 1})  # none is looked at
    if source is not None:
        family = family.model_copy(update={"data": family.data.model_copy(update={"source": source, "root": None})})
    arrays = load_arrays(family.data, family.image_size)
    task = sample_task(arrays, family, "all", "bench", config.seed)
    episode = episode_of(arrays, task)
    prior = initial_prior(config)
    relaxation, _ = config.relaxation.at(prior.version, config.rounds)
    loops: dict[str, InnerLoop] = {}
    peaks: dict[str, int | None] = {}
    for name, network in variants(config.network, device).items():
        request = AdaptRequest(
            task=task,
            space=config.space,
            network=network,
            inner=config.inner,
            study_seed=config.seed,
            version=prior.version,
            relaxation=relaxation,
            tau=prior.tau,
        )
        before = _reset_peak(device)
        loop = InnerLoop(prior, request, episode, build_supernet(config.space, network, config.seed).to(device))
        if device.type == "cuda" and network.cuda_graphs and not loop.is_recorded:
            continue  # hard steps: the same as without
        for step in range(WARM_UP_STEPS):
            loop.step_(step)
        loops[name], peaks[name] = loop, _peak_bytes(device, before)
    seconds = {name: np.empty(num_steps) for name in loops}
    for index in range(num_steps):
        for name, loop in loops.items():
            seconds[name][index] = _step_s(loop, WARM_UP_STEPS + index)
    first = next(iter(loops.values()))
    workload = Workload(
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU, one thread",
        source=family.data.source,
        image_size=family.image_size,
        batch_size=first.batches.batch_size,
        num_classes=len(task.classes),
        channels=config.network.channels,
        num_cells=len(config.network.cells),
        relaxation=first.kind,
    )
    return workload, [_times(name, seconds[name], workload.batch_size, peaks[name]) for name in loops]


def variants(network: NetworkConfig, device: torch.device) -> dict[str, NetworkConfig]:
    """Ways to compute the same steps on a device, by name."""
    if device.type == "cuda":
        return {
            f"{precision} {how}": network.model_copy(
                update={"engine": "auto", "precision": precision, "cuda_graphs": graphs}
            )
            for precision in ("float32", "bfloat16")
            for how, graphs in (("eager", False), ("graph", True))
        }
    engines = ("native", "pytorch") if find()[0] is not None else ("pytorch",)
    return {engine: network.model_copy(update={"engine": engine, "precision": "float32"}) for engine in engines}


def _step_s(loop: InnerLoop, step: int) -> float:
    started_s = time.perf_counter()
    loop.step_(step)
    if loop.device.type == "cuda":
        torch.cuda.synchronize(loop.device)
    return time.perf_counter() - started_s


def _reset_peak(device: torch.device) -> int:
    """Bytes that the device holds now."""
    if device.type != "cuda":
        return 0
    torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.memory_allocated(device)


def _peak_bytes(device: torch.device, before: int) -> int | None:
    if device.type != "cuda":
        return None
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def _times(name: str, seconds: np.ndarray, batch_size: int, peak_bytes: int | None) -> StepTimes:
    low, median, high = (float(value) for value in np.percentile(seconds, [25, 50, 75]))
    return StepTimes(name, median * 1e3, low * 1e3, high * 1e3, batch_size / median, peak_bytes)
