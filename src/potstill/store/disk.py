"""Writing so that what was said to be on disk is there, and so that no two processes write the same place."""

from __future__ import annotations

import os
import shutil
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from io import FileIO
from pathlib import Path

from filelock import FileLock, Timeout

from potstill.core.errors import PotstillError
from potstill.core.files import atomic_path, disk_errors, read_json, write_json

_LOCK = ".lock"
_WRITER = ".writer.json"


def write(file: FileIO, content: bytes) -> None:
    """Write all of ``content``."""
    rest = memoryview(content)
    while rest:
        rest = rest[file.write(rest) :]


def write_bytes(path: Path, content: bytes) -> None:
    """Replace a file's content: a reader sees the old or the new one."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def sync(file: FileIO) -> None:
    """Wait until what was written is on disk."""
    os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Wait until new names in a folder are on disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def refuse_link(folder: Path) -> None:
    """Refuse to write into a folder of a store that is a symbolic link: it may lead out of the store.

    Raises:
        PotstillError: it is one.

    """
    if folder.is_symlink():
        raise PotstillError(
            f"{folder} is a symbolic link to {folder.resolve()}, and nothing is written through a link. Put the folder "
            "itself there, or choose another store.path."
        )


def make_own(path: Path) -> None:
    """Make sure that writing into a file changes this file alone.

    A symbolic link is removed, what it pointed to stays as it is; a file that has other names (merged stores share
    theirs with the parts) is copied.
    """
    if path.is_symlink():
        path.unlink()
    elif path.is_file() and path.stat().st_nlink > 1:
        with atomic_path(path) as temporary:
            shutil.copyfile(path, temporary)


def truncate(path: Path, size: int) -> None:
    """Cut a file off after ``size`` bytes."""
    os.truncate(path, size)


def remove_left_overs(folder: Path) -> None:
    """Remove temporary files of a process that was killed."""
    for path in folder.glob(".*.*"):
        if path.name not in (_LOCK, _WRITER):
            path.unlink()


@contextmanager
def only_writer(folder: Path, *, patience: float = 0.0) -> Iterator[None]:
    """Hold the folder's lock, or refuse, naming who holds it. The lock dies with its process, however that dies.

    Args:
        folder: what is to be written.
        patience: seconds to wait for another process.

    Raises:
        PotstillError: another process holds it.

    """
    lock = FileLock(folder / _LOCK)
    with disk_errors(folder):
        try:
            lock.acquire(timeout=patience)
        except Timeout:
            raise PotstillError(
                f"Another process is recording into {folder}: {_holder(folder)}. Wait until it is done, record another "
                "part, or choose another store.path."
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
