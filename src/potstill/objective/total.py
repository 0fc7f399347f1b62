"""What training minimises: a weighted sum of terms, each a pure loss and where it reads its signals.

Shape legend: b samples.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from potstill.core.errors import DataError, UsageError, did_you_mean
from potstill.core.names import Signal
from potstill.core.signals import Batch, Signals
from potstill.losses._shared import blank
from potstill.objective.probe import Value, each, several
from potstill.objective.term import Names, Term

Arguments = Mapping[str, Mapping[str, Any]]
"""What heads prepared: arguments of the loss by name, for each term's key."""


@dataclass(frozen=True)
class Loss:
    """The value of an objective for one batch.

    Attributes:
        total: scalar, the weighted *sum* over terms and samples. The step divides it by the number of samples; a term
            that fewer or more positions than samples count for stands for the samples, see `factors_of`.
        parts: for each term the detached scalar that it adds to ``total``; under `Shared`, this process's share of it.
        summands: the weighted sum of each term, with its graph; together they are ``total``.

    """

    total: Tensor
    parts: dict[str, Tensor]
    summands: tuple[Tensor, ...] = ()


@dataclass(frozen=True)
class Shared:
    """How a batch that is split over processes is put together for losses that read relations between samples.

    Attributes:
        whole: returns a tensor's rows of all processes, in order; only this process's rows carry a gradient.
        own: this process's rows in it.

    """

    whole: Callable[[Tensor], Tensor]
    own: slice


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
        return frozenset[str]().union(*(term.student_signals for term in self.terms))

    @property
    def teacher_signals(self) -> frozenset[str]:
        """Names of the teacher's signals that the terms read."""
        return frozenset[str]().union(*(term.teacher_signals for term in self.terms))

    @property
    def needs_teacher(self) -> bool:
        """Whether any term reads a teacher."""
        return bool(self.teacher_signals)

    @property
    def needs_targets(self) -> bool:
        """Whether any term reads the batch's targets."""
        return any(term.needs_targets for term in self.terms)

    @property
    def over_batch(self) -> tuple[Term, ...]:
        """The terms that read relations between samples."""
        return tuple(term for term in self.terms if term.over_batch)

    def counts(self, batch: Batch) -> list[int]:
        """Return for each term how many positions of a batch count for it."""
        masks = (term.mask(batch) for term in self.terms)
        return [len(batch) if mask is None else int(mask.sum()) for mask in masks]

    def describe(self) -> list[str]:
        """Return one line for each term: weight, loss, options and where it reads; equal for equal objectives."""
        return [term.describe() for term in self.terms]

    def __call__(
        self,
        student_signals: Signals,
        teacher_signals: Signals | None,
        batch: Batch,
        *,
        progress: float = 0.0,
        arguments: Arguments | None = None,
        shared: Shared | None = None,
        factors: Sequence[float] | None = None,
    ) -> Loss:
        """Return the weighted sum of the terms over the samples of one batch.

        Args:
            student_signals: the student's outputs, each (b, ...).
            teacher_signals: the teacher's outputs, each (b, ...); None where no term reads a teacher.
            batch: the samples; targets are read by hard terms.
            progress: share of the training that is done, 0 to 1; read by weights and options that change.
            arguments: what `apply_heads` prepared for the terms that have heads.
            shared: how to see the whole batch where it is split over processes.
            factors: what `factors_of` says of the whole batch where this is a part of it.

        Raises:
            UsageError: a signal that a term reads is absent, or a loss does not return one number per sample.
            DataError: a term reads targets and the batch has none.

        """
        totals: list[Tensor] = []
        parts: dict[str, Tensor] = {}
        factors = factors_of(self.counts(batch), len(batch)) if factors is None else factors
        for term, factor in zip(self.terms, factors, strict=True):
            prepared = (arguments or {}).get(term.key, {})
            share = shared if term.over_batch else None
            values = term_values(term, student_signals, teacher_signals, batch, progress, prepared, share, apart=True)
            weight = term.weight_at(progress) * factor
            totals.append(weight * values.sum())
            own = values if share is None else values[share.own]
            parts[term.name] = (weight * own.detach().sum()) if share is not None else totals[-1].detach()
        first, *others = totals
        return Loss(sum(others, start=first), parts, tuple(totals))


def factors_of(counts: Sequence[int], samples: int) -> list[float]:
    """Return what each term's sum is multiplied by, so that divided by the samples it is divided by its own count.

    Args:
        counts: for each term how many positions count for it, over the global batch.
        samples: of the global batch.

    """
    return [samples / count if count else 0.0 for count in counts]


def first_bad(parts: Mapping[str, Tensor]) -> str | None:
    """Return the name of the first part that is NaN or infinite, or None when all are finite."""
    finite = torch.stack([part.detach().double().isfinite().all() for part in parts.values()]).tolist() if parts else []
    return next((name for name, good in zip(parts, finite, strict=True) if not good), None)


def look_up(term: Term, signal: Signal, signals: Mapping[str, Any]) -> Any:
    """Return a signal (or its shape) by name.

    Raises:
        UsageError: there is none of that name.

    """
    if signal.name not in signals:
        raise UsageError(
            f"Term {term.name} reads the {signal.side}'s signal {signal.name!r}, which does not exist."
            f"{did_you_mean(signal.name, signals)} To read a hidden layer, tap it under that name."
        )
    return signals[signal.name]


def read_student(term: Term, student_signals: Signals) -> Value:
    """Return what a term reads of the student."""
    return _read(term, term.student, term.read, student_signals, {})


def read_teacher(term: Term, student_signals: Signals, teacher_signals: Signals | None) -> Value | None:
    """Return what a term reads in the teacher's place, or None where it reads nothing there."""
    if term.teacher is None:
        return None
    return _read(term, term.teacher, term.taught, student_signals, teacher_signals or {})


def term_values(
    term: Term,
    student_signals: Signals,
    teacher_signals: Signals | None,
    batch: Batch,
    progress: float,
    prepared: Mapping[str, Any],
    shared: Shared | None = None,
    *,
    apart: bool = False,
) -> Tensor:
    """Return a term's loss of each position, without its weight; of the whole batch where it is shared.

    It is 0 at positions that do not count for the term, whatever the signals hold there.

    With ``apart``, code of the user's reads copies: what it writes into them reaches no other term.
    """
    student = read_student(term, student_signals)
    arguments: dict[str, Any] = {term.parameters[0]: student}
    if term.teacher is not None:
        arguments[term.parameters[1]] = read_teacher(term, student_signals, teacher_signals)
    arguments = {**arguments, **prepared}
    if term.needs_targets:
        if batch.targets is None:
            raise DataError(
                f"Term {term.name} reads targets, and the data has none. Use the preset 'label_free' or add labels."
            )
        arguments["targets"] = batch.targets
    if apart and written_by_user(term.loss, term.transform):
        arguments |= {name: each(torch.clone, arguments[name]) for name in term.parameters}
    mask = term.mask(batch)
    if (transform := term.transform) is not None:
        for parameter in term.parameters[: 1 + (term.teacher is not None)]:
            arguments[parameter] = each(lambda signal: transform(blank(signal, mask)), arguments[parameter])
    if shared is not None:
        arguments = {name: _rows(term, name, value, shared.whole) for name, value in arguments.items()}
        mask = None if mask is None else shared.whole(mask)
    count = len(several(arguments[term.parameters[0]])[0])
    if mask is None or "where" in inspect.signature(term.loss).parameters:
        masked = {} if mask is None else {"where": mask}
        return _called(term, {**arguments, **masked}, (count,) if mask is None else mask.shape, progress)
    kept = {name: _rows(term, name, value, lambda rows: rows[mask]) for name, value in arguments.items()}
    first = several(kept[term.parameters[0]])[0]
    # The loss never sees positions that do not count; with none left it is not asked at all.
    values = _called(term, kept, first.shape[:1], progress) if len(first) else first[..., None].flatten(1).sum(1)
    return values.new_zeros(mask.shape).masked_scatter(mask, values)


def _called(term: Term, arguments: Mapping[str, Any], positions: Sequence[int], progress: float) -> Tensor:
    values: object = term.loss(**arguments, **_left(term.options_at(progress), arguments))
    if not isinstance(values, Tensor) or values.shape != tuple(positions):
        got = f"shape {tuple(values.shape)}" if isinstance(values, Tensor) else type(values).__name__
        raise UsageError(
            f"Term {term.name}: the loss must return one number per sample, shape {tuple(positions)}, and returned "
            f"{got}. Do not average over the batch: the training step does, once."
        )
    return values


def written_by_user(*parts: Any) -> bool:
    """Whether any of some functions is none of potstill's own, which write into nothing that they are given."""
    modules = (str(getattr(part, "__module__", "")) for part in parts if part is not None)
    return not all(module.startswith("potstill.") for module in modules)


def _read(
    term: Term, names: Names, read: Sequence[Signal], student_signals: Signals, teacher_signals: Signals
) -> Value:
    def one(signal: Signal) -> Tensor:
        value: Tensor = look_up(term, signal, student_signals if signal.side == "student" else teacher_signals)
        return value.detach() if signal.taught and signal.side == "student" else value

    values = tuple(map(one, read))
    return values[0] if isinstance(names, str) else values


def _rows(term: Term, name: str, value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Return an argument with its rows changed; what a head prepares beside the signals stays as it is."""
    return each(change, value) if name in term.parameters else value


def _left(options: Mapping[str, Any], arguments: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name not in arguments}
