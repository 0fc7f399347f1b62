"""Labels of classification as texts, whatever they were read as.

Shape legend: n samples.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from datetime import date, time
from decimal import Decimal

import numpy as np

from potstill.core.errors import DataError
from potstill.tasks.arrays import Array

NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,9})?")
"""A text that is a number."""

_EXACT = 2.0**53
_GAPS = frozenset({"", "NA", "N/A", "n/a", "#N/A", "<NA>", "NaN", "nan", "null", "NULL", "None"})
_POINTED = re.compile(r"-?(0|[1-9][0-9]*)\.0+")


def texts_of(labels: Array, role: str) -> Array:
    """Return the labels of classification as texts, None where there is none: (n,) objects.

    Texts stay as they are, so that ``01`` and ``1`` are two classes. Floats that are whole numbers lose their point:
    a table tool made them floats because one was missing.

    Args:
        labels: (n,) or (n, 1), as they were read.
        role: which split they are of.

    Raises:
        DataError: labels that cannot be classes, or different ones that would become one text.

    """
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1:
        raise DataError(
            f"{role}: targets have shape {labels.shape}; classification expects one class for each sample, (n,). "
            "Use the index of the largest value of one-hot targets, or set task: regression."
        )
    values = np.asarray(labels)
    if values.dtype.kind == "f":
        known = values[np.isfinite(values)]
        if bool((known == np.round(known)).all()):
            if len(known) and np.abs(known).max() > _EXACT:
                raise DataError(
                    f"{role}: labels are floats such as {known[np.abs(known).argmax()]:g}, beyond 2**53, where floats "
                    "cannot tell whole numbers apart. Give the labels as texts, or as whole numbers."
                )
            values = np.array([int(value) if np.isfinite(value) else None for value in values], dtype=object)
    if values.dtype.kind not in "biufSUOMm":
        raise DataError(f"{role}: labels have dtype {values.dtype}; expected texts or whole numbers.")
    found = _each(values, role)
    if isinstance(labels, np.ma.MaskedArray):
        found[np.ma.getmaskarray(labels)] = None
    return found


def without_guesses(texts: Iterable[str | None]) -> Array:
    """Return labels of a file of plain text as they were meant: (n,) objects.

    Among numbers a text such as ``NA`` stands for a missing one, and where every number ends in ``.0`` a table tool
    made it a float. Among texts nothing is changed: ``NA`` may be a country.
    """
    texts = list(texts)
    gaps = {text for text in set(texts) if text is None or text.strip() in _GAPS}
    known = {text for text in set(texts) - gaps if text is not None}
    numbers = bool(known) and all(NUMBER.fullmatch(text) for text in known)
    pointed = numbers and all(_POINTED.fullmatch(text) for text in known)
    meant = {text: text.partition(".")[0] if pointed else text for text in known}
    if not numbers:
        meant |= {text: text for text in gaps if text is not None}
    found = np.empty(len(texts), dtype=object)
    found[:] = [None if text is None else meant.get(text) for text in texts]
    return found


def _each(values: Array, role: str) -> Array:
    """Return a text for each label; refuse different labels that would share one."""
    found = np.empty(len(values), dtype=object)
    known: dict[tuple[str, object], str | None] = {}
    if values.dtype.kind in "Mm":
        values = np.array([None if gap else str(value) for value, gap in zip(values, np.isnat(values), strict=True)])
    for row, value in enumerate(values.tolist()):
        key = (_kind(value), value)
        try:
            if key not in known:
                known[key] = _as_text(value, role, row)
        except TypeError:
            raise DataError(
                f"{role}: the label of row {row} is {type(value).__name__}, expected a text or a number."
            ) from None
        found[row] = known[key]
    kinds: dict[str, tuple[str, object]] = {}
    for key, text in known.items():
        if text is not None and kinds.setdefault(text, key)[0] != key[0]:
            first = kinds[text]
            raise DataError(
                f"{role}: the labels {first[1]!r} ({first[0]}) and {key[1]!r} ({key[0]}) would become one class, "
                f"'{text}'. Give all labels as texts."
            )
    return found


def _kind(value: object) -> str:
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, int | float | Decimal):
        return "number"
    return "text" if isinstance(value, str) else type(value).__name__


def _as_text(value: object, role: str, row: int) -> str | None:
    """Return the text of one label, None for a missing one; a TypeError for what cannot be one."""
    if value is None or type(value).__name__ in ("NAType", "NaTType") or value != value:
        return None
    if isinstance(value, float) and math.isinf(value):
        return None
    if isinstance(value, bytes):
        try:
            value = value.decode("utf-8")
        except UnicodeDecodeError as error:
            raise DataError(
                f"{role}: the label of row {row} is bytes that are not UTF-8 ({value!r}): give texts, or encode them "
                "as UTF-8."
            ) from error
    if isinstance(value, str):
        return str(value) if value.strip() else None
    if isinstance(value, float | Decimal):
        if not isinstance(value, Decimal) and abs(value) > _EXACT:
            raise DataError(
                f"{role}: the label of row {row} is the float {value:g}, beyond 2**53, where floats cannot tell whole "
                "numbers apart. Give the labels as texts, or as whole numbers."
            )
        return str(int(value)) if value == int(value) else str(value)
    if isinstance(value, bool | int | date | time):
        return str(value)
    raise TypeError
