"""VGG with batch norm for small images (Simonyan and Zisserman, 2014, arXiv 1409.1556; form of arXiv 1910.10699).

Five blocks with one linear layer behind the global pool. Max pooling follows the first three blocks, and the fourth
too when the images have 64 pixels or more a side.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from potstill.models.zoo.parts import check_counts, global_pool, initialise

_WIDTHS = (64, 128, 256, 512, 512)
_LARGE = 64


class VGG(nn.Module):
    """Five blocks of ``convolutions`` 3x3 convolutions each."""

    def __init__(self, convolutions: int, num_classes: int, in_channels: int) -> None:
        super().__init__()
        check_counts(num_classes=num_classes, in_channels=in_channels)
        self.blocks = nn.ModuleList()
        before = in_channels
        for width in _WIDTHS:
            layers: list[nn.Module] = []
            for _ in range(convolutions):
                layers += [nn.Conv2d(before, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
                before = width
            self.blocks.append(nn.Sequential(*layers))
        self.pool = global_pool()
        self.linear = nn.Linear(_WIDTHS[-1], num_classes)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights anew; the last layer starts small."""
        initialise(self)
        nn.init.normal_(self.linear.weight, std=0.01)
        nn.init.zeros_(self.linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return (b, num_classes) logits for (b, in_channels, h, w) images of 8 pixels or more a side."""
        pools = 4 if min(x.shape[-2:]) >= _LARGE else 3
        for index, block in enumerate(self.blocks):
            x = block(x)
            if index < pools:
                x = F.max_pool2d(x, 2)
        return self.linear(self.pool(x))  # type: ignore[no-any-return]


def vgg8(num_classes: int = 10, *, in_channels: int = 3) -> nn.Module:
    """Return VGG-8: one convolution a block."""
    return VGG(1, num_classes, in_channels)


def vgg13(num_classes: int = 10, *, in_channels: int = 3) -> nn.Module:
    """Return VGG-13: two convolutions a block."""
    return VGG(2, num_classes, in_channels)
