"""Scores of several labels per sample, with what each example contributes, and the thresholds they are decided at.

A label is yes where its logit is at least 0. Targets are 1, 0, or NaN where a label is unknown: such a cell counts for
nothing. Shape legend: n examples, c classes.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from potstill.core.errors import UsageError
from potstill.tasks.arrays import Array, Floats
from potstill.tasks.delete_one import Jackknife, of_mean, of_without

FEWEST = 20
"""With fewer validation examples no thresholds are chosen."""
FEWEST_YES = 3
"""Nor for a class with fewer examples."""
_FOLDS = 5


def checked(logits: Array, targets: Array) -> tuple[Floats, Floats]:
    """Return logits and targets as float64 (n, c), or raise a `UsageError` that says what does not fit."""
    scores, labels = (np.asarray(array, dtype=np.float64) for array in (logits, targets))
    if scores.ndim != 2 or scores.shape != labels.shape or not scores.size:
        raise UsageError(
            "Logits and labels must have the same shape (n, c), one column for each class; "
            f"got {scores.shape} and {labels.shape}."
        )
    if not np.isin(labels[~np.isnan(labels)], (0.0, 1.0)).all():
        raise UsageError("Labels must be 1, 0, or NaN where they are unknown.")
    return scores, labels


def average_precisions(logits: Array, targets: Array) -> list[tuple[float | None, Floats]]:
    """Return for each class its average precision (None without a yes), and that without each example, (n,).

    Average precision is the sum over the thresholds of precision times the recall gained there, as in scikit-learn;
    equal scores share a threshold. Without an example that is unknown it is what it was.
    """
    scores, labels = checked(logits, targets)
    each = []
    for column, label in zip(scores.T, labels.T, strict=True):
        known = ~np.isnan(label)
        area, without = _average_precision(column[known], label[known] > 0)
        whole = np.full(len(label), np.nan if area is None else area)
        whole[known] = without
        each.append((area, whole))
    return each


def _average_precision(scores: Floats, positive: Array) -> tuple[float | None, Floats]:
    """Return one class's average precision, and that without each example: NaN where it was the only yes."""
    num = int(positive.sum())
    if not num:
        return None, np.full(len(scores), np.nan)
    order = np.argsort(-scores, kind="stable")
    place = np.empty(len(scores), np.int64)
    place[order] = np.concatenate([[0], np.cumsum(np.diff(scores[order]) != 0)])
    own = np.bincount(place, weights=positive)
    seen, hits = np.cumsum(np.bincount(place)), np.cumsum(own)
    fewer = np.maximum(seen - 1, 1)
    before = np.cumsum(own * hits / seen) - own * hits / seen
    # Leaving an example out changes the precision at its own threshold and at all later ones.
    without_no = before + np.cumsum((own * hits / fewer)[::-1])[::-1]
    without_yes = before + np.cumsum((own * (hits - 1) / fewer)[::-1])[::-1] - (hits - 1) / fewer
    left = without_yes / (num - 1) if num > 1 else np.full(len(seen), np.nan)
    return float((own * hits / seen).sum() / num), np.where(positive, left[place], without_no[place] / num)


def mean_average_precision(logits: Array, targets: Array) -> Jackknife | None:
    """Return the jackknife of the average precision, averaged over the classes with a yes; None where there is none."""
    each = [(area, without) for area, without in average_precisions(logits, targets) if area is not None]
    if not each:
        return None
    without = np.stack([values for _, values in each])
    left = (~np.isnan(without)).sum(axis=0)
    value = float(np.mean([area for area, _ in each]))
    return of_without(value, np.where(left > 0, np.nansum(without, axis=0) / np.maximum(left, 1), value))


def _counts(logits: Array, targets: Array) -> tuple[Floats, Floats]:
    """Return for each cell whether it is a right yes, and how often yes is said or true there: (n, c) each."""
    scores, labels = checked(logits, targets)
    known, said, true = ~np.isnan(labels), scores >= 0, labels == 1
    return (known & said & true).astype(np.float64), (known & said).astype(np.float64) + true


def class_f1(logits: Array, targets: Array) -> Floats:
    """Return the F1 score of each class, (c,); NaN where yes is neither said nor true."""
    right, yes = (cells.sum(axis=0) for cells in _counts(logits, targets))
    scores: Floats = np.where(yes > 0, 2 * right / np.maximum(yes, 1), np.nan)
    return scores


def macro_f1(logits: Array, targets: Array) -> Jackknife | None:
    """Return the jackknife of the F1 score averaged over the classes where yes is said or true."""
    right, yes = _counts(logits, targets)
    scores = class_f1(logits, targets)
    if np.isnan(scores).all():
        return None
    fewer = yes.sum(axis=0) - yes
    without = np.where(fewer > 0, 2 * (right.sum(axis=0) - right) / np.maximum(fewer, 1), 0.0)
    return of_without(float(np.nanmean(scores)), without.sum(axis=1) / np.maximum((fewer > 0).sum(axis=1), 1))


def micro_f1(logits: Array, targets: Array) -> Jackknife | None:
    """Return the jackknife of the F1 score of all cells together; None where yes is neither said nor true."""
    right, yes = (cells.sum(axis=1) for cells in _counts(logits, targets))
    if not yes.sum():
        return None
    fewer = yes.sum() - yes
    without = 2 * (right.sum() - right) / np.maximum(fewer, 1)
    return of_without(float(2 * right.sum() / yes.sum()), without)


def log_loss(logits: Array, targets: Array) -> Jackknife:
    """Return the jackknife of minus the log probability of each known label, averaged over them, in nats."""
    scores, labels = checked(logits, targets)
    known = ~np.isnan(labels)
    loss = np.where(known, np.logaddexp(0.0, np.where(labels == 1, -scores, scores)), 0.0).sum(axis=1)
    fewer = known.sum() - known.sum(axis=1)
    return of_without(float(loss.sum() / known.sum()), (loss.sum() - loss) / np.maximum(fewer, 1))


def divergence(logits: Array, teacher: Array) -> Jackknife:
    """Return the jackknife of KL(teacher || student), averaged over classes and examples, in nats."""
    student, taught = (np.asarray(side, dtype=np.float64) for side in (logits, teacher))
    likely = 1 / (1 + np.exp(-np.clip(taught, -700, 700)))
    yes = np.logaddexp(0.0, -student) - np.logaddexp(0.0, -taught)
    no = np.logaddexp(0.0, student) - np.logaddexp(0.0, taught)
    return of_mean(np.maximum(likely * yes + (1 - likely) * no, 0.0).mean(axis=1))


@dataclass(frozen=True)
class Thresholds:
    """The probability from which on each class is a yes, and what that does to validation examples not used for it.

    Attributes:
        thresholds: (c,) one half everywhere where choosing did not help.
        macro_f1: at one half.
        macro_f1_chosen: with thresholds chosen on the other folds.

    """

    thresholds: tuple[float, ...]
    macro_f1: float | None
    macro_f1_chosen: float | None

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON data."""
        return {**asdict(self), "thresholds": list(self.thresholds)}


def choose_thresholds(logits: Array, targets: Array) -> Thresholds:
    """Choose each class's threshold by its F1 score, and decide by cross-validation whether to keep them."""
    scores, labels = checked(logits, targets)
    half, n = (0.5,) * scores.shape[1], len(scores)
    if n < FEWEST:
        return Thresholds(half, None, None)
    fold, decided = np.random.default_rng(0).permutation(n) % _FOLDS, np.empty_like(scores)
    for number in range(_FOLDS):
        out = fold == number
        decided[out] = scores[out] - _places(scores[~out], labels[~out])
    before, after = (
        None if one is None else one.value for one in (macro_f1(scores, labels), macro_f1(decided, labels))
    )
    if after is None or (before is not None and after <= before):
        return Thresholds(half, before, after)
    chosen = 1 / (1 + np.exp(-np.clip(_places(scores, labels), -30, 30)))
    return Thresholds(tuple(map(float, chosen)), before, after)


def _places(scores: Floats, labels: Floats) -> Floats:
    """Return for each class the logit between two examples that gives the best F1, of equal ones the nearest to 0."""
    places = np.zeros(scores.shape[1])
    for number, (column, label) in enumerate(zip(scores.T, labels.T, strict=True)):
        known = ~np.isnan(label)
        order = np.argsort(-column[known], kind="stable")
        values, true = column[known][order], label[known][order] > 0
        if true.sum() < FEWEST_YES:
            continue
        ends = np.flatnonzero(np.append(np.diff(values) != 0, True))
        hits = np.cumsum(true)[ends]
        below = np.append((values[ends[:-1]] + values[ends[:-1] + 1]) / 2, values[-1] - 1)
        quality = 2 * hits / (ends + 1 + true.sum())
        best = np.flatnonzero(quality >= quality.max() - 1e-12)
        places[number] = below[best[np.abs(below[best]).argmin()]]
    return places


def decided_at(logits: Array, thresholds: Any) -> Floats:
    """Return logits (n, c) moved so that each class is a yes from 0 on."""
    wanted = np.asarray(thresholds, dtype=np.float64)
    moved: Floats = np.asarray(logits, dtype=np.float64) - np.log(wanted / (1 - wanted))
    return moved
