"""What all benchmarks print: which machine, versions and seeds; medians with spread; one JSON object at the end."""

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from rich.console import Console

from workers.environment import environment

# The table is for people, on standard error; standard output ends in the JSON object.
console = Console(stderr=True)


def arguments(description: str) -> argparse.ArgumentParser:
    """A parser with the options that all benchmarks have."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    return parser


def finish(result: Mapping[str, object], seeds: Mapping[str, object], as_json: bool) -> None:
    """Says what the figures were computed with, and prints them as JSON if asked to."""
    provenance = {"environment": environment(), "seeds": dict(seeds)}
    console.print(", ".join(f"{name} {value}" for name, value in {**environment(), **seeds}.items()), soft_wrap=True)
    if as_json:
        sys.stdout.write(json.dumps({**result, **provenance}) + "\n")


def interleaved(candidates: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, np.ndarray]:
    """Seconds of each candidate, (repeats,): one warm-up each, then all in turn, so that drift hits all alike."""
    from time import perf_counter

    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for run in candidates.values():
        run()
    for _ in range(repeats):
        for name, run in candidates.items():
            started_s = perf_counter()
            run()
            seconds[name].append(perf_counter() - started_s)
    return {name: np.array(values) for name, values in seconds.items()}


def spread(values: Sequence[float] | np.ndarray) -> dict[str, float]:
    """Median and quartiles."""
    low, median, high = np.percentile(np.asarray(values, dtype=float), [25, 50, 75])
    return {"median": float(median), "low": float(low), "high": float(high)}
