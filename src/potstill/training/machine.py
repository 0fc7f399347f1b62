"""What a step works with, and what is special about one step."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from potstill.core.signals import Batch, Signals
from potstill.objective import Objective
from potstill.recipe.schema import Training
from potstill.teachers.model import Model
from potstill.training.stages import Stage
from potstill.training.synchronise import Switch
from potstill.training.trainee import Trainee


@dataclass(frozen=True)
class Machine:
    """What stays the same from step to step.

    ``model`` is the trainee as Accelerate prepared it. ``bad`` is there where looking at the gradient is left to the
    device: an update with a gradient that is not finite, and every later one, is skipped there without the host
    waiting. ``switch`` is that of the batch norm that processes share.
    """

    accelerator: Accelerator
    trainee: Trainee
    model: nn.Module
    optimiser: torch.optim.Optimizer
    parameters: tuple[nn.Parameter, ...]
    objective: Objective
    teacher: Model | None
    settings: Training
    stages: tuple[Stage, ...]
    switch: Switch
    bad: Tensor | None = None

    @property
    def device(self) -> torch.device:
        """Where the trainee is."""
        device: torch.device = self.accelerator.device
        return device

    @property
    def term_names(self) -> list[str]:
        """Names of the objective's terms, in its order."""
        return [term.name for term in self.objective.terms]

    def ask_teacher(self, batch: Batch) -> Signals | None:
        """Return what the teacher says of a batch, on the device; None where the objective reads no teacher."""
        if self.teacher is None or not self.objective.needs_teacher:
            return None
        with torch.no_grad():
            signals = self.teacher(batch)
        return {name: signals[name].to(self.device, non_blocking=True) for name in self.objective.teacher_signals}


@dataclass(frozen=True)
class Moment:
    """One step of a training.

    Attributes:
        count: samples of the global batch.
        progress: share of training that is done, for weights that change.
        rate: learning rate.
        whole: whether every process holds the whole global batch, because it is too small to be split.
        report: whether to look at the gradient of each term as well, which takes a backward pass for each.

    """

    count: int
    progress: float
    rate: float
    whole: bool = False
    report: bool = False
