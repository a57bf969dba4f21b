"""Speed and memory of the outer step's exact mean, against a memcpy of the same bytes and against numpy.

Vectors of 2e6 float32, N at a time. `memcpy` copies them into memory that is there already. `stacked` is numpy's mean
of all of them, stacked; `weighted` does as Flower's `aggregate`: every vector times its weight, their sum, a division.
All run in turn in one process, on one thread. Peak memory is that of a process each, in which vectors arrive one by one
and are kept only by whoever needs them; the interpreter and its libraries do not count.
"""

import multiprocessing
from collections.abc import Callable, Iterable, Iterator
from functools import partial, reduce
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from reporting import arguments, console, finish, interleaved, spread

from common.meta.aggregate import FixedPointMean
from common.nn.native.library import find

SIZE = 2_000_000
COUNTS = (8, 32, 128)
SEED = 7
Vectors = Iterable[NDArray[np.float32]]


def exact(vectors: Vectors) -> NDArray[np.float64]:
    mean = FixedPointMean(SIZE)
    for vector in vectors:
        mean.add(vector, 1.0)
    return mean.result()


def stacked(vectors: Vectors) -> NDArray[np.float32]:
    result: NDArray[np.float32] = np.stack(list(vectors)).mean(axis=0)
    return result


def weighted(vectors: Vectors) -> NDArray[np.float32]:
    terms = [vector * np.float32(1.0) for vector in list(vectors)]
    result: NDArray[np.float32] = reduce(np.add, terms) / np.float32(len(terms))
    return result


WAYS: dict[str, Callable[[Vectors], object]] = {"exact": exact, "stacked": stacked, "weighted": weighted}


def arriving(count: int) -> Iterator[NDArray[np.float32]]:
    """Vectors one after the other, each new."""
    generator = np.random.default_rng(SEED)
    for _ in range(count):
        yield generator.standard_normal(SIZE, dtype=np.float32)


def memory_bytes(entry: str) -> int:
    """`VmRSS`, what this process has in memory, or `VmHWM`, the most since it was reset."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(entry))


def peak_bytes(way: str, count: int) -> int:
    """The most that a way takes beyond what the process has anyway; runs in a process of its own."""
    find()
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
    before = memory_bytes("VmRSS")
    WAYS[way](arriving(count))
    return memory_bytes("VmHWM") - before


def main() -> None:
    parser = arguments(__doc__ or "")
    parser.add_argument("--repeats", type=int, default=15)
    options = parser.parse_args()

    library, problem = find()
    console.print(f"exact sums: {library.variant if library else problem}")
    sources = list(arriving(max(COUNTS)))
    copies = np.zeros((max(COUNTS), SIZE), np.float32)

    def memcpy(vectors: list[NDArray[np.float32]]) -> None:
        for place, vector in enumerate(vectors):
            np.copyto(copies[place], vector)

    result: dict[str, object] = {}
    for count in COUNTS:
        vectors = sources[:count]
        assert np.abs(exact(vectors) - stacked(vectors)).max() < 1e-5
        candidates = {name: partial(run, vectors) for name, run in {"memcpy": memcpy, **WAYS}.items()}
        seconds = interleaved(candidates, options.repeats)
        with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as processes:
            peaks = {way: processes.apply(peak_bytes, (way, count)) for way in WAYS}
        found = {
            "of_memcpy": spread(seconds["memcpy"] / seconds["exact"]),
            "over_numpy_mean": spread(seconds["stacked"] / seconds["exact"]),
            "over_weighted": spread(seconds["weighted"] / seconds["exact"]),
            "ms": {name: spread(1e3 * values) for name, values in seconds.items()},
            "peak_bytes": peaks["exact"],
            "numpy_peak_bytes": peaks["stacked"],
            "weighted_peak_bytes": peaks["weighted"],
        }
        result[f"n{count}"] = found
        for name, values in seconds.items():
            value = spread(1e3 * values)
            memory = f", peak {peaks[name] / 1e6:7.1f} MB" if name in peaks else ""
            console.print(
                f"n {count:3d}  {name:8s} {value['median']:8.2f} ms ({value['low']:.2f} to {value['high']:.2f}){memory}"
            )
        ratio = spread(seconds["memcpy"] / seconds["exact"])
        console.print(f"n {count:3d}  {ratio['median']:.2f} of memcpy ({ratio['low']:.2f} to {ratio['high']:.2f})")
    result["vector_bytes"] = 4 * SIZE
    finish(result, {"vectors": SEED}, options.json)


if __name__ == "__main__":
    main()
