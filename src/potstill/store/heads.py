"""The arrays beside a store that make logits of the few numbers that the codec low_rank keeps.

Shape legend: h hidden width, r rank, c classes.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from potstill.core.files import atomic_path
from potstill.store.codecs import Basis
from potstill.store.manifest import Manifest

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Head:
    """How coefficients are made, and logits of them: ``logits = coefficients @ weight.T + bias``.

    Attributes:
        basis: from hidden states to coefficients.
        weight: (c, r) float32.
        bias: (c,) float32.

    """

    basis: Basis
    weight: Array
    bias: Array

    @property
    def content(self) -> bytes:
        """The content of the head's file, in the format of safetensors."""
        arrays = {**self.basis._asdict(), "weight": self.weight, "bias": self.bias}
        return save({name: np.ascontiguousarray(values, dtype="<f4") for name, values in arrays.items()})

    @property
    def sha256(self) -> str:
        """The sha256 of that file."""
        return hashlib.sha256(self.content).hexdigest()


def head_file(stem: str) -> str:
    """Return the name of a signal's head in the store's folder."""
    return f"{stem}.head.safetensors"


def write_head(folder: Path, stem: str, head: Head) -> None:
    """Write a signal's head, atomically."""
    with atomic_path(folder / head_file(stem)) as temporary:
        temporary.write_bytes(head.content)


def read_head(folder: Path, stem: str) -> Head | None:
    """Return a signal's head, or None where it is missing or damaged."""
    try:
        content = (folder / head_file(stem)).read_bytes()
        arrays = load(content)
        head = Head(Basis(arrays["mean"], arrays["into"], arrays["back"]), arrays["weight"], arrays["bias"])
    except (OSError, SafetensorError, KeyError):
        return None
    return head if head.content == content else None


def heads_problem(folder: Path, manifest: Manifest) -> str | None:
    """Return which signal's head is missing or changed; None if none is."""
    for spec in manifest.signals.values():
        head = None if spec.head is None else read_head(folder, spec.file)
        if spec.head is not None and (head is None or head.sha256 != spec.head.sha256):
            return head_file(spec.file)
    return None
