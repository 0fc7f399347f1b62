"""MobileNetV2 for small images (Sandler et al., 2018, arXiv 1801.04381; form of arXiv 1910.10699).

Differs from the paper as that form does: the second stage has stride 1, so that 32x32 images end at 2x2; ReLU instead
of ReLU6; the first block expands (by 1) like the others; no dropout.
"""

from __future__ import annotations

from torch import Tensor, nn

from potstill.core.errors import UsageError
from potstill.models.zoo.parts import check_counts, global_pool, initialise

# expansion, channels at width 1, blocks, stride of the first
_STAGES = ((1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
_LAST = 1280


class InvertedResidual(nn.Module):
    """Expand with a 1x1 convolution, filter each channel alone, project back without an activation."""

    def __init__(self, in_channels: int, channels: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = in_channels * expansion
        self.residual = stride == 1 and in_channels == channels
        self.layers = nn.Sequential(
            nn.Conv2d(in_channels, inner, 1, bias=False),
            nn.BatchNorm2d(inner),
            nn.ReLU(),
            nn.Conv2d(inner, inner, 3, stride=stride, padding=1, groups=inner, bias=False),
            nn.BatchNorm2d(inner),
            nn.ReLU(),
            nn.Conv2d(inner, channels, 1, bias=False),
            nn.BatchNorm2d(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output."""
        inner: Tensor = self.layers(x)
        return x + inner if self.residual else inner


class MobileNetV2(nn.Module):
    """Seven stages of inverted residuals between a stem of stride 2 and a wide 1x1 convolution."""

    def __init__(self, num_classes: int, in_channels: int, width: float) -> None:
        super().__init__()
        check_counts(num_classes=num_classes, in_channels=in_channels)
        if not 0.1 <= width <= 4:
            raise UsageError(f"width={width}: expected a factor between 0.1 and 4.")
        before = int(32 * width)
        self.stem = nn.Sequential(
            nn.Conv2d(in_channels, before, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(before), nn.ReLU()
        )
        stages = []
        for expansion, full, blocks, stride in _STAGES:
            channels = int(full * width)
            layers = []
            for index in range(blocks):
                layers.append(InvertedResidual(before, channels, stride if index == 0 else 1, expansion))
                before = channels
            stages.append(nn.Sequential(*layers))
        self.stages = nn.Sequential(*stages)
        last = int(_LAST * max(1.0, width))
        self.head = nn.Sequential(nn.Conv2d(before, last, 1, bias=False), nn.BatchNorm2d(last), nn.ReLU())
        self.pool = global_pool()
        self.linear = nn.Linear(last, num_classes)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights anew; the last layer starts small."""
        initialise(self)
        nn.init.normal_(self.linear.weight, std=0.01)
        nn.init.zeros_(self.linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return (b, num_classes) logits for (b, in_channels, h, w) images."""
        return self.linear(self.pool(self.head(self.stages(self.stem(x)))))  # type: ignore[no-any-return]


def mobilenet_v2(num_classes: int = 10, *, in_channels: int = 3, width: float = 0.5) -> nn.Module:
    """Return MobileNetV2; ``width`` scales the channels of all stages (0.5 in the literature on distillation)."""
    return MobileNetV2(num_classes, in_channels, width)
