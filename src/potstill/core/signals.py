"""Batches of samples and the signals that models answer them with.

Shape legend: b samples in the batch, c classes, ``...`` the shape of one sample.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

Signals = Mapping[str, Tensor]
"""Named outputs of a model for one batch: ``logits`` (b, c) and one entry per tapped layer."""


@dataclass(frozen=True)
class Ragged:
    """A signal whose samples have different numbers of items (tokens, bytes of text), without padding.

    Attributes:
        values: (items, ...) the items of all samples, one sample after the other.
        lengths: (b,) int64, how many items each sample has; their sum is ``items``.

    """

    values: Tensor
    lengths: Tensor

    def __len__(self) -> int:
        return len(self.lengths)


@dataclass(frozen=True)
class Batch:
    """Some samples, each known by ``(id, view)``.

    Attributes:
        ids: (b,) int64, the stable identity of each sample.
        views: (b,) int64, which augmented view of the sample this is; 0 where nothing is augmented.
        inputs: (b, ...) what the models see before their own preprocessing: uint8 or float pixels in the
            range 0 to 1, or float features.
        targets: (b,) int64 classes, (b, c) float class probabilities (mixed samples), (b,) or (b, k) float
            values for regression, or None where the data has no labels.

    """

    ids: Tensor
    views: Tensor
    inputs: Tensor
    targets: Tensor | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def to(self, device: torch.device | str) -> Batch:
        """Return the batch with inputs and targets on ``device``; ids and views stay on the CPU."""
        targets = None if self.targets is None else self.targets.to(device, non_blocking=True)
        return replace(self, inputs=self.inputs.to(device, non_blocking=True), targets=targets)

    def narrow(self, start: int, stop: int) -> Batch:
        """Return samples ``start`` to ``stop`` (exclusive) as a smaller batch."""
        return Batch(
            self.ids[start:stop],
            self.views[start:stop],
            self.inputs[start:stop],
            None if self.targets is None else self.targets[start:stop],
        )
