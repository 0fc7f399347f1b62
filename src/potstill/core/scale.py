"""Standard units of regression targets: what a model learns in, and the way back to the target's own units.

Shape legend: n samples, k outputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

Array = np.ndarray[Any, Any]
_ROUNDS = 1e3
"""Largest mean over standard deviation at which float32 still holds a value to a ten-thousandth of its spread."""


@dataclass(frozen=True)
class TargetScale:
    """Mean and standard deviation of each output over the training split: standard = (value - mean) / std.

    Numbers are turned in float64, and only what is in standard units is narrowed to float32: 1e9 and 1e9 + 1 stay
    different. Whoever learns sees standard units; whoever reads a result sees the target's.

    Attributes:
        mean: k numbers.
        std: k numbers above 0; 1 for an output that is constant.

    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def dtype(self) -> torch.dtype:
        """The type that holds values in the target's units: float32, or float64 where float32 would round them."""
        for mean, std in zip(self.mean, self.std, strict=True):
            if abs(mean) > _ROUNDS * std or not 1e-30 < std < 1e30 or abs(mean) > 1e30:
                return torch.float64
        return torch.float32

    def standard(self, values: Array) -> Array:
        """Return values (n,) or (n, k) in standard units, float64 of the same shape."""
        mean, std = self._numbers(values)
        result: Array = (np.asarray(values, dtype=np.float64) - mean) / std
        return result

    def original(self, values: Array) -> Array:
        """Return standard values (n,) or (n, k) in the target's units, float64 of the same shape."""
        mean, std = self._numbers(values)
        result: Array = np.asarray(values, dtype=np.float64) * std + mean
        return result

    def standard_tensor(self, values: Tensor, *, log_variance: bool = False) -> Tensor:
        """Return a model's values (n,) or (n, k) in standard units, float32; gradients pass.

        With ``log_variance`` they are logarithms of the values' variances. Values of another number of outputs, which
        a learned projection brings to these, stay as they are.
        """
        if not self._fits(values):
            return values
        mean, std = self._tensors(values)
        wide = values.double()
        return (wide - 2.0 * std.log() if log_variance else (wide - mean) / std).float()

    def original_tensor(self, values: Tensor, *, log_variance: bool = False) -> Tensor:
        """Return what `standard_tensor` was given, of type `dtype`."""
        if not self._fits(values):
            return values
        mean, std = self._tensors(values)
        wide = values.double()
        return (wide + 2.0 * std.log() if log_variance else wide * std + mean).to(self.dtype)

    def seen_in(self, own: TargetScale) -> TargetScale:
        """Return the scale that turns values which are standard by ``own`` into values that are standard by this."""
        pairs = list(zip(self.mean, self.std, own.mean, own.std, strict=True))
        return TargetScale(
            tuple((mean - own_mean) / own_std for mean, _, own_mean, own_std in pairs),
            tuple(std / own_std for _, std, _, own_std in pairs),
        )

    def to_json(self) -> dict[str, list[float]]:
        """Return JSON-like data."""
        return {"mean": list(self.mean), "std": list(self.std)}

    @staticmethod
    def from_json(value: Mapping[str, Sequence[float]]) -> TargetScale:
        """Return the scale that `to_json` wrote."""
        return TargetScale(tuple(map(float, value["mean"])), tuple(map(float, value["std"])))

    def _fits(self, values: Tensor) -> bool:
        return tuple(values.shape[1:]) in {(len(self.mean),), () if len(self.mean) == 1 else (len(self.mean),)}

    def _tensors(self, values: Tensor) -> list[Tensor]:
        return [torch.tensor(part, dtype=torch.float64, device=values.device) for part in self._both(values)]

    def _numbers(self, values: Array) -> tuple[Array, Array]:
        mean, std = self._both(values)
        return np.array(mean), np.array(std)

    def _both(self, values: Array | Tensor) -> tuple[Any, Any]:
        """Return mean and std in a form that fits (n, k), or (n,) of one output."""
        return (self.mean[0], self.std[0]) if values.ndim == 1 else (self.mean, self.std)


def scale_of(targets: Array) -> TargetScale:
    """Return mean and standard deviation of targets (n,) or (n, k), over all n; the deviation of a constant is 1."""
    values = np.asarray(targets, dtype=np.float64).reshape(len(targets), -1)
    # Differences to the first sample, in units of the largest: neither a far mean nor a square costs digits.
    apart = values - values[0]
    unit = np.abs(apart).max(axis=0)
    unit = np.where(unit > 0, unit, 1.0)
    apart = apart / unit
    std = apart.std(axis=0) * unit
    mean = values[0] + apart.mean(axis=0) * unit
    return TargetScale(tuple(mean.tolist()), tuple(np.where(std > 0, std, 1.0).tolist()))
