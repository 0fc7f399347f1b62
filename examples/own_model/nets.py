"""Two networks of your own: a recipe names them as nets.py:big and nets.py:small."""

from torch import Tensor, nn


class Net(nn.Module):
    """Convolutions, global average pooling, a linear layer."""

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())
        self.body = nn.Sequential(
            nn.Conv2d(width, 2 * width, 3, stride=2, padding=1), nn.BatchNorm2d(2 * width), nn.ReLU()
        )
        self.head = nn.Linear(2 * width, num_classes)

    def forward(self, pixels: Tensor) -> Tensor:
        features: Tensor = self.body(self.stem(pixels))
        logits: Tensor = self.head(features.mean(dim=(2, 3)))
        return logits


def big(num_classes: int = 10) -> nn.Module:
    return Net(48, num_classes)


def small(num_classes: int = 10) -> nn.Module:
    return Net(4, num_classes)
