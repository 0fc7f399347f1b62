"""What a head is built from: real signals of a few training samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

Value = Tensor | tuple[Tensor, ...]
"""One signal, or several where a loss reads several layers at once."""


@dataclass(frozen=True)
class Probe:
    """Signals of some training samples, detached, float32.

    Attributes:
        student: (n, ...) what the term reads of the student; a tuple where it reads several signals.
        teacher: (n, ...) the same of the teacher, or None where the term reads none.
        ids: (samples,) int64, sorted: the ids of all training samples.
        seed: fixes whatever a head draws at random after it is built.

    """

    student: Value
    teacher: Value | None
    ids: Tensor
    seed: int


def shape_of(value: Tensor) -> tuple[int, ...]:
    """Return the shape of one sample."""
    return tuple(value.shape[1:])


def several(value: Value) -> Sequence[Tensor]:
    """Return the tensors of a value, one or several."""
    return value if isinstance(value, tuple) else (value,)


def each(function: Callable[[Tensor], Tensor], value: Value) -> Value:
    """Return a value with a function applied to its tensor, or to each of its tensors."""
    return tuple(map(function, value)) if isinstance(value, tuple) else function(value)


def like_weights(signal: Tensor, module: nn.Module) -> Tensor:
    """Return a signal in the precision of a module's weights; as it is where the module has none."""
    weight = next(module.parameters(), None)
    return signal if weight is None else signal.to(weight.dtype)
