"""What comes out of a training, whoever learned."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from torch import Tensor

from potstill.core.files import write_json
from potstill.data.samples import Data
from potstill.training import checkpoint
from potstill.training.checkpoint import Stopped


@dataclass(frozen=True)
class Result:
    """What came out of a training.

    Attributes:
        weights: the weights that were best on validation, a safetensors file.
        steps: optimiser steps taken.
        epochs: passes over the training data.
        seconds: time spent, interrupted runs included.
        best_epoch: the epoch, counted from 1, that the weights are from.
        best_validation: its validation metric: the one asked for, else accuracy, or R2 for regression.
        stopped: why training ended.
        history: one JSON object per epoch.

    """

    weights: Path
    steps: int
    epochs: float
    seconds: float
    best_epoch: int
    best_validation: float
    stopped: Stopped
    history: Path

    def write(self, tensors: Mapping[str, Tensor], data: Data) -> None:
        """Write the weights, with the units that they were learned in, and ``result.json`` beside them."""
        units = {"scale": json.dumps(data.scale.to_json())} if data.standardised and data.scale else None
        checkpoint.save_tensors(self.weights, tensors, units)
        paths = {"weights": self.weights.name, "history": self.history.name}
        write_json(self.weights.parent / "result.json", {**asdict(self), **paths})
