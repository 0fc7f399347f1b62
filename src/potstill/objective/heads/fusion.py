"""The head of `review`: fuses the student's levels from deep to shallow, and brings each to the teacher's shape.

Shape legend: b samples, c channels, h and w rows and columns of a map.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from potstill.core.errors import UsageError
from potstill.objective.probe import Probe, like_weights

_WIDEST = 512


class Level(nn.Module):
    """One level: its own map, mixed with what comes from the deeper ones by an attention over the two."""

    def __init__(self, channels: int, width: int, teacher_channels: int, *, fuses: bool) -> None:
        super().__init__()
        narrow = nn.Conv2d(channels, width, 1, bias=False)
        widen = nn.Conv2d(width, teacher_channels, 3, padding=1, bias=False)
        for convolution in (narrow, widen):
            nn.init.kaiming_uniform_(convolution.weight, a=1)
        self.narrow = nn.Sequential(narrow, nn.BatchNorm2d(width))
        self.attend = nn.Sequential(nn.Conv2d(2 * width, 2, 1), nn.Sigmoid()) if fuses else None
        self.widen = nn.Sequential(widen, nn.BatchNorm2d(teacher_channels))

    def forward(self, maps: Tensor, deeper: Tensor | None, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Return the map in the teacher's shape, and what the next level is fused with."""
        fused = self.narrow(maps)
        if self.attend is not None and deeper is not None:
            deeper = _resized(deeper, (fused.shape[2], fused.shape[3]))
            attention = self.attend(torch.cat([fused, deeper], 1))
            fused = fused * attention[:, :1] + deeper * attention[:, 1:]
        fused = _resized(fused, size)
        return self.widen(fused), fused


class Fusion(nn.Module):
    """All levels, early layers first."""

    def __init__(self, levels: Sequence[Level]) -> None:
        super().__init__()
        self.levels = nn.ModuleList(levels)

    def forward(self, student: tuple[Tensor, ...], teacher: tuple[Tensor, ...], ids: Tensor) -> dict[str, Any]:
        """Return the student's maps in the teacher's shapes."""
        made: list[Tensor] = []
        deeper: Tensor | None = None
        for level, own, wanted in zip(reversed(self.levels), reversed(student), reversed(teacher), strict=True):
            maps, size = like_weights(_as_map(own), level), _as_map(wanted).shape[2:]
            out, deeper = level(maps, deeper, (size[0], size[1]))
            made.append(out)
        return {"student_maps": tuple(reversed(made))}


def fusion(probe: Probe, *, width: int | None = None) -> nn.Module:
    """Build the head of `potstill.losses.review`.

    Every level of the student is brought to a common number of channels, mixed with the fused deeper levels (nearest
    neighbours, a sigmoid attention for each pixel and side), and brought to the shape of the teacher's level by a 3x3
    convolution and batch norm. The deepest level is not mixed.

    Args:
        probe: tuples of as many maps (or vectors, as maps of one pixel) of student and teacher, early layers first.
        width: channels in which levels are fused; those of the student's deepest level, at most 512, when absent.

    Raises:
        UsageError: single signals, tuples of different lengths, or signals that are neither maps nor vectors.

    Pengguang Chen, Shu Liu, Hengshuang Zhao, Jiaya Jia: Distilling Knowledge via Knowledge Review, 2021,
    arXiv:2104.09044.

    """
    student, teacher = probe.student, probe.teacher
    if not (isinstance(student, tuple) and isinstance(teacher, tuple) and len(student) == len(teacher)):
        raise UsageError(
            "The head fusion takes as many maps of the student as of the teacher: give the term a list, for example "
            "on=['layer1', 'layer2', 'layer3']."
        )
    if width is not None and (isinstance(width, bool) or not isinstance(width, int) or width < 1):
        raise UsageError(f"width={width!r} must be a whole number of at least 1.")
    for maps in (*student, *teacher):
        if maps.dim() not in (2, 4):
            raise UsageError(f"The head fusion takes maps (b, c, h, w) or vectors (b, c), not {tuple(maps.shape)}.")
    width = width or min(_WIDEST, student[-1].shape[1])
    pairs = list(zip(student, teacher, strict=True))
    return Fusion([Level(s.shape[1], width, t.shape[1], fuses=i < len(pairs) - 1) for i, (s, t) in enumerate(pairs)])


def _as_map(signal: Tensor) -> Tensor:
    return signal[:, :, None, None] if signal.dim() == 2 else signal


def _resized(maps: Tensor, size: tuple[int, int]) -> Tensor:
    return maps if tuple(maps.shape[2:]) == size else F.interpolate(maps, size=size, mode="nearest")
