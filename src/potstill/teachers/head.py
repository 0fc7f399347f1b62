"""A linear head on features of samples with labels: how it is fitted, and how its strength is chosen.

Shape legend: n samples, p features, c classes or outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torch.nn import functional as F

from potstill.core import random
from potstill.core.errors import TrainingError
from potstill.core.scale import Array

STRENGTHS = (10.0, 1.0, 0.1, 0.01, 1e-3, 1e-4)
"""Penalties that are tried, the strongest first: of equally good ones it is taken."""
FOLDS = 5
_ROUNDS = 1_000
_CLOSE = 1e-6
"""Largest derivative at the minimum."""
_SAME = 1e-7
"""Spread of a feature over its mean, below which float32 knows a constant only."""


@dataclass(frozen=True)
class Head:
    """A linear map of standardised features, float64.

    Attributes:
        mean: (p,) of each feature.
        spread: (p,) standard deviation of each feature; infinite where it is constant, so that it is not read.
        weight: (c, p).
        bias: (c,).

    """

    mean: Tensor
    spread: Tensor
    weight: Tensor
    bias: Tensor

    def __call__(self, features: Tensor) -> Tensor:
        """Return (n, c) logits or values of features (n, p), float64."""
        mean, spread, weight, bias = (tensor.to(features.device) for tensor in self.state().values())
        return F.linear((features.double() - mean) / spread, weight, bias)

    def state(self) -> dict[str, Tensor]:
        """Return its tensors by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


def starting_head(width: int, outputs: int, *, seed: int = 0) -> Head:
    """Return a head that has learned nothing: small random weights, so that shapes and losses can be tried."""
    generator = torch.Generator().manual_seed(random.seed_of(seed))
    weight = torch.randn(outputs, width, generator=generator, dtype=torch.float64) / max(1, width) ** 0.5
    return Head(torch.zeros(width).double(), torch.ones(width).double(), weight, torch.zeros(outputs).double())


def fit_head(features: Tensor, targets: Tensor, strength: float, *, outputs: int) -> Head:
    """Return the head that predicts targets best, with a penalty on its weights.

    With x the features, standardised over these samples, so that their units do not count, and a bias without penalty:

        mean of cross-entropy(W x + b, y) + ½ · strength · ‖W‖²       classes
        mean of ‖W x + b − y‖² + strength · ‖W‖²                      values

    Both have one minimum. scikit-learn calls it LogisticRegression(C=1 / (n · strength)) and
    Ridge(alpha=n · strength).

    Args:
        features: (n, p).
        targets: (n,) int64 classes, or (n, c) values.
        strength: of the penalty, above 0.
        outputs: c.

    Raises:
        TrainingError: the minimum was not reached.

    """
    features = features.double()
    mean, spread = features.mean(0), features.std(0, correction=0)
    spread = torch.where(spread > _SAME * mean.abs(), spread, torch.inf)
    x = (features - mean) / spread
    weight, bias = _ridge(x, targets, strength) if targets.dim() == 2 else _logistic(x, targets, strength, outputs)
    return Head(mean, spread, weight, bias)


def _ridge(x: Tensor, targets: Tensor, strength: float) -> tuple[Tensor, Tensor]:
    bias = targets.double().mean(0)
    left, sizes, right = torch.linalg.svd(x, full_matrices=False)
    shrunk = sizes / (sizes.square() + len(x) * strength)
    return ((left.T @ (targets.double() - bias)) * shrunk[:, None]).T @ right, bias


def _logistic(x: Tensor, targets: Tensor, strength: float, outputs: int) -> tuple[Tensor, Tensor]:
    # In the coordinates of the singular vectors there are no more than n of them, and the penalty is the same.
    left, sizes, right = torch.linalg.svd(x, full_matrices=False)
    x = left * sizes
    weight = torch.zeros(outputs, x.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(outputs, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS(
        [weight, bias],
        max_iter=_ROUNDS,
        history_size=20,
        tolerance_grad=_CLOSE,
        tolerance_change=0.0,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = F.cross_entropy(F.linear(x, weight, bias), targets) + 0.5 * strength * weight.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    with torch.inference_mode(False), torch.enable_grad():
        optimiser.step(closure)  # type: ignore[no-untyped-call]
        closure()
    steepest = max(float(value.grad.abs().max()) for value in (weight, bias) if value.grad is not None)
    if not steepest <= 10 * _CLOSE:
        raise TrainingError(f"The head was not fitted in {_ROUNDS} rounds: a derivative of {steepest:.2g} is left.")
    return weight.detach() @ right, bias.detach()


def choose_head(features: Tensor, targets: Tensor, *, outputs: int, seed: int) -> tuple[Head, float, Tensor]:
    """Fit a head with the strength that predicts best what it was not fitted on.

    Each sample is predicted by a head that was fitted on the other folds; classes are spread evenly over the folds.
    The head that is returned is fitted on all samples.

    Args:
        features: (n, p).
        targets: (n,) int64 classes, or (n, c) values.
        outputs: c.
        seed: of the folds.

    Returns:
        the head, the strength, and (n, c) what heads of this strength predict of the samples that they did not see.

    """
    folds = _folds(targets, seed)
    tried = []
    for strength in STRENGTHS:
        unseen = torch.zeros(len(features), outputs, dtype=torch.float64)
        for fold in range(FOLDS):
            held = folds == fold
            unseen[held] = fit_head(features[~held], targets[~held], strength, outputs=outputs)(features[held])
        loss = F.mse_loss(unseen, targets.double()) if targets.dim() == 2 else F.cross_entropy(unseen, targets)
        tried.append((float(loss), strength, unseen))
    _, strength, unseen = min(tried, key=lambda one: one[0])
    return fit_head(features, targets, strength, outputs=outputs), strength, unseen


def _folds(targets: Tensor, seed: int) -> Tensor:
    """Return (n,) the fold of each sample."""
    shuffled = torch.from_numpy(random.permutation(len(targets), seed))
    if targets.dim() == 1:
        shuffled = shuffled[targets[shuffled].argsort(stable=True)]
    folds = torch.empty(len(targets), dtype=torch.int64)
    folds[shuffled] = torch.arange(len(targets)) % FOLDS
    return folds


def too_few(targets: Array, classes: Sequence[str]) -> str:
    """Return why targets (n, ...) are too few to learn a head from, in words; an empty text where they are not."""
    if len(targets) < 2 * FOLDS:
        return f"it has {len(targets)} samples, of which {FOLDS} folds need {2 * FOLDS}"
    rare = [name for label, name in enumerate(classes) if int((targets == label).sum()) < 2]
    return f"fewer than two of its samples are of the class {', '.join(rare[:5])}" if rare else ""
