"""What training minimises: a weighted sum of terms, each a pure loss and where it reads its signals.

Shape legend: b samples, c classes or outputs, d features, t positions, h and w rows and columns of a feature map.
"""

from __future__ import annotations

import inspect
import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from potstill import losses
from potstill.core.errors import DataError, PotstillError, TeacherError, UsageError, did_you_mean
from potstill.core.functions import find_function
from potstill.core.random import seed_of
from potstill.core.signals import Batch, Signals

Weight = float | Callable[[float], float]
Shapes = Mapping[str, tuple[int, ...]]

_TASKS = ("classification", "regression")
_PRESETS = ("auto", "kd", "alone", "label_free", "hidden")


@dataclass(frozen=True, init=False)
class Term:
    """One summand of an objective: a loss, its weight, and the signals it reads.

    A loss is any function of tensors that follows the naming rule, and its parameters are filled by name: the first,
    ``student_*``, receives the student's signal; ``teacher_*`` the teacher's signal; ``targets`` the batch's targets.
    Everything after is keyword-only and may be given here as an option. It returns one number per sample, (b,).

    Args:
        loss: the function, for example `potstill.losses.forward_kl`.
        weight: a finite number of at least 0, or a function of the progress of training (0 to 1) that returns one.
        on: the signal both sides read.
        student: the student's signal, when it differs from ``on``.
        teacher: the teacher's signal, when it differs from ``on``.
        name: what the term is called in histories; made from the loss and its signals when absent.
        **options: keyword arguments of the loss.

    Raises:
        UsageError: the loss breaks the naming rule, an option is unknown or missing, or the weight is not usable.

    """

    loss: Callable[..., Tensor]
    weight: Weight
    student: str
    teacher: str | None
    name: str
    options: Mapping[str, Any]
    parameters: tuple[str, ...]
    """The positional parameters of the loss: ``student_*``, then ``teacher_*`` and ``targets`` where it has them."""

    def __init__(
        self,
        loss: Callable[..., Tensor],
        weight: Weight = 1.0,
        *,
        on: str = "logits",
        student: str | None = None,
        teacher: str | None = None,
        name: str | None = None,
        **options: Any,
    ) -> None:
        label = name or str(getattr(loss, "__name__", type(loss).__name__))
        parameters = _parameters(loss, label, options)
        reads_teacher = any(parameter.startswith("teacher_") for parameter in parameters)
        if teacher is not None and not reads_teacher:
            raise UsageError(f"Term {label}: teacher={teacher!r} was given, but the loss has no teacher_* parameter.")
        student = student or on
        teacher = (teacher or on) if reads_teacher else None
        if name is None and student != "logits":
            label += f":{student}"
        if name is None and teacher not in (None, student):
            label += f"->{teacher}"
        if not callable(weight):
            weight = _weight(weight, label)
        for field, value in (
            ("loss", loss), ("weight", weight), ("student", student), ("teacher", teacher), ("name", label),
            ("options", dict(options)), ("parameters", parameters),
        ):  # fmt: skip
            object.__setattr__(self, field, value)

    @property
    def key(self) -> str:
        """The name under which this term's adapter is kept, free of dots as module names must be."""
        return "term:" + self.name.replace(".", "/")

    @property
    def needs_targets(self) -> bool:
        """Whether the loss reads the batch's targets."""
        return "targets" in self.parameters

    @property
    def kind(self) -> str:
        """What the loss reads: ``logits``, ``values``, ``hidden`` or a word of its own."""
        return self.parameters[0].removeprefix("student_")

    def describe(self) -> str:
        """Return the term in words, for example ``0.9 x forward_kl(temperature=4.0) on logits``."""
        options = ", ".join(f"{name}={_shown(value)}" for name, value in sorted(self.options.items()))
        where = self.student if self.teacher in (None, self.student) else f"{self.student} -> {self.teacher}"
        call = f"{_shown(self.loss)}({options})" if options else _shown(self.loss)
        return f"{_shown(self.weight)} x {call} on {where}"

    def weight_at(self, progress: float) -> float:
        """Return the weight at a progress of training between 0 and 1."""
        return _weight(self.weight(progress), self.name) if callable(self.weight) else self.weight


@dataclass(frozen=True)
class Loss:
    """The value of an objective for one batch.

    Attributes:
        total: scalar, the weighted *sum* over terms and samples. The step divides it by the number of samples.
        parts: for each term the detached scalar that it adds to ``total``.

    """

    total: Tensor
    parts: dict[str, Tensor]


@dataclass(frozen=True, init=False)
class Objective:
    """A weighted sum of terms.

    Args:
        terms: at least one, with different names.

    Raises:
        UsageError: no terms, two terms of one name, or every weight is 0.

    """

    terms: tuple[Term, ...]

    def __init__(self, terms: Sequence[Term]) -> None:
        if not terms:
            raise UsageError("An objective needs at least one term, for example Term(cross_entropy).")
        keys = [term.key for term in terms]
        for term in terms:
            if keys.count(term.key) > 1:
                raise UsageError(f"Two terms of the objective are called {term.name!r}. Give each its own name=.")
        if all(term.weight == 0 for term in terms):
            raise UsageError("Every term of the objective has weight 0: there is nothing to learn.")
        object.__setattr__(self, "terms", tuple(terms))

    @property
    def student_signals(self) -> frozenset[str]:
        """Names of the student's signals that the terms read."""
        return frozenset(term.student for term in self.terms)

    @property
    def teacher_signals(self) -> frozenset[str]:
        """Names of the teacher's signals that the terms read."""
        return frozenset(term.teacher for term in self.terms if term.teacher is not None)

    @property
    def needs_teacher(self) -> bool:
        """Whether any term reads a teacher."""
        return bool(self.teacher_signals)

    @property
    def needs_targets(self) -> bool:
        """Whether any term reads the batch's targets."""
        return any(term.needs_targets for term in self.terms)

    def describe(self) -> list[str]:
        """Return one line for each term: weight, loss, options and where it reads; equal for equal objectives."""
        return [term.describe() for term in self.terms]

    def __call__(
        self, student_signals: Signals, teacher_signals: Signals | None, batch: Batch, *, progress: float = 0.0
    ) -> Loss:
        """Return the weighted sum of the terms over the samples of one batch.

        Args:
            student_signals: the student's outputs, each (b, ...), after `apply_adapters` where there are adapters.
            teacher_signals: the teacher's outputs, each (b, ...); None where no term reads a teacher.
            batch: the samples; targets are read by hard terms.
            progress: share of the training that is done, 0 to 1; read by weights that are functions.

        Raises:
            UsageError: a signal that a term reads is absent, or a loss does not return one number per sample.
            DataError: a term reads targets and the batch has none.

        """
        sums: dict[str, Tensor] = {}
        for term in self.terms:
            key = term.key if term.key in student_signals else term.student
            values = _values(term, _signal(term, key, student_signals, "student"), teacher_signals, batch.targets)
            sums[term.name] = term.weight_at(progress) * values.sum()
        first, *others = sums.values()
        return Loss(sum(others, start=first), {name: part.detach() for name, part in sums.items()})


def first_bad(parts: Mapping[str, Tensor]) -> str | None:
    """Return the name of the first part that is NaN or infinite, or None when all are finite."""
    finite = torch.stack([part.detach().double().isfinite().all() for part in parts.values()]).tolist() if parts else []
    return next((name for name, good in zip(parts, finite, strict=True) if not good), None)


class Adapter(nn.Module):
    """Brings one of the student's hidden signals to the shape of the teacher's; trained beside the student.

    ``source`` is the student's signal that it reads.
    """

    def __init__(self, source: str, project: nn.Module, size: tuple[int, int] | None = None) -> None:
        super().__init__()
        self.source = source
        self.project = project
        self.size = size

    def forward(self, signal: Tensor) -> Tensor:
        """Return ``signal`` (b, ...) in the teacher's shape."""
        weight = next(self.project.parameters(), None)
        if weight is not None:
            signal = signal.to(weight.dtype)
        if self.size is None:
            return self._projected(signal)
        # Resizing and a 1x1 convolution without bias commute; the smaller map is convolved.
        if self.size[0] <= signal.shape[2] and self.size[1] <= signal.shape[3]:
            return self._projected(F.adaptive_avg_pool2d(signal, self.size))
        return F.interpolate(self._projected(signal), size=self.size, mode="bilinear", align_corners=False)

    def _projected(self, signal: Tensor) -> Tensor:
        projected: Tensor = self.project(signal)
        return projected


def adapters_for(
    objective: Objective, student_shapes: Shapes, teacher_shapes: Shapes | None, *, seed: int = 0
) -> nn.ModuleDict:
    """Build an adapter for every term on hidden signals (``student_hidden``) whose two shapes differ.

    The student is brought to the teacher's shape: a linear map for (d,) and for the last dimension of (t, d) with
    equal t; for (c, h, w) a 1x1 convolution without bias where the channels differ, average pooling to fewer
    rows and columns, and bilinear interpolation otherwise. Logits are never adapted.

    Args:
        objective: the terms.
        student_shapes: shape of each of the student's signals, without the batch dimension.
        teacher_shapes: the same for the teacher; None gives no adapters.
        seed: fixes the initial weights; the global random state is left as it is.

    Returns:
        the adapters by `Term.key`; their parameters belong in the optimiser and the checkpoint, never in the export.

    Raises:
        UsageError: a signal is absent, or there is no adapter between two shapes.

    """
    adapters = nn.ModuleDict()
    for term in objective.terms:
        if term.kind != "hidden" or term.teacher is None or teacher_shapes is None:
            continue
        student_shape = tuple(_lookup(term, term.student, student_shapes, "student"))
        teacher_shape = tuple(_lookup(term, term.teacher, teacher_shapes, "teacher"))
        if student_shape != teacher_shape:
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(seed_of(seed, zlib.crc32(term.key.encode())))
                adapters[term.key] = _adapter(term, student_shape, teacher_shape)
    return adapters


def apply_adapters(adapters: nn.ModuleDict, student_signals: Signals) -> Signals:
    """Return the student's signals with one more entry per adapter, which its term reads instead of the raw signal."""
    adapted = {key: adapter(student_signals[str(adapter.source)]) for key, adapter in adapters.items()}
    return {**student_signals, **adapted}


def check(
    objective: Objective, student_shapes: Shapes, teacher_shapes: Shapes | None, num_classes: int, task: str
) -> None:
    """Refuse an objective that cannot work, before anything is trained.

    Every loss is tried once on two made-up samples of the given shapes, so that bad options show here as well.

    Args:
        objective: the terms.
        student_shapes: shape of each of the student's signals, without the batch dimension.
        teacher_shapes: the same for the teacher; None when there is no teacher.
        num_classes: number of classes, or of outputs in regression.
        task: ``"classification"`` or ``"regression"``.

    Raises:
        UsageError: a term does not fit the task, reads an absent signal, or its loss fails on these shapes.
        TeacherError: the teacher's logits have another number of classes than the data.

    """
    for term in objective.terms:
        _check_task(term, task)
        student_shape = tuple(_lookup(term, term.student, student_shapes, "student"))
        if _bad_outputs(term, student_shape, num_classes):
            raise UsageError(
                f"Term {term.name}: the student's {term.student!r} has shape {student_shape} per sample, but the data "
                f"has {num_classes} {_outputs(task)}. Build the student with num_classes={num_classes}."
            )
        teacher_shape = None
        if term.teacher is not None:
            if teacher_shapes is None:
                raise UsageError(
                    f"Term {term.name} reads a teacher, and there is none. Give a teacher or use the preset 'alone'."
                )
            teacher_shape = tuple(_lookup(term, term.teacher, teacher_shapes, "teacher"))
            if _bad_outputs(term, teacher_shape, num_classes):
                raise TeacherError(
                    f"Term {term.name}: the teacher's {term.teacher!r} has shape {teacher_shape} per sample, but the "
                    f"data has {num_classes} {_outputs(task)}. Use a teacher trained on the same classes, in the same "
                    "order."
                )
            if term.kind == "hidden" and student_shape != teacher_shape:
                _check_adaptable(term, student_shape, teacher_shape)
                student_shape = teacher_shape
        _try(term, student_shape, teacher_shape, num_classes, task)


def preset(name: str, task: str) -> Objective:
    """Return an objective by name.

    - ``auto`` and ``kd``: 0.1 hard + 0.9 soft. Classification: `cross_entropy` and `forward_kl` at temperature 4
      (Hinton, Vinyals, Dean: Distilling the Knowledge in a Neural Network, 2015, arXiv:1503.02531). Regression: 0.5
      `mse` and 0.5 `teacher_mse`.
    - ``alone``: the hard term only, without a teacher: the baseline every verdict compares with.
    - ``label_free``: the soft term only; labels are not read.
    - ``hidden``: ``kd`` and `hidden_mse` with ``normalize=True`` on a signal that both sides call ``hidden``.

    Args:
        name: one of the above.
        task: ``"classification"`` or ``"regression"``.

    Raises:
        UsageError: unknown name or task.

    """
    if name not in _PRESETS:
        raise UsageError(f"Unknown objective {name!r}.{did_you_mean(name, _PRESETS)}")
    if task == "classification":
        hard = partial(Term, losses.cross_entropy)
        soft = partial(Term, losses.forward_kl, temperature=4.0)
        hard_weight, soft_weight = 0.1, 0.9
    elif task == "regression":
        hard, soft = partial(Term, losses.mse), partial(Term, losses.teacher_mse)
        hard_weight, soft_weight = 0.5, 0.5
    else:
        raise UsageError(f"Unknown task {task!r}.{did_you_mean(task, _TASKS)}")
    if name == "alone":
        return Objective([hard()])
    if name == "label_free":
        return Objective([soft()])
    terms = [hard(weight=hard_weight), soft(weight=soft_weight)]
    if name == "hidden":
        terms.append(Term(losses.hidden_mse, on="hidden", normalize=True))
    return Objective(terms)


def find_loss(name: str, base: Path = Path()) -> Callable[..., Tensor]:
    """Return a loss by its name in `potstill.losses`, or a function ``file.py:name`` or ``package.module:name``.

    Args:
        name: for example ``"forward_kl"`` or ``"my_losses.py:margin"``.
        base: the folder a file's path is relative to.

    Raises:
        UsageError: nothing of that name exists, or it is not a function.

    """
    if ":" not in name:
        if name not in losses.__all__:
            raise UsageError(
                f"Unknown loss {name!r}.{did_you_mean(name, losses.__all__)} "
                "A function of your own is written 'file.py:name'."
            )
        found: Callable[..., Tensor] = getattr(losses, name)
        return found
    return find_function(name, base=base)


def _parameters(loss: Callable[..., Tensor], label: str, options: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the positional parameters of a loss, after checking the naming rule and the options."""
    rule = (
        "A loss is written loss(student_*, [teacher_*], [targets], *, options...): "
        "the student first, options keyword-only."
    )
    try:
        signature = inspect.signature(loss)
    except (TypeError, ValueError) as error:
        raise UsageError(f"Term {label}: the loss must be a Python function. {rule}") from error
    positional: list[str] = []
    keywords: dict[str, bool] = {}
    any_option = False
    for parameter in signature.parameters.values():
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY:
            keywords[parameter.name] = parameter.default is inspect.Parameter.empty
        elif parameter.kind is inspect.Parameter.VAR_KEYWORD:
            any_option = True
        elif parameter.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD:
            positional.append(parameter.name)
        else:
            raise UsageError(f"Term {label}: the loss takes {parameter}, which cannot be filled by name. {rule}")
    ranks = [0 if name.startswith("student_") else 1 if name.startswith("teacher_") else 2 for name in positional]
    known = all(rank < 2 or name == "targets" for rank, name in zip(ranks, positional, strict=True))
    if not known or ranks[:1] != [0] or ranks != sorted(set(ranks)):
        raise UsageError(f"Term {label}: the loss takes ({', '.join(positional)}). {rule}")
    if len(positional) > 1 and ranks[1] == 1:
        student, teacher = (name.partition("_")[2] for name in positional[:2])
        if student != teacher:
            raise UsageError(f"Term {label}: student_{student} and teacher_{teacher} must end in the same word. {rule}")
    for name in options:
        if name in positional or (name not in keywords and not any_option):
            raise UsageError(f"Term {label}: unknown option {name!r}.{did_you_mean(name, keywords)}")
    missing = [name for name, required in keywords.items() if required and name not in options]
    if missing:
        raise UsageError(f"Term {label}: the loss needs the option {missing[0]!r}. Give {missing[0]}=... to the term.")
    return tuple(positional)


def _shown(value: Any) -> str:
    """Return a value as text without memory addresses; functions by their name."""
    return str(getattr(value, "__qualname__", type(value).__qualname__)) if callable(value) else f"{value}"


def _weight(weight: Any, label: str) -> float:
    try:
        value = float(weight)
    except (TypeError, ValueError):
        value = math.nan
    if isinstance(weight, bool) or not (math.isfinite(value) and value >= 0):
        raise UsageError(f"Term {label}: weight={weight!r} must be a finite number of at least 0.")
    return value


def _lookup(term: Term, name: str, signals: Mapping[str, Any], side: str) -> Any:
    if name not in signals:
        raise UsageError(
            f"Term {term.name} reads the {side}'s signal {name!r}, which does not exist.{did_you_mean(name, signals)} "
            f"To read a hidden layer, tap it under that name."
        )
    return signals[name]


def _signal(term: Term, name: str, signals: Signals, side: str) -> Tensor:
    signal: Tensor = _lookup(term, name, signals, side)
    return signal


def _values(term: Term, student: Tensor, teacher_signals: Signals | None, targets: Tensor | None) -> Tensor:
    """Return the loss of each sample, (b,)."""
    arguments = [student]
    if term.teacher is not None:
        arguments.append(_signal(term, term.teacher, teacher_signals or {}, "teacher"))
    if term.needs_targets:
        if targets is None:
            raise DataError(
                f"Term {term.name} reads targets, and the data has none. Use the preset 'label_free' or add labels."
            )
        arguments.append(targets)
    values: object = term.loss(*arguments, **term.options)
    if not isinstance(values, Tensor) or values.shape != student.shape[:1]:
        got = f"shape {tuple(values.shape)}" if isinstance(values, Tensor) else type(values).__name__
        raise UsageError(
            f"Term {term.name}: the loss must return one number per sample, shape ({len(student)},), and returned "
            f"{got}. Do not average over the batch: the training step does, once."
        )
    return values


def _bad_outputs(term: Term, shape: tuple[int, ...], num_outputs: int) -> bool:
    """Whether a signal of logits or values has another shape than the data asks for; one value may be ()."""
    scalar = term.kind == "values" and num_outputs == 1 and shape == ()
    return term.kind in ("logits", "values") and shape != (num_outputs,) and not scalar


def _outputs(task: str) -> str:
    return "classes" if task == "classification" else "outputs"


def _check_task(term: Term, task: str) -> None:
    wrong = {"classification": "values", "regression": "logits"}.get(task)
    if wrong is None:
        raise UsageError(f"Unknown task {task!r}.{did_you_mean(task, _TASKS)}")
    if term.kind == wrong:
        hard, soft = ("cross_entropy", "forward_kl") if task == "classification" else ("mse", "teacher_mse")
        raise UsageError(
            f"Term {term.name} reads {wrong}, which does not fit the task {task}. "
            f"Use {hard if term.teacher is None else soft} instead."
        )


def _try(
    term: Term, student_shape: tuple[int, ...], teacher_shape: tuple[int, ...] | None, num_classes: int, task: str
) -> None:
    def ramp(shape: tuple[int, ...]) -> Tensor:
        return torch.linspace(-1.0, 1.0, 2 * math.prod(shape)).reshape(2, *shape)

    teacher = None if teacher_shape is None or term.teacher is None else {term.teacher: ramp(teacher_shape)}
    targets = torch.zeros(2, dtype=torch.int64) if task == "classification" else ramp((num_classes,))
    try:
        _values(term, ramp(student_shape), teacher, targets)
    except PotstillError as error:
        message = str(error)
        raise UsageError(message if message.startswith("Term ") else f"Term {term.name}: {message}") from error
    except Exception as error:
        raise UsageError(
            f"Term {term.name}: the loss failed on two samples of shape {student_shape}: "
            f"{type(error).__name__}: {error}"
        ) from error


def _check_adaptable(term: Term, student: tuple[int, ...], teacher: tuple[int, ...]) -> None:
    same_rank = len(student) == len(teacher) and len(student) in (1, 2, 3)
    if not same_rank or (len(student) == 2 and student[0] != teacher[0]):
        raise UsageError(
            f"Term {term.name}: no adapter brings the student's {term.student!r} of shape {student} to the teacher's "
            f"{term.teacher!r} of shape {teacher} (shapes of one sample). Possible are (d,) to (e,), (c, h, w) to any "
            "other (c, h, w), and (t, d) to (t, e) with equal t. Choose other layers, or pool one of them."
        )


def _adapter(term: Term, student: tuple[int, ...], teacher: tuple[int, ...]) -> Adapter:
    _check_adaptable(term, student, teacher)
    if len(student) < 3:
        return Adapter(term.student, nn.Linear(student[-1], teacher[-1]))
    same_channels = student[0] == teacher[0]
    project = nn.Identity() if same_channels else nn.Conv2d(student[0], teacher[0], 1, bias=False)
    size = None if student[1:] == teacher[1:] else (teacher[1], teacher[2])
    return Adapter(term.student, project, size)
