"""ShuffleNet 1 and 2 for small images (arXiv 1707.01083 and 1807.11164; forms of arXiv 1910.10699).

Differ from the papers as those forms do: the stem is a 1x1 convolution of stride 1 without pooling, so that 32x32
images end at 4x4; version 1 has a ReLU behind its depthwise convolution.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from potstill.models.zoo.parts import check_counts, global_pool, shuffle_channels

_STEM = 24
_GROUPS = 3


def _convolution(before: int, after: int, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(before, after, 1, groups=groups, bias=False), nn.BatchNorm2d(after))


def _depthwise(channels: int, stride: int) -> nn.Sequential:
    layer = nn.Conv2d(channels, channels, 3, stride=stride, padding=1, groups=channels, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(channels))


class GroupedUnit(nn.Module):
    """Version 1: grouped 1x1, shuffle, depthwise 3x3, grouped 1x1; with stride 2 beside the pooled input."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        own = channels - in_channels if stride == 2 else channels
        inner = own // 4
        # The stem's 24 channels are too few to be split before the first unit.
        self.groups = 1 if in_channels == _STEM else _GROUPS
        self.squeeze = _convolution(in_channels, inner, self.groups)
        self.filter = _depthwise(inner, stride)
        self.expand = _convolution(inner, own, _GROUPS)
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """Return the unit's output, after its last ReLU."""
        inner = shuffle_channels(F.relu(self.squeeze(x)), self.groups)
        inner = self.expand(F.relu(self.filter(inner)))
        if self.stride == 2:
            return F.relu(torch.cat([inner, F.avg_pool2d(x, 3, stride=2, padding=1)], dim=1))
        return F.relu(inner + x)


class SplitUnit(nn.Module):
    """Version 2: half of the channels pass unchanged, the other half is filtered, then both are shuffled."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.squeeze = _convolution(half, half)
        self.filter = _depthwise(half, 1)
        self.expand = _convolution(half, half)

    def forward(self, x: Tensor) -> Tensor:
        """Return the unit's output."""
        kept, inner = x.chunk(2, dim=1)
        inner = F.relu(self.expand(self.filter(F.relu(self.squeeze(inner)))))
        return shuffle_channels(torch.cat([kept, inner], dim=1), 2)


class DownUnit(nn.Module):
    """Version 2: two filtered branches of stride 2 side by side, then shuffled."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.left = nn.Sequential(_depthwise(in_channels, 2), _convolution(in_channels, half), nn.ReLU())
        self.right = nn.Sequential(
            _convolution(in_channels, half), nn.ReLU(), _depthwise(half, 2), _convolution(half, half), nn.ReLU()
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the unit's output."""
        return shuffle_channels(torch.cat([self.left(x), self.right(x)], dim=1), 2)


class ShuffleNet(nn.Module):
    """A 1x1 stem, three stages that halve the resolution, an optional wide 1x1 convolution, and one linear layer."""

    def __init__(self, stages: list[nn.Sequential], head: nn.Module, width: int, num_classes: int, in_channels: int):
        super().__init__()
        self.stem = nn.Sequential(_convolution(in_channels, _STEM), nn.ReLU())
        self.layer1, self.layer2, self.layer3 = stages
        self.head = head
        self.pool = global_pool()
        self.linear = nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return (b, num_classes) logits for (b, in_channels, h, w) images."""
        x = self.layer3(self.layer2(self.layer1(self.stem(x))))
        return self.linear(self.pool(self.head(x)))  # type: ignore[no-any-return]


def shufflenet_v1(num_classes: int = 10, *, in_channels: int = 3) -> nn.Module:
    """Return ShuffleNet 1 with three groups: 240, 480 and 960 channels."""
    check_counts(num_classes=num_classes, in_channels=in_channels)
    stages, before = [], _STEM
    for channels, units in ((240, 4), (480, 8), (960, 4)):
        rest = (GroupedUnit(channels, channels, 1) for _ in range(units - 1))
        stages.append(nn.Sequential(GroupedUnit(before, channels, 2), *rest))
        before = channels
    return ShuffleNet(stages, nn.Identity(), before, num_classes, in_channels)


def shufflenet_v2(num_classes: int = 10, *, in_channels: int = 3) -> nn.Module:
    """Return ShuffleNet 2 of width 1: 116, 232 and 464 channels, then 1024."""
    check_counts(num_classes=num_classes, in_channels=in_channels)
    stages, before = [], _STEM
    for channels, units in ((116, 3), (232, 7), (464, 3)):
        stages.append(nn.Sequential(DownUnit(before, channels), *(SplitUnit(channels) for _ in range(units))))
        before = channels
    head = nn.Sequential(_convolution(before, 1024), nn.ReLU())
    return ShuffleNet(stages, head, 1024, num_classes, in_channels)
