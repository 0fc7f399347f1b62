"""The bootstrap: its statistics against a loop over resamples, its intervals against theory and simulation."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as sk

from potstill.core.errors import UsageError
from potstill.evaluation import intervals, metrics


def class_data(n: int = 60, classes: int = 4, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    targets = generator.integers(0, classes, n)
    logits = generator.normal(size=(n, classes))
    logits[np.arange(n), targets] += 1
    return logits, targets


def counts_of(rows: np.ndarray, n: int) -> np.ndarray:
    return np.stack([np.bincount(row, minlength=n) for row in rows]).astype(float)


@pytest.mark.parametrize("classes", [4, 300])
def test_class_statistics_equal_the_metric_of_the_drawn_rows(classes: int) -> None:
    logits, targets = class_data(classes=classes)
    rows = np.random.default_rng(1).integers(0, 60, (25, 60))
    counts = counts_of(rows, 60)
    f1 = [sk.f1_score(targets[row], logits[row].argmax(1), average="macro", zero_division=0) for row in rows]
    np.testing.assert_allclose(intervals.macro_f1_statistic(logits, targets)(counts), f1, atol=1e-12)
    ece = [metrics.ece(logits[row], targets[row]) for row in rows]
    np.testing.assert_allclose(intervals.ece_statistic(logits, targets)(counts), ece, atol=1e-12)
    accuracy = intervals.mean_statistic(metrics.example_correct(logits, targets))(counts)
    np.testing.assert_allclose(accuracy, [(logits[row].argmax(1) == targets[row]).mean() for row in rows], atol=1e-12)


@pytest.mark.parametrize("columns", [1, 3])
def test_value_statistics_equal_scikit_learn_on_the_drawn_rows(columns: int) -> None:
    generator = np.random.default_rng(0)
    targets = generator.normal(100, 3, (40, columns))
    values = targets + generator.normal(size=targets.shape)
    rows = generator.integers(0, 40, (25, 40))
    counts = counts_of(rows, 40)
    r2 = [sk.r2_score(targets[row], values[row]) for row in rows]
    rmse = [sk.root_mean_squared_error(targets[row], values[row]) for row in rows]
    np.testing.assert_allclose(intervals.r2_statistic(values, targets)(counts), r2, atol=1e-9)
    np.testing.assert_allclose(intervals.rmse_statistic(values, targets)(counts), rmse, atol=1e-12)


def test_r2_of_a_resample_with_one_target_value_is_zero_not_noise() -> None:
    targets = np.random.default_rng(0).normal(10, 3, 50)
    only_one_row = 50.0 * np.eye(50)
    assert intervals.r2_statistic(targets + 0.1, targets)(only_one_row).tolist() == [0.0] * 50
    assert intervals.r2_statistic(targets, targets)(only_one_row).tolist() == [1.0] * 50


def test_draws_do_not_depend_on_memory_and_memory_is_bounded() -> None:
    values = np.random.default_rng(0).normal(size=2000)
    statistic = {"mean": intervals.mean_statistic(values)}

    def draw(memory: int) -> np.ndarray:
        generator = np.random.default_rng(3)
        return intervals.resample(statistic, 2000, resamples=300, generator=generator, memory=memory)["mean"]

    wide = draw(2**30)
    tracemalloc.start()
    narrow = draw(2**18)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    np.testing.assert_allclose(wide, narrow, rtol=1e-12)
    assert peak < 2**20
    assert len(np.unique(wide)) > 290


def test_interval_of_a_mean_is_the_normal_one() -> None:
    values = np.random.default_rng(0).normal(2.0, 3.0, 5000)
    generator = np.random.default_rng(1)
    draws = intervals.resample({"m": intervals.mean_statistic(values)}, 5000, resamples=4000, generator=generator)["m"]
    low, high = intervals.interval(float(values.mean()), draws, generator=generator)
    expected = stats.norm.interval(0.95, values.mean(), values.std() / np.sqrt(5000))
    np.testing.assert_allclose([low, high], expected, atol=0.006)


def test_seeds_add_students_t() -> None:
    generator = np.random.default_rng(0)
    per_seed = np.array([0.1, 0.2, 0.4, 0.3])
    low, high = intervals.interval(0.25, np.full(4000, 7.0), generator=generator, per_seed=per_seed)
    expected = stats.t.interval(0.95, 3, 0.25, per_seed.std(ddof=1) / 2)
    np.testing.assert_allclose([low, high], expected, rtol=0.05)
    assert intervals.interval(0.25, np.full(4000, 7.0), generator=generator, per_seed=per_seed[:2]) == (0.25, 0.25)


def test_paired_rates_cover_and_few_changes_are_not_called_clear() -> None:
    """Many small test sets: coverage of the true difference, and false alarms when nothing differs."""
    generator = np.random.default_rng(0)
    n, covered, alarms, runs = 150, 0, 0, 250
    for _ in range(runs):
        outcome = generator.choice(3, n, p=[0.90, 0.06, 0.04])
        difference = (outcome == 1) * 1.0 - (outcome == 2)
        covered += _contains(difference, 0.02, generator)
        nothing = generator.choice([-1.0, 1.0], n) * (generator.random(n) < 0.03)
        alarms += not _contains(nothing, 0.0, generator)
    assert 0.93 <= covered / runs <= 0.99
    assert alarms / runs <= 0.05
    # Four changes for the better and none for the worse: McNemar's exact test says p = 0.125; seven: p = 0.016.
    assert _contains(np.repeat([1.0, 0.0], [4, 96]), 0.0, generator)
    assert not _contains(np.repeat([1.0, 0.0], [8, 92]), 0.0, generator)
    assert _contains(np.zeros(100), 0.01, generator)


def _contains(difference: np.ndarray, truth: float, generator: np.random.Generator) -> bool:
    n = len(difference)
    statistic = {"d": intervals.mean_statistic(difference)}
    draws = intervals.resample(statistic, n, resamples=400, generator=generator)["d"]
    smooth = np.sqrt(2) / n
    low, high = intervals.interval(float(difference.mean()), draws, generator=generator, smooth=smooth)
    return low <= truth <= high


def test_with_three_seeds_training_luck_is_covered() -> None:
    """Two methods of equal quality whose trained weights differ by luck: the claim is about the method."""
    generator = np.random.default_rng(0)
    n, runs, with_seeds, without = 400, 300, 0, 0
    for _ in range(runs):
        luck = generator.normal(0, 0.03, 3)
        p = np.clip(np.array([[0.1], [0.1]]) + np.array([luck / 2, -luck / 2]), 0.0, 0.4)
        difference = (generator.random((n, 3)) < p[0]) * 1.0 - (generator.random((n, 3)) < p[1])
        statistic = {"d": intervals.mean_statistic(difference.mean(axis=1))}
        draws = intervals.resample(statistic, n, resamples=300, generator=generator)["d"]
        value, per_seed = float(difference.mean()), difference.mean(axis=0)
        low, high = intervals.interval(value, draws, generator=generator, per_seed=per_seed)
        with_seeds += low <= 0 <= high
        low, high = intervals.interval(value, draws, generator=generator)
        without += low <= 0 <= high
    assert with_seeds / runs >= 0.93
    assert without / runs < 0.88


def test_calibration_error_covers_what_it_estimates_and_contains_its_own_estimate() -> None:
    generator = np.random.default_rng(0)
    n, runs = 300, 150

    def one() -> tuple[np.ndarray, np.ndarray]:
        confident = generator.uniform(0.5, 0.99, n)
        right = generator.random(n) < confident - 0.08
        return np.log(np.stack([confident, 1 - confident], axis=1)), np.where(right, 0, 1)

    truth = np.mean([metrics.ece(*one()) for _ in range(1000)])
    covered = inside = 0
    for _ in range(runs):
        logits, targets = one()
        estimate = metrics.ece(logits, targets)
        statistic = {"e": intervals.ece_statistic(logits, targets)}
        draws = intervals.resample(statistic, n, resamples=300, generator=generator)["e"]
        low, high = intervals.interval(estimate, draws, generator=generator, low=0.0, high=1.0)
        covered += low <= truth <= high
        inside += low <= estimate <= high
    assert inside == runs
    assert covered / runs >= 0.88


def test_bounds_hold_and_nothing_is_refused() -> None:
    generator = np.random.default_rng(0)
    low, high = intervals.interval(1.0, np.ones(500), generator=generator, smooth=0.01, low=0.0, high=1.0)
    assert high == 1.0
    assert 0.97 < low < 1.0
    with pytest.raises(UsageError, match="needs examples"):
        intervals.resample({}, 0, resamples=10, generator=generator)
