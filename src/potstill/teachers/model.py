"""What a model is: whatever answers a batch with signals. Who uses one reads its facts and never asks what kind it is.

Shape legend: b samples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, Self, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from potstill.core.scale import TargetScale
from potstill.core.signals import Batch, Signals
from potstill.models.preprocess import Preprocessor
from potstill.models.taps import Where
from potstill.teachers.answers import Array

Precision = Literal["auto", "float32", "bfloat16"]
Covers = Callable[[Array, Array], Array]
"""Ids (b,) and views (b,) to booleans (b,)."""


Labelled = Callable[[], Sequence[Batch]]


@dataclass(frozen=True)
class Facts:
    """What is known of a model without asking it anything.

    Attributes:
        signals: names of what it can answer with; layers of a torch model that may be tapped aside.
        layers: whether it is made of torch layers, which can be read and have gradients.
        parameters: how many; None where there are none (trees), or nobody can count them.
        size_bytes: of its weights or files; None where nobody knows.
        runtime: what computes its answers, as a person calls it; its time is compared with no other's.
        by_id: whether it has to know which samples it is asked about: inputs alone are not enough.
        listed: whether it only looks answers up, for which no input is read.
        private: whether every question about a sample spends privacy.
        covers: which ids and views it has an answer for; None where it answers any input.
        views: augmented views of each sample that it knows; None where it answers any.
        classes: its classes as it calls them, in the order of its outputs; None where it does not say.
        by_name: whether it answers with names of classes, so that no order counts.
        fitted: whether something of it was learned on the validation split, whose scores then flatter it.
        notes: what the user is told about it.

    """

    signals: frozenset[str]
    layers: bool = False
    parameters: int | None = None
    size_bytes: int | None = None
    runtime: str = "PyTorch"
    by_id: bool = False
    listed: bool = False
    private: bool = False
    covers: Covers | None = None
    views: int | None = None
    classes: tuple[str, ...] | None = None
    by_name: bool = False
    fitted: bool = False
    notes: tuple[str, ...] = ()

    def measurable(self, ids: Array) -> bool:
        """Return whether the model can be asked about all of these samples (b,) only to measure it.

        Votes of private teachers are not: every question spends privacy.
        """
        if self.private or self.covers is None:
            return not self.private
        return bool(self.covers(ids, np.zeros(len(ids), np.int64)).all())


@runtime_checkable
class Model(Protocol):
    """Answers without gradients, and the same for the same ``(id, view)`` every time.

    Training cannot tell a live model from a store: both answer a batch with float32 signals, ``(b, ...)``, on the
    device of ``batch.inputs``.
    """

    @property
    def facts(self) -> Facts:
        """What is known of it."""

    @property
    def fingerprint(self) -> str:
        """A hash of everything the answers depend on, the batch aside."""

    def __call__(self, batch: Batch) -> Signals:
        """Answer a batch."""


class Teacher(Model, AbstractContextManager["Teacher"], Protocol):
    """A model that is frozen to teach; leaving the ``with`` block gives it back as it was."""

    @property
    def module(self) -> nn.Module | None:
        """The torch module whose output is its answer; None where there is none."""

    @property
    def parts(self) -> dict[str, Any]:
        """Everything that its answers depend on, as plain data."""

    @property
    def sources(self) -> dict[str, str]:
        """Where each signal of its answers comes from: the output, or a layer by name."""

    def verify_unchanged(self) -> None:
        """Compare it with what it was when teaching began; raises a TeacherError that names what changed."""


@dataclass(frozen=True)
class Reads:
    """How a model is asked while it teaches.

    Attributes:
        taps: signals that are read at layers of a torch model.
        outputs: signals that the model returns beside its logits.
        input_gradient: whether the gradient by the inputs is a signal too.
        precision: arithmetic of a torch model's forward pass.
        device: where a torch model runs.
        scale: for values of a regression, the standard units to answer in; the model's own when absent.
        log_variances: signals that hold logarithms of variances of the values, which change units with them.

    """

    taps: Mapping[str, Where] = field(default_factory=dict)
    outputs: Iterable[str] = ()
    input_gradient: bool = False
    precision: Precision = "float32"
    device: torch.device | str = "cpu"
    scale: TargetScale | None = None
    log_variances: Iterable[str] = ()


LOGITS = Reads()
"""Nothing but the logits."""


class Source(Protocol):
    """A model at rest, as it was opened or built: it can be measured, trained further, and teach."""

    @property
    def facts(self) -> Facts:
        """What is known of it."""

    @property
    def members(self) -> tuple[Source, ...]:
        """The models that it is made of; none of one that is a single model."""

    @property
    def module(self) -> nn.Module | None:
        """The torch module to tap, train and export; None where there is none."""

    @property
    def preprocess(self) -> Preprocessor:
        """What happens to its inputs first; nothing where its members have their own."""

    def state(self) -> dict[str, Tensor]:
        """Return the tensors that its answers depend on, by name."""

    def whole(self) -> nn.Module | None:
        """Return one torch module from raw inputs to its answer, to time and export; None where that is none."""

    def teaching(self, reads: Reads = LOGITS) -> Teacher:
        """Return it frozen, to answer many batches."""

    def with_weights(self, files: Mapping[int, Path], labelled: Labelled, /) -> Self:
        """Return it with what was learned; it is not changed itself.

        Args:
            files: weights of the model itself, 0, or of its i-th member.
            labelled: gives samples with labels that nothing of it was trained on, for what is learned last.

        """


def signal_shapes(teacher: Model, batch: Batch) -> dict[str, tuple[int, ...]]:
    """Return the shape of each signal for one sample, by asking the teacher about the first sample of ``batch``.

    Use it to size a store, to build adapters, and to check an objective before training.
    """
    return {name: tuple(values.shape[1:]) for name, values in teacher(batch.narrow(0, 1)).items()}
