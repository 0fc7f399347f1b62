"""Describing a store before it is recorded: its signals, and how its rows are cut into blocks and shards."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Literal, get_args

import numpy as np

from potstill.core.errors import UsageError
from potstill.store.codecs import Codec, numbers
from potstill.store.keys import ids_fingerprint, order_of
from potstill.store.manifest import HeadSpec, Manifest, Per, SignalSpec

Dtype = Literal["float32", "float16"]

# Small enough that a kill costs seconds of a slow teacher, large enough that syncing costs a fast one little.
_MAX_ROWS_PER_BLOCK = 2048
_ROWS_PER_BLOCK_OF_SEQUENCES = 256
_MAX_BYTES_PER_BLOCK = 4 * 2**20
# A shard is what one process records alone: enough of them to share the work, few enough to read across them.
_MAX_BYTES_PER_SHARD = 512 * 2**20
_SHARDS_OF_A_SMALL_STORE = 8
_BLOCKS_WORTH_A_SHARD = 4


def describe(
    *,
    ids: np.ndarray[Any, Any],
    data: str,
    teacher: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
    sources: Mapping[str, str] | None = None,
    dtype: Dtype = "float16",
    codecs: Mapping[str, Codec] | None = None,
    sequences: Collection[str] = (),
    views: int = 1,
    augmentation: Mapping[str, Any] | None = None,
    seed: int = 0,
    shards: int | None = None,
) -> Manifest:
    """Return the manifest of a store to be recorded, or to be expected of one on disk.

    Args:
        ids: (n,) int64 sample ids in row order, unique.
        data: fingerprint of the samples.
        teacher: JSON-like parts that identify the teacher, such as `LiveTeacher.parts`.
        shapes: shape of one record of each signal: without the batch dimension, and for sequences without the
            dimension of the items.
        sources: module each signal is tapped at; the model's output when absent.
        dtype: number format of signals without a codec of their own.
        codecs: how a signal's numbers are kept.
        sequences: signals of which a sample has any number of items.
        views: augmented views of each sample.
        augmentation: settings of the augmentation; settings that are all off count as none.
        seed: seed of the augmentation and of codecs that sample; ignored where there is neither.
        shards: in how many parts the store is recorded; by size when absent.

    Raises:
        UsageError: no samples, no signals, a signal without numbers, an unknown dtype, no views, or equal ids.

    """
    if len(ids) == 0 or not shapes or views < 1:
        raise UsageError(
            f"A store needs samples, signals and views: got {len(ids)} samples, {len(shapes)} signals, {views} views."
        )
    if dtype not in get_args(Dtype):
        raise UsageError(f"A store keeps float16 or float32 numbers, not '{dtype}'.")
    settings = {key: value for key, value in (augmentation or {}).items() if value}
    if settings:
        settings["seed"] = seed
    sources, codecs = sources or {}, codecs or {}
    unknown = sorted({*codecs, *sequences} - set(shapes))
    if unknown:
        raise UsageError(f"There is no signal '{unknown[0]}' to give a codec: the signals are {', '.join(shapes)}.")
    signals = {
        name: _described(
            tuple(shape),
            codecs.get(name, numbers(dtype)),
            "item" if name in sequences else "sample",
            sources.get(name, "output"),
            file,
        )
        for (name, shape), file in zip(sorted(shapes.items()), _file_names(sorted(shapes)), strict=True)
    }
    for name, spec in signals.items():
        if min(spec.shape, default=1) < 1:
            raise UsageError(f"Signal '{name}' has shape {spec.shape} for one sample: there is nothing to store.")
    order = order_of(ids)
    num_rows = len(ids) * views
    rows_per_block = _rows_per_block(signals.values())
    num_blocks = -(-num_rows // rows_per_block)
    return Manifest(
        signals=signals,
        num_samples=len(ids),
        views=views,
        ids=ids_fingerprint(ids),
        ids_order=order,
        first_id=int(ids[0]) if order == "counting" else None,
        data=data,
        teacher=json.loads(json.dumps(teacher)),
        augmentation=json.loads(json.dumps(settings)),
        sampling_seed=seed if any(spec.codec.facts.samples for spec in signals.values()) else None,
        rows_per_block=rows_per_block,
        blocks_per_shard=_blocks_per_shard(signals.values(), num_blocks, rows_per_block, shards),
        potstill=_potstill_version(),
    )


def _described(shape: tuple[int, ...], codec: Codec, per: Per, source: str, file: str) -> SignalSpec:
    if codec.facts.reduced is None:
        return SignalSpec(shape, codec, per, source, file)
    if len(shape) != 1:
        raise UsageError(f"The codec {codec.name} is for the logits of one layer, not for numbers of shape {shape}.")
    return SignalSpec((codec.facts.reduced,), codec, per, source, file, HeadSpec(shape[0]))


def _rows_per_block(signals: Collection[SignalSpec]) -> int:
    most = _ROWS_PER_BLOCK_OF_SEQUENCES if any(spec.per == "item" for spec in signals) else _MAX_ROWS_PER_BLOCK
    widest = max((spec.width or 1) if spec.per == "sample" else 1 for spec in signals)
    rows = max(1, min(most, _MAX_BYTES_PER_BLOCK // widest))
    # A multiple of usual batch sizes, so that few batches are cut at the end of a block.
    return rows // 256 * 256 if rows > 256 else rows


def _blocks_per_shard(signals: Collection[SignalSpec], num_blocks: int, rows: int, shards: int | None) -> int:
    if shards is None:
        known = num_blocks * rows * sum(spec.width or 0 for spec in signals if spec.per == "sample")
        shards = max(
            -(-known // _MAX_BYTES_PER_SHARD), min(_SHARDS_OF_A_SMALL_STORE, num_blocks // _BLOCKS_WORTH_A_SHARD), 1
        )
    elif shards > num_blocks:
        raise UsageError(
            f"store.shards is {shards}, but there are {num_blocks} blocks of {rows} rows to share: "
            f"give at most {num_blocks}."
        )
    return -(-num_blocks // shards)


def _file_names(names: list[str]) -> list[str]:
    """Return a file name for each signal: readable, safe on any file system, different in more than case."""
    taken: set[str] = set()
    files = []
    for number, name in enumerate(names):
        stem = re.sub(r"[^A-Za-z0-9_-]", "_", name) or "signal"
        if stem.lower() in taken:
            stem = f"{stem}-{number}"
        taken.add(stem.lower())
        files.append(stem[:100])
    return files


def _potstill_version() -> str:
    try:
        return version("potstill")
    except PackageNotFoundError:
        return "unknown"
