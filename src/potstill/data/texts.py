"""Rows of text from a file: what prompts are made of.

Shape legend: n rows.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from potstill.core.errors import DataError, UsageError, did_you_mean
from potstill.core.fingerprint import of_json
from potstill.core.optional import require
from potstill.core.random import key
from potstill.data.files import not_a_file
from potstill.data.samples import Ints, id_of_text
from potstill.tasks.base import Finding

SUFFIXES = (".jsonl", ".csv", ".parquet")
_LISTED = 10
_WHOLE = re.compile(r"-?(0|[1-9]\d{0,17})")


@dataclass(frozen=True)
class Texts:
    """Some columns of a file, as text.

    Attributes:
        ids: (n,) int64, different.
        names: what each row is called in messages: its id as written, or ``row 7``.
        columns: name to n texts.
        labels: n texts, or None.
        findings: counted remarks.

    """

    ids: Ints
    names: tuple[str, ...]
    columns: Mapping[str, tuple[str, ...]]
    labels: tuple[str, ...] | None = None
    findings: tuple[Finding, ...] = ()

    def __len__(self) -> int:
        return len(self.names)

    @property
    def fingerprint(self) -> str:
        """A hash of ids, columns and labels."""
        return of_json([self.ids.tolist(), dict(self.columns), self.labels])

    def take(self, rows: Sequence[int] | Ints) -> Texts:
        """Return some rows."""

        def some(values: tuple[str, ...]) -> tuple[str, ...]:
            return tuple(values[row] for row in rows)

        return Texts(
            self.ids[np.asarray(rows, dtype=np.int64)],
            some(self.names),
            {name: some(values) for name, values in self.columns.items()},
            None if self.labels is None else some(self.labels),
            self.findings,
        )


def column_names(path: Path) -> list[str]:
    """Return the names of a file's columns, in order; of a JSONL file those of its first row.

    Raises:
        UsageError: the file is of another kind.
        DataError: it is missing or cannot be read.

    """
    return list(_read(path)[0])


def read_texts(
    path: Path,
    columns: Sequence[str],
    *,
    id_column: str | None = None,
    label: str | None = None,
    limit: int | None = None,
    seed: int = 0,
    on_bad: Literal["error", "skip"] = "error",
) -> Texts:
    """Read columns of a JSONL, CSV or Parquet file as text.

    Args:
        path: the file.
        columns: the ones to read; numbers become text.
        id_column: different whole numbers or texts; the row number when None.
        label: a column that is kept apart, and may be read as one of ``columns`` too.
        limit: keep this many rows, drawn with ``seed``, in the file's order. Of two limits the larger one's rows
            include the smaller one's.
        seed: draws the rows.
        on_bad: what becomes of rows where one of ``columns`` is missing or blank, or the label is missing.

    Raises:
        UsageError: the file is of another kind.
        DataError: it cannot be read, lacks a column, has an id twice, or rows that are blank.

    """
    names, rows = _read(path)
    for name, asked_by in [*((name, "the prompt") for name in columns), (id_column, "data.id"), (label, "data.label")]:
        if name is not None and name not in names:
            raise DataError(f"{path} has no column '{name}' ({asked_by}).{did_you_mean(name, names)}")
    if not rows:
        raise DataError(f"{path} has no rows.")
    called = [str(row.get(id_column)) if id_column else f"row {number}" for number, row in enumerate(rows)]
    texts = {name: tuple(_text(row.get(name)) for row in rows) for name in columns}
    labels = None if label is None else tuple(_text(row.get(label)) for row in rows)
    ids = np.arange(len(rows), dtype=np.int64)
    if id_column is not None:
        ids = _ids([row.get(id_column) for row in rows], path, id_column)
    bad = [
        (row, name)
        for row in range(len(rows))
        for name, values in {**texts, **({} if labels is None else {label or "": labels})}.items()
        if not values[row].strip()
    ]
    found = Texts(ids, tuple(called), texts, labels)
    if bad:
        found = _without(found, bad, path, on_bad)
    if limit is not None and limit < len(found):
        drawn = np.argsort(key(found.ids, seed), kind="stable")[:limit]
        found = found.take(np.sort(drawn))
    return found


def _without(texts: Texts, bad: Sequence[tuple[int, str]], path: Path, on_bad: str) -> Texts:
    rows = sorted({row for row, _ in bad})
    listed = "; ".join(f"{texts.names[row]}: '{name}' is missing or blank" for row, name in bad[:_LISTED])
    more = f"; and {len(bad) - _LISTED} more" if len(bad) > _LISTED else ""
    message = f"{path}: {len(rows)} of {len(texts)} rows cannot be used: {listed}{more}."
    if on_bad == "error" or len(rows) == len(texts):
        raise DataError(f"{message} Repair or remove them, or set data.on_bad to skip to leave them out.")
    good = np.setdiff1d(np.arange(len(texts)), rows)
    kept = texts.take(good)
    skipped = Finding("warning", "skipped-samples", f"{message} They were left out.", len(rows))
    return Texts(kept.ids, kept.names, kept.columns, kept.labels, (*kept.findings, skipped))


def _ids(values: Sequence[Any], path: Path, column: str) -> Ints:
    texts = [_text(value) for value in values]
    for number, text in enumerate(texts):
        if not text:
            raise DataError(f"{path}, column '{column}': row {number} has no id.")
    # Whole numbers stay what they are, also where a file holds them as text.
    whole = all(_WHOLE.fullmatch(text) for text in texts)
    ids = np.array([int(text) if whole else id_of_text(text) for text in texts], dtype=np.int64)
    different, first, counts = np.unique(ids, return_index=True, return_counts=True)
    if len(different) < len(ids):
        twice = [texts[row] for row in first[counts > 1][:5]]
        raise DataError(
            f"{path}, column '{column}': {len(ids) - len(different)} ids come more than once, such as "
            f"{', '.join(twice)}. Every row needs an id of its own."
        )
    return ids


def _text(value: Any) -> str:
    if value is None or (isinstance(value, float) and value != value):
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value) if isinstance(value, int | float) else json.dumps(value, ensure_ascii=False, default=str)


def _read(path: Path) -> tuple[list[str], list[dict[str, Any]]]:
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise UsageError(f"data.train: {path} is not a {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]} file.")
    strange = not_a_file(path)
    if strange and strange != "missing":
        raise DataError(f"data.train: {path} is {strange}, expected a file.")
    try:
        if suffix == ".parquet":
            return _parquet(path)
        return _jsonl(path) if suffix == ".jsonl" else _csv(path)
    except FileNotFoundError:
        raise DataError(f"data.train: there is no file {path}.") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} cannot be read as {suffix[1:]}: {error}") from error


def _jsonl(path: Path) -> tuple[list[str], list[dict[str, Any]]]:
    rows: list[dict[str, Any]] = []
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise DataError(f"{path}:{number}: not JSON: {error}") from None
            if not isinstance(row, dict):
                raise DataError(f'{path}:{number}: expected an object such as {{"text": "..."}}.')
            rows.append(row)
    return list(dict.fromkeys(name for row in rows for name in row)), rows


def _csv(path: Path) -> tuple[list[str], list[dict[str, Any]]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, strict=True)
        names = list(reader.fieldnames or ())
        rows = []
        for row in reader:
            if None in row or None in row.values():
                raise DataError(f"{path}:{reader.line_num}: the row does not have {len(names)} fields as the header.")
            rows.append(dict(row))
    if len(set(names)) < len(names):
        raise DataError(f"{path} has two columns of one name: {', '.join(names)}. Rename one.")
    return names, rows


def _parquet(path: Path) -> tuple[list[str], list[dict[str, Any]]]:
    arrow = require("pyarrow", feature="reading Parquet files", extra="tables")
    parquet = require("pyarrow.parquet", feature="reading Parquet files", extra="tables")
    try:
        table = parquet.read_table(path)
    except arrow.ArrowException as error:
        raise DataError(f"{path} cannot be read as parquet: {error}") from error
    return list(table.column_names), table.to_pylist()
