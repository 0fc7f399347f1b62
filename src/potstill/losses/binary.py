"""Losses on outputs that are each a yes or a no of their own: several labels per sample, or a single logit.

Shape legend: ... positions, (b,) where each of b samples is one; c outputs. (b,) is the same as (b, 1).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from potstill.losses._distributions import kl
from potstill.losses._shared import keep, pair, positive


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
