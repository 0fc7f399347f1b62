"""One optimiser step: each term's sum over a global batch, divided once by what counts for it there.

However the batch is split, over micro-batches or processes, the gradient is that of the same quotient.
Shape legend: t terms of the objective.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.distributed as dist
from torch import Tensor

from potstill.core.signals import Batch
from potstill.objective import factors_of
from potstill.training.backward import begin, is_alone
from potstill.training.finite import check_finite
from potstill.training.machine import Machine, Moment
from potstill.training.relations import commit, gather_rows, share


@dataclass(frozen=True)
class Taken:
    """What one step saw in this process: ``sums`` (1 + t,) of the total and of each term, and the gradient's norm.

    ``conflict`` (t + 1,) is what `potstill.training.gradients.conflict` says of the terms' gradients, where asked for.
    """

    sums: Tensor
    norm: Tensor
    conflict: Tensor | None = None


def take_step(machine: Machine, batch: Batch, moment: Moment) -> Taken:
    """Train on one batch: ask the teacher, ask the student, value the objective, go backward, update.

    Args:
        machine: trainee, optimiser, objective and teacher.
        batch: this process's part of the global batch.
        moment: where in training the step is.

    Raises:
        NotFiniteError: the loss or the gradient is not finite; nothing was updated.

    """
    processes: int = machine.accelerator.num_processes
    alone = is_alone(machine, moment)
    machine.switch.on = not moment.whole
    for group in machine.optimiser.param_groups:
        group["lr"] = moment.rate
    machine.optimiser.zero_grad()
    backward = begin(machine, moment)
    together = None
    if machine.objective.over_batch and not alone:
        together = share(moment.count, machine.accelerator.process_index, processes)
    factors = _factors(machine, batch, moment)
    smallest = moment.count if moment.whole else moment.count // processes
    pieces = micro_batches(batch, machine.settings.accumulate, smallest)
    sums = torch.zeros(1, device=machine.device)
    for index, piece in enumerate(pieces):
        with _synchronise_gradients(machine, last=index == len(pieces) - 1):
            piece = piece.to(machine.device)
            taught = machine.ask_teacher(piece)
            signals, prepared = machine.model(piece.tensor, taught, piece.ids, piece.views)
            loss = machine.objective(
                signals,
                taught,
                piece,
                progress=moment.progress,
                arguments=prepared,
                shared=together,
                factors=factors,
            )
            backward.add(loss)
        own = torch.stack(list(loss.parts.values()))
        parts = torch.cat([own.sum(0, keepdim=True), own])
        sums = parts if index == 0 else sums + parts
    if moment.whole and processes > 1:
        sums = sums / processes
    conflict = backward.finish()
    norm = gradient_norm(machine)
    check_finite(machine, sums, norm, pieces)
    machine.optimiser.step()
    commit(machine.trainee.heads, (lambda rows: rows) if alone else gather_rows)
    return Taken(sums, norm, conflict)


def _factors(machine: Machine, batch: Batch, moment: Moment) -> list[float]:
    """Return the factor of each term over the global batch; every process must call it."""
    if batch.where is None and batch.labelled is None:
        return [1.0] * len(machine.objective.terms)
    counts = torch.tensor(machine.objective.counts(batch), device=machine.device)
    if not is_alone(machine, moment):
        dist.all_reduce(counts)
    return factors_of(counts.tolist(), moment.count)


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


def gradient_norm(machine: Machine) -> Tensor:
    """Return the norm of the whole gradient, and clip the gradient to the limit where there is one."""
    clip = machine.settings.gradient_clip
    if clip is not None:
        norm: Tensor = machine.accelerator.clip_grad_norm_(machine.parameters, clip)
        return norm.detach()
    return torch.nn.utils.get_total_norm([p.grad for p in machine.parameters if p.grad is not None])


def _synchronise_gradients(machine: Machine, *, last: bool) -> AbstractContextManager[object]:
    if last or machine.accelerator.num_processes == 1:
        return nullcontext()
    context: AbstractContextManager[object] = machine.accelerator.no_sync(machine.model)
    return context
