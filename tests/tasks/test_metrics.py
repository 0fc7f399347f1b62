"""Metrics against scikit-learn, SciPy and numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import log_softmax, softmax
from scipy.stats import entropy
from sklearn import metrics as sk

from potstill.core.errors import UsageError
from potstill.tasks import metrics
from potstill.tasks.kinds import KINDS


def drawn(classes: int, n: int = 400, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    targets = generator.integers(0, classes, n)
    logits = generator.normal(size=(n, classes)).astype(np.float32)
    logits[np.arange(n), targets] += 1
    return logits, targets


@pytest.mark.parametrize("classes", [2, 3, 12])
def test_classification_metrics_equal_scikit_learn(classes: int) -> None:
    logits, targets = drawn(classes)
    predicted, labels = logits.argmax(1), list(range(classes))
    probabilities = softmax(logits.astype(np.float64), axis=1)
    assert metrics.accuracy(logits, targets) == pytest.approx(sk.accuracy_score(targets, predicted), abs=1e-12)
    assert metrics.macro_f1(logits, targets) == pytest.approx(
        sk.f1_score(targets, predicted, average="macro"), abs=1e-12
    )
    assert metrics.nll(logits, targets) == pytest.approx(sk.log_loss(targets, probabilities, labels=labels), abs=1e-9)
    np.testing.assert_array_equal(metrics.confusion(logits, targets), sk.confusion_matrix(targets, predicted))
    one_hot = np.eye(classes)[targets]
    assert metrics.brier(logits, targets) == pytest.approx(((probabilities - one_hot) ** 2).sum(1).mean(), abs=1e-12)
    if classes == 2:
        # scikit-learn's binary score counts one of two equal squares.
        assert metrics.brier(logits, targets) == pytest.approx(
            2 * sk.brier_score_loss(targets, probabilities[:, 1]), abs=1e-12
        )


def test_macro_f1_leaves_out_classes_that_never_occur_and_counts_missed_ones() -> None:
    targets, predicted = np.array([0, 0, 1, 3]), np.array([0, 2, 1, 1])
    logits = np.eye(6)[predicted]
    assert metrics.macro_f1(logits, targets) == pytest.approx(
        sk.f1_score(targets, predicted, average="macro", zero_division=0), abs=1e-12
    )
    # class 0: 2/3, class 1: 2/3, classes 2 and 3: 0
    assert metrics.macro_f1(logits, targets) == pytest.approx(1 / 3, abs=1e-12)


def test_brier_and_calibration_by_hand() -> None:
    # Probabilities of two classes: (0.9, 0.1) right, (0.9, 0.1) wrong, (0.4, 0.6) right.
    logits = np.log(np.array([[0.9, 0.1], [0.9, 0.1], [0.4, 0.6]]))
    targets = np.array([0, 1, 1])
    assert metrics.brier(logits, targets) == pytest.approx((0.02 + 1.62 + 0.32) / 3, abs=1e-12)
    # 15 bins: 0.9 is in bin 13 (0.867, 0.933], 0.6 in bin 8 (0.533, 0.6].
    # gaps: bin 13: |(1 + 0) - 1.8| = 0.8; bin 8: |1 - 0.6| = 0.4
    assert metrics.ece(logits, targets) == pytest.approx((0.8 + 0.4) / 3, abs=1e-9)
    # One bin: |2/3 - 0.8|
    assert metrics.ece(logits, targets, bins=1) == pytest.approx(0.8 - 2 / 3, abs=1e-9)
    table = metrics.reliability(logits, targets)
    assert len(table["count"]) == 15
    assert [i for i, count in enumerate(table["count"]) if count] == [8, 13]
    assert table["count"][13] == 2
    assert table["accuracy"][13] == pytest.approx(0.5)
    assert table["confidence"][13] == pytest.approx(0.9)
    assert table["accuracy"][0] is None
    assert table["low"][13] == pytest.approx(13 / 15)


def test_bins_are_closed_on_the_right() -> None:
    assert metrics.confidence_bins(np.array([0.0, 0.2, 0.2000001, 0.4, 1.0]), 5).tolist() == [0, 0, 1, 1, 4]


def test_distance_to_the_teacher() -> None:
    student, _ = drawn(5)
    teacher, _ = drawn(5, seed=1)
    p, q = softmax(teacher.astype(np.float64), axis=1), softmax(student.astype(np.float64), axis=1)
    assert metrics.kl_to_teacher(student, teacher) == pytest.approx(entropy(p, q, axis=1).mean(), abs=1e-9)
    assert metrics.kl_to_teacher(teacher, teacher) == 0.0
    assert metrics.agreement(student, teacher) == pytest.approx((student.argmax(1) == teacher.argmax(1)).mean())


def test_finite_for_huge_logits() -> None:
    logits, targets = np.array([[1e4, -1e4], [-1e4, 1e4]]), np.array([0, 0])
    assert metrics.nll(logits, targets) == pytest.approx(1e4)
    assert metrics.brier(logits, targets) == pytest.approx(1.0)
    assert np.isfinite(metrics.kl_to_teacher(logits, -logits))
    np.testing.assert_allclose(metrics.example_nll(logits, targets), -log_softmax(logits, axis=1)[:, 0])


@pytest.mark.parametrize("columns", [None, 1, 3])
def test_regression_metrics_equal_scikit_learn(columns: int | None) -> None:
    generator = np.random.default_rng(0)
    shape = (200,) if columns is None else (200, columns)
    targets = generator.normal(5, 2, size=shape)
    values = targets + generator.normal(size=shape)
    assert metrics.mae(values, targets) == pytest.approx(sk.mean_absolute_error(targets, values), abs=1e-12)
    assert metrics.rmse(values, targets) == pytest.approx(sk.root_mean_squared_error(targets, values), abs=1e-12)
    assert metrics.r2(values, targets) == pytest.approx(sk.r2_score(targets, values), abs=1e-12)


def test_r2_of_constant_targets_is_scikit_learns() -> None:
    targets = np.ones(4)
    for values in (np.ones(4), np.array([1.0, 1, 1, 2])):
        assert metrics.r2(values, targets) == sk.r2_score(targets, values)


def test_a_column_of_values_fits_flat_targets() -> None:
    targets = np.array([1.0, 2.0, 4.0])
    assert metrics.mae(np.array([[1.0], [3.0], [4.0]]), targets) == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("logits", "targets", "message"),
    [
        (np.zeros((2, 1)), np.zeros(2, int), "c > 1"),
        (np.zeros((0, 3)), np.zeros(0, int), "n > 0"),
        (np.zeros((2, 3)), np.zeros(3, int), "2 class numbers"),
        (np.zeros((2, 3)), np.zeros(2), "float64"),
        (np.zeros((2, 3)), np.array([0, 3]), "0 to 2"),
        (np.zeros((2, 3)), np.array([-1, 0]), "from -1"),
    ],
)
def test_what_does_not_fit_is_refused(logits: np.ndarray, targets: np.ndarray, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        metrics.accuracy(logits, targets)


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(UsageError, match="same shape"):
        metrics.agreement(np.zeros((2, 3)), np.zeros((2, 4)))
    with pytest.raises(UsageError, match="same shape"):
        metrics.mae(np.zeros((2, 3)), np.zeros(2))


def test_every_metric_has_a_range() -> None:
    plain = {name.removesuffix("_calibrated") for name in KINDS}
    assert (len(KINDS), len(plain)) == (16, 14)
    assert all(callable(getattr(metrics, name)) for name in plain - {"map", "micro_f1"})


@pytest.mark.parametrize("classes", [2, 4])
def test_auc_and_balanced_accuracy_are_scikit_learns(classes: int) -> None:
    generator = np.random.default_rng(classes)
    targets = generator.integers(0, classes, 300)
    logits = generator.normal(size=(300, classes)) + 1.5 * np.eye(classes)[targets]
    chances = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    binary = classes == 2
    wanted = sk.roc_auc_score(targets, chances[:, 1] if binary else chances, multi_class="ovr")
    assert metrics.auc(logits, targets) == pytest.approx(wanted, abs=1e-12)
    assert metrics.balanced_accuracy(logits, targets) == pytest.approx(
        sk.balanced_accuracy_score(targets, logits.argmax(1)), abs=1e-12
    )


def test_auc_counts_ties_half_and_keeps_the_order_of_the_surest() -> None:
    generator = np.random.default_rng(0)
    votes = generator.integers(1, 10, 400)  # ten trees: many equal probabilities
    targets = (generator.random(400) < votes / 10).astype(int)
    logits = np.log(np.stack([1 - votes / 10, votes / 10], axis=1)).astype(np.float32)
    assert metrics.auc(logits, targets) == pytest.approx(sk.roc_auc_score(targets, votes), abs=1e-12)
    # As float64 probabilities all of these are exactly 1.
    sure = np.stack([np.zeros(6), [800.0, 600.0, 500.0, 400.0, 90.0, 80.0]], axis=1)
    assert metrics.auc(sure, np.array([1, 1, 1, 0, 0, 0])) == 1.0
    assert metrics.auc(np.zeros((4, 2)), np.array([0, 0, 1, 1])) == 0.5
