"""What losses on relations between samples share: the rows that take part, at one scale, and the way back.

Shape legend: b samples, r samples that take part, n numbers of one sample.
"""

from __future__ import annotations

import torch
from torch import Tensor

from potstill.core.errors import UsageError
from potstill.losses._shared import check_mask, constant, lift


def related(
    student: Tensor, teacher: Tensor, where: Tensor | None, *, loss: str, word: str, alternative: str
) -> tuple[Tensor, Tensor]:
    """Return the rows (r, n) of both sides that take part, lifted, flat, the largest number of each side 1.

    For losses that do not change when a side is multiplied by a number: at one scale, squares neither overflow nor
    vanish, and "all but 0" has one meaning.

    Args:
        student: (b, ...) the student's signal.
        teacher: (b, ...) the teacher's; the sizes of one sample may differ.
        where: (b,) boolean mask, or None.
        loss: name of the loss, for messages.
        word: what the loss calls its signals.
        alternative: what to use where one sample is alone.

    Raises:
        UsageError: not as many samples on both sides, fewer than 2 dimensions, one sample, or a bad mask.

    """
    if student.dim() < 2 or teacher.dim() < 2 or len(student) != len(teacher):
        raise UsageError(
            f"student_{word} has shape {tuple(student.shape)} and teacher_{word} {tuple(teacher.shape)}: expected "
            "at least 2 dimensions, the batch first, with as many samples on both sides."
        )
    check_mask(where, student.shape[:1])
    rows = lift(student, f"student_{word}")
    others = lift(constant(teacher), f"teacher_{word}").to(rows.dtype)
    if where is not None:
        rows, others = rows[where], others[where]
    if len(rows) == 1:
        raise UsageError(
            f"{loss} compares the samples of a batch with each other, and got a batch of 1. Use larger batches, "
            f"or {alternative}, which compares each sample by itself."
        )
    return _at_scale(rows.flatten(1)), _at_scale(others.flatten(1))


def put_back(values: Tensor, where: Tensor | None) -> Tensor:
    """Return values (r,) in the places of their samples, (b,), and 0 elsewhere."""
    return values if where is None else values.new_zeros(len(where)).masked_scatter(where, values)


def _at_scale(rows: Tensor) -> Tensor:
    if rows.numel() == 0:
        return rows
    # As the losses do not change with the scale, no gradient needs to pass through it.
    return rows / rows.detach().abs().amax().clamp_min(torch.finfo(rows.dtype).tiny)
