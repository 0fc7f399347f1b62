"""What the zoo's models share: checked arguments, initialisation and the pooled features before the last layer."""

from __future__ import annotations

from torch import Tensor, nn

from potstill.core.errors import UsageError


def check_counts(**counts: int) -> None:
    """Raise a `UsageError` naming the first count that is not a whole number above zero."""
    for name, value in counts.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise UsageError(f"{name}={value!r}: expected a whole number, 1 or more.")


def initialise(model: nn.Module) -> None:
    """Draw convolution weights from a normal distribution of variance 2 / (k * k * outputs); zero their biases.

    He et al., Delving Deep into Rectifiers, 2015, arXiv 1502.01852. The other layers keep torch's defaults.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def global_pool() -> nn.Sequential:
    """Return the layer that averages (b, c, h, w) over space to (b, c)."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())


def shuffle_channels(x: Tensor, groups: int) -> Tensor:
    """Interleave the channels of ``groups`` equal groups: (g, c / g) becomes (c / g, g)."""
    channels, height, width = x.shape[1:]
    return x.view(-1, groups, channels // groups, height, width).transpose(1, 2).reshape(-1, channels, height, width)
