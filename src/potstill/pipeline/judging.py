"""The metric of a recipe, as what chooses checkpoints, rates and the exported seed, and what the verdict is about."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from potstill.core.errors import UsageError
from potstill.data import Data
from potstill.evaluation.intervals import interval, spare
from potstill.export import Loss
from potstill.recipe.schema import Recipe
from potstill.tasks import task_of
from potstill.tasks.base import Measure
from potstill.tasks.delete_one import Jackknife
from potstill.tasks.kinds import KINDS
from potstill.tasks.metrics import PER_COLUMN
from potstill.training import Metric, still_rises
from potstill.training.history import read

Array = np.ndarray[Any, Any]


def chosen_by(recipe: Recipe, data: Data) -> Metric | None:
    """Return what chooses checkpoints; None for accuracy and R2, which training computes by itself.

    Errors of a regression are in the target's units, although models learn and answer in standard ones.
    """
    name = recipe.other_metric
    if name is None:
        return None
    measure, scale = _measure(recipe, name), data.scale

    def score(outputs: Array, targets: Array) -> float:
        measured = measure(outputs, targets)
        return float("nan") if measured is None else measured.value

    if scale is None:
        return Metric(name, score, higher_is_better(recipe))
    own = scale.original

    def in_own_units(outputs: Array, targets: Array) -> float:
        return score(own(outputs.reshape(targets.shape)), own(targets))

    return Metric(name, in_own_units, higher_is_better(recipe))


def _measure(recipe: Recipe, name: str) -> Measure:
    """Return a metric of raw outputs; where it is one of adjusted ones, they are adjusted on the same samples."""
    asked = task_of(recipe.task)
    if name not in asked.scores.adjusted or asked.calibrate is None:
        return asked.scores.measures(None, 1)[name]
    fit, measure = asked.calibrate, asked.scores.adjusted[name]

    def adjusted(outputs: Array, targets: Array) -> Jackknife | None:
        kept = fit(outputs, targets).to_json()[asked.keeps]
        return measure(asked.scores.adjust(outputs, kept), targets)

    return adjusted


def check_metric(recipe: Recipe, data: Data) -> None:
    """Refuse to judge several target columns by their average error, which has no unit.

    Raises:
        UsageError: the recipe's metric is an error, and the data has more than one target column.

    """
    if recipe.judged_by in PER_COLUMN and data.num_outputs > 1:
        raise UsageError(
            f"metric: {recipe.judged_by} of {data.num_outputs} target columns would be an average over their units. "
            "Use metric: r2, which has none; each column's error is told beside it."
        )


def higher_is_better(recipe: Recipe) -> bool:
    """Return which way the recipe's metric is good."""
    return KINDS[recipe.judged_by].higher_is_better


def is_share(recipe: Recipe) -> bool:
    """Return whether the recipe's metric is a share of samples, or an average of such shares."""
    return KINDS[recipe.judged_by].rate


def loss_of(recipe: Recipe, torch: Array, file: Array, targets: Array) -> Loss | None:
    """Return what a file loses of the recipe's metric; None where it is judged by accuracy or R2.

    So it is where the metric is the task's own, has no value, or is an error, which no limit in shares fits.

    Args:
        recipe: of the run.
        torch: (n, c) the student's outputs.
        file: (n, c) the file's.
        targets: (n,) or (n, c).

    """
    name = recipe.other_metric
    if name is None or not KINDS[name].rate:
        return None
    measure = _measure(recipe, name)
    before, after = measure(torch, targets), measure(file, targets)
    if before is None or after is None:
        return None
    change = before.deviations - after.deviations
    found = interval(np.array([before.value - after.value]), change[None], extra=spare(len(targets)))
    return Loss(KINDS[name].word, before.value, after.value, found.low, found.high)


def rises_still(recipe: Recipe, history: Path, validation: int) -> bool:
    """Return whether a training was still improving at its end.

    Args:
        recipe: of the run.
        history: the training's ``history.jsonl``.
        validation: number of validation samples.

    """
    kind = KINDS[recipe.judged_by]
    return still_rises(
        [row["validation_metric"] for row in read(history)],
        higher_is_better=kind.higher_is_better,
        perfect=kind.high if kind.higher_is_better else kind.low,
        samples=validation if kind.rate else None,
    )
