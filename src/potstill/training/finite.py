"""Losses and gradients that are NaN or infinite: where they come from, and that nothing learns of them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from accelerate.utils import gather_object
from torch import Tensor, nn

from potstill.core.signals import Batch
from potstill.objective import first_bad
from potstill.training.machine import Machine
from potstill.training.relations import discard


class NotFiniteError(Exception):
    """A gradient or loss was NaN or infinite; the weights are those from before. ``what`` says where."""

    def __init__(self, what: str) -> None:
        super().__init__(what)
        self.what = what


def check_finite(machine: Machine, sums: Tensor, norm: Tensor, pieces: Sequence[Batch]) -> None:
    """Refuse a step whose losses or gradient are not finite, now or, where that is left to the device, later.

    Args:
        machine: of the step.
        sums: (1 + t,) of the total and of each term, in this process.
        norm: of the gradient.
        pieces: the micro-batches.

    Raises:
        NotFiniteError: they are not.

    """
    if machine.bad is not None:
        wrong = ~(norm.isfinite() & sums.isfinite().all())
        torch.maximum(machine.bad, wrong.to(machine.bad.dtype), out=machine.bad)
        return
    # The norm is equal on all processes, so that they stop together; the sums are each process's own.
    alone = machine.accelerator.num_processes == 1
    if math.isfinite(float(norm)) and not (alone and not math.isfinite(float(sums.sum()))):
        return
    discard(machine.trainee.heads)
    why = _impossible_class(machine, pieces) if alone and bool(sums.isinf().any()) else ""
    raise NotFiniteError(what_is_bad(machine, sums) + why)


def what_is_bad(machine: Machine, sums: Tensor) -> str:
    """Say which term is not finite, on any process; else which gradient. Every process must call it."""
    bad: str | None = first_bad(dict(zip(machine.term_names, sums[1:], strict=True)))
    if machine.accelerator.num_processes > 1:
        bad = next((name for name in gather_object([bad]) if name is not None), None)
    if bad is not None:
        return f"the term {bad!r} is not finite"
    layer = _first_bad_gradient(machine.trainee.named_parameters())
    return f"every term is finite, but the gradient of {layer} is not" if layer else "the gradient is not finite"


def _impossible_class(machine: Machine, pieces: Sequence[Batch]) -> str:
    """Name a class that the student rules out and the teacher holds possible, which makes a KL infinite."""
    with torch.no_grad():
        for piece in (piece.to(machine.device) for piece in pieces):
            taught = machine.ask_teacher(piece) or {}
            signals, _ = machine.trainee(piece.tensor, taught or None, piece.ids, piece.views)
            student, teacher = signals.get("logits"), taught.get("logits")
            if student is None or teacher is None or student.shape != teacher.shape:
                continue
            for number in (student.isneginf() & ~teacher.isneginf()).any(0).nonzero().flatten().tolist()[:1]:
                return (
                    f": the student's logit of class {number} (counted from 0) is -inf, and the teacher gives that "
                    "class a probability. Let both rule out the same classes, or use skew_forward_kl"
                )
    return ""


def _first_bad_gradient(named: Iterable[tuple[str, nn.Parameter]]) -> str | None:
    return next((name for name, p in named if p.grad is not None and not bool(p.grad.isfinite().all())), None)
