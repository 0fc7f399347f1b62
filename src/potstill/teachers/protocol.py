"""What a teacher is: anything that answers a batch with signals."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Protocol, runtime_checkable

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


def by_batch(model: nn.Module) -> Callable[[Batch], Mapping[str, Tensor]] | None:
    """Return how to ask a model that needs the whole batch, because it answers by id; None for any other.

    Such a model has a method ``answer(batch)`` and is asked without preprocessing. A method of another kind that
    happens to be called ``answer`` is left alone.
    """
    found = getattr(model, "answer", None)
    if not inspect.ismethod(found) or list(inspect.signature(found).parameters) != ["batch"]:
        return None
    answer: Callable[[Batch], Mapping[str, Tensor]] = found
    return answer
