"""A store as one Parquet file, for everything that reads tables."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from potstill.core.errors import PotstillError, UsageError, did_you_mean
from potstill.core.files import atomic_path, disk_errors
from potstill.core.optional import require
from potstill.core.progress import progress
from potstill.core.signals import Ragged
from potstill.store.codecs import Sparse, numbers
from potstill.store.manifest import SignalSpec, to_json
from potstill.store.open import open_store
from potstill.store.reader import Store

Array = np.ndarray[Any, Any]

_MOST_ROWS = 2048
_NUMBERS_AT_ONCE = 2**22
_FEATURE = "writing Parquet files"


def export(folder: Path | str, file: Path, *, signals: Collection[str] | None = None) -> int:
    """Write a store as Parquet: the columns ``id`` and ``view``, and one for each signal.

    Numbers are fixed-size lists of float32 (or the integers that were recorded), flattened in row order where a record
    has several dimensions. Values of a regression are in the target's units, float64 where float32 would round them.
    Signals with a sparse codec are lists of ``{id, probability}``, without entries of probability 0. Signals of
    sequences are lists of these; signals of bytes (uint8 items) are texts. The manifest lies in the file's metadata
    under ``potstill``. Row groups are small, so that memory stays small.

    Args:
        folder: a finished store, or an address of one.
        file: where to write.
        signals: which ones; all when absent.

    Returns:
        The number of rows written.

    Raises:
        UsageError: no such signal, or one with the name ``id`` or ``view``.
        PotstillError: the store is damaged, a text is no UTF-8, the disk is full, or pyarrow is missing.

    """
    arrow = require("pyarrow", feature=_FEATURE, extra="tables")
    parquet = require("pyarrow.parquet", feature=_FEATURE, extra="tables")
    store = open_store(folder)
    for name in signals or ():
        if name not in store.signals:
            raise UsageError(f"The store {store.folder} has no signal '{name}'.{did_you_mean(name, store.signals)}")
    names = sorted(store.signals if signals is None else set(signals))
    if {"id", "view"} & set(names):
        raise UsageError("A signal named 'id' or 'view' has no column of its own here: export the other signals.")
    specs = {name: store.manifest.signals[name] for name in names}
    described = json.dumps(to_json(store.manifest))
    schema = arrow.schema(
        [
            arrow.field("id", arrow.int64(), nullable=False),
            arrow.field("view", arrow.int32(), nullable=False),
            *(
                arrow.field(
                    name,
                    _column_type(arrow, spec, _shape(spec), wide=_is_wide(store, name)),
                    nullable=False,
                    metadata={"shape": json.dumps(_shape(spec)), "codec": json.dumps(spec.codec.to_json())},
                )
                for name, spec in specs.items()
            ),
        ],
        metadata={"potstill": described},
    )
    with (
        disk_errors(file),
        atomic_path(Path(file)) as temporary,
        parquet.ParquetWriter(temporary, schema, compression="zstd") as writer,
        progress("exporting", store.manifest.num_rows, unit="samples") as advance,
    ):
        for ids, views in _groups(store, specs):
            rows = store.rows(torch.from_numpy(ids), torch.from_numpy(views))
            columns = [arrow.array(ids), arrow.array(views.astype(np.int32))]
            columns += [_column(arrow, store, name, spec, rows, ids) for name, spec in specs.items()]
            writer.write_table(arrow.Table.from_arrays(columns, schema=schema))
            advance(len(ids))
    return store.manifest.num_rows


def _shape(spec: SignalSpec) -> list[int]:
    return list(spec.shape) if spec.head is None else [spec.head.classes]


def _is_wide(store: Store, name: str) -> bool:
    shape = store.shapes[name]
    return store.in_target_units(name, torch.zeros(1, *shape)).dtype == torch.float64


def _is_text(spec: SignalSpec) -> bool:
    return spec.per == "item" and spec.codec == numbers("uint8") and spec.shape == ()


def _is_sparse(spec: SignalSpec) -> bool:
    return hasattr(spec.codec, "decode_sparse")


def _column_type(arrow: Any, spec: SignalSpec, shape: list[int], *, wide: bool = False) -> Any:
    if _is_text(spec):
        return arrow.string()
    if _is_sparse(spec):
        item = arrow.list_(arrow.struct([("id", arrow.int32()), ("probability", arrow.float32())]))
    else:
        item = arrow.float64() if wide else arrow.float32()
        item = arrow.from_numpy_dtype(np.dtype(spec.codec.facts.plain)) if spec.codec.facts.integers else item
        item = arrow.list_(item, int(np.prod(shape))) if shape else item
    return arrow.list_(item) if spec.per == "item" else item


def _groups(store: Store, specs: dict[str, SignalSpec]) -> Iterator[tuple[Array, Array]]:
    """Yield ids and views, (b,) each, of rows in order; few enough that their numbers fit in a little memory."""
    numbers = sum(int(np.prod(_shape(spec))) * (64 if spec.per == "item" else 1) for spec in specs.values())
    rows = max(1, min(_MOST_ROWS, _NUMBERS_AT_ONCE // max(1, numbers)))
    ids = store.ids
    for low in range(0, store.manifest.num_rows, rows):
        view, place = np.divmod(np.arange(low, min(low + rows, store.manifest.num_rows)), store.manifest.num_samples)
        yield np.asarray(ids[place]).astype(np.int64), view.astype(np.int64)


def _column(arrow: Any, store: Store, name: str, spec: SignalSpec, rows: Array, ids: Array) -> Any:
    kind = _column_type(arrow, spec, _shape(spec), wide=_is_wide(store, name))
    if _is_sparse(spec):
        sparse, items = store.gather_sparse(name, rows)
        return _nested(arrow, _pairs(arrow, sparse), kind, None if items is None else items.numpy())
    found = store.gather(name, rows)
    found = found if isinstance(found, Ragged) else store.in_target_units(name, found)
    values, lengths = (found.values, found.lengths.numpy()) if isinstance(found, Ragged) else (found, None)
    if _is_text(spec) and lengths is not None:
        return arrow.array(_texts(values.numpy().tobytes(), lengths, name, ids), kind)
    flat = arrow.array(values.reshape(-1).numpy())
    if spec.shape:
        item = kind if lengths is None else kind.value_type
        flat = arrow.FixedSizeListArray.from_arrays(flat, type=item)
    return _nested(arrow, flat, kind, lengths)


def _pairs(arrow: Any, sparse: Sparse) -> Any:
    """Return one list of {id, probability} for each record."""
    there = sparse.probabilities > 0
    struct = arrow.StructArray.from_arrays(
        [
            arrow.array(sparse.ids[there].numpy().astype(np.int32)),
            arrow.array(sparse.probabilities[there].numpy()),
        ],
        names=["id", "probability"],
    )
    return _lists(arrow, struct, there.sum(1).numpy())


def _lists(arrow: Any, values: Any, lengths: Array) -> Any:
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return arrow.ListArray.from_arrays(arrow.array(offsets), values)


def _nested(arrow: Any, records: Any, kind: Any, lengths: Array | None) -> Any:
    found = records if lengths is None else _lists(arrow, records, lengths)
    return found.cast(kind)


def _texts(content: bytes, lengths: Array, name: str, ids: Array) -> list[str]:
    texts, start = [], 0
    for length, sample in zip(lengths.tolist(), ids.tolist(), strict=True):
        try:
            texts.append(content[start : start + length].decode("utf-8"))
        except UnicodeDecodeError as error:
            raise PotstillError(
                f"Signal '{name}' of id {sample} is no text: {error}. Leave the signal out to export the others."
            ) from error
        start += length
    return texts
