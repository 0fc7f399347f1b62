"""DOT: stochastic gradient descent with a momentum of its own for what the teacher says."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

Tensors = list[Tensor] | tuple[Tensor, ...]
HARD, SOFT = "hard_momentum", "soft_momentum"


class Dot(torch.optim.Optimizer):
    """Gradient descent with two momenta: a smaller one for the hard gradient, a larger one for the soft gradient.

    With ``h`` and ``s`` the gradients of the terms without and with a teacher, momentum ``m`` and gap ``g``::

        hard = (m - g) hard + h + weight_decay * weight
        soft = (m + g) soft + s
        weight = weight - lr (hard + soft)

    The larger momentum lets the teacher's gradient lead where the two disagree. With ``g = 0`` this is
    `torch.optim.SGD`, up to rounding.

    Args:
        params: parameters, or groups of them.
        lr: learning rate.
        momentum: ``m``.
        gap: ``g``; the paper's is 0.075 for CIFAR-100 and 0.09 for ImageNet, at a momentum of 0.9.
        weight_decay: decays as SGD does, on the hard side as in the authors' code.
        clip: largest norm of the sum of both gradients; both are scaled by what its clipping leaves of it.

    Borui Zhao, Quan Cui, Renjie Song, Jiajun Liang: DOT: A Distillation-Oriented Trainer, ICCV 2023,
    arXiv:2307.08436.

    """

    def __init__(
        self,
        params: Iterable[Any],
        *,
        lr: float,
        momentum: float,
        gap: float,
        weight_decay: float = 0.0,
        clip: float | None = None,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "gap": gap, "weight_decay": weight_decay})
        self.parts: Mapping[nn.Parameter, tuple[Tensor, Tensor]] = {}
        """The hard and the soft gradient of each parameter; set before each step, beside their sum in ``.grad``."""
        self._clip = clip

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # noqa: ARG002 - torch's signature
        """Update every parameter that has a gradient."""
        scale = self._scale()
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            if not parameters:
                continue
            hard: Tensors = [self.parts[parameter][0] for parameter in parameters]
            soft: Tensors = [self.parts[parameter][1] for parameter in parameters]
            if scale is not None:
                hard, soft = torch._foreach_mul(hard, scale), torch._foreach_mul(soft, scale)
            if group["weight_decay"]:
                hard = torch._foreach_add(hard, parameters, alpha=group["weight_decay"])
            for name, gradients, change in ((HARD, hard, -group["gap"]), (SOFT, soft, group["gap"])):
                momenta = [self._momentum(parameter, name) for parameter in parameters]
                torch._foreach_mul_(momenta, group["momentum"] + change)
                torch._foreach_add_(momenta, gradients)
                torch._foreach_add_(parameters, momenta, alpha=-group["lr"])

    def _scale(self) -> Tensor | None:
        """Return what clipping leaves of both gradients: the sum's limit over its norm, as torch clips."""
        if self._clip is None:
            return None
        sums = [hard + soft for parameter, (hard, soft) in self.parts.items() if parameter.grad is not None]
        return (self._clip / (nn.utils.get_total_norm(sums) + 1e-6)).clamp(max=1.0)

    def _momentum(self, parameter: nn.Parameter, name: str) -> Tensor:
        state = self.state[parameter]
        if name not in state:
            state[name] = torch.zeros_like(parameter)
        momentum: Tensor = state[name]
        return momentum
