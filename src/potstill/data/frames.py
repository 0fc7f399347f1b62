"""Named columns as numbers of samples, for a model that learned on a table: the same columns, types and categories.

Shape legend: n rows, w numbers of a column, f numbers of a sample.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from potstill.core.errors import DataError, PotstillWarning, did_you_mean
from potstill.core.text import counted
from potstill.data.columns import Array, Column, as_categories, as_numbers
from potstill.data.raw import as_array

_TYPES = {"number": "numbers", "whole number": "numbers", "boolean": "booleans", "text": "texts"}


def encoded(frame: Any, columns: Sequence[Column]) -> Array:
    """Return the numbers of samples for rows of a table, as they were in training: (n, f) float32; n may be 0.

    The order of the table's columns does not matter, and further columns are ignored. A text that the train split does
    not have is zero everywhere, as in training, and a warning.

    Args:
        frame: a pandas or polars DataFrame, a pyarrow table, or a mapping of names to n values each or to one value.
        columns: the columns that the model learned on.

    Raises:
        DataError: no table, or a column that is missing, has another type, another length or missing values.

    """
    names = _names(frame)
    parts: list[Array] = []
    for column in columns:
        if column.name not in names:
            raise DataError(
                f"The table has no column '{column.name}', which the student was trained on."
                f"{did_you_mean(column.name, names)}"
            )
        values = _values(frame[column.name], column)
        if parts and len(values) != len(parts[0]):
            raise DataError(
                f"column '{column.name}' has {counted(len(values), 'row')} and '{columns[0].name}' has "
                f"{len(parts[0]):,}: expected one value of each for every row."
            )
        if column.categories is None:
            parts.append(as_numbers(column, values))
            continue
        part, new = as_categories(column, values)
        parts.append(part)
        if new.any():
            shown = ", ".join(f"'{text}'" for text in sorted(set(values[new]))[:5])
            text = (
                f"{counted(int(new.sum()), 'row has', 'rows have')} a value in column '{column.name}' that the student "
                f"was not trained on ({shown}): it counts as none of the categories."
            )
            warnings.warn(text, PotstillWarning, stacklevel=2)
    return np.concatenate(parts, axis=1)


def _names(frame: Any) -> list[str]:
    if isinstance(frame, Mapping):
        return list(map(str, frame))
    names = getattr(frame, "column_names", None)  # pyarrow
    names = getattr(frame, "columns", None) if names is None else names
    if names is None or callable(names):
        raise DataError(
            f"Expected named columns: a DataFrame, a pyarrow table or a mapping of names to values; got "
            f"{type(frame).__name__}."
        )
    return list(map(str, names))


def _values(given: Any, column: Column) -> Array:
    """Return a column's values in one of two forms: an object array of texts, or an array of numbers."""
    shown = f"column '{column.name}'"
    if getattr(given, "ndim", 1) == 2 and column.width == 1:
        raise DataError(f"{shown} is there twice, or holds several numbers a row; expected one value a row.")
    to_list = getattr(given, "to_pylist", None)  # pyarrow
    held = as_array(given, shown) if to_list is None else np.array(to_list(), dtype=object)
    masked, values = np.atleast_1d(np.ma.getmaskarray(held)), np.atleast_1d(np.ma.getdata(held))
    if len(values) == 0:
        return np.zeros(0, object) if column.categories is not None else np.zeros((0, column.width))
    expected = f"expected {_TYPES[column.type]} as in training"
    absent = np.array([_is_missing(value) for value in values.ravel()], dtype=bool) | masked.ravel()
    if absent.any():
        row = int(np.flatnonzero(absent)[0]) // max(1, values[0].size if values.ndim > 1 else 1)
        more = f" (and {int(absent.sum()) - 1} more)" if absent.sum() > 1 else ""
        raise DataError(f"{shown} has no value in row {row}{more}; {expected}.")
    if column.categories is not None:
        wrong = next((value for value in values.tolist() if not isinstance(value, str)), None)
        if wrong is not None:
            raise DataError(f"{shown} holds {wrong!r}, {expected}, such as '{column.categories[0]}'.")
        return values.astype(object)
    if values.dtype == object:
        kinds = {type(value) for value in values.ravel().tolist()}
        values = np.array(values.tolist()) if kinds and all(issubclass(kind, int | float) for kind in kinds) else values
    kind = values.dtype.kind
    as_boolean = column.type == "boolean" and kind in "iuf" and bool(np.isin(values, (0, 1)).all())
    if not (kind == "b" if column.type == "boolean" else kind in "iuf") and not as_boolean:
        raise DataError(f"{shown} holds {values.ravel()[:1].tolist()[0]!r}, {expected}.")
    width = values.shape[1] if values.ndim > 1 else 1
    if width != column.width:
        raise DataError(f"{shown} holds {width} numbers a row, expected {column.width} as in training.")
    with np.errstate(over="ignore"):
        finite = np.isfinite(as_numbers(column, values)).all(axis=1)
    if not finite.all():
        row = int(np.flatnonzero(~finite)[0])
        raise DataError(f"{shown} holds {values[row].tolist()!r} in row {row}, which is not finite as a 32-bit float.")
    return values


def _is_missing(value: Any) -> bool:
    # pandas' NA and NumPy's masked are equal to nothing and do not say so.
    if value is None or value is np.ma.masked or type(value).__name__ == "NAType":
        return True
    return not isinstance(value, np.ndarray) and (bool(value != value) or bool(value == ""))
