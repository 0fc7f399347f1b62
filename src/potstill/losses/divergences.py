"""Losses between the student's and the teacher's class distributions.

Shape legend: ... positions, (b,) where each of b samples is one; c classes.
"""

from __future__ import annotations

import math

from torch import Tensor

from potstill.core.errors import UsageError
from potstill.losses._distributions import kl, log_mixture, log_probs, soft_targets
from potstill.losses._shared import finite_logits, keep, logit_pair, unbiased_under_sampling


@unbiased_under_sampling
def forward_kl(
    student_logits: Tensor, teacher_logits: Tensor, *, temperature: float = 1.0, where: Tensor | None = None
) -> Tensor:
    """Kullback-Leibler divergence from the teacher's softened distribution to the student's: classic distillation.

    The default soft loss of classification. It asks the student for probability wherever the teacher has some, so a
    student that is too small spreads out; where it should rather pick one of the teacher's modes, see `reverse_kl`.

    With p = softmax(teacher / T) and q = softmax(student / T):

        T² · Σ_c p_c · (log p_c − log q_c)

    The factor T² keeps the size of the gradient about the same at every temperature, and is always applied.

    Args:
        student_logits: (..., c) scores before the softmax, any floating type, −inf for classes without probability.
        teacher_logits: (..., c) the same of the teacher; a constant, no gradient reaches it.
        temperature: T > 0 softens both sides; 1 leaves them as they are.
        where: (...) boolean, True for positions to keep; the others give 0 and no gradient, whatever they hold.

    Returns:
        (...) nats, at least 0, and 0 where both distributions are equal. float32, or float64 for float64 logits.
        A batch of 1 and 2 classes are ordinary cases.

    Raises:
        UsageError: shapes differ or are not (..., c), fewer than 2 classes (use `logit_mse` for single logits),
            a temperature that is not a finite number above 0, or a mask that is not boolean (...).

    Relations: adding a constant to all logits of a sample changes nothing. As T → ∞ it becomes ½ · Var_c(student −
    teacher), that is half of `logit_mse` of logits centred per sample. `jsd` with ``beta=0`` is this loss. Its
    gradient is that of `cross_entropy` with the teacher's probabilities as targets when T = 1.

    Example:
        >>> import torch
        >>> from potstill.losses import forward_kl
        >>> student, teacher = torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, 2.0]])
        >>> round(forward_kl(student, teacher).item(), 4)
        0.3278
        >>> round(forward_kl(student, teacher, temperature=4.0).item(), 4)
        0.4848

    Paper: Geoffrey Hinton, Oriol Vinyals, Jeff Dean: Distilling the Knowledge in a Neural Network, 2015,
    arXiv:1503.02531.

    Deviations: the paper minimises the cross-entropy with soft targets; it differs by the teacher's entropy, which has
    no gradient, and is not 0 at the minimum. Common implementations average over classes or drop T² in some settings;
    here neither happens. The sum is evaluated as Σ p · (exp(d) − 1 − d) with d = log q − log p, which is equal
    and does not cancel, so that small divergences are exact in float32 and never negative.

    """
    student, teacher = log_probs(student_logits, teacher_logits, temperature, where)
    return keep(temperature**2 * kl(teacher, student), where)


def reverse_kl(
    student_logits: Tensor, teacher_logits: Tensor, *, temperature: float = 1.0, where: Tensor | None = None
) -> Tensor:
    """Kullback-Leibler divergence from the student's softened distribution to the teacher's: mode seeking.

    For a student that cannot represent everything the teacher knows: it may ignore some of the teacher's
    alternatives, and is punished for probability where the teacher has none. Not a good start from an untrained student
    that is confidently wrong: its gradient vanishes where the student's own probability does. Then use `forward_kl`.

    With p = softmax(teacher / T) and q = softmax(student / T):

        T² · Σ_c q_c · (log q_c − log p_c)

    Args:
        student_logits: (..., c) scores before the softmax, any floating type, −inf for classes without probability.
        teacher_logits: (..., c) the same of the teacher; a constant, no gradient reaches it.
        temperature: T > 0 softens both sides; 1 leaves them as they are.
        where: (...) boolean, True for positions to keep; the others give 0 and no gradient, whatever they hold.

    Returns:
        (...) nats, at least 0, and 0 where both distributions are equal. float32, or float64 for float64 logits.
        A batch of 1 and 2 classes are ordinary cases.

    Raises:
        UsageError: as `forward_kl`.

    Relations: `forward_kl` with the two sides exchanged (there the gradient goes to the other side). The same limit as
    T → ∞: ½ · Var_c(student − teacher). `jsd` with ``beta=1`` is this loss.

    Example:
        >>> import torch
        >>> from potstill.losses import reverse_kl
        >>> student, teacher = torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, 2.0]])
        >>> round(reverse_kl(student, teacher).item(), 4)
        0.4338

    Paper: Yuxian Gu, Li Dong, Furu Wei, Minlie Huang: MiniLLM: Knowledge Distillation of Large Language Models, 2023,
    arXiv:2306.08543.

    Deviations: the paper estimates it on whole texts that the student samples, by policy gradient; here it is exact,
    over the classes of each sample. The temperature and T² are those of `forward_kl`; the paper has none.

    """
    student, teacher = log_probs(student_logits, teacher_logits, temperature, where)
    return keep(temperature**2 * kl(student, teacher), where)


def jsd(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    beta: float = 0.5,
    temperature: float = 1.0,
    where: Tensor | None = None,
) -> Tensor:
    """Generalised Jensen-Shannon divergence: everything between `forward_kl` and `reverse_kl`.

    For the ground between covering all of the teacher's alternatives (``beta`` near 0) and picking the likeliest ones
    (``beta`` near 1). Bounded for 0 < beta < 1, so it is gentle with a teacher that is sometimes absurdly sure.

    With p = softmax(teacher / T), q = softmax(student / T) and the mixture m = beta · p + (1 − beta) · q:

        T² · [ KL(p ‖ m) / (1 − beta) + KL(q ‖ m) / beta ]

    Args:
        student_logits: (..., c) scores before the softmax, any floating type, −inf for classes without probability.
        teacher_logits: (..., c) the same of the teacher; a constant, no gradient reaches it.
        beta: 0 to 1, the teacher's share of the mixture.
        temperature: T > 0 softens both sides; 1 leaves them as they are.
        where: (...) boolean, True for positions to keep; the others give 0 and no gradient, whatever they hold.

    Returns:
        (...) nats, at least 0, and 0 where both distributions are equal. float32, or float64 for float64 logits.
        A batch of 1 and 2 classes are ordinary cases.

    Raises:
        UsageError: ``beta`` outside 0 to 1, or as `forward_kl`.

    Relations: continuous in ``beta``: at 0 it is `forward_kl`, at 1 `reverse_kl`. At ½ it is four times the ordinary
    Jensen-Shannon divergence, symmetric in the two sides and at most 4 · ln 2 · T². As T → ∞ it becomes
    ½ · Var_c(student − teacher) for every ``beta``.

    Example:
        >>> import torch
        >>> from potstill.losses import jsd
        >>> student, teacher = torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, 2.0]])
        >>> [round(jsd(student, teacher, beta=beta).item(), 4) for beta in (0.0, 0.5, 1.0)]
        [0.3278, 0.3582, 0.4338]

    Paper: Rishabh Agarwal, Nino Vieillard, Yongchao Zhou, Piotr Stanczyk, Sabela Ramos, Matthieu Geist, Olivier Bachem:
    On-Policy Distillation of Language Models: Learning from Self-Generated Mistakes, 2023, arXiv:2306.13649. The
    weighted divergence is from Jianhua Lin: Divergence Measures Based on the Shannon Entropy, 1991, IEEE Transactions
    on Information Theory 37(1).

    Deviations: the paper's divergence, beta · KL(p ‖ m) + (1 − beta) · KL(q ‖ m), is divided by beta · (1 − beta).
    Undivided it is 0 at both ends, and the two KLs are only the limits of it divided by beta and by 1 − beta, so that
    code which switches to the plain KL at exactly 0 and 1 jumps there; and its gradient fades as ``beta`` nears an end.
    Multiply the weight by beta · (1 − beta) to get the paper's numbers (by ¼ at the default).

    """
    if not 0.0 <= beta <= 1.0:
        raise UsageError(f"beta={beta!r} must lie between 0 (forward KL) and 1 (reverse KL).")
    if beta == 0.0:
        return forward_kl(student_logits, teacher_logits, temperature=temperature, where=where)
    if beta == 1.0:
        return reverse_kl(student_logits, teacher_logits, temperature=temperature, where=where)
    student, teacher = log_probs(student_logits, teacher_logits, temperature, where)
    mixture = log_mixture(teacher + math.log(beta), student + math.log1p(-beta))
    values = kl(teacher, mixture) / (1.0 - beta) + kl(student, mixture) / beta
    return keep(temperature**2 * values, where)


def logit_mse(student_logits: Tensor, teacher_logits: Tensor, *, where: Tensor | None = None) -> Tensor:
    """Mean squared difference of the student's and the teacher's raw logits.

    A soft loss without a temperature to tune, and the one that works with a single logit (binary or ranking scores).
    It also asks the student to copy the common offset of the teacher's logits, which no prediction depends on; where
    the two models' logits live on different scales, use `forward_kl`.

        (1 / c) · Σ_c (student_c − teacher_c)²

    Args:
        student_logits: (..., c) finite scores before the softmax, any floating type; c may be 1.
        teacher_logits: (..., c) the same of the teacher; a constant, no gradient reaches it.
        where: (...) boolean, True for positions to keep; the others give 0 and no gradient, whatever they hold.

    Returns:
        (...) squared logits, 0 where the logits are equal. float32, or float64 for float64 logits.
        A batch of 1 and 1, 2 or many classes are ordinary cases.

    Raises:
        UsageError: shapes differ or are not (..., c), or a mask that is not boolean (...).

    Relations: for logits centred per sample it is twice the limit of `forward_kl`, `reverse_kl` and `jsd` as
    T → ∞. The same formula as `teacher_mse`, which reads values instead of logits. *Not* invariant to adding a
    constant to all logits of a sample.

    Example:
        >>> import torch
        >>> from potstill.losses import logit_mse
        >>> logit_mse(torch.tensor([[0.0, 0.0]]), torch.tensor([[1.0, 3.0]])).tolist()
        [5.0]

    Paper: Lei Jimmy Ba, Rich Caruana: Do Deep Nets Really Need to be Deep?, 2013, arXiv:1312.6184. Compared with the
    divergence in Taehyeon Kim, Jaehoon Oh, NakYil Kim, Sangwook Cho, Se-Young Yun: Comparing Kullback-Leibler
    Divergence and Mean Squared Error Loss in Knowledge Distillation, 2021, arXiv:2105.08919.

    Deviations: the mean over classes, where the paper has half of the sum, so that the weight of the term
    does not depend on the number of classes.

    """
    student, teacher = logit_pair(student_logits, teacher_logits, where, min_classes=1)
    finite_logits(student, "student_logits", instead="forward_kl")
    finite_logits(teacher, "teacher_logits", instead="forward_kl")
    return keep((student - teacher).square().mean(dim=-1), where)


@unbiased_under_sampling
def soft_cross_entropy(
    student_logits: Tensor, teacher_logits: Tensor, *, temperature: float = 1.0, where: Tensor | None = None
) -> Tensor:
    """Cross-entropy of the student's softened distribution with the teacher's as targets.

    What many papers call the distillation loss. The gradient is that of `forward_kl`, the value is larger by the
    teacher's entropy. Use it to compare with numbers from such papers; as a curve to watch, `forward_kl` says more,
    because it is 0 when the student has learned everything.

    With p = softmax(teacher / T) and q = softmax(student / T):

        −T² · Σ_c p_c · log q_c

    Args:
        student_logits: (..., c) scores before the softmax, any floating type, −inf for classes without probability.
        teacher_logits: (..., c) the same of the teacher; a constant, no gradient reaches it.
        temperature: T > 0 softens both sides; 1 leaves them as they are.
        where: (...) boolean, True for positions to keep; the others give 0 and no gradient, whatever they hold.

    Returns:
        (...) nats, at least T² times the teacher's entropy. float32, or float64 for float64 logits. A batch of 1 and 2
        classes are ordinary cases.

    Raises:
        UsageError: as `forward_kl`.

    Relations: `forward_kl` plus T² times the entropy of the teacher's softened distribution, a constant. At T = 1 it
    is `cross_entropy` with the teacher's probabilities as targets.

    Example:
        >>> import torch
        >>> from potstill.losses import soft_cross_entropy
        >>> student, teacher = torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, 2.0]])
        >>> round(soft_cross_entropy(student, teacher).item(), 4)
        0.6931
        >>> round(soft_cross_entropy(teacher, teacher).item(), 4)
        0.3653

    Paper: Geoffrey Hinton, Oriol Vinyals, Jeff Dean: Distilling the Knowledge in a Neural Network, 2015,
    arXiv:1503.02531.

    Deviations: none; the paper advises the factor T², which some implementations leave out here.

    """
    student, teacher = log_probs(student_logits, teacher_logits, temperature, where)
    return keep(temperature**2 * soft_targets(teacher, student), where)
