"""Learning rates as a pure function of how far training has come."""

from __future__ import annotations

import math

from potstill.core.errors import UsageError
from potstill.recipe.schema import Training

DEFAULT_LEARNING_RATE = {"sgd": 0.1, "adamw": 0.002, "dot": 0.1}
ONE_CYCLE_RISE = 0.3
ONE_CYCLE_START = 1 / 25


def peak_learning_rate(settings: Training) -> float:
    """Return the highest learning rate of the schedule: the one that was set, else the optimiser's usual one.

    Raises:
        UsageError: the optimiser or the rate is still ``auto``.

    """
    if settings.optimizer == "auto" or settings.learning_rate == "auto":
        raise UsageError(
            f"optimizer={settings.optimizer!r} and learning_rate={settings.learning_rate!r}: say both, or let "
            "potstill.training.rates.candidates fill them in."
        )
    return settings.learning_rate or DEFAULT_LEARNING_RATE[settings.optimizer]


def learning_rate_at(progress: float, settings: Training) -> float:
    """Return the learning rate at one moment of training.

    Use it for drawing or checking a schedule; the loop calls it once a step. ``p`` is progress, ``w`` the warm-up
    share and ``r = (p - w) / (1 - w)`` the share of what comes after it:

    - ``constant``: rises linearly from 0 over ``w``, then stays at the peak.
    - ``cosine``, ``auto``: rises linearly from 0 over ``w``, then falls as ``(1 + cos(pi r)) / 2`` to 0.
    - ``one_cycle``: rises along a half cosine from 1/25 of the peak over ``max(w, 0.3)``, then falls as ``cosine``
      does (Smith and Topin, Super-Convergence, 2018, arXiv 1708.07120).

    Args:
        progress: share of training that is done, 0 to 1. The loop passes the middle of each step, so that neither
            the first nor the last step has learning rate 0.
        settings: schedule, warm-up, optimiser and learning rate.

    Returns:
        The learning rate, between 0 and the peak.

    Raises:
        UsageError: ``progress`` is not a number from 0 to 1.

    """
    if not 0.0 <= progress <= 1.0:
        raise UsageError(f"learning_rate_at got progress={progress}: expected a share of training from 0 to 1.")
    peak = peak_learning_rate(settings)
    if settings.schedule == "one_cycle":
        rise = max(settings.warmup, ONE_CYCLE_RISE)
        if progress < rise:
            share = (1.0 - math.cos(math.pi * progress / rise)) / 2.0
            return peak * (ONE_CYCLE_START + (1.0 - ONE_CYCLE_START) * share)
        return peak * _cosine((progress - rise) / (1.0 - rise))
    if progress < settings.warmup:
        return peak * progress / settings.warmup
    if settings.schedule == "constant":
        return peak
    return peak * _cosine((progress - settings.warmup) / (1.0 - settings.warmup))


def progress_at(step: int, total_steps: int, elapsed: float, minutes: float | None) -> float:
    """Return how far training has come at the middle of a step: by steps or by time, whichever is further.

    Args:
        step: number of optimiser steps already taken.
        total_steps: number of steps of the whole training.
        elapsed: seconds spent so far, earlier interrupted runs included.
        minutes: time limit, or None.

    """
    by_steps = (step + 0.5) / total_steps
    by_time = elapsed / (60.0 * minutes) if minutes else 0.0
    return min(1.0, max(by_steps, by_time))


def _cosine(share: float) -> float:
    return (1.0 + math.cos(math.pi * min(1.0, max(0.0, share)))) / 2.0
