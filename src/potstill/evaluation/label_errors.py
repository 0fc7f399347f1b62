"""Likely label errors by confident learning.

Shape legend: n answers, c classes.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from potstill.evaluation.label_scores import Answers, Record, Rows, blocks
from potstill.tasks.arrays import Floats, Ints

HANDFUL = 20  # samples of a class below which nothing is said of its labels
FINDS = 0.5  # share of a class's samples that the teacher must find for its labels to be judged

Flags = np.ndarray[Any, np.dtype[np.bool_]]


def judged_classes(answers: Answers, targets: Ints, num_classes: int) -> Flags:
    """Return which classes' labels these answers can judge, (c,): enough samples, most of which the teacher finds.

    A threshold that is the mean of a handful of probabilities is noise, and a teacher that misses most samples of a
    class contradicts its labels because it does not know it, not because they are wrong.
    """
    num = np.bincount(targets, minlength=num_classes)
    right = np.bincount(targets[answers.predicted == targets], minlength=num_classes)
    result: Flags = (num >= HANDFUL) & (right >= FINDS * num)
    return result


def confident_classes(probabilities: Rows, targets: Ints, of_label: Floats, judged: Flags | None = None) -> Ints:
    """Return the class that each answer is confident of, (n,); -1 where it is confident of none.

    An answer is confident of class j when its probability of j reaches the threshold of j: the mean probability that
    the teacher gives to j over the samples labelled j. Where it reaches several thresholds, the most probable of
    these classes counts. A class without samples has no threshold, and no answer is confident of it.

    Northcutt, Jiang and Chuang, Confident Learning: Estimating Uncertainty in Dataset Labels, 2021, arXiv 1911.00068,
    equations 1 and 2.

    Args:
        probabilities: (n, c).
        targets: (n,) the given labels.
        of_label: (n,) the probability of the given label.
        judged: (c,) the classes that count; an answer is confident of none of the others. All when absent.

    """
    num_classes = probabilities.shape[1]
    count = np.bincount(targets, minlength=num_classes)
    summed = np.bincount(targets, weights=of_label, minlength=num_classes)
    counts = count > 0 if judged is None else (count > 0) & judged
    thresholds = np.where(counts, summed / np.maximum(count, 1), np.inf)
    found = np.empty(len(targets), np.int64)
    for rows, block in blocks(probabilities):
        # The mean of equal numbers may come out a rounding above them.
        reached = np.where(block >= thresholds * (1 - 1e-9), block, -1.0)
        found[rows] = np.where(reached.max(axis=1) >= 0, reached.argmax(axis=1), -1)
    return found


def estimated_errors(confident: Ints, targets: Ints, num_classes: int) -> float:
    """Return the estimated share of wrong labels: the off-diagonal mass of the calibrated confident joint.

    Row i of the confident joint counts, of the samples labelled i, how many are confidently of each class; each row is
    scaled to the number of samples labelled i, since answers that are confident of nothing were not counted
    (equation 3 of the paper). A row without a confident answer of its own class counts one there.

    Args:
        confident: (n,) what `confident_classes` returned.
        targets: (n,) the given labels.
        num_classes: c.

    """
    sure = confident >= 0
    of_label = np.bincount(targets[sure], minlength=num_classes)
    agreeing = np.bincount(targets[sure & (confident == targets)], minlength=num_classes)
    off = of_label - agreeing
    share = off / (off + np.maximum(agreeing, 1))
    return float((share * np.bincount(targets, minlength=num_classes)).sum() / max(len(targets), 1))


def label_errors(
    probabilities: Rows, targets: Ints, answers: Answers, most: int, judged: Flags | None = None
) -> tuple[Record, Ints, Ints]:
    """Return what confident learning says of the labels.

    A label is likely wrong when the teacher is confident of another class (an off-diagonal entry of the confident
    joint). Worst first by normalised margin: the probability of the label minus the largest other one. A teacher that
    was trained on these labels has learned many of the errors by heart and shows fewer of them.

    Args:
        probabilities: (n, c).
        targets: (n,) the given labels.
        answers: what `read_answers` returned of both.
        most: rows to return.
        judged: (c,) the classes whose labels are judged, see `judged_classes`; all when absent.

    Returns:
        ``{"num", "contradicted", "share", "estimated_share", "judged"}``: suspects, those of them whose most probable
        class is not the label either, suspects as a share of the judged labels, `estimated_errors` of them, and how
        many labels were judged; the rows of the worst, at most
        ``most``; and the class that the teacher is confident of in each row, (n,).

    """
    if answers.of_label is None or answers.rival is None:
        raise ValueError("label errors need labels")
    every: Flags = np.ones(probabilities.shape[1], np.bool_)
    mask = every if judged is None else judged
    counts = mask[targets]
    confident = np.where(counts, confident_classes(probabilities, targets, answers.of_label, mask), -1)
    suspect = np.flatnonzero((confident >= 0) & (confident != targets))
    margin = answers.of_label[suspect] - answers.rival[suspect]
    rows: Ints = suspect[np.argsort(margin, kind="stable")[:most]]
    found: Record = {
        "num": len(suspect),
        "contradicted": int((answers.predicted[suspect] != targets[suspect]).sum()),
        "share": len(suspect) / max(int(counts.sum()), 1),
        "estimated_share": estimated_errors(confident[counts], targets[counts], probabilities.shape[1]),
        "judged": int(counts.sum()),
    }
    return found, rows, confident
