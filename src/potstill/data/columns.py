"""One column of a table: its name, its type, and how it becomes numbers of a sample, and back.

Shape legend: n rows, w numbers of a column, f numbers of a sample.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from potstill.core.errors import DataError

Array = NDArray[Any]
ColumnType = Literal["number", "whole number", "boolean", "text"]

_FAR = 1e30


@dataclass(frozen=True)
class Column:
    """One column of a table and how it becomes numbers.

    A text becomes one number for each category: 1 for its own and 0 for the others; 0 everywhere for a text that the
    train split does not have. A number becomes ``(value - offset) / scale``, computed in 64 bits and then rounded to
    32. A value that is missing stands for nothing: such rows are refused or left out when they are read.

    Attributes:
        name: the column's name.
        categories: the categories of the train split in the order of their numbers; None for numbers.
        width: how many numbers of a sample the column fills.
        type: what its values were in the train split.
        offset: taken from each number; not 0 only where 32-bit floats could not tell the numbers apart otherwise.
        scale: each number is divided by it.

    """

    name: str
    categories: tuple[str, ...] | None = None
    width: int = 1
    type: ColumnType = "number"
    offset: float = 0.0
    scale: float = 1.0

    @property
    def as_it_was(self) -> bool:
        """Whether a number of a sample is the number of the table."""
        return self.offset == 0 and self.scale == 1

    def to_json(self) -> dict[str, Any]:
        """Return the column as plain data; ``Column.from_json`` reads it."""
        return asdict(self)

    @staticmethod
    def from_json(plain: Mapping[str, Any]) -> Column:
        """Return the column that ``to_json`` wrote."""
        categories = plain.get("categories")
        return Column(**{**plain, "categories": None if categories is None else tuple(categories)})


def number_column(name: str, values: Array) -> Column:
    """Decide how numbers of the train split become numbers of a sample.

    They stay what they are, unless rounding to 32 bits would make equal what is different: then the middle of their
    range is taken from them first.

    Args:
        name: the column's name.
        values: (n,) or (n, w) numbers or booleans.

    """
    kind: ColumnType = "boolean" if values.dtype.kind == "b" else "whole number" if _whole(values) else "number"
    column = Column(name, None, 1 if values.ndim == 1 else values.shape[1], kind)
    if values.ndim > 1 or not len(values) or kind == "boolean" or not merged(column, values):
        return column
    # Python's whole numbers do not overflow.
    low, high = values.min().item(), values.max().item()
    middle = float((low + high) // 2 if isinstance(low, int) else low + (high - low) / 2)
    spread = max(high - middle, middle - low)
    moved = Column(name, None, 1, kind, middle, 1.0 if 1 / _FAR < spread < _FAR else float(spread or 1))
    return moved if merged(moved, values) < merged(column, values) else column


def merged(column: Column, values: Array) -> int:
    """Return how many different numbers of a column cannot be told apart from others once they are rounded.

    Whole numbers count where they became equal to another. Of fractions the last digits do not count: those
    where rounding moves numbers by less than a ten-thousandth of their spread.

    Args:
        column: how they become numbers.
        values: (n,) numbers.

    """
    different = np.unique(values[np.isfinite(values)] if values.dtype.kind == "f" else values)
    if not _whole(values):
        exact = (different.astype(np.float64) - column.offset) / column.scale
        with np.errstate(over="ignore"):
            moved = np.abs(exact.astype(np.float32) - exact).max(initial=0)
        if moved <= 1e-4 * exact.std():
            return 0
    return len(different) - len(np.unique(as_numbers(column, different)))


def merged_places(values: Array) -> list[tuple[int, int]]:
    """Return the places of an array (n, w) that 32-bit floats cannot tell apart, and how many numbers merge."""
    if values.dtype.kind not in "iuf" or values.itemsize < 4 or not len(values):
        return []
    rows = values.reshape(len(values), -1)
    with np.errstate(over="ignore"):
        rows = rows[np.isfinite(rows.astype(np.float32)).all(axis=1)]  # the others are not used
        if not len(rows):
            return []
        largest = np.maximum(np.abs(rows.max(0).astype(np.float64)), np.abs(rows.min(0).astype(np.float64)))
        # Smaller whole numbers are exact, and of fractions this is where rounding begins to matter.
        suspects = np.flatnonzero((largest >= 2**24) | (largest > 1000 * rows.std(0, dtype=np.float64)))
    found = [(int(place), merged(Column(str(place)), rows[:, place])) for place in suspects]
    return [(place, lost) for place, lost in found if lost]


def as_numbers(column: Column, values: Array) -> Array:
    """Return the numbers of a sample for the numbers of a table: (n, w) float32."""
    part = values[:, None] if values.ndim == 1 else values
    if column.as_it_was:
        return part.astype(np.float32)
    if part.dtype.kind in "iu":
        # Beyond 2**53 a float does not hold every whole number: subtract before it becomes one.
        part = part.astype(object) - int(column.offset) if part.dtype == np.uint64 else part - np.int64(column.offset)
        return (part.astype(np.float64) / column.scale).astype(np.float32)
    return ((part.astype(np.float64) - column.offset) / column.scale).astype(np.float32)


def as_categories(column: Column, texts: Array) -> tuple[Array, Array]:
    """Return the numbers of a sample for texts, (n, w) float32, and which of them train does not have, (n,)."""
    place = {category: index for index, category in enumerate(column.categories or ())}
    codes = np.array([place.get(text, -1) for text in texts], dtype=np.int64)
    return (codes[:, None] == np.arange(column.width)).astype(np.float32), codes < 0


def as_they_were(columns: Sequence[Column], rows: Array) -> Array:
    """Return the numbers of samples without offsets and scales: (n, f), in 64 bits where that changes any of them.

    Use it for models that were fitted on the table itself.

    Raises:
        DataError: the samples have another number of numbers than the columns.

    """
    if all(column.as_it_was for column in columns):
        return rows
    width = sum(column.width for column in columns)
    if rows.ndim != 2 or rows.shape[1] != width:
        raise DataError(f"samples have shape {rows.shape[1:]}, expected the {width} numbers of the table's columns.")
    scales = np.concatenate([np.full(column.width, column.scale) for column in columns])
    offsets = np.concatenate([np.full(column.width, column.offset) for column in columns])
    restored: Array = rows.astype(np.float64) * scales + offsets
    return restored


def _whole(values: Array) -> bool:
    return values.dtype.kind in "iu" or (values.dtype.kind == "f" and bool((values == np.round(values)).all()))
