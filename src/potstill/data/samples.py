"""Samples and data sets as every later stage sees them.

Shape legend: n samples, b rows asked for, ``...`` the shape of one sample, k regression columns.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from potstill.core import fingerprint
from potstill.core.scale import TargetScale
from potstill.core.text import counted, printable
from potstill.data.columns import Column
from potstill.tasks import TaskName, task_of
from potstill.tasks.base import Finding

Array = NDArray[Any]
Ints = NDArray[np.int64]
Digests = NDArray[np.uint64]
Flags = NDArray[np.bool_]
Fetch = Callable[[Ints], Tensor]
Kind = Literal["image", "vector"]
OWN_IDS = 1 << 40
"""Row numbers are below; those of validation and test begin at multiples of it."""
_LISTED = 12


@dataclass(frozen=True)
class Rows:
    """Fetch rows of a tensor held in memory."""

    inputs: Tensor

    def __call__(self, rows: Ints) -> Tensor:
        """Return the rows, copied: (b, ...)."""
        return self.inputs[torch.from_numpy(np.asarray(rows, dtype=np.int64))]


@dataclass(frozen=True)
class Subset:
    """Fetch chosen rows of another fetch; nothing is copied until a row is asked for."""

    fetch: Fetch
    rows: Ints

    def __call__(self, rows: Ints) -> Tensor:
        """Return the rows, counted within the subset: (b, ...)."""
        return self.fetch(self.rows[rows])


def subset(fetch: Fetch, rows: Ints) -> Fetch:
    """Return a fetch of some rows only; subsets of subsets are flattened."""
    return Subset(fetch.fetch, fetch.rows[rows]) if isinstance(fetch, Subset) else Subset(fetch, rows)


@dataclass(frozen=True, repr=False)
class Samples:
    """One split.

    Attributes:
        ids: (n,) int64, unique, stable between runs.
        targets: (n,) int64 classes, or (n,) or (n, k) float64 values for regression; class -1 where no label is known.
        fetch: row numbers (b,) to inputs (b, ...), uint8 or float32; can be pickled for worker processes.
        fingerprint: sha256 over ids, targets and content.
        names: what each sample is called, for example its file's path, or None.
        digests: (n,) uint64, a hash of each sample's content; None when nobody computed it.
        rows_of: what the ids count the rows of, for example ``"test.csv"``; None where ids are the user's own.
        labelled: (n,) boolean, whose label is known; None where all are.

    """

    ids: Ints
    targets: Array
    fetch: Fetch
    fingerprint: str
    names: tuple[str, ...] | None = None
    digests: Digests | None = None
    rows_of: str | None = None
    labelled: Flags | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        return f"<Samples: {counted(len(self), 'sample')}, targets {self.targets.dtype} {self.targets.shape}>"

    def called(self, row: int) -> str:
        """Return what a person calls a sample: its file, its row in the file (from 0), or the id that they gave it."""
        if self.names is not None:
            return self.names[row]
        return called(int(self.ids[row]), self.rows_of)

    @cached_property
    def gaps(self) -> Flags | None:
        """Which single targets of the samples are unknown, as NaN: (n, k); None where all are known."""
        unknown = np.isnan(self.targets) if self.targets.dtype.kind == "f" else np.zeros(0, dtype=bool)
        return unknown if unknown.any() else None

    @property
    def num_labelled(self) -> int:
        """How many have a label that is known."""
        return len(self) if self.labelled is None else int(self.labelled.sum())

    def with_labels(self) -> Samples:
        """Return the samples whose label is known."""
        return self if self.labelled is None else replace(self.take(np.flatnonzero(self.labelled)), labelled=None)

    def take(self, rows: Ints | slice) -> Samples:
        """Return some rows, in the given order, as a smaller split.

        Args:
            rows: (b,) row numbers or a boolean mask (n,), or a slice.

        """
        chosen = np.arange(len(self), dtype=np.int64)[rows]
        return make_samples(
            self.ids[chosen],
            self.targets[chosen],
            subset(self.fetch, chosen),
            digests=self.digests[chosen] if self.digests is not None else digests_of(self.fetch, chosen),
            names=None if self.names is None else tuple(self.names[row] for row in chosen),
            rows_of=self.rows_of,
            labelled=None if self.labelled is None else self.labelled[chosen],
        )


def called(number: int, rows_of: str | None) -> str:
    """Return what a person calls a sample without a file, by its id and what the ids count the rows of."""
    return f"id {number}" if rows_of is None else f"row {number % OWN_IDS} of {rows_of}"


@dataclass(frozen=True, repr=False)
class Data:
    """The three splits of one task.

    Attributes:
        train: what students learn from; where labels are few, those without one learn from a teacher alone.
        validation: what checkpoints are chosen on.
        test: what the verdict is read from, once.
        task: ``"classification"`` or ``"regression"``.
        classes: class names, the i-th is target i; empty for regression.
        kind: ``"image"`` for (C, H, W) samples, ``"vector"`` for anything else.
        shape: shape of one sample.
        num_outputs: number of classes, or of regression columns.
        findings: counted remarks.
        label_shift: for ``"validation"`` and ``"test"``, how far the labels are from those of train: total variation
            distance (classification) or Kolmogorov-Smirnov statistic (regression), 0 to 1.
        columns: how the columns of a table became numbers; empty when the source is not a table.
        scale: the standard units that models learn regression targets in; None for classes, and where they learn the
            targets as they are.
        standardised: whether the targets here are in standard units already, see `to_learn`.
        every_label: train with the labels that are hidden from students; None where none is hidden.

    """

    train: Samples
    validation: Samples
    test: Samples
    task: TaskName
    classes: tuple[str, ...]
    kind: Kind
    shape: tuple[int, ...]
    num_outputs: int
    findings: tuple[Finding, ...] = ()
    label_shift: Mapping[str, float] = field(default_factory=dict)
    columns: tuple[Column, ...] = ()
    scale: TargetScale | None = None
    standardised: bool = False
    every_label: Samples | None = None

    def __repr__(self) -> str:
        return describe(self)

    @property
    def splits(self) -> dict[str, Samples]:
        """The three splits by name."""
        return {"train": self.train, "validation": self.validation, "test": self.test}

    @property
    def fingerprint(self) -> str:
        """One hash of everything in the data: samples, targets, ids, class order, encoding of tables, units."""
        return fingerprint.of_json(
            {
                "splits": {name: samples.fingerprint for name, samples in self.splits.items()},
                "task": self.task,
                "classes": self.classes,
                "columns": [
                    (column.name, column.categories, column.width)
                    if column.as_it_was
                    else (column.name, column.categories, column.width, column.offset, column.scale)
                    for column in self.columns
                ],
                **({} if self.scale is None else {"scale": self.scale.to_json()}),
                **({} if self.every_label is None else {"every label": self.every_label.fingerprint}),
            }
        )

    def with_every_label(self) -> Data:
        """Return the data as if no label were hidden from students: what a teacher says does not depend on that."""
        return self if self.every_label is None else replace(self, train=self.every_label, every_label=None)

    def for_teacher(self) -> Data:
        """Return the data that a teacher is trained on: every sample whose label is known, to it if not to students."""
        return self.with_every_label().with_labels()

    def with_labels(self) -> Data:
        """Return the data of a student that learns from labels alone: what students see the label of."""
        return replace(self, train=self.train.with_labels(), every_label=None)

    def to_learn(self) -> Data:
        """Return the data as models learn it: regression targets in standard units."""
        scale = self.scale
        if scale is None or self.standardised:
            return self

        def of(samples: Samples) -> Samples:
            return replace(samples, targets=scale.standard(samples.targets))

        splits = [of(samples) for samples in (self.train, self.validation, self.test)]
        return replace(self, train=splits[0], validation=splits[1], test=splits[2], standardised=True)

    def with_findings(self, findings: tuple[Finding, ...], label_shift: Mapping[str, float]) -> Data:
        """Return the data with further findings and the label shift noted."""
        return replace(self, findings=self.findings + findings, label_shift=dict(label_shift))


def describe(data: Data) -> str:
    """Return what the data is, in a few lines for people."""
    what = {"image": "images", "vector": "vectors"}[data.kind]
    lines = [f"<Data: {data.task} of {what} {' x '.join(map(str, data.shape))}"]
    for name, samples in data.splits.items():
        known = "" if samples.labelled is None else f", {samples.num_labelled:,} with a label"
        lines.append(f"  {name:<10} {counted(len(samples), 'sample'):>18}{known}{_spread(data, samples)}")
    if data.classes:
        lines.append(f"  classes: {len(data.classes)}: {_listed(data.classes)}")
    elif data.num_outputs > 1:
        lines.append(f"  targets: {data.num_outputs} numbers for each sample")
    if data.columns:
        lines.append(f"  columns: {len(data.columns)}: {_listed([_column(column) for column in data.columns])}")
    for finding in data.findings[:_LISTED]:
        lines.append(f"  {finding.level}: {_short(finding.message, 300)}")
    if len(data.findings) > _LISTED:
        lines.append(f"  and {len(data.findings) - _LISTED} more remarks, in .findings")
    return "\n".join(lines) + ">"


def _spread(data: Data, samples: Samples) -> str:
    return task_of(data.task).targets.spread(samples.targets, data.num_outputs) if len(samples) else ""


def _column(column: Column) -> str:
    if column.categories is not None:
        return f"{_short(column.name, 40)} ({len(column.categories)} texts)"
    return _short(column.name, 40) + (f" ({column.width} numbers)" if column.width > 1 else "")


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(_short(name, 40) for name in names[:_LISTED])
    return f"{shown} and {len(names) - _LISTED} more" if len(names) > _LISTED else shown


def _short(text: str, width: int) -> str:
    return printable(text if len(text) <= width else text[: width - 3] + "...")


def only_classes(data: Data, classes: Sequence[str]) -> Data:
    """Return the samples of some classes only, their targets numbered in the order given.

    Args:
        data: classification data.
        classes: names among ``data.classes``.

    """
    chosen = np.array([data.classes.index(name) for name in classes], dtype=np.int64)
    renumbered = np.full(len(data.classes), -1, dtype=np.int64)
    renumbered[chosen] = np.arange(len(chosen))

    def of(samples: Samples) -> Samples:
        kept = samples.take(np.flatnonzero(renumbered[samples.targets] >= 0))
        return replace(
            make_samples(kept.ids, renumbered[kept.targets], kept.fetch, digests=kept.digests, names=kept.names),
            rows_of=kept.rows_of,
        )

    return replace(
        data,
        train=of(data.train),
        validation=of(data.validation),
        test=of(data.test),
        classes=tuple(classes),
        num_outputs=len(classes),
    )


def make_samples(
    ids: Array,
    targets: Array,
    fetch: Fetch,
    *,
    digests: Digests | None = None,
    names: tuple[str, ...] | None = None,
    rows_of: str | None = None,
    labelled: Flags | None = None,
) -> Samples:
    """Build a split and its fingerprint.

    Use it for splits that do not come from `load`, for example in tests.

    Args:
        ids: (n,) integers, unique.
        targets: (n,) classes, or (n,) or (n, k) values.
        fetch: row numbers (b,) to inputs (b, ...).
        digests: (n,) uint64 content hashes; computed by fetching every row when absent.
        names: what each sample is called.
        rows_of: what the ids count the rows of; None where they are the user's own.
        labelled: (n,) boolean, whose label is known; all when absent.

    """
    ids = np.ascontiguousarray(ids, dtype=np.int64)
    targets = np.ascontiguousarray(targets, dtype=np.float64 if np.asarray(targets).dtype.kind == "f" else np.int64)
    if digests is None:
        digests = digests_of(fetch, np.arange(len(ids), dtype=np.int64))
    masks = () if labelled is None else (labelled,)
    parts = [fingerprint.of_array(part) for part in (ids, *_hashed(targets), digests, *masks)]
    return Samples(ids, targets, fetch, fingerprint.of_json(parts), names, digests, rows_of, labelled)


def _hashed(targets: Array) -> list[Array]:
    """Return what a split's hash reads of its targets: values as float32, and whole where that rounds them."""
    if targets.dtype.kind != "f" or not len(targets):
        return [targets]
    with np.errstate(over="ignore", invalid="ignore"):
        narrow = targets.astype(np.float32)
        rounded = np.abs(narrow - targets) > 1e-6 * targets.std(axis=0)
    return [narrow, targets] if rounded.any() else [narrow]


def digests_of(fetch: Fetch, rows: Ints, *, chunk: int = 1024) -> Digests:
    """Return a 64-bit hash of the content of each row: (b,) uint64."""
    parts = [digest_rows(fetch(rows[start : start + chunk]).numpy()) for start in range(0, len(rows), chunk)]
    return np.concatenate([np.zeros(0, dtype=np.uint64), *parts])


def digest_rows(inputs: Array) -> Digests:
    """Return a 64-bit hash of dtype, shape and bytes of each row of an array: (n,) uint64."""
    inputs = np.ascontiguousarray(inputs)
    start = hashlib.blake2b(f"{inputs.dtype.str}{inputs.shape[1:]}".encode(), digest_size=8)
    content = inputs.reshape(-1).view(np.uint8).data if inputs.size else memoryview(b"")
    size = inputs.nbytes // max(1, len(inputs))
    found = bytearray()
    for row in range(len(inputs)):
        digest = start.copy()
        digest.update(content[row * size : (row + 1) * size])
        found += digest.digest()
    return np.frombuffer(bytes(found), dtype="<u8").astype(np.uint64)


def digest_bytes(*parts: bytes) -> int:
    """Return a 64-bit hash of some bytes."""
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return int.from_bytes(digest.digest(), "little")


def id_of_text(text: str) -> int:
    """Return a 63-bit id for a text such as a relative path."""
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()[:8], "little") >> 1
