"""What the heads on hidden layers share: one signal of each side, at one size.

Shape legend: b samples, c channels, h and w rows and columns of a map, t tokens, d features.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from potstill.core.errors import UsageError
from potstill.losses._maps import smaller
from potstill.objective.probe import Value


def single(student: Value, teacher: Value | None, what: str) -> tuple[Tensor, Tensor]:
    """Return both signals (b, ...); maps are averaged over windows to the smaller size of the two.

    Raises:
        UsageError: several signals, no teacher, or sides that do not go together.

    """
    if teacher is None or isinstance(student, tuple) or isinstance(teacher, tuple):
        raise UsageError(f"The head {what} takes one signal of the student and one of the teacher.")
    shapes = f"{tuple(student.shape)} of the student and {tuple(teacher.shape)} of the teacher"
    if student.dim() != teacher.dim() or student.dim() not in (2, 3, 4):
        raise UsageError(f"The head {what} takes two maps, two sets of tokens or two vectors, not {shapes}.")
    if student.dim() == 3 and student.shape[1] != teacher.shape[1]:
        raise UsageError(f"The head {what} takes as many tokens on both sides, not {shapes}.")
    return smaller(student, teacher) if student.dim() == 4 else (student, teacher)


def channels(signal: Tensor) -> int:
    """Return the number of channels of maps, or of features of tokens and vectors."""
    return signal.shape[1] if signal.dim() == 4 else signal.shape[-1]


def per_channel(signal: Tensor) -> tuple[int, ...]:
    """Return the shape that spreads one number per channel over a sample."""
    return (channels(signal), 1, 1) if signal.dim() == 4 else (channels(signal),)


def pointwise(signal: Tensor) -> Callable[[int, int], nn.Conv2d | nn.Linear]:
    """Return the layer that mixes channels at each place: a 1x1 convolution for maps, else a linear map; no bias."""
    if signal.dim() == 4:
        return lambda before, after: nn.Conv2d(before, after, 1, bias=False)
    return lambda before, after: nn.Linear(before, after, bias=False)
