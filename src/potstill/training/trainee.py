"""Everything that has weights to train, as one module."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from potstill.core.names import parse
from potstill.core.signals import Signals
from potstill.models.blocks import run_block
from potstill.models.input_gradients import INPUT_GRADIENT, differentiable, input_gradient
from potstill.models.load import output_signals
from potstill.objective import Objective, apply_heads
from potstill.training.precision import autocast, channels_last

Shape = tuple[int, ...]


class Trainee(nn.Module):
    """Preprocessing, student, taps and the heads of the terms, as one module.

    One module, so that a distributed wrapper sees every parameter and one forward pass serves every term.
    """

    def __init__(
        self,
        student: nn.Module,
        preprocess: nn.Module,
        heads: nn.ModuleDict,
        *,
        objective: Objective,
        tapped: Mapping[str, Tensor],
        dtype: torch.dtype | None,
        device: torch.device,
        images: bool,
    ) -> None:
        super().__init__()
        self.student = student
        self.preprocess = preprocess
        self.heads = heads
        self.device = device
        self._terms = objective.terms
        signals = map(parse, sorted(objective.student_signals))
        self._blocks = [(signal, signal.fed) for signal in signals if signal.fed is not None]
        self._differentiates = INPUT_GRADIENT in objective.student_signals
        self._tapped = tapped
        self._dtype = dtype
        self._images = images

    def forward(
        self, inputs: Tensor, teacher_signals: Signals | None, ids: Tensor, views: Tensor
    ) -> tuple[dict[str, Tensor], dict[str, dict[str, Any]]]:
        """Return the student's signals for raw inputs, and what the heads prepared for their terms, in float32."""
        signals = self.all_signals(inputs, teacher_signals, ids, views)
        with autocast(self._dtype, self.device):
            prepared = apply_heads(self.heads, self._terms, signals, teacher_signals, ids.to(self.device))
        return signals, {key: {name: _float(value) for name, value in one.items()} for key, one in prepared.items()}

    def all_signals(
        self, inputs: Tensor, teacher_signals: Signals | None, ids: Tensor, views: Tensor
    ) -> dict[str, Tensor]:
        """Return the student's signals, its blocks on the teacher's signals and its input gradient included."""
        graph = torch.is_grad_enabled()
        with torch.enable_grad() if self._differentiates else nullcontext():
            inputs = differentiable(inputs) if self._differentiates else inputs
            signals = self.signals(inputs)
            if self._differentiates:
                found = input_gradient(signals["logits"], inputs, ids, views, create_graph=graph)
                signals[INPUT_GRADIENT] = found
        with autocast(self._dtype, self.device):
            for block, fed in self._blocks:
                signals[block.name] = run_block(self.student, block.layer, (teacher_signals or {})[fed]).float()
        return signals

    def signals(self, inputs: Tensor) -> dict[str, Tensor]:
        """Return the student's signals for raw inputs in float32."""
        inputs = self.preprocess(inputs)
        if self._images:
            inputs = channels_last(inputs)
        with autocast(self._dtype, self.device):
            signals = {**output_signals(self.student, self.student(inputs)), **self._tapped}
        return {name: signal.float() for name, signal in signals.items()}


def made_shapes(
    objective: Objective, student: nn.Module, teacher: Mapping[str, Shape] | None, inputs: Shape
) -> dict[str, Shape]:
    """Return the shapes, for one sample, of the signals that a trainee makes and that no tap of the student gives.

    Args:
        objective: says which are read.
        student: put in eval mode.
        teacher: shapes of the teacher's signals, without the batch.
        inputs: shape of one raw sample.

    Raises:
        UsageError: a block that cannot take the teacher's signal.

    """
    student.eval()
    shapes = {INPUT_GRADIENT: inputs} if INPUT_GRADIENT in objective.student_signals else {}
    for block in map(parse, sorted(objective.student_signals)):
        if teacher is not None and block.fed is not None and block.fed in teacher:
            with torch.no_grad():
                made = run_block(student, block.layer, torch.zeros(2, *teacher[block.fed]))
            shapes[block.name] = tuple(made.shape[1:])
    return shapes


def _float(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(_float(one) for one in value)
    return value.float() if isinstance(value, Tensor) and value.is_floating_point() else value
