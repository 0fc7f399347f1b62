"""What happens to a model's inputs before its first layer: scaling, resizing, normalising.

Shape legend: b samples, c channels, h/w height and width, f columns.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from potstill.core.errors import UsageError


class Preprocessor(nn.Module):
    """Turn raw inputs into what one model expects: float32, resized to ``size``, then ``(x - mean) / std``.

    Every model has its own: a student never inherits its teacher's by accident. It runs inside the exported graph,
    so the exported file takes the same raw inputs as the data has.

    Args:
        mean: (c,) per channel of images on the 0 to 1 scale, or (f,) per column; None leaves the values as they are.
            One number serves all channels.
        std: as ``mean``, greater than zero. Given together with ``mean`` or not at all.
        size: side in pixels that images are resized to (bilinear, antialiased); None keeps their size.

    Raises:
        UsageError: only one of ``mean`` and ``std``, unequal lengths, a ``std`` that is not positive, a bad ``size``.

    """

    mean: Tensor | None
    std: Tensor | None

    def __init__(self, mean: Tensor | None = None, std: Tensor | None = None, size: int | None = None) -> None:
        super().__init__()
        if (mean is None) != (std is None):
            raise UsageError("Preprocessor got only one of mean and std. Give both, or neither.")
        if mean is not None and std is not None:
            mean = torch.as_tensor(mean, dtype=torch.float32).detach().reshape(-1).clone()
            std = torch.as_tensor(std, dtype=torch.float32).detach().reshape(-1).clone()
            if len(mean) != len(std):
                raise UsageError(f"Preprocessor got {len(mean)} means and {len(std)} stds: they must be equally many.")
            if not bool(torch.isfinite(mean).all() and torch.isfinite(std).all() and (std > 0).all()):
                raise UsageError(
                    "Preprocessor got a mean or std that is not finite, or a std that is not above zero "
                    f"(smallest std {float(std.min())}). A constant channel or column has std 0: use 1 for it."
                )
        if size is not None and size < 1:
            raise UsageError(f"Preprocessor got size={size}: expected a number of pixels, 1 or more.")
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)
        self.size = size

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the inputs as the model expects them.

        Args:
            inputs: (b, c, h, w) uint8 or float pixels, (b, f) columns, or (b, ..., f) of any other rank. uint8 is
                divided by 255; floats are taken as they are; other integers (such as token ids) are left alone
                unless they have to be normalised.

        Returns:
            float32 of the same shape, or (b, c, size, size).

        Raises:
            UsageError: the number of channels or columns is not that of ``mean``.

        """
        if inputs.dtype == torch.uint8:
            inputs = inputs.to(torch.float32) / 255.0
        elif inputs.is_floating_point() or self.mean is not None:
            inputs = inputs.to(torch.float32)
        if self.size is not None and inputs.dim() == 4 and tuple(inputs.shape[-2:]) != (self.size, self.size):
            inputs = F.interpolate(
                inputs, size=(self.size, self.size), mode="bilinear", antialias=True, align_corners=False
            )
        if self.mean is None or self.std is None:
            return inputs
        axis = 1 if inputs.dim() == 4 else inputs.dim() - 1
        channels = inputs.shape[axis]
        if self.mean.numel() not in (1, channels):
            what = "channels" if inputs.dim() == 4 else "columns"
            raise UsageError(
                f"The preprocessing has mean and std for {self.mean.numel()} {what}, but the inputs have {channels} "
                f"(shape {tuple(inputs.shape)}). Give one number per channel or column of the data."
            )
        shape = [1] * inputs.dim()
        shape[axis] = -1
        return (inputs - self.mean.view(shape)) / self.std.view(shape)

    def extra_repr(self) -> str:
        """Show the settings in ``print(model)``."""
        mean = None if self.mean is None else [round(float(value), 4) for value in self.mean[:4]]
        std = None if self.std is None else [round(float(value), 4) for value in self.std[:4]]
        return f"mean={mean}, std={std}, size={self.size}"
