"""Which row a sample's view lies in: rows of view v are ``v * n`` to ``(v + 1) * n``, in the order of the ids.

Nothing here is read into memory: ids that count up need no look at all, other ids are searched in a memory-mapped file.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from potstill.core import fingerprint
from potstill.core.errors import PotstillError, TeacherError, UsageError
from potstill.core.files import atomic_path
from potstill.store.columns import Column
from potstill.store.manifest import IDS, Manifest, Order

Array = np.ndarray[Any, Any]
Integers = np.ndarray[Any, np.dtype[np.int64]]

SORTED = "ids.sorted.npy"
PLACES = "ids.places.npy"
_AT_ONCE = 2**16


@dataclass(frozen=True)
class Keys:
    """A lookup from ``(id, view)`` to row.

    Attributes:
        count: how many samples there are.
        views: how many views of each.
        first: the first id where the ids count up by one; None otherwise.
        sorted_ids: (n,) the ids in rising order; not looked at where they count up.
        places: (n,) the row, within one view, of each sorted id; None where the ids already rise.

    """

    count: int
    views: int
    first: int | None
    sorted_ids: Integers
    places: Integers | None

    def rows(self, ids: Integers, views: Integers) -> Integers:
        """Return the (b,) row of each (id, view).

        Raises:
            TeacherError: one of them was not recorded; the message names the first.

        """
        if self.first is not None:
            places = ids - self.first
            known = (places >= 0) & (places < self.count)
        else:
            places = self.sorted_ids.searchsorted(ids)
            known = self.sorted_ids.take(places, mode="clip") == ids
        known &= (views >= 0) & (views < self.views)
        if not known.all():
            self._refuse(ids, views, int(np.flatnonzero(~known)[0]))
        if self.places is not None:
            places = self.places[places]
        rows: Integers = places + views * self.count
        return rows

    def _refuse(self, ids: Integers, views: Integers, first: int) -> None:
        kept = "view 0" if self.views == 1 else f"views 0 to {self.views - 1}"
        raise TeacherError(
            f"The teacher's answer for id {int(ids[first])}, view {int(views[first])} was not recorded: the store "
            f"holds {kept} of {self.count} samples. Train on the samples and views that were recorded, "
            "or record the store again with these."
        )


def order_of(ids: np.ndarray[Any, Any]) -> Order:
    """Return how ids follow each other: each one more than the last, each larger than the last, or neither.

    Raises:
        UsageError: two samples have the same id.

    """
    ids = np.ascontiguousarray(ids, dtype=np.int64)
    if bool((ids[1:] > ids[:-1]).all()):
        return "counting" if int(ids[-1]) - int(ids[0]) == len(ids) - 1 else "rising"
    ordered = np.sort(ids)
    same = np.flatnonzero(ordered[1:] == ordered[:-1])
    if len(same):
        raise UsageError(f"Sample id {int(ordered[same[0]])} occurs twice: ids must be unique to key a store.")
    return "any"


def ids_fingerprint(ids: np.ndarray[Any, Any]) -> str:
    """Return the sha256 of sample ids in row order."""
    return fingerprint.of_array(np.ascontiguousarray(ids, dtype="<i8"))


def keys_of(ids: Array, views: int) -> Keys:
    """Prepare the lookup for samples ``ids`` in row order, in memory.

    Args:
        ids: (n,) integers, unique.
        views: how many views of each sample there are.

    Raises:
        UsageError: two samples have the same id.

    """
    ids = np.ascontiguousarray(ids, dtype=np.int64)
    order = order_of(ids)
    if order == "any":
        places = np.argsort(ids, kind="stable")
        return Keys(len(ids), views, None, ids[places], places)
    return Keys(len(ids), views, int(ids[0]) if order == "counting" else None, ids, None)


def write_keys(folder: Path, ids: Array) -> None:
    """Write the ids in row order, and where they do not rise also in rising order with the place of each."""
    keys = keys_of(ids, views=1)
    files = {IDS: ids} if keys.places is None else {IDS: ids, SORTED: keys.sorted_ids, PLACES: keys.places}
    for name, values in files.items():
        with atomic_path(folder / name) as temporary:
            content = np.ascontiguousarray(values, dtype="<i8").tobytes()
            temporary.write_bytes(Column(name, "<i8").header(len(values)) + content)


def open_keys(folder: Path, manifest: Manifest) -> Keys:
    """Map the lookup of a store without reading it.

    Raises:
        PotstillError: a file is missing or has the wrong size.

    """
    if manifest.first_id is not None:
        return Keys(manifest.num_samples, manifest.views, manifest.first_id, np.empty(0, np.int64), None)
    names = (SORTED, PLACES) if manifest.ids_order == "any" else (IDS,)
    found = [_map(folder, name, manifest.num_samples) for name in names]
    return Keys(manifest.num_samples, manifest.views, None, found[0], found[1] if len(found) == 2 else None)


def read_ids(folder: Path, manifest: Manifest) -> Integers:
    """Map the ids in row order without reading them.

    Raises:
        PotstillError: the file is missing or has the wrong size.

    """
    return _map(folder, IDS, manifest.num_samples)


def keys_problem(folder: Path, manifest: Manifest) -> str | None:
    """Return which of the files that find rows is missing or changed, after reading them whole; None if none is."""
    try:
        ids = _map(folder, IDS, manifest.num_samples)
        if ids_fingerprint(ids) != manifest.ids or not _has_head(folder, IDS, len(ids)):
            return IDS
        if manifest.ids_order == "any":
            ordered, places = _map(folder, SORTED, len(ids)), _map(folder, PLACES, len(ids))
            for name in (SORTED, PLACES):
                if not _has_head(folder, name, len(ids)):
                    return name
            return _unsorted(ids, ordered, places)
    except _DamagedKeysError as error:
        return error.file
    return None


def _unsorted(ids: Integers, ordered: Integers, places: Integers) -> str | None:
    """Return which file does not belong to the ids: block by block, so that no memory grows with their number."""
    last = None
    for low in range(0, len(ids), _AT_ONCE):
        some, where = ordered[low : low + _AT_ONCE], places[low : low + _AT_ONCE]
        rises = bool((some[1:] > some[:-1]).all()) and (last is None or some[0] > last)
        if not rises:
            return SORTED
        # Rising, and each the id at its place: the places are then a permutation.
        if where.min() < 0 or where.max() >= len(ids) or not np.array_equal(ids.take(where), some):
            return PLACES
        last = some[-1]
    return None


class _DamagedKeysError(PotstillError):
    def __init__(self, folder: Path, file: str) -> None:
        super().__init__(f"The store {folder} is damaged: {file} is missing or changed.")
        self.file = file


def _map(folder: Path, name: str, count: int) -> Integers:
    column, path = Column(name, "<i8"), folder / name
    if not path.is_file() or path.stat().st_size != column.file_bytes(count):
        raise _DamagedKeysError(folder, name)
    return column.map(folder)


def _has_head(folder: Path, name: str, count: int) -> bool:
    head = Column(name, "<i8").header(count)
    with (folder / name).open("rb") as file:
        return file.read(len(head)) == head
