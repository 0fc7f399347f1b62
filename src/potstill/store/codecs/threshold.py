"""Large probabilities as they are, the tail sampled with one weight.

Shape legend: n items, m kept classes (``size``), c classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from potstill.core.errors import UsageError
from potstill.core.random import uniform
from potstill.store.codecs import distributions
from potstill.store.codecs.bits import ids_width, pack, pack_ids, packed_width, unpack, unpack_ids
from potstill.store.codecs.codec import SAMPLED, Codec, Facts
from potstill.store.codecs.records import Doubles, Floats, Integers, Keys, Records, Shorts, Sparse, classes_in, fixed

_HEADER = 2
_FINENESS = 2048.0  # steps of the threshold's logarithm, base 2
_NO_TAIL = 65535
_SAMPLED, _ZERO, _LEAST = 0, 1, 2  # codes; the highest code marks the class that gets the rest


@dataclass(frozen=True)
class ThresholdSampling:
    """Keep exactly ``size`` classes: the likeliest with their probabilities, the others sampled with equal weight.

    When to use it: for language models and other large vocabularies, trained with forward KL or soft cross-entropy,
    where every record is to have one width and reading is to be fast. Their expected gradient is that of the whole
    distribution, as with `RandomSampling`; for the same number of classes the noise is less, for the same bytes
    systematic `RandomSampling` has less. Other losses are biased, and so is a temperature other than 1 afterwards.

    The threshold τ solves Σ min(1, p_i / τ) = size. Classes of at least τ are kept. The others are sampled
    systematically, in order of their ids: one random start, then steps of τ through their added up probabilities.
    Class i is taken with probability p_i / τ and then stands for τ.

    Kept probabilities lie on a grid of ``2^bits - 3`` levels, τ to ½, even in their logarithms. Each is rounded up or
    down at random so that its expectation is right. The likeliest class is not stored: it gets what the others lack to
    1, so every record sums to 1. Its expectation is right too, and what it takes over is at most the width of one step
    at the second likeliest class.

    Attributes:
        size: classes kept, at most as many as there are.
        bits: bits of a kept probability, 4 to 16. More than 5 did not make any measured gradient better.

    Deviations: samples in order of id have pairs of neighbours less often than independent ones (the expectation does
    not depend on it); a random order of 50,000 classes for each token would cost more than everything else together.

    """

    size: int = 16
    bits: int = 8
    name: ClassVar[str] = "threshold"
    facts: ClassVar[Facts] = Facts("the likeliest and some drawn of {} classes", samples=True)

    def __post_init__(self) -> None:
        if not 1 <= self.size <= 1024:
            raise UsageError(f"size={self.size} must be from 1 to 1024.")
        if not 4 <= self.bits <= 16:
            raise UsageError(f"bits={self.bits} must be from 4 to 16.")

    def width(self, shape: tuple[int, ...]) -> int:
        """Return the bytes of a record of an item of ``(classes,)``."""
        return _HEADER + packed_width(self.size, self.bits) + ids_width(self.size, self._classes(shape))

    def encode(self, values: Floats, keys: Keys) -> Records:
        """Return the records of logits (n, classes), sampled with the randomness of ``keys`` (n,).

        Raises:
            BadItem: a logit is not a number or plus infinity, or all of an item are minus infinity.

        """
        width = self.width(values.shape[1:])
        if len(values) == 0:
            return Records(np.zeros((0, width), np.uint8))
        chosen = [
            self._choose(logits, keys[start : start + len(logits)], start)
            for start, logits in distributions.chunks(values, self.size)
        ]
        stored, codes, ids = (np.concatenate(parts) for parts in zip(*chosen, strict=True))
        order = np.argsort(ids, axis=1, kind="stable")
        ids, codes = np.take_along_axis(ids, order, axis=1), np.take_along_axis(codes, order, axis=1)
        parts = (stored[:, None].view(np.uint8), pack(codes, self.bits), pack_ids(ids, values.shape[1]))
        return Records(np.concatenate(parts, axis=1))

    def decode(self, records: Records, shape: tuple[int, ...]) -> Tensor:
        """Return log-probabilities (n, classes); classes that were not taken have ``log(LEAST_PROBABILITY)``."""
        return self.decode_sparse(records, shape).dense()

    def decode_sparse(self, records: Records, shape: tuple[int, ...]) -> Sparse:
        """Return the classes and what each stands for."""
        data = fixed(records, self.width(shape), self.name)
        codes_end = _HEADER + packed_width(self.size, self.bits)
        tau = _threshold(data[:, :2].copy().view("<u2").astype(np.float64))
        codes = unpack(data[:, _HEADER:codes_end], self.size, self.bits)
        rest = codes == self._rest
        tau[~rest.any(axis=1)] = 1 / self.size  # nothing reached the threshold: all are samples of equal weight
        first, growth = _grid(tau, self.bits)
        probabilities = first * np.exp((codes - _LEAST) * growth)
        probabilities *= (codes != _ZERO) & ~rest
        probabilities = np.where(codes == _SAMPLED, tau, probabilities)
        probabilities += rest * (1 - probabilities.sum(axis=1, keepdims=True))
        ids = unpack_ids(data[:, codes_end:], self.size, self._classes(shape))
        return Sparse(
            torch.from_numpy(ids), torch.from_numpy(probabilities.astype(np.float32)), "none", self._classes(shape)
        )

    def becomes(self, new: Codec) -> str | None:  # noqa: ARG002
        """Return why its records cannot be made into those of another codec."""
        return SAMPLED

    def to_json(self) -> dict[str, Any]:
        """Return the codec as plain data."""
        return {"codec": self.name, "size": self.size, "bits": self.bits}

    @property
    def _rest(self) -> int:
        return (1 << self.bits) - 1

    def _classes(self, shape: tuple[int, ...]) -> int:
        classes = classes_in(shape, self.name)
        if self.size > classes:
            raise UsageError(
                f"threshold with size={self.size} keeps more classes than the {classes} there are. Choose a smaller "
                "size, or the codec full."
            )
        return classes

    def _choose(self, logits: Floats, keys: Keys, start: int) -> tuple[Shorts, Integers, Integers]:
        """Return the stored threshold (n,), and codes and ids (n, m) in no order."""
        weights = distributions.weights_of(logits, start)
        ids = distributions.likeliest(logits, self.size)
        largest = distributions.take_out(weights, ids)
        sums = distributions.sums_of(weights)
        total = sums.sum(axis=1) + largest.sum(axis=1)
        order = np.argsort(-largest, axis=1, kind="stable")
        ids, largest = np.take_along_axis(ids, order, axis=1), np.take_along_axis(largest, order, axis=1)
        place = np.arange(self.size)
        kept = place < num_kept(largest, total)[:, None]
        distributions.put_back(weights, sums, ids, np.where(kept, 0.0, largest))
        tail = sums.sum(axis=1) / total
        kept |= tail[:, None] == 0  # no tail: the places that are left are for classes of probability 0
        num_sampled = self.size - kept.sum(axis=1)
        tau, stored = _stored(tail / np.maximum(num_sampled, 1), uniform(keys, 0))
        steps = np.maximum(place - (self.size - num_sampled)[:, None], 0) + uniform(keys, 1)[:, None]
        drawn = distributions.draw(weights, sums, steps / np.maximum(num_sampled, 1)[:, None])
        ids = np.where(kept, ids, drawn)
        codes = self._codes(np.where(kept, largest, 0.0) / total[:, None], kept, tau, uniform(keys, 2))
        return stored, codes, ids

    def _codes(self, probabilities: Doubles, kept: np.ndarray[Any, Any], tau: Doubles, start: Doubles) -> Integers:
        """Return codes (n, m) of probabilities in descending order, each rounded so that its expectation is right.

        Roundings are drawn systematically too: of values in descending order, the errors of any number of first ones
        add up to at most the largest step. So the likeliest class, which takes them over, stays positive.
        """
        first, growth = _grid(tau[:, None], self.bits)
        found = np.maximum(probabilities, np.finfo(np.float64).tiny)
        level = np.clip(np.floor(np.log(found / first) / growth), -1, 2**self.bits - 5)
        low = np.where(level < 0, 0.0, first * np.exp(level * growth))
        high = first * np.exp((level + 1) * growth)
        part = np.clip((probabilities - low) / (high - low), 0.0, 1.0)
        part[:, 0] = 0.0
        sums = np.floor(start[:, None] + part.cumsum(axis=1))
        up = np.diff(sums, axis=1, prepend=0.0)
        codes = np.where(kept, level + up + _LEAST, _SAMPLED)
        codes[:, 0] = np.where(kept[:, 0], self._rest, _SAMPLED)
        return codes.astype(np.int64)


def num_kept(largest: Doubles, total: Doubles) -> Integers:
    """Return how many (n,) of the largest weights (n, m), descending, reach the threshold of m classes.

    With K classes kept the others have τ = (their sum) / (m - K); K is the smallest number for which the next class is
    below τ. At most m - 1, also where the others have no weight at all.
    """
    m = largest.shape[1]
    before = np.concatenate((np.zeros((len(largest), 1)), largest.cumsum(axis=1)[:, :-1]), axis=1)
    below = largest * (m - np.arange(m)) < total[:, None] - before
    below[:, -1] = True
    count: Integers = below.argmax(axis=1)
    return count


def _threshold(stored: Doubles) -> Doubles:
    """Return τ of the stored 16 bits (n, 1)."""
    return np.where(stored == _NO_TAIL, 0.0, np.exp2(-stored / _FINENESS))


def _stored(tau: Doubles, draw: Doubles) -> tuple[Doubles, Shorts]:
    """Return τ (n,) rounded at random with the right expectation, and its 16 bits."""
    exact = -_FINENESS * np.log2(np.maximum(tau, 2.0**-40))
    lower = np.clip(np.floor(exact), 0, _NO_TAIL - 1)
    above, below = _threshold(lower), _threshold(lower + 1)
    code = lower + (draw >= (tau - below) / (above - below))
    return _threshold(code), code.astype("<u2")


def _grid(tau: Doubles, bits: int) -> tuple[Doubles, Doubles]:
    """Return the lowest level and the logarithm of the ratio of neighbours; the highest level is ½."""
    levels = 2**bits - 3
    first = np.clip(tau, 2.0 ** -min(32, levels), 0.25)
    return first, np.log(0.5 / first) / (levels - 1)
