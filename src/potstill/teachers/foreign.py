"""Teachers that are not torch models of the user's own: a function from arrays to arrays, behind a torch module.

The pipeline handles every teacher as a module. What such a module says depends on is a buffer of it, so that the
fingerprints of weights and buffers are right for files of any framework.
Shape legend: b samples, c classes or outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from potstill.core import fingerprint
from potstill.core.errors import TeacherError
from potstill.core.signals import Batch
from potstill.data.columns import Column
from potstill.data.samples import Task
from potstill.models.load import output_signals, output_tensor
from potstill.teachers.answers import Answers, Array, as_logits, label_numbers, misfits
from potstill.teachers.protocol import AskedByBatch

Ask = Callable[[Array], Array | Mapping[str, Array]]
"""Inputs (b, ...) to raw answers (b, c); or to several by name, the first of which is the answer."""
Lookup = Callable[[Array, Array], Array]
"""Ids (b,) and views (b,) to raw answers (b, c)."""


@dataclass(frozen=True)
class Wanted:
    """What a teacher is asked to do.

    Attributes:
        task: classification or regression.
        shape: of one sample as the teacher gets it, behind its preprocessing.
        classes: what its outputs are to stand for, in order; empty for regression.
        num_outputs: number of classes or target columns.
        columns: how the columns of a table became numbers; empty when the data is not a table.

    """

    task: Task
    shape: tuple[int, ...]
    classes: tuple[str, ...]
    num_outputs: int
    columns: tuple[Column, ...] = ()


@dataclass(frozen=True)
class Opened:
    """A model that was opened, whatever its framework.

    Exactly one of ``ask``, ``module`` and ``lookup`` is there.

    Attributes:
        name: what to call it in messages.
        digest: sha256 of everything its answers depend on: bytes of its files, options.
        size_bytes: of its files; None where nobody knows.
        ask: answers inputs.
        module: a torch module that answers inputs.
        lookup: answers ids.
        covers: which ids and views ``lookup`` knows: two arrays to (b,) booleans.
        answers: what it answers with, where its kind says so.
        says: what says so.
        classes: its classes in the order of its outputs, where it says so.
        outputs: names of further answers.
        has_views: whether ``lookup`` knows augmented views.
        everything: all raw answers that ``lookup`` knows, (n,) or (n, c).
        runtime: what computes its answers, as a person calls it; its time is compared with no other's.
        doubt: what is odd about how it answers, for the user; empty where nothing is.

    """

    name: str
    digest: str
    size_bytes: int | None
    ask: Ask | None = None
    module: nn.Module | None = None
    lookup: Lookup | None = None
    covers: Callable[[Array, Array], Array] | None = None
    answers: Answers | None = None
    says: str = ""
    classes: tuple[str, ...] | None = None
    outputs: tuple[str, ...] = ()
    has_views: bool = False
    everything: Array | None = None
    runtime: str = "its own framework"
    doubt: str = ""


@dataclass(frozen=True)
class Reading:
    """How raw answers become logits.

    Attributes:
        answers: what the raw answers are.
        num_outputs: classes or target columns.
        classes: class names in order, for labels.
        order: the column that stands for each class; None where that is all in order.
        by_name: whether labels are names of classes and not their numbers; judged label by label when absent.

    """

    answers: Answers
    num_outputs: int
    classes: tuple[str, ...] = ()
    order: tuple[int, ...] | None = None
    note: str = field(default="", compare=False)
    by_name: bool | None = None

    def describe(self) -> dict[str, Any]:
        """Return everything that changes what is read, as plain data."""
        named = list(self.classes) if self.answers == "labels" else []
        order = None if self.answers == "labels" else self.order
        read = {"by_name": self.by_name} if self.by_name is not None else {}
        return {"answers": self.answers, "outputs": self.num_outputs, "classes": named, "order": order, **read}

    def logits(self, raw: Tensor, *, what: str) -> Tensor:
        """Return (b, c) logits, or values, of raw answers that are numbers.

        Args:
            raw: (b,) or (b, c).
            what: what to call the teacher in messages.

        Raises:
            TeacherError: a row that is no distribution although it is read as one.

        """
        problem = misfits(raw, self.answers)
        if problem:
            raise TeacherError(f"{what} was to answer with {self.answers}, but of {len(raw)} answers {problem}.")
        if self.order is not None and self.answers != "labels":
            if raw.dim() == 1 or raw.shape[1] != len(self.order):  # one column for two classes
                raw = as_logits(raw, self.answers, self.num_outputs)
                return raw[:, list(self.order)]
            raw = raw[:, list(self.order)]
        return as_logits(raw, self.answers, self.num_outputs)

    def of_array(self, raw: Array, *, what: str) -> Tensor:
        """Return (b, c) logits, or values, of raw answers as they come from another framework."""
        if self.answers == "labels":
            numbers = label_numbers(raw, self.classes, what=what, by_name=self.by_name)
            return self.logits(torch.from_numpy(numbers), what=what)
        if raw.dtype.kind not in "fiu":
            raise TeacherError(f"{what} answers with {raw.dtype} values; expected numbers ({self.answers}).")
        dtype = np.float64 if self.answers == "values" else np.float32
        return self.logits(torch.from_numpy(np.ascontiguousarray(raw, dtype=dtype)), what=what)


class ForeignTeacher(nn.Module):
    """A model of another framework as a teacher: it answers inputs with logits, or with values in regression.

    When to use it: the teacher is a file or a process that is asked with arrays. It has no parameters; the buffer
    ``digest`` stands for everything its answers depend on. Copies share the opened model.

    Args:
        opened: the model.
        reading: how its answers become logits.

    """

    def __init__(self, opened: Opened, reading: Reading) -> None:
        super().__init__()
        self.opened = opened
        self.reading = reading
        self.signals = opened.outputs
        self.digest: Tensor
        self.register_buffer("digest", _digest(opened, reading))

    @property
    def size_bytes(self) -> int | None:
        """Bytes of the files that hold its weights, which torch does not see."""
        return self.opened.size_bytes

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user is told about it."""
        return tuple(filter(None, (self.reading.note, self.opened.doubt)))

    def forward(self, inputs: Tensor) -> Tensor | dict[str, Tensor]:
        """Return logits (b, c); with further outputs, a mapping of ``logits`` and these.

        Args:
            inputs: (b, ...) what its preprocessing gives.

        Raises:
            TeacherError: it fails, or answers with something else than numbers of b rows.

        """
        if self.opened.ask is None:
            raise TeacherError(f"{self.opened.name} answers by id and not by input.")
        found = self.opened.ask(inputs.detach().cpu().numpy())
        named = dict(found) if isinstance(found, Mapping) else {"logits": found}
        main = next(iter(named))
        logits = self.reading.of_array(np.asarray(named[main]), what=self.opened.name).to(inputs.device)
        if not self.signals:
            return logits
        further = {
            name: torch.from_numpy(np.ascontiguousarray(named[name], dtype=np.float32)).to(inputs.device)
            for name in self.signals
        }
        return {"logits": logits, **further}

    def extra_repr(self) -> str:
        """Return what tells two of these apart in ``print(model)``."""
        return f"{self.opened.name!r}, answers={self.reading.answers!r}"

    def __deepcopy__(self, memo: dict[int, Any]) -> ForeignTeacher:
        copied = type(self)(self.opened, self.reading)
        copied.training = self.training
        memo[id(self)] = copied
        return copied


class RecordedAnswers(AskedByBatch, ForeignTeacher):
    """A file of answers as a teacher: it knows what was said of each id, and nothing else."""

    def answer(self, batch: Batch) -> dict[str, Tensor]:
        """Return ``logits`` (b, c) of the samples of a batch, on the device of its inputs.

        Raises:
            TeacherError: a sample that the file does not have; names the first ones.

        """
        return {"logits": self.of_ids(batch.ids, batch.views).to(batch.tensor.device)}

    def of_ids(self, ids: Tensor, views: Tensor) -> Tensor:
        """Return the logits (b, c) of samples by id and view, (b,) each.

        Raises:
            TeacherError: a sample that the file does not have; names the first ones.

        """
        if self.opened.lookup is None:
            raise TypeError("recorded answers need a lookup")
        raw = self.opened.lookup(ids.cpu().numpy(), views.cpu().numpy())
        return self.reading.of_array(raw, what=self.opened.name)


class ReadAs(nn.Module):
    """A torch model that answers with something else than logits, as a teacher that answers with logits.

    Args:
        model: its layers can be tapped as ``model.<layer>``.
        reading: how its answers become logits.
        name: what to call it in messages.

    """

    def __init__(self, model: nn.Module, reading: Reading, *, name: str) -> None:
        super().__init__()
        self.model = model
        self.reading = reading
        self.name = name
        self.signals = tuple(getattr(model, "signals", ()))
        self.digest: Tensor
        text = fingerprint.of_json(reading.describe())
        self.register_buffer("digest", torch.frombuffer(bytearray.fromhex(text), dtype=torch.uint8))

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user is told about it."""
        return (self.reading.note,) if self.reading.note else ()

    def forward(self, inputs: Tensor) -> Tensor | dict[str, Tensor]:
        """Return logits (b, c), and further signals where the model has any."""
        output = self.model(inputs)
        raw = output_tensor(output)
        if self.reading.answers == "labels":
            numbers = label_numbers(raw.detach().cpu().numpy(), self.reading.classes, what=self.name)
            raw = torch.from_numpy(numbers).to(raw.device)
        logits = self.reading.logits(raw, what=self.name)
        if not self.signals:
            return logits
        return {**output_signals(self.model, output), "logits": logits}

    def extra_repr(self) -> str:
        """Return what tells two of these apart in ``print(model)``."""
        return f"answers={self.reading.answers!r}"


def teacher_of(opened: Opened, reading: Reading) -> nn.Module:
    """Return an opened model as a teacher's module."""
    if opened.module is not None:
        return ReadAs(opened.module, reading, name=opened.name)
    return (RecordedAnswers if opened.lookup is not None else ForeignTeacher)(opened, reading)


def notes_of(model: nn.Module) -> list[str]:
    """Return what the user is told about the teachers inside a model."""
    return [note for module in model.modules() for note in getattr(module, "notes", ())]


def _digest(opened: Opened, reading: Reading) -> Tensor:
    text = fingerprint.of_json([opened.digest, reading.describe()])
    return torch.frombuffer(bytearray.fromhex(text), dtype=torch.uint8)


def raw_answers(opened: Opened, inputs: Tensor, ids: Sequence[int] | Array) -> Array:
    """Return an opened model's raw answers to some samples.

    Args:
        opened: the model.
        inputs: (b, ...) what its preprocessing gives.
        ids: (b,) the samples' ids; their view is 0.

    """
    if opened.lookup is not None:
        return opened.lookup(np.asarray(ids), np.zeros(len(ids), np.int64))
    if opened.module is not None:
        opened.module.eval()
        with torch.inference_mode():
            return output_tensor(opened.module(inputs)).cpu().numpy()
    if opened.ask is None:
        raise TypeError("nothing to ask")
    found = opened.ask(inputs.detach().cpu().numpy())
    return np.asarray(next(iter(found.values())) if isinstance(found, Mapping) else found)
