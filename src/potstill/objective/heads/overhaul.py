"""The head of `overhaul`: margins measured on the teacher, and a connector from the student.

Shape legend: b samples, c channels.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from potstill.core.errors import UsageError
from potstill.objective.heads.sides import channels, per_channel, pointwise, single
from potstill.objective.probe import Probe, like_weights


class Overhaul(nn.Module):
    """A connector that mixes the student's channels into the teacher's, and a margin for each of the teacher's."""

    margin: Tensor

    def __init__(self, connect: nn.Module, margin: Tensor) -> None:
        super().__init__()
        self.connect = connect
        self.register_buffer("margin", margin)

    def forward(self, student: Tensor, teacher: Tensor, ids: Tensor) -> dict[str, Any]:
        """Return the connected signal, the teacher's at the same size, and the margins."""
        student, teacher = single(student, teacher, "overhaul")
        connected = self.connect(like_weights(student, self.connect))
        return {"student_hidden": connected, "teacher_hidden": teacher, "margin": self.margin}


def overhaul(probe: Probe) -> nn.Module:
    """Build the head of `potstill.losses.overhaul`.

    The margin of a channel is the mean of its negative responses in the probe, and 0 where there are none, as after a
    ReLU. The connector is a 1x1 convolution (a linear map for vectors) and batch norm. Maps of different sizes are
    averaged to the smaller one.

    Args:
        probe: one signal of each side, read before the activation function.

    Raises:
        UsageError: signals that do not go together, or tokens.

    Byeongho Heo et al.: A Comprehensive Overhaul of Feature Distillation, 2019, arXiv:1904.01866. The paper computes
    the margins from the parameters of the teacher's batch norm; measured ones need none.

    """
    student, teacher = single(probe.student, probe.teacher, "overhaul")
    if teacher.dim() == 3:
        raise UsageError("The head overhaul takes maps or vectors before a ReLU, not tokens. Use hint_mse there.")
    over = (0, 2, 3) if teacher.dim() == 4 else (0,)
    negative = teacher.clamp(max=0).sum(over) / (teacher < 0).sum(over).clamp_min(1)
    width = channels(teacher)
    norm = nn.BatchNorm2d(width) if teacher.dim() == 4 else nn.BatchNorm1d(width)
    mix = pointwise(teacher)(channels(student), width)
    nn.init.kaiming_normal_(mix.weight, mode="fan_out", nonlinearity="relu")
    return Overhaul(nn.Sequential(mix, norm), negative.reshape(per_channel(teacher)).float().cpu())
