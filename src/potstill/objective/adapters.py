"""Adapters: heads that bring one of the student's signals to the shape of the teacher's.

Shape legend: b samples, c channels, h and w rows and columns of a map, t tokens, d and e features.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from potstill.core.errors import UsageError
from potstill.objective.probe import Probe, Value, like_weights, several, shape_of

ADAPTED = ("hidden", "embedding")
"""Kinds of signals that are adapted where the two shapes differ."""
_KINDS = {1: "a vector", 2: "tokens", 3: "a map"}


class Adapter(nn.Module):
    """Brings the student's signal to the teacher's shape, and passes it to the loss under ``parameter``."""

    def __init__(self, parameter: str, bring: nn.Module) -> None:
        super().__init__()
        self.parameter = parameter
        self.bring = bring

    def forward(self, student: Tensor, teacher: Value | None, ids: Tensor) -> dict[str, Any]:
        """Return the adapted signal (b, ...) by the loss's parameter."""
        return {self.parameter: self.bring(student)}


class Resized(nn.Module):
    """A map (b, c, h, w) with other channels, rows and columns: 1x1 convolution without bias, pooling, interpolation.

    Resizing and a 1x1 convolution without bias commute; the smaller map is convolved.
    """

    def __init__(self, channels: tuple[int, int], size: tuple[int, int]) -> None:
        super().__init__()
        same = channels[0] == channels[1]
        self.project = nn.Identity() if same else nn.Conv2d(*channels, 1, bias=False)
        self.size = size

    def forward(self, maps: Tensor) -> Tensor:
        """Return ``maps`` with the teacher's channels, rows and columns."""
        maps = like_weights(maps, self.project)
        if tuple(maps.shape[2:]) == self.size:
            return self._projected(maps)
        if self.size[0] <= maps.shape[2] and self.size[1] <= maps.shape[3]:
            return self._projected(F.adaptive_avg_pool2d(maps, self.size))
        return F.interpolate(self._projected(maps), size=self.size, mode="bilinear", align_corners=False)

    def _projected(self, maps: Tensor) -> Tensor:
        projected: Tensor = self.project(maps)
        return projected


class Tokens(nn.Module):
    """Tokens (b, t, d), or a map (b, c, h, w) read as h·w tokens, as another number of tokens and features."""

    def __init__(self, features: tuple[int, int], tokens: int) -> None:
        super().__init__()
        self.project = nn.Linear(*features)
        self.tokens = tokens

    def forward(self, signal: Tensor) -> Tensor:
        """Return (b, tokens, e): neighbouring tokens are averaged, or interpolated between."""
        if signal.dim() == 4:
            signal = signal.flatten(2).transpose(1, 2)
        signal = like_weights(signal, self.project)
        if signal.shape[1] > self.tokens:
            signal = F.adaptive_avg_pool1d(signal.transpose(1, 2), self.tokens).transpose(1, 2)
        elif signal.shape[1] < self.tokens:
            signal = F.interpolate(signal.transpose(1, 2), size=self.tokens, mode="linear").transpose(1, 2)
        projected: Tensor = self.project(signal)
        return projected


class Pooled(nn.Module):
    """A vector (b, d), or the mean of tokens (b, t, d) or of a map (b, c, h, w), as another number of features."""

    def __init__(self, features: tuple[int, int]) -> None:
        super().__init__()
        self.project = nn.Linear(*features)

    def forward(self, signal: Tensor) -> Tensor:
        """Return (b, e)."""
        signal = signal.mean((2, 3)) if signal.dim() == 4 else signal.mean(1) if signal.dim() == 3 else signal
        projected: Tensor = self.project(like_weights(signal, self.project))
        return projected


def adapter(probe: Probe, *, parameter: str = "student_hidden") -> nn.Module:
    """Build the adapter that two shapes ask for; the head of every ``student_hidden`` loss whose shapes differ.

    A vector to a vector: a linear map. Tokens to tokens: a linear map of the features; tokens are averaged or
    interpolated where their number differs. A map to a map: a 1x1 convolution where the channels differ, average
    pooling to fewer rows and columns, bilinear interpolation to more. Tokens or a map to a vector: their mean, then a
    linear map. A map to tokens: its pixels as tokens.

    Args:
        probe: one signal of each side.
        parameter: the loss's parameter that receives the adapted signal.

    Raises:
        UsageError: no adapter is known between the two shapes.

    """
    if probe.teacher is None or isinstance(probe.student, tuple) or isinstance(probe.teacher, tuple):
        raise UsageError("An adapter brings one signal of the student to one of the teacher.")
    return Adapter(parameter, bring(shape_of(probe.student), shape_of(probe.teacher)))


def bring(student: tuple[int, ...], teacher: tuple[int, ...]) -> nn.Module:
    """Build the module that takes signals of one shape to another (shapes of one sample).

    Raises:
        UsageError: no adapter is known between the two shapes.

    """
    ranks = (len(student), len(teacher))
    if ranks == (3, 3):
        return Resized((student[0], teacher[0]), (teacher[1], teacher[2]))
    if ranks in ((2, 2), (3, 2)):
        return Tokens((student[0] if ranks[0] == 3 else student[1], teacher[1]), teacher[0])
    if ranks in ((1, 1), (2, 1), (3, 1)):
        return Pooled((student[1] if ranks[0] == 2 else student[0], teacher[0]))
    raise UsageError(
        f"no adapter brings a signal of shape {student} to {teacher} (shapes of one sample). Possible are "
        "(d,), (t, d) or (c, h, w) to (e,); (t, d) or (c, h, w) to (u, e); (c, h, w) to any other (c, h, w). "
        "Choose other layers, or give the term a head of your own."
    )


def differ(probe: Probe) -> bool:
    """Whether the two sides of a probe have different shapes."""
    if probe.teacher is None:
        return False
    return [shape_of(one) for one in several(probe.student)] != [shape_of(one) for one in several(probe.teacher)]
