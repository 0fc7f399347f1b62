"""The containers that `store_containers.py` compares: how each is written block by block, and how it is read."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.append(os.environ.get("POTSTILL_CONTAINERS", str(Path.home() / ".cache" / "potstill" / "containers")))

import lmdb
import pyarrow as pa
import pyarrow.parquet as pq
import zarr
from safetensors import safe_open
from safetensors.numpy import save_file

from potstill.core.signals import Batch, Ragged
from potstill.store import describe, open_store, record
from potstill.store.codecs import Full
from potstill.store.columns import Column

Array = np.ndarray[Any, Any]
SHARDS = 8


@dataclass(frozen=True)
class Content:
    """What is written: entries of ``width`` bytes, and for sequences where each begins and the last ends."""

    name: str
    entries: Array
    offsets: Array | None
    rows_per_block: int

    @property
    def rows(self) -> int:
        return len(self.entries) if self.offsets is None else len(self.offsets) - 1

    @property
    def width(self) -> int:
        return int(self.entries.shape[1])

    @property
    def rows_per_shard(self) -> int:
        blocks = -(-self.rows // self.rows_per_block)
        return -(-blocks // SHARDS) * self.rows_per_block

    def span(self, start: int, stop: int) -> tuple[int, int]:
        """Return the entries of some rows."""
        return (start, stop) if self.offsets is None else (int(self.offsets[start]), int(self.offsets[stop]))

    def shards(self) -> Iterator[list[tuple[int, int]]]:
        """Yield the blocks of each shard, as ranges of rows."""
        for first in range(0, self.rows, self.rows_per_shard):
            last = min(first + self.rows_per_shard, self.rows)
            yield [(row, min(row + self.rows_per_block, last)) for row in range(first, last, self.rows_per_block)]


@dataclass(frozen=True)
class Reader:
    """``gather`` returns the entries of some rows, one row after the other; ``scan`` yields all in pieces."""

    gather: Callable[[Array], Array]
    scan: Callable[[], Iterator[Array]]


def positions(begins: Array, lengths: Array) -> Array:
    """Return the numbers of the entries of some rows."""
    ends = np.cumsum(lengths)
    return np.arange(ends[-1]) + np.repeat(begins - (ends - lengths), lengths)


def by_shard(content: Content, maps: list[Array], offsets: list[Array]) -> Callable[[Array], Array]:
    """Return a gather over arrays that hold a shard each, with offsets of their own where rows are sequences."""

    def gather(rows: Array) -> Array:
        numbers = rows // content.rows_per_shard
        if content.offsets is None:
            found = np.empty((len(rows), content.width), np.uint8)
            for number in np.unique(numbers):
                places = np.flatnonzero(numbers == number)
                found[places] = maps[number].take(rows[places] - number * content.rows_per_shard, axis=0)
            return found
        parts, lengths = {}, np.empty(len(rows), np.int64)
        for number in np.unique(numbers):
            places = np.flatnonzero(numbers == number)
            local = rows[places] - number * content.rows_per_shard
            begins, ends = offsets[number][local], offsets[number][local + 1]
            lengths[places] = ends - begins
            parts[number] = places, maps[number].take(positions(begins, ends - begins), axis=0)
        firsts = np.cumsum(lengths) - lengths
        found = np.empty((int(lengths.sum()), content.width), np.uint8)
        for places, part in parts.values():
            found[positions(firsts[places], lengths[places])] = part
        return found

    return gather


def pieces(content: Content, maps: list[Array]) -> Callable[[], Iterator[Array]]:
    """Return a scan over arrays that hold a shard each."""
    step = content.rows_per_block if content.offsets is None else content.rows_per_block * 210
    return lambda: (array[first : first + step] for array in maps for first in range(0, array.shape[0], step))


def synced(file: Any, content: bytes | memoryview) -> None:
    file.write(content)
    file.flush()
    os.fsync(file.fileno())


def write_raw(folder: Path, content: Content) -> None:
    with (folder / "entries.bin").open("wb") as file, (folder / "offsets.bin").open("wb") as other:
        for blocks in content.shards():
            for block in blocks:
                first, last = content.span(*block)
                synced(file, content.entries[first:last].data)
                if content.offsets is not None:
                    begin = block[0] + (block[0] > 0)
                    synced(other, content.offsets[begin : block[1] + 1].tobytes())


def open_raw(folder: Path, content: Content) -> Reader:
    entries = np.asarray(np.memmap(folder / "entries.bin", np.uint8, "r").reshape(-1, content.width))
    if content.offsets is None:
        return Reader(lambda rows: entries.take(rows, axis=0), pieces(content, [entries]))
    offsets = np.asarray(np.memmap(folder / "offsets.bin", np.int64, "r"))

    def gather(rows: Array) -> Array:
        begins = offsets[rows]
        return entries.take(positions(begins, offsets[rows + 1] - begins), axis=0)

    return Reader(gather, pieces(content, [entries]))


def npy_columns(content: Content, shard: int) -> tuple[Column, Column]:
    return Column(f"{shard}.npy", "|u1", (content.width,)), Column(f"{shard}.items.npy", "<i8")


def write_npy(folder: Path, content: Content) -> None:
    for shard, blocks in enumerate(content.shards()):
        column, items = npy_columns(content, shard)
        base = content.span(*blocks[0])[0]
        with (folder / column.file).open("wb") as file, (folder / items.file).open("wb") as other:
            file.write(column.header(0))
            other.write(items.header(0))
            for start, stop in blocks:
                first, last = content.span(start, stop)
                synced(file, content.entries[first:last].data)
                if content.offsets is not None:
                    begin = start + (start > blocks[0][0])
                    synced(other, (content.offsets[begin : stop + 1] - base).tobytes())
            for one, kind, count in ((file, column, last - base), (other, items, blocks[-1][1] - blocks[0][0] + 1)):
                one.seek(0)
                synced(one, kind.header(count))


def open_npy(folder: Path, content: Content) -> Reader:
    both = [npy_columns(content, shard) for shard, _ in enumerate(content.shards())]
    maps = [column.map(folder) for column, _ in both]
    offsets = [items.map(folder) for _, items in both] if content.offsets is not None else []
    return Reader(by_shard(content, maps, offsets), pieces(content, maps))


def batches(ranges: Any) -> Iterator[Batch]:
    for start, stop in ranges:
        ids = torch.arange(start, stop)
        yield Batch(ids, torch.zeros_like(ids), ids)


def write_store(folder: Path, content: Content) -> None:
    def answer(batch: Batch) -> dict[str, Any]:
        start, stop = int(batch.ids[0]), int(batch.ids[-1]) + 1
        first, last = content.span(start, stop)
        values = torch.from_numpy(content.entries[first:last])
        if content.offsets is None:
            return {"signal": values}
        return {"signal": Ragged(values, torch.from_numpy(np.diff(content.offsets[start : stop + 1])))}

    ids = np.arange(content.rows)
    manifest = describe(
        ids=ids,
        data="random bytes",
        teacher={},
        shapes={"signal": (content.width,)},
        codecs={"signal": Full("uint8")},
        sequences=["signal"] if content.offsets is not None else (),
    )
    record(answer, batches, folder / "store", manifest, ids)


def open_stored(folder: Path, content: Content) -> Reader:
    store = open_store(folder / "store")

    def gather(rows: Array) -> Array:
        found = store.read("signal", torch.from_numpy(rows), torch.zeros(len(rows), dtype=torch.int64))
        return (found.values if isinstance(found, Ragged) else found).numpy()

    def scan() -> Iterator[Array]:
        for blocks in content.shards():
            for start, stop in blocks:
                yield gather(np.arange(start, stop))

    return Reader(gather, scan)


def arrow_type(content: Content) -> Any:
    entry = pa.binary(content.width)
    return entry if content.offsets is None else pa.large_list(entry)


def arrow_batch(content: Content, start: int, stop: int) -> Any:
    first, last = content.span(start, stop)
    entries = pa.Array.from_buffers(
        pa.binary(content.width), last - first, [None, pa.py_buffer(content.entries[first:last])]
    )
    if content.offsets is None:
        return pa.record_batch([entries], ["signal"])
    offsets = pa.array(content.offsets[start : stop + 1] - first, pa.int64())
    return pa.record_batch([pa.LargeListArray.from_arrays(offsets, entries)], ["signal"])


def write_arrow(folder: Path, content: Content) -> None:
    schema = pa.schema([("signal", arrow_type(content))])
    for shard, blocks in enumerate(content.shards()):
        with (folder / f"{shard}.arrow").open("wb") as file, pa.ipc.new_file(file, schema) as writer:
            for start, stop in blocks:
                writer.write_batch(arrow_batch(content, start, stop))
                file.flush()
                os.fsync(file.fileno())
        with (folder / f"{shard}.arrow").open("rb") as file:
            os.fsync(file.fileno())


def arrow_batches(folder: Path, content: Content) -> list[Any]:
    found = []
    for shard, _ in enumerate(content.shards()):
        file = pa.ipc.open_file(pa.memory_map(str(folder / f"{shard}.arrow")))
        found += [file.get_batch(number) for number in range(file.num_record_batches)]
    return found


def arrow_entries(array: Any) -> tuple[Any, Any]:
    """Return the buffer of entries of a block, and the one of its offsets where rows are sequences."""
    buffers = [buffer for buffer in array.buffers() if buffer is not None]
    return buffers[-1], buffers[0] if len(buffers) > 1 else None


def open_arrow_take(folder: Path, content: Content) -> Reader:
    table = pa.Table.from_batches(arrow_batches(folder, content))

    def gather(rows: Array) -> Array:
        taken = table.column("signal").take(pa.array(rows))
        arrays = taken.chunks if isinstance(taken, pa.ChunkedArray) else [taken]
        parts = []
        for array in arrays:
            flat = array.flatten() if content.offsets is not None else array
            data = np.frombuffer(flat.buffers()[1], np.uint8)
            parts.append(data[flat.offset * content.width : (flat.offset + len(flat)) * content.width])
        return np.concatenate(parts).reshape(-1, content.width)

    return Reader(gather, lambda: arrow_scan(content, table.column("signal").chunks))


def arrow_scan(content: Content, arrays: list[Any]) -> Iterator[Array]:
    for array in arrays:
        yield np.frombuffer(arrow_entries(array)[0], np.uint8).reshape(-1, content.width)


def open_arrow_by_hand(folder: Path, content: Content) -> Reader:
    """Gather bytes by their addresses, relative to the first block of all."""
    arrays = [batch.column(0) for batch in arrow_batches(folder, content)]
    starts = np.array([block[0] for blocks in content.shards() for block in blocks])
    views = [np.frombuffer(arrow_entries(array)[0], np.uint8).reshape(-1, content.width) for array in arrays]
    offsets = [np.frombuffer(found, np.int64) if (found := arrow_entries(array)[1]) else None for array in arrays]

    def gather(rows: Array) -> Array:
        numbers = starts.searchsorted(rows, side="right") - 1
        local = rows - starts[numbers]
        if content.offsets is None:
            return np.stack([views[number][row] for number, row in zip(numbers, local, strict=True)])
        return np.concatenate(
            [
                views[number][offsets[number][row] : offsets[number][row + 1]]
                for number, row in zip(numbers.tolist(), local.tolist(), strict=True)
            ]
        )

    return Reader(gather, lambda: arrow_scan(content, arrays))


def write_safetensors(folder: Path, content: Content) -> None:
    for shard, blocks in enumerate(content.shards()):
        first, last = content.span(blocks[0][0], blocks[-1][1])
        tensors = {"entries": content.entries[first:last]}
        if content.offsets is not None:
            tensors["offsets"] = content.offsets[blocks[0][0] : blocks[-1][1] + 1] - first
        path = folder / f"{shard}.safetensors"
        save_file(tensors, path)
        with path.open("rb") as file:
            os.fsync(file.fileno())


def open_safetensors(folder: Path, content: Content) -> Reader:
    files = [safe_open(folder / f"{shard}.safetensors", "np") for shard, _ in enumerate(content.shards())]
    slices = [file.get_slice("entries") for file in files]
    offsets = [file.get_tensor("offsets") for file in files] if content.offsets is not None else []

    def gather(rows: Array) -> Array:
        parts = []
        for row in rows.tolist():
            shard, local = divmod(row, content.rows_per_shard)
            first, last = (local, local + 1) if content.offsets is None else map(int, offsets[shard][local : local + 2])
            parts.append(slices[shard][first:last])
        return np.concatenate(parts)

    step = content.rows_per_block if content.offsets is None else content.rows_per_block * 210

    def scan() -> Iterator[Array]:
        for one in slices:
            size = one.get_shape()[0]
            yield from (one[first : min(first + step, size)] for first in range(0, size, step))

    return Reader(gather, scan)


def write_zarr(folder: Path, content: Content) -> None:
    step = content.rows_per_block if content.offsets is None else content.rows_per_block * 210
    array = zarr.create_array(
        folder / "entries.zarr", shape=content.entries.shape, chunks=(step, content.width), dtype="u1", compressors=None
    )
    for number, first in enumerate(range(0, len(content.entries), step)):
        array[first : first + step] = content.entries[first : first + step]
        with (folder / "entries.zarr" / "c" / str(number) / "0").open("rb") as file:
            os.fsync(file.fileno())
    if content.offsets is not None:
        zarr.save_array(str(folder / "offsets.zarr"), content.offsets)


def open_zarr(folder: Path, content: Content) -> Reader:
    array = zarr.open_array(folder / "entries.zarr", mode="r")
    offsets = zarr.open_array(folder / "offsets.zarr", mode="r")[:] if content.offsets is not None else None

    def gather(rows: Array) -> Array:
        if offsets is not None:
            begins = offsets[rows]
            rows = positions(begins, offsets[rows + 1] - begins)
        return array.oindex[rows]

    return Reader(gather, pieces(content, [array]))


def write_parquet(folder: Path, content: Content) -> None:
    schema = pa.schema([("signal", arrow_type(content))])
    for shard, blocks in enumerate(content.shards()):
        with (
            (folder / f"{shard}.parquet").open("wb") as file,
            pq.ParquetWriter(file, schema, compression="none", use_dictionary=False, write_statistics=False) as writer,
        ):
            for start, stop in blocks:
                writer.write_batch(arrow_batch(content, start, stop))
                file.flush()
                os.fsync(file.fileno())
        with (folder / f"{shard}.parquet").open("rb") as file:
            os.fsync(file.fileno())


def open_parquet(folder: Path, content: Content) -> Reader:
    files = [pq.ParquetFile(folder / f"{shard}.parquet", memory_map=True) for shard, _ in enumerate(content.shards())]
    per_shard = content.rows_per_shard // content.rows_per_block

    def block(number: int) -> tuple[Array, Any]:
        table = files[number // per_shard].read_row_group(number % per_shard, use_threads=False)
        array = table.column(0).combine_chunks()
        array = array.chunk(0) if isinstance(array, pa.ChunkedArray) else array
        entries, offsets = arrow_entries(array)
        size = len(array) if offsets is None else int(np.frombuffer(offsets, np.int64)[len(array)])
        return np.frombuffer(entries, np.uint8)[: size * content.width].reshape(-1, content.width), offsets

    def gather(rows: Array) -> Array:
        numbers = rows // content.rows_per_block
        parts: list[Any] = [None] * len(rows)
        for number in np.unique(numbers):
            entries, offsets = block(int(number))
            ends = None if offsets is None else np.frombuffer(offsets, np.int64)
            for place in np.flatnonzero(numbers == number):
                row = int(rows[place] - number * content.rows_per_block)
                parts[place] = entries[row : row + 1] if ends is None else entries[ends[row] : ends[row + 1]]
        return np.concatenate(parts)

    def scan() -> Iterator[Array]:
        return (block(number)[0] for number in range(-(-content.rows // content.rows_per_block)))

    return Reader(gather, scan)


def write_lmdb(folder: Path, content: Content) -> None:
    with lmdb.open(str(folder), map_size=2**31) as environment:
        for blocks in content.shards():
            for start, stop in blocks:
                with environment.begin(write=True) as transaction:
                    for row in range(start, stop):
                        first, last = content.span(row, row + 1)
                        transaction.put(row.to_bytes(8, "big"), content.entries[first:last].tobytes(), append=True)


def open_lmdb(folder: Path, content: Content) -> Reader:
    environment = lmdb.open(str(folder), map_size=2**31, readonly=True, lock=False)
    transaction = environment.begin(buffers=True)

    def gather(rows: Array) -> Array:
        found = b"".join([transaction.get(row.to_bytes(8, "big")) for row in rows.tolist()])
        return np.frombuffer(found, np.uint8).reshape(-1, content.width)

    def scan() -> Iterator[Array]:
        held = []
        for value in transaction.cursor().iternext(keys=False, values=True):
            held.append(value)
            if len(held) == content.rows_per_block:
                yield np.frombuffer(b"".join(held), np.uint8).reshape(-1, content.width)
                held = []
        yield np.frombuffer(b"".join(held), np.uint8).reshape(-1, content.width)

    return Reader(gather, scan)


Write, Open = Callable[[Path, Content], None], Callable[[Path, Content], Reader]
CONTAINERS: dict[str, tuple[Write, Open, str]] = {
    "raw": (write_raw, open_raw, "numpy"),
    "npy": (write_npy, open_npy, "numpy"),
    "potstill": (write_store, open_stored, "potstill"),
    "arrow take": (write_arrow, open_arrow_take, "pyarrow"),
    "arrow by hand": (write_arrow, open_arrow_by_hand, "pyarrow"),
    "safetensors": (write_safetensors, open_safetensors, "safetensors"),
    "zarr": (write_zarr, open_zarr, "zarr"),
    "parquet": (write_parquet, open_parquet, "pyarrow"),
    "lmdb": (write_lmdb, open_lmdb, "lmdb"),
}
