"""What happens to a few rows of logits while they are in the cache: values, and the gradient in place of the logits.

`tile` is the one place that a kernel for an accelerator would replace; everything else in the fused losses is matrix
products and bookkeeping.

Shape legend: r rows (tokens), v vocabulary, k teacher's ids of a row. p is the teacher's and q the student's
distribution, gap = log p − log q.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

# (p, q, gap), each (r, v) -> values (r,) and the derivative (r, v) of each row's value with respect to log q.
# p and gap may be overwritten, q must not be; a multiple of q may be added to the derivative, it changes nothing.
Divergence = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
# student's logits / T (r, v) and the teacher's rows -> values (r,); the logits become the gradient
Compare = Callable[..., Tensor]

_LARGEST_EXPONENT = 60.0


def forward_kl(p: Tensor, q: Tensor, gap: Tensor) -> tuple[Tensor, Tensor]:  # noqa: ARG001
    """KL(p || q)."""
    return gap.mul_(p).sum(1).clamp_min_(0), p.neg_()


def reverse_kl(p: Tensor, q: Tensor, gap: Tensor) -> tuple[Tensor, Tensor]:  # noqa: ARG001
    """KL(q || p)."""
    slope = gap.mul_(q).neg_()
    return slope.sum(1).clamp_min_(0), slope


def jsd(p: Tensor, q: Tensor, gap: Tensor, *, beta: float) -> tuple[Tensor, Tensor]:
    """KL(p || m) / (1 - beta) + KL(q || m) / beta with m = beta p + (1 - beta) q, for 0 < beta < 1.

    The logarithm that is divided by the smaller of beta and 1 - beta comes from log1p, so nothing cancels at the ends.
    """
    if beta <= 0.5:
        gap.clamp_max_(_LARGEST_EXPONENT)
        to_student = gap.exp().sub_(1).mul_(beta).log1p_()  # log(m / q)
        to_teacher = torch.sub(to_student, gap, out=gap)  # log(m / p)
    else:
        gap.clamp_min_(-_LARGEST_EXPONENT)
        to_teacher = gap.neg().exp_().sub_(1).mul_(1 - beta).log1p_()
        to_student = torch.add(to_teacher, gap, out=gap)
    values = to_teacher.mul_(p).sum(1).div_(beta - 1)
    slope = to_student.mul_(q).div_(-beta)
    return values.add_(slope.sum(1)).clamp_min_(0), slope


def skew_forward_kl(p: Tensor, q: Tensor, gap: Tensor, *, skew: float) -> tuple[Tensor, Tensor]:  # noqa: ARG001
    """KL(p || m) with m = skew p + (1 - skew) q, for skew above 0."""
    share = gap.neg_().clamp_max_(_LARGEST_EXPONENT).exp_().mul_(1 - skew)  # (1 - skew) q / p
    mixture = share + skew  # m / p
    slope = share.div_(mixture).mul_(p).neg_()
    return mixture.log_().mul_(p).sum(1).neg_().clamp_min_(0), slope


def skew_reverse_kl(p: Tensor, q: Tensor, gap: Tensor, *, skew: float) -> tuple[Tensor, Tensor]:  # noqa: ARG001
    """KL(q || m) with m = (1 - skew) p + skew q, for skew above 0."""
    mixture = gap.clamp_max_(_LARGEST_EXPONENT).exp_().mul_(1 - skew).add_(skew)  # m / q
    share = torch.div(-skew, mixture).mul_(q)
    minus_log = mixture.log_().mul_(q).neg_()
    return minus_log.sum(1).clamp_min_(0), share.add_(minus_log)


def total_variation(p: Tensor, q: Tensor, gap: Tensor) -> tuple[Tensor, Tensor]:
    """Half of the sum of |p - q|."""
    return p.sub_(q).abs_().sum(1).mul_(0.5), gap.sign_().mul_(q).mul_(-0.5)


def compare_dense(student: Tensor, teacher: Tensor, divergence: Divergence, *, masked: bool) -> Tensor:
    """Compare with the teacher's logits / T (r, v), which are overwritten; ``masked`` if some may be −inf."""
    q, student_total = softmax_(student)
    p, teacher_total = softmax_(teacher)
    excluded = (student == -math.inf, teacher == -math.inf) if masked else None
    # one logarithm of the quotient instead of a difference of logarithms: exact where both sides are close
    gap = teacher.sub_(student).sub_(teacher_total.div_(student_total).log_())
    values, slope = _compare(divergence, p, q, gap, excluded)
    torch.addcmul(slope, q, slope.sum(1, keepdim=True), value=-1, out=student)
    return values


def _compare(
    divergence: Divergence, p: Tensor, q: Tensor, gap: Tensor, excluded: tuple[Tensor, Tensor] | None
) -> tuple[Tensor, Tensor]:
    """Return a divergence's values and slopes; ``excluded`` says which classes student and teacher rule out.

    Such a class adds what it does in the plain losses: 0 · ∞ = 0, and +∞ to a KL whose first side holds it possible.
    """
    if excluded is None:
        return divergence(p, q, gap)
    no_student, no_teacher = excluded
    # finite, so that nothing times 0 is NaN, and as far apart as the bounded divergences can tell
    gap.masked_fill_(no_student, _LARGEST_EXPONENT).masked_fill_(no_teacher, -_LARGEST_EXPONENT)
    gap.masked_fill_(no_student & no_teacher, 0.0)
    impossible = None
    if divergence is forward_kl:
        impossible = (no_student & (p > 0)).any(1)
    elif divergence is reverse_kl:
        impossible = (no_teacher & (q > 0)).any(1)
    values, slope = divergence(p, q, gap)
    return values if impossible is None else values.masked_fill_(impossible, math.inf), slope


def compare_bucket(student: Tensor, ids: Tensor, probabilities: Tensor, divergence: Divergence) -> Tensor:
    """Compare over k + 1 classes: the teacher's ids (r, k) and one bucket for all the others."""
    if ids.shape[1] == student.shape[1]:  # there are no others
        return compare_renormalised(student, ids, probabilities, divergence)
    own = student.gather(1, ids)
    others = student.scatter_(1, ids, -math.inf)
    # relative to the largest of the others, so the bucket cannot underflow; finite where all of them are ruled out
    limits = torch.finfo(student.dtype)
    top = others.amax(1, keepdim=True).clamp_min_(limits.min)
    total = others.sub_(top).exp_().sum(1, keepdim=True)
    log_q = torch.cat([own, top + total.log()], dim=1).log_softmax(1)
    # probabilities that were rounded when they were stored may sum to a little more than 1
    p = probabilities / probabilities.sum(1, keepdim=True).clamp_min(1)
    p = torch.cat([p, (1 - p.sum(1, keepdim=True)).clamp_min_(0)], dim=1)
    q = log_q.exp()
    values, slope = _compare_recorded(divergence, p, q, log_q)
    slope = slope - q * slope.sum(1, keepdim=True)
    others.mul_(slope[:, -1:] / total.clamp_min_(limits.tiny)).scatter_(1, ids, slope[:, :-1])
    return values


def compare_renormalised(student: Tensor, ids: Tensor, probabilities: Tensor, divergence: Divergence) -> Tensor:
    """Compare over the teacher's ids (r, k) alone, both sides renormalised."""
    own = student.gather(1, ids)
    none = own.amax(1, keepdim=True) == -math.inf  # the student rules out all that was recorded
    log_q = own.masked_fill_(none, 0.0).log_softmax(1)
    p, q = probabilities / probabilities.sum(1, keepdim=True), log_q.exp()
    values, slope = _compare_recorded(divergence, p, q, log_q)
    student.zero_().scatter_(1, ids, slope - q * slope.sum(1, keepdim=True))
    return values.masked_fill_(none.squeeze(1), math.inf)


def _compare_recorded(divergence: Divergence, p: Tensor, q: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor]:
    """Return values and slopes with recorded probabilities; one that was recorded as 0 counts as the least number."""
    gap = p.clamp_min(torch.finfo(p.dtype).tiny).log_().sub_(log_q)
    no_student = log_q == -math.inf
    return _compare(divergence, p, q, gap, (no_student, torch.zeros_like(no_student)))


def compare_samples(student: Tensor, ids: Tensor, probabilities: Tensor) -> Tensor:
    """Forward KL to weighted samples (r, k) of the whole vocabulary; an id may come more than once."""
    q, total = softmax_(student)
    gap = probabilities.log() - student.gather(1, ids) + total.log()
    values = torch.where(probabilities > 0, probabilities * gap, 0).sum(1)
    torch.mul(q, probabilities.sum(1, keepdim=True), out=student)
    student.scatter_add_(1, ids, -probabilities)
    return values


def softmax_(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Return the softmax (r, v) and its denominators (r, 1); the logits lose their largest in place."""
    probabilities = logits.sub_(logits.amax(1, keepdim=True)).exp()
    total = probabilities.sum(1, keepdim=True)
    return probabilities.div_(total), total


class Mix(NamedTuple):
    """What a row's value is made of: soft_weight T² divergence + hard_weight cross-entropy."""

    compare: Compare | None
    temperature: float = 1.0
    soft_weight: float = 1.0
    hard_weight: float = 1.0
    scale: float = 1.0
    softcap: float | None = None


def cap_(products: Tensor, bias: Tensor | None, scale: float, softcap: float | None) -> Tensor | None:
    """Turn products (r, v) of hidden states and weights into logits; return the derivative of the soft-cap, if any."""
    if bias is not None:
        products.add_(bias)
    multiply_(products, scale)
    if softcap is None:
        return None
    curve = products.div_(softcap).tanh_()
    derivative = curve.square().neg_().add_(1)
    curve.mul_(softcap)
    return derivative


def tile(
    products: Tensor,
    bias: Tensor | None,
    teacher: tuple[Tensor, ...],
    targets: Tensor | None,
    row_weights: Tensor | None,
    mix: Mix,
) -> Tensor:
    """Return the values (r,) of a few rows and overwrite ``products`` with their gradient.

    The contract, for whoever writes it as a kernel (one for each pair of a compare function and a divergence):
    ``products`` (r, v) are the student's hidden states times the
    head's weight, in float32 or float64, contiguous in v, before ``bias`` (v,), ``scale`` and ``softcap``.
    ``teacher`` is what ``mix.compare`` reads, its rows (r, ...) in the same order; it may be overwritten. ``targets``
    (r,) are classes, or None without a hard term. On return ``products`` holds row_weights_r * d values_r / d
    products_rv. The values are not multiplied by ``row_weights``. Nothing of the size (r, v) but the inputs needs to
    exist.
    """
    derivative = cap_(products, bias, mix.scale, mix.softcap)
    logits = products
    values = logits.new_zeros(len(logits))
    hard = None
    if targets is not None:
        rows = torch.arange(len(logits), device=logits.device)
        hard, total = softmax_(logits)
        values.add_(total.squeeze(1).log_().sub_(logits[rows, targets]), alpha=mix.hard_weight)
        hard[rows, targets] -= 1
        hard.mul_(mix.hard_weight)
    if mix.compare is not None:
        multiply_(logits, 1 / mix.temperature)
        values.add_(mix.compare(logits, *teacher), alpha=mix.soft_weight * mix.temperature**2)
        multiply_(logits, mix.soft_weight * mix.temperature)
        if hard is not None:
            logits.add_(hard)
    elif hard is not None:
        logits.copy_(hard)
    if derivative is not None:
        logits.mul_(derivative)
    multiply_(logits, mix.scale)
    if row_weights is not None:
        logits.mul_(row_weights[:, None])
    return values


def multiply_(tensor: Tensor, number: float) -> None:
    """Multiply in place, unless by 1."""
    if number != 1.0:
        tensor.mul_(number)
