"""The tasks and what each can be judged by: all that a recipe needs, without anything heavy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

TaskName = Literal["classification", "multilabel", "regression"]
MetricName = Literal["accuracy", "balanced_accuracy", "auc", "macro_f1", "micro_f1", "map", "nll", "r2", "rmse", "mae"]
METRICS: Mapping[TaskName, tuple[MetricName, ...]] = {
    "classification": ("accuracy", "balanced_accuracy", "auc", "macro_f1", "nll"),
    "multilabel": ("map", "macro_f1", "micro_f1", "nll"),
    "regression": ("r2", "rmse", "mae"),
}
"""What each task can be judged by; the first is its headline."""


def headline(task: str) -> str:
    """Return the metric that decides where nothing else was chosen; accuracy for what is no task of ours."""
    return next((metrics[0] for name, metrics in METRICS.items() if name == task), "accuracy")
