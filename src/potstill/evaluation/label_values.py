"""What recorded values say: the teacher's answers to a regression task. Shape legend: n answers, k columns."""

from __future__ import annotations

import numpy as np

from potstill.evaluation import metrics
from potstill.evaluation.arrays import Array, Floats, Ints, checked_values
from potstill.evaluation.label_scores import NORMAL, Record, histogram


def value_scores(values: Array, targets: Array | None) -> Record:
    """Return the numbers of one split as JSON data.

    ``num``, ``mean`` and ``spread`` (standard deviation) of the answers by column, ``value_histogram`` (one column
    only); with labels also ``r2``, ``rmse`` with their 95 % ``r2_interval``, ``rmse_interval``, ``mae``, ``bias`` (mean
    error by column) and ``residual_histogram``. Residuals are answer minus label; with more than one column they are
    in units of the standard deviation of the column's labels (``residual_unit``: ``target`` or ``spread``).

    The intervals are those of a normal distribution whose spread comes from the influence of each sample on the
    score; they are for many samples (at 50 they agree with resampling within a few percent of their width).

    Args:
        values: (n,) or (n, k) what the teacher answered.
        targets: of the same shape, or None.

    """
    found = checked_values(values, values if targets is None else targets)[0]
    scores: Record = {
        "num": len(found),
        "mean": found.mean(axis=0).tolist(),
        "spread": found.std(axis=0).tolist(),
    }
    if found.shape[1] == 1:
        scores["value_histogram"] = histogram(found[:, 0], *_ends(found[:, 0]))
    if targets is None:
        return scores
    wanted = checked_values(values, targets)[1]
    residuals = scaled_residuals(values, targets)
    one = found.shape[1] == 1
    edge = float(np.quantile(np.abs(residuals), 0.995)) or 1.0
    r2, rmse = metrics.r2(values, targets), metrics.rmse(values, targets)
    return scores | {
        "r2": r2,
        "r2_interval": _interval(r2, r2_influence(found, wanted), high=1.0),
        "rmse": rmse,
        "rmse_interval": _interval(rmse, rmse_influence(found, wanted), low=0.0),
        "mae": metrics.mae(values, targets),
        "bias": (found - wanted).mean(axis=0).tolist(),
        "residual_unit": "target" if one else "spread",
        "residual_histogram": histogram(residuals.ravel(), -edge, edge, bins=31),
    }


def scaled_residuals(values: Array, targets: Array) -> Floats:
    """Return answer minus label (n, k); several columns are divided by the spread of their labels."""
    found, wanted = checked_values(values, targets)
    spread = wanted.std(axis=0)
    result: Floats = (found - wanted) / (1.0 if found.shape[1] == 1 else np.where(spread > 0, spread, 1.0))
    return result


def worst_rows(values: Array, targets: Array, most: int) -> Ints:
    """Return the rows with the largest residuals, largest first, at most ``most``."""
    size = np.square(scaled_residuals(values, targets)).sum(axis=1)
    result: Ints = np.argsort(-size, kind="stable")[:most]
    return result


def r2_influence(found: Floats, wanted: Floats) -> Floats:
    """Return how much each sample moves R2, (n,): the derivative by its weight, times n. A constant column counts 0."""
    left, spread = np.square(found - wanted), np.square(wanted - wanted.mean(axis=0))
    mean = spread.mean(axis=0)
    safe = np.where(mean > 0, mean, 1.0)
    moved = np.where(mean > 0, -(left - left.mean(axis=0) / safe * spread) / safe, 0.0)
    result: Floats = moved.mean(axis=1)
    return result


def rmse_influence(found: Floats, wanted: Floats) -> Floats:
    """Return how much each sample moves the RMSE, (n,)."""
    left = np.square(found - wanted)
    root = np.sqrt(left.mean(axis=0))
    result: Floats = np.where(root > 0, (left - left.mean(axis=0)) / (2 * np.where(root > 0, root, 1.0)), 0.0).mean(1)
    return result


def _interval(value: float, influence: Floats, low: float = -np.inf, high: float = np.inf) -> list[float]:
    reach = NORMAL * float(influence.std()) / float(np.sqrt(len(influence)))
    return [max(value - reach, low), min(value + reach, high)]


def _ends(column: Floats) -> tuple[float, float]:
    low, high = float(column.min()), float(column.max())
    return (low, high) if high > low else (low - 0.5, high + 0.5)
