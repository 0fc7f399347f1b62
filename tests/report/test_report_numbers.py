from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest

from potstill.evaluation.label_values import value_scores
from potstill.evaluation.verdict import Difference, judge
from potstill.report import numbers
from potstill.report.label_tables import value_scores as label_values_table

THIN = "\u202f"


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("accuracy", 0.9134, f"91.3{THIN}%"),
        ("accuracy", 1.0, f"100.0{THIN}%"),
        ("nll", 0.0153, "0.0153"),
        ("r2", -0.25, "\u22120.250"),
        ("rmse", 12345.6, "12,346"),
        ("kl_to_teacher", 0.0, "0"),
        ("accuracy", math.nan, "\u2013"),
        ("accuracy", None, "\u2013"),
        ("made_up", 0.5, "0.500"),
    ],
)
def test_a_score_is_shown_with_its_unit(name: str, value: float | None, text: str) -> None:
    assert numbers.score(name, value) == text


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("accuracy", 0.027, f"+2.7{THIN}points"),
        ("accuracy", -0.0341, f"\u22123.4{THIN}points"),
        ("r2", 0.064, "+0.064"),
        ("rmse", -1.259, "\u22121.26"),
    ],
)
def test_a_difference_carries_its_sign(name: str, value: float, text: str) -> None:
    assert numbers.difference(name, value, value, value)[0] == text


@pytest.mark.parametrize(
    ("metric", "numbers_of_it", "text", "interval"),
    [
        ("accuracy", (-0.0065, -0.0215, 0.0085), f"-0.65{THIN}points", "-2.15 to +0.85"),
        ("accuracy", (0.0212, -0.0003, 0.0405), f"+2.12{THIN}points", "-0.03 to +4.05"),
        ("r2", (0.0004, -0.0021, 0.0031), "+0.0004", "-0.0021 to +0.0031"),
        ("rmse", (-39.277, -512.4, 3.4567), "-39.3", "-512 to +3.46"),
    ],
)
def test_page_and_verdict_write_a_difference_with_the_same_digits(
    metric: str, numbers_of_it: tuple[float, float, float], text: str, interval: str
) -> None:
    shown = numbers.difference(metric, *numbers_of_it)
    assert [part.replace(numbers.MINUS, "-") for part in shown] == [text, interval]
    found = Difference(*numbers_of_it)
    scores = {name: {metric: 0.5, "rmse": 1.0} for name in ("alone", "distilled")}
    said = judge(
        metric=metric,
        scores=scores,
        differences={"distilled-alone": {metric: found}},
        parameters={"distilled": 10},
        num_seeds=3,
        num_examples=100,
    ).sentences[0]
    ends = interval.replace("+", "").split(" to ")
    # Of an error a smaller one is the gain, so the verdict turns the signs round.
    said_ends = ends if metric != "rmse" else ["-3.46", "512"]
    assert f"{text.lstrip('+-').split(THIN)[0]} " in said
    assert f"(95 % interval {' to '.join(said_ends)}, 3 seeds)" in said


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (9999, "9,999"),
        (78_042, f"78.0{THIN}k"),
        (1_284_906, f"1.28{THIN}M"),
        (3.1e9, f"3.10{THIN}G"),
    ],
)
def test_counts_are_short(value: float, text: str) -> None:
    assert numbers.count(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.001, f"0{THIN}s"),
        (3.14, f"3.1{THIN}s"),
        (59.4, f"59{THIN}s"),
        (59.7, f"1{THIN}min 00{THIN}s"),
        (412, f"6{THIN}min 52{THIN}s"),
        (3661, f"1{THIN}h 01{THIN}min"),
        (None, "\u2013"),
    ],
)
def test_durations_are_words(value: float | None, text: str) -> None:
    assert numbers.seconds(value) == text


def test_sizes_are_millions_of_bytes() -> None:
    assert numbers.megabytes(331_204) == f"0.331{THIN}MB"
    assert numbers.megabytes(13_400) == f"13.4{THIN}kB"
    assert numbers.megabytes(None) == "\u2013"


@pytest.mark.parametrize("value", [True, "1", None, math.inf, math.nan])
def test_only_finite_numbers_are_numbers(value: object) -> None:
    assert numbers.finite(value) is None


def test_a_small_column_is_not_rounded_away_beside_a_large_one() -> None:
    targets = np.array([[1e9, 1e-3], [3e9, 4e-3], [2e9, 2e-3]])
    splits = {"train": value_scores(np.add(targets, [5e8, 2e-4]), targets)}
    rows = {row.label: row.cells[0].value for row in label_values_table(SimpleNamespace(splits=splits)).rows}  # type: ignore[arg-type]
    assert rows["Mean error"] == "5.00e+08, 0.000200"
    assert rows["Root mean squared error, column 1"] == "5.00e+08"
    assert rows["Root mean squared error, column 2"] == "0.000200"
