"""The device that a worker computes on: a task's images resident there, augmentation there, how its steps run there."""

import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from numpy.typing import NDArray
from torch import Tensor

from common.config import AugmentConfig, Precision
from common.errors import InvalidInputError, UnavailableError
from workers.environment import processor_name

# Steps before a recording: they choose kernels and allocate what optimizers keep, neither of which can be recorded.
EAGER_STEPS = 3

Inputs = TypeVar("Inputs")


def choose_device() -> torch.device:
    """The first CUDA device that this process may use, else the CPU."""
    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


def device_named(name: str) -> torch.device:
    """The device that a user asks for: `cpu`, `cuda`, `cuda:1` for the second GPU, or `auto` for `choose_device`.

    Raises:
        InvalidInputError: it is none of these.
        UnavailableError: a CUDA device that is not there.
    """
    kind, _, index = name.partition(":")
    if (kind not in ("auto", "cpu", "cuda")) or (":" in name and (kind != "cuda" or not index.isdecimal())):
        raise InvalidInputError(f"device must be auto, cpu or cuda, got {name!r}; cuda:1 is the second GPU")
    if kind == "cuda" and not torch.cuda.is_available():
        raise UnavailableError(
            f"torch {torch.__version__} sees no CUDA device; install a CUDA build of torch and NVIDIA's driver "
            "(nvidia-smi must list the card), or use the device cpu"
        )
    if index:
        if int(index) >= torch.cuda.device_count():
            raise UnavailableError(f"there are {torch.cuda.device_count()} CUDA devices, got {name!r}; count from 0")
        return torch.device("cuda", int(index))
    return torch.device("cpu") if name == "cpu" else choose_device()


def elapsed_ms(device: torch.device, call: Callable[[], object], num_calls: int = 1) -> float:
    """Milliseconds that a call takes on the device, mean over `num_calls` in a row.

    On a CPU with one thread these are the thread's own: what other programs take of the core meanwhile would count
    against long calls, and hardly ever against short ones. With more threads it is the time on the clock.
    On a GPU they are between two events of the stream: neither what was queued before nor the host's way back counts.
    A single short kernel would be lost in the time between launches, several calls in a row keep the queue filled.
    """
    if device.type != "cuda":
        clock_s = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
        started_s = clock_s()
        for _ in range(num_calls):
            call()
        return (clock_s() - started_s) * 1e3 / num_calls
    with torch.cuda.device(device):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        for _ in range(num_calls):
            call()
        end.record()
        end.synchronize()
    return float(begin.elapsed_time(end)) / num_calls


def device_name(device: torch.device) -> str:
    """As its maker calls it; of a CPU, that of the processor."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else processor_name()


def use_single_thread() -> None:
    """One thread for this process: workers run side by side, and sums do not depend on how work was split."""
    torch.set_num_threads(1)


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """The context in which a network computes in `precision`; its parameters stay float32."""
    # Without a cache of cast weights: each is used once, and a CUDA graph must not depend on casts made outside it.
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16", cache_enabled=False)


@dataclass(frozen=True)
class AugmentDraws:
    """How each image of a batch is changed; None where `AugmentConfig` leaves that out.

    Attributes:
        offsets: of the crop from the padded image, rows and columns, 0 to 2 * crop_padding pixels.
        mirrored: which images are mirrored.
    """

    offsets: Int[Tensor, "2 batch"] | None
    mirrored: Bool[Tensor, "batch"] | None


def draw_augmentation(num_images: int, augment: AugmentConfig, generator: np.random.Generator) -> AugmentDraws:
    """Draws changes to `num_images` images, on the host."""
    offsets, mirrored = None, None
    if augment.crop_padding:
        offsets = torch.from_numpy(generator.integers(0, 2 * augment.crop_padding + 1, (2, num_images)))
    if augment.flip:
        mirrored = torch.from_numpy(generator.random(num_images) < 0.5)
    return AugmentDraws(offsets, mirrored)


@dataclass(frozen=True)
class ResidentImages:
    """Images that stay on the device as bytes for the whole task.

    Attributes:
        images: (num_images, channels, height, width).
        labels: (num_images,).
    """

    images: UInt8[Tensor, "num_images channels height width"]
    labels: Int[Tensor, "num_images"]

    @property
    def num_images(self) -> int:
        """Images in all."""
        return self.images.shape[0]

    def batch(self, indices: NDArray[np.int64]) -> tuple[Float[Tensor, "batch channels height width"], Tensor]:
        """The images and labels at `indices`, as floats in -1..1."""
        chosen = torch.from_numpy(indices).to(self.images.device, non_blocking=True)
        return to_float(self.images[chosen]), self.labels[chosen]

    def augmented_batch(
        self, indices: Int[Tensor, "batch"], augment: AugmentConfig, draws: AugmentDraws
    ) -> tuple[Float[Tensor, "batch channels height width"], Tensor]:
        """As `batch`, each image shifted and mirrored as drawn; `indices` and `draws` are on the device."""
        images = self.images[indices]
        if draws.offsets is not None:
            images = _crops(images, augment.crop_padding, draws.offsets)
        if draws.mirrored is not None:
            images = torch.where(draws.mirrored[:, None, None, None], images.flip(-1), images)
        return to_float(images), self.labels[indices]


def resident(images: NDArray[np.uint8], labels: NDArray[np.int64], device: torch.device) -> ResidentImages:
    """Copies images (num_images, height, width, channels) to the device, through pinned memory where it has any."""
    host = torch.from_numpy(np.array(images.transpose(0, 3, 1, 2), order="C"))
    host_labels = torch.from_numpy(np.array(labels, dtype=np.int64))
    return ResidentImages(on_device(host, device), on_device(host_labels, device))


def to_float(images: UInt8[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Bytes 0..255 to floats -1..1, channels last in memory: 1.4x faster convolutions on a CPU."""
    floats = images.to(torch.float32).div_(127.5).sub_(1.0)
    return floats.contiguous(memory_format=torch.channels_last)


def on_device(inputs: Inputs, device: torch.device) -> Inputs:
    """`inputs`, a tensor or a frozen dataclass of some, with every tensor on the device; on a CPU the very same."""
    moved: Inputs = _map_tensors(inputs, lambda tensor: _pinned(tensor, device).to(device, non_blocking=True))
    return moved


def can_record(device: torch.device) -> bool:
    """Whether steps can be recorded there, see `StepRecorder`."""
    return device.type == "cuda"


class StepRecorder:
    """Runs steps as one launch each: their kernels are recorded once, as a CUDA graph.

    A step of the supernet has about 10,000 kernels, and a GPU is done with one sooner than the host launches the next.
    The first `EAGER_STEPS` steps run as they are; the next one is recorded.

    Args:
        device: a CUDA device.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        # One stream for all steps: backward passes remember the stream on which a parameter was first used.
        self._stream = torch.cuda.Stream(device)
        self._eager_steps_left = EAGER_STEPS
        self._recording: tuple[torch.cuda.CUDAGraph, object, Tensor] | None = None

    def run(self, step: Callable[[Inputs], Tensor], inputs: Inputs) -> Tensor:
        """What `step` returns, as new memory.

        Args:
            step: the same function at every call, from inputs on the device to a tensor there. It may read only those
                and tensors that outlive it, may wait for no result, and must do the same whatever the inputs hold. The
                recorder does not keep it, or an object whose method it is would wait for the garbage collector, and
                with it the graph's memory.
            inputs: on the host; a frozen dataclass of tensors whose shapes are the same at every call.

        Raises:
            torch.OutOfMemoryError: there is too little memory on the device.
        """
        caller = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(caller)
        with torch.cuda.stream(self._stream):
            output = self._run(step, inputs)
        caller.wait_stream(self._stream)
        return output

    def _run(self, step: Callable[[Inputs], Tensor], inputs: Inputs) -> Tensor:
        if self._eager_steps_left:
            self._eager_steps_left -= 1
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "This instance was constructed with capturable=True")
                return step(on_device(inputs, self._device))
        if self._recording is None:
            self._recording = self._record(step, on_device(inputs, self._device))
        graph, static, output = self._recording
        for target, source in zip(_tensors_of(static), _tensors_of(inputs), strict=True):
            target.copy_(_pinned(source, self._device), non_blocking=True)
        graph.replay()
        return output.clone()

    def _record(self, step: Callable[[Inputs], Tensor], static: Inputs) -> tuple[torch.cuda.CUDAGraph, object, Tensor]:
        graph = torch.cuda.CUDAGraph()
        try:
            # Other threads of this process may go on using the device.
            with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
                output = step(static)
        except RuntimeError as error:
            if isinstance(error.__context__, torch.OutOfMemoryError):  # ending a broken recording hides what broke it
                raise error.__context__ from None
            raise
        return graph, static, output


def _pinned(tensor: Tensor, device: torch.device) -> Tensor:
    # From pinned memory, which torch recycles only after the copy, the host need not wait for the copy.
    return tensor.pin_memory() if device.type == "cuda" else tensor


def _map_tensors(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, tuple):
        return tuple(_map_tensors(element, function) for element in value)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{f.name: _map_tensors(getattr(value, f.name), function) for f in fields(value)})
    return value


def _tensors_of(value: object) -> list[Tensor]:
    found: list[Tensor] = []

    def note(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    _map_tensors(value, note)
    return found


def _crops(images: Tensor, padding: int, offsets: Tensor) -> Tensor:
    """Each image padded by zeros and cut back to its size at an offset of its own."""
    num_images, channels, height, width = images.shape
    padded = torch.nn.functional.pad(images, (padding,) * 4)
    rows = offsets[0][:, None] + torch.arange(height, device=images.device)
    columns = offsets[1][:, None] + torch.arange(width, device=images.device)
    which = torch.arange(num_images, device=images.device)
    channel = torch.arange(channels, device=images.device)
    return padded[
        which[:, None, None, None], channel[None, :, None, None], rows[:, None, :, None], columns[:, None, None, :]
    ]
