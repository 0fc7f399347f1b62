"""Several labels per sample: each class is a yes or a no of its own, or unknown. Answers are logits of sigmoids.

Targets are (n, c): 1, 0, or NaN where a label is unknown. Shape legend: n samples, b of a batch, c classes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from potstill.core.errors import DataError
from potstill.core.scale import TargetScale
from potstill.losses import bernoulli_kl, binary_cross_entropy, logit_mse
from potstill.tasks import labels as class_labels
from potstill.tasks import yes_or_no
from potstill.tasks.arrays import Array, Floats, Ints
from potstill.tasks.base import Apart, Finding, Measure, Scores, TargetChecks, Targets, Task, listed

CLEARLY = 2.0
"""Standard errors by which a teacher has to be above chance."""
_EXPECTED = (
    "expected a cell for each class: 1 or true, 0 or false, and nothing (NaN, None, an empty cell) where the label is "
    "unknown; or one list of class names for each sample"
)


def _read(labels: Array, split: str) -> Array:
    """Return cells as (n, c) float64 with NaN where they are unknown, or lists of names as (n,) objects."""
    if labels.ndim == 2 and labels.dtype == object and any(isinstance(cell, str) for cell in labels.ravel()):
        rows = np.empty(len(labels), dtype=object)
        rows[:] = [[cell for cell in row if not _is_gap(cell)] for row in labels]  # lists of one length
        labels = rows
    if labels.ndim == 1 and labels.dtype == object and all(_is_list(value) for value in labels):
        if _are_cells(labels):
            return _read(np.array([list(value) for value in labels], dtype=object), split)
        rows = np.empty(len(labels), dtype=object)
        rows[:] = [None if value is None else _names(value, split, row) for row, value in enumerate(labels)]
        return rows
    if labels.ndim != 2 or labels.shape[1] < 2:
        shown = f", such as {labels.ravel()[0]!r}" if labels.size else ""
        raise DataError(
            f"{split}: labels are {labels.dtype} of shape {labels.shape}{shown}; task: multilabel has two classes or "
            f"more, and {_EXPECTED}. For one class a sample set task: classification."
        )
    hidden = np.ma.getmaskarray(labels)
    cells = np.ma.getdata(labels)
    if cells.dtype == object:
        hidden = hidden | np.array([[_is_gap(cell) for cell in row] for row in cells])
        strange = [
            (row, column)
            for row, column in zip(*np.nonzero(~hidden), strict=True)
            if not isinstance(cells[row, column], bool | int | float | np.number | np.bool_)
        ]
        if strange:
            _refuse_cell(cells, strange[0], split)
        cells = np.where(hidden, np.nan, cells)
    elif cells.dtype.kind not in "biuf":
        _refuse_cell(cells, (0, 0), split)
    values: Array = np.where(hidden, np.nan, cells.astype(np.float64))
    wrong = np.argwhere(~np.isnan(values) & (values != 0) & (values != 1))
    if len(wrong):
        _refuse_cell(values, (int(wrong[0][0]), int(wrong[0][1])), split)
    return values


def _refuse_cell(cells: Array, place: tuple[int, int], split: str) -> None:
    row, column = place
    raise DataError(
        f"{split}: the label of row {row}, class {column} (both counted from 0) is {cells[row, column]!r}; {_EXPECTED}."
    )


def _is_gap(cell: object) -> bool:
    return cell is None or cell == "" or type(cell).__name__ in ("NAType", "NaTType") or cell != cell


def _is_list(value: object) -> bool:
    return value is None or isinstance(value, list | tuple | set | frozenset | np.ndarray)


def _are_cells(rows: Array) -> bool:
    """Return whether lists of one length hold nothing but 0 and 1: they are cells, not names of classes."""
    if any(value is None for value in rows) or len({len(value) for value in rows}) > 1 or len(rows[0]) < 2:
        return False
    return all(_is_gap(cell) or (not isinstance(cell, str) and cell in (0, 1)) for value in rows for cell in value)


def _names(value: Iterable[object], split: str, row: int) -> tuple[str, ...]:
    names = tuple(value)
    strange = next((name for name in names if not isinstance(name, str | int | np.integer) or name == ""), None)
    if strange is not None:
        raise DataError(
            f"{split}: the list of labels of row {row} holds {strange!r}; expected names of classes, as texts or whole "
            "numbers."
        )
    return tuple(dict.fromkeys(str(name) for name in names))


def _number(found: Mapping[str, Array], classes: Sequence[str] | None, names: Sequence[str] | None) -> Targets:
    """Return a column of cells for each class; lists name them, else the source or their numbers do."""
    kinds = {array.ndim for array in found.values()}
    if len(kinds) > 1:
        raise DataError("Some splits have lists of labels and others a cell for each class. Give all of one kind.")
    if kinds == {1}:
        own = class_labels.in_order({name for row in found["train"] for name in row})
        order = tuple(classes or names or own)
        return Targets(order, {split: _cells(rows, order, split) for split, rows in found.items()}, len(order))
    widths = {split: array.shape[1] for split, array in found.items()}
    order = tuple(classes or names or map(str, range(widths["train"])))
    if set(widths.values()) != {len(order)}:
        raise DataError(f"There are {len(order)} classes ({listed(order)}), and labels have these columns: {widths}.")
    return Targets(order, dict(found), len(order))


def _cells(rows: Array, classes: Sequence[str], split: str) -> Array:
    place = {name: number for number, name in enumerate(classes)}
    if len(place) < 2 or len(place) < len(classes):
        raise DataError(f"task: multilabel needs two classes or more, with different names; got {listed(classes)}.")
    unknown = sorted({name for row in rows for name in row} - set(place))
    if unknown:
        raise DataError(
            f"{split}: labels {listed(unknown)} are not among the classes {listed(classes)}. Put samples of them into "
            "train, or list all classes in data.classes."
        )
    cells = np.zeros((len(rows), len(classes)))
    for row, names in enumerate(rows):
        cells[row, [place[name] for name in names]] = 1.0
    return cells


def _strata(labels: Array) -> Ints:
    """Return each sample's rarest class, 0 where it has none: splits keep rare classes in proportion."""
    if labels.ndim == 1:
        names = class_labels.in_order({name for row in labels for name in row})
        labels = np.array([[name in row for name in names] for row in labels], dtype=np.float64).reshape(
            len(labels), -1
        )
    yes = labels == 1
    if not yes.any():
        return np.zeros(len(labels), dtype=np.int64)
    rarest = np.where(yes, yes.sum(axis=0), len(labels) + 1).argmin(axis=1)
    strata: Ints = np.where(yes.any(axis=1), rarest + 1, 0).astype(np.int64)
    return strata


def _check(targets: Mapping[str, Array], classes: Sequence[str], _: TargetScale | None) -> list[Finding]:
    """Refuse labels that say nothing; say which classes have no yes or no no."""
    train = targets["train"]
    both = (train == 1).any(axis=0) & (train == 0).any(axis=0)
    if not both.any():
        raise DataError("train: no class has both a yes and a no: nothing can be learned. Check data.target.")
    findings = []
    for name, values in targets.items():
        lacking = np.flatnonzero(~(values == 1).any(axis=0) | ~(values == 0).any(axis=0))
        if len(lacking):
            text = (
                f"{len(lacking)} of {len(classes)} classes are always yes, or always no, in {name}: "
                f"{listed([classes[int(number)] for number in lacking])}."
            )
            findings.append(Finding("warning", f"class-not-in-{name}", text, len(lacking)))
    unknown = int(np.isnan(train).sum())
    if unknown:
        text = f"{unknown:,} of {train.size:,} labels of train are unknown: terms on labels leave them out."
        findings.append(Finding("info", "unknown-labels", text, unknown))
    return findings


def _shift(first: Array, other: Array, _: int) -> tuple[float, float]:
    """Return the largest difference of the classes' shares of yes, and what chance explains of it."""
    shares, sizes = [], []
    for part in (first, other):
        known = np.maximum((~np.isnan(part)).sum(axis=0), 1)
        shares.append((part == 1).sum(axis=0) / known)
        sizes.append(1 / known)
    error = np.sqrt(shares[0] * (1 - shares[0]) * (sizes[0] + sizes[1]))
    return float(np.abs(shares[0] - shares[1]).max()), float(3 * error.max())


def _spread(targets: Array, _: int) -> str:
    shares = (targets == 1).sum(axis=0) / np.maximum((~np.isnan(targets)).sum(axis=0), 1)
    return (
        f", {(targets == 1).sum() / len(targets):.1f} labels each, {shares.min():.1%} to {shares.max():.1%} of a class"
    )


def _made_up(count: int, number: int) -> Tensor:
    return ((torch.arange(count)[:, None] + torch.arange(number)) % 2).float()


def _measures(teacher: Array | None, _: int) -> dict[str, Measure]:
    measures: dict[str, Measure] = {"map": yes_or_no.mean_average_precision, "nll": yes_or_no.log_loss}
    if teacher is not None:
        measures["kl_to_teacher"] = lambda logits, _: yes_or_no.divergence(logits, teacher)
    return measures


def _by_class(logits: Array, targets: Array) -> dict[str, list[float | None]]:
    """Return average precision of each class, and F1 at its threshold; None where there is no yes."""
    areas = [area for area, _ in yes_or_no.average_precisions(logits, targets)]
    scores = yes_or_no.class_f1(logits, targets)
    return {
        "average_precision": areas,
        "f1": [None if np.isnan(score) else float(score) for score in scores],
        "yes": [float(number) for number in (targets == 1).sum(axis=0)],
    }


def _sums(logits: Tensor, targets: Tensor) -> Tensor:
    known = ~targets.isnan()
    loss = F.binary_cross_entropy_with_logits(logits.float(), targets.nan_to_num(), reduction="none")
    return torch.stack([(loss * known).double().sum(), known.double().sum()])


def _validation(sums: Array, _: Array) -> tuple[float, float]:
    return float(sums[0] / sums[1]), float("nan")


def _score(logits: Array, targets: Array) -> float:
    jackknife = yes_or_no.mean_average_precision(logits, targets)
    return float("nan") if jackknife is None else jackknife.value


def _right(logits: Array, targets: Array) -> Floats:
    """Return the share of each sample's known labels that are decided right at one half."""
    known = ~np.isnan(targets)
    right = ((logits >= 0) == (targets == 1)) & known
    share: Floats = right.sum(axis=1) / np.maximum(known.sum(axis=1), 1)
    return share


def _same(first: Array, other: Array) -> float:
    return float(((first >= 0) == (other >= 0)).mean())


def _loss(model: Array, file: Array, targets: Array) -> tuple[float, float]:
    """Return the mean average precision that a file loses, and its standard error over the examples."""
    before, after = (yes_or_no.mean_average_precision(outputs, targets) for outputs in (model, file))
    if before is None or after is None:
        return 0.0, float("inf")
    change = before.deviations - after.deviations
    error = change.std(ddof=1) / np.sqrt(len(change)) if len(change) > 1 else np.inf
    return before.value - after.value, float(error)


def _unit(logits: Array) -> Array:
    return np.full(logits.shape[1], logits.std())


def _apart(teacher: Array, student: Array, targets: Array) -> Apart:
    """Return how far the probabilities are from each other, on average; 0 where all labels are decided alike."""
    p, q = (1 / (1 + np.exp(-np.clip(side, -700, 700))) for side in (teacher, student))
    said = [(side >= 0).astype(np.int64) for side in (teacher, student)]
    distance: Floats = np.where((said[0] != said[1]).any(axis=1), np.abs(p - q).mean(axis=1), 0.0)
    known = np.where(np.isnan(targets), -1, targets).astype(np.int64)
    return Apart(distance, (known, said[0], said[1]))


def _weak(logits: Array, targets: Array, split: str) -> str:
    """Return that a teacher finds no class clearly better than chance would; an empty text where it does."""
    found = yes_or_no.mean_average_precision(logits, targets)
    shares = (targets == 1).sum(axis=0) / np.maximum((~np.isnan(targets)).sum(axis=0), 1)
    if found is None:
        return ""
    chance = float(shares[(targets == 1).any(axis=0)].mean())
    error = float(found.deviations.std() / np.sqrt(len(targets)))
    if found.value - CLEARLY * error > chance:
        return ""
    return (
        f"The teacher is not clearly better than guessing: on {len(targets):,} {split} samples its mean average "
        f"precision is {found.value:.3f}, and guessing has {chance:.3f}. Check its weights, teacher.preprocess and the "
        "order of data.classes."
    )


def _sigmoid(logits: Tensor) -> Tensor:
    return logits.sigmoid()


MULTILABEL = Task(
    name="multilabel",
    signal="logits",
    outputs="classes",
    has_classes=True,
    exclusive=False,
    has_units=False,
    hard=binary_cross_entropy,
    soft=bernoulli_kl,
    softens=True,
    weights=(0.1, 0.9),
    fitting=(binary_cross_entropy, bernoulli_kl, logit_mse),
    targets=TargetChecks(
        read=_read,
        strata=_strata,
        number=_number,
        check=_check,
        shift=_shift,
        spread=_spread,
        made_up=_made_up,
        gaps=True,
    ),
    scores=Scores(
        measures=_measures,
        adjusted={"macro_f1": yes_or_no.macro_f1, "micro_f1": yes_or_no.micro_f1},
        adjust=yes_or_no.decided_at,
        check=yes_or_no.checked,
        sums=_sums,
        validation=_validation,
        whole=_score,
        score=_score,
        each=_right,
        each_called="share of labels decided right",
        same=_same,
        loss=_loss,
        unit=_unit,
        apart=_apart,
        weak=_weak,
        by_class=_by_class,
    ),
    calibrate=yes_or_no.choose_thresholds,
    keeps="thresholds",
    signature=("logits", "probabilities"),
    probabilities=_sigmoid,
    figures=("by_class",),
)
