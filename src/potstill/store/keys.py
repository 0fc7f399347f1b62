"""Which row a sample's view lies in: rows of view v are ``v * n`` to ``(v + 1) * n``, in the order of the ids."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from potstill.core.errors import TeacherError, UsageError

Integers = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True)
class Keys:
    """A lookup from ``(id, view)`` to row, prepared once.

    Attributes:
        sorted_ids: (n,) the ids in rising order.
        order: (n,) the row, within one view, of each sorted id; None when the ids already rise.
        dense: whether the ids are consecutive integers, so that no search is needed.
        views: how many views there are.

    """

    sorted_ids: Integers
    order: Integers | None
    dense: bool
    views: int

    def rows(self, ids: Integers, views: Integers) -> Integers:
        """Return the (b,) row of each (id, view).

        Raises:
            TeacherError: one of them was not recorded; the message names the first.

        """
        count = len(self.sorted_ids)
        if self.dense:
            places = ids - self.sorted_ids[0]
            known = (places >= 0) & (places < count)
        else:
            places = self.sorted_ids.searchsorted(ids)
            known = self.sorted_ids.take(places, mode="clip") == ids
        known &= (views >= 0) & (views < self.views)
        if not known.all():
            self._refuse(ids, views, int(np.flatnonzero(~known)[0]))
        if self.order is not None:
            places = self.order[places]
        rows: Integers = places + views * count
        return rows

    def _refuse(self, ids: Integers, views: Integers, first: int) -> None:
        kept = "view 0" if self.views == 1 else f"views 0 to {self.views - 1}"
        raise TeacherError(
            f"The teacher's answer for id {int(ids[first])}, view {int(views[first])} was not recorded: the store "
            f"holds {kept} of {len(self.sorted_ids)} samples. Train on the samples and views that were recorded, "
            "or record the store again with these."
        )


def keys_of(ids: np.ndarray[Any, Any], views: int) -> Keys:
    """Prepare the lookup for samples ``ids`` in row order.

    Args:
        ids: (n,) integers, unique.
        views: how many views of each sample there are.

    Raises:
        UsageError: two samples have the same id.

    """
    ids = np.ascontiguousarray(ids, dtype=np.int64)
    rising = bool((ids[1:] > ids[:-1]).all())
    order = None if rising else np.argsort(ids, kind="stable")
    ordered = ids if order is None else ids[order]
    same = np.flatnonzero(ordered[1:] == ordered[:-1])
    if len(same):
        raise UsageError(f"Sample id {int(ordered[same[0]])} occurs twice: ids must be unique to key a store.")
    dense = int(ordered[-1]) - int(ordered[0]) == len(ids) - 1
    return Keys(ordered, order, dense, views)
