"""What losses on values share: both sides as columns.

Shape legend: b samples, k outputs.
"""

from __future__ import annotations

from torch import Tensor

from potstill.core.errors import UsageError
from potstill.losses._shared import blank, check_mask, constant, lift


def columns(student_values: Tensor, wanted: Tensor, name: str, where: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return both sides as (..., k), lifted and masked; (b,) is one column, and never makes a (b, b) table."""
    student_shape, wanted_shape = ((*t.shape, 1) if t.dim() == 1 else tuple(t.shape) for t in (student_values, wanted))
    if len(student_shape) < 2 or student_shape != wanted_shape:
        raise UsageError(
            f"student_values has shape {tuple(student_values.shape)} and {name} {tuple(wanted.shape)}: both must be "
            "(batch, ..., outputs), or (batch,) for one output."
        )
    check_mask(where, student_shape[:-1])
    student = lift(student_values, "student_values").reshape(student_shape)
    return blank(student, where), blank(constant(wanted).to(student.dtype).reshape(wanted_shape), where)
