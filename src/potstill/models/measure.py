"""How large a model is: parameters, arithmetic and bytes."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode


def num_parameters(model: nn.Module) -> int:
    """Return the number of parameters, frozen ones included; shared ones count once."""
    return sum(parameter.numel() for parameter in model.parameters())


def bytes_of_weights(model: nn.Module) -> int:
    """Return the bytes of all parameters and buffers at their present dtype; shared ones count once."""
    tensors: list[Tensor] = [*model.parameters(), *model.buffers()]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def flops(model: nn.Module, example_inputs: Tensor | tuple[Tensor, ...]) -> int:
    """Return the floating point operations of one forward pass: twice the multiply-adds.

    Counts convolutions, matrix products and attention; normalisation, activations and pooling count nothing. Give a
    batch of one for the cost of one sample. The model is run in evaluation mode and is left as it was.

    Args:
        model: the model; put a `Preprocessor` in front to count from raw inputs.
        example_inputs: (b, ...) the model's input, or a tuple of its positional inputs.

    Returns:
        Operations for the whole batch given.

    """
    inputs = example_inputs if isinstance(example_inputs, tuple) else (example_inputs,)
    training = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model(*inputs)
    finally:
        for module, flag in training:
            module.training = flag
    return int(counter.get_total_flops())
