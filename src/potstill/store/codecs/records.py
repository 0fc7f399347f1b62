"""What codecs turn numbers into, and back: bytes of items, and a few probabilities of each item.

An *item* is the signal of one sample, or of one token of a text. Shape legend: n items, k kept classes, c classes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from potstill.core.errors import PotstillError, UsageError

Floats = np.ndarray[Any, np.dtype[np.float32]]
Doubles = np.ndarray[Any, np.dtype[np.float64]]
Integers = np.ndarray[Any, np.dtype[np.int64]]
Bytes = np.ndarray[Any, np.dtype[np.uint8]]
Shorts = np.ndarray[Any, np.dtype[np.uint16]]
Keys = np.ndarray[Any, np.dtype[np.uint64]]

LEAST_PROBABILITY = 1e-12
"""What a class gets at least where probabilities are decoded to log-probabilities of every class."""


class BadItem(PotstillError):  # noqa: N818  (like StopIteration, it tells a caller where something happened)
    """One item cannot be kept. ``index`` is its place among the items that were passed, ``reason`` says why."""

    def __init__(self, index: int, reason: str) -> None:
        super().__init__(f"Item {index} {reason}")
        self.index = index
        self.reason = reason


@dataclass(frozen=True)
class Records:
    """The bytes of some items.

    Attributes:
        data: uint8. (n, width) where all records have one width, else (total bytes,), one record after the other.
        lengths: None where all records have one width, else (n,) uint16, the bytes of each.

    """

    data: Bytes
    lengths: Shorts | None = None

    def __len__(self) -> int:
        return len(self.data if self.lengths is None else self.lengths)


@dataclass(frozen=True)
class Sparse:
    """Some probabilities of each item, as the losses in `losses.sequence_sparse` take them.

    Attributes:
        ids: (n, k) int64 classes. Entries that an item does not need have probability 0.
        probabilities: (n, k) float32.
        tail: "bucket" where the rest of the probability lies on the other classes; "none" where the entries are
            samples that stand for the whole distribution and sum to 1. Samples may name a class more than once.
        num_classes: how many classes there are.

    """

    ids: Tensor
    probabilities: Tensor
    tail: str
    num_classes: int

    def __len__(self) -> int:
        return len(self.ids)

    def dense(self) -> Tensor:
        """Return log-probabilities (n, c), float32.

        With ``tail="bucket"`` what the entries lack is spread evenly over the other classes. With ``tail="none"`` the
        other classes have no probability. Nothing is below ``log(LEAST_PROBABILITY)``, so that losses stay finite.
        """
        shape = (len(self), self.num_classes)
        named = torch.zeros(shape).scatter_add_(1, self.ids, self.probabilities)
        if self.tail == "bucket" and self.ids.shape[1] < self.num_classes:
            rest = (1 - self.probabilities.double().sum(1, keepdim=True)).clamp_min_(0).float()
            share = rest / (self.num_classes - self.ids.shape[1])
            named = share.expand(shape).scatter(1, self.ids, self.probabilities)
        return named.clamp_min_(LEAST_PROBABILITY).log_()


def numbers_in(shape: tuple[int, ...]) -> int:
    """Return how many numbers an item of this shape has."""
    return math.prod(shape)


def classes_in(shape: tuple[int, ...], codec: str) -> int:
    """Return the number of classes of items of this shape, or refuse items that are not one distribution each."""
    if len(shape) != 1 or shape[0] < 2:
        raise UsageError(
            f"The codec {codec} keeps items of shape (classes,) with at least 2 classes, not {shape}. Record sequences "
            "token by token, and other signals with the codec full."
        )
    return shape[0]


def fixed(records: Records, width: int, codec: str) -> Bytes:
    """Return the bytes (n, width) of records that all have this width, contiguous."""
    if records.lengths is not None or records.data.ndim != 2 or records.data.shape[1] != width:
        raise PotstillError(
            f"Records of the codec {codec} have {width} bytes each here; these have shape {records.data.shape}. The "
            "codec or the shape is not the one they were written with."
        )
    return np.ascontiguousarray(records.data)
