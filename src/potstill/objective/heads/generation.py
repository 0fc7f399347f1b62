"""The head of `masked_generative`: hides a part of the student's map and generates the teacher's from the rest.

Shape legend: b samples, c channels, h and w rows and columns of a map.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from potstill.core.errors import UsageError
from potstill.objective.adapters import bring
from potstill.objective.heads.counter import uniform
from potstill.objective.probe import Probe, like_weights, shape_of

Hidden = Literal["pixels", "channels"]


class Generation(nn.Module):
    """Brings the student's map to the teacher's shape, hides a part of it, and restores it by two 3x3 convolutions.

    What is hidden depends on the seed, the step, the sample's id and the place only, so that micro-batches and
    processes of a step hide the same. `commit` counts the steps.
    """

    seed: Tensor
    step: Tensor

    def __init__(self, align: nn.Module, channels: int, seed: int, share: float, hide: Hidden) -> None:
        super().__init__()
        self.align = align
        self.generate = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU(), nn.Conv2d(channels, channels, 3, padding=1)
        )
        self.share, self.hide = share, hide
        self.register_buffer("seed", torch.tensor(seed))
        self.register_buffer("step", torch.tensor(0))

    def forward(self, student: Tensor, teacher: Tensor, ids: Tensor) -> dict[str, Any]:
        """Return the generated maps."""
        maps = self.align(student)
        return {"student_maps": self.generate(like_weights(maps * self._kept(maps, ids), self.generate))}

    def _kept(self, maps: Tensor, ids: Tensor) -> Tensor:
        """Return 1 for what is kept and 0 for what is hidden: (b, 1, h, w), or (b, c, 1, 1)."""
        count, channels, height, width = maps.shape
        shape = (count, 1, height, width) if self.hide == "pixels" else (count, channels, 1, 1)
        places = torch.arange(shape[1] * shape[2] * shape[3], device=maps.device)
        numbers = uniform(self.seed, self.step, ids.to(maps.device)[:, None], places)
        return (numbers >= self.share).to(maps.dtype).reshape(shape)

    def commit(self, gather: Callable[[Tensor], Tensor]) -> None:
        """Count a step that was made."""
        self.step += 1


def generation(probe: Probe, *, share: float = 0.65, hide: Hidden = "pixels") -> nn.Module:
    """Build the head of `potstill.losses.masked_generative`.

    Args:
        probe: one map of each side.
        share: from 0 up to 1, how much of the map is hidden. The paper's are 0.65 of the pixels for dense prediction
            (0.45 for detectors of two stages) and 0.15 of the channels for classification.
        hide: ``"pixels"`` in all channels, or whole ``"channels"``.

    Raises:
        UsageError: signals that are not maps, or options outside these.

    Zhendong Yang et al.: Masked Generative Distillation, 2022, arXiv:2205.01529.

    """
    if not 0 <= share < 1:
        raise UsageError(f"share={share!r} must be at least 0 and below 1.")
    if hide not in ("pixels", "channels"):
        raise UsageError(f"hide={hide!r}: expected 'pixels' or 'channels'.")
    student, teacher = probe.student, probe.teacher
    if not (isinstance(student, Tensor) and isinstance(teacher, Tensor) and student.dim() == teacher.dim() == 4):
        raise UsageError("The head generation takes one map (b, c, h, w) of the student and one of the teacher.")
    return Generation(bring(shape_of(student), shape_of(teacher)), teacher.shape[1], probe.seed, share, hide)
