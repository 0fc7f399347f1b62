"""95 % intervals from exact delete-one values, without resampling.

Two questions must be kept apart. With one or two seeds: *these weights* on other test examples like these. From three
seeds on: *the method*, trained again with other seeds and tested on other examples; seeds and examples are crossed
random effects. Both are answered from three mean squares of the deviations in `potstill.tasks.delete_one`:

    MS_seeds    = n sum_s (value_s - value)^2 / (S - 1)
    MS_examples = S sum_i (mean_s deviation_si)^2 / (n - 1)
    MS_rest     = [sum_si deviation_si^2 - S sum_i (mean_s deviation_si)^2] / ((S - 1) (n - 1))

Half a width h, with t quantiles of each part's own degrees of freedom, and for rates r, the variance of further
examples of unknown outcome (`spare`; an observed spread of 0 is no certainty):

    S < 3:   h^2 = t(n-1)^2 [MS_examples / (S n) + r / S]
    S >= 3:  h^2 = t(n-1)^2 [MS_examples / (S n) + r / S] + t(S-1)^2 max(0, MS_seeds - c MS_rest) / (S n)

with c = 1 - 1.3 / S: seeds' values differ by the chance of the examples too, and that part was counted once already.
Why this and how it was tested: ``docs/decisions``, ``benchmarks/interval_simulation.py``.
Shape legend: S seeds, n examples; leading dimensions are independent data sets.
"""

from __future__ import annotations

import math
from functools import cache
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

from potstill.evaluation.verdict import SEEDS_FOR_A_CLAIM, Difference
from potstill.tasks.arrays import Array, Floats

_LEVEL = 0.95
_EXPANDED = 30  # from so many degrees of freedom on, the expansion of the quantile is exact to 1e-6


class MeanSquares(NamedTuple):
    """The mean squares of deviations from S seeds and n examples, each of the shape of the leading dimensions."""

    seeds: Floats
    examples: Floats
    rest: Floats
    num_seeds: int
    num_examples: int


def mean_squares(values: Floats, deviations: Floats) -> MeanSquares:
    """Return the mean squares of values (..., S) with delete-one deviations (..., S, n)."""
    num_seeds, n = deviations.shape[-2:]
    by_example = np.square(deviations.mean(axis=-2)).sum(axis=-1)
    examples = num_seeds * by_example / max(n - 1, 1)
    if num_seeds < 2:
        return MeanSquares(np.zeros_like(examples), examples, np.zeros_like(examples), num_seeds, n)
    seeds = n * np.square(values - values.mean(axis=-1, keepdims=True)).sum(axis=-1) / (num_seeds - 1)
    rest = (np.square(deviations).sum(axis=(-1, -2)) - num_seeds * by_example) / ((num_seeds - 1) * max(n - 1, 1))
    return MeanSquares(seeds, examples, np.maximum(rest, 0.0), num_seeds, n)


def spare(num_examples: Array | int) -> float:
    """Return the variance that two further examples of unknown outcome add to a rate over some examples.

    Several numbers are those of classes whose rates are averaged: then it is one further example of each class.
    """
    counts = np.atleast_1d(np.asarray(num_examples, dtype=np.float64))
    return float(2.0 / counts[0] ** 2) if len(counts) == 1 else float(np.square(1.0 / (len(counts) * counts)).sum())


def half_width(squares: MeanSquares, extra: float = 0.0) -> Floats:
    """Return half the width of the 95 % interval of the mean over seeds; infinite for a single example.

    Args:
        squares: of the values whose mean the interval is of.
        extra: variance to add to that of one seed, of a rate: `spare`.

    """
    num_seeds, n = squares.num_seeds, squares.num_examples
    if n < 2:
        return np.full_like(squares.examples, np.inf)
    scale = num_seeds * n
    over_examples = squares.examples / scale + extra / num_seeds
    if num_seeds < SEEDS_FOR_A_CLAIM:
        return t_quantile(n - 1) * np.sqrt(over_examples)
    over_seeds = np.maximum(squares.seeds - (1.0 - 1.3 / num_seeds) * squares.rest, 0.0) / scale
    result: Floats = np.sqrt(t_quantile(n - 1) ** 2 * over_examples + t_quantile(num_seeds - 1) ** 2 * over_seeds)
    return result


def expected(squares: MeanSquares, *, seeds: int = 1, examples: int = 1) -> MeanSquares:
    """Return the mean squares to expect with so many times the seeds and examples, from the variances found."""
    by_example = np.maximum(squares.examples - squares.rest, 0.0) / squares.num_seeds
    by_seed = np.maximum(squares.seeds - squares.rest, 0.0) / squares.num_examples
    num_seeds, n = squares.num_seeds * seeds, squares.num_examples * examples
    return MeanSquares(squares.rest + n * by_seed, squares.rest + num_seeds * by_example, squares.rest, num_seeds, n)


def interval(
    values: Floats, deviations: Floats, *, extra: float = 0.0, low: float = -math.inf, high: float = math.inf
) -> Difference:
    """Return the mean over seeds with its 95 % interval, and how much narrower more seeds or examples would make it.

    Args:
        values: (S,) the value of each seed, or its difference to another model's.
        deviations: (S, n) its delete-one deviations; those of a difference are the difference of the deviations.
        extra: as in `half_width`.
        low: smallest possible value.
        high: largest possible value.

    """
    squares = mean_squares(np.asarray(values, dtype=np.float64), np.asarray(deviations, dtype=np.float64))
    value, reach = float(np.mean(values)), float(half_width(squares, extra))
    more: list[float | None] = [None, None]
    if 0 < reach < math.inf:
        twice = ((expected(squares, seeds=2), extra), (expected(squares, examples=2), extra / 4))
        # With fewer seeds the interval is about these weights, and more of them answer another question.
        more = [float(half_width(*each)) / reach for each in twice]
        more[0] = more[0] if squares.num_seeds >= SEEDS_FOR_A_CLAIM else None
    return Difference(value, max(value - reach, low), min(value + reach, high), *more)


@cache
def t_quantile(degrees: int) -> float:
    """Return the 97.5 % quantile of Student's t with a whole number of degrees of freedom, at least 1."""
    if degrees >= _EXPANDED:
        # Abramowitz and Stegun, Handbook of Mathematical Functions, 26.7.5.
        z = NormalDist().inv_cdf(0.5 + _LEVEL / 2)
        terms = (
            (z**3 + z) / 4,
            (5 * z**5 + 16 * z**3 + 3 * z) / 96,
            (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
            (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
        )
        return float(z + sum(term / degrees**power for power, term in enumerate(terms, 1)))
    low, high = 1.0, 13.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _within(middle, degrees) < _LEVEL else (low, middle)
    return high


def _within(t: float, degrees: int) -> float:
    """Return the chance that Student's t lies between -t and t (Abramowitz and Stegun, 26.7.3 and 26.7.4)."""
    angle = math.atan(t / math.sqrt(degrees))
    term, total = (math.cos(angle), 0.0) if degrees % 2 else (1.0, 0.0)
    for k in range(1, degrees // 2 + 1):
        total += term
        term *= math.cos(angle) ** 2 * ((2 * k) / (2 * k + 1) if degrees % 2 else (2 * k - 1) / (2 * k))
    if degrees % 2 == 0:
        return math.sin(angle) * total
    return 2 / math.pi * (angle + math.sin(angle) * total)
