"""Which arithmetic and memory layout a model is trained with on a device."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from potstill.recipe.section import Precision

WORTHWHILE_WEIGHTS = 50_000
"""Below this many weights, converting to bfloat16 costs more than the arithmetic saves."""


def autocast_dtype(precision: Precision, device: torch.device, model: nn.Module) -> torch.dtype | None:
    """Return the dtype of the forward pass's matrix products and convolutions, or None for plain float32.

    ``auto`` is bfloat16 on a CUDA device that has it, and on a CPU with bfloat16 instructions when the model has
    convolutions or attention of some size; float32 otherwise. Weights, gradients and losses stay float32 always.
    """
    if precision == "float32":
        return None
    if precision == "bfloat16":
        return torch.bfloat16
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else None
    if device.type != "cpu" or not cpu_has_bfloat16():
        return None
    heavy = any(_is_heavy(module) for module in model.modules())
    size = sum(parameter.numel() for parameter in model.parameters())
    return torch.bfloat16 if heavy and size >= WORTHWHILE_WEIGHTS else None


def autocast(dtype: torch.dtype | None, device: torch.device) -> AbstractContextManager[object]:
    """Return the context of a forward pass in ``dtype``; no context at all for None."""
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype=dtype)


def has_images_inside(model: nn.Module) -> bool:
    """Return whether the model convolves images, so that channels-last memory pays."""
    return any(isinstance(module, nn.Conv2d | nn.ConvTranspose2d) for module in model.modules())


def channels_last(inputs: Tensor) -> Tensor:
    """Return (b, c, h, w) inputs in channels-last memory; any other rank unchanged."""
    return inputs.contiguous(memory_format=torch.channels_last) if inputs.dim() == 4 else inputs


def cpu_has_bfloat16() -> bool:
    """Return whether this CPU computes in bfloat16 itself (AVX512-BF16 or AMX), rather than emulating it."""
    return any(_supported(name) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))


def _supported(name: str) -> bool:
    # torch has no public name for these two; one that is gone means "not known to be fast".
    test: Callable[[], bool] | None = getattr(torch.cpu, name, None)
    return bool(test is not None and test())


def _is_heavy(module: nn.Module) -> bool:
    convolves = isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d)
    return convolves or isinstance(module, nn.MultiheadAttention) or "Attention" in type(module).__name__
