"""The seam between a run and the ways of learning: what makes a trained model of a specification.

A new way is a file with its `Learner`, and one line here. Only the torch learner looks at a model's layers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from accelerate import Accelerator
from torch import nn

from potstill.data.stream import Stream
from potstill.models.zoo.trees import Trees
from potstill.objective import Objective
from potstill.recipe.schema import Training
from potstill.training.boosted import boost, check_boosted, seconds_boosted
from potstill.training.estimate import estimate
from potstill.training.loop import train
from potstill.training.result import Result
from potstill.training.setup import check_settings
from potstill.training.spec import Spec


class Fit(Protocol):
    """Trains a model in place, until it is as good on validation as it gets.

    In ``folder`` it leaves ``weights.safetensors``, ``history.jsonl`` with a line for each epoch, and ``result.json``.
    Every process calls it alike, and gets the same.
    """

    def __call__(
        self,
        student: nn.Module,
        spec: Spec,
        folder: Path,
        *,
        device: str | torch.device = "auto",
        label: str = "student",
        accelerator: Accelerator | None = None,
    ) -> Result:
        """Return where the weights are and how it went."""


@dataclass(frozen=True)
class Learner:
    """One way of learning.

    Attributes:
        fit: trains a model.
        check: refuses an objective, settings or data that it cannot work with, before anything is trained.
        seconds: says how long a training takes, by a short one of a copy, on a device.
        has_rates: whether the settings' optimiser and learning rate mean anything to it.
        length: says how long a training is, in words.
        ignores: keys of a recipe's student that mean nothing to it, and are refused.

    """

    fit: Fit
    check: Callable[[nn.Module, Objective, Training, Stream], object]
    seconds: Callable[[nn.Module, Spec, torch.device], float]
    has_rates: bool
    length: Callable[[nn.Module, Training], str]
    ignores: tuple[str, ...] = ()


TORCH = Learner(
    train,
    lambda model, objective, settings, stream: check_settings(
        model, objective, settings, samples=sum(stream.sizes(settings.batch_size))
    ),
    lambda model, spec, device: spec.total_steps * estimate(model, spec, device=device),
    has_rates=True,
    length=lambda _, settings: f"{settings.epochs} epochs",
)
TREES = Learner(
    boost,
    check_boosted,
    seconds_boosted,
    has_rates=False,
    length=lambda model, _: f"{model.rounds} rounds",
    ignores=("weights", "taps", "on_features"),
)


def learner_of(model: nn.Module) -> Learner:
    """Return the way in which a model learns."""
    return TREES if any(isinstance(part, Trees) for part in model.modules()) else TORCH
