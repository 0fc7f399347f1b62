"""One summand of an objective: a loss, its weight, and the signals it reads."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

from torch import Tensor, nn

from potstill.core.errors import UsageError, did_you_mean
from potstill.core.names import Signal, parse
from potstill.core.signals import Batch
from potstill.objective.heads import HEADS
from potstill.objective.probe import Probe
from potstill.objective.schedules import Schedule, Weight, at

HeadBuilder = Callable[[Probe], nn.Module]
Names = str | tuple[str, ...]

_RULE = (
    "A loss is written loss(student_*, [teacher_*], [targets], *, options...): the student first, options keyword-only."
)


@dataclass(frozen=True, init=False)
class Term:
    """One summand of an objective: a loss, its weight, and the signals it reads.

    A loss is any function of tensors that follows the naming rule, and its parameters are filled by name: the first,
    ``student_*``, receives the student's signal; ``teacher_*`` the teacher's signal; ``targets`` the batch's targets.
    Everything after is keyword-only and may be given here as an option. It returns one number per sample, (b,).

    Args:
        loss: the function, for example `potstill.losses.forward_kl`.
        weight: a finite number of at least 0, or a function of the progress of training (0 to 1) that returns one,
            for example a `Schedule`.
        on: the signal both sides read; several names where the loss reads several layers at once, as a tuple.
        student: the student's signal, when it differs from ``on``. ``layer2(teacher.layer1)`` is what the student's
            layer ``layer2`` makes of the teacher's signal ``layer1``.
        teacher: the teacher's signal, when it differs from ``on``. ``student.<name>`` reads one of the student's own
            signals as a constant: an early exit learns from the student's logits with ``teacher="student.logits"``.
        name: what the term is called in histories; made from the loss and its signals when absent.
        head: builds a module that is trained beside the student and prepares the loss's arguments; by default what the
            loss needs (see `potstill.objective.heads`), or an adapter where two hidden signals differ in shape.
        head_options: keyword arguments of the head's builder.
        transform: a function applied to both sides' signals before the loss, for example
            `potstill.losses.transforms.standardize_logits`.
        **options: keyword arguments of the loss; a `Schedule` changes with the progress of training.

    Raises:
        UsageError: the loss breaks the naming rule, an option is unknown or missing, or the weight is not usable.

    """

    loss: Callable[..., Tensor]
    weight: Weight
    student: Names
    teacher: Names | None
    name: str
    head: HeadBuilder | None
    transform: Callable[[Tensor], Tensor] | None
    options: Mapping[str, Any]
    parameters: tuple[str, ...]
    """The positional parameters of the loss: ``student_*``, then ``teacher_*`` and ``targets`` where it has them."""

    def __init__(
        self,
        loss: Callable[..., Tensor],
        weight: Weight = 1.0,
        *,
        on: str | Sequence[str] = "logits",
        student: str | Sequence[str] | None = None,
        teacher: str | Sequence[str] | None = None,
        name: str | None = None,
        head: Callable[..., nn.Module] | None = None,
        head_options: Mapping[str, Any] | None = None,
        transform: Callable[[Tensor], Tensor] | None = None,
        **options: Any,
    ) -> None:
        label = name or str(getattr(loss, "__name__", type(loss).__name__))
        head = head or HEADS.get(loss)
        parameters = _parameters(loss, label, options, has_head=head is not None)
        reads_teacher = any(parameter.startswith("teacher_") for parameter in parameters)
        if teacher is not None and not reads_teacher:
            raise UsageError(f"Term {label}: teacher={teacher!r} was given, but the loss has no teacher_* parameter.")
        if head is None and head_options:
            raise UsageError(f"Term {label}: head_options={dict(head_options)} were given, but the term has no head.")
        read = _names(on if student is None else student, label)
        taught = _names(on if teacher is None else teacher, label) if reads_teacher else None
        if name is None and read != "logits":
            label += f":{_listed(read)}"
        if name is None and taught not in (None, read):
            label += f"->{_listed(taught)}"
        if head is not None and head_options:
            head = partial(head, **head_options)
        for field, value in (
            ("loss", loss), ("weight", weight if callable(weight) else _weight(weight, label)), ("student", read),
            ("teacher", taught), ("name", label), ("head", head), ("transform", transform), ("options", dict(options)),
            ("parameters", parameters),
        ):  # fmt: skip
            object.__setattr__(self, field, value)

    def changed(self, **attributes: Any) -> Term:
        """Return a copy with other attributes, unchecked: names of signals, the name, the options."""
        copy = object.__new__(Term)
        for field in fields(self):
            object.__setattr__(copy, field.name, attributes.get(field.name, getattr(self, field.name)))
        return copy

    @property
    def key(self) -> str:
        """The name under which this term's head is kept, free of dots as module names must be."""
        return "term:" + self.name.replace(".", "/")

    @property
    def needs_targets(self) -> bool:
        """Whether the loss reads the batch's targets."""
        return "targets" in self.parameters

    def mask(self, batch: Batch) -> Tensor | None:
        """Return which positions of a batch count for this term, None where all samples do.

        A loss that reads targets counts those that are labelled. Losses on anything but a model's answer count
        samples: those of which any position does.
        """
        mask = batch.labelled if self.needs_targets and batch.labelled is not None else batch.where
        if mask is None or mask.dim() == 1 or self.kind in ("logits", "values"):
            return mask
        return mask.flatten(1).any(1)

    @property
    def kind(self) -> str:
        """What the loss reads: ``logits``, ``values``, ``hidden``, ``embedding`` or a word of its own."""
        return self.parameters[0].removeprefix("student_")

    @property
    def over_batch(self) -> bool:
        """Whether the loss reads relations between samples and therefore needs whole batches."""
        return bool(getattr(self.loss, "over_batch", False))

    @property
    def read(self) -> tuple[Signal, ...]:
        """What the term reads in the student's place."""
        return tuple(map(parse, _listed_names(self.student)))

    @property
    def taught(self) -> tuple[Signal, ...]:
        """What the term reads in the teacher's place; nothing where the loss reads no teacher."""
        return tuple(parse(name, taught=True) for name in _listed_names(self.teacher))

    @property
    def student_signals(self) -> frozenset[str]:
        """Names of the student's signals that the term reads, its own ones in the teacher's place included."""
        return frozenset(signal.name for signal in (*self.read, *self.taught) if signal.side == "student")

    @property
    def teacher_signals(self) -> frozenset[str]:
        """Names of the teacher's signals that the term reads, those that the student's blocks run on included."""
        fed = {signal.fed for signal in self.read if signal.fed is not None}
        return frozenset(signal.name for signal in self.taught if signal.side == "teacher") | fed

    def describe(self) -> str:
        """Return the term in words, for example ``0.9 x forward_kl(temperature=4.0) on logits``.

        The answer of a regression model is called ``values``, although every model's answer is the signal ``logits``.
        """
        options = ", ".join(f"{name}={_shown(value)}" for name, value in sorted(self.options.items()))
        where = _listed(self.student)
        where += "" if self.teacher in (None, self.student) else f" -> {_listed(self.teacher)}"
        if self.kind == "values":
            where = where.replace("logits", "values")
        call = f"{_shown(self.loss)}({options})" if options else _shown(self.loss)
        extra = f", {_shown(self.transform)} first" if self.transform else ""
        if self.head is not None and self.head is not HEADS.get(self.loss):
            extra += f", head {_shown_head(self.head)}"
        return f"{_shown(self.weight)} x {call} on {where}{extra}"

    def weight_at(self, progress: float) -> float:
        """Return the weight at a progress of training between 0 and 1."""
        return _weight(self.weight(progress), self.name) if callable(self.weight) else self.weight

    def options_at(self, progress: float) -> dict[str, Any]:
        """Return the options at a progress of training between 0 and 1."""
        return {name: at(value, progress) for name, value in self.options.items()}


def _parameters(
    loss: Callable[..., Tensor], label: str, options: Mapping[str, Any], *, has_head: bool
) -> tuple[str, ...]:
    """Return the positional parameters of a loss, after checking the naming rule and the options."""
    try:
        signature = inspect.signature(loss)
    except (TypeError, ValueError) as error:
        raise UsageError(f"Term {label}: the loss must be a Python function. {_RULE}") from error
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
            raise UsageError(f"Term {label}: the loss takes {parameter}, which cannot be filled by name. {_RULE}")
    ranks = [0 if name.startswith("student_") else 1 if name.startswith("teacher_") else 2 for name in positional]
    known = all(rank < 2 or name == "targets" for rank, name in zip(ranks, positional, strict=True))
    if not known or ranks[:1] != [0] or ranks != sorted(set(ranks)):
        raise UsageError(f"Term {label}: the loss takes ({', '.join(positional)}). {_RULE}")
    if len(positional) > 1 and ranks[1] == 1:
        student, teacher = (name.partition("_")[2] for name in positional[:2])
        if student != teacher:
            raise UsageError(
                f"Term {label}: student_{student} and teacher_{teacher} must end in the same word. {_RULE}"
            )
    for name in options:
        if name in positional or (name not in keywords and not any_option):
            raise UsageError(f"Term {label}: unknown option {name!r}.{did_you_mean(name, keywords)}")
    missing = [name for name, required in keywords.items() if required and name not in options]
    if missing and not has_head:
        raise UsageError(f"Term {label}: the loss needs the option {missing[0]!r}. Give {missing[0]}=... to the term.")
    return tuple(positional)


def _names(names: str | Sequence[str], label: str) -> Names:
    """Return one name as it is and several as a tuple."""
    if isinstance(names, str):
        return names
    found = tuple(names)
    if not found or not all(isinstance(name, str) and name for name in found):
        raise UsageError(f"Term {label}: {names!r} must be the name of a signal, or a list of names.")
    return found


def _listed_names(names: Names | None) -> tuple[str, ...]:
    return () if names is None else (names,) if isinstance(names, str) else names


def _listed(names: Names | None) -> str:
    return "+".join(_listed_names(names))


def _shown(value: Any) -> str:
    """Return a value as text without memory addresses; functions by their name."""
    if isinstance(value, Schedule) or not callable(value):
        return f"{value}"
    return str(getattr(value, "__qualname__", type(value).__qualname__))


def _shown_head(head: Any) -> str:
    if isinstance(head, partial):
        return f"{_shown(head.func)}({', '.join(f'{name}={value}' for name, value in sorted(head.keywords.items()))})"
    return _shown(head)


def _weight(weight: Any, label: str) -> float:
    try:
        value = float(weight)
    except (TypeError, ValueError):
        value = math.nan
    if isinstance(weight, bool) or not (math.isfinite(value) and value >= 0):
        raise UsageError(f"Term {label}: weight={weight!r} must be a finite number of at least 0.")
    return value
