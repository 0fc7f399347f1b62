"""Wide residual networks for small images (Zagoruyko and Komodakis, 2016, arXiv 1605.07146)."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from potstill.models.zoo.parts import check_counts, global_pool, initialise


class PreactivatedBlock(nn.Module):
    """Batch norm and ReLU before each of two 3x3 convolutions, and a shortcut."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.same = in_channels == channels and stride == 1
        self.shortcut: nn.Module = nn.Identity()
        if not self.same:
            self.shortcut = nn.Conv2d(in_channels, channels, 1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output; the next block's batch norm and ReLU follow it."""
        active = F.relu(self.bn1(x))
        inner = self.conv2(F.relu(self.bn2(self.conv1(active))))
        return inner + self.shortcut(x if self.same else active)  # type: ignore[no-any-return]


class WideResNet(nn.Module):
    """Three stages of pre-activated blocks at full, half and quarter resolution."""

    def __init__(self, depth: int, widening: int, num_classes: int, in_channels: int) -> None:
        super().__init__()
        check_counts(num_classes=num_classes, in_channels=in_channels)
        blocks = (depth - 4) // 6

        def stage(before: int, after: int, stride: int) -> nn.Sequential:
            first = PreactivatedBlock(before, after, stride)
            return nn.Sequential(first, *(PreactivatedBlock(after, after, 1) for _ in range(blocks - 1)))

        self.conv1 = nn.Conv2d(in_channels, 16, 3, padding=1, bias=False)
        self.layer1 = stage(16, 16 * widening, 1)
        self.layer2 = stage(16 * widening, 32 * widening, 2)
        self.layer3 = stage(32 * widening, 64 * widening, 2)
        self.bn1 = nn.BatchNorm2d(64 * widening)
        self.pool = global_pool()
        self.linear = nn.Linear(64 * widening, num_classes)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the convolutions' weights anew."""
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Return (b, num_classes) logits for (b, in_channels, h, w) images."""
        x = self.layer3(self.layer2(self.layer1(self.conv1(x))))
        return self.linear(self.pool(F.relu(self.bn1(x))))  # type: ignore[no-any-return]


def wrn_16_1(num_classes: int = 10, *, in_channels: int = 3) -> nn.Module:
    """Return the wide ResNet of depth 16 and width 1."""
    return WideResNet(16, 1, num_classes, in_channels)


def wrn_16_2(num_classes: int = 10, *, in_channels: int = 3) -> nn.Module:
    """Return the wide ResNet of depth 16 and width 2."""
    return WideResNet(16, 2, num_classes, in_channels)


def wrn_40_1(num_classes: int = 10, *, in_channels: int = 3) -> nn.Module:
    """Return the wide ResNet of depth 40 and width 1."""
    return WideResNet(40, 1, num_classes, in_channels)


def wrn_40_2(num_classes: int = 10, *, in_channels: int = 3) -> nn.Module:
    """Return the wide ResNet of depth 40 and width 2."""
    return WideResNet(40, 2, num_classes, in_channels)
