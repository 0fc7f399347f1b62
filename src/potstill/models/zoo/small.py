"""Very small models: a convolutional net for small images and a perceptron for vectors."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from potstill.models.zoo.parts import check_counts, global_pool, initialise


class SmallConvNet(nn.Module):
    """Three 3x3 convolutions with batch norm and ReLU at full, half and quarter resolution."""

    def __init__(self, num_classes: int, in_channels: int, width: int) -> None:
        super().__init__()
        check_counts(num_classes=num_classes, in_channels=in_channels, width=width)

        def layer(before: int, after: int, stride: int) -> nn.Sequential:
            convolution = nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=False)
            return nn.Sequential(convolution, nn.BatchNorm2d(after), nn.ReLU())

        self.layer1 = layer(in_channels, width, 1)
        self.layer2 = layer(width, 2 * width, 2)
        self.layer3 = layer(2 * width, 4 * width, 2)
        self.pool = global_pool()
        self.linear = nn.Linear(4 * width, num_classes)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the convolutions' weights anew."""
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Return (b, num_classes) logits for (b, in_channels, h, w) images."""
        return self.linear(self.pool(self.layer3(self.layer2(self.layer1(x)))))  # type: ignore[no-any-return]


class Perceptron(nn.Module):
    """Linear layers with ReLU between them; inputs of any shape are flattened."""

    def __init__(self, num_classes: int, in_features: int, hidden: Sequence[int]) -> None:
        super().__init__()
        check_counts(num_classes=num_classes, in_features=in_features)
        layers: list[nn.Module] = [nn.Flatten()]
        before = in_features
        for index, features in enumerate(hidden):
            check_counts(**{f"hidden[{index}]": features})
            layers.append(nn.Sequential(nn.Linear(before, features), nn.ReLU()))
            before = features
        self.hidden = nn.Sequential(*layers)
        self.linear = nn.Linear(before, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return (b, num_classes) for (b, ...) inputs of ``in_features`` numbers each."""
        return self.linear(self.hidden(x))  # type: ignore[no-any-return]


def cnn(num_classes: int = 10, *, in_channels: int = 3, width: int = 32) -> nn.Module:
    """Return a small convolutional net for images of 8 to 64 pixels: ``width``, 2 and 4 times ``width`` channels."""
    return SmallConvNet(num_classes, in_channels, width)


def mlp(num_classes: int = 10, *, in_features: int, hidden: Sequence[int] = (64, 64)) -> nn.Module:
    """Return a perceptron for vectors (or flattened images); no ``hidden`` layer makes it a linear model."""
    return Perceptron(num_classes, in_features, hidden)
