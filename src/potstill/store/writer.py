"""Recording a teacher: block by block, so that a kill at any moment costs at most the block in the making."""

from __future__ import annotations

import errno
import os
import socket
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from torch import Tensor

from potstill.core.errors import PotstillError, TeacherError, UsageError
from potstill.core.files import atomic_path, disk_errors, read_json, write_json
from potstill.core.progress import progress
from potstill.core.signals import Batch, Signals
from potstill.store import layout
from potstill.store.keys import Integers, Keys, keys_of
from potstill.store.manifest import NUMPY_DTYPES, Manifest, ids_fingerprint, to_json
from potstill.store.reader import Store, assemble, refuse_changes
from potstill.store.size import check_room

_LOCK = ".lock"
_WRITER = ".writer.json"
_LARGEST_FLOAT16 = 65504.0
_ROOM_FOR_SMALL_FILES = 2**16

Batches = Iterable[Batch] | Callable[[int], Iterable[Batch]]


def record(
    teacher: Callable[[Batch], Signals],
    batches: Batches,
    folder: Path,
    manifest: Manifest,
    ids: np.ndarray[Any, Any],
    *,
    description: str = "recording the teacher",
) -> Store:
    """Record what a teacher says about every (id, view), or finish or repair a recording that was begun.

    When to use it: always, before training from a store. A finished, intact store is returned without calling the
    teacher. Blocks that are already there with the right checksum are never computed again.

    Args:
        teacher: answers a batch with (b, ...) signals; only those in ``manifest`` are kept.
        batches: every (id, view) at least once, best in row order (view 0 of all samples, then view 1, ...); or a
            function that is given the first missing row and returns the batches from there, or from before, on.
        folder: where the store lies; made when it does not exist.
        manifest: what is to be recorded (see `describe`).
        ids: (n,) int64 sample ids in row order.
        description: what the progress bar says.

    Returns:
        The finished store.

    Raises:
        TeacherError: the folder holds a recording of something else (spelling out what changed), or the teacher's
            signals are missing, of another shape, not finite or too large for float16.
        PotstillError: another process is recording into the folder, or the disk is full. What is finished is kept.
        UsageError: ``ids`` are not those of the manifest, or ``batches`` leaves rows out.

    """
    folder = Path(folder)
    if ids_fingerprint(ids) != manifest.ids:
        raise UsageError(f"The {len(ids)} ids to record are not the {manifest.num_samples} ids of the manifest.")
    keys = keys_of(ids, manifest.views)
    finished = _intact(folder, manifest)
    if finished is not None:
        return finished
    with _disk(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with _only_writer(folder):
        # Somebody may have finished it between the look above and the lock.
        finished = _intact(folder, manifest)
        if finished is not None:
            return finished
        with _disk(folder):
            manifest, done = _prepare(folder, manifest, ids)
        if len(done) < manifest.num_blocks:
            with ExitStack() as stack:
                files = _open_files(stack, folder, manifest)
                _fill(teacher, batches, manifest, keys, done, files, description)
        with _disk(folder):
            (folder / layout.UNFINISHED).replace(folder / layout.MANIFEST)
            _sync_folder(folder)
        return assemble(folder, manifest, checked=True)


@dataclass(frozen=True)
class _Files:
    """The open files of a recording."""

    folder: Path
    signals: Mapping[str, FileIO]
    journal: FileIO


@dataclass(frozen=True)
class _Pending:
    """A block in the making."""

    values: Mapping[str, np.ndarray[Any, Any]]
    filled: np.ndarray[Any, np.dtype[np.bool_]]


def _intact(folder: Path, wanted: Manifest) -> Store | None:
    """Return the store if it is finished and every checksum is right. Takes no lock: any number may look at once."""
    path = folder / layout.MANIFEST
    if not path.is_file():
        return None
    manifest = layout.read_manifest(path)
    refuse_changes(folder, manifest, wanted)
    checksums = layout.read_journal(folder, manifest)
    maps = layout.map_signals(folder, manifest)
    whole = layout.read_ids(folder, manifest) is not None and len(maps) == len(manifest.signals)
    if whole and not layout.damaged(manifest, maps, checksums, range(manifest.num_blocks)):
        return assemble(folder, manifest, checked=True)
    return None


def _prepare(folder: Path, wanted: Manifest, ids: np.ndarray[Any, Any]) -> tuple[Manifest, set[int]]:
    """Bring the folder into a state to continue from; return the manifest in force and the finished blocks."""
    final, unfinished = folder / layout.MANIFEST, folder / layout.UNFINISHED
    for name in (layout.UNFINISHED, layout.IDS, layout.JOURNAL, _WRITER):
        for left_over in folder.glob(f".{name}.*"):
            left_over.unlink()
    present = next((path for path in (final, unfinished) if path.is_file()), None)
    if present is None:
        check_room(folder, wanted.num_bytes + ids.nbytes + _ROOM_FOR_SMALL_FILES)
        (folder / layout.JOURNAL).unlink(missing_ok=True)
        write_json(unfinished, to_json(wanted))
        manifest = wanted
    else:
        manifest = layout.read_manifest(present)
        refuse_changes(folder, manifest, wanted, exact=True)
    intact_ids = layout.read_ids(folder, manifest) is not None
    claimed = layout.read_journal(folder, manifest)
    bad = {block for block, _ in layout.damaged(manifest, _maps(folder, manifest), claimed, claimed)}
    done = set(claimed) - bad
    if present == final:
        final.replace(unfinished)
    if not intact_ids:
        layout.write_ids(folder, ids)
    with atomic_path(folder / layout.JOURNAL) as temporary:
        lines = (layout.journal_line(manifest, block, claimed[block]) for block in sorted(done))
        temporary.write_text("".join(lines), encoding="utf-8")
    return manifest, done


def _maps(folder: Path, manifest: Manifest) -> dict[str, np.ndarray[Any, Any]]:
    """Map the signals after giving their files the right size, so that blocks before a truncation still count."""
    for spec in manifest.signals.values():
        path = folder / spec.file
        if path.is_file() and path.stat().st_size != manifest.num_rows * spec.row_bytes:
            os.truncate(path, manifest.num_rows * spec.row_bytes)
    return layout.map_signals(folder, manifest)


def _open_files(stack: ExitStack, folder: Path, manifest: Manifest) -> _Files:
    """Open the signal files with all their space reserved, and the journal for appending."""
    signals: dict[str, FileIO] = {}
    for name, spec in manifest.signals.items():
        path = folder / spec.file
        with _disk(path):
            path.touch()
            signals[name] = stack.enter_context(path.open("r+b", buffering=0))
            size = manifest.num_rows * spec.row_bytes
            _reserve(signals[name].fileno(), size)
    path = folder / layout.JOURNAL
    with _disk(path):
        journal = stack.enter_context(path.open("ab", buffering=0))
        _sync_folder(folder)
    return _Files(folder, signals, journal)


def _reserve(handle: int, size: int) -> None:
    """Give a file its size, with all blocks of the disk set aside where the file system can."""
    try:
        os.posix_fallocate(handle, 0, size)
    except AttributeError:
        os.truncate(handle, size)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
            raise
        os.truncate(handle, size)


def _fill(
    teacher: Callable[[Batch], Signals],
    batches: Batches,
    manifest: Manifest,
    keys: Keys,
    done: set[int],
    files: _Files,
    description: str,
) -> None:
    """Run the teacher over the batches that missing blocks need, and write each block when it is complete."""
    missing = np.ones(manifest.num_blocks, dtype=bool)
    missing[list(done)] = False
    first = int(np.flatnonzero(missing)[0]) * manifest.rows_per_block
    stream = batches(first) if callable(batches) else batches
    pending: dict[int, _Pending] = {}
    finished = sum(stop - start for start, stop in map(manifest.block_rows, done))
    with progress(description, manifest.num_rows, unit="samples", done=finished) as advance:
        for batch in stream:
            rows = keys.rows(batch.ids.numpy(), batch.views.numpy())
            blocks = rows // manifest.rows_per_block
            needed = np.flatnonzero(missing[blocks])
            if not len(needed):
                continue
            values = _numbers(teacher(batch), batch, manifest)
            for block in map(int, np.unique(blocks[needed])):
                chosen = needed[blocks[needed] == block]
                if block not in pending:
                    pending[block] = _empty(manifest, block)
                _put(pending[block], rows[chosen] - block * manifest.rows_per_block, values, chosen)
                if pending[block].filled.all():
                    _commit(files, manifest, block, pending.pop(block).values)
                    missing[block] = False
            advance(len(needed))
            if not missing.any():
                return
    block = int(np.flatnonzero(missing)[0])
    gap = pending[block].filled if block in pending else np.zeros(1, dtype=bool)
    row = block * manifest.rows_per_block + int(np.flatnonzero(~gap)[0])
    view, place = divmod(row, manifest.num_samples)
    order = np.arange(manifest.num_samples) if keys.order is None else keys.order
    sample = int(keys.sorted_ids[np.flatnonzero(order == place)[0]])
    raise UsageError(
        f"The batches ended before every view of every sample was recorded: the first that is missing is id {sample}, "
        f"view {view}. Give batches with all {manifest.views} views of all {manifest.num_samples} samples."
    )


def _empty(manifest: Manifest, block: int) -> _Pending:
    start, stop = manifest.block_rows(block)
    values = {
        name: np.empty((stop - start, *spec.shape), NUMPY_DTYPES[spec.dtype]) for name, spec in manifest.signals.items()
    }
    return _Pending(values, np.zeros(stop - start, dtype=bool))


def _put(pending: _Pending, places: Integers, values: Mapping[str, np.ndarray[Any, Any]], chosen: Integers) -> None:
    for name, buffer in pending.values.items():
        buffer[places] = values[name][chosen]
    pending.filled[places] = True


def _numbers(signals: Signals, batch: Batch, manifest: Manifest) -> dict[str, np.ndarray[Any, Any]]:
    """Check the teacher's signals and return them in the number format of the store."""
    numbers: dict[str, np.ndarray[Any, Any]] = {}
    for name, spec in manifest.signals.items():
        if name not in signals:
            raise TeacherError(f"The teacher gave no signal '{name}', only {', '.join(sorted(signals)) or 'none'}.")
        values = signals[name].detach().to("cpu", torch.float32)
        if tuple(values.shape) != (len(batch), *spec.shape):
            raise TeacherError(
                f"The teacher's signal '{name}' has shape {tuple(values.shape)} for a batch of {len(batch)}; "
                f"the store expects {(len(batch), *spec.shape)}."
            )
        _check_range(name, values, batch, half=spec.dtype == "float16")
        numbers[name] = values.numpy().astype(NUMPY_DTYPES[spec.dtype])
    return numbers


def _check_range(name: str, values: Tensor, batch: Batch, *, half: bool) -> None:
    flat = values.reshape(len(batch), -1)
    largest = flat.abs().amax(dim=1)
    bad = ~(largest <= (_LARGEST_FLOAT16 if half else torch.finfo(torch.float32).max))
    if not bool(bad.any()):
        return
    first = int(bad.nonzero()[0])
    where = f"id {int(batch.ids[first])}, view {int(batch.views[first])}"
    if bool(torch.isfinite(flat[first]).all()):
        raise TeacherError(
            f"The teacher's signal '{name}' reaches {float(largest[first]):.4g} for {where}, and float16 ends at "
            "65504. Set store.dtype to float32."
        )
    raise TeacherError(
        f"The teacher's signal '{name}' is not finite for {where}. Check that sample, the teacher's weights and its "
        "preprocessing, and use float32 precision for the teacher."
    )


def _commit(files: _Files, manifest: Manifest, block: int, values: Mapping[str, np.ndarray[Any, Any]]) -> None:
    """Write a block, make sure it is on disk, and only then say so in the journal."""
    sums: dict[str, str] = {}
    for name, spec in manifest.signals.items():
        with _disk(files.folder / spec.file):
            file = files.signals[name]
            file.seek(block * manifest.rows_per_block * spec.row_bytes)
            _write(file, values[name].tobytes())
            os.fsync(file.fileno())
        sums[name] = layout.checksum(values[name])
    with _disk(files.folder / layout.JOURNAL):
        _write(files.journal, layout.journal_line(manifest, block, sums).encode())
        os.fsync(files.journal.fileno())


def _write(file: FileIO, content: bytes) -> None:
    rest = memoryview(content)
    while rest:
        rest = rest[file.write(rest) :]


@contextmanager
def _disk(path: Path) -> Iterator[None]:
    """Like `disk_errors`, and a limit on the size of files is told like a full disk."""
    try:
        with disk_errors(path):
            yield
    except OSError as error:
        if error.errno != errno.EFBIG:
            raise
        raise PotstillError(
            f"Could not write {path}: files may not grow this large here (see `ulimit -f`). Finished results are safe; "
            "raise the limit or choose another folder, and run the same command again to continue."
        ) from error


@contextmanager
def _only_writer(folder: Path) -> Iterator[None]:
    """Hold the folder's lock, or refuse, naming who holds it. The lock dies with its process, however that dies."""
    lock = FileLock(folder / _LOCK)
    try:
        with _disk(folder):
            lock.acquire(timeout=0)
    except Timeout:
        raise PotstillError(
            f"Another process is recording into {folder}: {_holder(folder)}. Wait until it is done, or choose another "
            "store.path."
        ) from None
    try:
        since = datetime.now().astimezone().isoformat(timespec="seconds")
        write_json(
            folder / _WRITER,
            {"process": os.getpid(), "host": socket.gethostname(), "command": " ".join(sys.argv)[:200], "since": since},
        )
        yield
    finally:
        (folder / _WRITER).unlink(missing_ok=True)
        lock.release()


def _holder(folder: Path) -> str:
    try:
        writer = read_json(folder / _WRITER)
        return f"process {writer['process']} on {writer['host']} ({writer['command']}), since {writer['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "a process that has not said its name yet"


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
