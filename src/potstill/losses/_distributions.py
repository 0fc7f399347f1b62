"""What the losses on class distributions share: softened log-probabilities, divergences, classes.

Shape legend: b samples, c classes.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from potstill.core.errors import UsageError
from potstill.losses._shared import blank, constant, logit_pair, positive, refuse_if


def log_probs(
    student_logits: Tensor, teacher_logits: Tensor, temperature: float, where: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return both sides' softened log-probabilities (..., c), checked, lifted and masked; −inf where a logit is."""
    positive(temperature, "temperature")
    student, teacher = logit_pair(student_logits, teacher_logits, where, min_classes=2)
    return F.log_softmax(student / temperature, dim=-1), F.log_softmax(teacher / temperature, dim=-1)


def kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Return KL(p || q) over the last dimension, as the sum of p * (exp(delta) - 1 - delta) with delta = log q - log p.

    The sum of q - p is 0, so this equals the usual sum of p * (log p - log q). Here every summand is at least 0 and
    nothing cancels, which keeps small divergences exact in float32: a student close to its teacher, high temperatures,
    and mixtures that are nearly one of their parts.

    A class without probability in p adds q alone, whatever its logarithms are: 0 · ∞ = 0. One that p holds possible
    and q does not makes the divergence +∞.
    """
    p, q = log_p.exp(), log_q.exp()
    empty = p == 0
    delta = (log_q - log_p).masked_fill(empty, 0.0)
    near = delta.clamp(-1.0, 1.0)
    values = torch.where(near == delta, p * (near.expm1() - near), q - p - p * delta)
    return torch.where(empty, q, values).sum(dim=-1)


def soft_targets(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Return the cross-entropy of q with p as targets, over the last dimension.

    A class without probability in p adds 0.
    """
    p = log_p.exp()
    return -(p * log_q.masked_fill(p == 0, 0.0)).sum(dim=-1)


def log_mixture(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Return log(p + q) from weighted logarithms; −∞ where both are, without a gradient there."""
    neither = torch.maximum(log_p, log_q) == -torch.inf
    return torch.logaddexp(log_p.masked_fill(neither, 0.0), log_q.masked_fill(neither, 0.0)).masked_fill(
        neither, -torch.inf
    )


def log_softmax_of_others(logits: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
    """Return the log-softmax (..., c - 1) over the classes but each row's own, and which rows (...) have none left.

    A row in which all other classes are −inf has no distribution over them; it is given as uniform.
    """
    rest = others(logits, classes)
    none = rest.amax(dim=-1) == -torch.inf
    return F.log_softmax(rest.masked_fill(none[..., None], 0.0), dim=-1), none


def hold_classes(targets: Tensor) -> bool:
    """Whether targets are of a type that classes come in."""
    return not (targets.is_floating_point() or targets.is_complex() or targets.dtype == torch.bool)


def as_classes(targets: Tensor, where: Tensor | None, num_classes: int) -> Tensor:
    """Return targets (...) as classes; positions that are masked out have class 0."""
    classes = blank(constant(targets).long(), where)
    refuse_if(
        (classes < 0) | (classes >= num_classes),
        f"targets must be classes 0 to {num_classes - 1}; some are outside. Leave samples without a label out with "
        "where=, and check that the student has one output for each class.",
    )
    return classes


def only_classes(targets: Tensor, where: Tensor | None, logits: Tensor, *, instead: str) -> Tensor:
    """Return targets (...) as classes where a loss has no meaning for probabilities, and name another loss."""
    if not hold_classes(targets) or targets.shape != logits.shape[:-1]:
        raise UsageError(
            f"targets must be integer classes of shape {tuple(logits.shape[:-1])}, not {targets.dtype} of shape "
            f"{tuple(targets.shape)}. For mixed samples use {instead}, which reads no labels."
        )
    return as_classes(targets, where, logits.shape[-1])


def others(rows: Tensor, classes: Tensor) -> Tensor:
    """Return (..., c - 1): each row of (..., c) without its own class."""
    index = torch.arange(rows.shape[-1] - 1, device=rows.device).expand(*classes.shape, -1)
    return rows.gather(-1, index + (index >= classes[..., None]))


def own(rows: Tensor, classes: Tensor) -> Tensor:
    """Return (...): the element of each row of (..., c) at its own class."""
    return rows.gather(-1, classes[..., None]).squeeze(-1)


def at_least_zero(weight: float, name: str) -> float:
    """Return ``weight`` if it is a finite number of at least 0."""
    if not (math.isfinite(weight) and weight >= 0):
        raise UsageError(f"{name}={weight!r} must be a finite number of at least 0.")
    return float(weight)
