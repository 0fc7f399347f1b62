"""Scores of predictions: plain functions of NumPy arrays.

Scores that are means over examples also exist per example (``example_*``).
Shape legend: n examples, c classes, k regression columns.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from potstill.core.errors import UsageError
from potstill.tasks.arrays import Array, Floats, Ints, checked_classes, checked_values, log_odds, log_softmax

NUM_BINS = 15
PER_COLUMN = ("rmse", "mae")  # in the targets' unit: several columns have several units
MOST_COLUMNS = 8  # of which each error is told
TIE = 1e-6  # log odds closer than this count as equal: float32 scores of equal probabilities differ by less


def errors_of(columns: int) -> list[tuple[str, str, int]]:
    """Return the errors of a regression as (name, kind, column from 1): ``rmse``, of several columns ``rmse_1`` and on.

    Their mean over the columns has no unit, so there is none; with more than ``MOST_COLUMNS`` there are no errors.
    """
    if columns == 1:
        return [(kind, kind, 1) for kind in PER_COLUMN]
    if columns > MOST_COLUMNS:
        return []
    return [(f"{kind}_{column}", kind, column) for kind in PER_COLUMN for column in range(1, columns + 1)]


def predictions(logits: Array) -> Ints:
    """Return the class with the highest score, (n,); the first one on a tie."""
    result: Ints = np.argmax(logits, axis=1).astype(np.int64)
    return result


def confidences(logits: Array) -> Floats:
    """Return the probability of the predicted class, (n,)."""
    result: Floats = np.exp(log_softmax(logits).max(axis=1))
    return result


def example_correct(logits: Array, targets: Array) -> Floats:
    """Return 1.0 where the highest score is the target's, else 0.0, (n,)."""
    logits, targets = checked_classes(logits, targets)
    result: Floats = (predictions(logits) == targets).astype(np.float64)
    return result


def accuracy(logits: Array, targets: Array) -> float:
    """Return the share of examples whose highest score is the target's.

    Args:
        logits: (n, c) scores; only their order matters.
        targets: (n,) class numbers.

    """
    return float(example_correct(logits, targets).mean())


def balanced_accuracy(logits: Array, targets: Array) -> float:
    """Return the mean over the classes that occur in the targets of the share of their examples answered right.

    Use it when classes are of unequal size: always answering one class gives 1 / (number of classes). Args as in
    `accuracy`.
    """
    table = confusion(logits, targets)
    present = table.sum(axis=1) > 0
    return float((np.diag(table)[present] / table.sum(axis=1)[present]).mean())


def auc(logits: Array, targets: Array) -> float:
    """Return the area under the ROC curve, one class against the rest, averaged over the classes.

    The chance that an example of the class gets a higher probability of it than an example of another class does;
    equal probabilities count one half. It says how well the examples are ordered, wherever a threshold would lie. A
    class without examples is left out; NaN where all examples are of one class. Args as in `accuracy`.
    """
    logits, targets = checked_classes(logits, targets)
    areas = [area for area, _ in (class_auc(odds, targets == c) for c, odds in enumerate(log_odds(logits).T))]
    return float(np.mean([area for area in areas if area is not None] or [np.nan]))


def class_auc(odds: Floats, positive: np.ndarray[Any, np.dtype[np.bool_]]) -> tuple[float | None, Floats]:
    """Return the area under one class's ROC curve, and for every example its share of the pairs that are in order.

    Args:
        odds: (n,) the class's log odds.
        positive: (n,) whether the example is of the class.

    Returns:
        The area (None where there is no pair), and (n,) the share of the examples of the other side that each example
        is on the right side of, ties one half.

    """
    num, others = int(positive.sum()), int((~positive).sum())
    if not num or not others:
        return None, np.zeros(len(odds))
    order = np.argsort(odds, kind="stable")
    place = np.empty(len(odds), np.int64)
    place[order] = np.concatenate([[0], np.cumsum(np.diff(odds[order]) > TIE)])
    own, rest = (np.bincount(place[side], minlength=place.max() + 1) for side in (positive, ~positive))
    below, above = np.cumsum(rest) - 0.5 * rest, num - np.cumsum(own) + 0.5 * own
    shares: Floats = np.where(positive, below[place] / others, above[place] / num)
    return float(shares[positive].mean()), shares


def macro_f1(logits: Array, targets: Array) -> float:
    """Return the mean F1 over the classes that occur in the targets or in the predictions.

    Use it when classes are of unequal size and all matter. Args as in `accuracy`.
    """
    table = confusion(logits, targets)
    found, present = np.diag(table), table.sum(axis=0) + table.sum(axis=1)
    return float((2.0 * found[present > 0] / present[present > 0]).mean())


def example_nll(logits: Array, targets: Array) -> Floats:
    """Return minus the log probability (in nats) of the target, (n,)."""
    logits, targets = checked_classes(logits, targets)
    result: Floats = -log_softmax(logits)[np.arange(len(targets)), targets]
    return result


def nll(logits: Array, targets: Array) -> float:
    """Return the mean negative log-likelihood in nats (the cross-entropy). Args as in `accuracy`."""
    return float(example_nll(logits, targets).mean())


def example_brier(logits: Array, targets: Array) -> Floats:
    """Return the squared distance between the probabilities and the one-hot target, (n,), from 0 to 2."""
    logits, targets = checked_classes(logits, targets)
    probabilities = np.exp(log_softmax(logits))
    at_target = probabilities[np.arange(len(targets)), targets]
    result: Floats = np.square(probabilities).sum(axis=1) - 2.0 * at_target + 1.0
    return result


def brier(logits: Array, targets: Array) -> float:
    """Return the Brier score summed over all classes, from 0 (best) to 2. Args as in `accuracy`."""
    return float(example_brier(logits, targets).mean())


def confidence_bins(confidence: Array, bins: int = NUM_BINS) -> Ints:
    """Return the bin of each confidence: bin i holds i/bins < confidence <= (i+1)/bins, and bin 0 also 0."""
    inner = np.arange(1, bins) / bins
    result: Ints = np.searchsorted(inner, np.asarray(confidence), side="left").astype(np.int64)
    return result


def ece(logits: Array, targets: Array, *, bins: int = NUM_BINS) -> float:
    """Return the expected calibration error: how far confidence and accuracy lie apart, averaged over examples.

    Confidences are put into ``bins`` bins of equal width; the error is sum over bins of count/n times
    ``|accuracy - mean confidence|`` (Guo et al., On Calibration of Modern Neural Networks, 2017, arXiv 1706.04599).
    It is biased upwards when there are few examples in a bin. Args as in `accuracy`.
    """
    gap = example_correct(logits, targets) - confidences(logits)
    sums = np.bincount(confidence_bins(confidences(logits), bins), weights=gap, minlength=bins)
    return float(np.abs(sums).sum() / len(gap))


def reliability(logits: Array, targets: Array, *, bins: int = NUM_BINS) -> dict[str, list[float | int | None]]:
    """Return the table behind a reliability diagram.

    Args:
        logits: (n, c) scores.
        targets: (n,) class numbers.
        bins: number of confidence bins of equal width.

    Returns:
        Columns of ``bins`` rows: ``low`` and ``high`` edges, ``count``, mean ``confidence`` and ``accuracy`` (None
        where the bin is empty).

    """
    return reliability_table(example_correct(logits, targets), confidences(logits), bins=bins)


def reliability_table(
    correct: Array, confidence: Array, *, bins: int = NUM_BINS
) -> dict[str, list[float | int | None]]:
    """Return the table of `reliability` from what is known of each answer: whether it is right, and how sure, (n,)."""
    where = confidence_bins(confidence, bins)
    count = np.bincount(where, minlength=bins)
    sums = {
        "confidence": np.bincount(where, weights=confidence, minlength=bins),
        "accuracy": np.bincount(where, weights=correct, minlength=bins),
    }
    table: dict[str, list[float | int | None]] = {
        "low": [i / bins for i in range(bins)],
        "high": [(i + 1) / bins for i in range(bins)],
        "count": [int(number) for number in count],
    }
    for name, total in sums.items():
        table[name] = [float(s / k) if k else None for s, k in zip(total, count, strict=True)]
    return table


def confusion(logits: Array, targets: Array) -> Ints:
    """Return the confusion matrix (c, c): row = target, column = prediction, entry = number of examples."""
    logits, targets = checked_classes(logits, targets)
    classes = logits.shape[1]
    counts = np.bincount(targets * classes + predictions(logits), minlength=classes * classes)
    result: Ints = counts.reshape(classes, classes).astype(np.int64)
    return result


def example_agreement(logits: Array, teacher_logits: Array) -> Floats:
    """Return 1.0 where student and teacher predict the same class, else 0.0, (n,)."""
    _same_shape(logits, teacher_logits)
    result: Floats = (predictions(logits) == predictions(teacher_logits)).astype(np.float64)
    return result


def agreement(logits: Array, teacher_logits: Array) -> float:
    """Return the share of examples on which two models predict the same class; targets are not needed.

    Args:
        logits: (n, c) scores of the student.
        teacher_logits: (n, c) scores of the teacher.

    """
    return float(example_agreement(logits, teacher_logits).mean())


def example_kl_to_teacher(logits: Array, teacher_logits: Array) -> Floats:
    """Return KL(teacher || student) in nats at temperature 1, (n,)."""
    _same_shape(logits, teacher_logits)
    teacher, student = log_softmax(teacher_logits), log_softmax(logits)
    result: Floats = np.maximum((np.exp(teacher) * (teacher - student)).sum(axis=1), 0.0)
    return result


def kl_to_teacher(logits: Array, teacher_logits: Array) -> float:
    """Return the mean KL(teacher || student) in nats at temperature 1. Args as in `agreement`."""
    return float(example_kl_to_teacher(logits, teacher_logits).mean())


def example_absolute_error(values: Array, targets: Array) -> Floats:
    """Return the absolute error averaged over the columns, (n,)."""
    found, wanted = checked_values(values, targets)
    result: Floats = np.abs(found - wanted).mean(axis=1)
    return result


def mae(values: Array, targets: Array) -> float:
    """Return the mean absolute error in the targets' unit, averaged over the columns.

    The average means something only where all columns have one unit; an evaluation tells each column's (`errors_of`).

    Args:
        values: (n,) or (n, k) predicted values.
        targets: of the same shape.

    """
    return float(example_absolute_error(values, targets).mean())


def rmse(values: Array, targets: Array) -> float:
    """Return the root of the mean squared error of each column, averaged over the columns. Args as in `mae`."""
    found, wanted = checked_values(values, targets)
    return float(np.sqrt(np.square(found - wanted).mean(axis=0)).mean())


def r2(values: Array, targets: Array) -> float:
    """Return the share of the targets' variance that is explained, averaged over the columns.

    1 is perfect, 0 is as good as always predicting the mean, below 0 is worse. A column of constant targets counts 1
    when it is predicted exactly, else 0. Args as in `mae`.
    """
    found, wanted = checked_values(values, targets)
    left = np.square(found - wanted).sum(axis=0)
    spread = np.square(wanted - wanted.mean(axis=0)).sum(axis=0)
    return float(explained(left, spread).mean())


def explained(left: Floats, spread: Floats) -> Floats:
    """Return 1 - left/spread; where spread is 0: 1 if left is 0, else 0."""
    constant = spread <= 0
    result: Floats = np.where(constant, (left <= 0).astype(np.float64), 1.0 - left / np.where(constant, 1.0, spread))
    return result


def _same_shape(logits: Array, teacher_logits: Array) -> None:
    if np.ndim(logits) != 2 or np.shape(logits) != np.shape(teacher_logits) or len(logits) == 0:
        raise UsageError(
            "Student and teacher scores must have the same shape (n, c); "
            f"got {np.shape(logits)} and {np.shape(teacher_logits)}."
        )
