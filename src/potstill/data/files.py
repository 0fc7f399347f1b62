"""Files before anything reads them: regular ones only, and text in a known encoding."""

from __future__ import annotations

import codecs
import stat
from pathlib import Path

from potstill.core.errors import DataError, UsageError

_CHUNK = 1 << 20
_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def not_a_file(path: Path) -> str:
    """Return what a path is instead of a regular file, and "" where it is one; nothing is opened."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return "a symbolic link to nothing" if path.is_symlink() else "missing"
    except OSError as error:
        return "a loop of symbolic links" if path.is_symlink() else f"not readable ({error.strerror})"
    if stat.S_ISREG(mode):
        return ""
    return next((name for test, name in _KINDS if test(mode)), "no regular file")


def check_encoding(name: str | None) -> None:
    """Refuse what is no encoding of text.

    Raises:
        UsageError: the name is unknown.

    """
    if name is None:
        return
    try:
        "".encode(name).decode(name)
    except (LookupError, ValueError, TypeError) as error:
        raise UsageError(
            f"data.encoding: '{name}' is no encoding of text that Python knows; expected one such as utf-8, latin-1, "
            "cp1252 or utf-16."
        ) from error


def utf8_content(path: Path, encoding: str | None) -> bytes | None:
    """Return the content of a text file as UTF-8, or None where it is that already.

    Args:
        path: the file.
        encoding: how it is encoded; UTF-8 when None.

    Raises:
        DataError: it is encoded in another way; says where.

    """
    if encoding is not None:
        try:
            return path.read_bytes().decode(encoding).removeprefix("\ufeff").encode("utf-8")
        except UnicodeError as error:
            raise DataError(f"{path} is not {encoding} (data.encoding): {error}.") from error
    decoder = codecs.getincrementaldecoder("utf-8")()
    lines = 0
    with path.open("rb") as file:
        chunk = file.read(_CHUNK)
        mark = next((name for mark, name in _MARKS.items() if chunk.startswith(mark)), None)
        if mark is None and b"\0" in chunk[:4096]:
            mark = "utf-16-le"
        if mark is not None:
            raise DataError(f"{path} is not UTF-8; it looks like UTF-{mark[4:6]}. Set data.encoding: {mark}.")
        while chunk:
            try:
                decoder.decode(chunk)
            except UnicodeDecodeError as error:
                line = lines + error.object[: error.start].count(b"\n") + 1
                before, after = error.object[: error.start][-15:], error.object[error.start :][:15]
                text = (before.split(b"\n")[-1] + after.splitlines()[0]).decode("latin-1")
                raise DataError(
                    f"{path} is not UTF-8: line {line} holds the byte 0x{error.object[error.start]:02x}. Set "
                    f"data.encoding to what it is, often latin-1 or cp1252 (with latin-1 the place reads {text!r})."
                ) from error
            lines += chunk.count(b"\n")
            chunk = file.read(_CHUNK)
    return None
