"""Every number, in a number format."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from potstill.core.errors import UsageError
from potstill.store.codecs.codec import Codec, Facts
from potstill.store.codecs.records import BadItem, Bytes, Floats, Keys, Records, fixed, numbers_in

Dtype = Literal["float32", "float16", "bfloat16", "int8", "uint8", "int32"]
_SIZES = {"float32": 4, "float16": 2, "bfloat16": 2, "int8": 1, "uint8": 1, "int32": 4}
_PLAIN = {"float32": "<f4", "float16": "<f2", "uint8": "|u1", "int32": "<i4"}
# Significant bits of a number: what has more of them than were recorded pretends.
_BITS = {"float32": 24, "float16": 11, "bfloat16": 8, "int8": 7}
_SCALE = 4  # bytes
_ENDS = {"float16": 65520.0, "bfloat16": 3.3961775e38}  # from here on the nearest number is infinity


@dataclass(frozen=True)
class Full:
    """Keep every number.

    When to use it: for few classes, for features and for everything that is no distribution. For a vocabulary it costs
    hundreds of kilobytes a token.

    Attributes:
        dtype: "float32" keeps the bits; "float16" 11 significant ones, up to 65504; "bfloat16" 8, in float32's range;
            "int8" steps of 1/127 of the item's largest number, exact to half a step; "uint8" and "int32" are for
            integers, such as the bytes of a text and the ids of tokens, and are decoded to integers.

    """

    dtype: Dtype = "float16"
    name: ClassVar[str] = "full"

    def __post_init__(self) -> None:
        if self.dtype not in get_args(Dtype):
            raise UsageError(f"dtype={self.dtype!r} must be one of {', '.join(get_args(Dtype))}.")

    @property
    def facts(self) -> Facts:
        """What is known of the records."""
        return Facts("all {} numbers", plain=_PLAIN.get(self.dtype))

    def width(self, shape: tuple[int, ...]) -> int:
        """Return the bytes of a record of an item of this shape."""
        return numbers_in(shape) * _SIZES[self.dtype] + (_SCALE if self.dtype == "int8" else 0)

    def encode(self, values: np.ndarray[Any, Any], keys: Keys | None = None) -> Records:  # noqa: ARG002
        """Return the records of (n, ...) numbers; ``keys`` are not read.

        Raises:
            BadItem: a number is not finite, or too large for the format, or not an integer where integers are kept.

        """
        rows = np.ascontiguousarray(values).reshape(len(values), numbers_in(values.shape[1:]))
        if self.dtype in ("uint8", "int32"):
            return Records(_integers(rows, self.dtype))
        numbers = np.ascontiguousarray(rows, dtype="<f4")
        if not np.isfinite(largest := np.abs(numbers).max(initial=0.0)):
            _refuse(numbers, ~np.isfinite(numbers), "holds {}; only finite numbers can be kept.")
        if self.dtype == "int8":
            return Records(_steps(numbers))
        if self.dtype == "float32":
            return Records(_bytes(numbers))
        if largest >= _ENDS[self.dtype]:
            shown = "65504" if self.dtype == "float16" else "3.39e38"
            reason = f"reaches {{}}, {self.dtype} ends at {shown}; set store.dtype to float32."
            _refuse(numbers, np.abs(numbers) >= _ENDS[self.dtype], reason)
        # torch rounds several times faster than NumPy, and knows bfloat16
        small = torch.tensor(numbers).to(getattr(torch, self.dtype)).view(torch.int16).numpy()
        return Records(_bytes(small))

    def decode(self, records: Records, shape: tuple[int, ...]) -> Tensor:
        """Return (n, *shape): float32, or the integers of "uint8" and "int32"."""
        data = fixed(records, self.width(shape), self.name)
        size = (len(data), *shape)
        if self.dtype == "int8":
            scales = torch.from_numpy(data[:, :_SCALE].copy().view("<f4"))
            steps = torch.from_numpy(data[:, _SCALE:].copy().view(np.int8))
            return (steps.float() * scales).view(size)
        if self.dtype == "bfloat16":
            return torch.from_numpy((data.view("<u2").astype("<u4") << 16).view("<f4")).view(size)
        found = torch.from_numpy(data if data.flags.writeable else data.copy())
        if self.dtype == "uint8":
            return found.view(size)
        kind = {"float32": torch.float32, "float16": torch.float16, "int32": torch.int32}[self.dtype]
        found = found.view(-1).view(kind).view(size)
        return found if self.dtype == "int32" else found.float()

    def becomes(self, new: Codec) -> str | None:
        """Return why its records cannot be made into those of another codec; None where they can."""
        if self.dtype not in _BITS:
            return "which are integers: they stay as they are."
        if isinstance(new, Full) and new.dtype not in _BITS:
            return f"which are no integers: {new.dtype} cannot keep them."
        if isinstance(new, Full) and _BITS[new.dtype] > _BITS[self.dtype]:
            return f"and {new.dtype} would pretend digits that were not recorded."
        return None

    def to_json(self) -> dict[str, Any]:
        """Return the codec as plain data."""
        return {"codec": self.name, "dtype": self.dtype}


def _bytes(numbers: np.ndarray[Any, Any]) -> Bytes:
    return numbers.view(np.uint8).reshape(len(numbers), numbers.shape[1] * numbers.itemsize)


def _refuse(numbers: np.ndarray[Any, Any], bad: np.ndarray[Any, np.dtype[np.bool_]], reason: str) -> None:
    if bad.any():
        row = int(np.flatnonzero(bad.any(axis=1))[0])
        raise BadItem(row, reason.format(f"{float(numbers[row][bad[row]][0]):g}"))


def _integers(rows: np.ndarray[Any, Any], dtype: Literal["uint8", "int32"]) -> Bytes:
    kind = np.dtype("u1" if dtype == "uint8" else "<i4")
    limits = np.iinfo(kind)
    inside = (rows >= limits.min) & (rows <= limits.max)
    if rows.dtype.kind == "f":
        inside &= rows == np.floor(rows)
    _refuse(rows, ~inside, f"holds {{}}; {dtype} keeps integers from {limits.min} to {limits.max}.")
    return _bytes(np.ascontiguousarray(rows, dtype=kind))


def _steps(numbers: Floats) -> Bytes:
    """Return scale (float32) and int8 steps of each row."""
    scales = (np.abs(numbers).max(axis=1, initial=0.0) / np.float32(127)).astype("<f4")
    steps = np.zeros(numbers.shape, np.float32)
    np.divide(numbers, scales[:, None], out=steps, where=scales[:, None] > 0)
    whole = np.clip(np.rint(steps), -127, 127).astype(np.int8)
    return np.concatenate((scales[:, None].view(np.uint8), whole.view(np.uint8)), axis=1)
