"""Stores out of the files in which other tools keep what a teacher said."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from potstill.core.errors import DataError, UsageError
from potstill.core.optional import require
from potstill.core.progress import progress
from potstill.core.signals import Batch, Ragged
from potstill.store.codecs import BadItem, Codec, Records, Sparse, likeliest, numbers
from potstill.store.description import describe
from potstill.store.reader import Store
from potstill.store.writer import Encoded, Ranges, record

Array = np.ndarray[Any, Any]
Row = Mapping[str, Any]
_Encode = Callable[[Sparse], Records]

_ROWS_AT_ONCE = 64
_PACKED = frozenset({"bytepacked_indices", "compressed_logprobs", "packed_indices", "exact_values", "coeffs"})
# What tools call them, in the order in which they are looked for.
_ID_COLUMNS = ("target_token_ids", "top_ids", "token_ids", "topk_ids", "topk_indices", "indices", "ids")
_VALUE_COLUMNS = ("target_logprobs", "top_logprobs", "topk_logprobs", "logprobs", "probabilities", "values")
_TABLE_COLUMNS = ("prompt_logprobs", "logprobs", "llm_text_generation_vllm_logprobs", "top_logprobs")


@dataclass(frozen=True)
class Columns:
    """Which columns of a file hold what.

    Attributes:
        values: the log-probabilities (or probabilities), or the tables from classes to log-probabilities.
        classes: the class ids that belong to ``values``; None where ``values`` holds tables.
        tokens: token ids of the text, kept as the signal ``tokens``; None to leave them out.
        ids: sample ids; None to number the rows from 0.

    """

    values: str
    classes: str | None = None
    tokens: str | None = None
    ids: str | None = None


@dataclass(frozen=True)
class _Rows:
    """A file that is read by row number, a few rows at a time."""

    file: Path
    count: int
    columns: Sequence[str]
    between: Callable[[int, int], list[Row]]


def import_top_k(
    file: Path,
    into: Path,
    *,
    num_classes: int,
    columns: Columns | None = None,
    k: int | None = None,
    bits: int = 8,
    probabilities: bool = False,
    signal: str = "logits",
    data: str | None = None,
    teacher: Mapping[str, Any] | None = None,
) -> Store:
    """Make a store of the likeliest classes that another tool kept in a Parquet or JSON-lines file.

    Understood are, for each token or for the whole sample:

    - two columns of lists, class ids and log-probabilities
    - one column of tables ``{class id: log-probability}``, or ``{class id: {"logprob": ...}}`` as vLLM writes them
    - one column of lists of ``{"token": "token_id:17", "logprob": ...}`` as OpenAI-compatible servers write them

    Tokens without any at the beginning of a text (the first of a prompt) are left out; elsewhere they are refused.

    Args:
        file: ``.parquet`` or ``.jsonl``.
        into: the folder of the new store.
        num_classes: how many classes, or tokens of the vocabulary, there are.
        columns: which columns to read; found by the names that tools use when absent.
        k: classes kept; the most that an item of the file has when absent.
        bits: of a log-probability, as in the codec top_k.
        probabilities: the values are probabilities, not their logarithms.
        signal: what the signal is called.
        data: fingerprint of the samples, where it is known.
        teacher: parts that identify the teacher, where they are known; the file's sha256 when absent.

    Returns:
        The new store.

    Raises:
        DataError: naming the file, row and column that cannot be used.
        UsageError: columns are missing or not told.

    """
    rows = _open(Path(file))
    columns = columns or _guess(rows)
    _require(rows, columns)
    ids, most, sequences = _scan(rows, columns, num_classes, probabilities=probabilities)
    codec = likeliest(min(most, num_classes) if k is None else k, bits)
    tokens = ["tokens"] if columns.tokens else []
    manifest = describe(
        ids=ids,
        data=_sha256(rows.file) if data is None else data,
        teacher=teacher or _imported(rows.file),
        shapes={signal: (num_classes,), **dict.fromkeys(tokens, ())},
        codecs={signal: codec, **{name: numbers("int32") for name in tokens}},
        sequences=[*([signal] if sequences else []), *tokens],
    )

    def answer(batch: Batch) -> dict[str, Any]:
        places = batch.tensor.long()
        found = rows.between(int(places[0]), int(places[-1]) + 1)
        items = [
            _items(rows, row, int(place), columns, num_classes, probabilities=probabilities)[0]
            for row, place in zip(found, places, strict=True)
        ]
        answers: dict[str, Any] = {
            signal: _encoded(rows, codec.encode_sparse, items, int(places[0]), columns, num_classes),
        }
        if columns.tokens is not None:
            answers["tokens"] = _token_ids(rows, found, int(places[0]), columns.tokens)
        return answers

    return record(answer, _batches(ids, 1), into, manifest, ids, description="importing")


def import_arrays(
    file: Path,
    into: Path,
    *,
    array: str | None = None,
    codec: Codec | None = None,
    signal: str = "logits",
    data: str | None = None,
    teacher: Mapping[str, Any] | None = None,
) -> Store:
    """Make a store of a ``.npz`` file with one row of numbers a sample, and sample ids in ``ids`` where it has them.

    Args:
        file: made with `numpy.savez`.
        into: the folder of the new store.
        array: the name of the array (n, ...) in the file; ``signal``, or the only one, when absent.
        codec: how the numbers are kept; float16 in full when absent.
        signal: what the signal is called.
        data: as for `import_top_k`.
        teacher: as for `import_top_k`.

    Raises:
        DataError: the file is damaged or its arrays do not fit.
        UsageError: it is not told which array is meant.

    """
    file = Path(file)
    try:
        with np.load(_existing(file), allow_pickle=False) as content:
            arrays = {name: content[name] for name in content.files}
    except (ValueError, OSError, EOFError) as error:
        raise DataError(f"{file} cannot be read as a .npz file of plain numbers: {error}.") from error
    others = [name for name in arrays if name != "ids"]
    name = array or (signal if signal in arrays else others[0] if len(others) == 1 else "")
    if name not in arrays:
        raise UsageError(f"{file} has the arrays {', '.join(arrays) or 'none'}: name the one to import with --column.")
    values = arrays[name]
    ids = arrays.get("ids", np.arange(len(values) if values.ndim else 0))
    if (
        values.dtype.kind not in "fiu"
        or values.ndim == 0
        or ids.shape != values.shape[:1]
        or ids.dtype.kind not in "iu"
    ):
        raise DataError(
            f"{file}: array '{name}' has shape {values.shape} and dtype {values.dtype}, 'ids' shape {ids.shape} and "
            f"dtype {ids.dtype}. Expected numbers (n, ...) and integers (n,)."
        )
    if ids.dtype == np.uint64 and len(ids) and int(ids.max()) >= 2**63:
        raise DataError(
            f"{file}: array 'ids' holds {int(ids.max())} in row {int(ids.argmax())}, and ids are integers of 64 bits "
            "with sign, below 2**63. Shift or hash them anew, for example ids >> 1 if these stay different."
        )
    ids = ids.astype(np.int64)
    manifest = describe(
        ids=ids,
        data=_sha256(file) if data is None else data,
        teacher=teacher or _imported(file),
        shapes={signal: values.shape[1:]},
        codecs={signal: codec or numbers("float16")},
    )

    def answer(batch: Batch) -> dict[str, Tensor]:
        return {signal: torch.from_numpy(values[batch.tensor.long().numpy()].astype(np.float32))}

    return record(answer, _batches(ids, 1024), into, manifest, ids, description="importing")


def _imported(file: Path) -> dict[str, Any]:
    return {"imported": file.name, "sha256": _sha256(file)}


def _sha256(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _existing(file: Path) -> Path:
    if not file.is_file():
        raise UsageError(f"There is no file {file}.")
    return file


def _batches(ids: Array, rows: int) -> Callable[[Ranges], Iterator[Batch]]:
    """Return batches whose inputs are the row numbers."""
    size = max(rows, _ROWS_AT_ONCE)

    def batches(ranges: Ranges) -> Iterator[Batch]:
        for first, last in ranges:
            for low in range(first, last, size):
                places = torch.arange(low, min(low + size, last))
                samples = torch.from_numpy(np.asarray(ids[low : low + len(places)]).astype(np.int64))
                yield Batch(samples, torch.zeros_like(places), places)

    return batches


def _open(file: Path) -> _Rows:
    _existing(file)
    if file.suffix == ".parquet":
        return _open_parquet(file)
    if file.suffix in (".jsonl", ".json", ".ndjson"):
        return _open_lines(file)
    raise UsageError(f"{file} has the ending '{file.suffix}': files to import end in .parquet, .jsonl or .npz.")


def _open_parquet(file: Path) -> _Rows:
    parquet = require("pyarrow.parquet", feature="reading Parquet files", extra="tables")
    arrow = require("pyarrow", feature="reading Parquet files", extra="tables")
    try:
        content = parquet.ParquetFile(file)
    except (arrow.ArrowInvalid, OSError) as error:
        raise DataError(f"{file} cannot be read as a Parquet file: {error}.") from error
    counts = [content.metadata.row_group(group).num_rows for group in range(content.metadata.num_row_groups)]
    starts = np.concatenate([[0], np.cumsum(counts)]).astype(int)

    def between(start: int, stop: int) -> list[Row]:
        found: list[Row] = []
        for group in range(len(counts)):
            low, high = max(start, starts[group]), min(stop, starts[group + 1])
            if low < high:
                table = group_table(group)
                found += table.slice(int(low - starts[group]), int(high - low)).to_pylist()
        return found

    kept: dict[int, Any] = {}

    def group_table(group: int) -> Any:
        if group not in kept:
            kept.clear()
            kept[group] = content.read_row_group(group)
        return kept[group]

    return _Rows(file, int(starts[-1]), list(content.schema_arrow.names), between)


def _open_lines(file: Path) -> _Rows:
    starts = [0]
    with file.open("rb") as lines:
        for line in lines:
            starts.append(starts[-1] + len(line))
    with file.open("rb") as lines:
        lines.seek(starts[-2] if len(starts) > 1 else 0)
        if len(starts) > 1 and not lines.readline().strip():
            starts.pop()
    offsets = np.array(starts)

    def between(start: int, stop: int) -> list[Row]:
        with file.open("rb") as lines:
            lines.seek(int(offsets[start]))
            content = [lines.read(int(offsets[row + 1] - offsets[row])) for row in range(start, stop)]
        return [_parsed(file, start + number, line) for number, line in enumerate(content)]

    count = len(starts) - 1
    return _Rows(file, count, list(between(0, 1)[0]) if count else [], between)


def _parsed(file: Path, row: int, line: bytes) -> Row:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file}, row {row}: no JSON that can be read ({error}).") from error
    if not isinstance(value, dict):
        raise DataError(f"{file}, row {row}: expected a JSON object, not {type(value).__name__}.")
    return value


def _guess(rows: _Rows) -> Columns:
    packed = sorted(_PACKED & set(rows.columns))
    if packed:
        raise DataError(
            f"{rows.file}: the column {', '.join(packed)} is packed in a way that the file does not describe (the "
            "settings of DistillKit's compressor). Unpack it with that tool into class ids and log-probabilities."
        )
    first = rows.between(0, 1)[0] if rows.count else {}
    classes = next((name for name in _ID_COLUMNS if isinstance(first.get(name), list)), None)
    values = next((name for name in _VALUE_COLUMNS if isinstance(first.get(name), list) and name != classes), None)
    tokens = "input_ids" if "input_ids" in rows.columns else None
    ids = "id" if isinstance(first.get("id"), int) else None
    if classes is not None and values is not None:
        return Columns(values, classes, tokens, ids)
    tables = next((name for name in _TABLE_COLUMNS if isinstance(first.get(name), list | dict)), None)
    if tables is not None:
        return Columns(tables, None, tokens, ids)
    raise UsageError(
        f"{rows.file} has the columns {', '.join(rows.columns) or 'none'}: name those of the log-probabilities with "
        "--column, and of the class ids with --classes-column where they have their own."
    )


def _require(rows: _Rows, columns: Columns) -> None:
    for name in (columns.values, columns.classes, columns.tokens, columns.ids):
        if name is not None and name not in rows.columns:
            raise UsageError(f"{rows.file} has no column '{name}', only {', '.join(rows.columns) or 'none'}.")


def _scan(rows: _Rows, columns: Columns, num_classes: int, *, probabilities: bool) -> tuple[Array, int, bool]:
    """Read the file once: return sample ids (n,), the most classes of an item, and whether samples are sequences."""
    if rows.count == 0:
        raise DataError(f"{rows.file} has no rows.")
    ids = np.arange(rows.count)
    most, kinds = 1, set()
    with progress("reading", rows.count, unit="rows") as advance:
        for low in range(0, rows.count, _ROWS_AT_ONCE):
            found = rows.between(low, min(low + _ROWS_AT_ONCE, rows.count))
            for place, row in enumerate(found, low):
                items, sequence = _items(rows, row, place, columns, num_classes, probabilities=probabilities)
                kinds |= {sequence} if items or sequence else set()
                most = max([most, *map(len, items)])
                if columns.ids is not None:
                    number = row.get(columns.ids)
                    if not isinstance(number, int) or isinstance(number, bool) or not -(2**63) <= number < 2**63:
                        shown = f"{number!r:.60}"
                        raise _bad(rows, place, columns.ids, f"holds {shown}, expected an integer of 64 bits with sign")
                    ids[place] = number
            advance(len(found))
    if len(kinds) > 1:
        raise DataError(
            f"{rows.file}: column '{columns.values}' holds sequences in some rows and single lists in others."
        )
    return ids, most, kinds != {False}


def _items(
    rows: _Rows, row: Row, place: int, columns: Columns, num_classes: int, *, probabilities: bool
) -> tuple[list[dict[int, float]], bool]:
    """Return what a row says: the probabilities of each item by class, and whether the row is a sequence of items."""

    def read() -> tuple[list[Any], list[Any] | None, bool]:
        values, classes = row.get(columns.values), None
        if isinstance(values, dict) and isinstance(values.get("content"), list):
            values = [token.get("top_logprobs") for token in values["content"]]
        if columns.classes is not None:
            classes = row.get(columns.classes)
            if not isinstance(classes, list):
                raise _bad(rows, place, columns.classes, f"holds {_kind(classes)}, expected a list")
        single = isinstance(values, dict) or (
            isinstance(values, list) and bool(values) and classes is not None and isinstance(values[0], int | float)
        )
        if single:
            return [values], None if classes is None else [classes], False
        if not isinstance(values, list):
            raise _bad(rows, place, columns.values, f"holds {_kind(values)}, expected a list")
        if classes is not None and len(classes) != len(values):
            raise _bad(rows, place, columns.values, f"has {len(values)} items, '{columns.classes}' {len(classes)}")
        return values, classes, True

    values, classes, sequence = read()
    found: list[dict[int, float]] = []
    for number, item in enumerate(values):
        where = f"item {number}"
        if not item:
            if found:
                raise _bad(rows, place, columns.values, f"has nothing for {where}")
            continue
        pairs = _pairs(item, None if classes is None else classes[number])
        if isinstance(pairs, str):
            raise _bad(rows, place, columns.values, f"{pairs} for {where}")
        found.append(_probabilities(rows, place, columns, pairs, where, num_classes, plain=probabilities))
    return found, sequence


def _pairs(item: Any, classes: Any) -> list[tuple[Any, Any]] | str:
    """Return (class, value) pairs of an item, or what is wrong with it."""
    if classes is not None:
        if not isinstance(item, list) or not isinstance(classes, list) or len(item) != len(classes):
            return "does not have as many values as classes"
        return list(zip(classes, item, strict=True))
    if isinstance(item, dict):
        # Parquet gives every row every key of a struct; those of other rows are null.
        return [(key, _logprob(value)) for key, value in item.items() if value is not None]
    if isinstance(item, list) and all(isinstance(entry, dict) for entry in item):
        return [(entry.get("token_id", entry.get("token")), _logprob(entry)) for entry in item]
    if isinstance(item, list) and all(isinstance(entry, list | tuple) and len(entry) == 2 for entry in item):
        return [(entry[0], _logprob(entry[1])) for entry in item]
    return f"holds {_kind(item)}, expected a table of classes and log-probabilities"


def _logprob(value: Any) -> Any:
    return value.get("logprob") if isinstance(value, dict) else value


def _probabilities(
    rows: _Rows,
    place: int,
    columns: Columns,
    pairs: list[tuple[Any, Any]],
    where: str,
    num_classes: int,
    *,
    plain: bool,
) -> dict[int, float]:
    found: dict[int, float] = {}
    for key, value in pairs:
        name = str(key).removeprefix("token_id:")
        if not name.lstrip("-").isdigit():
            raise _bad(
                rows,
                place,
                columns.classes or columns.values,
                f"names {key!r} for {where}, expected a class id: let the server return token ids "
                "(vLLM: return_tokens_as_token_ids)",
            )
        number = int(name)
        if not 0 <= number < num_classes:
            raise _bad(
                rows, place, columns.classes or columns.values, f"names class {number} of {num_classes} for {where}"
            )
        if number in found:
            raise _bad(rows, place, columns.classes or columns.values, f"names class {number} twice for {where}")
        if isinstance(value, bool) or not isinstance(value, int | float) or value != value:
            raise _bad(rows, place, columns.values, f"holds {value!r} for {where}, expected a number")
        if plain and not 0 <= value <= 1:
            raise _bad(rows, place, columns.values, f"holds {value} for {where}, expected a probability")
        if not plain and value > 1e-3:
            raise _bad(rows, place, columns.values, f"holds {value} for {where}, expected a log-probability: at most 0")
        found[number] = float(value) if plain else float(np.exp(value))
    return found


def _encoded(
    rows: _Rows, encode: _Encode, items: list[list[dict[int, float]]], first: int, columns: Columns, num_classes: int
) -> Encoded:
    lengths = np.array([len(row) for row in items], np.int64)
    flat = [item for row in items for item in row]
    most = max((len(item) for item in flat), default=1)
    ids, probabilities = np.zeros((len(flat), most), np.int64), np.zeros((len(flat), most), np.float32)
    for number, item in enumerate(flat):
        ids[number, : len(item)] = list(item)
        probabilities[number, : len(item)] = list(item.values())
    sparse = Sparse(torch.from_numpy(ids), torch.from_numpy(probabilities), "bucket", num_classes)
    try:
        return Encoded(encode(sparse), lengths)
    except BadItem as error:
        row = int(np.searchsorted(np.cumsum(lengths), error.index, side="right"))
        position = error.index - int(lengths[:row].sum())
        raise _bad(rows, first + row, columns.values, f"item {position} {error.reason}") from error


def _token_ids(rows: _Rows, found: list[Row], first: int, column: str) -> Ragged:
    for place, row in enumerate(found, first):
        tokens = row.get(column)
        if not isinstance(tokens, list) or not all(isinstance(token, int) for token in tokens):
            raise _bad(rows, place, column, f"holds {_kind(tokens)}, expected a list of integers")
    values = torch.tensor([token for row in found for token in row[column]], dtype=torch.int64)
    return Ragged(values, torch.tensor([len(row[column]) for row in found]))


def _kind(value: Any) -> str:
    return "nothing" if value is None else type(value).__name__


def _bad(rows: _Rows, place: int, column: str, what: str) -> DataError:
    return DataError(f"{rows.file}, row {place}, column '{column}': {what.rstrip('.')}.")
