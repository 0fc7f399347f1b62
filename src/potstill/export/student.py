"""The student as it is deployed: preprocessing and network in one module that takes raw inputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from potstill.models.load import output_tensor

Task = Literal["classification", "regression"]


class Student(nn.Module):
    """A trained model behind its own preprocessing.

    Args:
        model: the trained model.
        preprocess: its preprocessing.
        task: classification or regression.
        classes: class names in output order.

    """

    def __init__(
        self, model: nn.Module, preprocess: nn.Module, *, task: Task = "classification", classes: Sequence[str] = ()
    ) -> None:
        super().__init__()
        self.preprocess = preprocess
        self.model = model
        self.task = task
        self.classes = tuple(classes)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return float32 logits or values (b, c) of raw inputs (b, ...): uint8 pixels or floats, as in the data."""
        outputs = output_tensor(self.model(self.preprocess(inputs))).to(torch.float32)
        return outputs[:, None] if outputs.dim() == 1 else outputs
