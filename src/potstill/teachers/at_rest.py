"""Models at rest: a torch module with what stands before and behind it, and how any other model teaches."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from potstill.core import fingerprint
from potstill.core.signals import Batch
from potstill.models.beside_weights import copied
from potstill.models.load import load_weights, model_signals, output_tensor
from potstill.models.measure import bytes_of_weights, num_parameters
from potstill.models.preprocess import Preprocessor
from potstill.teachers.answers import Array
from potstill.teachers.live import (
    LiveTeacher,
    Step,
    answered,
    described,
    described_units,
    digests,
    framed,
    in_standard_units,
    resolved_precision,
    state_of,
    text_of,
)
from potstill.teachers.model import LOGITS, Facts, Labelled, Reads, Source, Teacher


@dataclass(frozen=True)
class TorchModel:
    """A torch module with its preprocessing.

    Attributes:
        module: the module.
        preprocess: what happens to inputs before it.
        then: what becomes of its answers, in order, before they are logits.
        opaque: whether it is a program whose layers cannot be read, such as one of TorchScript.

    """

    module: nn.Module
    preprocess: Preprocessor = field(default_factory=Preprocessor)
    then: tuple[Step, ...] = ()
    opaque: bool = False
    members: ClassVar[tuple[Source, ...]] = ()

    @property
    def facts(self) -> Facts:
        """What is known of it."""
        return Facts(
            signals=frozenset(("logits", *model_signals(self.module))),
            layers=not self.opaque,
            parameters=num_parameters(self.module) or None,
            size_bytes=bytes_of_weights(self.module),
            notes=tuple(step.note for step in self.then if step.note),
        )

    def __str__(self) -> str:
        """Return its layers as text, without addresses, which every process has anew."""
        return text_of(str(self.module), self.then)

    def state(self) -> dict[str, Tensor]:
        """Return parameters and buffers, those that are not saved with the module included."""
        return state_of(self.module, self.then)

    def whole(self) -> nn.Module:
        """Return one module from raw inputs to its answer."""
        return nn.Sequential(self.preprocess, self.module) if not self.then else _Whole(self)

    def teaching(self, reads: Reads = LOGITS) -> LiveTeacher:
        """Return it frozen; the module itself is used and given back as it was."""
        return LiveTeacher(self.module, preprocess=self.preprocess, then=self.then, **vars(reads))

    def with_weights(self, files: Mapping[int, Path], _labelled: Labelled) -> TorchModel:
        """Return a copy with weights from a file; itself where none is for it."""
        if 0 not in files:
            return self
        module = copied(self.module)
        load_weights(module, files[0])
        return replace(self, module=module)


class _Whole(nn.Module):
    def __init__(self, model: TorchModel) -> None:
        super().__init__()
        self.preprocess, self.module, self.then = model.preprocess, model.module, model.then

    def forward(self, inputs: Tensor) -> Tensor:
        logits = output_tensor(self.module(self.preprocess(inputs)))
        for step in self.then:
            logits = step(logits)
        return logits


def copy_of(model: Source) -> nn.Module:
    """Return a copy of a model's torch module, to train: laid out in memory as if it had never taught."""
    if model.module is None:
        raise TypeError("this model is no torch module")
    return contiguous(copied(model.module))


def contiguous(module: nn.Module) -> nn.Module:
    """Return a module whose images inside are laid out as they are when it is built; it rounds otherwise."""
    for value in state_of(module).values():
        if value.dim() == 4:
            value.data = value.data.clone(memory_format=torch.contiguous_format)
    return module


def modules_of(model: Source) -> list[nn.Module]:
    """Return every torch module that a model is made of."""
    inside = [module for member in model.members for module in modules_of(member)]
    return inside if model.module is None else [*model.module.modules(), *inside]


def as_source(model: Source | nn.Module) -> Source:
    """Return a model at rest; a torch module sees inputs as they are."""
    return TorchModel(model) if isinstance(model, nn.Module) else model


def facts_of_all(members: Sequence[Source], further: Sequence[str]) -> Facts:
    """Return what is known of a model that is made of others, which answers with ``further`` signals."""
    every = [member.facts for member in members]
    parameters, sizes = [facts.parameters for facts in every], [facts.size_bytes for facts in every]
    tables = [facts.covers for facts in every if facts.covers is not None]

    other = dict.fromkeys(facts.runtime for facts in every if facts.runtime != "PyTorch")

    def covers(ids: Array, views: Array) -> Array:
        known: Array = np.all([table(ids, views) for table in tables], axis=0)
        return known

    return Facts(
        signals=frozenset(("logits", *further)),
        layers=all(facts.layers for facts in every),
        parameters=None if None in parameters else sum(filter(None, parameters)),
        size_bytes=None if None in sizes else sum(filter(None, sizes)),
        runtime=" and ".join(other) or "PyTorch",
        by_id=any(facts.by_id for facts in every),
        covers=covers if tables else None,
        notes=tuple(note for facts in every for note in facts.notes),
    )


def text_of_all(kind: str, members: Sequence[Source], *lines: str) -> str:
    """Return the text of a model that is made of others."""
    pairs = nn.ModuleList(nn.Sequential(member.preprocess, _Text(str(member))) for member in members)
    return framed(kind, *lines, f"(members): {pairs}")


class _Text(nn.Module):
    """Has the text of a model, so that torch writes it among others."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text = text

    def __repr__(self) -> str:
        return self.text


def state_of_all(members: Sequence[Source]) -> dict[str, Tensor]:
    """Return the tensors that the answers of some members depend on, by name."""
    found: dict[str, Tensor] = {}
    for index, member in enumerate(members):
        found |= {f"members.{index}.0.{name}": value for name, value in state_of(member.preprocess).items()}
        found |= {f"members.{index}.1.{name}": value for name, value in member.state().items()}
    return found


@dataclass(frozen=True)
class Asked(AbstractContextManager["Asked"]):
    """A model that is no torch module as it teaches: nothing of it has to be frozen, or it asks others that are.

    Attributes:
        model: the model at rest.
        kind: what it is called in the description of a store.
        answer: returns its signals for a batch.
        reads: what is read of it.
        teachers: those that it asks.
        further: what else its answers depend on.

    """

    model: Source
    kind: str
    answer: Callable[[Batch], dict[str, Tensor]]
    reads: Reads
    teachers: tuple[Teacher, ...] = ()
    further: Mapping[str, Any] = field(default_factory=dict)
    module: ClassVar[None] = None

    @property
    def facts(self) -> Facts:
        """What is known of it; the signals are those in every answer."""
        return replace(self.model.facts, signals=frozenset(self.sources))

    @property
    def sources(self) -> dict[str, str]:
        """Where its signals come from: they are what it returns."""
        return dict.fromkeys(("logits", *sorted(set(self.reads.outputs))), "output")

    @cached_property
    def parts(self) -> dict[str, Any]:
        """Everything that its answers depend on, as plain data."""
        return {
            "model": self.kind,
            "weights": fingerprint.of_json(digests(self.model.state())),
            "preprocessing": described(self.model.preprocess),
            "precision": resolved_precision(self.reads.precision, torch.device(self.reads.device)),
            **self.further,
            **described_units(self.reads.scale, self.reads.log_variances),
        }

    @property
    def fingerprint(self) -> str:
        """Hash of everything that its answers depend on."""
        return fingerprint.of_json({"parts": self.parts, "sources": self.sources})

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        """Return float32 signals (b, ...)."""
        with torch.inference_mode():
            signals = self.answer(batch)
            read = {name: signals[name] for name in self.sources}
            read = in_standard_units(read, self.reads.scale, self.reads.log_variances)
        return answered(read, len(batch))

    def verify_unchanged(self) -> None:
        """Compare those that it asks with what they were; raises a TeacherError that names what changed."""
        for teacher in self.teachers:
            teacher.verify_unchanged()

    def __exit__(self, *_: object) -> None:
        """Give back those that it asks."""
        for teacher in self.teachers:
            teacher.__exit__(None, None, None)
