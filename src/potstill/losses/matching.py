"""Losses that match how the answers to a batch relate to each other, within samples and within classes.

Shape legend: b samples, c classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from potstill.core.errors import UsageError
from potstill.losses._distributions import at_least_zero, kl
from potstill.losses._maps import product, unit
from potstill.losses._related import put_back
from potstill.losses._shared import logit_pair, over_batch, positive


@over_batch
def dist(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    temperature: float = 1.0,
    inter_weight: float = 1.0,
    intra_weight: float = 1.0,
    where: Tensor | None = None,
) -> Tensor:
    """Match relations instead of values (DIST): correlations over the classes and over the samples of a batch.

    For a teacher that is much stronger than the student: its probabilities cannot be copied, but which classes a sample
    resembles more (inter), and which samples resemble a class more (intra), can. It asks for the probabilities only up
    to a scale and an offset, so keep `cross_entropy` beside it.

    With P and Q the (b, c) teacher's and student's softmax at temperature T, and ρ Pearson's correlation of two rows or
    of two columns, the mean over the batch is

        T² · [ inter_weight · (1 − mean_i ρ(Q_i·, P_i·)) + intra_weight · (1 − mean_c ρ(Q_·c, P_·c)) ]

    Args:
        student_logits: (b, c) scores before the softmax, any floating type, −inf for classes without probability.
        teacher_logits: (b, c) the same of the teacher; a constant, no gradient reaches it.
        temperature: T > 0 softens both sides; 1 leaves them as they are.
        inter_weight: at least 0, of the relations between the classes of each sample (the paper's β).
        intra_weight: at least 0, of the relations between the samples of each class (the paper's γ); at 0 the batch is
            not read and may be of any size.
        where: (b,) boolean, True for samples to keep; the others give 0 and no gradient and take no part in the
            relations, whatever they hold.

    Returns:
        (b,) at least 0, each sample's share; 0 everywhere where both distributions are equal. float32, or float64 for
        float64 logits. A batch of 1 is refused unless ``intra_weight=0``; of 2 samples a correlation has only a sign.

    Raises:
        UsageError: shapes differ or are not (b, c); fewer than 2 classes (use `logit_mse` for single logits); 2 classes
            unless ``inter_weight=0``, since the correlation of two numbers has only a sign (use `forward_kl`); a batch
            of 1; a weight below 0; a temperature that is not a finite number above 0; or a mask that is not
            boolean (b,).

    Relations: with the inter part alone every sample stands for itself, as in `forward_kl`, which asks for the values
    as well. Since 1 − ρ is half of the squared distance of two centred vectors of length 1, a class's relation is
    shared out to the samples by their parts of that distance.

    Example:
        >>> import torch
        >>> from potstill.losses import dist
        >>> teacher = torch.tensor([[3.0, 1.0, 0.0], [0.0, 2.0, 0.0], [0.0, 0.0, 1.0]])
        >>> dist(teacher, teacher).tolist()
        [0.0, 0.0, 0.0]
        >>> [round(value, 4) for value in dist(teacher.roll(1, 1), teacher, intra_weight=0.0).tolist()]
        [1.5, 1.5, 1.5]

    Paper: Tao Huang, Shan You, Fei Wang, Chen Qian, Chang Xu: Knowledge Distillation from A Stronger Teacher, 2022,
    arXiv:2205.10536.

    Deviations: none in the mean over a batch; the paper trains with both weights at 2 beside `cross_entropy` of weight
    1. Where a row or a column has no variance (norm below 1e-6) Pearson's correlation does not exist; it counts
    as the zero vector, at distance ½ from any other and 0 from its like, without a gradient. The authors' code counts 1
    in both cases, and its gradient reaches 10⁸ there.

    """
    positive(temperature, "temperature")
    at_least_zero(inter_weight, "inter_weight")
    at_least_zero(intra_weight, "intra_weight")
    student, teacher = _samples(student_logits, teacher_logits, where)
    if student.shape[1] == 2 and inter_weight > 0:
        raise UsageError(
            "The logits have 2 classes, and the correlation of two numbers has only a sign. For 2 classes use "
            "forward_kl, or dist with inter_weight=0."
        )
    q, p = (F.softmax(_kept(side, where) / temperature, dim=1) for side in (student, teacher))
    values = student[:, :0].sum(dim=1)  # 0, and carries the graph where nothing is kept
    if inter_weight > 0:
        values = values + put_back(inter_weight * _standard_distance(q, p).sum(dim=1), where)
    if intra_weight > 0 and len(q):
        _enough(len(q), instead="Use larger batches, dist with intra_weight=0, or forward_kl.")
        shares = _standard_distance(q.T, p.T).mean(dim=0)
        values = values + put_back(intra_weight * len(q) * shares, where)
    return temperature**2 * values


@over_batch
def multi_level_kd(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    temperatures: Sequence[float] = (2.0, 3.0, 4.0, 5.0, 6.0),
    instance_weight: float = 1.0,
    batch_weight: float = 1.0,
    class_weight: float = 1.0,
    uncertain_share: float = 1.0,
    where: Tensor | None = None,
) -> Tensor:
    """Multi-level logit distillation (MLKD): answers, similarities of samples and of classes, at several temperatures.

    Classic distillation at several temperatures at once, and in addition how similar the answers to any two samples of
    a batch are, and how much any two classes are confused with each other. For classification with many classes and
    batches of 64 and more, beside `cross_entropy`.

    With P and Q the (b, c) teacher's and student's softmax at temperature T, the mean over the batch is the sum over
    the temperatures of

        instance_weight · T² · mean_i KL(P_i ‖ Q_i)
          + batch_weight · ‖P Pᵀ − Q Qᵀ‖² / b  +  class_weight · ‖Pᵀ P − Qᵀ Q‖² / c

    Args:
        student_logits: (b, c) scores before the softmax, any floating type, −inf for classes without probability.
        teacher_logits: (b, c) the same of the teacher; a constant, no gradient reaches it.
        temperatures: one or more numbers above 0, each softens both sides.
        instance_weight: at least 0, of the answers themselves.
        batch_weight: at least 0, of the similarities of samples.
        class_weight: at least 0, of the similarities of classes.
        uncertain_share: above 0 to 1; below 1 only this share of the batch, the samples with the smallest largest
            probability of the teacher, counts on the first two levels. The others are not made up for.
        where: (b,) boolean, True for samples to keep; the others give 0 and no gradient and take no part in the
            relations, whatever they hold.

    Returns:
        (b,) at least 0, each sample's share; 0 everywhere where both distributions are equal. float32, or float64 for
        float64 logits. A batch of 1 is refused, unless the last two weights are 0; 2 classes are an ordinary case.

    Raises:
        UsageError: shapes differ or are not (b, c); fewer than 2 classes (use `logit_mse` for single logits); a batch
            of 1 (use `forward_kl`); no temperatures, or one that is not a finite number above 0; a weight below 0; a
            share outside its range; or a mask that is not boolean (b,).

    Relations: with the last two weights at 0 it is the sum of `forward_kl` over the temperatures. The batch level is
    `similarity_preserving` on probabilities, without normalising the rows.

    Example:
        >>> import torch
        >>> from potstill.losses import forward_kl, multi_level_kd
        >>> student, teacher = torch.zeros(3, 3), torch.tensor([[3.0, 0.0, 0.0], [0.0, 3.0, 0.0], [0.0, 0.0, 3.0]])
        >>> round(multi_level_kd(student, teacher, temperatures=(1.0,)).mean().item(), 4)
        1.4756
        >>> alone = multi_level_kd(student, teacher, temperatures=(1.0,), batch_weight=0.0, class_weight=0.0)
        >>> torch.allclose(alone, forward_kl(student, teacher))
        True

    Paper: Ying Jin, Jiaqi Wang, Dahua Lin: Multi-Level Logit Distillation, 2023, CVPR (no arXiv number).

    Deviations: the paper sums this over a weakly and a strongly augmented view of each sample; here it is one term for
    each view. Every sample carries the same share of the class level. The authors' code has a mask of the half of the
    samples (and of classes) of which the teacher is least sure, but applies it to values that are already summed, so
    that all of their published numbers are those of this loss with ``uncertain_share=1`` and about half the
    weight; ``uncertain_share=0.5`` is what the code seems to intend. It also reads the weak view in place of the strong
    one for two of the temperatures. As published the batch level grows with the batch size and the class level
    with its square; the published weights are for batches of 64.

    """
    try:
        steps = [positive(temperature, "temperatures") for temperature in temperatures]
    except TypeError as error:
        raise UsageError(f"temperatures={temperatures!r} must be a list of numbers above 0, like (2, 4, 6).") from error
    if not steps:
        raise UsageError("temperatures is empty; give one or more numbers above 0, for example (2, 4, 6).")
    weights = {"instance_weight": instance_weight, "batch_weight": batch_weight, "class_weight": class_weight}
    for name, weight in weights.items():
        at_least_zero(weight, name)
    if not 0.0 < uncertain_share <= 1.0:
        raise UsageError(f"uncertain_share={uncertain_share!r} must be above 0 and at most 1.")
    student, teacher = _samples(student_logits, teacher_logits, where)
    s, t = _kept(student, where), _kept(teacher, where)
    values = student[:, :0].sum(dim=1)  # 0, and carries the graph where nothing is kept
    if not len(s):
        return values
    if batch_weight > 0 or class_weight > 0:
        _enough(len(s), instead="Use larger batches, or forward_kl.")
    counts = _least_confident(t, uncertain_share)
    for temperature in steps:
        log_q, log_p = (F.log_softmax(side / temperature, dim=1) for side in (s, t))
        q, p = log_q.exp(), log_p.exp()
        level = instance_weight * temperature**2 * kl(log_p, log_q)
        if batch_weight > 0:
            level = level + batch_weight * _gram_difference(q, p).square().sum(dim=1)
        level = counts * level
        if class_weight > 0:
            level = level + class_weight * _gram_difference(q.T, p.T).square().sum() / q.shape[1]
        values = values + put_back(level, where)
    return values


def _samples(student_logits: Tensor, teacher_logits: Tensor, where: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return both sides' logits, refused unless they are (b, c): tokens of one sample are no samples of their own."""
    student, teacher = logit_pair(student_logits, teacher_logits, where, min_classes=2)
    if student.dim() != 2:
        raise UsageError(
            f"student_logits must have shape (batch, classes), not {tuple(student.shape)}: this loss compares samples."
        )
    return student, teacher


def _kept(rows: Tensor, where: Tensor | None) -> Tensor:
    return rows if where is None else rows[where]


def _enough(count: int, *, instead: str) -> None:
    """Refuse relations between samples where there is only one."""
    if count == 1:
        raise UsageError(f"This loss compares the samples of a batch, and the batch has only 1 to read. {instead}")


def _standard_distance(rows: Tensor, others: Tensor) -> Tensor:
    """Return half of the squared difference of rows, centred and at length 1; it sums to 1 - Pearson's correlation."""
    first, second = (unit(side - side.mean(dim=1, keepdim=True)) for side in (rows, others))
    return 0.5 * (first - second).square()


def _gram_difference(q: Tensor, p: Tensor) -> Tensor:
    """Return PP' - QQ', from the difference and the mean of P and Q: nothing cancels where the two are close."""
    crossed = product(p - q, 0.5 * (p + q).T)
    return crossed + crossed.T


def _least_confident(logits: Tensor, share: float) -> Tensor:
    """Return a boolean (b,): the samples whose largest probability is at most the quantile ``share`` of the batch."""
    if share == 1.0:
        return torch.ones(len(logits), dtype=torch.bool, device=logits.device)
    confidence = F.softmax(logits, dim=1).amax(dim=1)
    return confidence <= torch.quantile(confidence, share)
