"""Recording a teacher: block by block, shard by shard, so that a kill at any moment costs at most one block."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from io import FileIO
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from potstill.core import random
from potstill.core.errors import TeacherError, UsageError
from potstill.core.files import disk_errors, write_json
from potstill.core.progress import progress
from potstill.core.signals import Batch, Ragged
from potstill.store import disk, layout
from potstill.store.codecs import BadItem, Records
from potstill.store.keys import Keys, ids_fingerprint, keys_of, keys_problem, write_keys
from potstill.store.manifest import Manifest, SignalSpec, to_json
from potstill.store.reader import Store, assemble
from potstill.store.refusals import refuse_changes
from potstill.store.size import check_room

Array = np.ndarray[Any, Any]
Ranges = Sequence[tuple[int, int]]
Batches = Callable[[Ranges], Iterable[Batch]]
Answer = Callable[[Batch], Mapping[str, "Tensor | Ragged | Encoded"]]

_ROOM_FOR_SMALL_FILES = 2**16


@dataclass(frozen=True)
class Encoded:
    """A signal that was encoded before, such as by another store: its records are kept as they are.

    Attributes:
        records: of all items, one sample's after the other.
        lengths: (b,) int64, how many items each sample has.

    """

    records: Records
    lengths: Array


def record(
    teacher: Answer,
    batches: Batches,
    folder: Path,
    manifest: Manifest,
    ids: Array,
    *,
    description: str = "recording the teacher",
) -> Store:
    """Record what a teacher says about every (id, view), or finish or repair a recording that was begun.

    When to use it: always, before training from a store. A finished, intact store is returned without calling the
    teacher. Blocks that are already there with the right checksums are never computed again.

    Args:
        teacher: answers a batch with (b, ...) signals, or `Ragged` ones; only those in ``manifest`` are kept.
        batches: given ranges of rows, (first, last + 1) each, returns batches of exactly these rows in order (view 0
            of all samples, then view 1, ...), none of which reaches over the end of a range. Cutting batches at the
            same rows in every run makes the same bytes, however often it is interrupted or shared.
        folder: where the store lies; made when it does not exist.
        manifest: what is to be recorded (see `describe`).
        ids: (n,) int64 sample ids in row order.
        description: what the progress bar says.

    Returns:
        The finished store.

    Raises:
        TeacherError: the folder holds a recording of something else (spelling out what changed), or the teacher's
            signals are missing, of another shape, not finite or too large for their codec.
        PotstillError: another process is recording the same part, or the disk is full. What is finished is kept.
        UsageError: ``ids`` are not those of the manifest, or ``batches`` gives other rows than it was asked for.

    """
    store = record_part(teacher, batches, Path(folder), manifest, ids, part=(0, 1), description=description)
    if store is None:  # only possible while somebody else deletes shards
        raise TeacherError(f"The recording in {folder} is not whole. Run the same command again to finish it.")
    return store


def record_part(
    teacher: Answer,
    batches: Batches,
    folder: Path,
    manifest: Manifest,
    ids: Array,
    *,
    part: tuple[int, int],
    description: str = "recording the teacher",
) -> Store | None:
    """Record one of several parts into a folder: `store.record_part`, which says what is meant, for folders."""
    shards_of_part(manifest, part)
    if ids_fingerprint(ids) != manifest.ids:
        raise UsageError(f"The {len(ids)} ids to record are not the {manifest.num_samples} ids of the manifest.")
    finished = _intact(folder, manifest)
    if finished is not None:
        return finished
    with disk_errors(folder):
        (folder / layout.SHARDS).mkdir(parents=True, exist_ok=True)
    with disk.only_writer(folder, patience=60.0), disk_errors(folder):
        manifest = _begin(folder, manifest, ids)
    keys = keys_of(ids, manifest.views)
    mine = shards_of_part(manifest, part)
    total = sum(_num_rows(manifest, shard) for shard in mine)
    with progress(description, total, unit="samples") as advance:
        for shard in mine:
            place = layout.shard_folder(folder, shard)
            with disk_errors(place):
                place.mkdir(exist_ok=True)
            with disk.only_writer(place):
                _Shard(folder, manifest, shard, keys).fill(teacher, batches, advance)
    with disk.only_writer(folder, patience=60.0), disk_errors(folder):
        if any(not layout.read_journal(folder, manifest, shard)[1] for shard in range(manifest.num_shards)):
            return None
        if (folder / layout.UNFINISHED).is_file():
            (folder / layout.UNFINISHED).replace(folder / layout.MANIFEST)
            disk.sync_folder(folder)
    return assemble(folder, manifest, checked=part == (0, 1))


def shards_of_part(manifest: Manifest, part: tuple[int, int]) -> range:
    """Return the shards of the i-th of n parts, given as ``(i, n)``, counted from 0.

    Raises:
        UsageError: there is no such part, or there are more parts than shards.

    """
    index, parts = part
    if not 0 <= index < parts:
        raise UsageError(f"part {index + 1}/{parts}: expected 1/{parts} to {parts}/{parts}.")
    if parts > manifest.num_shards:
        raise UsageError(
            f"The store has {manifest.num_shards} shards, too few for {parts} parts. Set store.shards to {parts} or "
            "more, for all parts alike."
        )
    return range(index * manifest.num_shards // parts, (index + 1) * manifest.num_shards // parts)


def _num_rows(manifest: Manifest, shard: int) -> int:
    return sum(stop - start for start, stop in map(manifest.block_rows, manifest.shard_blocks(shard)))


def _intact(folder: Path, wanted: Manifest) -> Store | None:
    """Return the store if it is finished and every byte is right. Takes no lock: any number may look at once."""
    if not (folder / layout.MANIFEST).is_file():
        return None
    manifest = layout.read_manifest(folder / layout.MANIFEST)
    refuse_changes(folder, manifest, wanted)
    if keys_problem(folder, manifest) is not None:
        return None
    for shard in range(manifest.num_shards):
        if _missing(folder, manifest, shard) != []:
            return None
    return assemble(folder, manifest, checked=True)


def _missing(folder: Path, manifest: Manifest, shard: int) -> list[int] | None:
    """Return the blocks of a shard that are not there as they should be; None where only its files' heads are not."""
    journal, finished = layout.read_journal(folder, manifest, shard)
    maps = layout.map_shard(folder, manifest, shard)
    blocks = manifest.shard_blocks(shard)
    bad = sorted({number for number, _ in layout.damaged(manifest, journal, maps, blocks)})
    if not bad and (not finished or layout.wrong_files(folder, manifest, shard, journal)):
        return None
    return bad


def _begin(folder: Path, wanted: Manifest, ids: Array) -> Manifest:
    """Bring the folder into a state to continue from; return the manifest in force."""
    final, unfinished = folder / layout.MANIFEST, folder / layout.UNFINISHED
    present = next((path for path in (final, unfinished) if path.is_file()), None)
    disk.refuse_link(folder / layout.SHARDS)
    disk.remove_left_overs(folder)
    if present is None:
        for journal in (folder / layout.SHARDS).glob(f"*/{layout.JOURNAL}"):
            journal.unlink()  # nobody can say what it was recorded for
        check_room(folder, wanted.num_bytes + ids.nbytes + _ROOM_FOR_SMALL_FILES)
        write_keys(folder, ids)
        write_json(unfinished, to_json(wanted))
        return wanted
    manifest = layout.read_manifest(present)
    refuse_changes(folder, manifest, wanted, exact=True)
    if keys_problem(folder, manifest) is not None:
        write_keys(folder, ids)
    if present == final and any(_missing(folder, manifest, shard) != [] for shard in range(manifest.num_shards)):
        final.replace(unfinished)
    return manifest


@dataclass
class _Pending:
    """The records of a block in the making, by signal."""

    records: dict[str, list[Records]]
    lengths: dict[str, list[Array]]
    rows: int = 0


@dataclass
class _Shard:
    """One shard while this process, and no other, writes it."""

    folder: Path
    manifest: Manifest
    number: int
    keys: Keys
    files: dict[str, FileIO] = field(default_factory=dict)
    journal: layout.Journal = field(default_factory=dict)

    def fill(self, teacher: Answer, batches: Batches, advance: Callable[[int], None]) -> None:
        """Write every block that is missing, then the files' final heads and the journal's last line."""
        missing = self._prepare()
        if missing is None:
            advance(_num_rows(self.manifest, self.number))
            return
        there = set(self.manifest.shard_blocks(self.number)) - set(missing)
        advance(sum(stop - start for start, stop in map(self.manifest.block_rows, there)))
        with ExitStack() as stack:
            for column in layout.columns(self.manifest):
                path = self._place / column.file
                with disk_errors(path):
                    path.touch()
                    self.files[column.file] = stack.enter_context(path.open("r+b", buffering=0))
            path = self._place / layout.JOURNAL
            with disk_errors(path):
                self.files[layout.JOURNAL] = path.open("ab", buffering=0)
                stack.callback(lambda: self.files[layout.JOURNAL].close())  # it may be opened anew in between
                disk.sync_folder(self._place)
            while missing:
                missing = self._write(missing, teacher, batches, advance)
            self._finish()

    @property
    def _place(self) -> Path:
        return layout.shard_folder(self.folder, self.number)

    def _prepare(self) -> list[int] | None:
        """Cut off what is half-written; return the blocks to record, or None where the shard is whole as it is."""
        blocks = self.manifest.shard_blocks(self.number)
        with disk_errors(self._place):
            disk.refuse_link(self._place)
            disk.remove_left_overs(self._place)
            claimed, finished = layout.read_journal(self.folder, self.manifest, self.number)
            # Blocks are written in order, so what is claimed after a gap has no known beginning.
            known = {number: claimed[number] for number in takewhile(claimed.__contains__, blocks)}
            maps = layout.map_shard(self.folder, self.manifest, self.number)
            bad = {number for number, _ in layout.damaged(self.manifest, known, maps, known)}
            if finished and not bad and not layout.wrong_files(self.folder, self.manifest, self.number, known):
                return None
            for column in layout.columns(self.manifest):
                disk.make_own(self._place / column.file)
            self._keep(known)
        return [number for number in blocks if number in bad or number not in known]

    def _keep(self, journal: layout.Journal) -> None:
        """Make ``journal`` the shard's, and take everything away that lies behind its last block."""
        self.journal = journal
        last = self.journal[max(self.journal)].ends if self.journal else {}
        for column in layout.columns(self.manifest):
            path = self._place / column.file
            size = column.file_bytes(last.get(column.file, 0))
            if path.is_file() and path.stat().st_size > size:
                disk.truncate(path, size)
        lines = [layout.journal_line(self.manifest, number, block) for number, block in journal.items()]
        disk.write_bytes(self._place / layout.JOURNAL, "".join(lines).encode())

    def _write(
        self, missing: list[int], teacher: Answer, batches: Batches, advance: Callable[[int], None]
    ) -> list[int]:
        """Record some blocks; return those that have to be recorded after that, because one grew or shrank."""
        ranges = [self.manifest.block_rows(number) for number in missing]
        stream = iter(batches(ranges))
        for number, (start, stop) in zip(missing, ranges, strict=True):
            pending = _Pending(defaultdict(list), defaultdict(list))
            while pending.rows < stop - start:
                batch = self._next(stream, start + pending.rows, stop)
                _encode(teacher(batch), batch, self.manifest, pending)
                advance(len(batch))
            if not self._commit(number, pending):
                blocks = self.manifest.shard_blocks(self.number)
                self._keep({kept: block for kept, block in self.journal.items() if kept < number})
                self.files[layout.JOURNAL].close()
                self.files[layout.JOURNAL] = (self._place / layout.JOURNAL).open("ab", buffering=0)
                return [other for other in blocks if other >= number]
        return []

    def _next(self, stream: Iterator[Batch], row: int, stop: int) -> Batch:
        """Return the next batch, refusing one with other rows than ``row`` and those after it."""
        batch = next(stream, None)
        if batch is None:
            raise UsageError(
                f"The batches ended before every view of every sample was recorded: the first that is missing is "
                f"{self._named(row)}. Give batches of all the rows that were asked for."
            )
        rows = self.keys.rows(batch.ids.numpy(), batch.views.numpy())
        if len(rows) == 0 or row + len(rows) > stop or not np.array_equal(rows, np.arange(row, row + len(rows))):
            raise UsageError(
                f"The batches must give the rows that were asked for in order: the next is {self._named(row)}, and "
                f"{stop - row} rows are left in this range, but a batch of {len(rows)} samples begins with id "
                f"{int(batch.ids[0]) if len(rows) else None}."
            )
        return batch

    def _named(self, row: int) -> str:
        view, place = divmod(row, self.manifest.num_samples)
        sample = self.keys.sorted_ids[
            place if self.keys.places is None else np.flatnonzero(self.keys.places == place)[0]
        ]
        return f"id {int(sample)}, view {view}"

    def _commit(self, number: int, pending: _Pending) -> bool:
        """Write a block, make sure it is on disk, and only then say so in the journal.

        Returns:
            False where the block took another place before, so that what follows it cannot stay.

        """
        first = layout.begin(self.manifest, self.journal, number)
        if first is None:
            raise AssertionError(f"block {number} has no beginning")
        entries = {
            file: values
            for name, spec in self.manifest.signals.items()
            for file, values in _entries(spec, pending.records[name], pending.lengths[name], first).items()
        }
        ends = {file: first[file] + len(values) for file, values in entries.items()}
        if number in self.journal and dict(self.journal[number].ends) != ends:
            return False
        for column in layout.columns(self.manifest):
            with disk_errors(self._place / column.file):
                file = self.files[column.file]
                if first[column.file] == 0:
                    file.seek(0)
                    disk.write(file, column.header(0))
                file.seek(column.file_bytes(first[column.file]))
                disk.write(file, entries[column.file].tobytes())
                disk.sync(file)
        block = layout.Block(ends, {file: layout.checksum(values) for file, values in entries.items()})
        self._note(layout.journal_line(self.manifest, number, block))
        self.journal[number] = block
        return True

    def _note(self, line: str) -> None:
        with disk_errors(self._place / layout.JOURNAL):
            disk.write(self.files[layout.JOURNAL], line.encode())
            disk.sync(self.files[layout.JOURNAL])

    def _finish(self) -> None:
        last = self.journal[self.manifest.shard_blocks(self.number).stop - 1]
        for column in layout.columns(self.manifest):
            with disk_errors(self._place / column.file):
                file = self.files[column.file]
                file.seek(0)
                disk.write(file, column.header(last.ends[column.file]))
                disk.sync(file)
        path = self._place / layout.JOURNAL
        with disk_errors(path):
            disk.write_bytes(path, layout.journal_text(self.manifest, self.number, self.journal).encode())
            disk.sync_folder(self._place)


def _encode(
    signals: Mapping[str, Tensor | Ragged | Encoded], batch: Batch, manifest: Manifest, pending: _Pending
) -> None:
    """Check the teacher's signals and add their records to a block."""
    for name, spec in manifest.signals.items():
        if name not in signals:
            raise TeacherError(f"The teacher gave no signal '{name}', only {', '.join(sorted(signals)) or 'none'}.")
        signal = signals[name]
        if isinstance(signal, Encoded):
            pending.records[name].append(signal.records)
            pending.lengths[name].append(signal.lengths)
            continue
        values, lengths = _numbers(name, signal, spec, batch)
        keys = (
            _sampling_keys(batch, lengths, manifest.sampling_seed)
            if spec.codec.facts.samples
            else np.empty(0, np.uint64)
        )
        try:
            pending.records[name].append(spec.codec.encode(values, keys))
        except BadItem as error:
            sample = int(np.searchsorted(np.cumsum(lengths), error.index, side="right"))
            raise TeacherError(
                f"The teacher's signal '{name}' of id {int(batch.ids[sample])}, view {int(batch.views[sample])} "
                f"{error.reason}"
            ) from error
        pending.lengths[name].append(lengths)
    pending.rows += len(batch)


def _numbers(name: str, signal: Tensor | Ragged, spec: SignalSpec, batch: Batch) -> tuple[Array, Array]:
    """Return a signal's items and how many each sample has."""
    if spec.per == "item":
        if not isinstance(signal, Ragged):
            raise TeacherError(
                f"The teacher's signal '{name}' is a plain tensor of shape {tuple(signal.shape)}; the store expects "
                "samples with different numbers of items, as potstill.core.signals.Ragged."
            )
        lengths, values = signal.lengths.numpy().astype(np.int64), signal.values
        expected = (int(lengths.sum()), *spec.shape)
    else:
        if isinstance(signal, Ragged):
            raise TeacherError(f"The teacher's signal '{name}' has items; the store expects one record a sample.")
        lengths, values = np.ones(len(batch), np.int64), signal
        expected = (len(batch), *spec.shape)
    if tuple(values.shape) != expected or len(lengths) != len(batch):
        raise TeacherError(
            f"The teacher's signal '{name}' has shape {tuple(values.shape)} for a batch of {len(batch)}; "
            f"the store expects {expected}."
        )
    return values.detach().to("cpu", None if spec.codec.facts.integers else torch.float32).numpy(), lengths


def _sampling_keys(batch: Batch, lengths: Array, seed: int | None) -> Array:
    """Return one key of 64 bits for each item: of its seed, id, view and place in the sample."""
    place = np.arange(int(lengths.sum())) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    ids, views = np.repeat(batch.ids.numpy(), lengths), np.repeat(batch.views.numpy(), lengths)
    return random.key(seed or 0, ids, views, place)


def _entries(
    spec: SignalSpec, records: Sequence[Records], lengths: Sequence[Array], first: Mapping[str, int]
) -> dict[str, Array]:
    """Return what a block adds to each file of a signal."""
    column = spec.records
    data = np.concatenate([one.data for one in records])
    items = np.concatenate(lengths)
    found = {column.file: data.reshape(-1).view(column.dtype).reshape(-1, *column.shape)}
    if spec.items is not None:
        counted = spec.lengths or column
        found[spec.items.file] = _offsets(items, first[counted.file], first[spec.items.file])
    if spec.starts is not None:
        sizes = np.concatenate([one.lengths for one in records if one.lengths is not None]).astype(np.int64)
        if spec.lengths is not None:
            found[spec.lengths.file] = sizes.astype(spec.lengths.dtype)
        ends = np.concatenate([[0], np.cumsum(sizes)])
        bounds = np.concatenate([[0], np.cumsum(items)])
        found[spec.starts.file] = _offsets(np.diff(ends[bounds]), first[column.file], first[spec.starts.file])
    return found


def _offsets(sizes: Array, begin: int, entries: int) -> Array:
    """Return where each row ends, and in front of the first row of a shard where that begins."""
    ends = begin + np.cumsum(sizes)
    return (np.concatenate([[0], ends]) if entries == 0 else ends).astype("<i8")
