"""Answers that somebody recorded before, as a teacher: Parquet, NPZ, JSONL or CSV files with an id column.

Shape legend: n rows of the file, b samples of a batch, c classes or outputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from potstill.core import fingerprint
from potstill.core.errors import DataError, TeacherError, UsageError, did_you_mean
from potstill.data.raw import ids_of
from potstill.data.tables import read_columns
from potstill.teachers.answers import Answers, Array
from potstill.teachers.files.inputs import options_of
from potstill.teachers.foreign import Opened, Wanted

OPTIONS = ("id", "view", "columns")
_SAYS: dict[str, Answers] = {
    "probabilities": "probabilities",
    "probs": "probabilities",
    "logits": "logits",
    "log_probs": "logits",
    "label": "labels",
    "labels": "labels",
    "prediction": "labels",
    "value": "values",
    "values": "values",
}
"""Column names that say what is in them."""


def open_recorded(
    path: Path, wanted: Wanted, args: Mapping[str, Any], *, place: str, id_column: str | None = None
) -> Opened:
    """Open a file of recorded answers as a teacher.

    It has a column of ids, perhaps one of views, and the answers: one column that holds a list for each sample, or a
    label; or one column for each class, named as the class; or those that ``args["columns"]`` names.

    Args:
        path: the file.
        wanted: what the teacher is asked to do.
        args: options: ``id`` and ``view``, names of columns; ``columns``, the answers' own.
        place: the teacher's place in the recipe.
        id_column: the data's own id column, tried before ``id``.

    Raises:
        PotstillError: the file cannot be read, has no ids, the same id twice, or no answers that can be told apart.

    """
    options = options_of(args, OPTIONS, place=place, kind="a file of recorded answers")
    columns = read_columns(path)
    what = path.name
    key = _id_column(columns, options.get("id"), id_column, place=place, what=what)
    view = options.get("view", "view" if "view" in columns else None)
    if view is not None and view not in columns:
        raise UsageError(f"{place}.args.view: {what} has no column '{view}'.{did_you_mean(view, columns)}")
    rest = [name for name in columns if name not in (key, view)]
    names = _answer_columns(rest, options.get("columns"), wanted, place=place, what=what)
    values, classes = _values([(name, columns[name]) for name in names], place=place, what=what)
    try:
        ids = ids_of(columns[key], f"{what}, column '{key}',")
    except DataError as error:
        raise TeacherError(f"{place}: {error}") from error
    views = np.zeros(len(ids), np.int64) if view is None else columns[view].astype(np.int64)
    answers = "values" if wanted.values else _SAYS.get(names[0].lower()) if len(names) == 1 else None
    table = Table.of(ids, views, values, what=f"{place}: {what}")
    return Opened(
        name=what,
        digest=fingerprint.of_json([fingerprint.of_file(path), {**options, "key": key}]),
        size_bytes=path.stat().st_size,
        lookup=table,
        covers=table.covers,
        answers=answers,
        says=f"the task is {wanted.task}" if wanted.values else f"its column is called '{names[0]}'",
        classes=None if wanted.values else classes,
        has_views=view is not None,
        everything=values,
    )


@dataclass(frozen=True)
class Table:
    """Answers by id and view.

    Attributes:
        ids: rising, each id once.
        views: rising, each view once.
        keys: (n,) rising: place of the id times the number of views, plus the place of the view.
        rows: (n,) where the answer to each key is in ``values``.
        values: (n,) or (n, c) answers as the file has them.
        what: what to call the file.

    """

    ids: Array
    views: Array
    keys: Array
    rows: Array
    values: Array
    what: str

    @staticmethod
    def of(ids: Array, views: Array, values: Array, *, what: str) -> Table:
        """Sort the ids and refuse one that is there twice."""
        own_ids, id_places = np.unique(ids, return_inverse=True)
        own_views, view_places = np.unique(views, return_inverse=True)
        keys = id_places * max(1, len(own_views)) + view_places
        rows = np.argsort(keys, kind="stable")
        twice = np.flatnonzero(np.diff(keys[rows]) == 0)
        if len(twice):
            raise TeacherError(
                f"{what} has more than one answer for {len(twice)} samples, the first is id {ids[rows[twice[0]]]}. "
                "Each sample needs one answer; where the rows are augmented views, number them in a column 'view'."
            )
        return Table(own_ids, own_views, keys[rows], rows, values, what)

    def __call__(self, ids: Array, views: Array) -> Array:
        """Return the answers of samples (b,).

        Raises:
            TeacherError: one that is not there; names it.

        """
        places, there = self._find(ids, views)
        if not there.all():
            first = np.flatnonzero(~there)[0]
            raise TeacherError(
                f"{self.what} has no answer for {int((~there).sum())} of {len(ids)} samples, the first is id "
                f"{int(ids[first])}, view {int(views[first])}."
            )
        answers: Array = self.values[self.rows[places]]
        return answers

    def covers(self, ids: Array, views: Array) -> Array:
        """Return which samples there are answers for: (b,) booleans."""
        return self._find(ids, views)[1]

    def _find(self, ids: Array, views: Array) -> tuple[Array, Array]:
        id_places, has_id = _place(self.ids, ids)
        view_places, has_view = _place(self.views, views)
        places, has_key = _place(self.keys, id_places * max(1, len(self.views)) + view_places)
        return places, has_id & has_view & has_key


def _place(held: Array, wanted: Array) -> tuple[Array, Array]:
    """Return where ``wanted`` is in the rising array ``held``, and whether it is."""
    if not len(held):
        return np.zeros(len(wanted), np.int64), np.zeros(len(wanted), bool)
    places = np.minimum(np.searchsorted(held, wanted), len(held) - 1)
    return places, held[places] == wanted


def _id_column(columns: Mapping[str, Array], chosen: str | None, own: str | None, *, place: str, what: str) -> str:
    if chosen is not None:
        if chosen not in columns:
            raise UsageError(f"{place}.args.id: {what} has no column '{chosen}'.{did_you_mean(chosen, columns)}")
        return chosen
    for name in (own, "id", "ids"):
        if name is not None and name in columns:
            return name
    raise TeacherError(
        f"{place}: {what} has no column of ids, only {', '.join(columns)}. Name it: 'args: {{id: ...}}'. Without "
        "data.id, a sample's id is its row number in data.train, counted from 0, or the path of its file."
    )


def _answer_columns(
    rest: Sequence[str], chosen: Sequence[str] | None, wanted: Wanted, *, place: str, what: str
) -> list[str]:
    if chosen is not None:
        absent = [name for name in chosen if name not in rest]
        if absent:
            raise UsageError(f"{place}.args.columns: {what} has no '{absent[0]}'.{did_you_mean(absent[0], rest)}")
        return list(chosen)
    if wanted.classes and set(wanted.classes) <= set(rest):
        return [name for name in rest if name in wanted.classes]
    known = [name for name in rest if name.lower() in _SAYS]
    if len(known) == 1:
        return known
    if len(rest) == 1:
        return list(rest)
    raise TeacherError(
        f"{place}: {what} has the columns {', '.join(rest[:10])}: which are the answers? Name one column that holds "
        "a list or a label of each sample, or one column for each class, with 'args: {columns: [...]}'."
    )


def _values(columns: Sequence[tuple[str, Array]], *, place: str, what: str) -> tuple[Array, tuple[str, ...] | None]:
    """Return the answers (n,) or (n, c), and the classes where each has a column of its own."""
    bad = [name for name, values in columns if values.dtype == object and not _are_texts(values)]
    if bad:
        raise TeacherError(
            f"{place}: column '{bad[0]}' of {what} has rows that are empty or lists of different lengths. Each sample "
            "needs an answer of the same size."
        )
    if len(columns) == 1:
        return columns[0][1], None
    if any(values.ndim > 1 or values.dtype.kind not in "fiu" for _, values in columns):
        raise TeacherError(f"{place}: the answers in {what} are spread over columns that do not all hold one number.")
    return np.stack([values.astype(np.float64) for _, values in columns], 1), tuple(name for name, _ in columns)


def _are_texts(values: Array) -> bool:
    return all(isinstance(value, str) and value for value in values)
