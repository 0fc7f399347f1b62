"""Counter-based randomness: the same key gives the same numbers in any order, worker or process.

Every function is a pure function of its integer arguments; there is no generator state to save.
The mixing function is splitmix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, OOPSLA 2014).
"""

from __future__ import annotations

from typing import Any

import numpy as np

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
Keys = np.ndarray[Any, np.dtype[np.uint64]]


def _mix(x: Keys) -> Keys:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def key(*parts: int | np.ndarray[Any, Any]) -> Keys:
    """Return 64 mixed bits for each combination of ``parts`` (integers or broadcastable integer arrays)."""
    with np.errstate(over="ignore"):
        state = np.zeros(np.broadcast_shapes(*(np.shape(part) for part in parts)), dtype=np.uint64)
        for part in parts:
            bits = np.asarray(part).astype(np.int64).view(np.uint64)
            state = _mix((state + _GOLDEN) ^ _mix(bits + _GOLDEN))
        return state


def uniform(*parts: int | np.ndarray[Any, Any]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return a number in [0, 1) for each combination of ``parts``."""
    return (key(*parts) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def permutation(length: int, *parts: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return a permutation of ``range(length)`` that depends only on ``parts``."""
    return np.argsort(key(np.arange(length), *parts), kind="stable")


def seed_of(*parts: int) -> int:
    """Return a 63-bit seed for a library's own generator."""
    return int(key(*parts)) >> 1
