"""Models that are no torch modules of the user's own: functions from arrays to arrays, and how answers become logits.

Shape legend: b samples, c classes or outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from potstill.core import fingerprint
from potstill.core.errors import PotstillError, TeacherError
from potstill.core.signals import Batch
from potstill.data.columns import Column
from potstill.models.load import output_tensor
from potstill.models.preprocess import Preprocessor
from potstill.tasks import TaskName, task_of
from potstill.teachers.answers import Answers, Array, as_logits, label_numbers, misfits
from potstill.teachers.at_rest import Asked, TorchModel
from potstill.teachers.live import Step, text_of
from potstill.teachers.model import LOGITS, Facts, Labelled, Reads, Source, Teacher

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

    task: TaskName
    shape: tuple[int, ...]
    classes: tuple[str, ...]
    num_outputs: int
    columns: tuple[Column, ...] = ()

    @property
    def values(self) -> bool:
        """Whether it is to answer with numbers, and not with classes."""
        return not task_of(self.task).has_classes


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


@dataclass(frozen=True)
class ReadAs:
    """What becomes of a torch model's answers that are no logits.

    Attributes:
        reading: how its answers become logits.
        name: what to call the model in messages.

    """

    reading: Reading
    name: str
    kind: ClassVar[str] = "ReadAs"

    @property
    def note(self) -> str:
        """What the user is told about it."""
        return self.reading.note

    def __call__(self, raw: Tensor) -> Tensor:
        """Return logits (b, c)."""
        if self.reading.answers == "labels":
            numbers = label_numbers(raw.detach().cpu().numpy(), self.reading.classes, what=self.name)
            raw = torch.from_numpy(numbers).to(raw.device)
        return self.reading.logits(raw, what=self.name)

    def __str__(self) -> str:
        """Return what tells two of these apart."""
        return f"answers={self.reading.answers!r}"

    def state(self) -> dict[str, Tensor]:
        """Return the digest of how answers are read."""
        return {"digest": _bytes(fingerprint.of_json(self.reading.describe()))}


@dataclass(frozen=True)
class ArrayModel:
    """A model of another framework, or a table of recorded answers: from arrays to arrays.

    When to use it: the teacher is a file, a process or a server that is asked with arrays, or with ids.

    Attributes:
        opened: the model.
        reading: how its answers become logits.
        preprocess: what happens to inputs first.
        then: what becomes of the logits.

    """

    opened: Opened
    reading: Reading
    preprocess: Preprocessor = field(default_factory=Preprocessor)
    then: tuple[Step, ...] = ()
    members: ClassVar[tuple[Source, ...]] = ()
    module: ClassVar[None] = None

    @property
    def kind(self) -> str:
        """What it is called in the description of a store."""
        return self.then[-1].kind if self.then else self._own_kind

    @property
    def _own_kind(self) -> str:
        return "ForeignTeacher" if self.opened.lookup is None else "RecordedAnswers"

    @property
    def facts(self) -> Facts:
        """What is known of it."""
        looked_up = self.opened.lookup is not None
        return Facts(
            signals=frozenset(("logits", *self.opened.outputs)),
            size_bytes=self.opened.size_bytes,
            runtime=self.opened.runtime,
            by_id=looked_up,
            listed=looked_up,
            covers=self.opened.covers,
            classes=self.opened.classes,
            by_name=bool(self.reading.by_name),
            notes=tuple(filter(None, (self.reading.note, self.opened.doubt))),
        )

    def __str__(self) -> str:
        """Return what tells two of these apart."""
        return text_of(f"{self._own_kind}({self.opened.name!r}, answers={self.reading.answers!r})", self.then)

    def state(self) -> dict[str, Tensor]:
        """Return the digest of everything that its answers depend on."""
        state = {"digest": _bytes(fingerprint.of_json([self.opened.digest, self.reading.describe()]))}
        for step in self.then:
            state = {f"model.{name}": value for name, value in state.items()} | step.state()
        return state

    def whole(self) -> None:
        """Return nothing: it is no torch module."""

    def teaching(self, reads: Reads = LOGITS) -> Teacher:
        """Return it as a teacher; it has nothing to freeze."""
        return Asked(self, self.kind, self.answer, reads)

    def with_weights(self, _files: Mapping[int, Path], _labelled: Labelled) -> ArrayModel:
        """Return itself: it comes as it is."""
        return self

    def answer(self, batch: Batch) -> dict[str, Tensor]:
        """Return logits (b, c), or values, and further outputs, on the device of the batch's inputs.

        Raises:
            TeacherError: it fails, answers with something else than numbers, or does not know a sample.

        """
        device = batch.tensor.device
        if self.opened.lookup is not None:
            named: Mapping[str, Array] = {
                "logits": self.opened.lookup(batch.ids.cpu().numpy(), batch.views.cpu().numpy())
            }
        else:
            found = _asked(self.opened, self.preprocess(batch.tensor.cpu()))
            named = found if isinstance(found, Mapping) else {"logits": found}
        logits = self.reading.of_array(np.asarray(named[next(iter(named))]), what=self.opened.name)
        for step in self.then:
            logits = step(logits)
        further = {
            name: torch.from_numpy(np.ascontiguousarray(named[name], np.float32)) for name in self.opened.outputs
        }
        return {name: values.to(device) for name, values in {"logits": logits, **further}.items()}


def source_of(opened: Opened, reading: Reading, preprocess: Preprocessor) -> TorchModel | ArrayModel:
    """Return an opened model at rest."""
    if opened.module is not None:
        return TorchModel(opened.module, preprocess, (ReadAs(reading, opened.name),), opaque=True)
    return ArrayModel(opened, reading, preprocess)


def _asked(opened: Opened, inputs: Tensor) -> Array | Mapping[str, Array]:
    if opened.ask is None:
        raise TypeError("nothing to ask")
    try:
        return opened.ask(inputs.numpy())
    except PotstillError:
        raise
    except Exception as error:
        raise TeacherError(
            f"The model {opened.name} failed on inputs of shape {tuple(inputs.shape)} ({inputs.dtype}): "
            f"{type(error).__name__}: {error}. Check that the data has the shape it was trained on, and its "
            "preprocessing."
        ) from error


def _bytes(digest: str) -> Tensor:
    return torch.frombuffer(bytearray.fromhex(digest), dtype=torch.uint8)


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
