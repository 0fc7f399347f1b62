"""Divergences between the student's and the teacher's class distributions beyond the two Kullback-Leibler ones.

Shape legend: ... positions, (b,) where each of b samples is one; c classes.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from potstill.core.errors import UsageError
from potstill.losses._distributions import kl, log_mixture, log_probs
from potstill.losses._shared import keep

_LARGEST_EXPONENT = 60.0
_NEAR = 0.5
"""Below this gap a series replaces a difference that would cancel; its length makes float64 exact."""


def skew_forward_kl(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    skew: float = 0.1,
    temperature: float = 1.0,
    where: Tensor | None = None,
) -> Tensor:
    """`forward_kl` to a mixture that already holds a little of the teacher: the same wish, without explosions.

    Where the student gives a class almost no probability that the teacher finds likely, `forward_kl` and its gradient
    have no bound. A little of the teacher mixed into the student's side bounds both. For language models and many
    classes, where such places are common.

    With p = softmax(teacher / T), q = softmax(student / T) and k = skew:

        T² · KL(p ‖ k · p + (1 − k) · q)

    Args:
        student_logits: (..., c) scores before the softmax, any floating type, −inf for classes without probability.
        teacher_logits: (..., c) the same of the teacher; a constant, no gradient reaches it.
        skew: 0 to below 1, the share of the teacher in the mixture.
        temperature: T > 0 softens both sides; 1 leaves them as they are.
        where: (...) boolean, True for positions to keep; the others give 0 and no gradient, whatever they hold.

    Returns:
        (...) nats, from 0, where both distributions are equal, to −T² · log(skew). float32, or float64 for float64
        logits. A batch of 1 and 2 classes are ordinary cases.

    Raises:
        UsageError: ``skew`` outside its range, or as `forward_kl`.

    Relations: at ``skew=0`` it is `forward_kl`. `jsd` is a sum of the two skewed divergences: ``skew_forward_kl(skew=
    beta) / (1 − beta) + skew_reverse_kl(skew=1 − beta) / beta``. As T → ∞ it becomes (1 − skew)² · ½ · Var_c(student −
    teacher).

    Example:
        >>> import torch
        >>> from potstill.losses import skew_forward_kl
        >>> student, teacher = torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, 2.0]])
        >>> [round(skew_forward_kl(student, teacher, skew=skew).item(), 4) for skew in (0.0, 0.1, 0.9)]
        [0.3278, 0.2726, 0.0059]

    Paper: Jongwoo Ko, Sungnyun Kim, Tianyi Chen, Se-Young Yun: DistiLLM: Towards Streamlined Distillation for Large
    Language Models, 2024, arXiv:2402.03898.

    Deviations: the authors' code leaves out the teacher's entropy, which has no gradient, so that its values
    are not 0 at the minimum. The temperature and T² are those of `forward_kl`; the paper has none.

    """
    student, teacher = log_probs(student_logits, teacher_logits, temperature, where)
    return keep(temperature**2 * kl(teacher, _mixed(student, teacher, skew)), where)


def skew_reverse_kl(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    skew: float = 0.1,
    temperature: float = 1.0,
    where: Tensor | None = None,
) -> Tensor:
    """`reverse_kl` to a mixture that already holds a little of the student: mode seeking, without explosions.

    Where the student believes in a class that the teacher rules out, `reverse_kl` and its gradient have no bound. A
    little of the student mixed into the teacher's side bounds both, also where a student starts far from its
    teacher.

    With p = softmax(teacher / T), q = softmax(student / T) and k = skew:

        T² · KL(q ‖ (1 − k) · p + k · q)

    Args:
        student_logits: (..., c) scores before the softmax, any floating type, −inf for classes without probability.
        teacher_logits: (..., c) the same of the teacher; a constant, no gradient reaches it.
        skew: 0 to below 1, the share of the student in the mixture.
        temperature: T > 0 softens both sides; 1 leaves them as they are.
        where: (...) boolean, True for positions to keep; the others give 0 and no gradient, whatever they hold.

    Returns:
        (...) nats, from 0, where both distributions are equal, to −T² · log(skew). float32, or float64 for float64
        logits. A batch of 1 and 2 classes are ordinary cases.

    Raises:
        UsageError: ``skew`` outside its range, or as `forward_kl`.

    Relations: at ``skew=0`` it is `reverse_kl`. `skew_forward_kl` with the two sides exchanged. As T → ∞ it becomes
    (1 − skew)² · ½ · Var_c(student − teacher).

    Example:
        >>> import torch
        >>> from potstill.losses import skew_reverse_kl
        >>> student, teacher = torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, 2.0]])
        >>> [round(skew_reverse_kl(student, teacher, skew=skew).item(), 4) for skew in (0.0, 0.1, 0.9)]
        [0.4338, 0.3173, 0.0029]

    Paper: Jongwoo Ko, Sungnyun Kim, Tianyi Chen, Se-Young Yun: DistiLLM: Towards Streamlined Distillation for Large
    Language Models, 2024, arXiv:2402.03898.

    Deviations: the student is differentiated on both sides of the divergence, as the formula says. The temperature and
    T² are those of `forward_kl`; the paper has none.

    """
    student, teacher = log_probs(student_logits, teacher_logits, temperature, where)
    return keep(temperature**2 * kl(student, _mixed(teacher, student, skew)), where)


def total_variation(
    student_logits: Tensor, teacher_logits: Tensor, *, temperature: float = 1.0, where: Tensor | None = None
) -> Tensor:
    """Total variation distance: the probability that is in the wrong place.

    Symmetric and bounded, so no sample can dominate a batch: for noisy teachers, and for students that will draft for
    their teacher, where the probability of an accepted draft is 1 minus this distance. Its gradient does not
    fade as the two come close, which makes the end of the training restless; `jsd` is the smooth alternative.

    With p = softmax(teacher / T) and q = softmax(student / T):

        T² · ½ · Σ_c |p_c − q_c|

    Args:
        student_logits: (..., c) scores before the softmax, any floating type, −inf for classes without probability.
        teacher_logits: (..., c) the same of the teacher; a constant, no gradient reaches it.
        temperature: T > 0 softens both sides; 1 leaves them as they are.
        where: (...) boolean, True for positions to keep; the others give 0 and no gradient, whatever they hold.

    Returns:
        (...) from 0, where both distributions are equal, to T². float32, or float64 for float64 logits. A batch of 1
        and 2 classes are ordinary cases.

    Raises:
        UsageError: as `forward_kl`.

    Relations: its square is at most half of `forward_kl` and of `reverse_kl` (Pinsker), at T = 1.

    Example:
        >>> import torch
        >>> from potstill.losses import total_variation
        >>> student, teacher = torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, 2.0]])
        >>> round(total_variation(student, teacher).item(), 4)
        0.3808

    Paper: Yuqiao Wen, Zichao Li, Wenyu Du, Lili Mou: f-Divergence Minimization for Sequence-Level Knowledge
    Distillation, 2023, arXiv:2307.15190.

    Deviations: the temperature and T² are those of all losses here; the paper has none. Since an absolute value
    has no second order, T² more than makes up for what the temperature takes: the gradient grows with T. Divide the
    weight of the term by T to keep it.

    """
    student, teacher = log_probs(student_logits, teacher_logits, temperature, where)
    # |p - q| as the larger of the two times 1 - exp(-|log p - log q|), which does not cancel
    larger = torch.maximum(student, teacher)
    gap = (student - teacher).masked_fill(larger == -torch.inf, 0.0).abs()
    return keep(-0.5 * temperature**2 * (larger.exp() * (-gap).expm1()).sum(dim=-1), where)


def alpha_beta(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    teacher_power: float = 0.2,
    student_power: float = 0.7,
    temperature: float = 1.0,
    where: Tensor | None = None,
) -> Tensor:
    """Alpha-beta divergence (ABKD): two dials, how much errors on likely classes weigh and how sure the student is.

    A family that holds both Kullback-Leibler divergences, the squared distance of probabilities and that of their
    logarithms. A larger ``student_power`` concentrates on what the student already believes, a smaller sum of the two
    powers looks more at the unlikely classes. Try it when `forward_kl` leaves the student too spread out and
    `reverse_kl` too narrow.

    With p = softmax(teacher / T), q = softmax(student / T), a = teacher_power and b = student_power:

        −T² / (a · b) · Σ_c [ p_c^a · q_c^b − a / (a + b) · p_c^(a + b) − b / (a + b) · q_c^(a + b) ]

    and its limits where a, b or a + b is 0.

    Args:
        student_logits: (..., c) scores before the softmax, any floating type, −inf for classes without probability.
        teacher_logits: (..., c) the same of the teacher; a constant, no gradient reaches it.
        teacher_power: finite, the power of the teacher's probabilities (the paper's α).
        student_power: finite, the power of the student's probabilities (the paper's β).
        temperature: T > 0 softens both sides; 1 leaves them as they are.
        where: (...) boolean, True for positions to keep; the others give 0 and no gradient, whatever they hold.

    Returns:
        (...) at least 0, and 0 where both distributions are equal. float32, or float64 for float64 logits. A batch of 1
        and 2 classes are ordinary cases.

    Raises:
        UsageError: a power that is not finite, or as `forward_kl`.

    Relations: continuous in both powers. (1, 0) is `forward_kl`, (0, 1) `reverse_kl`, (1, 1) half of the squared
    distance of the probabilities, (0, 0) half of that of their logarithms, (½, ½) four times the squared Hellinger
    distance (1 − Σ √(p · q)). Exchanging the two sides and the two powers changes nothing. As T → ∞ it becomes
    c^(1 − a − b) · ½ · Var_c(student − teacher).

    Example:
        >>> import torch
        >>> from potstill.losses import alpha_beta
        >>> student, teacher = torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, 2.0]])
        >>> round(alpha_beta(student, teacher).item(), 4)
        0.4441
        >>> powers = ((1.0, 0.0), (0.0, 1.0), (1.0, 1.0))
        >>> [round(alpha_beta(student, teacher, teacher_power=a, student_power=b).item(), 4) for a, b in powers]
        [0.3278, 0.4338, 0.145]

    Paper: Guanghui Wang, Zhiyong Yang, Zitai Wang, Shi Wang, Qianqian Xu, Qingming Huang: ABKD: Pursuing a Proper
    Allocation of the Probability Mass in Knowledge Distillation via α-β-Divergence, 2025, arXiv:2505.04560. The
    divergence is from Andrzej Cichocki, Sergio Cruces, Shun-ichi Amari: Generalized Alpha-Beta Divergences and Their
    Application to Robust Nonnegative Matrix Factorization, 2011, Entropy 13(1).

    Deviations: none for powers of at least 0. It is evaluated as Σ (log q − log p)² times the second divided difference
    of exp at (a + b) · log p, a · log p + b · log q and (a + b) · log q, which is equal, never negative, and has no
    holes at the limits. Negative powers have no bound where a probability goes to 0; there the exponents are
    cut at 60. The temperature and T² are those of `forward_kl`; the paper has none.

    """
    for name, power in (("teacher_power", teacher_power), ("student_power", student_power)):
        if not math.isfinite(power):
            raise UsageError(f"{name}={power!r} must be a finite number.")
    student, teacher = log_probs(student_logits, teacher_logits, temperature, where)
    total = teacher_power + student_power
    no_student, no_teacher = student == -torch.inf, teacher == -torch.inf
    q, p = (side.masked_fill(no_student | no_teacher, 0.0) for side in (student, teacher))
    points = (total * p, teacher_power * p + student_power * q, total * q)
    values = (q - p).square() * _curvature(*(point.clamp_max(_LARGEST_EXPONENT) for point in points))
    values = torch.where(no_teacher & ~no_student, _against_nothing(student, teacher_power, total), values)
    values = torch.where(no_student & ~no_teacher, _against_nothing(teacher, student_power, total), values)
    return keep(temperature**2 * values.sum(dim=-1), where)


def _against_nothing(log_probs: Tensor, power: float, total: float) -> Tensor:
    """Return what a class adds to the alpha-beta divergence that the other side, raised to ``power``, rules out."""
    if power <= 0 or total <= 0:
        return torch.full_like(log_probs, torch.inf)
    return (total * log_probs).exp() / (power * total)


def _mixed(most: Tensor, little: Tensor, skew: float) -> Tensor:
    """Return the logarithm of (1 - skew) * most + skew * little."""
    if not 0.0 <= skew < 1.0:
        raise UsageError(f"skew={skew!r} must be at least 0 (no mixture) and below 1.")
    return log_mixture(most + math.log1p(-skew), little + math.log(skew)) if skew else most


def _curvature(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    """Return the second divided difference of exp at three points in any order, coinciding or not; ½ at three zeros."""
    low, high = torch.minimum(torch.minimum(x, y), z), torch.maximum(torch.maximum(x, y), z)
    middle = torch.maximum(torch.minimum(x, y), torch.minimum(torch.maximum(x, y), z))
    below, above = middle - low, high - middle
    far = below + above > _NEAR
    # apart, the difference of two first differences does not cancel
    slopes = high.exp() * _mean_decay(above) - middle.exp() * _mean_decay(below)
    apart = slopes / torch.where(far, below + above, 1.0)
    # close, the series in complete symmetric polynomials of the two gaps
    left, right = -below.clamp_max(_NEAR), above.clamp_max(_NEAR)
    power, polynomial, series = torch.ones_like(left), torch.ones_like(left), torch.full_like(left, 0.5)
    for order in range(1, 13):
        power = power * left
        polynomial = polynomial * right + power
        series = series + polynomial / math.factorial(order + 2)
    return torch.where(far, apart, middle.exp() * series)


def _mean_decay(gap: Tensor) -> Tensor:
    """Return the mean of exp(-x) over x from 0 to a gap of at least 0: (1 - exp(-gap)) / gap, and 1 at 0."""
    near, series = gap.clamp_max(_NEAR), torch.ones_like(gap)
    for order in range(14, 1, -1):
        series = 1.0 - near / order * series
    return torch.where(gap > _NEAR, -(-gap).expm1() / gap.clamp_min(_NEAR), series)
