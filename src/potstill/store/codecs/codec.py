"""What every codec says of itself and does: nobody outside this folder asks which one it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
from torch import Tensor

from potstill.store.codecs.records import Keys, Records

SAMPLED = "which are samples: nothing else can be made of them. Record the teacher again."


@dataclass(frozen=True)
class Facts:
    """What is known of records without looking at any.

    Attributes:
        words: what they keep of an item; ``{}`` stands for how many numbers it has.
        samples: whether they were drawn, with the randomness of keys.
        varies: whether records differ in length.
        plain: the number format, as NumPy names it, where they are plain numbers to any program that reads .npy files.
        reduced: how many numbers stand for the logits of an item, where a head beside the store makes logits of them.
        layer: the teacher's layer that reads what is reduced, where the recipe names it.

    """

    words: str
    samples: bool = False
    varies: bool = False
    plain: str | None = None
    reduced: int | None = None
    layer: str | None = None

    @property
    def integers(self) -> bool:
        """Whether numbers are kept, and read, as integers."""
        return self.plain is not None and np.dtype(self.plain).kind in "iu"


class Codec(Protocol):
    """Frozen settings, and how they turn items into bytes and back. Those with a short list of classes for each item
    also have ``decode_sparse(records, shape) -> Sparse``.
    """

    __dataclass_fields__: ClassVar[dict[str, Any]]
    name: ClassVar[str]

    @property
    def facts(self) -> Facts:
        """What is known of the records."""

    def width(self, shape: tuple[int, ...]) -> int:
        """Return the bytes of a record of an item of this shape; of the longest where they differ."""

    def encode(self, values: np.ndarray[Any, Any], keys: Keys) -> Records:
        """Return the records of (n, ...) numbers; raises `BadItem` for what cannot be kept."""

    def decode(self, records: Records, shape: tuple[int, ...]) -> Tensor:
        """Return (n, ...) numbers, logits or log-probabilities."""

    def becomes(self, new: Codec) -> str | None:
        """Return why its records cannot be made into those of another codec; None where they can."""

    def to_json(self) -> dict[str, Any]:
        """Return the codec as plain data: its name and its settings."""
