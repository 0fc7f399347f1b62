"""What the losses on hidden layers share: checked pairs of maps, pooling to one size, unit vectors.

Shape legend: b samples, c channels, h and w rows and columns of a map.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from potstill.core.errors import UsageError
from potstill.losses._shared import blank, check_mask, constant, lift

SILENT = 1e-6
"""Vectors shorter than this count as 0: they have no direction."""


def map_pair(
    student: Tensor, teacher: Tensor, where: Tensor | None, *, same: str = "", vectors: bool = False
) -> tuple[Tensor, Tensor]:
    """Return a student's and a teacher's maps (b, c, h, w), lifted, masked, the teacher's as a constant.

    Args:
        student: the student's maps.
        teacher: the teacher's maps, of as many samples.
        where: (b,) boolean mask, or None.
        same: ``"channels"`` or ``"shape"``, what must be equal, with the advice after a colon.
        vectors: also take vectors (b, c), as maps of one pixel.

    Raises:
        UsageError: other shapes, or a mask that is not boolean (b,).

    """
    if vectors:
        student, teacher = (maps[:, :, None, None] if maps.dim() == 2 else maps for maps in (student, teacher))
    shapes = f"student_maps have shape {tuple(student.shape)} and teacher_maps {tuple(teacher.shape)}"
    if student.dim() != 4 or teacher.dim() != 4 or len(student) != len(teacher):
        raise UsageError(f"{shapes}: expected (batch, channels, height, width) of as many samples on both sides.")
    what, _, advice = same.partition(":")
    if what and (student.shape[1] != teacher.shape[1] or (what == "shape" and student.shape != teacher.shape)):
        raise UsageError(f"{shapes}: the {what} must be equal.{advice}")
    check_mask(where, student.shape[:1])
    lifted = lift(student, "student_maps")
    return blank(lifted, where), blank(lift(constant(teacher), "teacher_maps").to(lifted.dtype), where)


def map_pairs(
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    where: Tensor | None,
    *,
    least: int,
    same: str,
    vectors: bool = False,
) -> list[tuple[Tensor, Tensor]]:
    """Return `map_pair` of every level of two tuples of maps; at least ``least`` of them."""
    given: tuple[tuple[str, object], ...] = (("student", student), ("teacher", teacher))
    for side, maps in given:
        if isinstance(maps, Tensor):  # a tensor is a sequence too, of its samples
            raise UsageError(
                f"{side}_maps is one tensor; this loss reads a tuple of {least} or more maps. A term does so "
                "with a list of names: on=['layer2', 'layer3']."
            )
    if len(student) != len(teacher) or len(student) < least:
        raise UsageError(
            f"Got {len(student)} student_maps and {len(teacher)} teacher_maps: as many on both sides, at least {least}."
        )
    pairs = [map_pair(s, t, where, same=same, vectors=vectors) for s, t in zip(student, teacher, strict=True)]
    counts = [len(maps) for maps, _ in pairs]
    if len(set(counts)) > 1:
        raise UsageError(f"The levels hold {counts} samples; their shapes must agree in that.")
    return pairs


def smaller(first: Tensor, second: Tensor, *, least: int = 1, advice: str = "") -> tuple[Tensor, Tensor]:
    """Return both maps (b, c, h, w) averaged over windows to the smaller height and the smaller width of the two.

    Raises:
        UsageError: fewer than ``least`` pixels are left.

    """
    height, width = (min(first.shape[axis], second.shape[axis]) for axis in (2, 3))
    if height * width < least:
        raise UsageError(
            f"Maps of shape {tuple(first.shape)} and {tuple(second.shape)} have {height} x {width} pixel in common: "
            f"where everything is one pixel there is nothing to compare over space. {advice}"
        )
    return pooled(first, (height, width)), pooled(second, (height, width))


def pooled(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Return maps averaged over windows to another size."""
    return maps if tuple(maps.shape[2:]) == size else F.adaptive_avg_pool2d(maps, size)


def unit(vectors: Tensor) -> Tensor:
    """Return vectors, along the last dimension, at length 1; those that are all but 0 become 0, without a gradient."""
    length = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
    return torch.where(length > SILENT, vectors / length.clamp_min(SILENT), 0.0)


def product(first: Tensor, second: Tensor) -> Tensor:
    """Return the matrix product at the precision of its arguments, also under autocast."""
    with torch.autocast(first.device.type, enabled=False):
        return first @ second


def by_channel(signal: Tensor) -> Tensor:
    """Return a hidden signal as (b, channels, positions): (b, d), tokens (b, t, d) or maps (b, c, h, w, ...)."""
    if signal.dim() == 2:
        return signal[:, :, None]
    return signal.transpose(1, 2) if signal.dim() == 3 else signal.flatten(2)


def fits_a_sample(option: Tensor, signal: Tensor, name: str) -> Tensor:
    """Return an option of one number per channel (or any part of a sample), in the precision of the signal.

    Raises:
        UsageError: it does not spread over one sample of the signal.

    """
    sample = tuple(signal.shape[1:])
    try:
        option.expand(sample)
    except RuntimeError as error:
        raise UsageError(
            f"{name} has shape {tuple(option.shape)}, which does not spread over one sample of shape {sample}. Give "
            "one number, or one per channel: (c, 1, 1) for maps, (d,) for tokens and vectors."
        ) from error
    return lift(option, name).to(signal.dtype)
