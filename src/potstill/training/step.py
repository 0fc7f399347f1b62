"""One optimiser step: the sum of the objective over a global batch, divided once by the number of its samples.

However the batch is split, over micro-batches or processes, the gradient is that of the same quotient.
Shape legend: t terms of the objective.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn

from potstill.core.signals import Batch, Signals
from potstill.objective import Objective, first_bad
from potstill.teachers.protocol import Teacher
from potstill.training.dot import Dot
from potstill.training.gradients import Gradients, conflict, hard_and_soft
from potstill.training.learner import Learner
from potstill.training.relations import commit, discard, gather_rows, share
from potstill.training.stages import Stage, set_modes, stage_at


@dataclass(frozen=True)
class Machine:
    """What a step works with; all of it stays the same from step to step.

    ``model`` is the learner as Accelerate prepared it. ``deferred`` leaves looking at the gradient to the device: an
    update with a gradient that is not finite, and every later one, is skipped there without the host waiting.
    """

    accelerator: Accelerator
    learner: Learner
    model: nn.Module
    optimiser: torch.optim.Optimizer
    parameters: tuple[nn.Parameter, ...]
    objective: Objective
    teacher: Teacher | None
    accumulate: int
    clip: float | None
    deferred: bool
    bad: Tensor
    stages: tuple[Stage, ...] = ()

    @property
    def device(self) -> torch.device:
        """Where the learner is."""
        device: torch.device = self.accelerator.device
        return device


@dataclass(frozen=True)
class Taken:
    """What one step saw in this process: ``sums`` (1 + t,) of the total and of each term, and the gradient's norm.

    ``conflict`` (t + 1,) is what `potstill.training.gradients.conflict` says of the terms' gradients, where asked for.
    """

    sums: Tensor
    norm: Tensor
    conflict: Tensor | None = None


class NotFiniteError(Exception):
    """A gradient or loss was NaN or infinite; the weights are those from before. ``what`` says where."""

    def __init__(self, what: str) -> None:
        super().__init__(what)
        self.what = what


def take_step(
    machine: Machine, batch: Batch, *, count: int, whole: bool, progress: float, rate: float, report: bool = False
) -> Taken:
    """Train on one batch.

    Args:
        machine: learner, optimiser, objective and teacher.
        batch: this process's part of the global batch.
        count: samples of the global batch.
        whole: whether every process holds the whole global batch, because it is too small to be split.
        progress: share of training that is done, for weights that change.
        rate: learning rate.
        report: whether to look at the gradient of each term as well, which takes a backward pass for each.

    Raises:
        NotFiniteError: the loss or the gradient is not finite; nothing was updated.

    """
    processes: int = machine.accelerator.num_processes
    alone = whole or processes == 1
    for group in machine.optimiser.param_groups:
        group["lr"] = rate
    machine.optimiser.zero_grad()
    stage = stage_at(machine.stages, progress)
    frozen = {id(parameter) for parameter in stage.frozen} if stage is not None else set()
    if stage is not None:
        set_modes(machine.learner, stage)
    # Distributed wrappers average gradients over processes, Accelerate divides by its own count of micro-batches.
    scale = (1 if whole else processes) * machine.accelerator.gradient_accumulation_steps / count
    together = None
    if machine.objective.over_batch and not alone:
        together = share(count, machine.accelerator.process_index, processes)
    # Two gradients are summed over processes by hand: a distributed wrapper knows of one only.
    two = Gradients(machine.parameters, 2) if isinstance(machine.optimiser, Dot) else None
    model = machine.model if two is None else machine.learner
    each = _gradients_of_terms(machine, frozen) if report else None
    pieces = micro_batches(batch, machine.accumulate, count if whole else count // processes)
    sums = torch.zeros(1, device=machine.device)
    for index, piece in enumerate(pieces):
        with _synchronise_gradients(machine, last=index == len(pieces) - 1):
            piece = piece.to(machine.device)
            taught = teacher_signals(machine, piece)
            signals, prepared = model(piece.inputs, taught, piece.ids, piece.views)
            loss = machine.objective(signals, taught, piece, progress=progress, arguments=prepared, shared=together)
            if each is not None:
                each.add(loss.summands, keep_graph=True)
            if two is not None:
                two.add(hard_and_soft(machine.objective, loss), keep_graph=False)
            else:
                machine.accelerator.backward(loss.total * scale)
        own = torch.stack(list(loss.parts.values()))
        parts = torch.cat([own.sum(0, keepdim=True), own])
        sums = parts if index == 0 else sums + parts
    if whole and processes > 1:
        sums = sums / processes
    if two is not None:
        _hand_over(machine, two, two.mean(count, alone=alone))
    for parameter in stage.frozen if stage is not None else ():
        parameter.grad = None
    norm = gradient_norm(machine)
    _refuse_bad(machine, sums, norm, pieces)
    machine.optimiser.step()
    commit(machine.learner.heads, (lambda rows: rows) if alone else gather_rows)
    found = None if each is None else conflict(machine.objective, each.mean(count, alone=alone))
    return Taken(sums, norm, found)


def micro_batches(batch: Batch, accumulate: int, smallest: int) -> list[Batch]:
    """Split a batch into ``accumulate`` contiguous micro-batches, sizes as equal as can be.

    Every process makes the same number of them, as batch norm waits for the others; none has a single sample unless
    the batch has, as batch norm cannot train on one.

    Args:
        batch: this process's samples.
        accumulate: how many micro-batches there should be.
        smallest: samples of the process that has the fewest.

    """
    pieces = max(1, min(accumulate, smallest // 2))
    if pieces == 1:
        return [batch]
    bounds = [index * len(batch) // pieces for index in range(pieces + 1)]
    return [batch.narrow(low, high) for low, high in pairwise(bounds)]


def teacher_signals(machine: Machine, batch: Batch) -> Signals | None:
    """Ask the teacher about a batch, on the learner's device; None where the objective reads no teacher."""
    if machine.teacher is None or not machine.objective.needs_teacher:
        return None
    with torch.no_grad():
        signals = machine.teacher(batch)
    return {name: signals[name].to(machine.device, non_blocking=True) for name in machine.objective.teacher_signals}


def gradient_norm(machine: Machine) -> Tensor:
    """Return the norm of the whole gradient, and clip the gradient to the limit where there is one."""
    if machine.clip is not None:
        norm: Tensor = machine.accelerator.clip_grad_norm_(machine.parameters, machine.clip)
        if isinstance(machine.optimiser, Dot):
            machine.optimiser.scale = (machine.clip / (norm.detach() + 1e-6)).clamp(max=1.0)
        return norm.detach()
    return torch.nn.utils.get_total_norm([p.grad for p in machine.parameters if p.grad is not None])


def _hand_over(machine: Machine, two: Gradients, gradients: Tensor) -> None:
    """Give the hard and the soft gradient to the optimiser, and their sum to everybody."""
    hard, soft = map(two.split, gradients)
    if isinstance(machine.optimiser, Dot):
        machine.optimiser.parts = dict(zip(two.parameters, zip(hard, soft, strict=True), strict=True))
    for parameter, one, other, used in zip(two.parameters, hard, soft, two.used, strict=True):
        parameter.grad = one + other if used else None


def _gradients_of_terms(machine: Machine, frozen: set[int]) -> Gradients:
    trained = [p for p in machine.learner.student.parameters() if p.requires_grad and id(p) not in frozen]
    return Gradients(trained, len(machine.objective.terms))


def _synchronise_gradients(machine: Machine, *, last: bool) -> AbstractContextManager[object]:
    if last or machine.accelerator.num_processes == 1:
        return nullcontext()
    context: AbstractContextManager[object] = machine.accelerator.no_sync(machine.model)
    return context


def _refuse_bad(machine: Machine, sums: Tensor, norm: Tensor, pieces: Sequence[Batch]) -> None:
    if machine.deferred:
        wrong = ~(norm.isfinite() & sums.isfinite().all())
        torch.maximum(machine.bad, wrong.to(machine.bad.dtype), out=machine.bad)
        return
    # The norm is equal on all processes, so that they stop together; the sums are each process's own.
    alone = machine.accelerator.num_processes == 1
    if math.isfinite(float(norm)) and not (alone and not math.isfinite(float(sums.sum()))):
        return
    discard(machine.learner.heads)
    why = _impossible_class(machine, pieces) if alone and bool(sums.isinf().any()) else ""
    raise NotFiniteError(what_is_bad(machine, sums) + why)


def what_is_bad(machine: Machine, sums: Tensor) -> str:
    """Say which term is not finite, on any process; else which gradient. Every process must call it."""
    names = [term.name for term in machine.objective.terms]
    found: str | None = first_bad(dict(zip(names, sums[1:], strict=True)))
    if machine.accelerator.num_processes > 1:
        found = next((name for name in gather_object([found]) if name is not None), None)
    if found is not None:
        return f"the term {found!r} is not finite"
    layer = _first_bad_gradient(machine.learner.named_parameters())
    return f"every term is finite, but the gradient of {layer} is not" if layer else "the gradient is not finite"


def _impossible_class(machine: Machine, pieces: Sequence[Batch]) -> str:
    """Name a class that the student rules out and the teacher holds possible, which makes a KL infinite."""
    with torch.no_grad():
        for piece in (piece.to(machine.device) for piece in pieces):
            taught = teacher_signals(machine, piece) or {}
            signals, _ = machine.learner(piece.inputs, taught or None, piece.ids, piece.views)
            student, teacher = signals.get("logits"), taught.get("logits")
            if student is None or teacher is None or student.shape != teacher.shape:
                continue
            for number in (student.isneginf() & ~teacher.isneginf()).any(0).nonzero().flatten().tolist()[:1]:
                return (
                    f": the student's logit of class {number} (counted from 0) is -inf, and the teacher gives that "
                    "class a probability. Let both rule out the same classes, or use skew_forward_kl"
                )
    return ""


def _first_bad_gradient(named: Any) -> str | None:
    return next((name for name, p in named if p.grad is not None and not bool(p.grad.isfinite().all())), None)
