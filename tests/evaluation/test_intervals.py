"""Delete-one values against leaving examples out, and intervals against theory and simulation."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats

from potstill.evaluation import Size, evaluate
from potstill.evaluation.intervals import MeanSquares, expected, half_width, interval, mean_squares, spare, t_quantile
from potstill.tasks import delete_one, metrics

SIZE = Size(1, 1, 1)


def by_brute_force(metric: Callable[..., float], answers: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Return the centred delete-one deviations by computing the metric n times."""
    n = len(targets)
    without = [metric(np.delete(answers, row, 0), np.delete(targets, row, 0)) for row in range(n)]
    deviations = (n - 1) * (metric(answers, targets) - np.array(without))
    return np.asarray(deviations - deviations.mean())


@pytest.mark.parametrize("name", ["balanced_accuracy", "auc", "macro_f1", "ece"])
@pytest.mark.parametrize(("n", "classes"), [(7, 3), (9, 6), (40, 4), (30, 2)])
def test_delete_one_values_are_those_of_leaving_each_example_out(name: str, n: int, classes: int) -> None:
    """With ties (rounded scores), classes of one example and classes without any."""
    generator = np.random.default_rng([n, classes])
    for _ in range(4):
        logits = np.round(generator.normal(size=(n, classes)), 1).astype(np.float32)
        targets = np.concatenate([[0, 1, 1], generator.integers(0, max(classes - 1, 2), n - 3)])
        found, metric = getattr(delete_one, name)(logits, targets), getattr(metrics, name)
        assert found.value == pytest.approx(metric(logits, targets), abs=1e-12)
        np.testing.assert_allclose(found.deviations, by_brute_force(metric, logits, targets), atol=1e-9)


@pytest.mark.parametrize("name", ["rmse", "r2"])
@pytest.mark.parametrize("columns", [1, 3])
def test_delete_one_values_of_regression(name: str, columns: int) -> None:
    generator = np.random.default_rng(0)
    targets = generator.normal(50_000, 5, (25, columns))
    values = targets + generator.normal(size=targets.shape)
    found, metric = getattr(delete_one, name)(values, targets), getattr(metrics, name)
    assert found.value == pytest.approx(metric(values, targets), abs=1e-12)
    np.testing.assert_allclose(found.deviations, by_brute_force(metric, values, targets), atol=1e-8)


def test_delete_one_values_where_nothing_is_left_to_explain() -> None:
    """The other targets are all equal when the only different one is left out, and the AUC has one class left."""
    targets = np.array([1.0, 1.0, 1.0, 2.0])
    found = delete_one.r2(targets + 0.1, targets)
    np.testing.assert_allclose(found.deviations, by_brute_force(metrics.r2, targets + 0.1, targets), atol=1e-12)
    assert delete_one.auc(np.zeros((4, 2)), np.zeros(4, np.int64)) is None


def test_a_mean_has_students_interval() -> None:
    values = np.random.default_rng(0).normal(2.0, 3.0, 50)
    value, deviations = delete_one.of_mean(values)
    found = interval(np.array([value]), deviations[None])
    low, high = stats.t.interval(0.95, 49, values.mean(), values.std(ddof=1) / np.sqrt(50))
    assert (found.value, found.low, found.high) == pytest.approx((values.mean(), low, high))
    assert found.with_seeds is None
    assert found.with_examples == pytest.approx(1 / np.sqrt(2), rel=0.02)


def test_mean_squares_are_those_of_two_way_analysis_of_variance() -> None:
    """Against the sums of squares written out: rows are seeds, columns are examples."""
    table = np.random.default_rng(0).normal(size=(4, 30))
    values, deviations = table.mean(1), table - table.mean(1, keepdims=True)
    found = mean_squares(values, deviations)
    rest = table - table.mean(1, keepdims=True) - table.mean(0) + table.mean()
    assert found.seeds == pytest.approx(30 * np.var(values, ddof=1))
    assert found.examples == pytest.approx(4 * np.var(table.mean(0), ddof=1))
    assert found.rest == pytest.approx((rest**2).sum() / (3 * 29))


def test_the_width_is_the_formula_of_the_decision() -> None:
    square = MeanSquares(np.array(9.0), np.array(2.0), np.array(4.0), 3, 100)
    t_examples, t_seeds = stats.t.ppf(0.975, 99), stats.t.ppf(0.975, 2)
    over_examples, over_seeds = 2 / 300 + 2 / (3 * 100**2), (9 - (1 - 1.3 / 3) * 4) / 300
    wanted = math.sqrt(t_examples**2 * over_examples + t_seeds**2 * over_seeds)
    assert float(half_width(square, spare(100))) == pytest.approx(wanted)
    assert float(half_width(square._replace(seeds=np.array(1.0)))) == pytest.approx(t_examples * math.sqrt(2 / 300))
    # Three classes of 10, 20 and 70: one further example of each, a third of the mean.
    assert spare(np.array([10, 20, 70])) == pytest.approx((1 / 30) ** 2 + (1 / 60) ** 2 + (1 / 210) ** 2)


def test_quantiles_are_students() -> None:
    for degrees in (1, 2, 3, 4, 7, 12, 29, 30, 31, 59, 299, 10**6):
        assert t_quantile(degrees) == pytest.approx(stats.t.ppf(0.975, degrees), abs=1e-7)


def test_one_example_says_nothing_and_bounds_hold() -> None:
    single = interval(np.array([1.0]), np.zeros((1, 1)), low=0.0, high=1.0)
    assert (single.low, single.high) == (0.0, 1.0)
    assert interval(np.array([1.0]), np.zeros((1, 1))).high == math.inf
    sure = interval(np.array([1.0]), np.zeros((1, 60)), extra=spare(60), low=0.0, high=1.0)
    assert sure.high == 1.0
    assert 0.93 < sure.low < 0.97


def test_what_would_narrow_an_interval_is_what_its_width_comes_from() -> None:
    generator = np.random.default_rng(0)
    by_seeds = interval(np.array([0.0, 0.1, 0.2]), np.zeros((3, 2000)), extra=spare(2000))
    assert by_seeds.with_seeds is not None
    assert by_seeds.with_examples is not None
    assert by_seeds.with_seeds < 0.5
    assert by_seeds.with_examples > 0.95
    shared = np.tile(generator.normal(size=(1, 200)), (3, 1))
    shared -= shared.mean()
    by_examples = interval(np.zeros(3), shared)
    assert by_examples.with_seeds == pytest.approx(1.0, abs=0.01)
    assert by_examples.with_examples == pytest.approx(1 / np.sqrt(2), rel=0.02)
    twice = expected(MeanSquares(np.array(5.0), np.array(3.0), np.array(1.0), 3, 10), seeds=2)
    assert (float(twice.seeds), float(twice.examples), twice.num_seeds) == (5.0, 5.0, 6)


def answers(generator: np.random.Generator, targets: np.ndarray, chance: float) -> np.ndarray:
    """Return scores of three classes that are right with this chance."""
    wrong = (targets + generator.integers(1, 3, len(targets))) % 3
    return np.eye(3)[np.where(generator.random(len(targets)) < chance, targets, wrong)] * 3.0


@pytest.mark.parametrize(
    ("n", "seeds", "spread", "least", "most"),
    [(300, 1, 0.0, 0.005, 0.09), (300, 3, 0.03, 0.02, 0.1)],
)
def test_without_an_effect_an_interval_seldom_excludes_none(
    n: int, seeds: int, spread: float, least: float, most: float
) -> None:
    """A small simulation through the public function; benchmarks/interval_simulation.py is the large one."""
    generator, sets, excluded = np.random.default_rng([n, seeds]), 200, 0
    for _ in range(sets):
        targets = generator.integers(0, 3, n)
        alone, distilled = (
            {seed: answers(generator, targets, 0.85 + generator.normal(0, spread)) for seed in range(seeds)}
            for _ in range(2)
        )
        result = evaluate(
            task="classification",
            targets=targets,
            teacher=None,
            alone=alone,
            distilled=distilled,
            sizes={"alone": SIZE, "distilled": SIZE},
        )
        excluded += result.differences["distilled-alone"]["accuracy"].clear
    assert least <= excluded / sets <= most
