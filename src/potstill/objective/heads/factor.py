"""The head of `factor_transfer`: a paraphraser fitted to the teacher's maps, and a translator of the student's.

Shape legend: b samples, c channels, h and w rows and columns of a map.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from potstill.core.errors import UsageError
from potstill.objective.heads.sides import single
from potstill.objective.probe import Probe, like_weights

_BATCH = 32
_SLOPE = 0.1


class Factor(nn.Module):
    """Codes of equal shape: the teacher's by a frozen paraphraser, the student's by a translator that is trained."""

    scale: Tensor

    def __init__(self, translator: nn.Module, paraphraser: nn.Module, scale: Tensor) -> None:
        super().__init__()
        self.translator = translator
        self.paraphraser = paraphraser.requires_grad_(False)
        self.register_buffer("scale", scale)

    def forward(self, student: Tensor, teacher: Tensor, ids: Tensor) -> dict[str, Any]:
        """Return both sides' factors (b, k, h, w)."""
        student, teacher = single(student, teacher, "factor")
        with torch.no_grad():
            factors = self.paraphraser(like_weights(teacher / self.scale, self.paraphraser))
        return {
            "student_factors": self.translator(like_weights(student, self.translator)),
            "teacher_factors": factors,
        }


def factor(probe: Probe, *, share: float = 0.5, epochs: int = 30) -> nn.Module:
    """Build the head of `potstill.losses.factor_transfer`, and fit its paraphraser.

    The paraphraser is the first half of an autoencoder of three 3x3 convolutions and three transposed ones with leaky
    ReLUs, which learns to restore the teacher's maps in the probe and is then frozen. The translator is built like
    it. Maps of different sizes are averaged to the smaller one.

    Args:
        probe: one map of each side.
        share: above 0, up to 1: the factors' channels, relative to the teacher's.
        epochs: how often the autoencoder sees the probe; more for large layers.

    Raises:
        UsageError: signals that are not maps, a share outside 0 to 1, or a negative number of epochs.

    Jangho Kim, SeongUk Park, Nojun Kwak: Paraphrasing Complex Network: Network Compression via Factor Transfer, 2018,
    arXiv:1802.04977. The paper fits the paraphraser to all training samples, by SGD; here to the probe's, by Adam.

    """
    if not 0 < share <= 1:
        raise UsageError(f"share={share!r} must be above 0 and at most 1.")
    if isinstance(epochs, bool) or not isinstance(epochs, int) or epochs < 0:
        raise UsageError(f"epochs={epochs!r} must be a whole number of at least 0.")
    student, teacher = single(probe.student, probe.teacher, "factor")
    if teacher.dim() != 4:
        raise UsageError(
            f"The head factor takes maps (batch, channels, height, width), not {tuple(teacher.shape)}. "
            "For vectors use hint_mse with normalize=True."
        )
    width = teacher.shape[1]
    codes = max(1, math.ceil(share * width))
    paraphraser, restore = _encoder(width, width, codes), _decoder(codes, width)
    translator = _encoder(student.shape[1], student.shape[1], codes)
    # The factors' directions are compared, so the unit of the teacher's maps is free: 1 suits any learning rate.
    scale = teacher.square().mean().sqrt().clamp_min(1e-6).float()
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast(teacher.device.type, enabled=False):
        _fit(nn.Sequential(paraphraser, restore).to(teacher.device), teacher.float() / scale, epochs)
    return Factor(translator, paraphraser.cpu(), scale.cpu())


def _encoder(before: int, width: int, codes: int) -> nn.Sequential:
    sizes = ((before, width), (width, codes), (codes, codes))
    layers = [(nn.Conv2d(*size, 3, padding=1), nn.LeakyReLU(_SLOPE)) for size in sizes]
    return nn.Sequential(*(module for layer in layers for module in layer))


def _decoder(codes: int, width: int) -> nn.Sequential:
    sizes = ((codes, codes), (codes, width), (width, width))
    layers = [(nn.ConvTranspose2d(*size, 3, padding=1), nn.LeakyReLU(_SLOPE)) for size in sizes]
    return nn.Sequential(*(module for layer in layers for module in layer))


def _fit(autoencoder: nn.Module, maps: Tensor, epochs: int) -> None:
    """Train an autoencoder to restore ``maps``."""
    optimiser = torch.optim.Adam(autoencoder.parameters(), lr=1e-3)
    for _ in range(epochs):
        for rows in torch.split(torch.randperm(len(maps)), _BATCH):
            batch = maps[rows.to(maps.device)]
            optimiser.zero_grad()
            F.mse_loss(autoencoder(batch), batch).backward()  # type: ignore[no-untyped-call]
            optimiser.step()
    optimiser.zero_grad()
