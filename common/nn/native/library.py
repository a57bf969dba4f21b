"""The shared library of the native cell: built with the package, chosen for the processor, loaded once."""

import ctypes
import logging
import platform
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from common.errors import InvalidInputError, UnavailableError
from common.space.primitives import (
    AVG_POOL,
    CONV_7X1_1X7,
    DIL_CONV_3,
    DIL_CONV_5,
    MAX_POOL,
    NONE,
    SEP_CONV_3,
    SEP_CONV_5,
    SEP_CONV_7,
    SKIP,
)

Engine = Literal["auto", "native", "pytorch"]

KINDS = (
    *(NONE, MAX_POOL, AVG_POOL, SKIP, SEP_CONV_3, SEP_CONV_5, SEP_CONV_7, DIL_CONV_3, DIL_CONV_5),
    CONV_7X1_1X7,
)
"""As `MetasearchKind` numbers them in cell.cpp."""

# Builds of the same source, best first, and what a processor must have for each.
_VARIANTS: tuple[tuple[str, frozenset[str]], ...] = (
    ("avx512", frozenset({"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl", "fma"})),
    ("avx2", frozenset({"avx2", "fma", "bmi2"})),
    ("generic", frozenset()),
)
_PROBLEM_BYTES = 200
_logger = logging.getLogger(__name__)


class _Description(ctypes.Structure):
    """`MetasearchCell` of cell.cpp."""

    _fields_ = (
        *((name, ctypes.c_int) for name in ("batch", "channels")),
        *((f"input_{name}", ctypes.c_int * 2) for name in ("channels", "heights", "widths", "strides")),
        *((name, ctypes.c_int) for name in ("stride", "num_nodes", "num_columns", "num_threads", "keeps")),
        ("kinds", ctypes.POINTER(ctypes.c_int)),
        ("active", ctypes.POINTER(ctypes.c_ubyte)),
    )


@dataclass(frozen=True)
class CellShape:
    """What a cell computes, whatever its inputs.

    Attributes:
        primitives: candidate ops, one per column of the architecture weights.
        num_nodes: of the cell.
        channels: of every node.
        input_strides: 2 for an input of twice the height and width, which is reduced.
        stride: of the edges that start in its inputs.
        active: (num_edges, num_primitives); which ops are computed.
    """

    primitives: tuple[str, ...]
    num_nodes: int
    channels: int
    input_strides: tuple[int, int]
    stride: int
    active: NDArray[np.uint8]

    def out_size(self, inputs: Sequence[Tensor]) -> tuple[int, int]:
        """Height and width of the output."""
        height, width = inputs[1].shape[2:]
        return -(-height // self.stride), -(-width // self.stride)


class Library:
    """A loaded build. Thread-safe: calls share nothing but a pool of memory.

    Args:
        path: of the shared library.

    Raises:
        OSError: it is of another version, or for another machine.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._functions = ctypes.CDLL(str(path))
        for precision in ("float32", "float64"):
            self._function("forward", precision).restype = ctypes.c_void_p
            self._function("add_fixed_point", precision).restype = None
        self._functions.metasearch_divide_fixed_point.restype = None
        self._functions.metasearch_held_bytes.restype = ctypes.c_size_t
        self._functions.metasearch_description_bytes.restype = ctypes.c_size_t
        if self._functions.metasearch_description_bytes() != ctypes.sizeof(_Description):
            raise OSError("it was built from another version")

    @property
    def variant(self) -> str:
        """What it was built for."""
        return self.path.name.removeprefix("_cell_").split(".")[0]

    @property
    def held_bytes(self) -> int:
        """Memory that waits in the pool to be used again."""
        return int(self._functions.metasearch_held_bytes())

    def keep_memory(self) -> None:
        """From now on keeps what this process frees, up to 1 GiB, for its next step."""
        self._functions.metasearch_keep_memory()

    def clear(self) -> None:
        """Gives the memory of the pool back to the system."""
        self._functions.metasearch_clear()

    def forward(
        self,
        shape: CellShape,
        inputs: tuple[Tensor, Tensor],
        mixture: Tensor,
        weights: Sequence[Tensor | None],
        output: Tensor,
        keeps: bool = True,
    ) -> "CellRun":
        """Computes `output`.

        Args:
            shape: of the cell.
            inputs: (batch, channels, height, width) each, channels last in memory.
            mixture: (num_edges, num_primitives) architecture weights.
            weights: contiguous: of the two blocks that fit the inputs, then of all ops that have some, edge by edge,
                column by column; None for ops that are not active.
            output: (batch, num_nodes * channels, ...), channels last in memory; written.
            keeps: whether `CellRun.backward` will follow; otherwise maps are given back on the way.

        Returns:
            What `CellRun.backward` needs.

        Raises:
            MemoryError: there is not enough.
        """
        kinds = (ctypes.c_int * len(shape.primitives))(*(KINDS.index(name) for name in shape.primitives))
        description = _Description(
            inputs[0].shape[0],
            shape.channels,
            *((ctypes.c_int * 2)(*(maps.shape[axis] for maps in inputs)) for axis in (1, 2, 3)),
            (ctypes.c_int * 2)(*shape.input_strides),
            shape.stride,
            shape.num_nodes,
            len(shape.primitives),
            torch.get_num_threads(),
            keeps,
            kinds,
            shape.active.ctypes.data_as(ctypes.POINTER(ctypes.c_ubyte)),
        )
        precision = _precision(output)
        problem = ctypes.create_string_buffer(_PROBLEM_BYTES)
        handle = self._function("forward", precision)(
            ctypes.byref(description),
            _addresses(inputs),
            _address(mixture),
            _addresses(weights),
            _address(output),
            problem,
            ctypes.c_size_t(_PROBLEM_BYTES),
        )
        if not handle:
            raise MemoryError(f"native cell: {problem.value.decode()}")
        return CellRun(self, precision, handle)

    def add_fixed_point(
        self,
        totals: NDArray[np.int64],
        vectors: Sequence[NDArray[np.floating]],
        factors: Sequence[float],
    ) -> None:
        """Adds `round(vector * factor)` of each vector to `totals`, half to even, in one pass over them.

        Args:
            totals: (size,), contiguous; written.
            vectors: (size,) each, contiguous, all float32 or all float64.
            factors: of the vectors; no product may be beyond +-2^51.
        """
        precision = str(vectors[0].dtype)
        self._function("add_fixed_point", precision)(
            ctypes.c_void_p(totals.ctypes.data),
            (ctypes.c_void_p * len(vectors))(*(vector.ctypes.data for vector in vectors)),
            (ctypes.c_double * len(factors))(*factors),
            ctypes.c_int(len(vectors)),
            ctypes.c_size_t(totals.size),
        )

    def divide_fixed_point(self, totals: NDArray[np.int64], divisor: float) -> None:
        """Replaces each of `totals` (size,), contiguous, by the bits of a float64: it over `divisor`, rounded once."""
        self._functions.metasearch_divide_fixed_point(
            ctypes.c_void_p(totals.ctypes.data), ctypes.c_double(divisor), ctypes.c_size_t(totals.size)
        )

    def _function(self, name: str, precision: str) -> Any:
        return getattr(self._functions, f"metasearch_{name}_{precision}")


class CellRun:
    """A forward pass, and the maps that it keeps for its backward pass."""

    def __init__(self, library: Library, precision: str, handle: int) -> None:
        self._library = library
        self._precision = precision
        self._handle: int | None = handle

    def backward(
        self,
        output_gradient: Tensor,
        input_gradients: Sequence[Tensor],
        mixture_gradient: Tensor,
        weight_gradients: Sequence[Tensor | None],
    ) -> None:
        """Writes the gradients of everything that `Library.forward` was given, laid out as that was; once.

        Raises:
            MemoryError: there is not enough.
        """
        problem = ctypes.create_string_buffer(_PROBLEM_BYTES)
        failed = self._library._function("backward", self._precision)(
            ctypes.c_void_p(self._handle),
            _address(output_gradient),
            _addresses(input_gradients),
            _address(mixture_gradient),
            _addresses(weight_gradients),
            problem,
            ctypes.c_size_t(_PROBLEM_BYTES),
        )
        self.release()
        if failed:
            raise MemoryError(f"native cell: {problem.value.decode()}")

    def release(self) -> None:
        """Gives the memory back to the pool."""
        if self._handle is not None:
            self._library._function("release", self._precision)(ctypes.c_void_p(self._handle))
            self._handle = None

    def __del__(self) -> None:
        self.release()


def choose(engine: Engine) -> Library | None:
    """The library to compute cells with, None for PyTorch.

    Args:
        engine: `auto` takes the native cell where it was built, and says so in the log, once.

    Raises:
        UnavailableError: `native` where it was not built, or where it cannot be loaded.
    """
    if engine == "pytorch":
        return None
    if engine not in ("auto", "native"):
        raise InvalidInputError(f"network.engine must be auto, native or pytorch, got {engine!r}")
    library, problem = find()
    if library is None and engine == "native":
        raise UnavailableError(f"network.engine is native, but {problem}; or set it to auto or pytorch")
    return library


@cache
def find() -> tuple[Library | None, str]:
    """The best build for this processor, or None and why there is none."""
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    here = Path(__file__).parent
    features = _processor_features()
    for variant, needed in _VARIANTS:
        path = here / f"_cell_{variant}{suffix}"
        if needed <= features and path.exists():
            try:
                library = Library(path)
                library.keep_memory()
            except (OSError, AttributeError) as error:  # of another processor or version
                problem = f"the native cell cannot be loaded ({error}); install the package again"
                break
            _logger.info("cells are computed natively (%s)", variant)
            return library, ""
    else:
        problem = "the native cell was not built; install a C++ compiler, then the package again"
    _logger.info("cells are computed by PyTorch: %s", problem)
    return None, problem


def _processor_features() -> frozenset[str]:
    if platform.machine() not in ("x86_64", "AMD64"):
        return frozenset()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return frozenset()
    return frozenset(next((line.split(":")[1] for line in lines if line.startswith("flags")), "").split())


def _precision(maps: Tensor) -> str:
    return {torch.float32: "float32", torch.float64: "float64"}[maps.dtype]


def _address(maps: Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(maps.data_ptr())


def _addresses(maps: Sequence[Tensor | None]) -> Any:
    return (ctypes.c_void_p * max(len(maps), 1))(*(None if one is None else one.data_ptr() for one in maps))
