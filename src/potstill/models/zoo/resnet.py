"""Residual networks for small images (He et al., Deep Residual Learning, 2015, arXiv 1512.03385, section 4.2).

Layer names follow the widely used CIFAR checkpoints: conv1, bn1, layer1.0.conv1 ..., linear. Shortcut "A" of the
paper pads the new channels with zeros and has no parameters; "B" is a 1x1 convolution with batch norm.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from potstill.core.errors import UsageError
from potstill.models.zoo.parts import check_counts, global_pool, initialise

Shortcut = Literal["A", "B"]


class PaddedShortcut(nn.Module):
    """Every other pixel, with zero channels added on both sides."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.before = (channels - in_channels) // 2
        self.after = channels - in_channels - self.before

    def forward(self, x: Tensor) -> Tensor:
        """Return (b, channels, ceil(h / 2), ceil(w / 2))."""
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.before, self.after))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    def __init__(self, in_channels: int, channels: int, stride: int, shortcut: Shortcut) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != channels:
            self.shortcut = PaddedShortcut(in_channels, channels)
            if shortcut == "B":
                convolution = nn.Conv2d(in_channels, channels, 1, stride=stride, bias=False)
                self.shortcut = nn.Sequential(convolution, nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output, after its last ReLU."""
        inner = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(inner + self.shortcut(x))


class ResNet(nn.Module):
    """Three stages of basic blocks at full, half and quarter resolution."""

    def __init__(
        self, blocks: int, widths: tuple[int, int, int, int], num_classes: int, in_channels: int, shortcut: Shortcut
    ) -> None:
        super().__init__()
        check_counts(num_classes=num_classes, in_channels=in_channels)
        if shortcut not in ("A", "B"):
            raise UsageError(f"shortcut={shortcut!r}: expected 'A' (zero padding) or 'B' (1x1 convolution).")
        self.conv1 = nn.Conv2d(in_channels, widths[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])

        def stage(before: int, after: int, stride: int) -> nn.Sequential:
            first = BasicBlock(before, after, stride, shortcut)
            return nn.Sequential(first, *(BasicBlock(after, after, 1, shortcut) for _ in range(blocks - 1)))

        self.layer1 = stage(widths[0], widths[1], 1)
        self.layer2 = stage(widths[1], widths[2], 2)
        self.layer3 = stage(widths[2], widths[3], 2)
        self.pool = global_pool()
        self.linear = nn.Linear(widths[3], num_classes)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the convolutions' weights anew."""
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Return (b, num_classes) logits for (b, in_channels, h, w) images."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(self.pool(x))  # type: ignore[no-any-return]


def _narrow(depth: int, num_classes: int, in_channels: int, shortcut: Shortcut) -> ResNet:
    return ResNet((depth - 2) // 6, (16, 16, 32, 64), num_classes, in_channels, shortcut)


def resnet8(num_classes: int = 10, *, in_channels: int = 3, shortcut: Shortcut = "A") -> nn.Module:
    """Return ResNet-8, one block a stage; 16, 32 and 64 channels."""
    return _narrow(8, num_classes, in_channels, shortcut)


def resnet14(num_classes: int = 10, *, in_channels: int = 3, shortcut: Shortcut = "A") -> nn.Module:
    """Return ResNet-14, two blocks a stage; 16, 32 and 64 channels."""
    return _narrow(14, num_classes, in_channels, shortcut)


def resnet20(num_classes: int = 10, *, in_channels: int = 3, shortcut: Shortcut = "A") -> nn.Module:
    """Return ResNet-20, three blocks a stage; 16, 32 and 64 channels."""
    return _narrow(20, num_classes, in_channels, shortcut)


def resnet32(num_classes: int = 10, *, in_channels: int = 3, shortcut: Shortcut = "A") -> nn.Module:
    """Return ResNet-32, five blocks a stage; 16, 32 and 64 channels."""
    return _narrow(32, num_classes, in_channels, shortcut)


def resnet44(num_classes: int = 10, *, in_channels: int = 3, shortcut: Shortcut = "A") -> nn.Module:
    """Return ResNet-44, seven blocks a stage; 16, 32 and 64 channels."""
    return _narrow(44, num_classes, in_channels, shortcut)


def resnet56(num_classes: int = 10, *, in_channels: int = 3, shortcut: Shortcut = "A") -> nn.Module:
    """Return ResNet-56, nine blocks a stage; 16, 32 and 64 channels."""
    return _narrow(56, num_classes, in_channels, shortcut)


def resnet110(num_classes: int = 10, *, in_channels: int = 3, shortcut: Shortcut = "A") -> nn.Module:
    """Return ResNet-110, eighteen blocks a stage; 16, 32 and 64 channels."""
    return _narrow(110, num_classes, in_channels, shortcut)


def resnet8x4(num_classes: int = 10, *, in_channels: int = 3) -> nn.Module:
    """Return ResNet-8 with four times the channels (64, 128, 256) and shortcut B, as in arXiv 1910.10699."""
    return ResNet(1, (32, 64, 128, 256), num_classes, in_channels, "B")


def resnet32x4(num_classes: int = 10, *, in_channels: int = 3) -> nn.Module:
    """Return ResNet-32 with four times the channels (64, 128, 256) and shortcut B, as in arXiv 1910.10699."""
    return ResNet(5, (32, 64, 128, 256), num_classes, in_channels, "B")
