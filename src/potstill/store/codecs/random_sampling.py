"""Classes drawn from the teacher's distribution."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from potstill.core.errors import PotstillError, UsageError
from potstill.core.random import uniform
from potstill.store.codecs import distributions
from potstill.store.codecs.bits import ids_width, pack_ids, packed_width, unpack_ids
from potstill.store.codecs.codec import SAMPLED, Codec, Facts
from potstill.store.codecs.records import Doubles, Floats, Integers, Keys, Records, Sparse, classes_in


@dataclass(frozen=True)
class RandomSampling:
    """Draw classes with replacement, and keep which ones came and how often.

    When to use it: for language models and other large vocabularies, trained with forward KL or soft cross-entropy. The
    expected target and with these losses the expected gradient are those of the whole distribution; other losses are
    biased, and so is a temperature other than 1 afterwards.

    Records have different lengths: a class that comes often is kept once. `ThresholdSampling` has records of one width,
    which are read faster.

    Attributes:
        draws: classes drawn for each item, 1 to 4096.
        systematic: False draws each class independently, as in the paper. True draws at even distances from one random
            start through the probabilities added up in order of id: every class comes as often as expected, rounded
            down or up. That is unbiased too and has much less noise.

    Paper: Anshumann, Mohd Abbas Zaidi, Akhil Kedia, Jinwoo Ahn, Taehwak Kwon, Kangwook Lee, Haejun Lee, Joohyung Lee:
    Sparse Logit Sampling: Accelerating Knowledge Distillation in LLMs, 2025, arXiv:2503.16870. Drawn from the
    distribution itself, the paper's sampling temperature 1. Systematic draws are not in the paper.

    """

    draws: int = 50
    systematic: bool = False
    name: ClassVar[str] = "random"
    facts: ClassVar[Facts] = Facts("classes drawn from {}", samples=True, varies=True)

    def __post_init__(self) -> None:
        if not 1 <= self.draws <= 4096:
            raise UsageError(f"draws={self.draws} must be from 1 to 4096.")

    def width(self, shape: tuple[int, ...]) -> int:
        """Return the bytes of the longest record of an item of ``(classes,)``, every draw being another class."""
        classes = classes_in(shape, self.name)
        return packed_width(self.draws, 1) + ids_width(min(self.draws, classes), classes)

    def encode(self, values: Floats, keys: Keys) -> Records:
        """Return the records of logits (n, classes), drawn with the randomness of ``keys`` (n,).

        Raises:
            BadItem: a logit is not a number or plus infinity, or all of an item are minus infinity.

        """
        classes = classes_in(values.shape[1:], self.name)
        n = len(values)
        drawn = np.zeros((n, self.draws), np.int64)
        for start, logits in distributions.chunks(values, self.draws):
            part = slice(start, start + len(logits))
            positions = self._positions(keys[part])
            weights = distributions.weights_of(logits, start)
            drawn[part] = distributions.draw(weights, distributions.sums_of(weights), positions)
        drawn.sort(axis=1)
        # the last of equal draws is marked: the marks tell how many classes came, and how often each
        marks = np.ones((n, self.draws), np.bool_)
        marks[:, :-1] = drawn[:, 1:] != drawn[:, :-1]
        counts = np.packbits(marks, axis=1, bitorder="little")
        num_different = marks.sum(axis=1)
        lengths = self._lengths(num_different, classes)
        starts = np.cumsum(lengths) - lengths
        data = np.zeros(int(lengths.sum()), np.uint8)
        for number in np.unique(num_different):
            rows = np.flatnonzero(num_different == number)
            ids = drawn[rows][marks[rows]].reshape(len(rows), number)
            record = np.concatenate((counts[rows], pack_ids(ids, classes)), axis=1)
            data[starts[rows, None] + np.arange(record.shape[1])] = record
        return Records(data, lengths.astype(np.uint16))

    def decode(self, records: Records, shape: tuple[int, ...]) -> Tensor:
        """Return log-probabilities (n, classes); classes that were not drawn have ``log(LEAST_PROBABILITY)``."""
        return self.decode_sparse(records, shape).dense()

    def decode_sparse(self, records: Records, shape: tuple[int, ...]) -> Sparse:
        """Return the drawn classes and how often each came, divided by ``draws``."""
        classes = classes_in(shape, self.name)
        if records.lengths is None:
            raise PotstillError("Records of the codec random need their lengths.")
        n, head = len(records), packed_width(self.draws, 1)
        lengths = records.lengths.astype(np.int64)
        starts = np.cumsum(lengths) - lengths
        marks = np.unpackbits(
            records.data[starts[:, None] + np.arange(head)], axis=1, count=self.draws, bitorder="little"
        ).view(np.bool_)
        num_different = marks.sum(axis=1)
        if not np.array_equal(self._lengths(num_different, classes), lengths):
            raise PotstillError(
                f"Records of the codec random do not fit draws={self.draws} and {classes} classes: not the codec "
                "or the shape that they were written with."
            )
        most = int(num_different.max(initial=1))
        used = np.arange(most) < num_different[:, None]
        ids = np.zeros((n, most), np.int64)
        for number in np.unique(num_different):
            rows = np.flatnonzero(num_different == number)
            body = records.data[starts[rows, None] + head + np.arange(ids_width(int(number), classes))]
            ids[rows, :number] = unpack_ids(body, int(number), classes)
        lasts = np.full((n, most), -1, np.int64)
        lasts[used] = np.nonzero(marks)[1]
        counts = np.where(used, np.diff(lasts, axis=1, prepend=-1), 0)
        probabilities = counts.astype(np.float32) / np.float32(self.draws)
        return Sparse(torch.from_numpy(ids), torch.from_numpy(probabilities), "none", classes)

    def becomes(self, new: Codec) -> str | None:  # noqa: ARG002
        """Return why its records cannot be made into those of another codec."""
        return SAMPLED

    def to_json(self) -> dict[str, Any]:
        """Return the codec as plain data."""
        return {"codec": self.name, "draws": self.draws, "systematic": self.systematic}

    def _positions(self, keys: Keys) -> Doubles:
        """Return (n, draws) from 0 to 1: where in the added up probabilities the draws lie."""
        if self.systematic:
            return (uniform(keys, 0)[:, None] + np.arange(self.draws)) / self.draws
        return uniform(keys[:, None], np.arange(self.draws))

    def _lengths(self, num_different: Integers, classes: int) -> Integers:
        widths = [0, *(ids_width(number, classes) for number in range(1, int(num_different.max(initial=1)) + 1))]
        return packed_width(self.draws, 1) + np.array(widths, np.int64)[num_different]
