"""The head of `variational_information`: predicts the teacher's layer, and how far off it is.

Shape legend: b samples, c channels.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from potstill.core.errors import UsageError
from potstill.objective.heads.sides import channels, per_channel, pointwise, single
from potstill.objective.probe import Probe, like_weights

_FLOOR = 1e-5


class Variational(nn.Module):
    """The mean of a Gaussian over the teacher's layer, from the student's, and one variance for each channel."""

    def __init__(self, predict: nn.Module, shape: tuple[int, ...], variance: float) -> None:
        super().__init__()
        self.predict = predict
        self.spread = nn.Parameter(torch.full(shape, math.log(math.expm1(variance - _FLOOR))))

    def forward(self, student: Tensor, teacher: Tensor, ids: Tensor) -> dict[str, Any]:
        """Return the predicted mean, the teacher's signal at the same size, and the variance."""
        student, teacher = single(student, teacher, "variational")
        mean = self.predict(like_weights(student, self.predict))
        return {"student_hidden": mean, "teacher_hidden": teacher, "variance": F.softplus(self.spread) + _FLOOR}


def variational(probe: Probe, *, variance: float = 5.0) -> nn.Module:
    """Build the head of `potstill.losses.variational_information`.

    Three layers that mix channels at each place, as wide as the teacher, with ReLUs between them (1x1 convolutions for
    maps, linear maps for tokens and vectors). Maps of different sizes are averaged to the smaller one.

    Args:
        probe: one signal of each side.
        variance: above 1e-4, the variance every channel starts with, in squared units of the teacher's signal.

    Raises:
        UsageError: signals that do not go together, or a variance that is too small.

    Sungsoo Ahn et al.: Variational Information Distillation for Knowledge Transfer, 2019, arXiv:1904.05835.

    """
    if not (math.isfinite(variance) and variance > 1e-4):
        raise UsageError(f"variance={variance!r} must be a finite number above 1e-4.")
    student, teacher = single(probe.student, probe.teacher, "variational")
    layer, width = pointwise(teacher), channels(teacher)
    predict = nn.Sequential(
        layer(channels(student), width), nn.ReLU(), layer(width, width), nn.ReLU(), layer(width, width)
    )
    return Variational(predict, per_channel(teacher), variance)
