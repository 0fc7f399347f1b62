"""What a model computes with and its state dict does not hold, and layers that have no weights yet.

A state dict holds parameters and persistent buffers. Buffers with ``persistent=False``, tensors in plain attributes and
weights that an old hook computes anew in every pass are in none, and lazy layers have nothing before their first batch.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize, remove_spectral_norm, remove_weight_norm
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from potstill.core.errors import PotstillError, UsageError
from potstill.core.functions import cause


def has_lazy_layers(model: nn.Module) -> bool:
    """Return whether some layers of a model have no weights before they see a first batch."""
    return any(is_lazy(tensor) for tensor in (*model.parameters(), *model.buffers()))


def initialise_lazy_layers(model: nn.Module, example: Callable[[], Tensor], *, seed: int) -> nn.Module:
    """Give lazy layers (``nn.LazyLinear`` ...) their weights, which depend only on the seed and the inputs' shape.

    Args:
        model: changed in place where it has such layers; otherwise left alone.
        example: makes a batch as the model sees it.
        seed: of the new weights; the global random state is as before afterwards.

    Raises:
        UsageError: the model fails on the batch, or has lazy layers that it does not use.

    """
    if not has_lazy_layers(model):
        return model
    inputs, modes = example(), [(module, module.training) for module in model.modules()]
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.default_generator.manual_seed(seed)
        model.eval()
        try:
            model(inputs)
        except Exception as error:
            shape = tuple(inputs.shape)
            raise UsageError(
                f"The lazy layers of {type(model).__name__} have no weights before a first batch, and on a batch of "
                f"shape {shape} it fails: {cause(error)}."
            ) from error
    if has_lazy_layers(model):
        names = [name for name, tensor in (*model.named_parameters(), *model.named_buffers()) if is_lazy(tensor)]
        raise UsageError(
            f"{type(model).__name__} has lazy layers without weights that its forward does not use: "
            f"{', '.join(names)}. Remove them, or use them."
        )
    for module, training in modes:  # a lazy layer is another class now, the same object
        module.training = training
    return model


def unsaved_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return tensors that a model keeps and its state dict does not, by their place.

    These are buffers with ``persistent=False`` and tensors in plain attributes, also inside lists, tuples and
    dictionaries; not what a hook computes from parameters in every pass.
    """
    found: dict[str, Tensor] = {}
    for path, module in model.named_modules():
        computed = {hook.name for hook in _norms(module)}
        kept = {name: module._buffers[name] for name in sorted(module._non_persistent_buffers_set)}
        kept |= {name: value for name, value in vars(module).items() if not name.startswith("_") or _is_tensor(value)}
        for name, value in kept.items():
            if name not in computed:
                found.update(_tensors(value, f"{path}.{name}" if path else name))
    return found


def restore_unsaved(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Put tensors that `unsaved_tensors` gave into a model of the same kind.

    Raises:
        UsageError: the model has no such tensor, or one of another shape.

    """
    own = unsaved_tensors(model)
    for name, tensor in tensors.items():
        if name not in own or own[name].shape != tensor.shape:
            there = f"has it with shape {tuple(own[name].shape)}" if name in own else "has none"
            raise UsageError(
                f"The student was trained with a tensor '{name}' of shape {tuple(tensor.shape)} beside its weights; "
                f"{type(model).__name__} {there}. Pass the same model."
            )
        with torch.no_grad():
            own[name].copy_(tensor)


def copied(model: nn.Module) -> nn.Module:
    """Return a deep copy of a model, also of one whose weights are computed by the old ``torch.nn.utils.weight_norm``.

    Raises:
        PotstillError: a model that Python cannot copy.

    """
    try:
        with torch.no_grad():
            for module in model.modules():
                for hook in _norms(module):  # what it left of the last pass hangs in a graph
                    setattr(module, hook.name, getattr(module, hook.name).detach())
            return copy.deepcopy(model)
    except Exception as error:
        raise PotstillError(
            f"{type(model).__name__} cannot be copied: {cause(error)}. Training, timing and export work on copies. "
            "Keep what cannot be copied (open files, locks, tensors inside a graph) out of the model."
        ) from error


def without_computed_weights(model: nn.Module) -> nn.Module:
    """Replace weights that are computed in every pass (weight norm, spectral norm, parametrisations) by their values.

    Use it on a copy in evaluation mode, for export: it answers the same.
    """
    for module in list(model.modules()):
        for hook in _norms(module):
            (remove_weight_norm if isinstance(hook, WeightNorm) else remove_spectral_norm)(module, hook.name)
        if parametrize.is_parametrized(module):
            shared = type(module)  # with the model that this is a copy of, and changed below
            module.__class__ = type(shared.__name__, shared.__bases__, dict(vars(shared)))
            for name in list(module.parametrizations):  # type: ignore[arg-type]
                parametrize.remove_parametrizations(module, name, leave_parametrized=True)
    return model


def _norms(module: nn.Module) -> list[Any]:
    return [hook for hook in module._forward_pre_hooks.values() if isinstance(hook, WeightNorm | SpectralNorm)]


def _is_tensor(value: Any) -> bool:
    return isinstance(value, Tensor)


def _tensors(value: Any, place: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield place, value
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _tensors(item, f"{place}.{index}")
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _tensors(item, f"{place}.{key}")
