"""Losses on outputs that are each a yes or a no of their own: several labels per sample, or a single logit.

Shape legend: ... positions, (b,) where each of b samples is one; c outputs. (b,) is the same as (b, 1).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from potstill.core.errors import UsageError
from potstill.losses._distributions import kl
from potstill.losses._shared import keep, pair, positive


def binary_cross_entropy(student_logits: Tensor, targets: Tensor, *, where: Tensor | None = None) -> Tensor:
    """Cross-entropy of a yes or no for each output by itself: the hard loss of several labels per sample.

    For samples of any number of classes at once, some of whose labels may be unknown. Where exactly one of the classes
    is true, use `cross_entropy`.

    With q_c = sigmoid(student_c) and y_c the target:

        −(1 / c) · Σ_c [ y_c · log q_c + (1 − y_c) · log(1 − q_c) ]

    Args:
        student_logits: (..., c) or (b,) finite scores before the sigmoid, any floating type; c may be 1.
        targets: (..., c) or (b,) 1 for yes, 0 for no, or a probability between; integers and booleans are converted.
        where: (...) boolean, True for positions to keep; the others give 0 and no gradient, whatever they hold. Or
            (..., c): True for the cells whose label is known, and then each cell has its own value.

    Returns:
        (...) nats for one output, at least 0; with a mask of cells (..., c), 0 where nothing is known. float32, or
        float64 for float64 logits. A batch of 1 and 1, 2 or many outputs are ordinary cases.

    Raises:
        UsageError: shapes differ or are neither (..., c) nor (b,), targets below 0 or above 1 that are not masked
            (looked at on the CPU only), or a mask that is not boolean of one of the two shapes.

    Relations: with the teacher's probabilities as targets it is `bernoulli_kl` at temperature 1 plus the teacher's
    entropy, a constant. One logit z here is `cross_entropy` with the two logits (0, z). Where every cell is known, the
    mean over cells is the mean over samples.

    Example:
        >>> import torch
        >>> from potstill.losses import binary_cross_entropy
        >>> logits, labels = torch.tensor([[0.0, 2.0]]), torch.tensor([[1.0, 0.0]])
        >>> round(binary_cross_entropy(logits, labels).item(), 4)
        1.41
        >>> known = torch.tensor([[True, False]])
        >>> [round(value, 4) for value in binary_cross_entropy(logits, labels, where=known)[0].tolist()]
        [0.6931, 0.0]

    Paper: David R. Cox: The Regression Analysis of Binary Sequences, 1958 (no arXiv number); for each of several labels
    by itself: Matthew R. Boutell, Jiebo Luo, Xipeng Shen, Christopher M. Brown: Learning multi-label scene
    classification, 2004 (no arXiv number).

    Deviations: the mean over the outputs, where a sum is usual, so that the weight does not depend on the number of
    labels, and on how many of them are known.

    """
    logits, wanted = (side[:, None] if side.dim() == 1 else side for side in (student_logits, targets))
    cells = where is not None and where.dim() == logits.dim() and where.shape == logits.shape
    names, positions = ("student_logits", "targets"), logits.dim() - (0 if cells else 1)
    wanted = wanted if wanted.is_floating_point() else wanted.float()
    student, target = pair(logits, wanted, where, names=names, min_dims=2, positions=positions)
    if target.device.type == "cpu" and not bool(((target >= 0) & (target <= 1)).all()):
        raise UsageError(
            f"targets go from {target.min():g} to {target.max():g}: each is 0 or 1, or a probability between. Mask the "
            "unknown ones with where."
        )
    values = F.binary_cross_entropy_with_logits(student, target, reduction="none")
    return keep(values if cells else values.mean(dim=-1), where)


def bernoulli_kl(
    student_logits: Tensor, teacher_logits: Tensor, *, temperature: float = 1.0, where: Tensor | None = None
) -> Tensor:
    """Kullback-Leibler divergence from the teacher's probability to the student's, for each output by itself.

    `forward_kl` where every output has its own yes or no: several labels for one sample, detectors' class scores, or a
    binary task with one logit. Where exactly one of the classes is true, use `forward_kl`.

    With p_c = sigmoid(teacher_c / T) and q_c = sigmoid(student_c / T):

        T² · (1 / c) · Σ_c [ p_c · log(p_c / q_c) + (1 − p_c) · log((1 − p_c) / (1 − q_c)) ]

    Args:
        student_logits: (..., c) or (b,) finite scores before the sigmoid, any floating type; c may be 1.
        teacher_logits: (..., c) or (b,) the same of the teacher; a constant, no gradient reaches it.
        temperature: T > 0 softens both sides; 1 leaves them as they are.
        where: (...) boolean, True for positions to keep; the others give 0 and no gradient, whatever they hold.

    Returns:
        (...) nats for one output, at least 0, and 0 where both sides are equal. float32, or float64 for float64
        logits. A batch of 1 and 1, 2 or many outputs are ordinary cases.

    Raises:
        UsageError: shapes differ or are neither (..., c) nor (b,), a temperature that is not a finite number above 0,
            or a mask that is not boolean (...).

    Relations: one logit z here is `forward_kl` with the two logits (0, z). As T → ∞ it becomes one eighth of
    `logit_mse`. *Not* invariant to adding a constant to all logits of a sample: the sigmoid reads their sizes.

    Example:
        >>> import torch
        >>> from potstill.losses import bernoulli_kl
        >>> student, teacher = torch.tensor([[0.0, 1.0]]), torch.tensor([[2.0, 1.0]])
        >>> round(bernoulli_kl(student, teacher).item(), 4)
        0.1639
        >>> round(bernoulli_kl(student[:, 0], teacher[:, 0]).item(), 4)
        0.3278

    Paper: Penghui Yang, Ming-Kun Xie, Chen-Chen Zong, Lei Feng, Gang Niu, Masashi Sugiyama, Sheng-Jun Huang:
    Multi-Label Knowledge Distillation, 2023, arXiv:2308.06453 (its first part).

    Deviations: the mean over the outputs, where the paper has the sum, so that the weight does not depend on the
    number of labels; multiply the weight by c for the paper's. The paper has no temperature.

    """
    positive(temperature, "temperature")
    columns = [logits[:, None] if logits.dim() == 1 else logits for logits in (student_logits, teacher_logits)]
    names, positions = ("student_logits", "teacher_logits"), columns[0].dim() - 1
    student, teacher = pair(columns[0], columns[1], where, names=names, min_dims=2, positions=positions)
    log_q, log_p = (_yes_and_no(side / temperature) for side in (student, teacher))
    return keep(temperature**2 * kl(log_p, log_q).mean(dim=-1), where)


def _yes_and_no(logits: Tensor) -> Tensor:
    """Return (..., c, 2): the logarithms of the probabilities of yes and of no."""
    return torch.stack([F.logsigmoid(logits), F.logsigmoid(-logits)], dim=-1)
