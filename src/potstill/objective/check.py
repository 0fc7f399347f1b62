"""Refusing an objective that cannot work, before anything is trained."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from potstill.core.errors import PotstillError, TeacherError, UsageError
from potstill.core.names import Signal
from potstill.core.signals import Batch
from potstill.objective.parts import apply_heads, heads_for
from potstill.objective.term import Term
from potstill.objective.total import Objective, look_up, term_values, written_by_user
from potstill.tasks import task_of

Shapes = Mapping[str, tuple[int, ...]]
_SAMPLES = 4


def check(
    objective: Objective, student_shapes: Shapes, teacher_shapes: Shapes | None, num_classes: int, task: str
) -> dict[str, Tensor]:
    """Refuse an objective that cannot work, before anything is trained.

    Every head is built and every loss tried once on made-up samples of the given shapes, so that bad options show
    here as well.

    Args:
        objective: the terms.
        student_shapes: shape of each of the student's signals, without the batch dimension.
        teacher_shapes: the same for the teacher; None when there is no teacher.
        num_classes: number of classes, or of outputs in regression.
        task: ``"classification"`` or ``"regression"``.

    Returns:
        what each loss says of the made-up samples, by the name of its term; heads start at random, so that terms with
        one are left out.

    Raises:
        UsageError: a term does not fit the task, reads an absent signal, or its loss fails on these shapes.
        TeacherError: the teacher's logits have another number of classes than the data.

    """
    said = {}
    for term in objective.terms:
        _check_task(term, task)
        for signal in (*term.read, *term.taught):
            shapes = student_shapes if signal.side == "student" else teacher_shapes
            if shapes is None:
                raise UsageError(
                    f"Term {term.name} reads a teacher, and there is none. Give a teacher or use the preset 'alone'."
                )
            shape = look_up(term, signal, shapes)
            _check_outputs(term, signal, shape, num_classes, task)
        values = _try(term, student_shapes, teacher_shapes, num_classes, task)
        if term.head is None:
            said[term.name] = values.detach()
    return said


def _check_outputs(term: Term, signal: Signal, shape: tuple[int, ...], num_outputs: int, task: str) -> None:
    """Refuse logits or values of another shape than the data asks for, unless a head brings the two together."""
    shape = tuple(shape)
    scalar = term.kind == "values" and num_outputs == 1 and shape == ()
    if term.kind not in ("logits", "values") or shape == (num_outputs,) or scalar or term.head is not None:
        return
    name = str(signal)
    if signal.side == "student":
        raise UsageError(
            f"Term {term.name}: the student's {name!r} has shape {shape} per sample, but the data "
            f"has {num_outputs} {task_of(task).outputs}. Build the student with num_classes={num_outputs}."
        )
    raise TeacherError(
        f"Term {term.name}: the teacher's {name!r} has shape {shape} per sample, but the "
        f"data has {num_outputs} {task_of(task).outputs}. Use a teacher trained on the same classes, in the same "
        "order."
    )


def _check_task(term: Term, task: str) -> None:
    asked = task_of(task)
    unfit = asked.fitting is not None and term.loss not in asked.fitting and not written_by_user(term.loss)
    if term.kind in ("logits", "values") and (term.kind != asked.signal or unfit):
        use = asked.hard if term.teacher is None else asked.soft
        raise UsageError(
            f"Term {term.name} reads {term.kind} in a way that does not fit the task {task}. "
            f"Use {use.__name__} instead."
        )


def _try(term: Term, student_shapes: Shapes, teacher_shapes: Shapes | None, num_classes: int, task: str) -> Tensor:
    # The two sides differ, so that a loss between them is not 0 whatever its code says.
    student, teacher = _made_up(student_shapes), {name: -s for name, s in _made_up(teacher_shapes or {}).items()}
    if term.kind == "attention":  # some losses take only what a softmax gives, and all of them take that
        student, teacher = ({n: s.softmax(-1) for n, s in side.items() if s.dim() > 1} for side in (student, teacher))
    before = {name: signal.clone() for name, signal in teacher.items()}
    # As in training, the student's signals are no leaves: a loss may work on them in place.
    student = {name: signal.requires_grad_().clone() for name, signal in student.items()}
    ids = torch.arange(_SAMPLES)
    targets = task_of(task).targets.made_up(_SAMPLES, num_classes)
    try:
        heads = heads_for([term], student, teacher, ids=ids)
        heads.train()
        prepared: dict[str, Any] = apply_heads(heads, [term], student, teacher, ids).get(term.key, {})
        values = term_values(term, student, teacher, Batch(ids, ids, ids, targets), 0.0, prepared)
    except PotstillError as error:
        message = str(error)
        raise UsageError(message if message.startswith("Term ") else f"Term {term.name}: {message}") from error
    except Exception as error:
        shape = {signal.name: tuple(student_shapes[signal.name]) for signal in term.read}
        shown = next(iter(shape.values())) if len(shape) == 1 else shape
        raise UsageError(
            f"Term {term.name}: the loss failed on samples of shape {shown}: {type(error).__name__}: {error}"
        ) from error
    if not values.requires_grad:
        raise UsageError(
            f"Term {term.name}: its loss gives the student no gradient, so that nothing can be learned from it. Look "
            "for .detach(), torch.no_grad(), argmax or a comparison in it."
        )
    if not all(torch.equal(signal, before[name]) for name, signal in teacher.items()):
        raise UsageError(
            f"Term {term.name}: its loss changes the teacher's signals in place, which the other terms read too. Work "
            "on copies: teacher_logits.clone()."
        )
    return values


def _made_up(shapes: Shapes) -> dict[str, Tensor]:
    return {name: _ramp(tuple(shape)) for name, shape in shapes.items()}


def _ramp(shape: tuple[int, ...]) -> Tensor:
    return torch.linspace(-1.0, 1.0, _SAMPLES * math.prod(shape)).reshape(_SAMPLES, *shape)
