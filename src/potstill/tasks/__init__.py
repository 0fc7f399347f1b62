"""What a model is to answer: one file a task, which says all that the other rooms need to know of it.

Importing this imports nothing heavy; asking for a task does.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from potstill.core.errors import UsageError, did_you_mean
from potstill.tasks.names import METRICS, MetricName, TaskName, headline

if TYPE_CHECKING:
    from potstill.tasks.base import Task

__all__ = ["METRICS", "MetricName", "TaskName", "headline", "task_of"]


@cache
def task_of(name: str) -> Task:
    """Return everything about a task.

    Raises:
        UsageError: there is none of that name.

    """
    from potstill.tasks.classification import CLASSIFICATION
    from potstill.tasks.multilabel import MULTILABEL
    from potstill.tasks.regression import REGRESSION

    every = {task.name: task for task in (CLASSIFICATION, MULTILABEL, REGRESSION)}
    if name not in every:
        raise UsageError(f"Unknown task={name!r}.{did_you_mean(name, every)}")
    return every[name]
