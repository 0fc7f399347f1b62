"""Tables with named columns: reading them, and turning columns into numbers.

Shape legend: n rows, f numbers of a sample.
"""

from __future__ import annotations

import codecs
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from potstill.core.errors import DataError, did_you_mean
from potstill.core.optional import require
from potstill.core.text import counted
from potstill.data.columns import Column, as_categories, as_numbers, merged, merged_places, number_column
from potstill.data.files import not_a_file, utf8_content
from potstill.data.npz import read_npz
from potstill.data.raw import Raw, Stored, Table, ids_of, stored_array
from potstill.data.samples import Array
from potstill.tasks.base import Finding
from potstill.tasks.texts import without_guesses

MAX_CATEGORIES = 1000
SUFFIXES = frozenset({".csv", ".parquet", ".jsonl", ".npz"})


def read_table(
    path: Path,
    *,
    inputs: Sequence[str] | None,
    target: str | Sequence[str],
    id_column: str | None,
    exclude: Sequence[str] | None = None,
    encoding: str | None = None,
    text_target: bool = False,
) -> Raw:
    """Read a CSV, Parquet, JSONL or NPZ file with named columns.

    Args:
        path: the file.
        inputs: columns that models see; all but target and id when None.
        target: the label column; several are read as the columns of one array, and name the classes.
        id_column: the column with stable ids; the row number when None.
        exclude: columns that models do not see.
        encoding: of CSV and JSONL; UTF-8 when None.
        text_target: whether the labels of CSV and JSONL are read as they are written, not as a reader guesses.

    Raises:
        DataError: the file cannot be read, or a named column is not in it.
        PotstillError: pyarrow is not installed (not needed for NPZ).

    """
    texts = (target,) if text_target and isinstance(target, str) else ()
    columns, names = read_columns(path, encoding=encoding, texts=texts), None
    if not isinstance(target, str):
        columns, target, names = _together(columns, tuple(target), str(path))
    return from_columns(
        columns, str(path), inputs=inputs, target=target, id_column=id_column, exclude=exclude, label_names=names
    )


def _together(
    columns: Mapping[str, Array], targets: tuple[str, ...], source: str
) -> tuple[dict[str, Array], str, tuple[str, ...]]:
    """Return columns with several target columns as one, its name, and those of the targets."""
    if len(targets) < 2 or len(set(targets)) < len(targets):
        raise DataError(f"data.target lists {', '.join(targets) or 'nothing'}; expected several, each once.")
    unknown = [name for name in targets if name not in columns]
    if unknown:
        raise DataError(f"{source} has no column '{unknown[0]}' (data.target).{did_you_mean(unknown[0], columns)}")
    for name in targets:
        text = next((value for value in columns[name].ravel() if isinstance(value, str)), None)
        if text is not None or columns[name].ndim > 1:
            shown = f"texts such as '{text}'" if text is not None else "several numbers a row"
            raise DataError(
                f"{source}: the target column '{name}' holds {shown}. Of several target columns each holds one number "
                "a row, or true and false."
            )
    whole = np.empty((len(columns[targets[0]]), len(targets)), dtype=object)
    for place, name in enumerate(targets):
        whole[:, place] = columns[name].tolist()
    kept = {name: column for name, column in columns.items() if name not in targets}
    called = ", ".join(targets)
    return {**kept, called: whole}, called, targets


def read_columns(path: Path, *, encoding: str | None = None, texts: Sequence[str] = ()) -> dict[str, Array]:
    """Return the columns of a CSV, Parquet, JSONL or NPZ file as arrays, keyed by name.

    Args:
        path: the file.
        encoding: of CSV and JSONL; UTF-8 when None.
        texts: columns of CSV and JSONL that are texts as they are written: ``01`` is not ``1``.

    Raises:
        DataError: the file cannot be read.
        PotstillError: pyarrow is not installed (not needed for NPZ).

    """
    suffix, instead = path.suffix.lower(), not_a_file(path)
    if instead:
        raise DataError(f"{path} is {instead}, expected a {suffix[1:]} file.")
    if suffix == ".npz":
        return read_npz(path)
    if suffix == ".parquet":
        return from_arrow(_read_parquet(path), str(path))
    content = utf8_content(path, encoding)
    table = _read_text(path, content, texts)
    columns = from_arrow(table, str(path))
    for name in set(texts) & set(columns):
        if suffix == ".jsonl" and str(table.column(name).type) not in ("string", "bool", "int64", "null"):
            columns[name] = _as_written(path, content, name)
        if columns[name].dtype == object:
            columns[name] = without_guesses(columns[name])
    return columns


def from_columns(
    columns: Mapping[str, Array],
    source: str,
    *,
    inputs: Sequence[str] | None,
    target: str,
    id_column: str | None,
    exclude: Sequence[str] | None = None,
    label_names: tuple[str, ...] | None = None,
) -> Raw:
    """Build a source from named columns.

    Args:
        columns: name to (n,) or (n, ...) array; texts are object arrays with None or "" where missing.
        source: what to call it in errors.
        inputs: columns that models see; all but target and id when None.
        target: the label column.
        id_column: the column with stable ids; the row number when None.
        exclude: columns that models do not see.
        label_names: class names in order, when the source knows them.

    Raises:
        DataError: a column is unknown or cannot be used.

    """
    wanted = [*(inputs or []), target, *([id_column] if id_column else [])]
    dropped = set(exclude or ())
    for name in [*wanted, *sorted(dropped)]:
        if name not in columns:
            key = "data.target" if name == target else "data.id" if name == id_column else "data.inputs"
            key = "data.exclude" if name in dropped else key
            raise DataError(f"{source} has no column '{name}' ({key}).{did_you_mean(name, columns)}")
    chosen = list(inputs) if inputs else [name for name in columns if name not in {target, id_column, *dropped}]
    both = sorted(dropped & set(wanted))
    if both:
        raise DataError(f"{source}: data.exclude names '{both[0]}', which is also the target, the id or an input.")
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
    findings: list[Finding] = []
    if len(chosen) == 1 and columns[chosen[0]].ndim > 1:
        content, bad = stored_array(columns[chosen[0]])
        findings = merged_numbers(columns[chosen[0]], f"{source}, column '{chosen[0]}'")
    else:
        parts = {name: _table_column(columns[name], name, source) for name in chosen}
        content = Table({name: values for name, (values, _) in parts.items()})
        for name, (_, absent) in parts.items():
            for row in np.flatnonzero(absent):
                bad.setdefault(int(row), f"column '{name}' is missing or not finite")
    return Raw(ids, labels, content, label_names=label_names, own_ids=own_ids, bad=bad, findings=tuple(findings))


def fit(table: Table) -> tuple[Column, ...]:
    """Decide how the columns of the train split become numbers.

    Raises:
        DataError: a text column has more categories than can be one-hot encoded.

    """
    columns = []
    for name, column in table.columns.items():
        if column.dtype != object:
            columns.append(number_column(name, column))
            continue
        categories = tuple(sorted(set(column)))
        if len(categories) > MAX_CATEGORIES:
            raise DataError(
                f"column '{name}' has {len(categories)} different texts, for example '{categories[0]}': too many "
                f"for one-hot encoding (limit {MAX_CATEGORIES}). Leave it out with data.exclude, or name it as data.id."
            )
        columns.append(Column(name, categories, len(categories), "text"))
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
                    "Make them equal, or leave the column out with data.exclude."
                )
            part = values[:, None] if values.ndim == 1 else values
            if part.shape[1] != column.width:
                widths = f"{part.shape[1]} numbers in {role}, {column.width} in train"
                raise DataError(f"column '{column.name}' has {widths}. Make them equal.")
            parts.append(as_numbers(column, part))
            findings += _rounded(column, values, role)
            continue
        texts = values if values.dtype == object else np.array([_text(value) for value in values], dtype=object)
        part, new = as_categories(column, texts)
        parts.append(part)
        unseen = sorted(set(texts[new]))
        if unseen:
            shown = ", ".join(f"'{text}'" for text in unseen[:5])
            text = (
                f"{role}: {counted(int(new.sum()), 'row has', 'rows have')} a value in column '{column.name}' that "
                f"train does not have ({shown}); its columns are all zero there."
            )
            findings.append(Finding("warning", "unseen-category", text, int(new.sum())))
    stored, _ = stored_array(np.concatenate(parts, axis=1))
    return stored, tuple(findings)


def _rounded(column: Column, values: Array, role: str) -> list[Finding]:
    """Say where 32-bit floats do not hold what a column holds."""
    findings: list[Finding] = []
    if role == "train" and not column.as_it_was:
        scaled = f" and divided by {column.scale:g}" if column.scale != 1 else ""
        text = (
            f"column '{column.name}': its numbers are so close together for their size that 32-bit floats could "
            f"not tell them apart, so models see them minus {column.offset:.17g}{scaled}. A torch teacher that was "
            f"trained on the numbers themselves cannot use that: leave it out with data.exclude: [{column.name}]."
        )
        findings.append(Finding("warning", "moved-column", text, len(values)))
    if column.width > 1:
        return merged_numbers(values, f"{role}, column '{column.name}'")
    lost = merged(column, values)
    if lost:
        text = (
            f"{role}: column '{column.name}' holds {len(np.unique(values)):,} different numbers, {lost:,} of "
            "which 32-bit floats cannot tell from their neighbours: models see them as equal. If it is an id, leave it "
            f"out with data.exclude: [{column.name}]."
        )
        findings.append(Finding("warning", "merged-numbers", text, lost))
    return findings


def merged_numbers(values: Array, what: str) -> list[Finding]:
    """Say which places of vectors hold numbers that 32-bit floats cannot tell apart."""
    places = merged_places(values)
    if not places:
        return []
    shown = ", ".join(str(place) for place, _ in places[:10])
    text = (
        f"{what}: 32-bit floats cannot tell apart {sum(lost for _, lost in places):,} different numbers of the places "
        f"{shown} (counted from 0): models see them as equal to their neighbours. Subtract a constant from each, or "
        "leave them out."
    )
    return [Finding("warning", "merged-numbers", text, len(places))]


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


def _read_parquet(path: Path) -> Any:
    arrow = require("pyarrow", feature="reading Parquet files", extra="tables")
    parquet = require("pyarrow.parquet", feature="reading Parquet files", extra="tables")
    try:
        return parquet.read_table(path, page_checksum_verification=True)
    except (arrow.ArrowException, OSError, MemoryError, ValueError) as error:
        raise DataError(f"{path} cannot be read as parquet: {_first_line(error)}. It may be cut or damaged.") from error


def _read_text(path: Path, content: bytes | None, texts: Sequence[str]) -> Any:
    """Return a CSV or JSONL file as a pyarrow table; ``content`` replaces what the file holds."""
    suffix = path.suffix.lower()
    arrow = require("pyarrow", feature=f"reading {suffix} files", extra="tables")
    module = "pyarrow.csv" if suffix == ".csv" else "pyarrow.json"
    reader = require(module, feature=f"reading {suffix} files", extra="tables")
    source = path if content is None else arrow.BufferReader(content)
    try:
        if suffix == ".jsonl":
            return reader.read_json(source)
        return _read_csv(reader, source, texts)
    except (arrow.ArrowException, UnicodeDecodeError) as error:
        place = _broken_line(path, content) if suffix == ".jsonl" else _broken_row(path, content, texts)
        raise DataError(f"{path} cannot be read as {suffix[1:]}: {place or _first_line(error)}") from error


def _read_csv(reader: Any, source: Any, texts: Sequence[str], *, threads: bool = True) -> Any:
    arrow = require("pyarrow", feature="reading .csv files", extra="tables")
    kept = reader.ConvertOptions(column_types=dict.fromkeys(texts, arrow.string()))
    return reader.read_csv(source, read_options=reader.ReadOptions(use_threads=threads), convert_options=kept)


def _broken_row(path: Path, content: bytes | None, texts: Sequence[str]) -> str:
    """Return what is wrong with a CSV file and in which row: pyarrow counts rows in one thread only."""
    arrow = require("pyarrow", feature="reading .csv files", extra="tables")
    reader = require("pyarrow.csv", feature="reading .csv files", extra="tables")
    try:
        _read_csv(reader, path if content is None else arrow.BufferReader(content), texts, threads=False)
    except arrow.ArrowException as error:
        return _first_line(error)
    return ""


def _rows(path: Path, content: bytes | None) -> Iterator[tuple[int, bytes]]:
    with path.open("rb") if content is None else io.BytesIO(content) as file:
        yield from ((number, line) for number, line in enumerate(file, start=1) if line.strip())


def _broken_line(path: Path, content: bytes | None) -> str:
    """Return which line of a JSONL file is no object, or ""."""
    for number, line in _rows(path, content):
        try:
            row = json.loads(line.removeprefix(codecs.BOM_UTF8))
        except (ValueError, RecursionError) as error:
            return f"line {number} is not JSON: {error}"
        if not isinstance(row, dict):
            return f"line {number} is {type(row).__name__}, expected an object such as {{...}}"
    return ""


def _as_written(path: Path, content: bytes | None, name: str) -> Array:
    """Return a column of a JSONL file with numbers as they are written, where a reader made floats or dates of them."""
    values = []
    for _, line in _rows(path, content):
        row = json.loads(
            line.removeprefix(codecs.BOM_UTF8), parse_float=str, parse_int=str, parse_constant=lambda _: None
        )
        values.append(row.get(name))
    found = np.empty(len(values), dtype=object)
    found[:] = values
    return found


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0].rstrip(".")[:300] if text else type(error).__name__


def _from_arrow_column(column: Any) -> Array:
    arrow = require("pyarrow", feature="reading tables", extra="tables")
    types = arrow.types
    if types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    kind = column.type
    if types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind):
        if column.null_count and types.is_boolean(kind):
            return np.array(column.to_pylist(), dtype=object)
        if column.null_count and types.is_integer(kind):
            # Nulls need a float to be seen as missing, but floats do not hold every whole number.
            try:
                return np.asarray(column.cast("float64").to_numpy())
            except arrow.ArrowInvalid:
                return np.array(column.to_pylist(), dtype=object)
        return np.asarray(column.to_numpy())
    if types.is_decimal(kind):
        return _from_decimals(column)
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


def _from_decimals(column: Any) -> Array:
    """Return decimals as floats, or as whole numbers where all are, or as they are where floats would merge them."""
    values = column.to_pylist()
    known = {value for value in values if value is not None}
    whole = all(value == int(value) for value in known)
    if not whole and len({float(value) for value in known}) == len(known):
        return np.array([np.nan if value is None else float(value) for value in values])
    found = np.empty(len(values), dtype=object)
    found[:] = [int(value) if whole and value is not None else value for value in values]
    return found


def _innermost(kind: Any) -> Any:
    kind = getattr(kind, "storage_type", kind)
    while hasattr(kind, "value_type"):
        kind = kind.value_type
    return kind.to_pandas_dtype()


def _table_column(column: Array, name: str, source: str) -> tuple[Array, Array]:
    """Return numbers as they are, or texts, and the rows (n,) without a value; these hold 0 or None."""
    masked = _any_of_row(np.ma.getmaskarray(column)) if isinstance(column, np.ma.MaskedArray) else None
    column = np.asarray(column)
    if column.dtype.kind in "SU":
        column = _texts(column, name, source)
    if column.dtype == object and column.ndim == 1:
        column, missing = _from_objects(column, name, source)
    elif column.dtype.kind == "f":
        with np.errstate(over="ignore"):
            missing = _any_of_row(~np.isfinite(column.astype(np.float32)))
        column = column.astype(np.float64)
    elif column.dtype.kind in "biu":
        missing = np.zeros(len(column), dtype=bool)
    else:
        raise DataError(
            f"{source}: column '{name}' holds {column.dtype} values, expected numbers or texts. "
            "Leave it out with data.exclude, or convert it."
        )
    if masked is not None:
        missing = missing | masked
    if len(column) and missing.all():
        raise DataError(f"{source}: column '{name}' is empty. Leave it out with data.exclude.")
    return column.reshape(len(column), -1) if column.ndim > 1 else column, missing


def _from_objects(column: Array, name: str, source: str) -> tuple[Array, Array]:
    """Return texts, or whole numbers and booleans that have gaps, and the rows without a value."""
    missing = np.array([value is None or (isinstance(value, str) and not value) for value in column], dtype=bool)
    held = column[~missing]
    if all(isinstance(value, str) for value in held):
        return column, missing
    if all(isinstance(value, int) for value in held):
        try:
            filled = np.array([0 if gap else int(value) for value, gap in zip(column, missing, strict=True)])
            if filled.dtype.kind in "iu":
                return filled, missing
        except OverflowError:
            pass
    kinds = sorted({type(value).__name__ for value in held})
    kind = "whole numbers beyond 64 bits" if kinds == ["int"] else f"{' and '.join(kinds[:3])} values"
    raise DataError(
        f"{source}: column '{name}' holds {kind}, expected numbers or texts; for example {str(held[0])[:40]!r}. "
        "Leave it out with data.exclude, or convert it."
    )


def _texts(column: Array, name: str, source: str) -> Array:
    if column.dtype.kind == "S":
        try:
            column = np.char.decode(column, "utf-8")
        except UnicodeDecodeError as error:
            raise DataError(f"{source}: column '{name}' holds bytes that are not UTF-8 ({error}).") from error
    return column.astype(object)


def _any_of_row(flags: Array) -> Array:
    return np.asarray(flags.any(axis=tuple(range(1, flags.ndim))))


def _text(value: object) -> str:
    return str(int(value)) if isinstance(value, float | np.floating) and float(value).is_integer() else str(value)
