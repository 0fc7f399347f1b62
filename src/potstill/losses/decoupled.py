"""Losses that read the teacher's answer in parts: the true class, the other classes, how hard the sample is.

Shape legend: ... positions, (b,) where each of b samples is one; c classes.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from potstill.core.errors import UsageError
from potstill.losses._distributions import (
    at_least_zero,
    kl,
    log_softmax_of_others,
    only_classes,
    others,
    own,
    soft_targets,
)
from potstill.losses._shared import keep, logit_pair, positive


def decoupled_kd(
    student_logits: Tensor,
    teacher_logits: Tensor,
    targets: Tensor,
    *,
    temperature: float = 4.0,
    target_weight: float = 1.0,
    non_target_weight: float = 8.0,
    where: Tensor | None = None,
) -> Tensor:
    """Decoupled knowledge distillation (DKD): the true class and the other classes weigh separately.

    In `forward_kl` what the teacher says about the other classes counts only by the probability it leaves to them, so
    that a sure teacher passes little of it on. Here it has a weight of its own. A strong default for
    classification with labels; not for 2 classes, where there is only one other class.

    With y the true class, p = softmax(teacher / T) and q = softmax(student / T), p̂ and q̂ the same over the classes
    other than y only, w = target_weight and v = non_target_weight:

        T² · [ w · KL((p_y, 1 − p_y) ‖ (q_y, 1 − q_y)) + v · KL(p̂ ‖ q̂) ]

    Args:
        student_logits: (..., c) scores before the softmax, any floating type, c at least 3; −inf for
            classes without probability.
        teacher_logits: (..., c) the same of the teacher; a constant, no gradient reaches it.
        targets: (...) integer classes 0 to c − 1.
        temperature: T > 0 softens both sides; 1 leaves them as they are.
        target_weight: at least 0, of the true class against all others (the paper's α).
        non_target_weight: at least 0, of the distribution among the others (the paper's β).
        where: (...) boolean, True for positions to keep; the others give 0 and no gradient, whatever they hold.

    Returns:
        (...) nats, at least 0, and 0 where both distributions are equal. float32, or float64 for float64 logits.
        A batch of 1 is an ordinary case.

    Raises:
        UsageError: shapes differ or are not (..., c); fewer than 3 classes (use `forward_kl`); targets that are not
            classes (...), or out of range (looked at on the CPU only); a weight below 0; a temperature that is not a
            finite number above 0; or a mask that is not boolean (...).

    Relations: with ``target_weight=1`` and, for each sample, 1 − p_y as ``non_target_weight`` it is `forward_kl`. The
    second part alone has the gradient of the second part of `normalized_kd`.

    Example:
        >>> import torch
        >>> from potstill.losses import decoupled_kd
        >>> student, teacher = torch.tensor([[2.0, 0.0, 0.0]]), torch.tensor([[2.0, 1.0, 0.0]])
        >>> targets = torch.tensor([0])
        >>> round(decoupled_kd(student, teacher, targets, temperature=1.0).item(), 4)
        0.9271
        >>> round(decoupled_kd(student, teacher, targets, temperature=1.0, non_target_weight=0.0).item(), 4)
        0.0395

    Paper: Borui Zhao, Quan Cui, Renjie Song, Yiyu Qiu, Jiajun Liang: Decoupled Knowledge Distillation, 2022,
    arXiv:2203.08679.

    Deviations: none in the formula. The authors' code takes logarithms of probabilities, which is infinite for a
    student that is confidently wrong, and hides the true class by subtracting 1000 from its logit; here everything
    stays in logarithms and the true class is left out. They raise the weight of the term linearly over the first 20
    epochs, beside `cross_entropy` of weight 1; on CIFAR-100 ``non_target_weight`` is 8, 6 or 2 for teachers from
    confident to less confident, on ImageNet 0.5 or 2 with T = 1.

    """
    positive(temperature, "temperature")
    at_least_zero(target_weight, "target_weight")
    at_least_zero(non_target_weight, "non_target_weight")
    student, teacher = logit_pair(student_logits, teacher_logits, where, min_classes=2)
    _enough_classes(student)
    classes = only_classes(targets, where, student, instead="forward_kl")
    target = kl(*(_true_or_not(side / temperature, classes) for side in (teacher, student)))
    non_target = _among_others(kl, student / temperature, teacher / temperature, classes)
    return keep(temperature**2 * (_weighted(target_weight, target) + _weighted(non_target_weight, non_target)), where)


def normalized_kd(
    student_logits: Tensor,
    teacher_logits: Tensor,
    targets: Tensor,
    *,
    temperature: float = 1.0,
    target_weight: float = 1.0,
    non_target_weight: float = 1.5,
    where: Tensor | None = None,
) -> Tensor:
    """Normalised knowledge distillation (NKD): cross-entropy on the true class and, normalised, on the others.

    `cross_entropy` looks at the true class only; this adds the teacher's confidence in it, and what the teacher
    says about the other classes, both as cross-entropies. Meant beside `cross_entropy` of weight 1; not for 2 classes.

    With y the true class, p = softmax(teacher) and q = softmax(student) at temperature 1, p̂ and q̂ the softmax over
    the classes other than y at temperature T, w = target_weight and v = non_target_weight:

        −w · p_y · log q_y − v · T² · Σ_{c ≠ y} p̂_c · log q̂_c

    Args:
        student_logits: (..., c) scores before the softmax, any floating type, c at least 3; −inf for
            classes without probability.
        teacher_logits: (..., c) the same of the teacher; a constant, no gradient reaches it.
        targets: (...) integer classes 0 to c − 1.
        temperature: T > 0 softens the other classes of both sides; the true class is always read at 1.
        target_weight: at least 0, of the true class.
        non_target_weight: at least 0, of the other classes (the paper's γ).
        where: (...) boolean, True for positions to keep; the others give 0 and no gradient, whatever they hold.

    Returns:
        (...) nats, at least ``non_target_weight`` times T² times the entropy of p̂. float32, or float64 for float64
        logits. A batch of 1 is an ordinary case.

    Raises:
        UsageError: as `decoupled_kd`.

    Relations: the second part has the gradient of that of `decoupled_kd`. The first part is `cross_entropy` times the
    teacher's probability of the true class; its minimum is q_y = 1, not the teacher's answer.

    Example:
        >>> import torch
        >>> from potstill.losses import normalized_kd
        >>> student, teacher = torch.tensor([[2.0, 0.0, 0.0]]), torch.tensor([[2.0, 1.0, 0.0]])
        >>> targets = torch.tensor([0])
        >>> round(normalized_kd(student, teacher, targets).item(), 4)
        1.1991
        >>> round(normalized_kd(student, teacher, targets, non_target_weight=0.0).item(), 4)
        0.1594

    Paper: Zhendong Yang, Ailing Zeng, Zhe Li, Tianke Zhang, Chun Yuan, Yu Li: From Knowledge Distillation to
    Self-Knowledge Distillation: A Unified Approach with Normalized Loss and Customized Soft Labels, 2023,
    arXiv:2303.13005.

    Deviations: none in the formula. The authors' code hides the true class by subtracting 1000 from its logit; here it
    is left out.

    """
    positive(temperature, "temperature")
    at_least_zero(target_weight, "target_weight")
    at_least_zero(non_target_weight, "non_target_weight")
    student, teacher = logit_pair(student_logits, teacher_logits, where, min_classes=2)
    _enough_classes(student)
    classes = only_classes(targets, where, student, instead="forward_kl")
    confidence = own(teacher.softmax(dim=-1), classes)
    target = -confidence * own(F.log_softmax(student, dim=-1), classes).masked_fill(confidence == 0, 0.0)
    non_target = _among_others(soft_targets, student / temperature, teacher / temperature, classes)
    softened = _weighted(non_target_weight * temperature**2, non_target)
    return keep(_weighted(target_weight, target) + softened, where)


def weighted_soft_labels(
    student_logits: Tensor,
    teacher_logits: Tensor,
    targets: Tensor,
    *,
    temperature: float = 2.0,
    where: Tensor | None = None,
) -> Tensor:
    """Soft targets that weigh less where the student is already better than the teacher (WSLD).

    Soft targets lower the variance of what is learned and add the teacher's bias. Where the student knows the label
    better than the teacher there is little to gain, so the sample's weight goes to 0; where it knows it worse the
    weight goes to 1. Meant beside `cross_entropy`, when the teacher is wrong on a fair part of the training samples.

    With y the true class, p and q the teacher's and the student's softmax at temperature T, and the cross-entropies of
    both sides with the label at temperature 1 as constants:

        T² · (1 − exp(−CE_student / CE_teacher)) · (−Σ_c p_c · log q_c)

    Args:
        student_logits: (..., c) scores before the softmax, any floating type, −inf for classes without probability.
        teacher_logits: (..., c) the same of the teacher; a constant, no gradient reaches it.
        targets: (...) integer classes 0 to c − 1.
        temperature: T > 0 softens both sides; 1 leaves them as they are.
        where: (...) boolean, True for positions to keep; the others give 0 and no gradient, whatever they hold.

    Returns:
        (...) nats, at least 0. float32, or float64 for float64 logits. A batch of 1 and 2 classes are ordinary cases.

    Raises:
        UsageError: shapes differ or are not (..., c); fewer than 2 classes (use `logit_mse` for single logits); targets
            that are not classes (...), or out of range (looked at on the CPU only); a temperature that is not a finite
            number above 0; or a mask that is not boolean (...).

    Relations: `soft_cross_entropy` times a weight from 0 to 1 without a gradient. Where both sides know the label
    equally well the weight is 1 − 1/e = 0.632.

    Example:
        >>> import torch
        >>> from potstill.losses import weighted_soft_labels
        >>> student, teacher = torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, 2.0]])
        >>> [round(weighted_soft_labels(student, teacher, torch.tensor([y])).item(), 4) for y in (0, 1)]
        [0.7711, 2.7608]
        >>> round(weighted_soft_labels(student, student, torch.tensor([0]), temperature=1.0).item(), 4)
        0.4382

    Paper: Helong Zhou, Liangchen Song, Jiajie Chen, Ye Zhou, Guoli Wang, Junsong Yuan, Qian Zhang: Rethinking Soft
    Labels for Knowledge Distillation: A Bias-Variance Tradeoff Perspective, 2021, arXiv:2102.00650.

    Deviations: none in the formula; the authors' weight of the term is 2.5 beside `cross_entropy` of weight 1. Where
    the teacher's cross-entropy is 0 in floating point the weight is 1, or 0 if the student's is 0 too; their code
    divides by 0 there.

    """
    positive(temperature, "temperature")
    student, teacher = logit_pair(student_logits, teacher_logits, where, min_classes=2)
    classes = only_classes(targets, where, student, instead="forward_kl")
    hard, wanted = (-own(F.log_softmax(side.detach(), dim=-1), classes) for side in (student, teacher))
    limits = torch.finfo(wanted.dtype)
    weight = -torch.expm1(-hard.clamp_max(limits.max) / wanted.clamp(limits.tiny, limits.max))
    log_p, log_q = (F.log_softmax(side / temperature, dim=-1) for side in (teacher, student))
    return keep(temperature**2 * weight * soft_targets(log_p, log_q), where)


def _true_or_not(logits: Tensor, classes: Tensor) -> Tensor:
    """Return (..., 2): the log-probabilities of the true class and of all others together."""
    return F.log_softmax(torch.stack([own(logits, classes), others(logits, classes).logsumexp(dim=-1)], dim=-1), dim=-1)


def _among_others(
    divergence: Callable[[Tensor, Tensor], Tensor], student: Tensor, teacher: Tensor, classes: Tensor
) -> Tensor:
    """Return (...): a divergence of the two distributions over the classes but the true one.

    It is 0 where the teacher gives all of them no probability, and +∞ where only the student does.
    """
    (log_q, none_of_student), (log_p, none_of_teacher) = (
        log_softmax_of_others(side, classes) for side in (student, teacher)
    )
    values = divergence(log_p, log_q).masked_fill(none_of_student, torch.inf)
    return values.masked_fill(none_of_teacher, 0.0)


def _weighted(weight: float, values: Tensor) -> Tensor:
    """Return weight times values, and 0 for a weight of 0 even where the values are infinite."""
    return weight * (values if weight else values.masked_fill(values.isinf(), 0.0))


def _enough_classes(logits: Tensor) -> None:
    if logits.shape[-1] == 2:
        raise UsageError(
            "The logits have 2 classes: beside the true one there is a single other class, and nothing to learn from "
            "its distribution. For 2 classes use forward_kl."
        )
