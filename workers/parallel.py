"""Processes that train one network together, seen from one of them; the only module that knows torch.distributed."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from common.errors import InvalidInputError

# Processes wait for each other while the first one stores a checkpoint or draws.
_TIMEOUT = timedelta(minutes=30)


class ProcessGroup(Protocol):
    """The processes that train a network together. All call the same methods in the same order.

    Attributes:
        rank: of this process, from 0. The first one alone stores and prints.
        world_size: processes in all.
    """

    @property
    def rank(self) -> int: ...  # noqa: D102 see above
    @property
    def world_size(self) -> int: ...  # noqa: D102 see above

    def sum_(self, tensor: Tensor) -> None:
        """Replaces a tensor by its sum over all processes."""
        ...

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any process."""
        ...


class Alone:
    """A group of one process: nothing is sent."""

    rank = 0
    world_size = 1

    def sum_(self, tensor: Tensor) -> None:
        """See `ProcessGroup`."""

    def any(self, flag: bool) -> bool:
        """See `ProcessGroup`."""
        return flag


class Distributed:
    """The group that torch.distributed was started with.

    Args:
        device: that this process computes on.
    """

    def __init__(self, device: torch.device) -> None:
        self.rank = dist.get_rank()
        self.world_size = dist.get_world_size()
        self._device = device

    def sum_(self, tensor: Tensor) -> None:
        """See `ProcessGroup`."""
        dist.all_reduce(tensor)

    def any(self, flag: bool) -> bool:
        """See `ProcessGroup`."""
        flags = torch.tensor(int(flag), device=self._device)
        dist.all_reduce(flags, op=dist.ReduceOp.MAX)
        return bool(flags.item())


def is_launched() -> bool:
    """Whether torchrun, or a launcher that sets the same variables, started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


@contextmanager
def joined(device: torch.device) -> Iterator[tuple[ProcessGroup, torch.device]]:
    """The group that a launcher started this process in, or one of this process alone; and the device of this process.

    On GPUs by NCCL, each process on the GPU of its local rank; else by gloo.

    Args:
        device: kind of device to compute on.

    Raises:
        InvalidInputError: the launcher's variables are incomplete.
    """
    if not is_launched():
        yield Alone(), device
        return
    for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        if name not in os.environ:
            raise InvalidInputError(f"WORLD_SIZE is set and {name} is not; start the processes by torchrun")
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=_TIMEOUT)
    try:
        yield Distributed(device), device
    finally:
        dist.destroy_process_group()
