"""What recorded values say: the teacher's answers to a regression task. Shape legend: n answers, k columns."""

from __future__ import annotations

import numpy as np

from potstill.evaluation.intervals import interval
from potstill.evaluation.label_scores import Record, histogram
from potstill.tasks import delete_one, metrics
from potstill.tasks.arrays import Array, Floats, Ints, checked_values
from potstill.tasks.delete_one import Jackknife


def value_scores(values: Array, targets: Array | None) -> Record:
    """Return the numbers of one split as JSON data.

    ``num``, ``mean`` and ``spread`` (standard deviation) of the answers by column, ``value_histogram`` (one column
    only); with labels also ``r2``, ``rmse`` with their 95 % ``r2_interval``, ``rmse_interval``, ``mae`` (of several
    columns ``rmse_1``, ``rmse_1_interval``, ``mae_1`` and on, see `metrics.errors_of`), ``bias`` (mean error by column)
    and ``residual_histogram``. Residuals are answer minus label; with more than one column they are in units of the
    standard deviation of the column's labels (``residual_unit``: ``target`` or ``spread``).

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
    r2 = delete_one.r2(values, targets)
    errors: Record = {}
    for name, kind, column in metrics.errors_of(found.shape[1]):
        error = delete_one.column_error(kind, column - 1, values, targets)
        errors |= {name: error.value} | ({f"{name}_interval": _interval(error, low=0.0)} if kind == "rmse" else {})
    return scores | {
        "r2": r2.value,
        "r2_interval": _interval(r2, high=1.0),
        **errors,
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


def _interval(found: Jackknife, low: float = -np.inf, high: float = np.inf) -> list[float]:
    around = interval(np.array([found.value]), found.deviations[None], low=low, high=high)
    return [around.low, around.high]


def _ends(column: Floats) -> tuple[float, float]:
    low, high = float(column.min()), float(column.max())
    return (low, high) if high > low else (low - 0.5, high + 0.5)
