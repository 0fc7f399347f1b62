"""One layer of a model run on inputs that another model made."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from potstill.core.errors import UsageError
from potstill.models.taps import first_tensor, resolve


def run_block(model: nn.Module, layer: str, inputs: Tensor) -> Tensor:
    """Return what one layer of a model makes of inputs from elsewhere.

    Batch norm uses the statistics that its mode asks for, but its running ones stay those of the model's own inputs.

    Args:
        model: the model that owns the layer.
        layer: the layer's dotted name.
        inputs: (b, ...) what the layer is given in place of the model's own values.

    Raises:
        UsageError: no such layer, or it cannot take these inputs.

    """
    block = resolve(model, layer)
    try:
        with _running_statistics_kept(block):
            output = first_tensor(block(inputs))
    except (RuntimeError, TypeError, ValueError) as error:
        raise UsageError(
            f"{type(model).__name__}'s layer {layer!r} cannot take the teacher's signal of shape "
            f"{tuple(inputs.shape[1:])} per sample: {error}. A block runs on the teacher's signal as it is: choose a "
            "teacher's layer with the shape that the student's block expects."
        ) from error
    if output is None:
        raise UsageError(f"{type(model).__name__}'s layer {layer!r} returns no tensor. Choose another layer.")
    return output


@contextmanager
def _running_statistics_kept(block: nn.Module) -> Iterator[None]:
    norms = [module for module in block.modules() if isinstance(module, _BatchNorm)]
    kept = [(norm, norm.momentum) for norm in norms]
    counted = [(norm.num_batches_tracked, norm.num_batches_tracked.clone()) for norm in norms if norm.training
               and norm.num_batches_tracked is not None]  # fmt: skip
    try:
        for norm in norms:
            norm.momentum = 0.0
        yield
    finally:
        for norm, momentum in kept:
            norm.momentum = momentum
        for count, before in counted:
            count.copy_(before)
