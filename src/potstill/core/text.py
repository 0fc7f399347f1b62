"""Text to show: that of others (servers, files, folders, model authors) made safe, and numbers with their nouns."""

from __future__ import annotations

import re
from typing import Any

_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")
"""What terminals obey (escape sequences, bells, carriage returns), what turns the direction of writing, and halves of
characters that no file can hold; line breaks and tabs are text."""


def counted(number: int, one: str, several: str = "") -> str:
    """Return a number with its noun, ``1 row`` or ``1,200 rows``; ``several`` where that is not the noun and an s."""
    return f"1 {one}" if number == 1 else f"{number:,} {several or f'{one}s'}"


def printable(text: str) -> str:
    r"""Return ``text`` with everything that is not shown but obeyed written out, such as ``\\x1b``.

    Use it wherever text of others reaches a terminal, a log or a page.
    """
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape", "surrogatepass").decode("ascii"), text)


def printable_parts(value: Any) -> Any:
    """Return plain data with every text in it made `printable`, keys too."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, dict):
        return {printable_parts(key): printable_parts(item) for key, item in value.items()}
    return [printable_parts(item) for item in value] if isinstance(value, list) else value


def kind_and_column(metric: str) -> tuple[str, int | None]:
    """Return the kind and the column, from 1, of a metric of one of several columns, ``rmse_2``; else its name."""
    kind, _, column = metric.rpartition("_")
    return (kind, int(column)) if kind and column.isdecimal() else (metric, None)
