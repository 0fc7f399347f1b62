"""A journal: answers that cost money, each on disk as soon as it is there.

One JSON object a line, appended and never changed. The death of the process loses nothing that was added; the death of
the machine loses at most the last second. A torn last line is cut off when the journal is opened again.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

from filelock import FileLock, Timeout

from potstill.core.errors import PotstillError
from potstill.core.files import disk_errors

_SYNC_SECONDS = 1.0


@dataclass(frozen=True)
class Line:
    """One line of a journal.

    Attributes:
        path: the journal.
        start: the byte it begins at.
        length: its bytes.
        value: what it holds; None where it is not a JSON object.

    """

    path: Path
    start: int
    length: int
    value: dict[str, Any] | None


def read_journal(path: Path) -> Iterator[Line]:
    """Yield the lines of a journal, one after the other; none if it does not exist. A torn last line is left out."""
    if not path.exists():
        return
    start = 0
    with path.open("rb") as file:
        for line in file:
            if not line.endswith(b"\n"):
                return
            yield Line(path, start, len(line), _value(line))
            start += len(line)


def read_line(path: Path, start: int, length: int) -> dict[str, Any]:
    """Return what one line holds that `read_journal` found."""
    with path.open("rb") as file:
        file.seek(start)
        value = _value(file.read(length))
    if value is None:
        raise PotstillError(f"{path}: the line at byte {start} was readable before and is not now. Check the disk.")
    return value


def _value(line: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _whole_bytes(file: int) -> int:
    """Return the bytes of a journal up to the end of its last whole line."""
    end = os.fstat(file).st_size
    while end > 0:
        start = max(0, end - 65536)
        newline = os.pread(file, end - start, start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        end = start
    return 0


class Journal:
    """A journal that is open for adding, by any thread of this process; use `open_journal`."""

    def __init__(self, path: Path, file: int) -> None:
        self._path, self._file = path, file
        self._lock = Lock()
        self._synced = time.monotonic()

    def add(self, value: Mapping[str, Any]) -> None:
        """Write one line. When this returns, the death of the process does not lose it.

        Raises:
            PotstillError: the disk is full.

        """
        # One line is one write, and ASCII, so that half a character can never stand at a torn end.
        line = json.dumps(value, separators=(",", ":")).encode("ascii") + b"\n"
        with self._lock, disk_errors(self._path):
            before = os.fstat(self._file).st_size
            try:
                written = 0
                while written < len(line):
                    written += os.write(self._file, line[written:])
            except OSError:
                # What a full disk took of the line would tear the next one too.
                os.ftruncate(self._file, before)
                raise
            if time.monotonic() - self._synced > _SYNC_SECONDS:
                self._sync()

    def _sync(self) -> None:
        os.fsync(self._file)
        self._synced = time.monotonic()

    def close(self) -> None:
        """Bring everything to the disk and close the file."""
        with self._lock:
            self._sync()
            os.close(self._file)


@contextmanager
def open_journal(path: Path) -> Iterator[Journal]:
    """Open a journal for adding, cut off a torn last line, and keep other processes out.

    Raises:
        PotstillError: another process writes this journal, or the folder cannot be written.

    """
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path.with_name(f".{path.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise PotstillError(
            f"Another process is writing {path}. Wait for it, or label another part of the data."
        ) from None
    try:
        with disk_errors(path):
            file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        os.ftruncate(file, _whole_bytes(file))
        journal = Journal(path, file)
        try:
            yield journal
        finally:
            journal.close()
    finally:
        lock.release()
