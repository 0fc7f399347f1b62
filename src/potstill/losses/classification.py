"""Losses between the student's class distribution and the labels.

Shape legend: b samples, c classes.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from potstill.core.errors import UsageError
from potstill.losses._shared import blank, check_logits, check_mask, constant, keep, lift, refuse_if


def cross_entropy(
    student_logits: Tensor, targets: Tensor, *, label_smoothing: float = 0.0, where: Tensor | None = None
) -> Tensor:
    """Cross-entropy of the student's distribution with the labels: the hard loss of classification.

    The whole objective of a student that learns alone, and the hard term beside a soft one. Without labels, or
    with labels that are worse than the teacher, leave it out.

    With q = softmax(student) and y the target's probabilities (one class has 1 when targets are classes):

        −Σ_c ((1 − s) · y_c + s / c) · log q_c        s = label_smoothing

    Args:
        student_logits: (b, c) finite scores before the softmax, any floating type.
        targets: (b,) integer classes 0 to c − 1, or (b, c) floating point probabilities (mixed samples).
        label_smoothing: 0 to below 1, the share of the target spread evenly over all classes.
        where: (b,) boolean, True for samples to keep; the others give 0 and no gradient, whatever they hold.

    Returns:
        (b,) nats, at least 0. float32, or float64 for float64 logits. A batch of 1 and 2 classes are ordinary cases.

    Raises:
        UsageError: logits not (b, c), fewer than 2 classes (use two outputs, or `mse` for numbers), targets that are
            neither classes (b,) nor probabilities (b, c), a class out of range (also −100: use ``where``),
            probabilities that do not add up to 1, or smoothing outside its range. Values of targets are looked at on
            the CPU only; elsewhere an impossible class stops the device.

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

    Paper: John S. Bridle: Training Stochastic Model Recognition Algorithms as Networks can Lead to Maximum Mutual
    Information Estimation of Parameters, 1989, NeurIPS 2 (no arXiv number). Label smoothing: Christian Szegedy, Vincent
    Vanhoucke, Sergey Ioffe, Jonathon Shlens, Zbigniew Wojna: Rethinking the Inception Architecture for Computer Vision,
    2015, arXiv:1512.00567.

    Deviations: no class weights and no ignored label; a label of −100 is an error instead of a silent zero.

    """
    if not 0.0 <= label_smoothing < 1.0:
        raise UsageError(f"label_smoothing={label_smoothing!r} must be at least 0 and below 1.")
    check_logits(student_logits, "student_logits", 2)
    check_mask(where, student_logits)
    log_probs = F.log_softmax(blank(lift(student_logits, "student_logits"), where), dim=1)
    num_classes = log_probs.shape[1]
    if targets.is_floating_point() and targets.shape == log_probs.shape:
        hard = -(_probabilities(targets, where).to(log_probs.dtype) * log_probs).sum(dim=1)
    elif _holds_classes(targets) and targets.shape == log_probs.shape[:1]:
        hard = -log_probs.gather(1, _classes(targets, where, num_classes)[:, None]).squeeze(1)
    else:
        raise UsageError(
            f"targets must be integer classes of shape ({len(log_probs)},) or floating point probabilities of shape "
            f"{tuple(log_probs.shape)}, not {targets.dtype} of shape {tuple(targets.shape)}."
        )
    if label_smoothing:
        hard = (1.0 - label_smoothing) * hard - label_smoothing * log_probs.mean(dim=1)
    return keep(hard, where)


def _holds_classes(targets: Tensor) -> bool:
    return not (targets.is_floating_point() or targets.is_complex() or targets.dtype == torch.bool)


def _classes(targets: Tensor, where: Tensor | None, num_classes: int) -> Tensor:
    classes = blank(constant(targets).long(), where)
    refuse_if(
        (classes < 0) | (classes >= num_classes),
        f"targets must be classes 0 to {num_classes - 1}; some are outside. Leave samples without a label out with "
        "where=, and check that the student has one output for each class.",
    )
    return classes


def _probabilities(targets: Tensor, where: Tensor | None) -> Tensor:
    probabilities = blank(constant(targets), where)
    sums = probabilities.float().sum(dim=1)
    odd = (probabilities < 0).any(dim=1) | ~((sums - 1).abs() < 1e-2)
    refuse_if(
        odd if where is None else odd & where,
        "targets of shape (batch, classes) must be probabilities: at least 0, adding up to 1 in each row. "
        "Logits go through softmax first.",
    )
    return probabilities
