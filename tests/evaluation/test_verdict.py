"""What the verdict says, word for word."""

from __future__ import annotations

from typing import Any

import pytest

from potstill.evaluation import Difference, Limit, Verdict
from potstill.evaluation.verdict import judge, weak_teacher

HELD = " The interval is about the mean gain on other examples like these, trained again with other seeds."


def accuracy(value: float, low: float, high: float, *, seeds: int = 3, **changes: Any) -> Verdict:
    given: dict[str, Any] = {
        "metric": "accuracy",
        "scores": {"teacher": {"accuracy": 0.934}, "alone": {"accuracy": 0.891}, "distilled": {"accuracy": 0.912}},
        "parameters": {"teacher": 1_000_000, "alone": 32_000, "distilled": 32_000},
        "num_seeds": seeds,
        "num_examples": 10_000,
    }
    ours = Difference(value, low, high, changes.pop("with_seeds", None), changes.pop("with_examples", None))
    differences = {
        "distilled-alone": {"accuracy": ours, **changes.pop("others", {})},
        "distilled-teacher": {"accuracy": changes.pop("to_teacher", Difference(-0.022, -0.03, -0.014))},
    }
    return judge(**{**given, "differences": differences, **changes})


def test_helped() -> None:
    verdict = accuracy(0.021, 0.014, 0.028)
    assert verdict.helped == "yes"
    assert verdict.fits_budget is None
    assert verdict.headline == ("Distillation helped: 2.1 points of accuracy more than the same student trained alone.")
    assert verdict.sentences == (
        "The distilled student gains 2.1 points of accuracy over the same student trained alone "
        f"(95 % interval 1.4 to 2.8, 3 seeds).{HELD}",
        "It keeps 97.6 % of the teacher's accuracy (91.2 % against 93.4 %) at 3.2 % of its parameters.",
        "All numbers are from the 10,000 examples of the test split, read once; checkpoints were chosen on the "
        "validation split.",
    )


@pytest.mark.parametrize("seeds", [1, 2])
@pytest.mark.parametrize(
    ("numbers", "helped", "headline"),
    [
        ((0.021, 0.014, 0.028), "yes", "This distilled student is 2.1 points of accuracy better than this one"),
        ((-0.021, -0.03, -0.01), "no", "This distilled student is 2.1 points of accuracy worse than this one"),
        ((0.001, -0.002, 0.004), "no", "This distilled student is at most 0.40 points of accuracy better"),
        ((0.004, 0.001, 0.007), "unclear", "This distilled student is 0.40 points of accuracy better"),
        ((0.01, -0.02, 0.04), "unclear", "Not enough test examples to tell this distilled student from this one"),
    ],
)
def test_with_few_seeds_it_is_about_these_students(
    seeds: int, numbers: tuple[float, float, float], helped: str, headline: str
) -> None:
    verdict = accuracy(*numbers, seeds=seeds)
    assert verdict.helped == helped
    assert verdict.headline.startswith(headline)
    assert any("these trained weights only" in sentence for sentence in verdict.sentences)
    assert "about these students on other examples" in verdict.sentences[0]
    everything = " ".join([verdict.headline, *verdict.sentences])
    assert "Distillation helped" not in everything
    assert "Distillation did not help" not in everything
    assert not any("these trained weights only" in s for s in accuracy(*numbers, seeds=3).sentences)


def test_hurt() -> None:
    verdict = accuracy(-0.012, -0.02, -0.004)
    assert verdict.helped == "no"
    assert "did not help: the student is 1.2 points of accuracy worse" in verdict.headline
    assert "loses 1.2 points of accuracy against the same student trained alone" in verdict.sentences[0]


@pytest.mark.parametrize(
    ("soft", "hard", "headline", "sentence"),
    [
        (
            (0.001, -0.002, 0.004),
            (0.05, 0.03, 0.07),
            "The teacher's labels are enough.",
            "the teacher's labels are enough",
        ),
        ((-0.02, -0.03, -0.01), (0.05, 0.03, 0.07), "The teacher's labels are better", "it loses 2.0 points"),
        (
            (0.02, 0.01, 0.03),
            (0.03, 0.02, 0.04),
            "",
            "it gains 2.0 points of accuracy (95 % interval 1.0 to 3.0, 3 seeds)",
        ),
        (
            (0.003, -0.01, 0.016),
            (0.05, 0.03, 0.07),
            "",
            "that may be chance, so that the teacher's labels may do as well",
        ),
        ((0.001, -0.002, 0.004), (0.00, -0.02, 0.02), "", "the teacher's labels are enough"),
    ],
)
def test_the_teachers_labels_may_be_enough(
    soft: tuple[float, ...], hard: tuple[float, ...], headline: str, sentence: str
) -> None:
    scores = {name: {"accuracy": 0.9} for name in ("teacher", "alone", "pseudo", "distilled")}
    verdict = judge(
        metric="accuracy",
        scores=scores,
        differences={
            "distilled-alone": {"accuracy": Difference(0.05, 0.03, 0.07)},
            "distilled-pseudo": {"accuracy": Difference(*soft)},
            "pseudo-alone": {"accuracy": Difference(*hard)},
        },
        parameters={},
        num_seeds=3,
        num_examples=1000,
    )
    assert verdict.helped == "yes"
    helped = "Distillation helped: 5.0 points of accuracy more than the same student trained alone."
    assert verdict.headline.startswith(f"{helped} {headline}".strip())
    assert bool(headline) == (verdict.headline != helped)
    assert sentence in verdict.sentences[1]
    assert verdict.sentences[1].endswith("from the one trained alone.")


@pytest.mark.parametrize(
    ("soft", "helped", "headline"),
    [
        (
            (0.02, 0.01, 0.03),
            "yes",
            "Distillation helped: 2.0 points of accuracy more than the same student trained on the teacher's labels.",
        ),
        (
            (0.001, -0.002, 0.004),
            "no",
            "Distillation did not help: the gain over the same student trained on the teacher's labels is at most "
            "0.40 points of accuracy. The teacher's labels are enough.",
        ),
        (
            (-0.02, -0.03, -0.01),
            "no",
            "Distillation did not help: the student is 2.0 points of accuracy worse than the same student trained on "
            "the teacher's labels. The teacher's labels are better than its answers.",
        ),
    ],
)
def test_without_a_student_alone_the_teachers_labels_are_the_baseline(
    soft: tuple[float, ...], helped: str, headline: str
) -> None:
    verdict = judge(
        metric="accuracy",
        scores={name: {"accuracy": 0.9} for name in ("teacher", "pseudo", "distilled")},
        differences={"distilled-pseudo": {"accuracy": Difference(*soft)}},
        parameters={},
        num_seeds=3,
        num_examples=1000,
    )
    assert (verdict.helped, verdict.headline) == (helped, headline)
    assert "trained alone" not in " ".join(verdict.sentences)


def test_differences_of_rounding_are_none() -> None:
    verdict = accuracy(3e-17, -0.012, 0.012)
    assert "differs by +0.0 points of accuracy" in verdict.sentences[0]


def test_no_gain_worth_having() -> None:
    verdict = accuracy(0.001, -0.002, 0.004)
    assert verdict.helped == "no"
    assert verdict.headline == (
        "Distillation did not help: the gain over the same student trained alone is at most 0.40 points of accuracy."
    )
    assert "differs by +0.10 points" in verdict.sentences[0]


def test_a_clear_gain_that_is_negligible_is_no_help() -> None:
    small = accuracy(0.002, 0.001, 0.003)
    assert small.helped == "no"
    assert "at most 0.30 points" in small.headline
    assert "a gain below 0.50 points of accuracy is not worth having" in small.sentences[0]
    perhaps = accuracy(0.004, 0.001, 0.007)
    assert perhaps.helped == "unclear"
    assert perhaps.headline == "Distillation gained 0.40 points of accuracy, perhaps too little to matter."
    assert accuracy(0.005, 0.001, 0.009).helped == "yes"


def test_not_enough_data_and_only_advice_that_is_true() -> None:
    verdict = accuracy(0.01, -0.02, 0.04)
    assert verdict.helped == "unclear"
    assert verdict.headline == "Not enough data to tell whether distillation helped."
    assert "may be chance" in verdict.sentences[0]
    assert "(95 % interval -2.0 to 4.0, 3 seeds)" in verdict.sentences[0]
    assert "narrow" not in verdict.sentences[0]
    by_seeds = accuracy(0.01, -0.02, 0.04, with_seeds=0.4, with_examples=0.97).sentences[0]
    assert by_seeds.endswith(" Twice the seeds would narrow it to about 40 % of its width.")
    both = accuracy(0.01, -0.02, 0.04, with_seeds=0.8, with_examples=0.71).sentences[0]
    assert both.endswith(
        " Twice the test examples would narrow it to about 71 % of its width, "
        "twice the seeds would narrow it to about 80 % of its width."
    )
    few = accuracy(0.01, -0.02, 0.04, seeds=1, with_examples=0.71).sentences[0]
    assert few.endswith(" Twice the test examples would narrow it to about 71 % of its width.")


def test_an_interval_that_touches_zero_is_not_a_yes_and_one_that_does_not_never_looks_so() -> None:
    assert accuracy(0.01, 0.0, 0.02).helped == "unclear"
    assert "(95 % interval 0.002 to 2.000, 3 seeds)" in accuracy(0.01, 0.00002, 0.02).sentences[0]


def test_budget() -> None:
    small, slow = Limit("student.onnx", 0.5, 0.28, "MB"), Limit("latency", 0.3, 0.42, "ms")
    fits = accuracy(0.021, 0.014, 0.028, limits=[small])
    assert fits.fits_budget is True
    assert fits.headline.endswith("It fits the budget.")
    assert "Measured for student.onnx: 0.28 MB, within the limit of 0.5 MB." in fits.sentences
    over = accuracy(0.021, 0.014, 0.028, limits=[small, slow])
    assert over.fits_budget is False
    assert over.headline.endswith("It does not fit the budget.")
    assert "Measured for latency: 0.42 ms, over the limit of 0.3 ms." in over.sentences
    assert not Limit("x", 1.0, float("nan"), "MB").met


def test_a_limit_that_was_not_measured_never_fits() -> None:
    small, unknown = Limit("student.onnx", 0.5, 0.28, "MB"), Limit("student.onnx", 0.3, None, "ms")
    verdict = accuracy(0.021, 0.014, 0.028, limits=[small, unknown])
    assert verdict.fits_budget is None
    assert verdict.headline.endswith("Whether it fits the budget was not measured.")
    assert "Not measured for student.onnx: the limit of 0.3 ms." in verdict.sentences
    over = accuracy(0.021, 0.014, 0.028, limits=[Limit("student.onnx", 0.1, 0.28, "MB"), unknown])
    assert over.fits_budget is False


@pytest.mark.parametrize(
    ("measured", "limit", "text"),
    [
        (0.3004, 0.3, "0.3004 ms, over the limit of 0.3 ms"),
        (0.30000001, 0.3, "0.30000001 ms, over the limit of 0.3 ms"),
        (0.29999, 0.3, "0.29999 ms, within the limit of 0.3 ms"),
        (0.3, 0.3, "0.3 ms, within the limit of 0.3 ms"),
        (1234.4, 1234.0, "1234.4 ms, over the limit of 1234 ms"),
    ],
)
def test_different_numbers_never_look_the_same(measured: float, limit: float, text: str) -> None:
    verdict = accuracy(0.021, 0.014, 0.028, limits=[Limit("x", limit, measured, "ms")])
    assert f"Measured for x: {text}." in verdict.sentences


def regression(teacher: float, student: float, gain: Difference) -> Verdict:
    return judge(
        metric="r2",
        scores={
            "teacher": {"r2": teacher, "rmse": 1.25},
            "alone": {"r2": 0.1, "rmse": 1.13},
            "distilled": {"r2": student, "rmse": 1.06},
        },
        differences={"distilled-alone": {"r2": Difference(0.1, 0.05, 0.15)}, "distilled-teacher": {"r2": gain}},
        parameters={"teacher": 100, "alone": 10, "distilled": 10},
        num_seeds=3,
        num_examples=1,
    )


def test_better_than_the_teacher_and_a_teacher_that_knows_nothing() -> None:
    better = accuracy(0.021, 0.014, 0.028, to_teacher=Difference(0.01, 0.002, 0.018))
    assert better.sentences[1].startswith("It exceeds the teacher's accuracy")
    verdict = regression(-0.1, 0.2, Difference(0.3, 0.2, 0.4))
    assert verdict.sentences[0] == (
        "The distilled student gains 0.100 R2 over the same student trained alone "
        f"(95 % interval 0.050 to 0.150, 3 seeds).{HELD}"
    )
    assert verdict.sentences[1].startswith("The teacher itself explains nothing")
    assert verdict.sentences[2] == (
        "Its typical error (RMSE, in the target's unit) is 1.06; trained alone 1.13, teacher 1.25."
    )
    assert "the 1 example of" in verdict.sentences[-1]


def test_nothing_is_said_to_keep_a_share_of_a_negative_number() -> None:
    for student in (-28.8, -0.01, 0.0):
        sentence = regression(0.92, student, Difference(student - 0.92, student - 1, student - 0.8)).sentences[1]
        assert sentence == f"Its R2 is {student:.3f}, the teacher's 0.920, at 10.0 % of its parameters."
    assert regression(0.5, 0.4, Difference(-0.1, -0.2, -0.05)).sentences[1].startswith("It keeps 80.0 % of")


def test_a_metric_of_which_less_is_better() -> None:
    verdict = judge(
        metric="nll",
        scores={"alone": {"nll": 0.5}, "distilled": {"nll": 0.4}, "teacher": {"nll": 0.3}},
        differences={
            "distilled-alone": {"nll": Difference(-0.1, -0.15, -0.05)},
            "distilled-teacher": {"nll": Difference(0.1, 0.05, 0.15)},
        },
        parameters={"distilled": None, "teacher": None},
        num_seeds=3,
        num_examples=10,
    )
    assert verdict.helped == "yes"
    assert verdict.headline == "Distillation helped: 0.100 of log loss better than the same student trained alone."
    assert (
        "is 0.100 of log loss better than the same student trained alone (95 % interval 0.0500 to 0.150"
        in (verdict.sentences[0])
    )
    assert verdict.sentences[1] == "Its log loss is 0.400, the teacher's 0.300."


def test_a_weak_teacher_is_a_warning() -> None:
    scores = {"teacher": {"accuracy": 0.7, "balanced_accuracy": 0.5, "r2": 0.1}, "alone": {"accuracy": 0.8}}

    def warned(change: Difference, **others: Any) -> list[str]:
        given = {"balanced": None, "r2": None, "num_classes": 2, **others}
        return weak_teacher("accuracy", scores, change, **given)

    assert warned(Difference(0.1, 0.05, 0.15), balanced=(0.6, 0.8)) == []
    (worse,) = warned(Difference(-0.1, -0.15, -0.05))
    assert "worse than the student trained alone (accuracy 70.0 % against 80.0 %)" in worse
    assert "may be chance" in warned(Difference(-0.1, -0.25, 0.05))[0]
    (guess,) = warned(Difference(0.1, 0.0, 0.2), balanced=(0.45, 0.55))
    assert "not clearly better than chance: balanced accuracy 50.0 %" in guess
    (nothing,) = warned(Difference(0.1, 0.0, 0.2), r2=(-0.05, 0.2))
    assert "not clearly better than always answering the mean" in nothing


def test_json_round_trip() -> None:
    verdict = accuracy(0.021, 0.014, 0.028, warnings=["The teacher is weak."])
    assert Verdict.from_json(verdict.to_json()) == verdict
    older = {name: value for name, value in verdict.to_json().items() if name != "warnings"}
    assert Verdict.from_json(older).warnings == ()


def test_worse_and_better_calibration_are_said_and_chance_is_not() -> None:
    scores = {
        "teacher": {"accuracy": 0.93, "ece": 0.04},
        "alone": {"accuracy": 0.75, "ece": 0.032},
        "distilled": {"accuracy": 0.79, "ece": 0.147},
    }
    worse = accuracy(0.021, 0.014, 0.028, scores=scores, others={"ece": Difference(0.115, 0.10, 0.13)})
    assert any("less well calibrated" in text and "0.147 against 0.032" in text for text in worse.sentences)
    better = accuracy(0.021, 0.014, 0.028, scores=scores, others={"ece": Difference(-0.1, -0.12, -0.08)})
    assert any("is better calibrated" in text for text in better.sentences)
    for silent in (
        accuracy(0.021, 0.014, 0.028, scores=scores, others={"ece": Difference(0.01, -0.01, 0.03)}),
        accuracy(0.021, 0.014, 0.028, scores=scores),
    ):
        assert not any("calibrated" in text for text in silent.sentences)
