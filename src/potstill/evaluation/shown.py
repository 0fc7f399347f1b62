"""Scores and differences as text: one number has the same digits in the verdict, the report and the terminal."""

from __future__ import annotations

import math

from potstill.tasks.kinds import is_percent, unbounded

SMALL = 0.0095  # a difference of a percentage below this has two decimals
MOST_DECIMALS = 6


def significant(value: float, digits: int = 3) -> str:
    """Return a finite number with about ``digits`` significant digits, without an exponent where it can be avoided."""
    size = abs(value)
    if size == 0:
        return "0"
    if size >= 1e7 or size < 1e-4:
        return f"{value:.{digits - 1}e}"
    return f"{value:,.{max(0, digits - 1 - math.floor(math.log10(size)))}f}"


def level(metric: str, value: float) -> str:
    """Return one finite value of a metric, a percentage without its sign: ``91.3``, ``0.412``, ``39,277``."""
    if is_percent(metric):
        return f"{100 * value:.1f}"
    bounded = not unbounded(metric)
    return f"{value:.3f}" if bounded and (value == 0 or 1e-3 <= abs(value) < 100) else significant(value)


ROUNDING = 1e-14
"""Differences below are those of sums in another order."""


def change(metric: str, value: float, low: float, high: float) -> tuple[str, str, str]:
    """Return a difference and the ends of its interval, all with the same number of decimals, points without a unit.

    No number that is not 0 looks like 0: whether 0 lies inside the interval is the point. Differences of errors have
    three significant digits each.
    """
    numbers = [0.0 if abs(number) < ROUNDING else number for number in (value, low, high)]
    if unbounded(metric):
        return _three([significant(number) if math.isfinite(number) else str(number) for number in numbers])
    percent = is_percent(metric)
    value = numbers[0]
    scaled = [100 * number if percent else number for number in numbers]
    decimals = 3 if not percent else 1 if abs(value) >= SMALL or value == 0 else 2
    while decimals < MOST_DECIMALS and any(number and not float(f"{number:.{decimals}f}") for number in scaled):
        decimals += 1
    return _three([f"{number:.{decimals}f}" for number in scaled])


def _three(texts: list[str]) -> tuple[str, str, str]:
    return texts[0], texts[1], texts[2]
