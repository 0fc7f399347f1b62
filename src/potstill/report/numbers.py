"""Numbers as a person reads them: percentages, sizes, times, and what each metric is called."""

from __future__ import annotations

import math
from dataclasses import replace

from potstill.core.text import kind_and_column
from potstill.evaluation import shown
from potstill.tasks.kinds import KINDS, Kind, is_percent

THIN = "\u202f"  # narrow no-break space between a number and its unit
MINUS = "\u2212"
DASH = "\u2013"
TIMES = "\u00d7"

MODEL_NAMES = {
    "teacher": "Teacher",
    "alone": "Student alone",
    "pseudo": "On teacher's labels",
    "distilled": "Student distilled",
}
MODELS = ("teacher", "alone", "pseudo", "distilled")


def short_name(name: str) -> str:
    """Return what a model is called beside a mark of a chart."""
    return "teacher's labels" if name == "pseudo" else name


def model_name(name: str) -> str:
    """Return what a model is called on the page."""
    return MODEL_NAMES.get(name, name.capitalize())


def metric(name: str) -> Kind:
    """Return how the metric ``name`` is shown; an unknown one is shown under its own name."""
    kind, column = kind_and_column(name)
    if kind not in KINDS:
        return Kind(name.replace("_", " ").capitalize(), name, "", better="none")
    if column is not None:
        return replace(KINDS[kind], label=f"{KINDS[kind].label}, column {column}", meaning="in units of this column")
    return KINDS[kind]


def in_prose(name: str) -> str:
    """Return what the metric ``name`` is called inside a sentence: ``accuracy``, ``R²``."""
    label = metric(name).label
    return label if label[1:2].isupper() or not label[1:].isalpha() else label.lower()


def finite(value: object) -> float | None:
    """Return ``value`` as a finite float, or None when it is no such number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def significant(value: float | None, digits: int = 3) -> str:
    """Return ``value`` with about ``digits`` significant digits, without an exponent where it can be avoided."""
    if value is None or not math.isfinite(value):
        return DASH
    return shown.significant(value, digits).replace("-", MINUS)


def score(name: str, value: float | None, *, unit: bool = True) -> str:
    """Return one value of the metric ``name``: ``91.3 %`` or ``0.412``."""
    if value is None or not math.isfinite(value):
        return DASH
    percent = f"{THIN}%" if unit and is_percent(name) else ""
    return f"{shown.level(name, value)}{percent}".replace("-", MINUS)


def difference(name: str, value: float, low: float, high: float) -> tuple[str, str]:
    """Return a signed difference of two values of ``name`` and its interval: ``+1.4 points``, ``+0.2 to +2.6``."""
    texts = [
        (DASH if not math.isfinite(number) else text if text.startswith("-") else f"+{text}").replace("-", MINUS)
        for number, text in zip((value, low, high), shown.change(name, value, low, high), strict=True)
    ]
    return f"{texts[0]}{THIN + 'points' if is_percent(name) else ''}", f"{texts[1]} to {texts[2]}"


def interval(name: str, bounds: tuple[float, float] | None) -> str:
    """Return ``90.1 to 92.4`` for the two ends of an interval of ``name``, without units."""
    if bounds is None:
        return ""
    return f"{score(name, bounds[0], unit=False)} to {score(name, bounds[1], unit=False)}"


def count(value: float | None) -> str:
    """Return a large count in short: ``272 k``, ``1.28 M``."""
    if value is None:
        return DASH
    for limit, suffix in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if value >= limit:
            scale = 1e3 if suffix == "k" else limit
            return f"{significant(value / scale)}{THIN}{suffix}"
    return f"{value:,.0f}"


def megabytes(num_bytes: float | None) -> str:
    """Return a size in megabytes (10⁶ bytes), a small one in kilobytes: ``0.29 MB``, ``13.4 kB``."""
    if num_bytes is None:
        return DASH
    small = num_bytes < 1e5
    return f"{significant(num_bytes / (1e3 if small else 1e6))}{THIN}{'kB' if small else 'MB'}"


def milliseconds(value: float | None) -> str:
    """Return a latency: ``0.42 ms``."""
    return DASH if value is None else f"{significant(value)}{THIN}ms"


def plain(value: float | None) -> str:
    """Return a number as a person typed it: ``40``, ``0.25``."""
    return DASH if value is None else f"{value:g}"


def seconds(value: float | None) -> str:
    """Return a duration in words: ``42 s``, ``3 min 20 s``, ``1 h 05 min``."""
    if value is None:
        return DASH
    if value < 10:
        return f"{significant(value, 2) if value >= 0.01 else '0'}{THIN}s"
    whole = round(value)
    if whole < 60:
        return f"{whole}{THIN}s"
    if whole < 3600:
        return f"{whole // 60}{THIN}min {whole % 60:02d}{THIN}s"
    return f"{whole // 3600}{THIN}h {whole % 3600 // 60:02d}{THIN}min"


def ratio(large: float | None, small: float | None) -> float | None:
    """Return how many times ``small`` fits into ``large``, or None when that means nothing."""
    return large / small if large and small else None
