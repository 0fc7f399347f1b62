"""Tables with named columns: reading them, and turning columns into numbers.

Shape legend: n rows, f numbers of a sample.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from potstill.core.errors import DataError, did_you_mean
from potstill.core.optional import require
from potstill.data.raw import Raw, Stored, Table, ids_of, stored_array
from potstill.data.samples import Array, Column, Finding

MAX_CATEGORIES = 1000
SUFFIXES = frozenset({".csv", ".parquet", ".jsonl", ".npz"})


def read_table(path: Path, *, inputs: Sequence[str] | None, target: str, id_column: str | None) -> Raw:
    """Read a CSV, Parquet, JSONL or NPZ file with named columns.

    Raises:
        DataError: the file cannot be read, or a named column is not in it.
        PotstillError: pyarrow is not installed (not needed for NPZ).

    """
    return from_columns(read_columns(path), str(path), inputs=inputs, target=target, id_column=id_column)


def read_columns(path: Path) -> dict[str, Array]:
    """Return the columns of a CSV, Parquet, JSONL or NPZ file as arrays, keyed by name.

    Raises:
        DataError: the file cannot be read.
        PotstillError: pyarrow is not installed (not needed for NPZ).

    """
    return _read_npz(path) if path.suffix.lower() == ".npz" else from_arrow(_read_arrow(path), str(path))


def from_columns(
    columns: Mapping[str, Array],
    source: str,
    *,
    inputs: Sequence[str] | None,
    target: str,
    id_column: str | None,
    label_names: tuple[str, ...] | None = None,
) -> Raw:
    """Build a source from named columns.

    Args:
        columns: name to (n,) or (n, ...) array; texts are object arrays with None or "" where missing.
        source: what to call it in errors.
        inputs: columns that models see; all but target and id when None.
        target: the label column.
        id_column: the column with stable ids; the row number when None.
        label_names: class names in order, when the source knows them.

    Raises:
        DataError: a column is unknown or cannot be used.

    """
    wanted = [*(inputs or []), target, *([id_column] if id_column else [])]
    for name in wanted:
        if name not in columns:
            key = "data.target" if name == target else "data.id" if name == id_column else "data.inputs"
            raise DataError(f"{source} has no column '{name}' ({key}).{did_you_mean(name, columns)}")
    chosen = list(inputs) if inputs else [name for name in columns if name not in (target, id_column)]
    if not chosen or target in chosen:
        found = "the target itself" if target in chosen else "no column"
        raise DataError(f"{source}: data.inputs names {found}; columns: {', '.join(columns)}; target: {target}.")
    lengths = {name: len(columns[name]) for name in {*chosen, *wanted}}
    if len(set(lengths.values())) > 1:
        raise DataError(f"{source}: columns have different lengths: {lengths}.")
    labels = columns[target]
    own_ids = id_column is not None
    ids = (
        ids_of(columns[id_column], f"{source}, column '{id_column}',")
        if id_column is not None
        else np.arange(len(labels), dtype=np.int64)
    )
    bad: dict[int, str] = {}
    content: Stored | Table
    if len(chosen) == 1 and columns[chosen[0]].ndim > 1:
        content, bad = stored_array(columns[chosen[0]])
    else:
        parts = {name: _table_column(columns[name], name, source) for name in chosen}
        content = Table(parts)
        for name, part in parts.items():
            for row in np.flatnonzero(_empty(part)):
                bad.setdefault(int(row), f"column '{name}' is missing or not finite")
    return Raw(ids, labels, content, label_names=label_names, own_ids=own_ids, bad=bad)


def fit(table: Table) -> tuple[Column, ...]:
    """Decide how the columns of the train split become numbers.

    Raises:
        DataError: a text column has more categories than can be one-hot encoded.

    """
    columns = []
    for name, column in table.columns.items():
        if column.dtype != object:
            columns.append(Column(name, None, 1 if column.ndim == 1 else column.shape[1]))
            continue
        categories = tuple(sorted(set(column)))
        if len(categories) > MAX_CATEGORIES:
            raise DataError(
                f"column '{name}' has {len(categories)} different texts, for example '{categories[0]}': too many "
                f"for one-hot encoding (limit {MAX_CATEGORIES}). Leave it out of data.inputs, or name it as data.id."
            )
        columns.append(Column(name, categories, len(categories)))
    return tuple(columns)


def encode(table: Table, columns: Sequence[Column], role: str) -> tuple[Stored, tuple[Finding, ...]]:
    """Turn a table into numbers as `fit` decided; categories that train does not have become all zeros.

    Returns:
        The (n, f) float32 inputs and counted findings.

    Raises:
        DataError: columns differ from those of train in name or kind.

    """
    absent = [column.name for column in columns if column.name not in table.columns]
    if absent:
        raise DataError(f"{role} has no column '{absent[0]}', but train has.{did_you_mean(absent[0], table.columns)}")
    parts: list[Array] = []
    findings = []
    for column in columns:
        values = table.columns[column.name]
        if column.categories is None:
            if values.dtype == object:
                raise DataError(
                    f"column '{column.name}' holds numbers in train and texts in {role}, for example '{values[0]}'. "
                    "Make them equal, or leave the column out of data.inputs."
                )
            part = values[:, None] if values.ndim == 1 else values
            if part.shape[1] != column.width:
                widths = f"{part.shape[1]} numbers in {role}, {column.width} in train"
                raise DataError(f"column '{column.name}' has {widths}. Make them equal.")
            parts.append(part.astype(np.float32))
            continue
        texts = values if values.dtype == object else np.array([_text(value) for value in values], dtype=object)
        place = {category: index for index, category in enumerate(column.categories)}
        codes = np.array([place.get(text, -1) for text in texts], dtype=np.int64)
        parts.append((codes[:, None] == np.arange(column.width)).astype(np.float32))
        unseen = sorted(set(texts[codes < 0]))
        if unseen:
            shown = ", ".join(f"'{text}'" for text in unseen[:5])
            text = (
                f"{role}: {int((codes < 0).sum())} rows have a value in column '{column.name}' that train does not "
                f"have ({shown}); its columns are all zero there."
            )
            findings.append(Finding("warning", "unseen-category", text, int((codes < 0).sum())))
    stored, _ = stored_array(np.concatenate(parts, axis=1))
    return stored, tuple(findings)


def from_arrow(table: Any, source: str) -> dict[str, Array]:
    """Return the columns of a pyarrow table as arrays, keyed by name.

    Raises:
        DataError: two columns have one name.

    """
    names = table.column_names
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(f"{source} has two columns named '{twice[0]}'. Rename one.")
    return {name: _from_arrow_column(table.column(name)) for name in names}


def _read_arrow(path: Path) -> Any:
    arrow = require("pyarrow", feature=f"reading {path.suffix} files", extra="tables")
    try:
        if path.suffix.lower() == ".parquet":
            return require("pyarrow.parquet", feature="reading Parquet files", extra="tables").read_table(path)
        module = "pyarrow.csv" if path.suffix.lower() == ".csv" else "pyarrow.json"
        reader = require(module, feature=f"reading {path.suffix} files", extra="tables")
        return reader.read_csv(path) if module == "pyarrow.csv" else reader.read_json(path)
    except (arrow.ArrowException, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as {path.suffix[1:]}: {error}") from error


def _from_arrow_column(column: Any) -> Array:
    arrow = require("pyarrow", feature="reading tables", extra="tables")
    types = arrow.types
    if types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    kind = column.type
    if types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind):
        # Nulls of whole numbers need a float to be seen as missing.
        whole = types.is_integer(kind) or types.is_boolean(kind)
        return np.asarray((column.cast("float64") if column.null_count and whole else column).to_numpy())
    if types.is_decimal(kind):
        return np.asarray(column.cast("float64").to_numpy())
    values = column.to_pylist()
    nested = types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)
    if nested or hasattr(kind, "storage_type"):
        try:
            return np.array(values, dtype=_innermost(kind))
        except (TypeError, ValueError):
            pass
    found = np.empty(len(values), dtype=object)
    found[:] = values
    return found


def _innermost(kind: Any) -> Any:
    kind = getattr(kind, "storage_type", kind)
    while hasattr(kind, "value_type"):
        kind = kind.value_type
    return kind.to_pandas_dtype()


def _read_npz(path: Path) -> dict[str, Array]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: np.atleast_1d(file[name]) for name in file.files}
    except (ValueError, OSError, EOFError, KeyError) as error:
        raise DataError(f"{path} cannot be read as npz: {error}. Arrays of objects are not read.") from error


def _table_column(column: Array, name: str, source: str) -> Array:
    if column.dtype.kind in "biuf":
        return column.astype(np.float64).reshape(len(column), -1) if column.ndim > 1 else column.astype(np.float64)
    if column.dtype.kind == "U":
        column = column.astype(object)
    if column.ndim == 1 and all(value is None or isinstance(value, str) for value in column):
        if len(column) and all(value is None or value == "" for value in column):
            raise DataError(f"{source}: column '{name}' is empty. Leave it out of data.inputs.")
        return column
    example = next((value for value in column if value is not None), None)
    raise DataError(
        f"{source}: column '{name}' holds {type(example).__name__} values, expected numbers or texts. "
        "Leave it out of data.inputs or convert it."
    )


def _empty(column: Array) -> Array:
    if column.dtype == object:
        return np.array([value is None or value == "" for value in column], dtype=bool)
    with np.errstate(over="ignore"):
        finite = np.isfinite(column.astype(np.float32))
    return np.asarray(~(finite if column.ndim == 1 else finite.all(axis=1)))


def _text(value: float) -> str:
    return str(int(value)) if float(value).is_integer() else str(value)
