"""Every metric: what values it can have, and what it is called. Light: commands that only print read it too."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import Literal

from potstill.core.text import kind_and_column


@dataclass(frozen=True)
class Kind:
    """One metric.

    Attributes:
        label: what it is called in a heading.
        word: what it is called inside a sentence.
        meaning: what it is, in a few words.
        low: smallest possible value.
        high: largest possible value.
        better: which way is good.
        rate: whether it is a share of examples (or an average of such shares over classes).
        percent: whether it is said as a percentage, and its differences as points.
        of_teacher: whether a share of the teacher's means something.
        compares: whether it compares with the teacher, and is of no worth in itself.
        hub: what the Hugging Face Hub calls it, where that is another name.

    """

    label: str
    word: str
    meaning: str
    low: float = 0.0
    high: float = 1.0
    better: Literal["higher", "lower", "none"] = "higher"
    rate: bool = False
    percent: bool = False
    of_teacher: bool = False
    compares: bool = False
    hub: str = ""

    @property
    def unit(self) -> Literal["percent", "number"]:
        """How a value is drawn."""
        return "percent" if self.percent else "number"

    @property
    def higher_is_better(self) -> bool:
        """Which way is good."""
        return self.better == "higher"


def _share(label: str, word: str, meaning: str, *, hub: str = "") -> Kind:
    return Kind(label, word, meaning, rate=True, percent=True, of_teacher=True, hub=hub)


def _error(label: str, word: str, meaning: str, high: float = inf, *, percent: bool = False) -> Kind:
    return Kind(label, word, meaning, high=high, better="lower", percent=percent)


def _beside(label: str, word: str, meaning: str, *, rate: bool = False) -> Kind:
    """Return a metric of two models: a share of samples, or a divergence."""
    if rate:
        return Kind(label, word, meaning, rate=True, percent=True, compares=True)
    return Kind(label, word, meaning, high=inf, better="lower", compares=True)


KINDS = {
    "accuracy": _share("Accuracy", "accuracy", "share of samples answered correctly"),
    "balanced_accuracy": _share("Balanced accuracy", "balanced accuracy", "accuracy averaged over the classes"),
    "auc": Kind("AUC", "AUC", "how well each class is ordered before the rest, averaged over classes", rate=True),
    "macro_f1": _share("Macro F1", "macro F1", "F1 score averaged over classes, each counted equally", hub="f1"),
    "micro_f1": _share("Micro F1", "micro F1", "F1 score of all labels of all samples together"),
    "map": Kind("Mean average precision", "mean average precision", "how well each class is ranked", rate=True),
    "nll": _error("Log loss", "log loss", "negative log likelihood of the right class, in nats"),
    "nll_calibrated": _error("Log loss, calibrated", "calibrated log loss", "with its own temperature"),
    "brier": _error("Brier score", "Brier score", "squared error of the predicted probabilities", 2.0),
    "ece": _error(
        "Calibration error", "calibration error", "gap between stated confidence and actual accuracy", 1.0, percent=True
    ),
    "ece_calibrated": _error(
        "Calibration error, calibrated", "calibrated calibration error", "with its own temperature", 1.0, percent=True
    ),
    "agreement": _beside("Agreement with teacher", "agreement", "share answered like the teacher", rate=True),
    "kl_to_teacher": _beside("Divergence from teacher", "divergence", "Kullback-Leibler divergence, in nats"),
    "r2": Kind("R²", "R2", "share of the variance that is explained", low=-inf, of_teacher=True, hub="r_squared"),
    "rmse": _error("Root mean squared error", "RMSE", "in units of the target"),
    "mae": _error("Mean absolute error", "mean absolute error", "in units of the target"),
}
"""Every metric of an evaluation, in the order of tables."""


def about(name: str) -> Kind:
    """Return what is known of a metric; that of one column, ``rmse_2``, is of its own kind."""
    return KINDS[kind_and_column(name)[0]]


def word(name: str) -> str:
    """Return what a metric is called inside a sentence; an unknown one has its own name."""
    kind, column = kind_and_column(name)
    return (KINDS[kind].word if kind in KINDS else kind) + ("" if column is None else f" of column {column}")


def is_percent(name: str) -> bool:
    """Return whether a metric is said as a percentage; an unknown one is not."""
    return name in KINDS and KINDS[name].percent


def unbounded(name: str) -> bool:
    """Return whether a metric is an error that can have any size; an unknown one is not."""
    known = KINDS.get(kind_and_column(name)[0])
    return known is not None and known.high == inf
