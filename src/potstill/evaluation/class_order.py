"""Whether a teacher numbers the classes in another order than the data, seen from its answers to labelled samples.

Shape legend: n samples, c classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

CHANCE = 1e-4
"""An order is believed where chance alone would make it win so often with less than this probability."""
SWAPPED = 0.7
"""Exchanging two classes is only certain where the teacher is right on more than this share then: a weak teacher that
takes two classes for each other looks alike."""
ENOUGH = 0.5
"""Share of the moved classes that a teacher must recognise in another order before that is certain."""
MOST = 0.8
"""Share of the moved classes that must be recognised more often in the other order."""


NOTABLE = 0.1
"""Share of the samples that an order must win before one that is not certain is worth a word."""
ROWS = 20_000
"""Samples that are looked at; more say nothing more about an order."""


@dataclass(frozen=True)
class ClassOrder:
    """An order of the classes in which a teacher is right more often than in the given one.

    Attributes:
        classes: (c,) the class that each output seems to stand for.
        given: share of the samples on which it is right in the given order.
        ordered: share on which it is right in this one; like ``given``, of samples on which it was not found.
        chance: probability of winning so clearly by chance, by McNemar's exact test.
        certain: whether it is too clear to go on without a word of the user.

    """

    classes: tuple[int, ...]
    given: float
    ordered: float
    chance: float
    certain: bool

    @property
    def moved(self) -> tuple[int, ...]:
        """The outputs that stand for another class."""
        return tuple(output for output, label in enumerate(self.classes) if output != label)


def likely_order(named: Array, targets: Array, num_classes: int, *, seed: int = 0) -> ClassOrder | None:
    """Return the order of classes in which a teacher would be right more often, or None where chance explains it.

    The order is the best assignment of outputs to labels on one half of the samples; the other half says how much it
    wins. It is certain where it wins beyond chance and most of the classes that it moves are recognised in it, which
    separates a teacher that numbers its classes differently from one that only answers badly: that one names a few
    classes for everything.

    Args:
        named: (n,) the outputs with the largest answers.
        targets: (n,) the labels.
        num_classes: of both.
        seed: of the halves.

    """
    rows = np.random.default_rng(seed).permutation(len(targets))[:ROWS]
    first, second = rows[: len(rows) // 2], rows[len(rows) // 2 :]
    counts = np.zeros((num_classes, num_classes), np.int64)
    np.add.at(counts, (named[first], targets[first]), 1)
    order = _best(counts)
    outputs, labels = named[second], targets[second]
    now, then = outputs == labels, order[outputs] == labels
    won, lost = int((then & ~now).sum()), int((now & ~then).sum())
    chance = _tail(won, won + lost)
    if chance >= CHANCE:
        return None
    moved = np.flatnonzero(order != np.arange(num_classes))
    certain = float(then.mean()) > SWAPPED if len(moved) == 2 else _are_recognised(now, then, labels, moved)
    if not certain and float(then.mean() - now.mean()) < NOTABLE:
        return None
    # Found once more on both halves: what is named has seen every sample, what was tested has not.
    np.add.at(counts, (outputs, labels), 1)
    found = tuple(int(label) for label in _best(counts))
    return ClassOrder(found, float(now.mean()), float(then.mean()), chance, certain)


def _best(counts: Array) -> Array:
    """Return the class of each output that makes most answers right; among equal orders one that moves fewer."""
    return assignment(-(counts * (len(counts) + 1) + np.eye(len(counts), dtype=np.int64)))


def _are_recognised(now: Array, then: Array, labels: Array, moved: Array) -> bool:
    """Return whether most of the moved classes are recognised in the new order, and more often than in the old."""
    present = [label for label in moved if (labels == label).any()]
    better = [float(then[labels == label].mean()) > float(now[labels == label].mean()) for label in present]
    among = then[np.isin(labels, present)]
    return float(np.mean(better)) >= MOST and float(among.mean()) >= _enough(len(moved))


def _enough(moved: int) -> float:
    """Return the share that must be recognised: among many classes no teacher reaches it by accident."""
    return min(ENOUGH, 12 / moved)


def _tail(won: int, games: int) -> float:
    """Return the probability of winning at least so many of so many fair games, exactly."""
    total = term = comb(games, won)
    for wins in range(won, games):
        term = term * (games - wins) // (wins + 1)
        total += term
    return float(total / 2**games)


def assignment(costs: Sequence[Sequence[float]] | Array) -> Array:
    """Return the column of each row so that no column is used twice and the sum of the costs is smallest.

    The Hungarian method with potentials, in O(c³) with one NumPy row operation a step.

    Args:
        costs: (c, c).

    Returns:
        (c,) int64.

    Paper: Roy Jonker, Anton Volgenant: A shortest augmenting path algorithm for dense and sparse linear assignment
    problems, Computing 38, 1987.

    """
    cost = np.asarray(costs, dtype=np.float64)
    size = len(cost)
    of_row, of_column = np.zeros(size), np.zeros(size + 1)
    row_at = np.full(size + 1, -1)  # the last column stands for "none yet"
    for row in range(size):
        row_at[size] = row
        column, nearest, before = size, np.full(size, np.inf), np.full(size, size)
        reached = np.zeros(size + 1, dtype=bool)
        while row_at[column] >= 0:
            reached[column] = True
            at = row_at[column]
            slack = cost[at] - of_row[at] - of_column[:size]
            closer = ~reached[:size] & (slack < nearest)
            nearest[closer], before[closer] = slack[closer], column
            column = int(np.where(reached[:size], np.inf, nearest).argmin())
            step = nearest[column]
            of_row[row_at[reached]] += step
            of_column[reached] -= step
            nearest[~reached[:size]] -= step
        while column != size:
            row_at[column] = row_at[before[column]]
            column = int(before[column])
    found = np.empty(size, np.int64)
    found[row_at[:size]] = np.arange(size)
    return found
