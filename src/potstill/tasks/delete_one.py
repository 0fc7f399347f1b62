"""Every metric with its exact delete-one values: what each test example contributes to it.

A *jackknife* is a metric's value and one deviation per example, ``(n - 1) (value - value without the example)``,
centred over the examples. For a metric that is a mean this is the example's value minus the mean; for the others it is
what takes its place in a variance. Leaving one example out changes a few sums only, so all n values cost O(n), and
O(c n log n) for the AUC. Shape legend: n examples, c classes, k regression columns.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from potstill.tasks import metrics
from potstill.tasks.arrays import Array, Floats, checked_classes, checked_values, log_odds


class Jackknife(NamedTuple):
    """A metric and its centred delete-one deviations, (n,)."""

    value: float
    deviations: Floats


def of_mean(values: Array) -> Jackknife:
    """Return the jackknife of a metric that is the mean of one value per example, (n,)."""
    column: Floats = np.asarray(values, dtype=np.float64)
    return Jackknife(float(column.mean()), column - column.mean())


def balanced_accuracy(logits: Array, targets: Array) -> Jackknife:
    """Return the jackknife of `metrics.balanced_accuracy`; a class whose only example is left out leaves the mean."""
    right = metrics.example_correct(logits, targets)
    num = np.bincount(targets).astype(np.float64)
    recall = np.bincount(targets, weights=right) / np.maximum(num, 1.0)
    present, total = int((num > 0).sum()), recall.sum()
    size, own = num[targets], recall[targets]
    without = np.where(
        size > 1,
        (total - own + (size * own - right) / np.maximum(size - 1, 1.0)) / present,
        (total - own) / max(present - 1, 1),
    )
    return of_without(total / present, without)


def macro_f1(logits: Array, targets: Array) -> Jackknife:
    """Return the jackknife of `metrics.macro_f1`: one example touches its own class and the one that was predicted."""
    logits, targets = checked_classes(logits, targets)
    predicted, classes = metrics.predictions(logits), logits.shape[1]
    right = predicted == targets
    found = np.bincount(targets[right], minlength=classes).astype(np.float64)
    margin = (np.bincount(targets, minlength=classes) + np.bincount(predicted, minlength=classes)).astype(np.float64)
    scores, present = _f1(found, margin), int((margin > 0).sum())

    def without(which: Array, hits: Array, mentions: Array) -> tuple[Floats, Floats]:
        """Return how the sum of the scores and the number of classes change in one class of each example."""
        left = margin[which] - mentions
        return _f1(found[which] - hits, left) - scores[which], (left <= 0).astype(np.float64)

    own, gone = without(targets, right.astype(np.float64), np.where(right, 2.0, 1.0))
    other, gone_too = without(predicted, np.zeros(len(targets)), np.ones(len(targets)))
    changed = own + np.where(right, 0.0, other)
    left = present - gone - np.where(right, 0.0, gone_too)
    return of_without(scores.sum() / present, (scores.sum() + changed) / np.maximum(left, 1.0))


def _f1(found: Floats, margin: Floats) -> Floats:
    result: Floats = np.where(margin > 0, 2.0 * found / np.maximum(margin, 1.0), 0.0)
    return result


def auc(logits: Array, targets: Array) -> Jackknife | None:
    """Return the jackknife of `metrics.auc`; None where all examples are of one class."""
    logits, targets = checked_classes(logits, targets)
    total, present = 0.0, 0
    summed, left = np.zeros(len(targets)), np.zeros(len(targets))
    for number, odds in enumerate(log_odds(logits).T):
        positive = targets == number
        area, shares = metrics.class_auc(odds, positive)
        if area is None:
            continue
        total, present = total + area, present + 1
        # The mean over one side's shares is the area, so leaving out one share is leaving one out of a mean.
        others = np.where(positive, positive.sum(), (~positive).sum()) - 1.0
        summed += np.where(others > 0, area + (area - shares) / np.maximum(others, 1.0), 0.0)
        left += others > 0
    if not present:
        return None
    return of_without(total / present, np.where(left > 0, summed / np.maximum(left, 1.0), total / present))


def ece(logits: Array, targets: Array, *, bins: int = metrics.NUM_BINS) -> Jackknife:
    """Return the jackknife of `metrics.ece`."""
    confidence = metrics.confidences(logits)
    gap = metrics.example_correct(logits, targets) - confidence
    place = metrics.confidence_bins(confidence, bins)
    sums = np.bincount(place, weights=gap, minlength=bins)
    total, n = np.abs(sums).sum(), len(gap)
    without = total - np.abs(sums[place]) + np.abs(sums[place] - gap)
    return of_without(total / n, without / max(n - 1, 1))


def rmse(values: Array, targets: Array) -> Jackknife:
    """Return the jackknife of `metrics.rmse`."""
    given, wanted = checked_values(values, targets)
    squares, n = np.square(given - wanted), len(given)
    without = np.sqrt(np.maximum(squares.sum(axis=0) - squares, 0.0) / max(n - 1, 1)).mean(axis=1)
    return of_without(float(np.sqrt(squares.mean(axis=0)).mean()), without)


def column_error(kind: str, column: int, values: Array, targets: Array) -> Jackknife:
    """Return the jackknife of the error ``kind``, ``"rmse"`` or ``"mae"``, of one column, in that column's unit."""
    given, wanted = (array[:, [column]] for array in checked_values(values, targets))
    return rmse(given, wanted) if kind == "rmse" else of_mean(metrics.example_absolute_error(given, wanted))


def r2(values: Array, targets: Array) -> Jackknife:
    """Return the jackknife of `metrics.r2`: the targets' own spread changes too."""
    given, wanted = checked_values(values, targets)
    squares, centred, n = np.square(given - wanted), np.square(wanted - wanted.mean(axis=0)), len(given)
    left, spread = squares.sum(axis=0), centred.sum(axis=0)
    remaining = spread - n / max(n - 1, 1) * centred
    # A difference of sums of squares is rounding noise where the other targets are all equal.
    remaining = np.where(remaining > 1e-12 * spread, remaining, 0.0)
    without = metrics.explained(np.maximum(left - squares, 0.0), remaining).mean(axis=1)
    return of_without(float(metrics.explained(left, spread).mean()), without)


def of_without(value: float, without: Floats) -> Jackknife:
    """Return the jackknife of a metric from its values with each example left out, (n,)."""
    deviations = -(len(without) - 1.0) * without
    return Jackknife(float(value), deviations - deviations.mean())
