"""What recorded class probabilities say: one number per answer, then the numbers of a whole split.

The probabilities are read in blocks, so that they may be larger than memory: an array, a memory map, or anything else
with a ``shape`` whose slices are arrays. Shape legend: n answers, c classes, v views.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from potstill.core.errors import UsageError
from potstill.tasks.arrays import Array, Floats, Ints
from potstill.tasks.metrics import reliability_table

Record = dict[str, Any]

BLOCK = 2**21  # numbers of one block: 16 MB as float64
SUM_TOLERANCE = 0.02  # stored probabilities are rounded; a row further from 1 is something else than probabilities
SMALLEST = 1e-12  # a probability of 0 counts as this in the log loss
HARD = 0.99  # the least probability of a class that stands for a hard label
EQUAL = 1e-6  # probabilities closer than this are the same
HISTOGRAM_BINS = 20
MOST_PAIRS = 12
MOST_IN_TABLE = 20  # classes of the confusion table: those with most mistakes
TEMPERATURES = (1.0, 2.0, 4.0, 8.0)
NORMAL = 1.959963984540054  # quantile of a 95 % interval


class Rows(Protocol):
    """Numbers (n, c) that are read a slice at a time."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(n, c)."""
        ...

    def __getitem__(self, rows: slice, /) -> Any:
        """Return some rows as an array."""
        ...


@dataclass(frozen=True)
class Answers:
    """One number of each answer.

    Attributes:
        predicted: (n,) the most probable class, the first one on a tie.
        confidence: (n,) its probability.
        entropy: (n,) in bits.
        of_label: (n,) the probability of the label; None without labels.
        rival: (n,) the largest probability of another class than the label; None without labels.
        sample: (m, c) some whole rows, evenly spaced.

    """

    predicted: Ints
    confidence: Floats
    entropy: Floats
    of_label: Floats | None
    rival: Floats | None
    sample: Floats


def blocks(probabilities: Rows) -> Iterator[tuple[slice, Floats]]:
    """Yield the rows in order as float64 blocks whose rows sum to 1.

    Raises:
        UsageError: the shape is not (n, c) with n > 0 and c > 1, or a row is not a distribution.

    """
    shape = tuple(probabilities.shape)
    if len(shape) != 2 or shape[0] < 1 or shape[1] < 2:
        raise UsageError(f"Class probabilities must have shape (n, c) with n > 0 and c > 1; got {shape}.")
    size = max(1, BLOCK // shape[1])
    for start in range(0, shape[0], size):
        rows = slice(start, min(start + size, shape[0]))
        block = np.asarray(probabilities[rows], dtype=np.float64)
        sums = block.sum(axis=1)
        good = np.isfinite(sums) & (block.min(axis=1) >= 0) & (np.abs(sums - 1) <= SUM_TOLERANCE)
        if not good.all():
            row = int(np.argmin(good))
            raise UsageError(
                f"Row {start + row} is no distribution over the classes: its smallest number is "
                f"{block[row].min():g} and its sum {sums[row]:g}. Pass probabilities, the softmax of the logits."
            )
        yield rows, block / sums[:, None]


def read_answers(probabilities: Rows, targets: Ints | None) -> Answers:
    """Return the numbers of each answer; one pass over the rows.

    Args:
        probabilities: (n, c).
        targets: (n,) class numbers, or None.

    """
    n, c = probabilities.shape
    predicted, confidence, entropy = np.empty(n, np.int64), np.empty(n), np.empty(n)
    of_label, rival = (None, None) if targets is None else (np.empty(n), np.empty(n))
    step = -(-n // max(1, min(n, BLOCK // c)))
    sample = []
    for rows, block in blocks(probabilities):
        predicted[rows], confidence[rows], entropy[rows] = block.argmax(axis=1), block.max(axis=1), entropy_bits(block)
        sample.append(block[(-rows.start) % step :: step])
        if targets is not None and of_label is not None and rival is not None:
            place = (np.arange(len(block)), targets[rows])
            of_label[rows] = block[place]
            others = block.copy()
            others[place] = -1.0
            rival[rows] = others.max(axis=1)
    return Answers(predicted, confidence, entropy, of_label, rival, np.concatenate(sample))


def entropy_bits(probabilities: Floats) -> Floats:
    """Return the entropy of each row in bits, (n,)."""
    logs = np.log2(np.maximum(probabilities, np.finfo(np.float64).tiny))
    result: Floats = np.maximum(-(probabilities * logs).sum(axis=1), 0.0)
    return result


def split_scores(answers: Answers, targets: Ints | None, num_classes: int) -> Record:
    """Return the numbers of one split as JSON data.

    ``num``, ``confidence``, ``hard`` (whether the answers are classes without probabilities: all nearly certain and
    equally so), ``silent`` (share of answers that give every class the same probability), ``entropy_bits``,
    ``off_top`` (mean probability off the top class), ``effective_classes`` (2 to the mean entropy),
    ``confidence_histogram``, ``entropy_histogram``; with labels also ``accuracy`` with its Wilson
    ``accuracy_interval``, ``majority`` (share of the most frequent label), ``balanced_accuracy``, ``nll`` in nats,
    ``ece``, ``reliability``,
    ``wrong_histogram`` (confidence of the wrong answers), ``per_class``, ``pairs``, ``confusion``.

    Args:
        answers: what `read_answers` returned.
        targets: (n,) class numbers, or None.
        num_classes: c.

    """
    bits = float(answers.entropy.mean())
    sure = answers.confidence[answers.confidence > 1.0 / num_classes + EQUAL]
    scores: Record = {
        "num": len(answers.predicted),
        "confidence": float(answers.confidence.mean()),
        "hard": bool(len(sure) and np.ptp(sure) < EQUAL and sure[0] > HARD),
        "silent": float(1.0 - len(sure) / len(answers.confidence)),
        "entropy_bits": bits,
        "off_top": float(1.0 - answers.confidence.mean()),
        "effective_classes": float(2.0**bits),
        "confidence_histogram": histogram(answers.confidence, 1.0 / num_classes, 1.0),
        "entropy_histogram": histogram(answers.entropy, 0.0, float(np.log2(num_classes))),
    }
    if targets is None or answers.of_label is None:
        return scores
    correct = answers.predicted == targets
    num = np.bincount(targets)
    recalls = (np.bincount(targets, weights=correct) / np.maximum(num, 1))[num > 0]
    table = reliability_table(correct.astype(np.float64), answers.confidence)
    gaps = [
        count * abs(stated - right)
        for count, stated, right in zip(table["count"], table["confidence"], table["accuracy"], strict=True)
        if count and stated is not None and right is not None
    ]
    scores |= {
        "accuracy": float(correct.mean()),
        "accuracy_interval": list(wilson(int(correct.sum()), len(correct))),
        "majority": float(np.bincount(targets).max() / len(targets)),
        "balanced_accuracy": float(recalls.mean()),
        "nll": float(-np.log(np.maximum(answers.of_label, SMALLEST)).mean()),
        "ece": float(sum(gaps) / len(correct)),
        "reliability": table,
        "wrong_histogram": histogram(answers.confidence[~correct], 1.0 / num_classes, 1.0),
        "per_class": per_class(answers, targets, num_classes),
        **confused(answers.predicted, targets, num_classes),
    }
    return scores


def wilson(right: int, num: int) -> tuple[float, float]:
    """Return the 95 % Wilson score interval of a share ``right / num``; it has a width at 0 and at 1 too."""
    share, square = right / num, NORMAL**2 / num
    middle = (share + square / 2) / (1 + square)
    reach = NORMAL / (1 + square) * float(np.sqrt(share * (1 - share) / num + square / (4 * num)))
    return (0.0 if right == 0 else max(middle - reach, 0.0)), (1.0 if right == num else min(middle + reach, 1.0))


def histogram(values: Array, low: float, high: float, bins: int = HISTOGRAM_BINS) -> Record:
    """Return ``{"edges", "counts"}`` of equal bins; values beyond an end count in the last bin there."""
    counts, edges = np.histogram(np.clip(values, low, high), bins=bins, range=(low, high))
    return {"edges": edges.tolist(), "counts": counts.tolist()}


def per_class(answers: Answers, targets: Ints, num_classes: int) -> list[Record]:
    """Return, by class: samples, share the teacher finds (recall), share of its answers that are right (precision)."""
    correct = answers.predicted == targets
    num, given = np.bincount(targets, minlength=num_classes), np.bincount(answers.predicted, minlength=num_classes)
    found = np.bincount(targets[correct], minlength=num_classes)
    stated = np.bincount(targets, weights=answers.confidence, minlength=num_classes)
    return [
        {
            "class": j,
            "num": int(num[j]),
            "recall": float(found[j] / num[j]) if num[j] else None,
            "precision": float(found[j] / given[j]) if given[j] else None,
            "confidence": float(stated[j] / num[j]) if num[j] else None,
        }
        for j in range(num_classes)
    ]


def confused(predicted: Ints, targets: Ints, num_classes: int) -> Record:
    """Return the most frequent mistakes, and the confusion counts among the classes that have most of them.

    Returns:
        ``pairs``: ``{"label", "teacher", "count", "share"}``, share of the label's samples, most frequent first;
        ``confusion``: ``{"classes", "counts"}``, rows are labels, columns the teacher's answers.

    """
    wrong = predicted != targets
    keys, counts = np.unique(targets[wrong] * num_classes + predicted[wrong], return_counts=True)
    order = np.argsort(-counts, kind="stable")[:MOST_PAIRS]
    num = np.bincount(targets, minlength=num_classes)
    pairs = [
        {
            "label": int(keys[i] // num_classes),
            "teacher": int(keys[i] % num_classes),
            "count": int(counts[i]),
            "share": float(counts[i] / num[keys[i] // num_classes]),
        }
        for i in order
    ]
    involved = sum(np.bincount(side[wrong], minlength=num_classes) for side in (targets, predicted))
    shown = np.sort(np.argsort(-np.asarray(involved), kind="stable")[:MOST_IN_TABLE])
    inside = np.isin(targets, shown) & np.isin(predicted, shown)
    rows, columns = np.searchsorted(shown, targets[inside]), np.searchsorted(shown, predicted[inside])
    table = np.bincount(rows * len(shown) + columns, minlength=len(shown) ** 2).reshape(len(shown), len(shown))
    return {"pairs": pairs, "confusion": {"classes": shown.tolist(), "counts": table.tolist()}}


def mistakes(answers: Answers, targets: Ints, most: int) -> Ints:
    """Return the rows whose class is not the label's, the most confident first, at most ``most``."""
    wrong = np.flatnonzero(answers.predicted != targets)
    result: Ints = wrong[np.argsort(-answers.confidence[wrong], kind="stable")[:most]]
    return result


def reordered(predicted: Ints, targets: Ints, num_classes: int) -> Record | None:
    """Return how the teacher's class order seems to differ from the data's, or None where nothing points to it.

    Each of the teacher's classes is matched with the label it most often stands beside, one to one. The match is made
    on one half of the samples and judged on the other, both ways: at a few samples a class, a match made and judged
    on the same samples always looks good.

    Returns:
        ``{"before", "accuracy", "moves"}``: the accuracy as it is, and with the classes reordered on samples that did
        not choose the order; ``[teacher's class, label]`` of the classes that move.

    """
    half = np.random.default_rng(0).permutation(len(targets)) % 2 == 0
    right = 0
    for chosen, judged in ((half, ~half), (~half, half)):
        order = _matched(predicted[chosen], targets[chosen], num_classes)
        right += int((order[predicted[judged]] == targets[judged]).sum())
    before, after = float((predicted == targets).mean()), right / len(targets)
    noise = 4 * float(np.sqrt(max(after, before) / len(targets)))
    if after - before <= max(0.02, noise):
        return None
    order = _matched(predicted, targets, num_classes)
    used = np.unique(predicted)
    return {"before": before, "accuracy": after, "moves": [[int(j), int(order[j])] for j in used if order[j] != j]}


def _matched(predicted: Ints, targets: Ints, num_classes: int) -> Ints:
    keys, counts = np.unique(predicted * num_classes + targets, return_counts=True)
    order = np.full(num_classes, -1, np.int64)
    free = np.ones(num_classes, bool)
    for key in keys[np.argsort(-counts, kind="stable")]:
        own, label = divmod(int(key), num_classes)
        if order[own] < 0 and free[label]:
            order[own], free[label] = label, False
    result: Ints = np.where(order < 0, np.arange(num_classes), order)
    return result


def softened(sample: Floats) -> list[Record]:
    """Return what a temperature does to the answers: ``{"temperature", "entropy_bits", "off_top"}``, from some rows."""
    logs = np.log(np.maximum(sample, SMALLEST))
    found = []
    for temperature in TEMPERATURES:
        soft = np.exp(logs / temperature - (logs / temperature).max(axis=1, keepdims=True))
        soft /= soft.sum(axis=1, keepdims=True)
        found.append(
            {
                "temperature": temperature,
                "entropy_bits": float(entropy_bits(soft).mean()),
                "off_top": float(1.0 - soft.max(axis=1).mean()),
            }
        )
    return found


def view_changes(classes: Array, targets: Ints | None) -> Record:
    """Return how far a teacher's class depends on the view.

    Args:
        classes: (n, v) the teacher's class of each view; column 0 is view 0.
        targets: (n,) class numbers, or None.

    Returns:
        ``samples_changed`` with its Wilson ``interval``: share of samples whose class differs in some view from view
        0; ``answers_changed``: share of the answers to further views that do; with labels ``accuracy_first`` and
        ``accuracy_further``.

    """
    classes = np.asarray(classes)
    if classes.ndim != 2 or classes.shape[1] < 2 or len(classes) == 0:
        raise UsageError(f"Classes by view must have shape (n, views) with two views or more; got {classes.shape}.")
    differs = classes[:, 1:] != classes[:, :1]
    changed = differs.any(axis=1)
    found: Record = {
        "num_views": int(classes.shape[1]),
        "samples_changed": float(changed.mean()),
        "interval": list(wilson(int(changed.sum()), len(changed))),
        "answers_changed": float(differs.mean()),
    }
    if targets is not None:
        right = classes == targets[:, None]
        found |= {"accuracy_first": float(right[:, 0].mean()), "accuracy_further": float(right[:, 1:].mean())}
    return found
