"""One temperature that makes confidence honest, fitted on validation and kept only where it helps there.

Guo, Pleiss, Sun, Weinberger, On Calibration of Modern Neural Networks, 2017, arXiv 1706.04599: probabilities are
``softmax(logits / temperature)``. Accuracy and the order of the classes stay as they are.
Shape legend: n examples, c classes.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from potstill.tasks.arrays import Array, Floats, Ints, checked_classes, log_softmax
from potstill.tasks.metrics import nll

FEWEST = 20
"""With fewer validation examples nothing is fitted."""
_FOLDS = 5
_WIDEST = float(np.log(100.0))


@dataclass(frozen=True)
class Calibration:
    """A temperature and what it does to the log loss of validation examples that it was not fitted on.

    Attributes:
        temperature: 1 where none was kept.
        fitted: the temperature that fits all validation examples best.
        log_loss: of the logits as they are, in nats.
        log_loss_calibrated: with temperatures fitted on the other folds.

    """

    temperature: float
    fitted: float
    log_loss: float
    log_loss_calibrated: float

    def to_json(self) -> dict[str, Any]:
        """Return the calibration as JSON data."""
        return asdict(self)


def calibrate(logits: Array, targets: Array) -> Calibration:
    """Fit one temperature to a model, and decide by cross-validation whether to keep it.

    Args:
        logits: (n, c) what it answers to the validation examples.
        targets: (n,) class numbers.

    """
    logits, targets = checked_classes(logits, targets)
    n, raw = len(targets), nll(logits, targets)
    if n < FEWEST:
        return Calibration(1.0, 1.0, raw, raw)
    fitted = fit_temperature(logits, targets)
    fold = np.random.default_rng(0).permutation(n) % _FOLDS
    total = 0.0
    for number in range(_FOLDS):
        out = fold == number
        temperature = fit_temperature(logits[~out], targets[~out], start=fitted)
        total += nll(np.asarray(logits[out], dtype=np.float64) / temperature, targets[out]) * out.sum()
    held_out = float(total / n)
    return Calibration(fitted if held_out < raw else 1.0, fitted, raw, held_out)


def fit_temperature(logits: Array, targets: Ints, *, start: float = 1.0) -> float:
    """Return the temperature with the smallest log loss, between 0.01 and 100.

    The log loss is convex in ``1 / temperature``: Newton's method, kept inside a bracket that always halves. As in
    Laplace's rule and Platt's scaling, one further example counts as answered wrongly: a share ``1 / (n + 2)`` of each
    target goes to the likeliest other class. Where every answer is right, the best temperature would be 0 and every
    confidence 1 otherwise. Examples whose class has a logit of minus infinity have no finite loss at any temperature
    and are left out.

    Args:
        logits: (n, c).
        targets: (n,) class numbers.
        start: a guess.

    """
    wide = np.asarray(logits, dtype=np.float64)
    usable = np.isfinite(wide[np.arange(len(wide)), targets])
    wide, targets = wide[usable], targets[usable]
    if not len(wide):
        return 1.0
    wide = wide - wide.max(axis=1, keepdims=True)
    values = np.where(np.isfinite(wide), wide, 0.0)
    rows, share = np.arange(len(wide)), 1.0 / (len(wide) + 2)
    others = wide.copy()
    others[rows, targets] = -np.inf
    likeliest = others.max(axis=1)
    at_target = values[rows, targets]
    wanted = float(np.where(np.isfinite(likeliest), (1 - share) * at_target + share * likeliest, at_target).mean())
    low, high, place = -_WIDEST, _WIDEST, -float(np.log(start))
    for _ in range(100):
        inverse = float(np.exp(place))
        slope, curvature = _moments(wide * inverse, values, wanted)
        low, high = (low, place) if slope > 0 else (place, high)
        better = inverse - slope / curvature if curvature > 0 else -1.0
        following = float(np.log(better)) if better > 0 else np.inf
        following = following if low < following < high else (low + high) / 2
        if abs(following - place) < 1e-9:
            break
        place = following
    return float(np.exp(-place))


def _moments(scaled: Floats, values: Floats, wanted: float) -> tuple[float, float]:
    """Return slope and curvature of the mean log loss in the inverse temperature."""
    probabilities = np.exp(log_softmax(scaled))
    mean = (probabilities * values).sum(axis=1)
    spread = (probabilities * np.square(values)).sum(axis=1) - np.square(mean)
    return float(mean.mean()) - wanted, float(spread.mean())
