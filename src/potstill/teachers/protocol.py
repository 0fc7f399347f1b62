"""What a teacher is: anything that answers a batch with signals."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

from potstill.core.signals import Batch, Signals


@runtime_checkable
class Teacher(Protocol):
    """Frozen, without gradients, the same answer for the same ``(id, view)`` every time.

    Training cannot tell a live model from a store: both answer a batch with float32 signals, ``(b, ...)``, on the
    device of ``batch.inputs``.
    """

    @property
    def provides(self) -> frozenset[str]:
        """Names of the signals in every answer."""

    @property
    def fingerprint(self) -> str:
        """A hash of everything the answers depend on, the batch aside."""

    def __call__(self, batch: Batch) -> Signals:
        """Answer a batch."""


def signal_shapes(teacher: Teacher, batch: Batch) -> dict[str, tuple[int, ...]]:
    """Return the shape of each signal for one sample, by asking the teacher about the first sample of ``batch``.

    Use it to size a store, to build adapters, and to check an objective before training.
    """
    return {name: tuple(values.shape[1:]) for name, values in teacher(batch.narrow(0, 1)).items()}


class AskedByBatch:
    """Marks the modules of this library that may need the whole batch, because they answer by id.

    Their ``answer`` is a method of the batch, or None where ``forward`` will do. A model of the user's is asked by
    ``forward``, whatever methods it has.
    """


def by_batch(model: nn.Module) -> Callable[[Batch], Mapping[str, Tensor]] | None:
    """Return how to ask a model that needs the whole batch; None for any other. It is asked without preprocessing."""
    if not isinstance(model, AskedByBatch):
        return None
    found: Any = model
    answer: Callable[[Batch], Mapping[str, Tensor]] | None = found.answer
    return answer
