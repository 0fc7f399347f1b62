"""95 % intervals by resampling the test examples, the same resamples for every model and metric.

A *statistic* is a metric as a function of how often each example was drawn: counts (r, n) -> values (r,). All
statistics see the same counts, so differences between models are paired over examples.
Shape legend: r resamples, n examples, s seeds.

The interval answers two questions at once. What if the test set had been another one: the examples are resampled.
What if the training had been repeated: with three seeds or more, the spread between seeds is added, as Student's t with
s - 1 degrees of freedom times the standard error over seeds. With fewer seeds it is about the weights at hand only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from potstill.core.errors import UsageError
from potstill.evaluation import metrics
from potstill.evaluation.arrays import Array, Floats, Ints, checked_classes, checked_values
from potstill.evaluation.verdict import SEEDS_FOR_A_CLAIM

Statistic = Callable[[Floats], Floats]

_LEVEL = 0.95
_DENSE_GROUPS = 256
_T_DRAWS = 32


def mean_statistic(values: Array) -> Statistic:
    """Return the statistic of a metric that is the mean of one value per example, (n,)."""
    column: Floats = np.asarray(values, dtype=np.float64)
    return lambda counts: counts @ column / len(column)


def macro_f1_statistic(logits: Array, targets: Array) -> Statistic:
    """Return macro-F1 as a statistic: the confusion matrix's margins and diagonal are summed anew in every resample."""
    logits, targets = checked_classes(logits, targets)
    classes = logits.shape[1]
    predicted = metrics.predictions(logits)
    # A wrong prediction goes to one extra group, so that the first groups are the diagonal.
    found = _group_sums(np.where(predicted == targets, targets, classes), classes + 1)
    of_prediction, of_target = _group_sums(predicted, classes), _group_sums(targets, classes)

    def statistic(counts: Floats) -> Floats:
        present = of_prediction(counts) + of_target(counts)
        f1 = 2.0 * found(counts)[:, :classes] / np.where(present > 0, present, 1.0)
        result: Floats = f1.sum(axis=1) / (present > 0).sum(axis=1)
        return result

    return statistic


def ece_statistic(logits: Array, targets: Array, *, bins: int = metrics.NUM_BINS) -> Statistic:
    """Return the expected calibration error as a statistic."""
    confidence = metrics.confidences(logits)
    gap = metrics.example_correct(logits, targets) - confidence
    sums = _group_sums(metrics.confidence_bins(confidence, bins), bins, gap)
    return lambda counts: np.abs(sums(counts)).sum(axis=1) / len(gap)


def rmse_statistic(values: Array, targets: Array) -> Statistic:
    """Return the root mean squared error as a statistic."""
    found, wanted = checked_values(values, targets)
    squares = np.square(found - wanted)
    return lambda counts: np.sqrt(counts @ squares / len(squares)).mean(axis=1)


def r2_statistic(values: Array, targets: Array) -> Statistic:
    """Return R2 as a statistic: the targets' own variance is resampled too."""
    found, wanted = checked_values(values, targets)
    centred = wanted - wanted.mean(axis=0)
    # Sums of squares minus a squared sum leave rounding noise where a resample's targets are all equal.
    noise = 1e-12 * np.square(centred).sum(axis=0)
    squares, centred_squares = np.square(found - wanted), np.square(centred)

    def statistic(counts: Floats) -> Floats:
        spread = counts @ centred_squares - np.square(counts @ centred) / len(centred)
        columns = metrics.explained(counts @ squares, np.where(spread > noise, spread, 0.0))
        result: Floats = columns.mean(axis=1)
        return result

    return statistic


def resample(
    statistics: Mapping[str, Statistic],
    num_examples: int,
    *,
    resamples: int,
    generator: np.random.Generator,
    memory: int = 32 * 2**20,
) -> dict[str, Floats]:
    """Evaluate every statistic on the same bootstrap resamples of the examples.

    Args:
        statistics: name -> statistic over ``num_examples`` examples.
        num_examples: n; each resample draws n examples with replacement.
        resamples: number of resamples.
        generator: where the draws come from.
        memory: bytes that one block of counts may take; does not change the draws.

    Returns:
        name -> (resamples,) values.

    Raises:
        UsageError: no examples or no resamples.

    """
    if num_examples < 1 or resamples < 1:
        raise UsageError(f"A bootstrap needs examples and resamples; got {num_examples} and {resamples}.")
    results = {name: np.empty(resamples) for name in statistics}
    block = max(1, memory // (8 * num_examples))
    for start in range(0, resamples, block):
        size = min(block, resamples - start)
        counts = np.empty((size, num_examples))
        for row in counts:
            row[:] = np.bincount(generator.integers(0, num_examples, num_examples), minlength=num_examples)
        for name, statistic in statistics.items():
            results[name][start : start + size] = statistic(counts)
    return results


def interval(
    estimate: float,
    draws: Floats,
    *,
    generator: np.random.Generator,
    per_seed: Array | None = None,
    smooth: float = 0.0,
    low: float = -np.inf,
    high: float = np.inf,
) -> tuple[float, float]:
    """Return the 95 % interval around ``estimate``.

    The draws are shifted to be centred on the estimate: metrics that are not means (calibration error above all) come
    out systematically larger in a resample, and without the shift the interval could miss its own estimate.

    Args:
        estimate: the value on all examples, averaged over seeds.
        draws: (r,) its values in the resamples, averaged over seeds.
        generator: for the parts that are not resampling.
        per_seed: (s,) the value of each seed; from three seeds on, their spread widens the interval.
        smooth: standard deviation of extra noise. Resampling a rate that is (nearly) 0 or 1 shows (nearly) no spread;
            ``sqrt(2) / n``, the spread of two further examples of unknown outcome, repairs that.
        low: smallest possible value.
        high: largest possible value.

    """
    values = draws - draws.mean() + estimate
    if smooth > 0:
        values = values + smooth * generator.standard_normal(len(values))
    seeds = np.asarray([] if per_seed is None else per_seed, dtype=np.float64)
    if len(seeds) >= SEEDS_FOR_A_CLAIM:
        error = seeds.std(ddof=1) / np.sqrt(len(seeds))
        # Many t draws to each resample: with two degrees of freedom the tails are long and few draws would be noisy.
        values = (values[:, None] + error * generator.standard_t(len(seeds) - 1, (len(values), _T_DRAWS))).ravel()
    tail = (1 - _LEVEL) / 2
    bounds = np.clip(np.quantile(values, [tail, 1 - tail]), low, high)
    return float(bounds[0]), float(bounds[1])


def _group_sums(groups: Ints, num_groups: int, weights: Floats | None = None) -> Callable[[Floats], Floats]:
    """Return a function counts (r, n) -> (r, num_groups): counts (times weights) summed over each group."""
    factors = np.ones(len(groups)) if weights is None else weights
    if num_groups <= _DENSE_GROUPS:
        one_hot = np.zeros((len(groups), num_groups))
        one_hot[np.arange(len(groups)), groups] = factors
        return lambda counts: counts @ one_hot
    order = np.argsort(groups, kind="stable")
    present, starts = np.unique(groups[order], return_index=True)

    def sums(counts: Floats) -> Floats:
        result = np.zeros((len(counts), num_groups))
        result[:, present] = np.add.reduceat(counts[:, order] * factors[order], starts, axis=1)
        return result

    return sums
