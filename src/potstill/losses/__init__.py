"""The mathematics: pure functions from tensors to one number per sample. No state, no reduction over the batch.

Every loss takes the student first, then the teacher or the targets; options are keyword-only. Arithmetic is in float32
(float64 inputs stay float64), the teacher's side is a constant, and ``where`` is a boolean mask of samples to keep.
"""

from __future__ import annotations

from potstill.losses.classification import cross_entropy
from potstill.losses.divergences import forward_kl, jsd, logit_mse, reverse_kl
from potstill.losses.features import hidden_mse
from potstill.losses.regression import huber, mse, teacher_huber, teacher_mse

__all__ = [
    "cross_entropy",
    "forward_kl",
    "hidden_mse",
    "huber",
    "jsd",
    "logit_mse",
    "mse",
    "reverse_kl",
    "teacher_huber",
    "teacher_mse",
]
