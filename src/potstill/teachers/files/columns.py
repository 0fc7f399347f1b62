"""Which of a table's columns a model with named features takes.

Shape legend: b samples, f numbers of a sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from potstill.core.errors import TeacherError, did_you_mean
from potstill.core.optional import require
from potstill.data.columns import Column, as_they_were
from potstill.teachers.answers import Array
from potstill.teachers.foreign import Ask, Opened


@dataclass(frozen=True)
class Chosen:
    """The columns that a model takes, in its order.

    Attributes:
        names: the model's features.
        places: where each of them is among a sample's numbers; None where the model takes texts as they were before
            they became numbers.
        columns: how the columns of the data became numbers.

    """

    names: tuple[str, ...]
    places: tuple[int, ...] | None
    columns: tuple[Column, ...]

    def of(self, rows: Array) -> Any:
        """Return the model's inputs: an array (b, k), or a pandas table of numbers and texts."""
        if self.places is not None:
            return rows[:, list(self.places)]
        pandas = require("pandas", feature="a teacher that takes a table with texts", extra="estimators")
        starts = np.cumsum([0, *(column.width for column in self.columns)])
        held: dict[str, Array] = {}
        for start, column in zip(starts[:-1], self.columns, strict=True):
            if column.name not in self.names:
                continue
            part = rows[:, start : start + column.width]
            if column.categories is None:
                held[column.name] = part[:, 0].astype(np.float64)
            else:
                texts = np.array(column.categories, dtype=object)[part.argmax(1)]
                # A text that the training data does not have is all zeros.
                texts[~part.any(1)] = None
                held[column.name] = texts
        return pandas.DataFrame({name: held[name] for name in self.names})


@dataclass(frozen=True)
class OnTable:
    """Asks about the numbers of the table itself, where samples hold them minus an offset."""

    ask: Ask
    columns: tuple[Column, ...]

    def __call__(self, inputs: Array) -> Any:
        """Return the model's answers for samples (b, f)."""
        return self.ask(as_they_were(self.columns, inputs))


def on_table(opened: Opened, columns: tuple[Column, ...]) -> Opened:
    """Return a model that is asked with arrays so that it sees the table's numbers as they were."""
    if opened.ask is None or all(column.as_it_was for column in columns):
        return opened
    return replace(opened, ask=OnTable(opened.ask, columns))


def chosen_columns(names: Sequence[str], columns: Sequence[Column], *, place: str, what: str) -> Chosen | None:
    """Return which columns a model with named features takes; None where that is all numbers in their order.

    Args:
        names: the model's features, in its order.
        columns: how the columns of the data became numbers.
        place: the teacher's place in the recipe.
        what: what to call the model.

    Raises:
        TeacherError: the model takes other columns.

    """
    encoded = [name for column in columns for name in _encoded(column)]
    if list(names) == encoded:
        return None
    if set(names) <= set(encoded):
        return Chosen(tuple(names), tuple(encoded.index(name) for name in names), tuple(columns))
    known = {column.name: column for column in columns}
    absent = [name for name in names if name not in known]
    wide = [name for name in names if name in known and known[name].categories is None and known[name].width > 1]
    if absent or wide:
        problem = f"no '{absent[0]}'.{did_you_mean(absent[0], known)}" if absent else f"several numbers in '{wide[0]}'."
        raise TeacherError(
            f"{place}: {what} was fitted on the columns {', '.join(names[:10])}{' ...' if len(names) > 10 else ''}; "
            f"the data has {problem} Choose its columns with data.inputs."
        )
    return Chosen(tuple(names), None, tuple(columns))


def _encoded(column: Column) -> list[str]:
    """Return the names of a column's numbers, as pandas.get_dummies writes them."""
    if column.categories is not None:
        return [f"{column.name}_{category}" for category in column.categories]
    return [column.name] if column.width == 1 else [f"{column.name}_{number}" for number in range(column.width)]
