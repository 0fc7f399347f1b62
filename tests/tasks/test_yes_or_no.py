"""Scores of several labels against scikit-learn, and what each example contributes against leaving it out."""

import numpy as np
import pytest
from scipy.special import expit, rel_entr
from sklearn.metrics import average_precision_score, f1_score, log_loss

from potstill.core.errors import UsageError
from potstill.tasks import yes_or_no

RATES = (0.5, 0.2, 0.1, 0.7)


def made(seed: int, examples: int = 50, *, hidden: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    logits = np.round(random.normal(size=(examples, len(RATES))), 1)  # with ties
    labels = (random.random(logits.shape) < RATES).astype(float)
    labels[random.random(logits.shape) < hidden] = np.nan
    return logits, labels


def theirs(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    chances = expit(logits)
    return {
        "mean_average_precision": average_precision_score(labels, logits, average="macro"),
        "macro_f1": f1_score(labels, logits >= 0, average="macro"),
        "micro_f1": f1_score(labels, logits >= 0, average="micro"),
        "log_loss": np.mean([log_loss(labels[:, c], chances[:, c], labels=[0, 1]) for c in range(labels.shape[1])]),
    }


@pytest.mark.parametrize("seed", range(3))
def test_scores_are_scikit_learns(seed: int) -> None:
    logits, labels = made(seed)
    for name, value in theirs(logits, labels).items():
        assert getattr(yes_or_no, name)(logits, labels).value == pytest.approx(value), name


@pytest.mark.parametrize("hidden", [0.0, 0.3])
@pytest.mark.parametrize("name", ["mean_average_precision", "macro_f1", "micro_f1", "log_loss"])
def test_deviations_are_those_of_leaving_one_out(name: str, hidden: float) -> None:
    logits, labels = made(3, hidden=hidden)
    score, n = getattr(yes_or_no, name), len(labels)
    without = [score(np.delete(logits, row, 0), np.delete(labels, row, 0)).value for row in range(n)]
    deviations = -(n - 1) * np.array(without)
    np.testing.assert_allclose(score(logits, labels).deviations, deviations - deviations.mean(), atol=1e-9)


def test_unknown_cells_count_for_nothing() -> None:
    logits, labels = made(4, hidden=0.4)
    moved = np.where(np.isnan(labels), 99.0, logits)
    for name in ("mean_average_precision", "macro_f1", "micro_f1", "log_loss"):
        score = getattr(yes_or_no, name)
        assert score(moved, labels).value == score(logits, labels).value
    known = ~np.isnan(labels[:, 0])
    area = yes_or_no.average_precisions(logits, labels)[0][0]
    assert area == pytest.approx(average_precision_score(labels[known, 0], logits[known, 0]))


def test_a_class_without_a_yes_is_left_out() -> None:
    logits, labels = made(5)
    labels[:, 2] = 0
    rest = [0, 1, 3]
    expected = average_precision_score(labels[:, rest], logits[:, rest], average="macro")
    assert yes_or_no.mean_average_precision(logits, labels).value == pytest.approx(expected)
    assert yes_or_no.mean_average_precision(logits, np.zeros_like(labels)) is None
    assert yes_or_no.macro_f1(np.full((3, 2), -1.0), np.zeros((3, 2))) is None


def test_divergence_from_a_teacher_is_scipys() -> None:
    logits, teacher = made(6)[0], made(7)[0]
    p, q = expit(teacher), expit(logits)
    expected = (rel_entr(p, q) + rel_entr(1 - p, 1 - q)).mean()
    assert yes_or_no.divergence(logits, teacher).value == pytest.approx(expected)


def test_thresholds_are_chosen_where_they_help_on_other_examples() -> None:
    random = np.random.default_rng(0)
    labels = (random.random((400, 2)) < (0.5, 0.1)).astype(float)
    logits = random.normal(size=labels.shape) + 3 * labels - np.array([1.5, 6.0])  # the second is far too rarely yes
    found = yes_or_no.choose_thresholds(logits, labels)
    assert found.thresholds[1] < 0.05 < 0.2 < found.thresholds[0] < 0.8
    assert found.macro_f1_chosen > found.macro_f1 + 0.2
    decided = yes_or_no.decided_at(logits, found.thresholds)
    np.testing.assert_array_equal(decided >= 0, expit(logits) >= np.array(found.thresholds))
    best = max(f1_score(labels[:, 1], logits[:, 1] >= place) for place in np.unique(logits[:, 1]))
    assert f1_score(labels[:, 1], decided[:, 1] >= 0) == pytest.approx(best)


def test_thresholds_stay_at_one_half_where_choosing_does_not_help() -> None:
    few = made(8, examples=yes_or_no.FEWEST - 1)
    assert yes_or_no.choose_thresholds(*few).thresholds == (0.5,) * 4
    logits, labels = 4.0 * (2 * made(9)[1] - 1), made(9)[1]
    assert yes_or_no.choose_thresholds(logits, labels).thresholds == (0.5,) * 4


def test_other_shapes_and_labels_are_refused() -> None:
    with pytest.raises(UsageError, match=r"same shape \(n, c\)"):
        yes_or_no.log_loss(np.zeros((2, 3)), np.zeros(2))
    with pytest.raises(UsageError, match="1, 0, or NaN"):
        yes_or_no.log_loss(np.zeros((2, 3)), np.full((2, 3), 2.0))
