"""What the verdict says, word for word."""

from __future__ import annotations

from typing import Any

import pytest

from potstill.evaluation import Difference, Limit, Verdict
from potstill.evaluation.verdict import judge


def accuracy(value: float, low: float, high: float, *, seeds: int = 3, **changes: Any) -> Verdict:
    given: dict[str, Any] = {
        "metric": "accuracy",
        "scores": {"teacher": {"accuracy": 0.934}, "alone": {"accuracy": 0.891}, "distilled": {"accuracy": 0.912}},
        "to_alone": Difference(value, low, high),
        "to_teacher": Difference(-0.022, -0.03, -0.014),
        "parameters": {"teacher": 1_000_000, "alone": 32_000, "distilled": 32_000},
        "num_seeds": seeds,
        "num_examples": 10_000,
    }
    return judge(**{**given, **changes})


def test_helped() -> None:
    verdict = accuracy(0.021, 0.014, 0.028)
    assert verdict.helped == "yes"
    assert verdict.fits_budget is None
    assert verdict.headline == ("Distillation helped: 2.1 points of accuracy more than the same student trained alone.")
    assert verdict.sentences == (
        "The distilled student gains 2.1 points of accuracy over the same student trained alone "
        "(95 % interval 1.4 to 2.8, 3 seeds).",
        "It keeps 97.6 % of the teacher's accuracy (91.2 % against 93.4 %) at 3.2 % of its parameters.",
        "All numbers are from the 10,000 examples of the test split, read once; checkpoints were chosen on the "
        "validation split.",
    )


@pytest.mark.parametrize("seeds", [1, 2])
def test_with_few_seeds_it_is_about_these_weights(seeds: int) -> None:
    verdict = accuracy(0.021, 0.014, 0.028, seeds=seeds)
    assert verdict.helped == "yes"
    assert verdict.headline == "This distilled student is 2.1 points of accuracy better than this one trained alone."
    assert any("these trained weights only" in sentence for sentence in verdict.sentences)
    assert not any("these trained weights only" in s for s in accuracy(0.021, 0.014, 0.028, seeds=3).sentences)


def test_hurt() -> None:
    verdict = accuracy(-0.012, -0.02, -0.004)
    assert verdict.helped == "no"
    assert "did not help: the student is 1.2 points of accuracy worse" in verdict.headline
    assert "loses 1.2 points of accuracy against the same student trained alone" in verdict.sentences[0]


def test_no_gain_worth_having() -> None:
    verdict = accuracy(0.001, -0.002, 0.004)
    assert verdict.helped == "no"
    assert verdict.headline == (
        "Distillation did not help: the gain over the same student trained alone is at most 0.40 points of accuracy."
    )
    assert "differs by +0.10 points" in verdict.sentences[0]


def test_not_enough_data() -> None:
    verdict = accuracy(0.01, -0.02, 0.04)
    assert verdict.helped == "unclear"
    assert verdict.headline == "Not enough data to tell whether distillation helped."
    assert "may be chance" in verdict.sentences[0]
    assert "(95 % interval -2.0 to 4.0, 3 seeds)" in verdict.sentences[0]


def test_an_interval_that_touches_zero_is_not_a_yes() -> None:
    assert accuracy(0.01, 0.0, 0.02).helped == "unclear"


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


def test_better_than_the_teacher_and_a_teacher_that_knows_nothing() -> None:
    better = accuracy(0.021, 0.014, 0.028, to_teacher=Difference(0.01, 0.002, 0.018))
    assert better.sentences[1].startswith("It exceeds the teacher's accuracy")
    regression = judge(
        metric="r2",
        scores={
            "teacher": {"r2": -0.1, "rmse": 1.25},
            "alone": {"r2": 0.1, "rmse": 1.13},
            "distilled": {"r2": 0.2, "rmse": 1.06},
        },
        to_alone=Difference(0.1, 0.05, 0.15),
        to_teacher=Difference(0.3, 0.2, 0.4),
        parameters={"teacher": 100, "alone": 10, "distilled": 10},
        num_seeds=3,
        num_examples=1,
    )
    assert regression.sentences[0] == (
        "The distilled student gains 0.100 R2 over the same student trained alone "
        "(95 % interval 0.050 to 0.150, 3 seeds)."
    )
    assert regression.sentences[1].startswith("The teacher itself explains nothing")
    assert regression.sentences[2] == (
        "Its typical error (RMSE, in the target's unit) is 1.06; trained alone 1.13, teacher 1.25."
    )
    assert "the 1 example of" in regression.sentences[-1]


def test_json_round_trip() -> None:
    verdict = accuracy(0.021, 0.014, 0.028)
    assert Verdict.from_json(verdict.to_json()) == verdict


def test_worse_and_better_calibration_are_said_and_chance_is_not() -> None:
    scores = {
        "teacher": {"accuracy": 0.93, "ece": 0.04},
        "alone": {"accuracy": 0.75, "ece": 0.032},
        "distilled": {"accuracy": 0.79, "ece": 0.147},
    }
    worse = accuracy(0.021, 0.014, 0.028, scores=scores, calibration=Difference(0.115, 0.10, 0.13))
    assert any("less well calibrated" in text and "0.147 against 0.032" in text for text in worse.sentences)
    better = accuracy(0.021, 0.014, 0.028, scores=scores, calibration=Difference(-0.1, -0.12, -0.08))
    assert any("is better calibrated" in text for text in better.sentences)
    for silent in (
        accuracy(0.021, 0.014, 0.028, scores=scores, calibration=Difference(0.01, -0.01, 0.03)),
        accuracy(0.021, 0.014, 0.028, scores=scores),
    ):
        assert not any("calibrated" in text for text in silent.sentences)
