"""A source as it was read: not yet split, labels not yet numbered, categories not yet encoded.

Shape legend: n samples, ``...`` the shape of one sample.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch

from potstill.core.errors import DataError
from potstill.data.samples import OWN_IDS, Array, Digests, Fetch, Ints, Rows, digest_rows, id_of_text, subset
from potstill.tasks.base import Finding

OnBad = Literal["error", "skip"]
_LISTED = 10


@dataclass(frozen=True)
class Stored:
    """Inputs that are ready to be fetched."""

    fetch: Fetch
    digests: Digests
    shape: tuple[int, ...]

    def take(self, rows: Ints) -> Stored:
        """Return some rows."""
        return replace(self, fetch=subset(self.fetch, rows), digests=self.digests[rows])


@dataclass(frozen=True)
class Table:
    """Columns that become numbers once the train split is known.

    A column is float64 (n,) or (n, width), or an object array (n,) of texts.
    """

    columns: Mapping[str, Array]

    def take(self, rows: Ints) -> Table:
        """Return some rows."""
        return Table({name: column[rows] for name, column in self.columns.items()})


@dataclass(frozen=True)
class Raw:
    """One source.

    Attributes:
        ids: (n,) int64.
        labels: (n,) or (n, k) as found.
        content: the inputs.
        names: what each sample is called, or None.
        label_names: all class names in the source's order, or None.
        own_ids: whether the ids come from the user; others are moved apart where several sources are given.
        bad: why a row cannot be used, by row number.
        findings: counted remarks of the reader.
        rows_of: what row numbers count the rows of.
        blind: whether labels were not looked at, and those here say nothing.

    """

    ids: Ints
    labels: Array
    content: Stored | Table
    names: tuple[str, ...] | None = None
    label_names: tuple[str, ...] | None = None
    own_ids: bool = False
    bad: Mapping[int, str] = field(default_factory=dict)
    findings: tuple[Finding, ...] = ()
    rows_of: str | None = None
    blind: bool = False

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, rows: Ints) -> Raw:
        """Return some rows; all of them must be good."""
        return replace(
            self,
            ids=self.ids[rows],
            labels=self.labels[rows],
            content=self.content.take(rows),
            names=None if self.names is None else tuple(self.names[row] for row in rows),
        )


def as_array(value: Any, what: str) -> Array:
    """Return values as a NumPy array, masked where some are missing.

    Args:
        value: an array, a tensor, a list, or a column or table with ``to_numpy``.
        what: what to call it in errors.

    Raises:
        DataError: it is sparse, nested or of a type that NumPy does not have.

    """
    if type(value).__module__.startswith("scipy.sparse"):
        raise DataError(f"{what} are a sparse matrix ({type(value).__name__}). Give .toarray() of it.")
    if not isinstance(value, torch.Tensor):
        if hasattr(value, "to_numpy"):
            value = value.to_numpy()
        if isinstance(value, list | tuple) and any(isinstance(part, np.ma.MaskedArray) for part in value):
            value = np.ma.stack([np.ma.asarray(part) for part in value])  # np.asarray drops the masks
        return value if isinstance(value, np.ma.MaskedArray) else np.asarray(value)
    if hasattr(value, "get_mask"):
        masked: Any = value  # torch.masked says where values are, NumPy where they are not
        return np.ma.array(as_array(masked.get_data(), what), mask=~masked.get_mask().cpu().numpy())
    if value.is_nested or value.layout != torch.strided:
        raise DataError(f"{what} are a {'nested' if value.is_nested else 'sparse'} tensor. Give .to_dense() of it.")
    try:
        value = value.detach().cpu().resolve_conj().resolve_neg()
        return np.asarray((value.float() if value.dtype in (torch.bfloat16, torch.float16) else value).numpy())
    except (TypeError, RuntimeError) as error:
        raise DataError(f"{what} are a tensor of {value.dtype}, which NumPy cannot hold: {error}.") from error


def stored_array(inputs: Array) -> tuple[Stored, dict[int, str]]:
    """Hold an array in memory; return it and the rows that hold NaN or infinite values.

    Images are (n, h, w) uint8, (n, c, h, w), or (n, h, w, c) with 1, 3 or 4 channels, and are kept as (n, c, h, w).
    Everything but uint8 images becomes float32.

    Raises:
        DataError: the array does not hold numbers.

    """
    if inputs.dtype.kind not in "biuf":
        raise DataError(
            f"inputs have dtype {inputs.dtype}, expected numbers. Texts and categories need a table: "
            "a CSV, Parquet or JSONL file with named columns."
        )
    if inputs.ndim == 1:
        inputs = inputs[:, None]
    if inputs.dtype == np.uint8 and inputs.ndim == 3:
        inputs = inputs[:, None]
    if inputs.ndim == 4 and inputs.shape[1] not in (1, 3, 4) and inputs.shape[3] in (1, 3, 4):
        inputs = inputs.transpose(0, 3, 1, 2)
    pixels = inputs.dtype == np.uint8 and inputs.ndim == 4
    with np.errstate(over="ignore"):
        # Always a copy, so that neither a read-only array nor a later change of the caller's reaches the samples.
        inputs = inputs.astype(np.uint8 if pixels else np.float32, order="C", copy=True)
    bad: dict[int, str] = {}
    if inputs.dtype == np.float32:
        finite = np.isfinite(inputs).all(axis=tuple(range(1, inputs.ndim)))
        bad = dict.fromkeys((int(row) for row in np.flatnonzero(~finite)), "inputs hold NaN or infinite values")
    return Stored(Rows(torch.from_numpy(inputs)), digest_rows(inputs), tuple(inputs.shape[1:])), bad


def missing(labels: Array, *, gaps: bool = False) -> dict[int, str]:
    """Return the rows without a usable label; with ``gaps`` those where no cell has one."""
    if labels.dtype.kind == "f":
        finite, axes = np.isfinite(labels), tuple(range(1, labels.ndim))
        empty = ~(finite.any(axis=axes) if gaps else finite.all(axis=axes))
    elif labels.dtype.kind == "O":
        empty = np.array([_no_label(label) for label in labels], dtype=bool)
    elif labels.dtype.kind == "U":
        empty = labels == ""
    else:
        return {}
    return dict.fromkeys((int(row) for row in np.flatnonzero(empty)), "the label is missing or not finite")


def _no_label(label: object) -> bool:
    return label is None or (isinstance(label, str) and not label) or (isinstance(label, float) and label != label)


def ids_of(values: Array, what: str) -> Ints:
    """Return int64 ids: integers as they are, texts hashed to 63 bits.

    Raises:
        DataError: ids are missing, or neither integers nor texts.

    """
    if values.ndim == 1 and values.dtype.kind in "iu" and (values.dtype != np.uint64 or values.max(initial=0) < 2**63):
        return values.astype(np.int64)
    if values.ndim == 1 and values.dtype.kind in "OU" and all(isinstance(value, str) and value for value in values):
        return np.array([id_of_text(str(value)) for value in values], dtype=np.int64)
    raise DataError(f"{what} has ids of dtype {values.dtype}; expected an integer or a text for every sample.")


def without_bad(raw: Raw, role: str, on_bad: OnBad) -> Raw:
    """Drop rows that cannot be used, or refuse them.

    Raises:
        DataError: there are such rows and ``on_bad`` is ``"error"``; names them.

    """
    if not raw.bad:
        return raw
    reasons = Counter(raw.bad.values())
    first = {reason: row for row, reason in sorted(raw.bad.items(), reverse=True)}
    if raw.names is not None:
        lines = [f"{raw.names[row]}: {reason}" for row, reason in sorted(raw.bad.items())]
    else:
        lines = [f"{reason} (rows: {count}, first: row {first[reason]})" for reason, count in reasons.most_common()]
    shown = "; ".join(lines[:_LISTED]) + (f"; and {len(lines) - _LISTED} more" if len(lines) > _LISTED else "")
    text = f"{role}: {len(raw.bad)} of {len(raw)} samples cannot be used: {shown}."
    if on_bad == "error":
        raise DataError(f"{text} Repair or remove them, or set data.on_bad to skip to leave them out.")
    good = np.setdiff1d(np.arange(len(raw), dtype=np.int64), np.fromiter(raw.bad, dtype=np.int64))
    skipped = Finding("warning", "skipped-samples", f"{text} They were left out.", len(raw.bad))
    return replace(raw.take(good), bad={}, findings=(*raw.findings, skipped))


def moved_apart(raw: Raw, role: str) -> Raw:
    """Give ids that we made (row numbers, hashed paths) a range of their own in each separately given split."""
    if raw.own_ids or role == "train":
        return raw
    if raw.names is not None:
        ids = np.array([id_of_text(f"{role}:{name}") for name in raw.names], dtype=np.int64)
    else:
        ids = raw.ids + {"validation": 1, "test": 2, "unlabelled": 3}[role] * OWN_IDS
    return replace(raw, ids=ids)
