"""What every loss does before and after its formula: check shapes, lift the precision, apply the mask.

Shape legend: b samples, c classes, k outputs, ``...`` any further dimensions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from potstill.core.errors import UsageError

Loss = TypeVar("Loss", bound=Callable[..., Tensor])


def lift(tensor: Tensor, name: str) -> Tensor:
    """Return ``tensor`` in float32; float64 stays float64, so that gradients can be checked numerically."""
    if not tensor.is_floating_point():
        raise UsageError(f"{name} must hold floating point numbers, not {tensor.dtype}. Convert it with .float().")
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def constant(tensor: Tensor) -> Tensor:
    """Return ``tensor`` as a constant: no gradient reaches the teacher, and inference tensors become usable."""
    return tensor.clone() if tensor.is_inference() else tensor.detach()


def check_mask(where: Tensor | None, positions: Sequence[int]) -> None:
    """Refuse a mask that is not boolean of the shape of the positions, (b,) where each sample is one."""
    if where is None:
        return
    if where.dtype != torch.bool or where.shape != tuple(positions):
        raise UsageError(
            f"where must be a boolean tensor of shape {tuple(positions)}, True for samples to keep, not "
            f"{where.dtype} of shape {tuple(where.shape)}."
        )


def blank(tensor: Tensor, where: Tensor | None) -> Tensor:
    """Put 0 into positions that are masked out, so that whatever they hold reaches neither values nor gradients."""
    if where is None:
        return tensor
    return tensor.masked_fill(~where.reshape(*where.shape, *[1] * (tensor.dim() - where.dim())), 0)


def keep(values: Tensor, where: Tensor | None) -> Tensor:
    """Put 0 into the values (...) of positions that are masked out; the graph stays valid."""
    return values if where is None else values.masked_fill(~where, 0.0)


def pair(
    student: Tensor,
    teacher: Tensor,
    where: Tensor | None,
    *,
    names: tuple[str, str],
    min_dims: int,
    positions: int = 1,
) -> tuple[Tensor, Tensor]:
    """Return a student's and a teacher's tensor of equal shape, lifted, masked, the teacher as a constant.

    The first ``positions`` dimensions are those of the mask.
    """
    if student.dim() < min_dims or student.shape != teacher.shape:
        raise UsageError(
            f"{names[0]} has shape {tuple(student.shape)} and {names[1]} {tuple(teacher.shape)}: they must be equal, "
            f"with at least {min_dims} dimensions, the batch first."
        )
    check_mask(where, student.shape[:positions])
    lifted = lift(student, names[0])
    return blank(lifted, where), blank(lift(constant(teacher), names[1]).to(lifted.dtype), where)


def logit_pair(
    student_logits: Tensor, teacher_logits: Tensor, where: Tensor | None, *, min_classes: int
) -> tuple[Tensor, Tensor]:
    """Return both sides' logits (..., c), checked, lifted and masked, the teacher's as a constant.

    A logit may be −inf: that class has no probability. A row in which every class is, or a teacher's +inf, is refused.
    """
    check_logits(student_logits, "student_logits", min_classes)
    names, positions = ("student_logits", "teacher_logits"), student_logits.dim() - 1
    student, teacher = pair(student_logits, teacher_logits, where, names=names, min_dims=2, positions=positions)
    for side, name in ((student.detach(), "student_logits"), (teacher, "teacher_logits")):
        refuse_if(
            side.amax(dim=-1) == -torch.inf,
            f"{name} has a row in which every class is -inf, so that no class is possible. Leave such rows out with "
            "where=.",
        )
    refuse_if(teacher == torch.inf, "teacher_logits holds +inf, which has no softmax. Give a large finite number.")
    return student, teacher


def finite_logits(logits: Tensor, name: str, *, instead: str) -> Tensor:
    """Return raw logits, refused where one is infinite: a difference of these has no meaning, a softmax has."""
    refuse_if(
        logits.detach().isinf(),
        f"{name} holds infinite values, and this loss compares raw logits. Leave these classes out, or use {instead}, "
        "which reads -inf as a class without probability.",
    )
    return logits


def check_logits(logits: Tensor, name: str, min_classes: int) -> None:
    """Refuse logits that are not (..., c), or with so few classes that the loss is constant."""
    if logits.dim() < 2:
        raise UsageError(f"{name} must have shape (batch, ..., classes), not {tuple(logits.shape)}.")
    if logits.shape[-1] < min_classes:
        raise UsageError(
            f"{name} has {logits.shape[-1]} class: its softmax is always 1 and nothing can be learned. For a binary "
            "task give the model two outputs; to match single logits use logit_mse; for numbers use mse or teacher_mse."
        )


def positive(value: float, name: str) -> float:
    """Return ``value`` if it is a finite number above 0."""
    if not (math.isfinite(value) and value > 0):
        raise UsageError(f"{name}={value!r} must be a finite number above 0.")
    return float(value)


def refuse_if(bad: Tensor, message: str) -> None:
    """Raise when any element of ``bad`` is true; looked at on the CPU only, so that no step waits for a device."""
    if bad.device.type == "cpu" and bool(bad.any()):
        raise UsageError(message)


def over_batch(loss: Loss) -> Loss:
    """Mark a loss that reads relations between samples: training gives it whole batches, over all processes."""
    loss.over_batch = True  # type: ignore[attr-defined]
    return loss


def unbiased_under_sampling(loss: Loss) -> Loss:
    """Mark a loss whose gradient is linear in the teacher's probabilities at temperature 1: samples may stand in."""
    loss.unbiased_under_sampling = True  # type: ignore[attr-defined]
    return loss
