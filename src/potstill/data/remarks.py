"""What a look at each column of the train split says: constant, different in every row, or giving the target away.

Shape legend: n samples, k regression columns.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from potstill.core import random
from potstill.data.columns import Column, merged
from potstill.data.samples import Array, Ints
from potstill.tasks.base import Finding

_LOOKED_AT = 20_000
_FEWEST = 40
_MOST_COLUMNS = 500
_SEEN = 0.99
_SEEN_VALUES = 0.999


def on_columns(columns: Mapping[str, Array], targets: Array, *, named: bool = True) -> tuple[Finding, ...]:
    """Return remarks on the columns of the train split.

    Args:
        columns: name to (n,) numbers or texts.
        targets: (n,) classes, or (n,) or (n, k) floats.
        named: whether these are columns of a table, which `data.exclude` can leave out.

    """
    found: list[Finding] = []
    rows = np.sort(random.permutation(len(targets), 0)[:_LOOKED_AT])
    for name, values in list(columns.items())[:_MOST_COLUMNS]:
        if values.ndim > 1 or not len(values):
            continue
        advice = f"leave it out with data.exclude: [{name}]" if named else "leave it out"
        if named and (remark := _on_values(name, values, advice)) is not None:
            found.append(remark)
        if len(rows) >= _FEWEST and (how := gives_away(values[rows], targets[rows])):
            text = (
                f"column '{name}' alone gives the target away: {how}. If it is only known when the target is, results "
                f"are too good to be true: {advice}."
            )
            found.append(Finding("warning", "target-leak", text, len(values)))
    return tuple(found)


def _on_values(name: str, values: Array, advice: str) -> Finding | None:
    texts = values.dtype == object
    different = len(set(values.tolist())) if texts else len(np.unique(values))
    if different == 1:
        text = f"column '{name}' has one value only in train, {str(values[0])[:40]!r}: it says nothing; {advice}."
        return Finding("warning", "constant-column", text, len(values))
    whole = not texts and values.dtype.kind != "b" and bool((values == np.round(values)).all())
    if len(values) >= _FEWEST // 2 and different >= len(values) * (0.95 if texts else 1) and (texts or whole):
        kind = "text" if texts else "whole number"
        text = (
            f"column '{name}' has another {kind} in nearly every row of train ({different:,} in {len(values):,}), as "
            f"ids have: what is learned from it does not hold for new rows. If it is one, {advice}."
        )
        return Finding("warning", "id-like-column", text, different)
    if texts and different > 100 and different * 10 > len(values):
        text = (
            f"column '{name}' has {different:,} different texts in {len(values):,} rows of train, and becomes as many "
            f"numbers: few rows tell of each. Group them, or {advice}."
        )
        return Finding("warning", "many-categories", text, different)
    return None


def gives_away(values: Array, targets: Array) -> str:
    """Return how well one column alone predicts the target, where that is nearly perfect, and "" otherwise.

    A rule is learned on every other row and judged on the rest: what a row's value, or the nearest one, had there.
    Classes: right in 99 % and a tenth of the mistakes of always saying the most frequent class; or, for two classes, an
    area under the curve of 0.99. Values: 99.9 % of the variance, or a
    correlation of 0.999, by value or by rank.

    Args:
        values: (n,) numbers or texts.
        targets: (n,) classes, or (n,) or (n, k) floats.

    """
    if values.dtype != object:
        values = _to_unit(values.astype(np.float64))
    known, judged = slice(0, None, 2), slice(1, None, 2)
    places, codes = _nearest(values[known], values[judged])
    seen = places >= 0
    if seen.mean() < 0.5:
        return ""  # most texts are new: no rule
    if targets.dtype.kind != "f":
        return _class_given_away(values, targets, places, codes)
    for column in _to_unit(targets.reshape(len(targets), -1).astype(np.float64)).T:
        held, taught = column[judged][seen], column[known]
        said = (np.bincount(codes, taught) / np.bincount(codes))[places[seen]]
        spread = np.square(held - taught.mean()).sum()
        explained = 1 - np.square(held - said).sum() / spread if spread else 0.0
        if explained >= _SEEN_VALUES:
            return f"it explains {100 * explained:.2f} % of its variance"
        if values.dtype != object and values.std() > 0 and column.std() > 0:
            line, order = (
                abs(np.corrcoef(x, y)[0, 1]) for x, y in ((values, column), (_ranks(values), _ranks(column)))
            )
            if max(line, order) >= _SEEN_VALUES:
                return f"their correlation is {max(line, order):.4f}{' by rank' if order > line else ''}"
    return ""


def _class_given_away(values: Array, targets: Ints, places: Ints, codes: Ints) -> str:
    number = int(targets.max()) + 1
    seen = places >= 0
    taught, held = targets[::2], targets[1::2][seen]
    counts = np.zeros((int(codes.max()) + 1, number), dtype=np.int32)
    np.add.at(counts, (codes, taught), 1)
    usual = int(np.bincount(taught).argmax())
    said = counts.argmax(1)[places[seen]]
    right, base = float((said == held).mean()), float((held == usual).mean())
    if right >= _SEEN and 1 - right <= 0.1 * (1 - base):
        return (
            f"its value, or the nearest one, tells the class of {100 * right:.1f} % of the rows that were held out "
            f"(the most frequent class: {100 * base:.1f} %)"
        )
    shares = np.bincount(targets)
    if values.dtype != object and np.count_nonzero(shares) == 2 and shares[shares > 0].min() >= 10:
        area = _area(values, targets == targets.max())
        if area >= _SEEN:
            return f"it tells the two classes apart with an area under the curve of {area:.4f}"
    return ""


def _nearest(known: Array, judged: Array) -> tuple[Ints, Ints]:
    """Return the code of the known value nearest to each judged one, -1 for none, and the known values' codes."""
    if known.dtype == object:
        place = {value: code for code, value in enumerate(dict.fromkeys(known.tolist()))}
        codes = np.array([place[value] for value in known], dtype=np.int64)
        return np.array([place.get(value, -1) for value in judged], dtype=np.int64), codes
    different, codes = np.unique(known, return_inverse=True)
    after = np.searchsorted(different, judged).clip(1, max(1, len(different) - 1))
    before = after - 1
    after = after.clip(0, len(different) - 1)
    nearer = np.where(judged - different[before] <= different[after] - judged, before, after)
    return nearer, codes.reshape(-1)


def _to_unit(values: Array) -> Array:
    """Return numbers divided by the largest, so that their squares exist."""
    return np.asarray(values / max(np.abs(values).max(initial=0), np.finfo(np.float64).tiny))


def _ranks(values: Array) -> Array:
    """Return the rank of each value, from 1; equal values share theirs."""
    _, codes, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks: Array = (np.cumsum(counts) - (counts - 1) / 2)[codes.reshape(-1)]
    return ranks


def _area(values: Array, positive: Array) -> float:
    """Return the area under the curve of the values, 0.5 to 1, equal values counted half."""
    ranks = _ranks(values)
    pairs = float(positive.sum()) * float((~positive).sum())
    area = float(ranks[positive].sum() - positive.sum() * (positive.sum() + 1) / 2) / pairs
    return max(area, 1 - area)


def merged_values(values: Array) -> tuple[Finding, ...]:
    """Say how many different regression targets of the train split 32-bit floats cannot tell apart."""
    lost = 0 if values.ndim > 1 else merged(Column("target"), values)
    if not lost:
        return ()
    text = (
        f"the targets of train are {len(np.unique(values)):,} different numbers, {lost:,} of which 32-bit floats "
        f"cannot tell from their neighbours: models learn them as equal. Leave data.standardise_targets on."
    )
    return (Finding("warning", "merged-targets", text, lost),)
