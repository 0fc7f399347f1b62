"""Reading a finished store: rows by ``(id, view)``, straight from the memory-mapped files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from potstill.core.errors import TeacherError, did_you_mean
from potstill.core.names import parse
from potstill.core.signals import Ragged
from potstill.store import layout
from potstill.store.codecs import Records, Sparse
from potstill.store.heads import head_file, read_head
from potstill.store.keys import Integers, Keys, keys_problem, open_keys, read_ids
from potstill.store.manifest import HeadSpec, Manifest, SignalSpec
from potstill.store.refusals import damage, refuse_wrong_files

Array = np.ndarray[Any, Any]

# Small enough for every process to hold; larger columns stay on disk, whatever their size.
_MOST_BYTES_IN_MEMORY = 64 * 2**20
_BEGIN_AND_END = np.arange(2)


@dataclass(frozen=True)
class _Shard:
    maps: Mapping[str, Array]
    journal: layout.Journal


@dataclass
class _State:
    """What reading has found out so far: which blocks are right, the open shards, and small columns in memory.

    ``fetch`` brings a shard's files into the folder before it is opened, where they lie elsewhere.
    """

    unchecked: np.ndarray[Any, np.dtype[np.bool_]]
    left: int
    keys_checked: bool = False
    ids_checked: bool = False
    shards: dict[int, _Shard] = field(default_factory=dict)
    memory: dict[str, Array | None] = field(default_factory=dict)
    fetch: Callable[[int], None] | None = None


@dataclass(frozen=True)
class Store:
    """What a teacher said about every sample and view, on disk; made by `open_store` or `record`.

    Nothing is read until it is asked for. Every block is compared with its checksums the first time a row of it is
    read, so damaged numbers never reach training, and opening a large store costs what opening a small one does.

    Attributes:
        folder: where it lies.
        manifest: what it holds and belongs to.

    """

    folder: Path
    manifest: Manifest
    _keys: Keys
    _state: _State
    _heads: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)

    @property
    def ids(self) -> Integers:
        """(n,) int64 sample ids in row order, compared with their checksum first.

        Raises:
            PotstillError: the file of ids is damaged.

        """
        if not self._state.ids_checked:
            self._check_keys(keys_problem(self.folder, self.manifest))
            self._state.ids_checked = True
        return read_ids(self.folder, self.manifest)

    @property
    def signals(self) -> frozenset[str]:
        """Names of the recorded signals."""
        return frozenset(self.manifest.signals)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of what `read` gives for one sample, or one item, of each signal."""
        specs = self.manifest.signals.items()
        return {name: spec.shape if spec.head is None else (spec.head.classes,) for name, spec in specs}

    def rows(self, ids: Tensor, views: Tensor) -> Integers:
        """Return the (b,) rows of some samples' views, for `gather`.

        Args:
            ids: (b,) int64.
            views: (b,) int64.

        Raises:
            TeacherError: one was not recorded.
            PotstillError: a block they lie in, or what finds rows, is damaged.

        """
        if not self._state.keys_checked:
            # Ids that count up are not looked at to find a row.
            self._check_keys(None if self.manifest.first_id is not None else keys_problem(self.folder, self.manifest))
        rows = self._keys.rows(ids.numpy(), views.numpy())
        if self._state.left:
            blocks = rows // self.manifest.rows_per_block
            unchecked = self._state.unchecked[blocks]
            if unchecked.any():
                self._check(np.unique(blocks[unchecked]))
        return rows

    def gather(self, signal: str, rows: Integers) -> Tensor | Ragged:
        """Return rows of a signal as numbers: (b, ...), or `Ragged` for a signal of sequences.

        What lies as integers (text, token ids) comes as it is, everything else as float32; values of a regression in
        standard units, see `in_target_units`.
        """
        spec = self._spec(signal)
        if spec.codec.facts.plain is not None:
            # Plain numbers: one look-up without a detour over bytes.
            values, lengths = self._entries(spec, rows)
            numbers = torch.from_numpy(values)
            numbers = numbers if spec.codec.facts.integers else numbers.to(torch.float32)
        else:
            records, lengths = self._records(spec, rows)
            numbers = spec.codec.decode(records, spec.shape)
            if spec.head is not None:
                weight, bias = self._head(signal, spec.file, spec.head)
                numbers = torch.addmm(bias, numbers, weight.T)
        return numbers if lengths is None else Ragged(numbers, torch.from_numpy(lengths))

    def gather_sparse(self, signal: str, rows: Integers) -> tuple[Sparse, Tensor | None]:
        """Return the recorded classes of some rows of a signal with a sparse codec, and the items of each row.

        Returns:
            The classes and probabilities of all records, and (b,) int64 items per row; None for one a sample.

        Raises:
            TeacherError: the signal is kept in full.

        """
        spec = self._spec(signal)
        if not hasattr(spec.codec, "decode_sparse"):
            raise TeacherError(
                f"Signal '{signal}' of the store {self.folder} is kept with the codec {spec.codec.to_json()['codec']}, "
                "which has no short list of classes: read it with read()."
            )
        records, lengths = self._records(spec, rows)
        return spec.codec.decode_sparse(records, spec.shape), None if lengths is None else torch.from_numpy(lengths)

    def gather_records(self, signal: str, rows: Integers) -> tuple[Records, Integers]:
        """Return some rows of a signal as the bytes that were recorded, and (b,) how many items each row has."""
        records, lengths = self._records(self._spec(signal), rows)
        return records, np.ones(len(rows), np.int64) if lengths is None else lengths

    def read(self, signal: str, ids: Tensor, views: Tensor) -> Tensor | Ragged:
        """Return a signal of some samples' views as (b, ...) float32, or `Ragged` for a signal of sequences.

        Values of a regression are in the target's units, float64 where float32 would round them.

        Args:
            signal: name of a recorded signal.
            ids: (b,) int64, any order, repeats allowed.
            views: (b,) int64.

        Raises:
            TeacherError: the signal, or one of the samples' views, was not recorded.
            PotstillError: a block they lie in is damaged.

        """
        found = self.gather(signal, self.rows(ids, views))
        return found if isinstance(found, Ragged) else self.in_target_units(signal, found)

    def in_target_units(self, signal: str, values: Tensor) -> Tensor:
        """Return what `gather` gave as the teacher said it: values of a regression are kept in standard units."""
        scale = self.manifest.scale
        log_variance = signal in self.manifest.teacher.get("log_variances", ())
        if scale is None or not (log_variance or parse(signal).is_answer):
            return values
        return scale.original_tensor(values, log_variance=log_variance)

    def read_sparse(self, signal: str, ids: Tensor, views: Tensor) -> tuple[Sparse, Tensor | None]:
        """Return what `gather_sparse` does, by (id, view)."""
        return self.gather_sparse(signal, self.rows(ids, views))

    def read_text(self, signal: str, ids: Tensor, views: Tensor) -> list[str]:
        """Return a signal of UTF-8 bytes as texts."""
        found = self.read(signal, ids, views)
        if not isinstance(found, Ragged):
            raise TeacherError(f"Signal '{signal}' of the store {self.folder} is no text.")
        parts = found.values.to(torch.uint8).numpy().tobytes()
        ends = np.cumsum(found.lengths.numpy())
        return [
            parts[end - length : end].decode("utf-8") for end, length in zip(ends, found.lengths.tolist(), strict=True)
        ]

    def verify(self) -> None:
        """Compare every byte of the store with its checksums.

        Raises:
            PotstillError: naming the damaged blocks or files.

        """
        self._check_keys(keys_problem(self.folder, self.manifest))
        self._heads.clear()
        for name, spec in self.manifest.signals.items():
            if spec.head is not None:
                self._head(name, spec.file, spec.head)
        for shard in range(self.manifest.num_shards):
            refuse_wrong_files(self.folder, self.manifest, shard, self._shard(shard).journal)
            self._check(np.array(self.manifest.shard_blocks(shard)))

    def _head(self, signal: str, file: str, spec: HeadSpec) -> tuple[Tensor, Tensor]:
        if signal not in self._heads:
            head = read_head(self.folder, file)
            if head is None or head.sha256 != spec.sha256:
                raise damage(self.folder, self.manifest, [], f"{head_file(file)} is missing or changed")
            self._heads[signal] = torch.from_numpy(head.weight), torch.from_numpy(head.bias)
        return self._heads[signal]

    def _check_keys(self, wrong: str | None) -> None:
        if wrong is not None:
            raise damage(self.folder, self.manifest, [], f"{wrong} is missing or changed")
        self._state.keys_checked = True

    def _spec(self, signal: str) -> SignalSpec:
        try:
            return self.manifest.signals[signal]
        except KeyError:
            raise TeacherError(
                f"The store {self.folder} has no signal '{signal}'.{did_you_mean(signal, self.signals)}"
            ) from None

    def _shard(self, number: int) -> _Shard:
        if number not in self._state.shards:
            if self._state.fetch is not None:
                self._state.fetch(number)
            journal, finished = layout.read_journal(self.folder, self.manifest, number)
            if not finished:
                missing = len(self.manifest.shard_blocks(number)) - len(journal)
                place = layout.shard_folder(self.folder, number).relative_to(self.folder)
                what = f"{missing} blocks of this store are not in" if missing else "the last line is missing from"
                raise damage(self.folder, self.manifest, [], f"{what} {place / layout.JOURNAL}")
            # Every later read takes the sizes of the files for what the journal says.
            refuse_wrong_files(self.folder, self.manifest, number, journal)
            self._state.shards[number] = _Shard(layout.map_shard(self.folder, self.manifest, number), journal)
        return self._state.shards[number]

    def _check(self, blocks: Integers) -> None:
        for number in np.unique(blocks // self.manifest.blocks_per_shard):
            shard = self._shard(int(number))
            mine = [int(block) for block in blocks if block // self.manifest.blocks_per_shard == number]
            found = layout.damaged(self.manifest, shard.journal, shard.maps, mine)
            if found:
                raise damage(self.folder, self.manifest, found)
        self._state.unchecked[blocks] = False
        self._state.left = int(self._state.unchecked.sum())

    def _entries(self, spec: SignalSpec, rows: Integers) -> tuple[Array, Array | None]:
        """Return entries of fixed width, (records, ...), and the items of each row for a signal of sequences."""
        if spec.file not in self._state.memory and not self._state.left:
            self._state.memory[spec.file] = self._whole(spec)
        whole = self._state.memory.get(spec.file)
        if whole is not None:
            return whole.take(rows, axis=0), None
        file = spec.records.file
        if spec.items is not None:
            return self._runs(file, spec.items.file, rows)
        return self._gathered(rows, lambda shard, local: shard.maps[file].take(local, axis=0)), None

    def _records(self, spec: SignalSpec, rows: Integers) -> tuple[Records, Array | None]:
        """Return records as bytes, and the items of each row for a signal of sequences."""
        if spec.starts is None:
            entries, lengths = self._entries(spec, rows)
            width = spec.records.entry_bytes
            return Records(entries.view(np.uint8).reshape(len(entries), width), None), lengths
        data, sizes = self._runs(spec.records.file, spec.starts.file, rows)
        if spec.items is None or spec.lengths is None:
            return Records(data, sizes), None
        record_sizes, lengths = self._runs(spec.lengths.file, spec.items.file, rows)
        return Records(data, record_sizes), lengths

    def _whole(self, spec: SignalSpec) -> Array | None:
        """Return all shards of a small column as one array, so that a look-up need not go from shard to shard.

        To be called when every block was compared with its checksums. None for large columns and sequences.
        """
        column = spec.records
        if spec.per == "item" or spec.width is None:
            return None
        if self.manifest.num_rows * column.entry_bytes > _MOST_BYTES_IN_MEMORY:
            return None
        return np.concatenate([self._shard(number).maps[column.file] for number in range(self.manifest.num_shards)])

    def _gathered(self, rows: Integers, take: Callable[[_Shard, Integers], Array]) -> Array:
        """Return one entry for each row, from all shards: each is asked once, for its rows in rising order."""
        if self.manifest.num_shards == 1 or len(rows) == 0:
            return take(self._shard(0), rows)
        order = rows.argsort()
        numbers = rows[order] // self.manifest.rows_per_shard
        local = rows[order] - numbers * self.manifest.rows_per_shard
        cuts = [0, *(np.flatnonzero(numbers[1:] != numbers[:-1]) + 1).tolist(), len(rows)]
        parts = [take(self._shard(int(numbers[start])), local[start:stop]) for start, stop in pairwise(cuts)]
        back = np.empty_like(order)
        back[order] = np.arange(len(order))
        found: Array = np.concatenate(parts).take(back, axis=0)
        return found

    def _runs(self, file: str, offsets: str, rows: Integers) -> tuple[Array, Array]:
        """Return the entries of rows that have any number of them, one row after the other, and how many each has."""

        def spans(shard: _Shard, local: Integers) -> Array:
            return shard.maps[offsets].take(local[:, None] + _BEGIN_AND_END)

        found = self._gathered(rows, spans)
        shards = (rows // self.manifest.rows_per_shard).tolist()
        maps = {number: self._shard(number).maps[file] for number in set(shards)}
        # Whole runs are copied, which takes half the time of taking their entries by number.
        parts = [maps[number][start:stop] for number, (start, stop) in zip(shards, found.tolist(), strict=True)]
        return np.concatenate(parts or [self._shard(0).maps[file][:0]]), found[:, 1] - found[:, 0]


def assemble(folder: Path, manifest: Manifest, *, checked: bool, fetch: Callable[[int], None] | None = None) -> Store:
    """Return a finished store; ``checked`` says that every checksum was compared just now."""
    unchecked = np.full(manifest.num_blocks, not checked)
    state = _State(unchecked, int(unchecked.sum()), fetch=fetch)
    return Store(folder, manifest, open_keys(folder, manifest), state)
