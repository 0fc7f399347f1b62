"""Hidden states on a few directions, and logits made from them again.

A vocabulary's logits are a matrix of rank h, the width of the layer in front of the last one. Its states, reduced to
`rank` numbers, and the head's weights hold all that the logits say up to the reduction.
Shape legend: n items, h hidden width, r rank, v classes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from potstill.core.errors import UsageError
from potstill.store.codecs.codec import Codec, Facts
from potstill.store.codecs.full import Full
from potstill.store.codecs.records import Doubles, Floats, Keys, Records


@dataclass(frozen=True)
class LowRank:
    """Keep the ``rank`` coefficients of a hidden state.

    When to use it: where the teacher's last layer is linear and every loss and temperature is to work, as with whole
    logits. Reading costs a matrix product of ``rank`` by classes for each item, and the basis and the head's weights
    lie beside the store.

    Items are coefficients (rank,) that `project` makes; `rebuild` makes logits of what `decode` returns.

    Attributes:
        rank: numbers kept of each item, at most the hidden width.
        dtype: how each is kept, as in `Full`.
        layer: the teacher's last linear layer; found when absent. Not written beside the records.

    """

    rank: int
    dtype: Literal["float32", "float16", "bfloat16", "int8"] = "float16"
    layer: str | None = field(default=None, compare=False)
    name: ClassVar[str] = "low_rank"

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise UsageError(f"rank={self.rank} must be at least 1.")
        if self.dtype not in ("float32", "float16", "bfloat16", "int8"):
            raise UsageError(f"dtype={self.dtype!r} must be float32, float16, bfloat16 or int8.")

    @property
    def facts(self) -> Facts:
        """What is known of the records."""
        words = "a hidden state in few numbers, which makes all logits again"
        return Facts(words, reduced=self.rank, layer=self.layer)

    def width(self, shape: tuple[int, ...]) -> int:
        """Return the bytes of a record of an item of ``(rank,)``."""
        if shape != (self.rank,):
            raise UsageError(f"The codec low_rank keeps items of shape ({self.rank},), not {shape}: see project().")
        return Full(self.dtype).width(shape)

    def encode(self, values: Floats, keys: Keys | None = None) -> Records:
        """Return the records of coefficients (n, rank); ``keys`` are not read. Raises `BadItem` as `Full` does."""
        self.width(values.shape[1:])
        return Full(self.dtype).encode(values, keys)

    def decode(self, records: Records, shape: tuple[int, ...]) -> Tensor:
        """Return coefficients (n, rank), float32."""
        self.width(shape)
        return Full(self.dtype).decode(records, shape)

    def becomes(self, new: Codec) -> str | None:  # noqa: ARG002
        """Return why its records cannot be made into those of another codec."""
        return "which needs the teacher's own layer: record the teacher again."

    def to_json(self) -> dict[str, Any]:
        """Return the codec as plain data."""
        return {"codec": self.name, "rank": self.rank, "dtype": self.dtype}


class Basis(NamedTuple):
    """A hidden state in few numbers and back: ``(hidden - mean) @ into`` and ``mean + coefficients @ back``."""

    mean: Floats  # (h,)
    into: Floats  # (h, r)
    back: Floats  # (r, h)


def fit_basis(hidden: Floats, rank: int, weight: Floats | None = None) -> Basis:
    """Return the directions that lose least of some hidden states, in the sense of squares.

    When to use it: once, on a probe set of at least a few times h items, before recording.

    Args:
        hidden: (n, h) states of the probe set.
        rank: directions, at most h.
        weight: (v, h) the head's weight. With it the error of the logits is made least, not that of the states. A
            number added to all logits of an item changes no probability and does not count.

    Returns:
        The basis, float32.

    Raises:
        UsageError: more directions are asked for than h.

    """
    width = hidden.shape[1]
    if not 1 <= rank <= width:
        raise UsageError(f"rank={rank} must be from 1 to {width}, the width of the hidden states.")
    states: Doubles = hidden.astype(np.float64)
    mean = states.mean(axis=0)
    away = states - mean
    # columns of `metric`: lengths in the space whose error counts
    metric, inverse = (np.eye(width), np.eye(width)) if weight is None else _metric(weight)
    directions = np.linalg.eigh(metric.T @ (away.T @ away) @ metric)[1][:, ::-1][:, :rank]
    return Basis(
        mean.astype(np.float32),
        (metric @ directions).astype(np.float32),
        (directions.T @ inverse).astype(np.float32),
    )


def project(hidden: Floats, basis: Basis) -> Floats:
    """Return the coefficients (n, r) of hidden states (n, h)."""
    return ((hidden - basis.mean) @ basis.into).astype(np.float32, copy=False)


def rebuild(coefficients: Tensor, basis: Basis, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return logits (n, v) of coefficients (n, r), with the head's weight (v, h) and bias (v,).

    The head is reduced first, so that an item costs a product of r by v: `reduced_head` does it once for many calls.
    """
    reduced, offset = reduced_head(basis, weight, bias)
    return coefficients @ reduced.T + offset


def reduced_head(basis: Basis, weight: Tensor, bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return a weight (v, r) and a bias (v,) that make logits of coefficients: all that has to lie beside a store."""
    offset = weight @ torch.from_numpy(basis.mean)
    return weight @ torch.from_numpy(basis.back).T, offset if bias is None else offset + bias


def _metric(weight: Floats) -> tuple[Doubles, Doubles]:
    """Return a root of the centred head's Gram matrix (h, h) and its inverse, without directions that it ignores."""
    centred = weight - weight.mean(axis=0, dtype=np.float64)
    sizes, vectors = np.linalg.eigh(centred.T @ centred)
    sizes = np.maximum(sizes, sizes[-1] * 1e-12)
    return vectors * np.sqrt(sizes), (vectors / np.sqrt(sizes)).T
