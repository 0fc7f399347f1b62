"""Regression: answers are numbers in the target's units. Shape legend: n samples, k columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal
from functools import partial

import numpy as np
import torch
from torch import Tensor

from potstill.core.errors import DataError
from potstill.core.scale import TargetScale
from potstill.losses import mse, teacher_mse
from potstill.tasks import delete_one, metrics
from potstill.tasks.arrays import Array, Floats, Ints, checked_values
from potstill.tasks.base import Apart, Finding, Measure, Scores, TargetChecks, Targets, Task

_NUMBERS = (bool, int, float, Decimal, np.number)


def _read(labels: Array, _: str) -> Array:
    """Return regression targets with NaN where one is masked or None."""
    if isinstance(labels, np.ma.MaskedArray):
        values = (
            np.ma.getdata(labels).astype(np.float64) if labels.dtype.kind in "biuf" else np.ma.getdata(labels).copy()
        )
        values[np.ma.getmaskarray(labels)] = np.nan if values.dtype.kind == "f" else None
        return values
    if labels.dtype == object and all(value is None or isinstance(value, _NUMBERS) for value in labels.ravel()):
        return np.array([np.nan if value is None else float(value) for value in labels.ravel()]).reshape(labels.shape)
    return labels


def _strata(labels: Array) -> Ints:
    return np.zeros(len(labels), dtype=np.int64)


def _number(labels: Mapping[str, Array], _: Sequence[str] | None, __: Sequence[str] | None) -> Targets:
    """Return float64 targets, so that no difference is lost before they are standardised."""
    targets = {split: _values(array, split) for split, array in labels.items()}
    widths = {split: 1 if array.ndim == 1 else array.shape[1] for split, array in targets.items()}
    if len(set(widths.values())) > 1:
        raise DataError(f"Targets have different numbers of columns: {widths}. Make them equal.")
    return Targets((), targets, widths["train"])


def _values(labels: Array, split: str) -> Array:
    if labels.dtype.kind not in "biuf" or labels.ndim not in (1, 2):
        raise DataError(
            f"{split}: targets are {labels.dtype} of shape {labels.shape}; regression expects numbers, (n,) or (n, k). "
            "For classes set task: classification."
        )
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    return np.ascontiguousarray(labels, dtype=np.float64)


def _check(targets: Mapping[str, Array], _: Sequence[str], scale: TargetScale | None) -> list[Finding]:
    """Refuse numbers whose squares overflow, and a constant column."""
    for name, values in targets.items():
        largest = float(np.abs(values).max(initial=0.0))
        # Errors are squared: as 64-bit floats where they are measured, as 32-bit ones where targets are learned raw.
        if largest > (1e150 if scale is not None else 1e18):
            raise DataError(
                f"{name}: targets reach {largest:g}, and the squares of errors would overflow. Divide them by a "
                f"constant{'.' if scale is not None else ', or leave data.standardise_targets on.'}"
            )
    columns = targets["train"].reshape(len(targets["train"]), -1)
    learnt = (columns if scale is None else scale.standard(columns)).astype(np.float32)
    constant = np.flatnonzero(learnt.min(axis=0) == learnt.max(axis=0))
    if len(constant):
        raise DataError(
            f"train: target column {constant[0]} has one value only, {columns[0, constant[0]]:g}"
            f"{'' if scale is not None else ', as a 32-bit float'}: there is nothing to learn. Check data.target."
        )
    return []


def _shift(first: Array, other: Array, _: int) -> tuple[float, float]:
    """Return the largest Kolmogorov-Smirnov statistic of the columns, and its 1 % critical value."""
    pairs = zip(first.reshape(len(first), -1).T, other.reshape(len(other), -1).T, strict=True)
    return max(_kolmogorov_smirnov(a, b) for a, b in pairs), 1.63 * float(np.sqrt(1 / len(first) + 1 / len(other)))


def _kolmogorov_smirnov(first: Array, other: Array) -> float:
    both = np.concatenate([first, other])
    below = [np.searchsorted(np.sort(part), both, side="right") / len(part) for part in (first, other)]
    return float(np.abs(below[0] - below[1]).max())


def _spread(targets: Array, _: int) -> str:
    return f", targets {targets.min():g} to {targets.max():g}, mean {targets.mean():g}"


def _made_up(count: int, number: int) -> Tensor:
    return torch.linspace(-1.0, 1.0, count * number).reshape(count, number)


def _measures(_: Array | None, columns: int) -> dict[str, Measure]:
    errors = metrics.errors_of(columns)
    each = {name: partial(delete_one.column_error, kind, column - 1) for name, kind, column in errors}
    return {"r2": delete_one.r2, **each}


def _columns(values: Array) -> Array:
    return values.reshape(len(values), -1)


def _sums(values: Tensor, targets: Tensor) -> Tensor:
    wanted = targets[:, None] if targets.dim() == 1 else targets
    return (values.reshape(wanted.shape) - wanted).double().square().sum(0)


def _validation(sums: Array, targets: Array) -> tuple[float, float]:
    wanted = _columns(targets).astype(np.float64)
    spread = np.square(wanted - wanted.mean(axis=0)).sum(axis=0)
    return float(sums.mean()) / len(targets), float(metrics.explained(sums, spread).mean())


def _gain(values: Array, targets: Array) -> Array:
    gain: Array = -np.square(_columns(values) - _columns(targets)).mean(1)
    return gain


def _same(first: Array, other: Array) -> float:
    return metrics.r2(other, first)


def _loss(model: Array, file: Array, targets: Array) -> tuple[float, float]:
    """Return the R2 that a file loses, and its standard error: of the mean of each example's share."""
    n, wanted = len(model), np.asarray(targets, dtype=np.float64).reshape(model.shape)
    spread = np.square(wanted - wanted.mean(axis=0)).mean(axis=0)
    each = (np.square(file - wanted) - np.square(model - wanted)) / np.where(spread > 0, spread, 1.0)
    each = each.mean(axis=1)
    return float(each.mean()), float(each.std(ddof=1) / np.sqrt(n)) if n > 1 else float("inf")


def _unit(values: Array) -> Array:
    unit: Array = values.std(axis=0)
    return unit


def _apart(teacher: Array, student: Array, targets: Array) -> Apart:
    """Return how far two models are from each other, in standard deviations of the targets."""
    wanted = _columns(targets)
    teacher, student = teacher.reshape(wanted.shape), student.reshape(wanted.shape)
    spread = wanted.std(axis=0)
    distance: Floats = (np.abs(teacher - student) / np.where(spread > 0, spread, 1.0)).mean(axis=1)
    return Apart(distance, (wanted, teacher, student))


def _weak(values: Array, targets: Array, split: str) -> str:
    """Return that a teacher is no better than the mean, as a sentence; an empty text where it is."""
    value = metrics.r2(values, targets.reshape(values.shape))
    if value > 0:
        return ""
    return (
        f"The teacher explains nothing of the target (R2 {value:.3f} on {len(targets):,} {split} samples): always "
        "saying the mean would be no worse. Check its weights, teacher.preprocess and the unit of its answers."
    )


def _score(values: Array, targets: Array) -> float:
    return metrics.r2(_columns(values), _columns(targets))


REGRESSION = Task(
    name="regression",
    signal="values",
    outputs="target columns",
    has_classes=False,
    exclusive=False,
    has_units=True,
    hard=mse,
    soft=teacher_mse,
    softens=False,
    weights=(0.5, 0.5),
    targets=TargetChecks(
        read=_read,
        strata=_strata,
        number=_number,
        check=_check,
        shift=_shift,
        spread=_spread,
        made_up=_made_up,
    ),
    scores=Scores(
        measures=_measures,
        check=checked_values,
        sums=_sums,
        validation=_validation,
        score=_score,
        each=_gain,
        each_called="negative mean squared error",
        same=_same,
        loss=_loss,
        unit=_unit,
        apart=_apart,
        weak=_weak,
    ),
    calibrate=None,
    signature=("values",),
    probabilities=None,
    figures=("answers",),
)
