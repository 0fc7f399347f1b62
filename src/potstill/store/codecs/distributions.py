"""From logits to the weights of classes, the likeliest classes, and classes drawn by weight.

A weight is a probability times a constant of its row. Every row is computed alone: the same logits give the same bytes
in whatever company they come.
Shape legend: n rows, c classes, k kept or drawn classes; weights lie in s spans of equally many classes.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from potstill.store.codecs.records import BadItem, Doubles, Floats, Integers

_SPAN = 128
_NUMBERS_AT_ONCE = 2**19  # 2 MB of logits: what is computed with them stays in the cache


def chunks(logits: Floats, num_drawn: int = 0) -> Iterator[tuple[int, Floats]]:
    """Yield the rows of (n, c) in small contiguous parts, each with the index of its first row.

    ``num_drawn`` classes of each row will be drawn, for each of which a span is looked through.
    """
    classes = logits.shape[1]
    rows = max(1, _NUMBERS_AT_ONCE // max(classes, num_drawn * min(classes, _SPAN)))
    for start in range(0, len(logits), rows):
        yield start, np.ascontiguousarray(logits[start : start + rows], dtype=np.float32)


def weights_of(logits: Floats, start: int) -> Floats:
    """Return weights (n, s, span) of logits (n, c), the largest of a row being 1; what is beyond c has weight 0.

    A logit of minus infinity has weight 0. ``start`` is the index of the first row, for errors.
    """
    n, classes = logits.shape
    peak = logits.max(axis=1, keepdims=True)
    bad = np.flatnonzero(~np.isfinite(peak))
    if len(bad):
        index = int(bad[0])
        raise BadItem(
            start + index,
            "has minus infinity as the logit of every class."
            if np.isneginf(peak[index, 0])
            else "has a logit that is not a number or infinite: a bug of the teacher, or an overflow of its precision.",
        )
    span = min(classes, _SPAN)
    weights = np.zeros((n, -(-classes // span) * span), np.float32)
    inside = weights[:, :classes]
    np.exp(np.subtract(logits, peak, out=inside), out=inside)
    return weights.reshape(n, -1, span)


def likeliest(logits: Floats, k: int) -> Integers:
    """Return the ids (n, k) of the largest logits (n, c), ascending. Of equal logits lower ids come first."""
    n, classes = logits.shape
    least = np.partition(logits, classes - k, axis=1)[:, classes - k, None]
    found = np.flatnonzero(logits >= least)
    if len(found) == n * k:
        found %= classes
        return found.reshape(n, k)
    ids: Integers = np.empty((n, k), np.int64)
    for row in range(n):
        above = np.flatnonzero(logits[row] > least[row])
        equal = np.flatnonzero(logits[row] == least[row])[: k - len(above)]
        ids[row] = np.sort(np.concatenate((above, equal)))
    return ids


def take_out(weights: Floats, ids: Integers) -> Doubles:
    """Return the weights (n, k) of ids (n, k), and set them to 0."""
    flat = weights.reshape(len(weights), -1)
    taken = np.take_along_axis(flat, ids, axis=1).astype(np.float64)
    np.put_along_axis(flat, ids, 0.0, axis=1)
    return taken


def put_back(weights: Floats, sums: Doubles, ids: Integers, taken: Doubles) -> None:
    """Give different ids (n, k) their weights back, in the weights and in the sums of the spans."""
    np.put_along_axis(weights.reshape(len(weights), -1), ids, taken, axis=1)
    np.add.at(sums, (np.arange(len(ids))[:, None], ids // weights.shape[2]), taken)


def sums_of(weights: Floats) -> Doubles:
    """Return the sum (n, s) of each span of weights (n, s, span)."""
    sums: Doubles = weights.sum(axis=2).astype(np.float64)
    return sums


def draw(weights: Floats, sums: Doubles, positions: Doubles) -> Integers:
    """Return the ids (n, k) at positions (n, k) from 0 to 1: where the weights, added up by id, exceed that part.

    ``sums`` are those of the spans. Rows without any weight give ids without meaning.
    """
    n, num_spans, span = weights.shape
    ends = sums.cumsum(axis=1)
    goals = np.minimum(positions * ends[:, -1:], np.nextafter(ends[:, -1:], 0.0))
    places = np.stack([np.searchsorted(ends[row], goals[row], side="right") for row in range(n)])
    places = np.minimum(places, num_spans - 1)
    before = np.where(places > 0, np.take_along_axis(ends, np.maximum(places - 1, 0), axis=1), 0.0)
    inside = weights[np.arange(n)[:, None], places].cumsum(axis=2, dtype=np.float64)
    # rounding may put a goal at the very end of its span: the last class there that has any weight is meant
    rest = np.minimum(goals - before, np.nextafter(inside[:, :, -1], 0.0))
    ids: Integers = places * span + np.minimum((inside <= rest[:, :, None]).sum(axis=2), span - 1)
    return ids
