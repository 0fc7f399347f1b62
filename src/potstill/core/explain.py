"""Errors of the operating system and of libraries as sentences: the one place that knows them.

Whatever can go wrong with disks, files, memory and limits is no mistake of potstill, and a user can act on it.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Iterator
from functools import wraps
from pathlib import Path
from typing import ParamSpec, TypeVar

from potstill.core.errors import DataError, PotstillError

P = ParamSpec("P")
T = TypeVar("T")
_AGAIN = "Finished results are safe"
_CONTINUE = "run the same command again to continue"
_NOT_SAID = "a file"
_NUMBERED = re.compile(r"(?:os error |errno |Errno |code: )(\d+)")
"""How libraries that are not written in Python say the system's error number: in a text."""
_FULL = re.compile(r"[Nn]o space left|[Dd]isk is full|StorageFull|\d+ requested and \d+ written")
_MEMORY = re.compile(
    r"not enough memory|[Oo]ut of memory|[Uu]nable to allocate|[Cc]annot allocate memory|bad allocation"
)
_MISTAKES = (AttributeError, KeyError, IndexError, TypeError, NameError, AssertionError)
_LIBRARIES = ("zipfile", "zlib", "_lzma", "gzip", "safetensors", "safetensors_rust", "pyarrow", "google")
"""Readers of archives, tables and weights, whose own errors all say that a file is damaged."""


def explained(error: BaseException, path: Path | None = None) -> PotstillError | None:
    """Return an error of the operating system or a library as one that a user can act on; None for all others.

    Args:
        error: what was raised; the errors behind it are looked at too.
        path: what was being read or written, where the error does not say it.

    """
    if isinstance(error, PotstillError):
        return error
    found = next(filter(None, (_explained(cause, path) for cause in _chain(error))), None)
    if found is not None and str(found).startswith(_NOT_SAID):
        found.args = ("A" + str(found)[1:],)
    return found


def _explained(cause: BaseException, path: Path | None) -> PotstillError | None:
    if (number := _number(cause)) is not None:
        return PotstillError(_of_system(number, _place(cause, path), str(cause)))
    if isinstance(cause, MemoryError) or (isinstance(cause, RuntimeError) and _MEMORY.search(str(cause))):
        return PotstillError(
            f"There is not enough memory{'' if path is None else f' for {path}'}. Use less data, smaller batches "
            "(training.batch_size, evaluation.batch_size) or a smaller model, or close other programs. "
            f"{_AGAIN}: {_CONTINUE}. ({_short(cause)})"
        )
    if isinstance(cause, RecursionError):
        return DataError(f"{_named(path)} is nested too deeply to be read.")
    if isinstance(cause, UnicodeError):
        return DataError(f"{_named(path)} holds text that is not valid Unicode: {_short(cause)}.")
    if isinstance(cause, ValueError) and "null byte" in str(cause):
        return DataError("A path or name holds a NUL character. Remove it.")
    if isinstance(cause, ValueError) and "integer string conversion" in str(cause):
        return DataError(f"{_named(path)} holds a whole number with thousands of digits. Shorten it.")
    if isinstance(cause, EOFError) or _home(cause) in _LIBRARIES:
        return DataError(f"{_named(path)} is damaged or cut short: {_short(cause)}. Copy or make it again.")
    if isinstance(cause, OSError) and not isinstance(cause, TimeoutError):  # who waited says for what
        place = "The system reports" if path is None else f"{path} cannot be read or written"
        return PotstillError(f"{place}: {_short(cause)}.")
    return None


def clear_errors(function: Callable[P, T]) -> Callable[P, T]:
    """Return ``function`` with errors of the operating system and of libraries as `PotstillError`; see `explained`."""

    @wraps(function)
    def called(*args: P.args, **options: P.kwargs) -> T:
        try:
            return function(*args, **options)
        except Exception as error:
            known = explained(error)
            if known is None or known is error:
                raise
            raise known from error

    return called


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and the errors that led to it, each once."""
    seen: set[int] = set()
    following: BaseException | None = error
    while following is not None and id(following) not in seen:
        seen.add(id(following))
        yield following
        # What goes wrong while an error is handled is a mistake of its own; libraries pass errors on as theirs.
        hidden = following.__suppress_context__ or isinstance(following, _MISTAKES)
        following = following.__cause__ or (None if hidden else following.__context__)


def _number(error: BaseException) -> int | None:
    """Return the system's error number, also of an error that only tells it in words."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    if not isinstance(error, OSError | RuntimeError) and _home(error) not in _LIBRARIES:
        return None
    text = str(error)
    if _FULL.search(text):
        return errno.ENOSPC
    found = _NUMBERED.search(text)
    return int(found[1]) if found and int(found[1]) in errno.errorcode else None


def _home(error: BaseException) -> str:
    return type(error).__module__.partition(".")[0]


def _place(error: BaseException, path: Path | None) -> Path | None:
    """Return what an error is about: what was being written, unless the error names something else."""
    named = getattr(error, "filename", None)
    if not isinstance(named, str | bytes) or not named:
        return path
    said = Path(os.fsdecode(named))
    if path is None:
        return said
    # A temporary file beside the path, or a folder above it, stands for the path.
    beside = said.parent == path.parent or said in path.parents
    return path if beside else said


def _of_system(number: int, path: Path | None, text: str) -> str:
    name = _named(path)
    if number in (errno.ENOSPC, errno.EDQUOT):
        return f"The disk is full: could not write {name}. {_AGAIN}; free some space and {_CONTINUE}."
    if number == errno.EFBIG:
        return (
            f"Could not write {name}: files may not grow this large here (see `ulimit -f`). {_AGAIN}; raise the limit "
            f"or choose another folder, and {_CONTINUE}."
        )
    if number in (errno.EACCES, errno.EROFS, errno.EPERM):
        return f"{name} may not be read or written: {_words(number)}. Change its permissions, or choose another folder."
    if number in (errno.ENOTDIR, errno.EEXIST, errno.EISDIR):
        file = _file_above(path)
        if file is not None:
            return f"{file} is a file, and a folder is needed there. Choose another folder, or move the file away."
        return f"{name} cannot be used: {_words(number)}. Choose another name, or move what is there away."
    if number == errno.ENOENT:
        folder = _missing_above(path)
        if folder is not None:
            return (
                f"The folder {folder} is not there: it was removed, or never made. While a command works in a folder, "
                "leave it where it is. Run the same command again."
            )
        return f"There is no {name}, or it was removed just now."
    if number in (errno.EIO, errno.ENXIO, errno.ENODEV, getattr(errno, "ESTALE", -1), getattr(errno, "EREMOTEIO", -1)):
        return (
            f"The disk or network drive under {name} does not work: {_words(number)}. Check it (cable, mount, its "
            f"log), or choose another folder. {_AGAIN} where the disk is; {_CONTINUE}."
        )
    if number in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
        return (
            f"The file system under {name} cannot do what is needed (lock files, links): {_words(number)}. Choose a "
            "folder on a local disk."
        )
    if number in (errno.EMFILE, errno.ENFILE):
        return (
            f"Too many files are open: {name} could not be opened. Raise the limit with 'ulimit -n 4096', or lower "
            "training.workers."
        )
    if number == errno.ENAMETOOLONG:
        return f"The name {_cut(name)} is longer than the file system allows. Choose a shorter one."
    if number == errno.ELOOP:
        return f"{name} is a symbolic link that leads to itself. Remove the link, or name the file itself."
    if number == errno.ENOMEM:
        return f"There is not enough memory to use {name}. Close other programs, or use less data."
    return f"{'The system' if path is None else name} reports: {_words(number)} ({_cut(' '.join(text.split()))})."


def _file_above(path: Path | None) -> Path | None:
    """Return the file that stands where a folder above ``path`` should be, or at ``path`` itself."""
    for place in () if path is None else (path, *path.parents):
        try:
            if place.exists() and not place.is_dir():
                return place
        except OSError:
            continue
    return None


def _missing_above(path: Path | None) -> Path | None:
    """Return the topmost folder above ``path`` that is not there; None if only ``path`` itself is missing."""
    missing = None
    for place in () if path is None else path.absolute().parents:
        try:
            if place.exists():
                break
        except OSError:
            break
        missing = place
    return missing


def _named(path: Path | None) -> str:
    return _cut(str(path)) if path is not None else _NOT_SAID


def _words(number: int) -> str:
    return os.strerror(number).lower()


def _short(error: BaseException) -> str:
    text = " ".join(str(error).split()).rstrip(".")
    return _cut(f"{type(error).__name__}: {text}" if text else type(error).__name__)


def _cut(text: str, longest: int = 300) -> str:
    return text if len(text) <= longest else text[: longest - 3] + "..."
