"""Likely label errors by confident learning.

Shape legend: n answers, c classes.
"""

from __future__ import annotations

import numpy as np

from potstill.evaluation.arrays import Floats, Ints
from potstill.evaluation.label_scores import Answers, Record, Rows, blocks


def confident_classes(probabilities: Rows, targets: Ints, of_label: Floats) -> Ints:
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

    """
    num_classes = probabilities.shape[1]
    count = np.bincount(targets, minlength=num_classes)
    summed = np.bincount(targets, weights=of_label, minlength=num_classes)
    thresholds = np.where(count > 0, summed / np.maximum(count, 1), np.inf)
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
    return float((share * np.bincount(targets, minlength=num_classes)).sum() / len(targets))


def label_errors(probabilities: Rows, targets: Ints, answers: Answers, most: int) -> tuple[Record, Ints, Ints]:
    """Return what confident learning says of the labels.

    A label is likely wrong when the teacher is confident of another class (an off-diagonal entry of the confident
    joint). Worst first by normalised margin: the probability of the label minus the largest other one. A teacher that
    was trained on these labels has learned many of the errors by heart and shows fewer of them.

    Args:
        probabilities: (n, c).
        targets: (n,) the given labels.
        answers: what `read_answers` returned of both.
        most: rows to return.

    Returns:
        ``{"num", "contradicted", "share", "estimated_share"}``: suspects, those of them whose most probable class is
        not the label either, suspects as a share of all labels, and `estimated_errors`; the rows of the worst, at most
        ``most``; and the class that the teacher is confident of in each row, (n,).

    """
    if answers.of_label is None or answers.rival is None:
        raise ValueError("label errors need labels")
    confident = confident_classes(probabilities, targets, answers.of_label)
    suspect = np.flatnonzero((confident >= 0) & (confident != targets))
    margin = answers.of_label[suspect] - answers.rival[suspect]
    rows: Ints = suspect[np.argsort(margin, kind="stable")[:most]]
    found: Record = {
        "num": len(suspect),
        "contradicted": int((answers.predicted[suspect] != targets[suspect]).sum()),
        "share": len(suspect) / len(targets),
        "estimated_share": estimated_errors(confident, targets, probabilities.shape[1]),
    }
    return found, rows, confident
