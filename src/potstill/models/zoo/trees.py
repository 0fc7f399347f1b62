"""Boosted trees as a model: what LightGBM grows, as tensors that answer without it.

Shape legend: b samples, f features, c classes or outputs, t trees, n places for splits, n + 1 for leaves.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from potstill.core.errors import UsageError
from potstill.models.zoo.parts import check_counts

Split = tuple[int, float, int, int]
"""Feature, threshold, and where it goes: a split's number, or -1 minus that of a leaf."""
Tree = tuple[Sequence[Split], Sequence[float]]
"""Splits, the first one first, and the leaves' values; a tree without splits has one leaf."""


class Trees(nn.Module):
    """A sum of trees for each output. It has no gradient: a learner of its own grows it.

    When to use it: as a student for numeric tables. The attributes named like LightGBM's are what its learner reads.
    A feature that is at most the threshold goes left. With no trees every answer is 0.
    """

    features: Tensor
    thresholds: Tensor
    sides: Tensor
    leaves: Tensor

    def __init__(
        self,
        num_classes: int,
        in_features: int,
        *,
        rounds: int,
        num_leaves: int,
        learning_rate: float,
        min_data_in_leaf: int,
        rows: float,
        columns: float,
    ) -> None:
        super().__init__()
        check_counts(num_classes=num_classes, in_features=in_features, rounds=rounds, min_data_in_leaf=min_data_in_leaf)
        if not isinstance(num_leaves, int) or num_leaves < 2:
            raise UsageError(f"num_leaves={num_leaves!r}: expected a whole number, 2 or more.")
        for name, share in (("learning_rate", learning_rate), ("rows", rows), ("columns", columns)):
            if not 0 < share <= 1:
                raise UsageError(f"{name}={share!r}: expected a number above 0, at most 1.")
        self.num_classes, self.in_features = num_classes, in_features
        self.rounds, self.num_leaves, self.learning_rate = rounds, num_leaves, learning_rate
        self.min_data_in_leaf, self.rows, self.columns = min_data_in_leaf, rows, columns
        trees, splits = rounds * num_classes, num_leaves - 1
        self.register_buffer("features", torch.zeros(trees, splits, dtype=torch.int32))
        self.register_buffer("thresholds", torch.zeros(trees, splits))
        self.register_buffer("sides", torch.full((2, trees, splits), -1, dtype=torch.int32))
        self.register_buffer("leaves", torch.zeros(trees, num_leaves))

    def grown(self, trees: Sequence[Tree]) -> None:
        """Take over trees; tree i adds to output i modulo c.

        A threshold is rounded down to the nearest 32-bit number, which moves no 32-bit feature to the other side.

        Raises:
            UsageError: more or larger trees than there is place for.

        """
        if len(trees) > len(self.leaves) or any(len(leaves) > self.num_leaves for _, leaves in trees):
            raise UsageError(f"{len(trees)} trees do not fit into {self.rounds} rounds of {self.num_leaves} leaves.")
        fresh = {name: torch.zeros_like(tensor) for name, tensor in self.named_buffers()} | {
            "sides": torch.full_like(self.sides, -1)
        }
        for number, (splits, leaves) in enumerate(trees):
            for place, (feature, threshold, left, right) in enumerate(splits):
                fresh["features"][number, place] = feature
                fresh["thresholds"][number, place] = _at_most(threshold)
                fresh["sides"][:, number, place] = torch.tensor([left, right], dtype=torch.int32)
            fresh["leaves"][number, : len(leaves)] = torch.tensor(leaves, dtype=torch.float64).float()
        for name, tensor in fresh.items():
            getattr(self, name).copy_(tensor)

    def forward(self, x: Tensor) -> Tensor:
        """Return (b, c) for (b, ...) inputs of ``in_features`` numbers each."""
        x = x.flatten(1).float()
        count, splits = self.features.shape
        start = torch.arange(count, device=x.device) * splits
        place = torch.zeros(len(x), count, dtype=torch.long, device=x.device)
        features, thresholds = self.features.long().flatten(), self.thresholds.flatten()
        left, right = (side.long().flatten() for side in self.sides)
        while bool((inside := place >= 0).any()):
            at = start + place.clamp_min(0)
            goes_left = x.gather(1, features[at]) <= thresholds[at]
            place = torch.where(inside, torch.where(goes_left, left[at], right[at]), place)
        at = torch.arange(count, device=x.device) * (splits + 1) - 1 - place
        values = self.leaves.double().flatten()[at].view(len(x), self.rounds, self.num_classes)
        return values.sum(1).float()


def lightgbm(
    num_classes: int = 10,
    *,
    in_features: int,
    rounds: int = 200,
    num_leaves: int = 31,
    learning_rate: float = 0.1,
    min_data_in_leaf: int = 20,
    rows: float = 0.8,
    columns: float = 0.8,
) -> nn.Module:
    """Return boosted trees for numeric tables, without any trees yet: LightGBM grows them when it is a student.

    ``rounds`` trees for each output, of at most ``num_leaves`` leaves with at least ``min_data_in_leaf`` samples each;
    each round sees a share ``rows`` of the samples and ``columns`` of the features.
    """
    return Trees(
        num_classes,
        in_features,
        rounds=rounds,
        num_leaves=num_leaves,
        learning_rate=learning_rate,
        min_data_in_leaf=min_data_in_leaf,
        rows=rows,
        columns=columns,
    )


def _at_most(value: float) -> float:
    """Return the largest 32-bit number that is not above a 64-bit one."""
    near = np.float32(value)
    return float(near if float(near) <= value else np.nextafter(near, np.float32(-np.inf)))
