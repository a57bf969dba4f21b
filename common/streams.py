"""Counter-based random streams: every random number is a pure function of (seed, keys), never of what ran before.

A task that is run again, on another worker or in another order, therefore draws the same numbers.
"""

import hashlib

import numpy as np


def stream(seed: int, *keys: str | int) -> np.random.Generator:
    """A generator of its own for `keys`, for example (seed, task_id, step, purpose).

    Args:
        seed: the study's seed, any integer.
        keys: what the numbers are for. Different keys give independent streams (Philox under a 128-bit hashed key).

    Returns:
        A fresh generator; two calls with equal arguments return generators that draw equal numbers.
    """
    return np.random.Generator(np.random.Philox(key=int.from_bytes(_digest(seed, keys)[:16], "little")))


def derived_seed(seed: int, *keys: str | int) -> int:
    """A 63-bit seed for a library that wants an integer, derived like `stream`."""
    return int.from_bytes(_digest(seed, keys)[16:24], "little") >> 1


def _digest(seed: int, keys: tuple[str | int, ...]) -> bytes:
    # repr keeps 1 and "1", and ("a", "b") and ("ab",), apart; numpy's scalars would print differently.
    plain = (str(key) if isinstance(key, str) else int(key) for key in keys)
    return hashlib.sha256(repr((int(seed), *plain)).encode()).digest()
