"""Batches of samples and the signals that models answer them with.

Shape legend: b samples in the batch, c classes, ``...`` the shape of one sample.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from potstill.core.errors import UsageError

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

    What is counted is a position: a sample, or a part of one such as a token. ``where`` and ``labelled`` have the shape
    of the positions, (b,) where each sample is one; absent, all count, as many as there are samples.

    Attributes:
        ids: (b,) int64, the stable identity of each sample.
        views: (b,) int64, which augmented view of the sample this is; 0 where nothing is augmented.
        inputs: (b, ...) what the models see before their own preprocessing: uint8 or float pixels in the
            range 0 to 1, or float features; several tensors by name where the data has several.
        targets: (b,) int64 classes, (b, c) float class probabilities (mixed samples), (b,) or (b, k) float
            values for regression, or None where the data has no labels. What stands at positions that are not
            labelled has no meaning.
        where: (b, ...) boolean, the positions that exist and count.
        labelled: (b, ...) boolean, those among them whose target is known; ``where`` when absent.

    """

    ids: Tensor
    views: Tensor
    inputs: Tensor | Mapping[str, Tensor]
    targets: Tensor | None = None
    where: Tensor | None = None
    labelled: Tensor | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def to(self, device: torch.device | str) -> Batch:
        """Return the batch on ``device``; ids and views stay on the CPU."""
        return self._changed(lambda tensor: tensor.to(device, non_blocking=True))

    def narrow(self, start: int, stop: int) -> Batch:
        """Return samples ``start`` to ``stop`` (exclusive) as a smaller batch."""
        part = self._changed(lambda tensor: tensor[start:stop])
        return replace(part, ids=self.ids[start:stop], views=self.views[start:stop])

    @property
    def tensor(self) -> Tensor:
        """The inputs of a model that reads a single tensor.

        Raises:
            UsageError: the data has several by name.

        """
        if isinstance(self.inputs, Tensor):
            return self.inputs
        raise UsageError(
            f"The data has the inputs {', '.join(self.inputs)}, and this model reads a single tensor. Use a model that "
            "reads them by name."
        )

    def _changed(self, change: Callable[[Tensor], Tensor]) -> Batch:
        """Return the batch with a function applied to everything but ids and views."""
        inputs = self.inputs
        kept = (self.targets, self.where, self.labelled)
        targets, where, labelled = (None if tensor is None else change(tensor) for tensor in kept)
        changed = change(inputs) if isinstance(inputs, Tensor) else {k: change(v) for k, v in inputs.items()}
        return Batch(self.ids, self.views, changed, targets, where, labelled)
