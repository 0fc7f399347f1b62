"""The array types of this room, and logits turned into probabilities."""

from __future__ import annotations

from typing import Any

import numpy as np

from potstill.core.errors import UsageError

Floats = np.ndarray[Any, np.dtype[np.float64]]
Ints = np.ndarray[Any, np.dtype[np.int64]]
Array = np.ndarray[Any, Any]


def log_softmax(logits: Array) -> Floats:
    """Return float64 log probabilities (n, c) of ``logits`` (n, c), finite for logits of any size."""
    wide = np.asarray(logits, dtype=np.float64)
    shifted = wide - wide.max(axis=1, keepdims=True)
    result: Floats = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return result


def log_odds(logits: Array) -> Floats:
    """Return log(p / (1 - p)) of every class, (n, c) in float64: the order of the probabilities, also near 0 and 1.

    A probability itself is rounded to 1 where its complement is small; its log odds keep the order there.
    """
    wide = np.asarray(logits, dtype=np.float64)
    rows, top = np.arange(len(wide)), wide.argmax(axis=1)
    shifted = wide - wide.max(axis=1, keepdims=True)
    powers = np.exp(shifted)
    # Of the largest score the others are summed by themselves: 1 would swallow them.
    result: Floats = shifted - np.log(np.maximum(powers.sum(axis=1, keepdims=True) - powers, 1.0))
    others = shifted.copy()
    others[rows, top] = -np.inf
    second = others.max(axis=1, keepdims=True)
    result[rows, top] = -(second[:, 0] + np.log(np.exp(others - second).sum(axis=1)))
    return result


def checked_classes(logits: Array, targets: Array) -> tuple[Array, Ints]:
    """Return logits (n, c) and integer targets (n,), or raise a `UsageError` that says what does not fit."""
    logits, targets = np.asarray(logits), np.asarray(targets)
    if logits.ndim != 2 or logits.shape[1] < 2 or len(logits) == 0:
        raise UsageError(f"Class scores must have shape (n, c) with n > 0 and c > 1; got {logits.shape}.")
    if targets.shape != (len(logits),) or targets.dtype.kind not in "iu":
        raise UsageError(
            f"Targets must be {len(logits)} class numbers, one for each row of scores; "
            f"got shape {targets.shape} of {targets.dtype}."
        )
    if targets.min() < 0 or targets.max() >= logits.shape[1]:
        raise UsageError(
            f"Targets go from {targets.min()} to {targets.max()}, but there are {logits.shape[1]} classes "
            f"(0 to {logits.shape[1] - 1})."
        )
    return logits, targets.astype(np.int64)


def checked_values(values: Array, targets: Array) -> tuple[Floats, Floats]:
    """Return values and targets as float64 (n, k), or raise a `UsageError` that says what does not fit."""
    pair = [np.asarray(array, dtype=np.float64) for array in (values, targets)]
    flat = [array[:, None] if array.ndim == 1 else array for array in pair]
    if flat[0].ndim != 2 or flat[0].shape != flat[1].shape or len(flat[0]) == 0:
        raise UsageError(
            "Predicted values and targets must have the same shape, (n,) or (n, k); "
            f"got {pair[0].shape} and {pair[1].shape}."
        )
    return flat[0], flat[1]
