"""The numbers of the label page against scikit-learn, SciPy, plain loops and cleanlab's published answers."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy.special import softmax
from scipy.stats import binomtest
from scipy.stats import entropy as scipy_entropy
from sklearn import metrics as sk
from sklearn.datasets import load_digits
from sklearn.model_selection import cross_val_predict
from sklearn.neighbors import KNeighborsClassifier

from potstill.core.errors import UsageError
from potstill.core.files import read_json, write_json
from potstill.evaluation import label_scores
from potstill.evaluation.label_errors import confident_classes, estimated_errors, label_errors
from potstill.evaluation.label_scores import (
    blocks,
    histogram,
    read_answers,
    reordered,
    softened,
    split_scores,
    view_changes,
    wilson,
)
from potstill.evaluation.label_values import value_scores
from potstill.evaluation.labelling import (
    MOST_SHOWN,
    LabelFacts,
    Recording,
    describe_labels,
    describe_texts,
    describe_values,
)

RECORDING = Recording("some", 400, 1, 400 * 12)
CHOSEN = {
    "codec": "top_k 5",
    "bytes": 12,
    "kl": 0.01,
    "angle": 3.0,
    "norm_ratio": 1.0,
    "uncovered": 0.01,
    "chosen": True,
}


def drawn(classes: int, n: int = 400, seed: int = 0, strength: float = 1.5) -> tuple[np.ndarray, np.ndarray]:
    """Return probabilities (n, classes) and targets of a teacher that is often right."""
    generator = np.random.default_rng(seed)
    targets = generator.integers(0, classes, n)
    logits = generator.normal(size=(n, classes))
    logits[np.arange(n), targets] += strength
    return softmax(logits, axis=1), targets


def described(probabilities: np.ndarray, targets: np.ndarray | None, **options: Any) -> LabelFacts:
    n, c = probabilities.shape
    recording = options.pop("recording", Recording("some", n, 1, 12 * n))
    return describe_labels(
        recording, probabilities, targets, ids=np.arange(n), classes=[f"c{j}" for j in range(c)], **options
    )


@pytest.mark.parametrize("classes", [2, 3, 12])
def test_scores_equal_scikit_learn_and_scipy(classes: int) -> None:
    probabilities, targets = drawn(classes)
    answers = read_answers(probabilities, targets)
    scores = split_scores(answers, targets, classes)
    predicted, labels = probabilities.argmax(1), list(range(classes))
    test = binomtest(int((predicted == targets).sum()), len(targets)).proportion_ci(method="wilson")
    assert scores["accuracy"] == pytest.approx(sk.accuracy_score(targets, predicted), abs=1e-12)
    assert scores["accuracy_interval"] == pytest.approx([test.low, test.high], abs=1e-12)
    assert scores["nll"] == pytest.approx(sk.log_loss(targets, probabilities, labels=labels), abs=1e-12)
    bits = scipy_entropy(probabilities, axis=1, base=2)
    np.testing.assert_allclose(answers.entropy, bits, atol=1e-12)
    assert scores["entropy_bits"] == pytest.approx(bits.mean(), abs=1e-12)
    assert scores["effective_classes"] == pytest.approx(2 ** bits.mean(), abs=1e-9)
    assert scores["off_top"] == pytest.approx(np.sort(probabilities, axis=1)[:, :-1].sum(1).mean(), abs=1e-12)
    recall = sk.recall_score(targets, predicted, average=None, labels=labels, zero_division=0)
    precision = sk.precision_score(targets, predicted, average=None, labels=labels, zero_division=0)
    assert [one["recall"] for one in scores["per_class"]] == pytest.approx(recall, abs=1e-12)
    assert [one["precision"] or 0.0 for one in scores["per_class"]] == pytest.approx(precision, abs=1e-12)
    np.testing.assert_array_equal(scores["confusion"]["counts"], sk.confusion_matrix(targets, predicted))
    gap = 0.0
    for low in range(15):
        inside = [i for i in range(400) if low / 15 < probabilities[i].max() <= (low + 1) / 15]
        if inside:
            right = sum(predicted[i] == targets[i] for i in inside) / len(inside)
            gap += len(inside) / 400 * abs(right - sum(probabilities[i].max() for i in inside) / len(inside))
    assert scores["ece"] == pytest.approx(gap, abs=1e-12)
    assert sum(scores["confidence_histogram"]["counts"]) == sum(scores["entropy_histogram"]["counts"]) == 400
    assert sum(scores["wrong_histogram"]["counts"]) == (predicted != targets).sum()


@pytest.mark.parametrize(("right", "num"), [(0, 1), (1, 1), (0, 500), (500, 500), (37, 40)])
def test_wilson_interval_equals_scipy(right: int, num: int) -> None:
    expected = binomtest(right, num).proportion_ci(method="wilson")
    assert wilson(right, num) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert wilson(right, num)[0] <= right / num <= wilson(right, num)[1]


def test_frequent_mistakes_are_counted_by_pair_and_many_classes_stay_few() -> None:
    probabilities, targets = drawn(40, n=3000, strength=2.0)
    scores = split_scores(read_answers(probabilities, targets), targets, 40)
    predicted = probabilities.argmax(1)
    wrong = [(t, p) for t, p in zip(targets.tolist(), predicted.tolist(), strict=True) if t != p]
    most = max(wrong.count(pair) for pair in set(wrong))
    best = scores["pairs"][0]
    assert best["count"] == most == wrong.count((best["label"], best["teacher"]))
    assert best["share"] == pytest.approx(most / (targets == best["label"]).sum())
    table = scores["confusion"]
    assert len(table["classes"]) == 20
    full = sk.confusion_matrix(targets, predicted)
    np.testing.assert_array_equal(table["counts"], full[np.ix_(table["classes"], table["classes"])])


class Lazy:
    """Rows that can only be sliced, as a reader of a store gives them, and count how often they are read."""

    def __init__(self, values: np.ndarray) -> None:
        self.values, self.shape, self.read = values, values.shape, 0

    def __getitem__(self, rows: slice) -> np.ndarray:
        found = self.values[rows]
        assert isinstance(found, np.ndarray)
        self.read += len(found)
        return found.astype(np.float32)


def test_blocks_do_not_change_the_numbers_and_rows_are_read_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    probabilities, targets = drawn(5, n=301, strength=3.0)
    probabilities = probabilities.astype(np.float32)
    whole = described(probabilities, targets).to_json()
    monkeypatch.setattr(label_scores, "BLOCK", 35)  # seven rows a block, and seven rows for the temperatures
    rows = Lazy(probabilities)
    facts = described(rows, targets).to_json()  # type: ignore[arg-type]
    assert 2 * 301 <= rows.read <= 2 * 301 + MOST_SHOWN
    assert facts.pop("temperatures") == softened(read_answers(probabilities, None).sample)
    del whole["temperatures"]
    assert json.dumps(facts) == json.dumps(whole)
    assert read_answers(probabilities, None).sample.shape == (7, 5)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([0.5, 0.6, 0.2], "Row 3 is no distribution.*sum 1.3"),
        ([1.2, -0.1, -0.1], "Row 3 is no distribution.*smallest number is -0.1"),
        ([np.nan, 0.5, 0.5], "Row 3"),
    ],
)
def test_what_is_no_distribution_is_refused_with_its_row(row: list[float], message: str) -> None:
    probabilities = np.full((5, 3), 1 / 3)
    probabilities[3] = row
    with pytest.raises(UsageError, match=message):
        list(blocks(probabilities))


def test_rounded_probabilities_are_scaled_to_one() -> None:
    ((rows, block),) = blocks(np.array([[0.5, 0.49], [0.2, 0.81]]))
    assert rows == slice(0, 2)
    np.testing.assert_allclose(block.sum(1), 1)
    np.testing.assert_allclose(block[0], [50 / 99, 49 / 99])


# ---------------------------------------------------------------------------------------------- label errors


def by_loops(probabilities: np.ndarray, targets: np.ndarray) -> list[int]:
    n, c = probabilities.shape
    thresholds = []
    for j in range(c):
        own = [probabilities[i, j] for i in range(n) if targets[i] == j]
        thresholds.append(sum(own) / len(own) if own else 2.0)
    found = []
    for i in range(n):
        above = [(probabilities[i, j], j) for j in range(c) if probabilities[i, j] >= thresholds[j]]
        found.append(max(above)[1] if above else -1)
    return found


@pytest.mark.parametrize(("classes", "seed"), [(2, 0), (3, 1), (7, 2)])
def test_confident_classes_and_estimate_equal_plain_loops(classes: int, seed: int) -> None:
    probabilities, targets = drawn(classes, n=150, seed=seed, strength=1.0)
    targets[targets == classes - 1] = 0 if classes > 2 else classes - 1  # one class has no samples
    of_label = probabilities[np.arange(150), targets]
    found = confident_classes(probabilities, targets, of_label)
    assert found.tolist() == by_loops(probabilities, targets)
    wrong = 0.0
    for j in range(classes):
        counts = [sum(1 for i in range(150) if targets[i] == j and found[i] == k) for k in range(classes)]
        counts[j] = max(counts[j], 1)
        wrong += (sum(counts) - counts[j]) / sum(counts) * (targets == j).sum()
    assert estimated_errors(found, targets, classes) == pytest.approx(wrong / 150, abs=1e-12)


def test_label_errors_equal_cleanlab() -> None:
    generator = np.random.default_rng(7)
    truth = generator.integers(0, 3, 60)
    logits = generator.normal(size=(60, 3))
    logits[np.arange(60), truth] += 2.5
    labels = truth.copy()
    labels[::12] = (truth[::12] + 1) % 3
    probabilities = softmax(logits, axis=1).round(3)
    probabilities /= probabilities.sum(1, keepdims=True)
    found, rows, confident = label_errors(probabilities, labels, read_answers(probabilities, labels), 99)
    # cleanlab 2.9.0: find_label_issues(labels, probabilities, filter_by="confident_learning",
    # return_indices_ranked_by="normalized_margin") and compute_confident_joint(..., calibrate=False)
    assert rows.tolist() == [36, 0]
    joint = [[int(((labels == i) & (confident == j)).sum()) for j in range(3)] for i in range(3)]
    assert joint == [[13, 0, 2], [0, 11, 0], [0, 0, 10]]
    assert found["num"] == 2


def planted() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return digits' inputs, labels of which 3 % are wrong, and which."""
    inputs, truth = load_digits(return_X_y=True)
    generator = np.random.default_rng(0)
    wrong = generator.choice(len(truth), round(0.03 * len(truth)), replace=False)
    labels = truth.copy()
    labels[wrong] = (truth[wrong] + generator.integers(1, 10, len(wrong))) % 10
    return inputs, labels, wrong


def test_planted_label_errors_are_found_unless_the_teacher_knows_them_by_heart() -> None:
    inputs, labels, wrong = planted()
    model = KNeighborsClassifier(9, weights="distance")
    fresh = cross_val_predict(model, inputs, labels, cv=3, method="predict_proba")
    found, rows, _ = label_errors(fresh, labels, read_answers(fresh, labels), len(labels))
    hits = np.isin(rows, wrong)
    assert len(wrong) == 54
    assert hits.mean() > 0.75  # precision; 0.857 when written
    assert hits.sum() / len(wrong) > 0.7  # recall; 0.778 when written
    assert hits[:20].mean() > 0.85  # the most suspect first
    assert 0.02 < found["estimated_share"] < 0.05
    learned = model.fit(inputs, labels).predict_proba(inputs)
    assert label_errors(learned, labels, read_answers(learned, labels), 99)[0]["num"] == 0


def test_the_facts_name_the_planted_errors_with_their_probabilities() -> None:
    inputs, labels, wrong = planted()
    fresh = cross_val_predict(KNeighborsClassifier(20), inputs, labels, cv=3, method="predict_proba")
    ids = np.arange(len(labels)) + 10**15
    facts = describe_labels(
        Recording("digits", len(labels), 1, 9),
        fresh,
        labels,
        ids=ids,
        classes=list("0123456789"),
        names=[f"digit {row}" for row in range(len(labels))],
    )
    assert facts.label_errors is not None
    worst = facts.label_errors["worst"]
    assert len(worst) == len(facts.mistakes) == MOST_SHOWN
    assert sum(one["id"] - 10**15 in wrong for one in worst) >= 20
    for one in worst:
        row = one["id"] - 10**15
        assert one["name"] == f"digit {row}"
        assert one["label"] == labels[row] != one["teacher"]
        assert (one["of_label"], one["of_teacher"]) == (fresh[row, one["label"]], fresh[row, one["teacher"]])
    stated = [one["probability"] for one in facts.mistakes]
    assert stated == sorted(stated, reverse=True)
    assert stated[0] == fresh.max(1)[fresh.argmax(1) != labels].max()
    assert facts.shown_ids() == sorted({one["id"] for one in (*worst, *facts.mistakes)})


# ------------------------------------------------------------------------------------ order, temperature, views


def test_a_permuted_order_is_seen_and_chance_is_not_taken_for_one() -> None:
    probabilities, targets = drawn(10, n=600, strength=4.0)
    predicted = probabilities.argmax(1)
    assert reordered(predicted, targets, 10) is None
    swapped = np.array([0, 1, 7, 3, 4, 5, 6, 2, 8, 9])[predicted]
    found = reordered(swapped, targets, 10)
    assert found is not None
    assert sorted(found["moves"]) == [[2, 7], [7, 2]]
    assert found["before"] == pytest.approx((swapped == targets).mean())
    assert found["accuracy"] == pytest.approx((predicted == targets).mean())
    generator = np.random.default_rng(3)
    for n, c in ((30, 10), (100, 100), (1000, 10), (50, 2)):
        assert reordered(generator.integers(0, c, n), generator.integers(0, c, n), c) is None


def test_temperatures_equal_scipy() -> None:
    probabilities, _ = drawn(6, n=50)
    found = {row["temperature"]: row for row in softened(probabilities)}
    assert list(found) == [1, 2, 4, 8]
    for temperature, row in found.items():
        soft = softmax(np.log(probabilities) / temperature, axis=1)
        assert row["entropy_bits"] == pytest.approx(scipy_entropy(soft, axis=1, base=2).mean(), abs=1e-10)
        assert row["off_top"] == pytest.approx(1 - soft.max(1).mean(), abs=1e-10)


def test_views_by_hand() -> None:
    classes = np.array([[0, 0, 0], [1, 1, 2], [2, 0, 0], [1, 1, 1]])
    found = view_changes(classes, np.array([0, 2, 2, 0]))
    assert found["samples_changed"] == 0.5
    assert found["answers_changed"] == 3 / 8
    assert (found["accuracy_first"], found["accuracy_further"]) == (0.5, 3 / 8)
    assert "accuracy_first" not in view_changes(classes, None)
    with pytest.raises(UsageError, match="two views"):
        view_changes(classes[:, :1], None)


def test_histogram_counts_what_lies_beyond_its_ends() -> None:
    assert histogram(np.array([-5.0, 0.1, 0.9, 7.0]), 0.0, 1.0, bins=2) == {"edges": [0, 0.5, 1], "counts": [2, 2]}


# ---------------------------------------------------------------------------------------------------- words


def hard(probabilities: np.ndarray) -> np.ndarray:
    """Return hard labels as a teacher of classes writes them: nearly one at the top."""
    c = probabilities.shape[1]
    result = np.full(probabilities.shape, 1e-4 / (c - 1))
    result[np.arange(len(result)), probabilities.argmax(1)] = 1 - 1e-4
    return result


def situation(name: str) -> LabelFacts:
    good, targets = drawn(10, n=600, strength=4.0)
    held = drawn(10, n=600, seed=1, strength=4.0)
    generator = np.random.default_rng(0)

    def kept(**numbers: float) -> Recording:
        return Recording("some", 600, 1, 7200, fidelity=[{**CHOSEN, **numbers}])

    cases: dict[str, Callable[[], LabelFacts]] = {
        "healthy": lambda: described(good, targets, validation=held, recording=kept()),
        "majority": lambda: described(drawn(10, n=600, strength=0.0)[0], targets),
        "permuted": lambda: described(np.roll(good, 1, axis=1), targets),
        "saturated": lambda: described(softmax(np.log(good) * 12, axis=1), targets),
        "hard": lambda: described(hard(good), targets),
        "flat": lambda: described(softmax(np.log(good) / 20, axis=1), targets),
        "silent": lambda: described(np.where(np.arange(600)[:, None] % 9 == 0, 0.1, good), targets),
        "memorised": lambda: described(good, targets, validation=drawn(10, n=600, seed=1, strength=3.2)),
        "uncovered": lambda: described(good, targets, recording=kept(uncovered=0.2)),
        "stretched": lambda: described(good, targets, recording=kept(norm_ratio=1.8)),
        "shrunk": lambda: described(good, targets, recording=kept(norm_ratio=0.5)),
        "unstable": lambda: described(good, targets, view_classes=generator.integers(0, 10, (600, 3))),
        "sampled": lambda: described(good, targets, recording=Recording("some", 600, 1, 7200, sampled=True)),
    }
    return cases[name]()


@pytest.mark.parametrize(
    ("name", "level", "said"),
    [
        ("healthy", None, ""),
        ("majority", "stop", "not clearly more than"),
        ("permuted", "stop", "order of the classes looks permuted"),
        ("saturated", "warning", "raise the temperature"),
        ("hard", "warning", "hard labels"),
        ("flat", "stop", "nearly the same for every class"),
        ("silent", "warning", "says nothing"),
        ("memorised", "warning", "by heart"),
        ("uncovered", "warning", "20.0 % of the probability is not covered"),
        ("stretched", "warning", "1.8 times longer"),
        ("shrunk", "warning", "2.0 times shorter"),
        ("unstable", "warning", "further views"),
        ("sampled", "warning", "sampled probabilities"),
    ],
)
def test_each_situation_is_warned_of_alone(name: str, level: str | None, said: str) -> None:
    facts = situation(name)
    assert [one["level"] for one in facts.warnings] == ([level] if level else [])
    assert all(said in one["message"] for one in facts.warnings)
    assert (facts.label_errors is None) == (level == "stop")
    if level == "stop":
        assert len(facts.hopes) == 1
        assert facts.hopes[0].startswith("As it stands, nothing")


@pytest.mark.parametrize("strength", [1.2, 1.8])
def test_a_weak_teacher_judges_no_labels_and_is_the_first_warning(strength: float) -> None:
    """All labels are right; the teacher is right on about half, or on three quarters, of them."""
    good, targets = drawn(5, n=1000, strength=strength)
    held = drawn(5, n=500, seed=1, strength=strength)
    facts = described(good, targets, validation=held)
    accuracy = (held[0].argmax(1) == held[1]).mean()
    assert 0.4 < accuracy < 0.8
    assert facts.label_errors is None
    assert facts.warnings[0]["level"] == "warning"
    assert f"The teacher is weak: it is right on {100 * accuracy:.1f} % of validation" in facts.warnings[0]["message"]
    assert "look wrong" not in " ".join(facts.hopes)


def test_a_teacher_that_knows_the_large_class_only_is_weak() -> None:
    generator = np.random.default_rng(0)
    targets = (generator.random(2000) < 0.1).astype(int)
    right = np.where(targets == 1, generator.random(2000) < 0.3, generator.random(2000) < 0.999)
    logits = 3 * np.eye(2)[np.where(right, targets, 1 - targets)] + 0.1 * generator.normal(size=(2000, 2))
    facts = described(softmax(logits, axis=1), targets)
    assert facts.splits["train"]["accuracy"] > 0.9
    assert facts.splits["train"]["balanced_accuracy"] == pytest.approx(
        sk.balanced_accuracy_score(targets, logits.argmax(1)), abs=1e-12
    )
    assert "samples of an average class" in facts.warnings[0]["message"]
    assert facts.label_errors is None


def test_labels_of_a_handful_are_not_judged_and_the_classes_are_named() -> None:
    """One class of 12 samples and one that the teacher never finds, beside two that it knows: all labels are right."""
    generator = np.random.default_rng(0)
    targets = np.repeat([0, 1, 2, 3], [400, 400, 12, 60])
    means = np.eye(4)[np.where(targets == 3, 0, targets)] * 5.0
    facts = described(softmax(means + generator.normal(size=(872, 4)), axis=1), targets)
    errors = facts.label_errors
    assert errors is not None
    assert errors["unjudged"] == [2, 3]
    assert errors["judged"] == 800
    assert errors["estimated_share"] < 0.02
    assert all({one["label"], one["teacher"]} <= {0, 1} for one in errors["worst"])


def test_hopes_state_the_ceiling_the_disagreement_and_the_information() -> None:
    facts = situation("healthy")
    held = facts.splits["validation"]
    low, high = held["accuracy_interval"]
    assert f"{100 * held['accuracy']:.1f} % (95 % interval {100 * low:.1f} to {100 * high:.1f})" in facts.hopes[0]
    assert "ceiling" in facts.hopes[0]
    assert f"{100 * (1 - facts.splits['train']['accuracy']):.1f} % of the training samples" in facts.hopes[1]
    assert f"{facts.splits['train']['entropy_bits']:.2f} bits" in facts.hopes[2]
    assert "of 3.32 possible" in facts.hopes[2]
    assert "3.0° between the gradients" in facts.hopes[3]
    assert "None of this is a promise" in facts.hopes[-1]
    assert (
        facts.headline
        == f"The teacher is right on {100 * held['accuracy']:.1f} % of validation; an answer takes 12 bytes."
    )
    alone = described(*drawn(4))
    assert "ceiling of a student is not known" in alone.hopes[0]
    perfect = described(np.eye(3)[[0, 1, 2, 0]] * 0.7 + 0.1, np.array([0, 1, 2, 0]))
    assert any("never contradicts" in hope for hope in perfect.hopes)


def test_a_teacher_that_has_seen_the_samples_is_said_to_be_surer_of_them() -> None:
    train, held = drawn(10, n=600, strength=4.0), drawn(10, n=600, seed=1, strength=4.0)
    sharp = softmax(np.log(train[0]) * 2, axis=1)
    assert any("was trained on these" in hope for hope in described(sharp, train[1], validation=held, seen=True).hopes)
    assert not any("was trained" in hope for hope in described(sharp, train[1], validation=held, seen=False).hopes)


def test_without_labels_everything_that_needs_none_is_there() -> None:
    probabilities, _ = drawn(5)
    facts = described(probabilities, None, view_classes=np.zeros((400, 2), int))
    assert set(facts.splits["train"]) >= {"entropy_bits", "confidence_histogram", "off_top", "effective_classes"}
    assert "accuracy" not in facts.splits["train"]
    assert (facts.label_errors, facts.reordered, list(facts.mistakes)) == (None, None, [])
    assert facts.views is not None
    assert len(facts.temperatures) == 4
    assert "no labels" in facts.hopes[0]
    assert facts.headline.startswith("The teacher's answers carry")


# ----------------------------------------------------------------------------------------- bytes, JSON, refusals


def test_bytes_against_full_logits() -> None:
    probabilities, targets = drawn(50, n=100)
    recording = Recording("some", 100, 4, 8_000, num_items=1000, seconds=2.0, rate=200.0)
    stored = described(probabilities, targets, recording=recording).stored
    assert stored == {
        "num_bytes": 8000,
        "bytes_per_answer": 20.0,
        "full_bytes": 100 * 4 * 50 * 4,
        "times_smaller": 10.0,
        "num_items": 1000,
        "bytes_per_item": 8.0,
        "seconds": 2.0,
        "rate": 200.0,
    }
    given = described(probabilities, targets, recording=Recording("some", 100, 4, 8_000, full_bytes=16_000)).stored
    assert given["times_smaller"] == 2.0


def test_the_facts_come_back_from_their_file(tmp_path: Any) -> None:
    row = {**CHOSEN, "kl": np.float64("nan"), "bytes": np.int64(3)}
    probabilities, targets = drawn(4)
    facts = described(probabilities, targets, recording=Recording("a", 400, 1, 1, fidelity=[row]), seen=False)
    write_json(tmp_path / "label.json", facts.to_json())
    text = (tmp_path / "label.json").read_text("utf-8")
    assert "NaN" not in text
    assert "Infinity" not in text
    back = LabelFacts.from_json(read_json(tmp_path / "label.json"))
    assert back.to_json() == facts.to_json()
    assert back.fidelity[0]["kl"] is None
    assert back.fidelity[0]["bytes"] == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"targets": np.zeros(399, int)}, "training labels must be 400 class numbers"),
        ({"targets": np.zeros(400)}, "of float64"),
        ({"targets": np.full(400, 4)}, r"go from 4 to 4, but there are 4 classes \(0 to 3\)"),
        ({"ids": np.arange(3)}, "one id .and name. for each of the 400"),
        ({"names": ["a"]}, "and 1 names"),
        ({"classes": ["a", "b"]}, "There are 2 classes"),
        ({"validation": (np.full((2, 4), 0.25), np.array([0, 9]))}, "validation labels go from 0 to 9"),
        ({"view_classes": np.zeros((3, 2), int)}, "one row for each of the 400"),
        ({"recording": Recording("some", 0, 1, 0)}, "no answers"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, Any], message: str) -> None:
    probabilities, targets = drawn(4)
    options: dict[str, Any] = {"ids": np.arange(400), "classes": list("abcd")} | change
    recording, labels = options.pop("recording", RECORDING), options.pop("targets", targets)
    with pytest.raises(UsageError, match=message):
        describe_labels(recording, probabilities, labels, **options)


# ------------------------------------------------------------------------------------------- values and texts


@pytest.mark.parametrize("columns", [1, 3])
def test_values_equal_scikit_learn_and_their_intervals_resampling(columns: int) -> None:
    generator = np.random.default_rng(columns)
    targets = generator.normal(size=(800, columns)) * 3
    values = targets + generator.standard_t(5, size=(800, columns))
    scores = value_scores(values, targets)
    assert scores["r2"] == pytest.approx(sk.r2_score(targets, values), abs=1e-12)
    last = "" if columns == 1 else f"_{columns}"  # errors of several columns are told one by one
    assert scores[f"rmse{last}"] == pytest.approx(sk.root_mean_squared_error(targets[:, -1], values[:, -1]), abs=1e-12)
    assert scores[f"mae{last}"] == pytest.approx(sk.mean_absolute_error(targets[:, -1], values[:, -1]), abs=1e-12)
    assert ("rmse" in scores, "mae" in scores) == ((columns == 1),) * 2
    assert sum(scores["residual_histogram"]["counts"]) == 800 * columns
    rows = np.random.default_rng(0).integers(0, 800, (400, 800))
    for name, function, of in (("r2", sk.r2_score, slice(None)), (f"rmse{last}", sk.root_mean_squared_error, [-1])):
        drawn = [function(targets[row][:, of], values[row][:, of]) for row in rows]
        low, high = scores[f"{name}_interval"]
        assert high - low == pytest.approx(2 * 1.96 * np.std(drawn), rel=0.15)
        assert (low + high) / 2 == pytest.approx(scores[name], abs=1e-9)


def test_values_that_are_exact_or_constant_give_no_error() -> None:
    scores = value_scores(np.arange(5.0), np.arange(5.0))
    assert (scores["r2"], scores["rmse"], scores["rmse_interval"]) == (1.0, 0.0, [0.0, 0.0])
    assert value_scores(np.zeros(5), None)["value_histogram"]["counts"][10] == 5
    assert value_scores(np.zeros(5), np.zeros(5))["r2"] == 1.0


def test_values_name_the_largest_residuals_and_warn() -> None:
    generator = np.random.default_rng(0)
    targets = generator.normal(size=300)
    values = targets + 0.1 * generator.normal(size=300)
    values[[7, 200]] += [2.0, -3.0]
    recording = Recording("some", 300, 1, 1200)
    facts = describe_values(recording, values, targets, ids=np.arange(300))
    assert [one["id"] for one in facts.residuals[:2]] == [200, 7]
    assert facts.residuals[0] == {"id": 200, "name": None, "label": [targets[200]], "teacher": [values[200]]}
    assert facts.stored["times_smaller"] == 1.0
    assert not facts.warnings
    clean = targets + 0.1 * generator.normal(size=300)
    held = (targets + 0.6 * generator.normal(size=300), targets)
    learned = describe_values(recording, clean, targets, ids=np.arange(300), validation=held)
    assert [("by heart" in one["message"], one["level"]) for one in learned.warnings] == [(True, "warning")]
    useless = describe_values(recording, generator.normal(size=300), targets, ids=np.arange(300))
    assert [one["level"] for one in useless.warnings] == ["stop"]
    assert LabelFacts.from_json(json.loads(json.dumps(facts.to_json()))).to_json() == facts.to_json()
    with pytest.raises(UsageError, match="one row for each id"):
        describe_values(recording, values, targets, ids=np.arange(3))


def test_texts_by_hand() -> None:
    facts = describe_texts(
        Recording("some", 4, 1, 100, num_items=20),
        lengths=np.array([5, 0, 10, 5]),
        finish_reasons={"stop": 3, "length": 1},
        failed=2,
        money=0.5,
        logprobs=np.array([-1.0, np.nan, -0.25, np.nan]),
    )
    assert facts.text is not None
    assert facts.text["mean_logprob"] == pytest.approx((-5.0 - 2.5) / 15)
    assert (facts.text["num_logprobs"], facts.text["empty"], facts.text["longest"]) == (2, 1, 10)
    assert facts.stored["bytes_per_item"] == 5.0
    assert facts.stored["times_smaller"] is None
    said = " ".join(one["message"] for one in facts.warnings)
    assert "2 of 6 questions got no answer" in said
    assert "25.0 % of the answers were cut off" in said
    assert "1 answer is empty" in said
    assert "50.0 % of the answers come with token probabilities" in facts.hopes[0]
    plain = describe_texts(Recording("some", 1, 1, 9), lengths=np.array([3]), finish_reasons={"stop": 1})
    assert "texts only" in plain.hopes[0]
    assert not plain.warnings
    with pytest.raises(UsageError, match="one length"):
        describe_texts(RECORDING, lengths=np.array([]), finish_reasons={})
