"""Where the labels of a scatter chart go, so that near points do not write over each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

GAP = 15.0  # pixels between the middles of two labels below each other
NEAR = 55.0  # pixels: points nearer than this, left to right, share one column of labels


@dataclass(frozen=True)
class Place:
    """One label: beside which point it stands (an index), its height in pixels, and on which side of that point."""

    beside: int
    y: float
    right: bool


def place(points: Sequence[tuple[float, float]], *, width: float, height: float) -> list[Place]:
    """Return a place for the label of every point.

    Args:
        points: (x, y) in pixels, y downwards.
        width: of the plot, in pixels; points in its left half have their label on the right, others on the left.
        height: of the plot, in pixels.

    """
    found: dict[int, Place] = {}
    for right in (True, False):
        side = sorted((i for i, (x, _) in enumerate(points) if (x <= width / 2) == right), key=lambda i: points[i][0])
        for column in _columns(side, points):
            beside = column[-1] if right else column[0]
            order = sorted(column, key=lambda i: points[i][1])
            for index, y in zip(order, _spread([points[i][1] for i in order], height), strict=True):
                found[index] = Place(beside, y, right)
    return [found[index] for index in range(len(points))]


def _columns(indices: Sequence[int], points: Sequence[tuple[float, float]]) -> list[list[int]]:
    columns: list[list[int]] = []
    for index in indices:
        if columns and points[index][0] - points[columns[-1][-1]][0] < NEAR:
            columns[-1].append(index)
        else:
            columns.append([index])
    return columns


def _spread(wanted: Sequence[float], height: float) -> list[float]:
    """Return the ascending heights ``wanted``, moved as little as keeps them a gap apart and inside the plot."""
    blocks: list[list[float]] = []  # of each run of touching labels: the wanted heights
    for y in wanted:
        blocks.append([y])
        while len(blocks) > 1 and _top(blocks[-2]) + GAP * len(blocks[-2]) > _top(blocks[-1]):
            last = blocks.pop()
            blocks[-1] += last
    places = [_top(block) + GAP * step for block in blocks for step in range(len(block))]
    lift = max(0.0, places[-1] - (height - GAP / 2))
    return [y - lift for y in places]


def _top(block: Sequence[float]) -> float:
    return sum(block) / len(block) - GAP * (len(block) - 1) / 2
