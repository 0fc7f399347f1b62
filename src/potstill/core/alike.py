"""Whether two sets of numbers are the same but for rounding."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def apart(first: Array, other: Array) -> float:
    """Return the largest difference of numbers as a share of the spread of the first ones; 1 stands for a spread of 0.

    Numbers of another shape, and those that are not finite in other places or in another way, are infinitely far apart.

    Args:
        first: of any shape.
        other: what to compare with it.

    """
    if first.shape != other.shape:
        return math.inf
    finite = np.isfinite(first)
    if not np.array_equal(first[~finite], other[~finite], equal_nan=True) or not np.isfinite(other[finite]).all():
        return math.inf
    values, others = first[finite].astype(np.float64), other[finite].astype(np.float64)
    spread = float(values.std()) if values.size else 0.0
    return float(np.abs(values - others).max(initial=0.0)) / (spread or 1.0)
