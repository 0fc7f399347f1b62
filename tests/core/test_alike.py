"""Numbers that are the same but for rounding."""

from __future__ import annotations

import numpy as np
import pytest

from potstill.core.alike import apart

NUMBERS = np.array([[1.0, -2.0], [4.0, 9.0]])  # a standard deviation of 4.062


@pytest.mark.parametrize(
    ("other", "same"),
    [
        (NUMBERS + 0.0406, True),
        (NUMBERS + 0.0407, False),
        (NUMBERS.astype(np.float16), True),
        (NUMBERS[:1], False),
        (np.array([[1.0, -2.0], [4.0, np.nan]]), False),
        (np.array([[1.0, -2.0], [4.0, np.inf]]), False),
    ],
)
def test_a_share_of_the_spread_decides(other: np.ndarray, same: bool) -> None:
    assert (apart(NUMBERS, other) <= 0.01) is same


def test_what_is_not_finite_must_be_the_same_and_no_spread_counts_as_one() -> None:
    masked = np.array([-np.inf, np.nan, 3.0, 3.0])
    assert apart(masked, np.array([-np.inf, np.nan, 3.009, 3.0])) <= 0.01
    assert apart(masked, -masked) > 0.01
    assert apart(masked, np.array([-np.inf, np.nan, 3.011, 3.0])) > 0.01
    assert apart(np.array([]), np.array([])) <= 0.01
