"""What a task says of itself. Shape legend: n samples, b of a batch, c classes, k outputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from torch import Tensor

from potstill.core.scale import TargetScale
from potstill.tasks.arrays import Array, Floats, Ints
from potstill.tasks.delete_one import Jackknife
from potstill.tasks.names import METRICS, TaskName

Measure = Callable[[Array, Array], Jackknife | None]
"""A metric with what each example contributes to it, of outputs (n, k) and targets; None where it has no value."""


@dataclass(frozen=True)
class Finding:
    """One counted remark about the data.

    Attributes:
        level: ``"warning"`` for what may spoil a result, ``"info"`` for the rest.
        code: a short stable word, for example ``"shared-samples"``.
        message: one sentence for people, with the numbers in it.
        count: how many samples, classes or files it is about.

    """

    level: Literal["warning", "info"]
    code: str
    message: str
    count: int = 0


@dataclass(frozen=True)
class Targets:
    """The targets of all splits: class names (none for values), an array for each split, outputs, remarks."""

    classes: tuple[str, ...]
    of: Mapping[str, Array]
    num_outputs: int
    findings: tuple[Finding, ...] = ()


@dataclass(frozen=True)
class Apart:
    """Where two models differ: how far (n,), and what to list of each sample.

    Attributes:
        distance: (n,) 0 where they agree.
        said: label, teacher's answer and student's, (n,) or (n, k) each.
        sure: how sure each of the two is, (n,); None where the task knows no confidence.

    """

    distance: Floats
    said: tuple[Array, Array, Array]
    sure: tuple[Array, Array] | None = None


class Calibration(Protocol):
    """What is learned of a finished model on validation, and kept beside it."""

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON data."""
        ...


@dataclass(frozen=True)
class TargetChecks:
    """Targets: how they are read, numbered, checked and told.

    Attributes:
        read: labels as a source has them, and the split's name -> labels (n, ...) that are usable, gaps marked.
        strata: labels (n, ...) -> (n,) groups that splits keep in proportion.
        number: labels by split, ``classes`` that were given, class names of the source -> targets.
        check: targets by split, class names, standard units -> remarks; refuses what cannot be learned.
        shift: targets of two splits, number of outputs -> their distance from 0 to 1, and what chance explains of it.
        spread: targets, number of outputs -> a few words on them.
        made_up: number of samples, number of outputs -> targets to try a loss on.
        gaps: whether single targets of a sample may be unknown, as NaN.

    """

    read: Callable[[Array, str], Array]
    strata: Callable[[Array], Ints]
    number: Callable[[Mapping[str, Array], Sequence[str] | None, Sequence[str] | None], Targets]
    check: Callable[[Mapping[str, Array], Sequence[str], TargetScale | None], list[Finding]]
    shift: Callable[[Array, Array, int], tuple[float, float]]
    spread: Callable[[Array, int], str]
    made_up: Callable[[int, int], Tensor]
    gaps: bool = False


def _unchanged(outputs: Array, _: Any) -> Array:
    return outputs


@dataclass(frozen=True)
class Scores:
    """How answers are scored.

    Attributes:
        measures: the teacher's outputs if there is one, number of outputs -> every metric of an evaluation, by name.
        adjusted: those that are measured of adjusted outputs, by name.
        adjust: outputs, what `Task.calibrate` keeps of their model -> adjusted outputs.
        check: outputs (n, k), targets; refuses what does not fit.
        sums: outputs (b, k), targets -> sums over samples; those of all batches are added.
        validation: the sums over all samples, targets -> mean loss and headline.
        whole: outputs, targets -> the headline on validation, where it is no function of sums.
        score: outputs, targets -> the headline.
        each: outputs, targets -> (n,) one number a sample, more is better.
        each_called: what the mean of ``each`` is called.
        same: outputs of two models -> how alike they answer, 1 at best.
        loss: outputs of a model and of its file, targets -> mean and standard error of what the file loses.
        unit: outputs (n, k) -> (k,) the spread that differences of outputs are told in.
        apart: outputs of teacher and student, targets -> where they differ.
        by_class: adjusted outputs, targets -> a column of numbers of each class, by name; None where there is none.
        weak: a teacher's outputs, targets, name of the split -> that it is no better than guessing, or an empty text.

    """

    measures: Callable[[Array | None, int], Mapping[str, Measure]]
    check: Callable[[Array, Array], object]
    sums: Callable[[Tensor, Tensor], Tensor]
    validation: Callable[[Array, Array], tuple[float, float]]
    score: Callable[[Array, Array], float]
    each: Callable[[Array, Array], Array]
    each_called: str
    same: Callable[[Array, Array], float]
    loss: Callable[[Array, Array, Array], tuple[float, float]]
    unit: Callable[[Array], Array]
    apart: Callable[[Array, Array, Array], Apart]
    weak: Callable[[Array, Array, str], str]
    adjusted: Mapping[str, Measure] = field(default_factory=dict)
    adjust: Callable[[Array, Any], Array] = _unchanged
    whole: Callable[[Array, Array], float] | None = None
    by_class: Callable[[Array, Array], Mapping[str, list[float | None]]] | None = None


@dataclass(frozen=True)
class Task:
    """Everything that the other rooms need to know of a task.

    Attributes:
        name: as recipes and files have it.
        signal: what answers are called, ``"logits"`` or ``"values"``; the other one does not fit.
        outputs: what one output stands for, in the plural.
        has_classes: whether outputs stand for classes, which have names.
        exclusive: whether each sample is of one class, so that answers are one distribution.
        has_units: whether targets have units, so that they are learned in standard ones.
        hard: the loss on targets.
        soft: the loss on a teacher's answers.
        softens: whether ``soft`` takes a temperature.
        weights: of the two in classic distillation.
        targets: how targets are read and checked.
        scores: how answers are scored.
        calibrate: outputs on validation, targets -> what is kept beside the model; None where there is nothing.
        keeps: the key of what is kept that outputs are adjusted by.
        fitting: losses on answers that fit, beside the user's own; None where all do.
        signature: the outputs of an exported file.
        probabilities: outputs (b, c), already divided by a temperature -> the second exported output.
        figures: what the report draws of the answers.

    """

    name: TaskName
    signal: str
    outputs: str
    has_classes: bool
    exclusive: bool
    has_units: bool
    hard: Callable[..., Tensor]
    soft: Callable[..., Tensor]
    softens: bool
    weights: tuple[float, float]
    targets: TargetChecks
    scores: Scores
    calibrate: Callable[[Array, Array], Calibration] | None
    signature: tuple[str, ...]
    probabilities: Callable[[Tensor], Tensor] | None
    figures: tuple[str, ...]
    keeps: str = ""
    fitting: tuple[Callable[..., Tensor], ...] | None = None

    @property
    def headline(self) -> str:
        """The metric that decides where nothing else was chosen."""
        return METRICS[self.name][0]


def listed(values: Sequence[object] | Array, most: int = 10) -> str:
    """Return the first few values, and how many more there are."""
    shown = ", ".join(str(value) for value in values[:most])
    return f"{shown} and {len(values) - most} more" if len(values) > most else shown
