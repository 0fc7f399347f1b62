"""What a model is to answer: one file a task, which says all that the other rooms need to know of it.

Names and metrics are here because a recipe is checked against them before anything heavy is imported.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Literal

from potstill.core.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    from potstill.tasks.base import Task

TaskName = Literal["classification", "regression"]
MetricName = Literal["accuracy", "balanced_accuracy", "auc", "macro_f1", "nll", "r2", "rmse", "mae"]
METRICS: Mapping[TaskName, tuple[MetricName, ...]] = {
    "classification": ("accuracy", "balanced_accuracy", "auc", "macro_f1", "nll"),
    "regression": ("r2", "rmse", "mae"),
}
"""What each task can be judged by; the first is its headline."""


def headline(task: str) -> str:
    """Return the metric that decides where nothing else was chosen; accuracy for what is no task of ours."""
    return next((metrics[0] for name, metrics in METRICS.items() if name == task), "accuracy")


@cache
def task_of(name: str) -> Task:
    """Return everything about a task.

    Raises:
        UsageError: there is none of that name.

    """
    from potstill.tasks.classification import CLASSIFICATION
    from potstill.tasks.regression import REGRESSION

    every = {task.name: task for task in (CLASSIFICATION, REGRESSION)}
    if name not in every:
        raise UsageError(f"Unknown task={name!r}.{did_you_mean(name, every)}")
    return every[name]
