"""What presets are made of: the labels' term and the teacher's, and what fits which task."""

from __future__ import annotations

from potstill.core.errors import UsageError
from potstill.objective.schedules import Schedule, Weight
from potstill.objective.term import Term
from potstill.tasks import task_of

FIRST_EPOCHS = 1 / 12
"""Share of training over which papers on CIFAR raise a weight: 20 of 240 epochs."""


def hard(task: str, weight: Weight = 1.0) -> Term:
    """Return the term on the labels."""
    return Term(task_of(task).hard, weight)


def soft(task: str, weight: Weight = 1.0, temperature: float = 4.0) -> Term:
    """Return the term on the teacher's answers."""
    asked = task_of(task)
    return Term(asked.soft, weight, temperature=temperature) if asked.softens else Term(asked.soft, weight)


def hard_and_soft(task: str, temperature: float = 4.0) -> list[Term]:
    """Return both terms of classic distillation, with its weights."""
    weights = task_of(task).weights
    return [hard(task, weights[0]), soft(task, weights[1], temperature)]


def classes_only(task: str, name: str) -> None:
    """Refuse a preset on class scores for any other task.

    Raises:
        UsageError: the task is not classification.

    """
    if not task_of(task).exclusive:
        raise UsageError(f"The preset {name!r} works on the scores of classes, and the task is {task}. Use 'kd'.")


def rising(weight: float) -> Schedule:
    """Return a weight that rises from 0 over the first twelfth of training."""
    return Schedule("linear", 0.0, weight, until=FIRST_EPOCHS)


def only_before(weight: float, moment: float) -> Schedule:
    """Return a weight that falls to 0 at a moment of training."""
    return Schedule("linear", weight, 0.0, since=moment, until=moment)


def only_after(weight: float, moment: float) -> Schedule:
    """Return a weight that is 0 until a moment of training."""
    return Schedule("linear", 0.0, weight, since=moment, until=moment)
