"""From predictions to the result: numbers against scikit-learn, the JSON round trip, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from sklearn import metrics as sk

from potstill.core.errors import PotstillError, PotstillWarning, UsageError
from potstill.evaluation import EvaluationResult, Limit, Size, evaluate, with_limits

LATENCY = {"1": {"p50": 1.0, "p95": 2.0, "per_second": 1000.0}}
SIZES = {
    "teacher": Size(1000, 2_000_000, 4000, LATENCY),
    "alone": Size(32, 64_000, 128),
    "distilled": Size(32, 64_000, 128),
}
N, CLASSES = 500, 5


def scores(generator: np.random.Generator, targets: np.ndarray, strength: float) -> np.ndarray:
    logits = generator.normal(size=(len(targets), CLASSES)).astype(np.float32)
    logits[np.arange(len(targets)), targets] += strength
    return logits


def classification(seeds: tuple[int, ...] = (3, 5, 9), gain: float = 0.8, **changes: object) -> dict[str, object]:
    generator = np.random.default_rng(0)
    targets = generator.integers(0, CLASSES, N)
    return {
        "task": "classification",
        "targets": targets,
        "teacher": scores(generator, targets, 4),
        "alone": {seed: scores(generator, targets, 1.5) for seed in seeds},
        "distilled": {seed: scores(generator, targets, 1.5 + gain) for seed in seeds},
        "sizes": SIZES,
        "classes": list("abcde"),
        **changes,
    }


def run(**given: object) -> EvaluationResult:
    return evaluate(**given)  # type: ignore[arg-type]


def test_classification_scores_are_scikit_learns_averaged_over_seeds() -> None:
    given = classification()
    result = run(**given)
    targets, distilled = given["targets"], given["distilled"]
    accuracies = [sk.accuracy_score(targets, logits.argmax(1)) for logits in distilled.values()]
    f1 = [sk.f1_score(targets, logits.argmax(1), average="macro") for logits in distilled.values()]
    student = result.models["distilled"]
    assert list(result.models) == ["teacher", "alone", "distilled"]
    own = {"accuracy", "balanced_accuracy", "auc", "macro_f1", "nll", "brier", "ece"}
    assert set(student.metrics) == own | {"agreement", "kl_to_teacher"}
    assert set(result.models["teacher"].metrics) == own
    np.testing.assert_allclose(student.per_seed["accuracy"], accuracies, atol=1e-12)
    assert student.metrics["macro_f1"] == pytest.approx(np.mean(f1), abs=1e-12)
    for scored in result.models.values():
        for metric, value in scored.metrics.items():
            low, high = scored.intervals[metric]
            assert low <= value <= high, (scored.name, metric)
    assert (student.parameters, student.flops, student.bytes, student.latency_ms) == (32, 64_000, 128, None)
    assert result.models["teacher"].latency_ms == LATENCY
    assert result.seeds == (3, 5, 9)


def test_differences_are_paired_over_examples() -> None:
    """Two models that fail on the same examples but for a few: an unpaired interval would be many times as wide."""
    generator = np.random.default_rng(0)
    targets = generator.integers(0, 2, 2000)
    wrong = generator.random(2000) < 0.3
    alone = np.eye(2)[np.where(wrong, 1 - targets, targets)] * 3
    better = wrong & (np.arange(2000) % 20 != 0)
    distilled = np.eye(2)[np.where(better, 1 - targets, targets)] * 3
    result = run(
        task="classification", targets=targets, teacher=alone, alone={0: alone}, distilled={0: distilled}, sizes=SIZES
    )
    found = result.differences["distilled-alone"]["accuracy"]
    fixed = (wrong & ~better).mean()
    assert found.value == pytest.approx(fixed, abs=1e-12)
    half = 1.96 * np.sqrt(fixed * (1 - fixed) / 2000 + 2 / 2000**2)
    assert found.high - found.low == pytest.approx(2 * half, rel=0.1)
    unpaired = 1.96 * np.sqrt(2 * 0.3 * 0.7 / 2000)
    assert half < unpaired / 2


def test_tables_and_disagreements() -> None:
    given = classification()
    result = run(**given, ids=np.arange(N) + 1000, names=[f"{row}.png" for row in range(N)], shown_seed=5)
    targets = given["targets"]
    expected = np.mean([sk.confusion_matrix(targets, z.argmax(1)) for z in given["alone"].values()], axis=0)
    np.testing.assert_allclose(result.confusion["alone"], expected)
    assert sum(result.reliability["distilled"]["count"]) == 3 * N
    assert sum(result.reliability["teacher"]["count"]) == N
    assert len(result.disagreements) == 24
    first = result.disagreements[0]
    row = first["row"]
    teacher, student = given["teacher"][row], given["distilled"][5][row]
    assert first["id"] == row + 1000
    assert first["name"] == f"{row}.png"
    assert first["label"] == targets[row]
    assert first["teacher"] == teacher.argmax()
    assert first["distilled"] == student.argmax()
    assert first["teacher_confidence"] == pytest.approx(np.exp(teacher).max() / np.exp(teacher).sum(), abs=1e-6)
    assert first["student_confidence"] == pytest.approx(np.exp(student).max() / np.exp(student).sum(), abs=1e-6)
    assert all(entry["teacher"] != entry["distilled"] for entry in result.disagreements)


def test_samples_that_both_answer_alike_are_no_disagreements() -> None:
    given = classification()
    student = given["teacher"] + np.random.default_rng(0).normal(0, 1e-3, given["teacher"].shape)
    turned = [3, 70, 101]
    student[turned] = -student[turned]
    found = run(**{**given, "distilled": dict.fromkeys(given["distilled"], student)}).disagreements
    expected = np.flatnonzero(student.argmax(1) != given["teacher"].argmax(1))
    assert set(turned) <= set(expected)
    assert len(expected) < 24
    assert sorted(entry["row"] for entry in found) == expected.tolist()


@pytest.mark.parametrize("columns", [2, 5, 9])
def test_errors_of_columns_in_unlike_units_are_told_one_by_one_and_never_averaged(columns: int) -> None:
    generator = np.random.default_rng(0)
    units = 10.0 ** -np.arange(columns)
    targets = generator.normal(size=(200, columns)) * units
    alone, distilled = (targets + generator.normal(size=(200, columns)) * units * off for off in (0.4, 0.2))
    result = run(
        task="regression", targets=targets, teacher=None, alone={0: alone}, distilled={0: distilled}, sizes=SIZES
    )
    errors = np.sqrt(((distilled - targets) ** 2).mean(0))
    scored, by_seed = result.models["distilled"].metrics, result.models["distilled"].per_seed
    told = [text for text in result.verdict.sentences if "RMSE" in text]
    if columns > 8:
        assert (set(scored), told) == ({"r2"}, [])
        return
    assert [scored[f"rmse_{column + 1}"] for column in range(columns)] == pytest.approx(errors.tolist())
    assert by_seed["rmse_2"] == (scored["rmse_2"],)
    assert not {"rmse", "mae"} & set(scored)
    by_alone = np.sqrt(((alone - targets) ** 2).mean(0))
    assert f"{errors[1]:.3g}"[:6] in told[0]
    assert f"(trained alone {by_alone[1]:.3g}" in told[0]
    assert ("(2 more columns in the table)" in told[0]) == (columns == 5)
    assert "column 4" not in told[0]
    with pytest.raises(UsageError, match=f"{columns} target columns is one of r2, rmse_1"):
        run(
            task="regression",
            targets=targets,
            teacher=None,
            alone={0: alone},
            distilled={0: distilled},
            sizes=SIZES,
            metric="rmse",
        )


def test_json_round_trip_through_text() -> None:
    result = run(**classification(limits=[Limit("student.onnx", 1.0, 0.5, "MB")]))
    again = EvaluationResult.from_json(json.loads(json.dumps(result.to_json(), allow_nan=False)))
    assert again == result
    assert again.split == "test"
    assert again.chosen_on == "validation"


def test_the_headline_metric_can_be_chosen_and_unusable_names_are_refused() -> None:
    given = classification()
    result = run(**given, metric="auc")
    assert result.headline_metric == "auc"
    assert "AUC" in result.verdict.headline
    assert result.models == run(**given).models
    for name in ("agreement", "r2", "auroc"):
        with pytest.raises(UsageError, match=f"one of accuracy, balanced_accuracy, auc.* got '{name}'"):
            run(**given, metric=name)


def test_a_class_without_test_examples_is_left_out_and_named() -> None:
    given = classification()
    targets = np.where(given["targets"] == 2, 1, given["targets"])
    result = run(**{**given, "targets": targets})
    logits = given["distilled"][3]
    odds = logits - np.log(np.exp(logits).sum(1, keepdims=True) - np.exp(logits))
    areas = [sk.roc_auc_score(targets == c, odds[:, c]) for c in (0, 1, 3, 4)]
    assert result.models["distilled"].per_seed["auc"][0] == pytest.approx(np.mean(areas), abs=1e-12)
    recalls = [(logits.argmax(1) == targets)[targets == c].mean() for c in (0, 1, 3, 4)]
    assert result.models["distilled"].per_seed["balanced_accuracy"][0] == pytest.approx(np.mean(recalls), abs=1e-12)
    assert any("no example of class c" in sentence for sentence in result.verdict.sentences)
    one_class = run(**{**given, "targets": np.zeros(N, np.int64)})
    assert "auc" not in one_class.models["distilled"].metrics
    with pytest.raises(UsageError, match="all test examples are of one class"):
        run(**{**given, "targets": np.zeros(N, np.int64)}, metric="auc")


def test_one_test_example_gives_endless_intervals_and_plain_json() -> None:
    given = classification(seeds=(0,))
    first = {name: given[name][:1] for name in ("targets", "teacher")}
    students = {kind: {0: given[kind][0][:1]} for kind in ("alone", "distilled")}
    result = run(**{**given, **first, **students})
    found = result.differences["distilled-alone"]
    assert (found["nll"].low, found["nll"].high) == (-np.inf, np.inf)
    assert (found["accuracy"].low, found["accuracy"].high) == (-1.0, 1.0)
    assert EvaluationResult.from_json(json.loads(json.dumps(result.to_json(), allow_nan=False))) == result


def test_what_a_run_of_before_wrote_is_still_read() -> None:
    written = run(**classification()).to_json()
    for name in ("remarks", "warnings"):
        del written[name]
    del written["verdict"]["warnings"]
    for scores in written["models"].values():
        del scores["runtime"], scores["onnx_latency_ms"]
    for pair in written["differences"].values():
        for number in pair.values():
            del number["with_seeds"], number["with_examples"]
    again = EvaluationResult.from_json(json.loads(json.dumps({**written, "resamples": 2000})))
    assert again.models["teacher"].runtime == "PyTorch"
    assert again.differences["distilled-alone"]["accuracy"].with_seeds is None
    assert with_limits(again, []).verdict.headline == again.verdict.headline


@pytest.mark.parametrize("columns", [None, 2])
def test_regression(columns: int | None) -> None:
    generator = np.random.default_rng(0)
    shape = (300,) if columns is None else (300, columns)
    targets = generator.normal(size=shape).astype(np.float32)
    flat = targets.reshape(300, -1)

    def values(noise: float) -> np.ndarray:
        return flat + generator.normal(0, noise, flat.shape).astype(np.float32)

    teacher, alone, distilled = values(0.2), values(0.6), values(0.3)
    result = run(
        task="regression", targets=targets, teacher=teacher, alone={0: alone}, distilled={0: distilled}, sizes=SIZES
    )
    scored = result.models["distilled"].metrics
    assert result.headline_metric == "r2"
    assert scored["r2"] == pytest.approx(sk.r2_score(flat, distilled), abs=1e-6)
    ends = ("",) if flat.shape[1] == 1 else tuple(f"_{column}" for column in range(1, flat.shape[1] + 1))
    assert set(scored) == {"r2", *(f"{kind}{end}" for kind in ("rmse", "mae") for end in ends)}
    for column, end in enumerate(ends):
        pair = flat[:, column], distilled[:, column]
        assert scored[f"rmse{end}"] == pytest.approx(sk.root_mean_squared_error(*pair), abs=1e-6)
        assert scored[f"mae{end}"] == pytest.approx(sk.mean_absolute_error(*pair), abs=1e-6)
    assert result.differences["distilled-alone"]["r2"].low > 0
    assert result.differences["distilled-alone"][f"rmse{ends[0]}"].high < 0
    assert result.reliability == {}
    assert result.confusion == {}
    worst = result.disagreements[0]
    gap = (np.abs(teacher - distilled) / flat.std(0)).mean(1)
    assert worst["row"] == gap.argmax()
    assert worst["teacher_confidence"] is None
    assert EvaluationResult.from_json(json.loads(json.dumps(result.to_json()))) == result
    assert result.verdict.helped == "yes"


def test_limits_measured_later_only_change_the_verdict() -> None:
    result = run(**classification())
    judged = with_limits(result, [Limit("student.onnx", 0.5, 0.6, "MB")])
    assert result.verdict.fits_budget is None
    assert judged.verdict.fits_budget is False
    assert replace(judged, verdict=result.verdict) == result


def test_what_does_not_fit_is_refused() -> None:
    given = classification()
    alone = given["alone"]
    with pytest.raises(UsageError, match="same seeds"):
        run(**{**given, "alone": {3: alone[3]}})
    with pytest.raises(UsageError, match="sizes lacks teacher"):
        run(**{**given, "sizes": {name: SIZES[name] for name in ("alone", "distilled")}})
    with pytest.raises(UsageError, match="alone student, seed 3"):
        run(**{**given, "alone": {**alone, 3: alone[3][:, :4]}})
    with pytest.raises(UsageError, match="4 class names for 5"):
        run(**{**given, "classes": list("abcd")})
    broken = alone[5].copy()
    broken[7, 1] = np.nan
    with pytest.raises(PotstillError, match=r"alone student, seed 5.* 1 numbers that are not finite"):
        run(**{**given, "alone": {**alone, 5: broken}})


def test_calls_of_before_that_resample_are_told_that_nothing_is() -> None:
    targets = np.arange(40) % 2
    outputs = {0: np.eye(2)[targets] + np.random.default_rng(0).normal(size=(40, 2))}
    size = Size(None, None, None)
    given = {"task": "classification", "targets": targets, "teacher": None, "alone": outputs, "distilled": outputs}
    given["sizes"] = {"alone": size, "distilled": size}
    with pytest.warns(PotstillWarning, match="intervals are computed without resampling"):
        old = evaluate(**given, resamples=300, seed=1)
    assert old == evaluate(**given)
