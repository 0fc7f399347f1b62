"""Making the splits that were not given: stratified, seeded, and stable when samples are added.

Shape legend: n samples.
"""

from __future__ import annotations

import numpy as np

from potstill.core import random
from potstill.data.samples import Array, Ints

_TEST, _VALIDATION, _TIE = 201, 202, 203


def split_rows(ids: Ints, strata: Ints, *, validation: float, test: float, seed: int) -> tuple[Ints, Ints, Ints]:
    """Return the rows of train, validation and test, each in rising order.

    Whether a sample is held out depends on its own ``(seed, id)``, ranked within its class, so that adding samples
    moves few of the others.

    Args:
        ids: (n,) sample ids.
        strata: (n,) classes to keep in proportion; all zero for none.
        validation: share of all samples for validation; 0 for none.
        test: share of all samples for test; 0 for none.
        seed: of the split.

    """
    free = np.ones(len(ids), dtype=bool)
    held = []
    for share, stream in ((test, _TEST), (validation, _VALIDATION)):
        rows = _hold_out(ids, strata, free, share, seed, stream)
        free[rows] = False
        held.append(rows)
    return np.flatnonzero(free), held[1], held[0]


def _hold_out(ids: Ints, strata: Ints, free: Array, share: float, seed: int, stream: int) -> Ints:
    if share <= 0 or not len(ids):
        return np.zeros(0, dtype=np.int64)
    totals = np.bincount(strata)
    left = np.bincount(strata[free], minlength=len(totals))
    quota = totals * share
    # One sample of each class always stays in train; the rest of the rounding goes where it is owed most.
    takes = np.minimum(np.floor(quota), np.maximum(left - 1, 0)).astype(np.int64)
    owed = quota - takes
    for stratum in np.lexsort((random.key(np.arange(len(totals)), seed, stream, _TIE), -owed)):
        if takes.sum() >= round(len(ids) * share):
            break
        if takes[stratum] < left[stratum] - 1:
            takes[stratum] += 1
    keys = random.key(ids, seed, stream)
    rows = np.flatnonzero(free)
    rows = rows[np.lexsort((keys[rows], strata[rows]))]
    rank = np.arange(len(rows)) - (np.cumsum(left) - left)[strata[rows]]
    return np.sort(rows[rank < takes[strata[rows]]])
