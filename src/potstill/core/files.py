"""Writing small files so that a reader sees the old content or the new one, never half of it."""

from __future__ import annotations

import errno
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from potstill.core.errors import DamagedFileError
from potstill.core.explain import explained

TEMPORARY = ".potstill-unfinished"
"""How the names of files end that are being written."""


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn what the disk or a library's writer says about ``path`` into one clear `PotstillError`."""
    try:
        yield
    except Exception as error:
        known = explained(error, Path(path))
        if known is None or known is error:
            raise
        raise known from error


def check_folder(folder: Path) -> None:
    """Refuse a folder that cannot be made or written, before anything expensive is done for it; makes nothing.

    Raises:
        PotstillError: a file stands in its place or above it, or it may not be written.

    """
    with disk_errors(folder):
        existing = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
        if not existing.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(existing))
        if not os.access(existing, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on success it is synced and renamed over ``path``."""
    path = Path(path)
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=TEMPORARY, dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            temporary.chmod(0o644)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write ``text`` to ``path`` atomically, in UTF-8; halves of characters, as in some names of files, are escaped."""
    with atomic_path(path) as temporary:
        # In JSON the escape is read back as what it stands for.
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` to ``path`` atomically as indented JSON."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=True) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        DamagedFileError: it holds something else.

    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise DamagedFileError(f"{path} is no JSON: {' '.join(str(error).split())}.") from error
