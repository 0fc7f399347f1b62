"""Losses between the student's class distribution and the labels.

Shape legend: ... positions, (b,) where each of b samples is one; c classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from potstill.core.errors import UsageError
from potstill.losses._distributions import as_classes, hold_classes, kl, only_classes, own
from potstill.losses._shared import blank, check_logits, check_mask, constant, keep, lift, positive, refuse_if


def cross_entropy(
    student_logits: Tensor,
    targets: Tensor,
    *,
    label_smoothing: float = 0.0,
    class_weights: Tensor | Sequence[float] | None = None,
    where: Tensor | None = None,
) -> Tensor:
    """Cross-entropy of the student's distribution with the labels: the hard loss of classification.

    The whole objective of a student that learns alone, and the hard term beside a soft one. Without labels, or
    with labels that are worse than the teacher, leave it out.

    With q = softmax(student), y the target's probabilities (one class has 1 when targets are classes), w the class
    weights (1 when absent) and s = label_smoothing:

        −Σ_c w_c · ((1 − s) · y_c + s / c) · log q_c

    Args:
        student_logits: (..., c) scores before the softmax, any floating type, −inf for classes without probability.
        targets: (...) integer classes 0 to c − 1, or (..., c) floating point probabilities (mixed samples).
        label_smoothing: 0 to below 1, the share of the target spread evenly over all classes.
        class_weights: (c,) numbers of at least 0, for classes of unequal size or cost; not all 0.
        where: (...) boolean, True for positions to keep; the others give 0 and no gradient, whatever they hold.

    Returns:
        (...) nats, at least 0. float32, or float64 for float64 logits. A batch of 1 and 2 classes are ordinary cases.

    Raises:
        UsageError: logits not (..., c), fewer than 2 classes (use two outputs, or `mse` for numbers), targets that are
            neither classes (...) nor probabilities (..., c), a class out of range (also −100: use ``where``),
            probabilities that do not add up to 1, smoothing outside its range, or class weights that are not (c,)
            finite numbers of at least 0. Values of targets and weights are looked at on the CPU only; elsewhere an
            impossible class stops the device.

    Relations: with the teacher's probabilities as targets it differs from `forward_kl` at temperature 1 by the
    teacher's entropy, a constant. Its minimum over the student is the entropy of the smoothed target, not 0.

    Example:
        >>> import torch
        >>> from potstill.losses import cross_entropy
        >>> logits = torch.tensor([[2.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
        >>> [round(value, 4) for value in cross_entropy(logits, torch.tensor([0, 2])).tolist()]
        [0.2395, 1.0986]
        >>> mixed = torch.tensor([[0.5, 0.5, 0.0], [0.0, 0.0, 1.0]])
        >>> [round(value, 4) for value in cross_entropy(logits, mixed).tolist()]
        [1.2395, 1.0986]
        >>> [round(value, 4) for value in cross_entropy(logits, mixed, class_weights=[1.0, 1.0, 5.0]).tolist()]
        [1.2395, 5.4931]

    Paper: John S. Bridle: Training Stochastic Model Recognition Algorithms as Networks can Lead to Maximum Mutual
    Information Estimation of Parameters, 1989, NeurIPS 2 (no arXiv number). Label smoothing: Christian Szegedy, Vincent
    Vanhoucke, Sergey Ioffe, Jonathon Shlens, Zbigniew Wojna: Rethinking the Inception Architecture for Computer Vision,
    2015, arXiv:1512.00567.

    Deviations: no ignored label; a label of −100 is an error instead of a silent zero. With class weights the value of
    a sample is its weight times its cross-entropy, and the step divides by the number of samples. PyTorch's mean
    divides by the sum of the weights in the batch instead, which makes a sample's part depend on its neighbours; where
    the weights average 1 over the data the two agree on the whole.

    """
    if not 0.0 <= label_smoothing < 1.0:
        raise UsageError(f"label_smoothing={label_smoothing!r} must be at least 0 and below 1.")
    check_logits(student_logits, "student_logits", 2)
    check_mask(where, student_logits.shape[:-1])
    log_probs = F.log_softmax(blank(lift(student_logits, "student_logits"), where), dim=-1)
    num_classes = log_probs.shape[-1]
    if class_weights is not None:
        # a class's weight multiplies its logarithm wherever the target puts probability on it
        log_probs = _times(_weights(class_weights, log_probs), log_probs)
    if targets.is_floating_point() and targets.shape == log_probs.shape:
        hard = -_times(_probabilities(targets, where).to(log_probs.dtype), log_probs).sum(dim=-1)
    elif hold_classes(targets) and targets.shape == log_probs.shape[:-1]:
        hard = -own(log_probs, as_classes(targets, where, num_classes))
    else:
        raise UsageError(
            f"targets must be integer classes of shape {tuple(log_probs.shape[:-1])} or floating point "
            f"probabilities of shape {tuple(log_probs.shape)}, not {targets.dtype} of shape {tuple(targets.shape)}."
        )
    if label_smoothing:
        hard = (1.0 - label_smoothing) * hard - label_smoothing * log_probs.mean(dim=-1)
    return keep(hard, where)


def teacher_free(
    student_logits: Tensor,
    targets: Tensor,
    *,
    correct_probability: float = 0.99,
    temperature: float = 20.0,
    where: Tensor | None = None,
) -> Tensor:
    """Distillation from a virtual teacher that knows the label and finds all other classes equally likely (Tf-KD).

    What soft targets do beyond telling what the teacher knows: they keep the student from being too sure. For when
    there is no teacher, beside `cross_entropy`; and as the control that tells whether a real teacher adds knowledge or
    only smoothness.

    With y the true class, a = correct_probability, u_y = a and u_c = (1 − a) / (c − 1) for the others,
    p = softmax(log u / T) and q = softmax(student / T):

        T² · Σ_c p_c · (log p_c − log q_c)

    Args:
        student_logits: (..., c) finite scores before the softmax, any floating type.
        targets: (...) integer classes 0 to c − 1.
        correct_probability: above 0 and below 1, the virtual teacher's probability of the true class before softening.
        temperature: T > 0 softens both sides; 1 leaves them as they are.
        where: (...) boolean, True for positions to keep; the others give 0 and no gradient, whatever they hold.

    Returns:
        (...) nats, at least 0, and 0 where the student answers as the virtual teacher. float32, or float64 for float64
        logits. A batch of 1 and 2 classes are ordinary cases.

    Raises:
        UsageError: logits not (..., c); fewer than 2 classes (use two outputs, or `mse` for numbers); targets that are
            not classes (...), or out of range (looked at on the CPU only); a probability outside its range; a
            temperature that is not a finite number above 0; or a mask that is not boolean (...).

    Relations: `forward_kl` with log u as the teacher's logits. At T = 1 its gradient is that of `cross_entropy` with
    ``label_smoothing`` (1 − a) · c / (c − 1). As T grows it pulls the margin of the true class to that of the virtual
    teacher, log(a · (c − 1) / (1 − a)).

    Example:
        >>> import torch
        >>> from potstill.losses import teacher_free
        >>> logits, targets = torch.tensor([[4.0, 0.0, 0.0]]), torch.tensor([0])
        >>> round(teacher_free(logits, targets).item(), 4)
        0.1973
        >>> round(teacher_free(logits, targets, temperature=1.0).item(), 4)
        0.013

    Paper: Li Yuan, Francis E. H. Tay, Guilin Li, Tao Wang, Jiashi Feng: Revisiting Knowledge Distillation via Label
    Smoothing Regularization, 2019, arXiv:1909.11723.

    Deviations: the paper's formula softens both sides and has no T². The authors' code takes the probabilities u
    themselves for logits when it softens, leaves the student at temperature 1, averages over the classes too and makes
    up for it with a factor of its own. To get that: ``temperature=1`` and ``correct_probability`` 1 / (1 + (c − 1) ·
    exp(−(u_y − u_c) / T)) with their T (20 or 40), and their weight times their factor divided by c.

    """
    positive(temperature, "temperature")
    if not 0.0 < correct_probability < 1.0:
        raise UsageError(f"correct_probability={correct_probability!r} must be above 0 and below 1.")
    check_logits(student_logits, "student_logits", 2)
    check_mask(where, student_logits.shape[:-1])
    student = blank(lift(student_logits, "student_logits"), where)
    classes = only_classes(targets, where, student, instead="forward_kl")
    margin = math.log(correct_probability) - math.log1p(-correct_probability) + math.log(student.shape[-1] - 1)
    virtual = margin * F.one_hot(classes, student.shape[-1]).to(student.dtype)
    log_p, log_q = (F.log_softmax(side / temperature, dim=-1) for side in (virtual, student))
    return keep(temperature**2 * kl(log_p, log_q), where)


def _times(factors: Tensor, log_probs: Tensor) -> Tensor:
    """Return factors of at least 0 times log-probabilities, with 0 · ∞ = 0."""
    return factors * log_probs.masked_fill(factors == 0, 0.0)


def _weights(class_weights: Tensor | Sequence[float], log_probs: Tensor) -> Tensor:
    weights = torch.as_tensor(class_weights, dtype=log_probs.dtype, device=log_probs.device).detach()
    if weights.shape != log_probs.shape[-1:]:
        raise UsageError(
            f"class_weights must hold one number for each of the {log_probs.shape[-1]} classes, not shape "
            f"{tuple(weights.shape)}."
        )
    bad = ~(weights.isfinite() & (weights >= 0))
    refuse_if(bad | (weights == 0).all(), "class_weights must be finite numbers of at least 0, not all 0.")
    return weights


def _probabilities(targets: Tensor, where: Tensor | None) -> Tensor:
    probabilities = blank(constant(targets), where)
    sums = probabilities.float().sum(dim=-1)
    odd = (probabilities < 0).any(dim=-1) | ~((sums - 1).abs() < 1e-2)
    refuse_if(
        odd if where is None else odd & where,
        "targets of shape (batch, ..., classes) must be probabilities: at least 0, adding up to 1 in each row. "
        "Logits go through softmax first.",
    )
    return probabilities
