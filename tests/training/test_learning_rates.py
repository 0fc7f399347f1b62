"""Schedules against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest

from potstill.core.errors import UsageError
from potstill.recipe.schema import Training
from potstill.training.schedule import learning_rate_at, progress_at

CASES = [
    ("cosine", 0.0, 0.0),
    ("cosine", 0.05, 0.1),  # half of a warm-up of 0.1 to a peak of 0.2
    ("cosine", 0.1, 0.2),
    ("cosine", 0.4, 0.2 * (1 + 0.5) / 2),  # a third of the way down: cos 60 degrees
    ("cosine", 0.55, 0.1),
    ("cosine", 1.0, 0.0),
    ("constant", 0.05, 0.1),
    ("constant", 0.7, 0.2),
    ("constant", 1.0, 0.2),
    ("one_cycle", 0.0, 0.008),
    ("one_cycle", 0.15, 0.104),  # halfway between 0.008 and 0.2
    ("one_cycle", 0.3, 0.2),
    ("one_cycle", 0.65, 0.1),
    ("one_cycle", 1.0, 0.0),
]


@pytest.mark.parametrize(("schedule", "progress", "expected"), CASES)
def test_schedule_matches_hand_computed_numbers(schedule: str, progress: float, expected: float) -> None:
    settings = Training(optimizer="sgd", schedule=schedule, warmup=0.1, learning_rate=0.2)
    assert learning_rate_at(progress, settings) == pytest.approx(expected, abs=1e-12)


def test_no_warm_up_starts_at_the_peak_and_defaults_follow_the_optimiser() -> None:
    assert learning_rate_at(0.0, Training(optimizer="sgd", learning_rate=None, warmup=0.0)) == pytest.approx(0.1)
    assert learning_rate_at(0.0, Training(warmup=0.0, optimizer="adamw", learning_rate=None)) == pytest.approx(0.002)


@pytest.mark.parametrize("progress", [-0.1, 1.1, math.nan])
def test_progress_outside_zero_to_one_is_refused(progress: float) -> None:
    with pytest.raises(UsageError, match="from 0 to 1"):
        learning_rate_at(progress, Training())


def test_progress_is_the_further_of_steps_and_time() -> None:
    assert progress_at(0, 10, 1e9, None) == pytest.approx(0.05)
    assert progress_at(4, 10, 30.0, 2.0) == pytest.approx(0.45)
    assert progress_at(4, 10, 90.0, 2.0) == pytest.approx(0.75)
    assert progress_at(4, 10, 900.0, 2.0) == 1.0
