"""Classification: each sample is of one class, and answers are logits. Shape legend: n samples, c classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from potstill.core.errors import DataError
from potstill.core.scale import TargetScale
from potstill.losses import cross_entropy, forward_kl
from potstill.tasks import delete_one, labels, metrics
from potstill.tasks.arrays import Array, Floats, Ints, checked_classes, log_softmax
from potstill.tasks.base import Apart, Finding, Measure, Scores, TargetChecks, Targets, Task, listed
from potstill.tasks.calibrate import calibrate
from potstill.tasks.delete_one import of_mean
from potstill.tasks.texts import texts_of

CLEARLY = 2.0
"""Standard errors by which a teacher has to be above chance."""


def _number(found: Mapping[str, Array], classes: Sequence[str] | None, names: Sequence[str] | None) -> Targets:
    order, targets, findings = labels.number(found, classes=classes, label_names=names)
    return Targets(order, targets, len(order), findings)


def _check(targets: Mapping[str, Array], classes: Sequence[str], _: TargetScale | None) -> list[Finding]:
    """Refuse targets outside the classes and a single class; say which splits lack a class."""
    number = len(classes)
    outside = [name for name, values in targets.items() if values.min() < 0 or values.max() >= number]
    if outside:
        raise DataError(f"{outside[0]}: targets are outside 0 to {number - 1}, the numbers of the classes.")
    counts = {name: np.bincount(values, minlength=number) for name, values in targets.items()}
    first = next(iter(counts))
    present = np.flatnonzero(counts[first])
    if len(present) < 2:
        raise DataError(
            f"{first} has one class only, '{classes[present[0]]}': there is nothing to learn. "
            "Check data.target, or give samples of other classes."
        )
    findings: list[Finding] = []
    if "train" not in counts:
        return findings
    absent = np.flatnonzero(counts["train"] == 0)
    if len(absent):
        held = int((counts["validation"] + counts["test"])[absent].sum())
        text = (
            f"{len(absent)} of {number} classes have no sample in train: {_names(classes, absent)}; "
            f"{held} samples of validation and test are of these classes."
        )
        findings.append(Finding("warning", "class-not-in-train", text, len(absent)))
    for name in ("validation", "test"):
        gone = np.flatnonzero((counts["train"] > 0) & (counts[name] == 0))
        if len(gone):
            which = "1 class of train has" if len(gone) == 1 else f"{len(gone)} classes of train have"
            text = f"{which} no sample in {name}: {_names(classes, gone)}."
            findings.append(Finding("warning", f"class-not-in-{name}", text, len(gone)))
    return findings


def _names(classes: Sequence[str], numbers: Array) -> str:
    return listed([classes[number] for number in numbers])


def _shift(first: Array, other: Array, number: int) -> tuple[float, float]:
    """Return the total variation distance of the class shares, and twice what two samples of one population have."""
    shares = [np.bincount(part, minlength=number) / len(part) for part in (first, other)]
    sizes = 1 / len(first) + 1 / len(other)
    chance = float(np.sqrt(2 / np.pi * shares[0] * (1 - shares[0]) * sizes).sum())
    return float(0.5 * np.abs(shares[0] - shares[1]).sum()), chance


def _spread(targets: Array, number: int) -> str:
    counts = np.bincount(targets[targets >= 0], minlength=max(1, number))
    low, high = counts.min(), counts.max()
    return f", {low:,} of each class" if low == high else f", {low:,} to {high:,} of a class"


def _made_up(count: int, number: int) -> Tensor:
    return torch.arange(count) % number


def _measures(teacher: Array | None, _: int) -> dict[str, Measure]:
    """Return every metric; those that compare with a teacher only with one."""
    measures: dict[str, Measure] = {
        "accuracy": lambda logits, targets: of_mean(metrics.example_correct(logits, targets)),
        "balanced_accuracy": delete_one.balanced_accuracy,
        "auc": delete_one.auc,
        "macro_f1": delete_one.macro_f1,
        "nll": _nll,
        "brier": lambda logits, targets: of_mean(metrics.example_brier(logits, targets)),
        "ece": delete_one.ece,
    }
    if teacher is not None:
        measures["agreement"] = lambda logits, _: of_mean(metrics.example_agreement(logits, teacher))
        measures["kl_to_teacher"] = lambda logits, _: of_mean(metrics.example_kl_to_teacher(logits, teacher))
    return measures


def _nll(logits: Array, targets: Array) -> delete_one.Jackknife:
    return of_mean(metrics.example_nll(logits, targets))


def _sums(logits: Tensor, targets: Tensor) -> Tensor:
    loss = F.cross_entropy(logits, targets, reduction="none").double().sum()
    return torch.stack([loss, (logits.argmax(1) == targets).double().sum()])


def _validation(sums: Array, targets: Array) -> tuple[float, float]:
    return float(sums[0] / len(targets)), float(sums[1] / len(targets))


def _right(logits: Array, targets: Array) -> Floats:
    right: Floats = (logits.argmax(axis=1) == np.asarray(targets)).astype(np.float64)
    return right


def _score(logits: Array, targets: Array) -> float:
    return float(_right(logits, targets).mean())


def _same(first: Array, other: Array) -> float:
    return float((first.argmax(axis=1) == other.argmax(axis=1)).mean())


def _loss(model: Array, file: Array, targets: Array) -> tuple[float, float]:
    """Return the accuracy that a file loses, and its standard error.

    Agresti and Min (2005), the difference of two shares of the same examples with half an example added to each cell of
    their table, which stays honest where few answers differ.
    """
    n, right = len(model), [_right(outputs, targets) > 0 for outputs in (model, file)]
    lost, won = float((right[0] & ~right[1]).sum()) + 0.5, float((~right[0] & right[1]).sum()) + 0.5
    return (lost - won) / (n + 2), float(np.sqrt(lost + won - (lost - won) ** 2 / (n + 2)) / (n + 2))


def _unit(logits: Array) -> Array:
    return np.full(logits.shape[1], logits.std())


def _apart(teacher: Array, student: Array, targets: Array) -> Apart:
    """Return how far the probabilities of two models are from each other, 0 where both name one class."""
    p, q = np.exp(log_softmax(teacher)), np.exp(log_softmax(student))
    named = metrics.predictions(teacher), metrics.predictions(student)
    distance: Floats = np.where(named[0] != named[1], 0.5 * np.abs(p - q).sum(axis=1), 0.0)
    return Apart(distance, (targets, *named), (p.max(axis=1), q.max(axis=1)))


def _weak(logits: Array, targets: Array, split: str) -> str:
    """Return that a teacher is not clearly above chance, as a sentence; an empty text where it is."""
    named, (present, counts) = logits.argmax(1), np.unique(targets, return_counts=True)
    if len(present) < 2:
        return ""
    recalls = np.array([(named[targets == label] == label).mean() for label in present])
    balanced, chance = float(recalls.mean()), 1.0 / len(present)
    error = float(np.sqrt((recalls * (1.0 - recalls) / counts).sum())) / len(present)
    if balanced - CLEARLY * error > chance:
        return ""
    return (
        f"The teacher is not clearly better than guessing: on {len(targets):,} {split} samples of {len(present)} "
        f"classes its balanced accuracy is {100 * balanced:.1f} %, and guessing has {100 * chance:.1f} %. Check its "
        "weights, teacher.preprocess and the order of data.classes."
    )


def _strata(labels_of: Array) -> Ints:
    return labels.named(labels_of)[1]


def _divided(logits: Array, temperature: float) -> Array:
    return np.asarray(logits, dtype=np.float64) / temperature


def _softmax(logits: Tensor) -> Tensor:
    return logits.softmax(1)


CLASSIFICATION = Task(
    name="classification",
    signal="logits",
    outputs="classes",
    has_classes=True,
    exclusive=True,
    has_units=False,
    hard=cross_entropy,
    soft=forward_kl,
    softens=True,
    weights=(0.1, 0.9),
    targets=TargetChecks(
        read=texts_of,
        strata=_strata,
        number=_number,
        check=_check,
        shift=_shift,
        spread=_spread,
        made_up=_made_up,
    ),
    scores=Scores(
        measures=_measures,
        adjusted={"nll_calibrated": _nll, "ece_calibrated": delete_one.ece},
        adjust=_divided,
        check=checked_classes,
        sums=_sums,
        validation=_validation,
        score=_score,
        each=_right,
        each_called="accuracy",
        same=_same,
        loss=_loss,
        unit=_unit,
        apart=_apart,
        weak=_weak,
    ),
    calibrate=calibrate,
    keeps="temperature",
    signature=("logits", "probabilities"),
    probabilities=_softmax,
    figures=("reliability", "confusion"),
)
