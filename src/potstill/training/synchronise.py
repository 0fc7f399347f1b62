"""Batch norm over the samples of all processes, so that their number does not change what is trained.

Modules stay what they are (same class, same names in the state dict); only their forward pass is replaced while the
context is open. One implementation serves every device. Shape legend: b samples, c channels.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


class Switch:
    """Whether statistics are shared now: off while every process sees the same whole batch."""

    def __init__(self) -> None:
        self.on = True


@contextmanager
def synchronised_batch_norm(model: nn.Module, processes: int) -> Iterator[Switch]:
    """Make every batch norm of ``model`` use the statistics of the batches of all processes together, in training.

    With one process there is nothing to share. Running statistics stay equal on all processes. `nn.SyncBatchNorm`
    modules are left alone.

    Args:
        model: its `BatchNorm1d`, `BatchNorm2d` and `BatchNorm3d` modules are changed while the context is open.
        processes: how many there are.

    Yields:
        A switch that turns sharing off and on again, on all processes alike.

    """
    switch = Switch()
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and not isinstance(m, nn.SyncBatchNorm)]
    shared = norms if processes > 1 else []
    for module in shared:
        module.forward = partial(_forward, module, module.forward, switch)  # type: ignore[method-assign]
    try:
        yield switch
    finally:
        for module in shared:
            module.__dict__.pop("forward", None)


class _SumOverProcesses(torch.autograd.Function):
    """All-reduce whose gradient is the all-reduce of the gradients, and the same again for gradients of that."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:  # noqa: ARG004 - torch's signature
        total = tensor.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # noqa: ARG004
        total: Tensor = _SumOverProcesses.apply(gradient.contiguous())  # type: ignore[no-untyped-call]
        return total


def _forward(module: _BatchNorm, original: Any, switch: Switch, inputs: Tensor) -> Tensor:
    if not module.training or not switch.on:
        result: Tensor = original(inputs)
        return result
    module._check_input_dim(inputs)  # type: ignore[no-untyped-call]
    values = inputs.float()
    axes = [axis for axis in range(inputs.dim()) if axis != 1]
    shape = [-1 if axis == 1 else 1 for axis in range(inputs.dim())]
    mean, variance, count = _global_moments(values, axes, shape)
    if module.track_running_stats:
        _update_running(module, mean.detach(), variance.detach(), count)
    scale = torch.rsqrt(variance + module.eps)
    if module.weight is not None:
        scale = scale * module.weight.float()
    normalised = (values - mean.view(shape)) * scale.view(shape)
    if module.bias is not None:
        normalised = normalised + module.bias.float().view(shape)
    return normalised.to(inputs.dtype)


def _global_moments(values: Tensor, axes: list[int], shape: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Return mean (c,), biased variance (c,) and number of values per channel () over all processes.

    Each process contributes its own mean and summed squared deviations, combined as Chan, Golub and LeVeque (1979) do:
    sums of squares would cancel where the mean is far from zero.
    """
    channels = values.shape[1]
    local_count = values.numel() // channels
    local_mean = values.sum(axes) / max(local_count, 1)
    local_square = (values - local_mean.view(shape)).square().sum(axes)
    row = torch.cat([local_mean, local_square, values.new_tensor([float(local_count)])])
    table = row.new_zeros(dist.get_world_size(), row.numel())
    table[dist.get_rank()] = row
    table = _SumOverProcesses.apply(table)  # type: ignore[no-untyped-call]
    means, squares, counts = table[:, :channels], table[:, channels:-1], table[:, -1:]
    count = counts.sum()
    mean = (means * counts).sum(0) / count
    variance = (squares + counts * (means - mean).square()).sum(0) / count
    return mean, variance, count


@torch.no_grad()
def _update_running(module: _BatchNorm, mean: Tensor, variance: Tensor, count: Tensor) -> None:
    if module.num_batches_tracked is not None:
        module.num_batches_tracked.add_(1)
    momentum = module.momentum
    if momentum is None:
        momentum = 1.0 / float(module.num_batches_tracked or 1)
    unbiased = variance * count / (count - 1).clamp(min=1)
    if module.running_mean is not None and module.running_var is not None:
        module.running_mean.lerp_(mean.to(module.running_mean.dtype), momentum)
        module.running_var.lerp_(unbiased.to(module.running_var.dtype), momentum)
