"""Optimisers and learning rates that are left to potstill: what is tried for which kind of model, and what wins.

A training with something left open is raced: every candidate is trained for the same small number of steps with a
complete schedule of its own, and the best on validation is taken. See docs/decisions on automatic rates.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import nn

from potstill.core.errors import DivergedError
from potstill.recipe.schema import Training
from potstill.training.optimiser import NORMS

Kind = Literal["normed", "plain", "attention"]

SHARE = 0.5
"""Largest cost of a race, in trainings."""
LEAST_STEPS = 15
"""Shorter trainings say nothing about rates."""

TABLE: dict[Kind, tuple[tuple[str, float], ...]] = {
    "normed": (("sgd", 0.1), ("sgd", 0.3), ("adamw", 0.03), ("adamw", 0.01), ("sgd", 0.03)),
    "plain": (("sgd", 0.1), ("adamw", 0.03), ("adamw", 0.01), ("sgd", 0.03), ("adamw", 0.003)),
    "attention": (("adamw", 1e-3), ("adamw", 3e-4), ("adamw", 3e-3), ("adamw", 1e-4)),
}
"""What is tried for a model that starts from random weights, the likeliest first."""
LONG = 1_500
"""Steps of a training from which a race of many, a tenth of it for each, says little about its end."""
LONG_TABLE: dict[Kind, tuple[tuple[str, float], ...]] = {"normed": (("sgd", 0.1), ("sgd", 0.3))}
"""What is tried instead in long trainings, for longer: gentler settings are ahead early there and behind at the end."""
TRAINED: dict[Kind, tuple[tuple[str, float], ...]] = {
    "normed": (("sgd", 0.01), ("sgd", 0.03), ("adamw", 1e-3), ("sgd", 0.1), ("adamw", 1e-4)),
    "plain": (("sgd", 0.01), ("sgd", 0.03), ("adamw", 1e-3), ("adamw", 1e-4)),
    "attention": (("adamw", 5e-5), ("adamw", 2e-4), ("adamw", 2e-5), ("adamw", 1e-5)),
}
"""What is tried for a model that was trained before."""
RATES: dict[str, tuple[float, ...]] = {"sgd": (0.1, 0.3, 0.03, 0.01), "adamw": (0.003, 0.01, 0.03, 0.001)}
"""What is tried where the recipe fixes the optimiser; a tenth of it for a model that was trained before."""


@dataclass(frozen=True)
class Tried:
    """One candidate and how its short training ended.

    Attributes:
        optimizer: as in a recipe.
        learning_rate: as in a recipe.
        steps: optimiser steps it was given, fewer where time was up.
        validation: the validation metric at its end; None where it diverged.
        loss: the validation loss there; None where it diverged.
        seconds: it took.

    """

    optimizer: str
    learning_rate: float
    steps: int
    validation: float | None
    loss: float | None
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON data."""
        return asdict(self)


def is_open(settings: Training) -> bool:
    """Return whether the optimiser or the learning rate of a training is left to potstill."""
    return "auto" in (settings.optimizer, settings.learning_rate)


def candidates(settings: Training, model: nn.Module, *, trained: bool = False, steps: int = 0) -> tuple[Training, ...]:
    """Return the settings to try, at least two, the likeliest first; nothing is left open in any of them.

    Args:
        settings: of the recipe; what it fixes is the same in every candidate.
        model: whose kind decides.
        trained: whether it starts from weights that were trained before; found out where norm layers show it.
        steps: of the training; long ones of some kinds of models try less, each for longer.

    """
    trained = trained or looks_trained(model)
    pairs: list[tuple[str, float | None]]
    if settings.optimizer == "auto" and settings.learning_rate == "auto":
        table = TRAINED if trained else TABLE | LONG_TABLE if steps >= LONG else TABLE
        pairs = list(table[kind_of(model)])
    elif settings.optimizer == "auto":
        first = TABLE[kind_of(model)][0][0]
        rate = None if settings.learning_rate == "auto" else settings.learning_rate
        pairs = [(optimizer, rate) for optimizer in dict.fromkeys([first, "sgd", "adamw"])]
    else:
        rates = RATES["adamw" if settings.optimizer == "adamw" else "sgd"]
        pairs = [(settings.optimizer, rate / 10 if trained else rate) for rate in rates]
    return tuple(
        settings.model_copy(update={"optimizer": optimizer, "learning_rate": rate}) for optimizer, rate in pairs
    )


def starting_point(settings: Training, model: nn.Module) -> Training:
    """Return the settings with what is open filled in by the likeliest candidate, untried."""
    return candidates(settings, model)[0] if is_open(settings) else settings


def steps_of_each(count: int, total: int) -> tuple[int, int]:
    """Return how many of ``count`` candidates can be tried, and with how many steps each.

    Args:
        count: candidates there are.
        total: steps of the training they are for; all together get at most half of it.

    Returns:
        fewer than two candidates where the training is too short to try any.

    """
    budget = int(SHARE * total)
    tried = min(count, budget // LEAST_STEPS)
    return (tried, budget // tried) if tried > 1 else (1, 0)


def short(settings: Training, steps: int, total: int) -> Training:
    """Return a candidate's settings for its short training: complete, and with its share of a time limit."""
    minutes = None if settings.minutes is None else settings.minutes * steps / total
    return settings.model_copy(update={"minutes": minutes, "patience": None, "track": [], "gradient_report": False})


def best(tried: Sequence[Tried], *, higher_is_better: bool = True, samples: int | None = None) -> int:
    """Return the number of the candidate that wins.

    The best validation metric wins. Short trainings leave many candidates close together: among those within one
    standard error of the best metric, the lowest validation loss wins, which is less coarse.

    Args:
        tried: the candidates.
        higher_is_better: which way the metric is good.
        samples: validation samples behind a metric that is a share of them; None for a metric of another kind, whose
            error is not known.

    Raises:
        DivergedError: none ended with finite numbers.

    """
    sign = 1.0 if higher_is_better else -1.0
    scores = [-math.inf if one.validation is None or one.loss is None else sign * one.validation for one in tried]
    if max(scores) == -math.inf:
        said = ", ".join(f"{one.optimizer} {one.learning_rate:g}" for one in tried)
        raise DivergedError(
            f"Every setting that was tried diverged to NaN or infinite numbers: {said}. Look at the data and the "
            "objective, fix a lower training.learning_rate (with training.optimizer), or set training.gradient_clip."
        )
    top = max(scores)
    share = min(1.0, max(0.0, top))
    error = math.sqrt(share * (1.0 - share) / samples) if samples else 0.0
    near = [number for number, score in enumerate(scores) if score >= top - error]
    return min(near, key=lambda number: tried[number].loss or 0.0)


def kind_of(model: nn.Module) -> Kind:
    """Return the kind of a model by its layers: with attention, convolutional with norm layers, or any other."""
    modules = list(model.modules())
    if any(isinstance(one, nn.MultiheadAttention) or "attention" in type(one).__name__.lower() for one in modules):
        return "attention"
    convolutions = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
    normed = any(isinstance(one, NORMS) for one in modules)
    return "normed" if normed and any(isinstance(one, convolutions) for one in modules) else "plain"


def looks_trained(model: nn.Module) -> bool:
    """Return whether a norm layer's weights differ from one another, as no initialisation leaves them."""
    weights = (one.weight for one in model.modules() if isinstance(one, NORMS) and isinstance(one.weight, torch.Tensor))
    return any(weight.numel() > 1 and bool((weight != weight.flatten()[0]).any()) for weight in weights)
