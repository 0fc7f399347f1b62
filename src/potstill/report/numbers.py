"""Numbers as a person reads them: percentages, sizes, times, and what each metric is called."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from potstill.core.text import kind_and_column
from potstill.evaluation import shown

THIN = "\u202f"  # narrow no-break space between a number and its unit
MINUS = "\u2212"
DASH = "\u2013"
TIMES = "\u00d7"

MODEL_NAMES = {
    "teacher": "Teacher",
    "alone": "Student alone",
    "pseudo": "Student on teacher's labels",
    "distilled": "Student distilled",
}
MODELS = ("teacher", "alone", "pseudo", "distilled")


def model_name(name: str) -> str:
    """Return what a model is called on the page."""
    return MODEL_NAMES.get(name, name.capitalize())


@dataclass(frozen=True)
class Metric:
    """How one metric is named and shown."""

    label: str
    kind: Literal["percent", "number"] = "number"
    better: Literal["higher", "lower", "none"] = "higher"
    meaning: str = ""


_METRICS = {
    "accuracy": Metric("Accuracy", "percent", "higher", "share of samples answered correctly"),
    "balanced_accuracy": Metric("Balanced accuracy", "percent", "higher", "accuracy averaged over the classes"),
    "auc": Metric("AUC", "number", "higher", "how well each class is ordered before the rest, averaged over classes"),
    "macro_f1": Metric("Macro F1", "percent", "higher", "F1 score averaged over classes, each counted equally"),
    "agreement": Metric("Agreement with teacher", "percent", "higher", "share of samples answered like the teacher"),
    "nll": Metric("Log loss", "number", "lower", "negative log likelihood of the right class, in nats"),
    "brier": Metric("Brier score", "number", "lower", "squared error of the predicted probabilities"),
    "ece": Metric("Calibration error", "percent", "lower", "gap between stated confidence and actual accuracy"),
    "nll_calibrated": Metric("Log loss, calibrated", "number", "lower", "with its own temperature"),
    "ece_calibrated": Metric("Calibration error, calibrated", "percent", "lower", "with its own temperature"),
    "kl_to_teacher": Metric("Divergence from teacher", "number", "lower", "Kullback-Leibler divergence, in nats"),
    "r2": Metric("R²", "number", "higher", "share of the variance that is explained"),
    "mae": Metric("Mean absolute error", "number", "lower", "in units of the target"),
    "rmse": Metric("Root mean squared error", "number", "lower", "in units of the target"),
}


def metric(name: str) -> Metric:
    """Return how the metric ``name`` is shown; an unknown one is shown under its own name."""
    kind, column = kind_and_column(name)
    if column is not None and kind in _METRICS:
        return Metric(f"{_METRICS[kind].label}, column {column}", "number", "lower", "in units of this column")
    return _METRICS.get(name) or Metric(name.replace("_", " ").capitalize(), "number", "none")


def in_prose(name: str) -> str:
    """Return what the metric ``name`` is called inside a sentence: ``accuracy``, ``R²``."""
    label = metric(name).label
    return label if label[1:2].isupper() or not label[1:].isalpha() else label.lower()


def main_metric(task: str) -> str:
    """Return the name of the metric that decides for ``task`` where nothing else was chosen."""
    return "r2" if task == "regression" else "accuracy"


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
    percent = f"{THIN}%" if unit and name in shown.PERCENT else ""
    return f"{shown.level(name, value)}{percent}".replace("-", MINUS)


def difference(name: str, value: float, low: float, high: float) -> tuple[str, str]:
    """Return a signed difference of two values of ``name`` and its interval: ``+1.4 points``, ``+0.2 to +2.6``."""
    texts = [
        (DASH if not math.isfinite(number) else text if text.startswith("-") else f"+{text}").replace("-", MINUS)
        for number, text in zip((value, low, high), shown.change(name, value, low, high), strict=True)
    ]
    return f"{texts[0]}{THIN + 'points' if name in shown.PERCENT else ''}", f"{texts[1]} to {texts[2]}"


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
