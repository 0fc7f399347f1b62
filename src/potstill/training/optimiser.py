"""The optimiser: which weights decay, how its state is laid out, and the moving average of the weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from potstill.core.errors import UsageError
from potstill.recipe.schema import Training
from potstill.training.dot import Dot
from potstill.training.schedule import peak_learning_rate

NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


def build_optimiser(model: nn.Module, settings: Training) -> torch.optim.Optimizer:
    """Return the optimiser of ``model``'s trainable weights; biases and norm weights are not decayed.

    Raises:
        UsageError: the model has nothing to train.

    """
    decayed, others = decay_groups(model)
    if not decayed and not others:
        raise UsageError(
            "The student has no trainable weights: every parameter has requires_grad=False, or there is none. "
            "Call student.requires_grad_(True), or freeze only some layers."
        )
    groups = [
        {"params": decayed, "weight_decay": settings.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    # The fused implementation is several times faster and, on a GPU, can skip an update without asking the host.
    fused = all(p.is_floating_point() and p.device.type in ("cpu", "cuda") for p in [*decayed, *others])
    rate = peak_learning_rate(settings)
    if settings.optimizer == "sgd":
        optimiser = torch.optim.SGD(groups, lr=rate, momentum=settings.momentum, fused=fused)
        if settings.stages and settings.momentum:
            # Fused SGD cannot take some weights that have a momentum together with some that join later.
            for parameter in (*decayed, *others):
                optimiser.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        return optimiser
    if settings.optimizer == "dot":
        return Dot(groups, lr=rate, momentum=settings.momentum, gap=settings.momentum_gap, clip=settings.gradient_clip)
    return torch.optim.AdamW(groups, lr=rate, fused=fused)


def without_teacher(settings: Training) -> Training:
    """Return the settings of the same training without a teacher: what belongs to distilling is left out.

    That is the second momentum of ``dot``, and ``stages``, in which a student would be held back for nothing.
    """
    optimizer = "sgd" if settings.optimizer == "dot" else settings.optimizer
    return settings.model_copy(update={"optimizer": optimizer, "stages": []})


def decay_groups(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Return the trainable weights that decay, and those that do not: biases, norm weights and single numbers."""
    norms = [module for module in model.modules() if isinstance(module, NORMS)]
    spared = {id(parameter) for module in norms for parameter in module.parameters(recurse=False)}
    decayed: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            spare = id(parameter) in spared or parameter.dim() <= 1 or name.rsplit(".", 1)[-1] == "bias"
            (others if spare else decayed).append(parameter)
    return decayed, others


def optimiser_tensors(optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the optimiser's state as named tensors: ``<parameter number>.<name>``."""
    state = optimiser.state_dict()["state"]
    return {
        f"{index}.{name}": torch.as_tensor(value)
        for index, entry in state.items()
        for name, value in entry.items()
        if value is not None
    }


def restore_optimiser(optimiser: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Put back what `optimiser_tensors` returned, in the memory layout of each parameter."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = tensor
    optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})
    for parameter, entry in optimiser.state.items():
        for name, value in entry.items():
            # Fused kernels walk weights and state side by side in memory: the layouts must be the same.
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                entry[name] = torch.empty_like(parameter).copy_(value)


@torch.no_grad()
def update_average(average: Sequence[Tensor], weights: Sequence[Tensor], decay: float, step: int) -> None:
    """Move the average one step towards the weights.

    The decay of step n is ``min(decay, (1 + n) / (10 + n))``, so that the random first weights are soon forgotten.

    Args:
        average: the moving average, changed in place.
        weights: the weights after this step, in the same order.
        decay: share of the average that is kept each step, once warmed up.
        step: number of steps taken before this one.

    """
    kept = min(decay, (1 + step) / (10 + step))
    torch._foreach_lerp_(list(average), list(weights), 1.0 - kept)
