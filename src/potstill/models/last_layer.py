"""The linear layer whose output a model answers with, and what it reads.

Shape legend: b samples, h hidden width, c classes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from potstill.core.errors import UsageError
from potstill.core.scale import TargetScale
from potstill.models.load import output_tensor


@contextmanager
def reading(layer: nn.Module) -> Iterator[list[Tensor]]:
    """Collect what a layer reads, detached, one tensor for each time it runs; use it around forward passes."""
    found: list[Tensor] = []

    def note(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        found.append(inputs[0].detach())

    handle = layer.register_forward_pre_hook(note)
    try:
        yield found
    finally:
        handle.remove()


def last_linear(model: nn.Module, inputs: Tensor) -> str | None:
    """Return the name of the linear layer whose output is the model's answer, or None where there is none.

    Args:
        model: run once as it is, without gradients; put it in evaluation mode first.
        inputs: (b, ...) what the model reads.

    """
    outputs: dict[str, Tensor] = {}
    handles = [
        module.register_forward_hook(lambda _, __, output, name=name: outputs.update({name: output}))
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
    ]
    try:
        with torch.no_grad():
            answer = output_tensor(model(inputs))
    finally:
        for handle in handles:
            handle.remove()
    same = [name for name, output in outputs.items() if output.shape == answer.shape and torch.equal(output, answer)]
    return same[-1] if same else None


def in_standard_units(weight: Tensor, bias: Tensor | None, scale: TargetScale) -> tuple[Tensor, Tensor]:
    """Return weight (c, h) and bias (c,) of a layer that answers in standard units where the given ones do not."""
    mean, std = (torch.tensor(part, dtype=torch.float64, device=weight.device) for part in (scale.mean, scale.std))
    offset = -mean if bias is None else bias.double() - mean
    return (weight.double() / std[:, None]).to(weight.dtype), (offset / std).to(weight.dtype)


@torch.no_grad()
def answer_in_standard_units(model: nn.Module, inputs: Tensor, scale: TargetScale) -> None:
    """Change a model's last linear layer so that it answers values in standard units.

    Raises:
        UsageError: it does not answer with a linear layer that has a bias.

    """
    name = last_linear(model, inputs)
    layer = None if name is None else model.get_submodule(name)
    if not isinstance(layer, nn.Linear) or layer.bias is None:
        raise UsageError(
            f"{type(model).__name__} does not answer with a linear layer that has a bias, so it cannot learn targets "
            "in standard units. Set data.standardise_targets: false, or drop back_to_teacher."
        )
    weight, bias = in_standard_units(layer.weight, layer.bias, scale)
    layer.weight.copy_(weight)
    layer.bias.copy_(bias)
