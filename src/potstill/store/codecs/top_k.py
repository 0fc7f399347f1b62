"""The likeliest classes, and the probability of all others together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from potstill.core.errors import UsageError
from potstill.store.codecs import distributions
from potstill.store.codecs.bits import ids_width, pack, pack_ids, packed_width, unpack, unpack_ids
from potstill.store.codecs.codec import Codec, Facts
from potstill.store.codecs.records import (
    BadItem,
    Bytes,
    Doubles,
    Floats,
    Integers,
    Keys,
    Records,
    Sparse,
    classes_in,
    fixed,
)

_RANGE = 32.0  # nats; less likely than e^-32 of the likeliest is kept as e^-32 of it
_HEADER = 6


@dataclass(frozen=True)
class TopK:
    """Keep the ids and log-probabilities of the ``k`` likeliest classes, and the others' probability in one number.

    When to use it: where a loss other than forward KL needs a target that is the same every time, or where almost all
    probability lies on a few classes. It is biased: a student does not learn where the rest belongs. For language
    models `RandomSampling` and `ThresholdSampling` give better gradients from a fraction of the bytes.

    Log-probabilities are kept in ``2^bits - 1`` even steps from the likeliest class's down to that of the k-th. The sum
    of the kept probabilities is kept to 7 digits, and decoding scales them to it. A decoded log-probability is off by
    at most one step, the range divided by ``2^bits - 2``: with 8 bits, 0.03 nats for a range of 8 nats.

    Attributes:
        k: classes kept, at most as many as there are.
        bits: bits of a log-probability, 2 to 16.

    """

    k: int
    bits: int = 8
    name: ClassVar[str] = "top_k"
    facts: ClassVar[Facts] = Facts("the likeliest of {} classes")

    def __post_init__(self) -> None:
        if self.k < 1:
            raise UsageError(f"k={self.k} must be at least 1.")
        if not 2 <= self.bits <= 16:
            raise UsageError(f"bits={self.bits} must be from 2 to 16.")

    def width(self, shape: tuple[int, ...]) -> int:
        """Return the bytes of a record of an item of ``(classes,)``."""
        classes = self._classes(shape)
        return _HEADER + packed_width(self.k, self.bits) + ids_width(self.k, classes)

    def encode(self, values: Floats, keys: Keys | None = None) -> Records:  # noqa: ARG002
        """Return the records of logits (n, classes); ``keys`` are not read.

        Raises:
            BadItem: a logit is not a number or plus infinity, or all of an item are minus infinity.

        """
        width = self.width(values.shape[1:])
        if len(values) == 0:
            return Records(np.zeros((0, width), np.uint8))
        chosen = [self._choose(logits, start) for start, logits in distributions.chunks(values)]
        odds, below, ids = (np.concatenate(parts) for parts in zip(*chosen, strict=True))
        reach, codes = _quantised(below, self.bits)
        parts = (odds[:, None].view(np.uint8), reach, pack(codes, self.bits), pack_ids(ids, values.shape[1]))
        return Records(np.concatenate(parts, axis=1))

    def encode_sparse(self, sparse: Sparse) -> Records:
        """Return the records of probabilities that somebody else kept; what they lack to 1 belongs to other classes.

        Of more than ``k`` entries the likeliest are taken. Items may have fewer: entries of probability 0 are not read.

        Raises:
            BadItem: an item names a class twice or one that does not exist, or its probabilities are negative, all 0,
                or more than 1 together.

        """
        classes = self._classes((sparse.num_classes,))
        ids, probabilities = sparse.ids.numpy(), sparse.probabilities.numpy().astype(np.float64)
        order = np.argsort(-probabilities, axis=1, kind="stable")[:, : self.k]
        room = ((0, 0), (0, self.k - order.shape[1]))
        ids = np.pad(np.take_along_axis(ids, order, axis=1), room)
        taken = np.pad(np.take_along_axis(probabilities, order, axis=1), room)
        _refuse(ids, taken, probabilities, classes)
        for row in np.flatnonzero((taken == 0).any(axis=1)):  # places that are left take classes that are not named
            free = np.setdiff1d(np.arange(min(classes, 2 * self.k)), ids[row][taken[row] > 0], assume_unique=True)
            ids[row, taken[row] == 0] = free[: int((taken[row] == 0).sum())]
        order = np.argsort(ids, axis=1)
        ids, taken = np.take_along_axis(ids, order, axis=1), np.take_along_axis(taken, order, axis=1)
        kept = taken.sum(axis=1)
        with np.errstate(divide="ignore"):
            odds = np.log(np.maximum(1 - kept, 0) / kept).astype("<f4")
            below = np.log(taken / taken.max(axis=1, keepdims=True))
        reach, codes = _quantised(below, self.bits)
        parts = (odds[:, None].view(np.uint8), reach, pack(codes, self.bits), pack_ids(ids, classes))
        return Records(np.concatenate(parts, axis=1))

    def decode(self, records: Records, shape: tuple[int, ...]) -> Tensor:
        """Return log-probabilities (n, classes), what was not kept spread evenly over the other classes."""
        return self.decode_sparse(records, shape).dense()

    def decode_sparse(self, records: Records, shape: tuple[int, ...]) -> Sparse:
        """Return the kept probabilities; what they lack to 1 belongs to all other classes."""
        data = fixed(records, self.width(shape), self.name)
        codes_end = _HEADER + packed_width(self.k, self.bits)
        odds = data[:, :4].copy().view("<f4").astype(np.float64)
        reach = data[:, 4:6].copy().view("<f2").astype(np.float64)
        codes = unpack(data[:, _HEADER:codes_end], self.k, self.bits)
        levels = 2**self.bits - 1
        below = np.exp((codes - levels) * (reach / (levels - 1))) * (codes > 0)
        kept = 1 / (1 + np.exp(odds))
        probabilities = below * (kept / below.sum(axis=1, keepdims=True))
        ids = unpack_ids(data[:, codes_end:], self.k, self._classes(shape))
        return Sparse(
            torch.from_numpy(ids), torch.from_numpy(probabilities.astype(np.float32)), "bucket", self._classes(shape)
        )

    def becomes(self, new: Codec) -> str | None:
        """Return why its records cannot be made into those of another codec; None where they can."""
        if isinstance(new, TopK) and new.k <= self.k and new.bits <= self.bits:
            return None
        return "and only top_k with at most that k and these bits can be made of it, nothing that says more."

    def to_json(self) -> dict[str, Any]:
        """Return the codec as plain data."""
        return {"codec": self.name, "k": self.k, "bits": self.bits}

    def _classes(self, shape: tuple[int, ...]) -> int:
        classes = classes_in(shape, self.name)
        if self.k > classes:
            raise UsageError(
                f"top_k with k={self.k} keeps more classes than the {classes} there are. Choose a smaller k, or the "
                "codec full."
            )
        return classes

    def _choose(self, logits: Floats, start: int) -> tuple[Floats, Doubles, Integers]:
        """Return the logarithm of the rest's odds (n,), log-probabilities beside the likeliest's, and ids (n, k)."""
        weights = distributions.weights_of(logits, start)
        ids = distributions.likeliest(logits, self.k)
        kept = distributions.take_out(weights, ids).sum(axis=1)
        with np.errstate(divide="ignore"):
            odds = np.log(distributions.sums_of(weights).sum(axis=1) / kept).astype("<f4")
        picked = np.take_along_axis(logits, ids, axis=1).astype(np.float64)
        return odds, picked - picked.max(axis=1, keepdims=True), ids


def _refuse(ids: Integers, taken: Doubles, all_of_them: Doubles, classes: int) -> None:
    ordered = np.sort(np.where(taken > 0, ids, -1), axis=1)
    total = all_of_them.sum(axis=1)
    for bad, reason in (
        (~(all_of_them >= 0).all(axis=1), "has a probability that is negative or not a number."),
        (total <= 0, "has no class with any probability."),
        (total > 1 + 1e-3, "has probabilities that add up to more than 1."),
        (((ids < 0) | (ids >= classes)).any(axis=1), f"names a class that is not one of the {classes}."),
        (((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)).any(axis=1), "names a class twice."),
    ):
        if bad.any():
            raise BadItem(int(np.flatnonzero(bad)[0]), reason)


def _quantised(below: Doubles, bits: int) -> tuple[Bytes, Integers]:
    """Return the range as bytes of float16 (n, 2), and codes (n, k): 0 for probability 0, the highest for the peak."""
    possible = np.isfinite(below)
    least = np.maximum(np.where(possible, below, 0.0).min(axis=1), -_RANGE)
    reach = (-least).astype("<f2")
    reach = np.where(reach < -least, np.nextafter(reach, np.float16(np.inf)), reach).astype("<f2")  # never too short
    levels = 2**bits - 1
    step = np.where(reach > 0, reach.astype(np.float64) / (levels - 1), 1.0)
    codes = np.rint(levels + np.maximum(np.where(possible, below, 0.0), -_RANGE) / step[:, None])
    return reach[:, None].view(np.uint8), np.where(possible, np.maximum(codes, 1), 0).astype(np.int64)
