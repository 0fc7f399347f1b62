"""The linear layer whose output a model answers with, and what it reads.

Shape legend: b samples, h hidden width, c classes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

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
