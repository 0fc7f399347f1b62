"""Losses of regression for teachers that are known to be wrong at times.

Shape legend: ... positions, (b,) where each of b samples is one; k outputs. (b,) is the same as (b, 1).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from potstill.core.errors import UsageError
from potstill.losses._distributions import at_least_zero
from potstill.losses._shared import keep, positive
from potstill.losses._values import columns


def gaussian_nll(
    student_values: Tensor,
    teacher_values: Sequence[Tensor],
    *,
    smallest_variance: float = 1e-6,
    where: Tensor | None = None,
) -> Tensor:
    """Negative log-likelihood of the student's values under the teacher's, a normal distribution for every output.

    For teachers that say how sure they are, by a second output or by the spread of an ensemble: the student follows
    them where they are sure and is free where they are not. Where the teacher's uncertainty is unknown or all the same,
    this is `teacher_mse` with another weight.

    With the teacher's mean m and variance v of each output, in a term ``teacher=["logits", "log_variance"]``:

        (1 / k) · Σ_k ½ · [(student_k − m_k)² / max(v_k, smallest_variance) + log v_k]

    Args:
        student_values: (..., k) or (b,) the student's outputs, any floating type.
        teacher_values: tuple of two tensors (..., k) or (b,), the teacher's outputs and the natural logarithms of their
            variances; constants, no gradient reaches them.
        smallest_variance: > 0, in squared units of the values. Variances below it divide as if they were equal to it,
            so that a teacher that is too sure does not rule the gradient.
        where: (...) boolean, True for positions to keep; the others give 0 and no gradient, whatever they hold.

    Returns:
        (...) nats but for the constant ½ · log 2π; smallest, ½ · mean log v, at the teacher's mean, and possibly below
        0. float32, or float64 for float64 values. A batch of 1 and 1, 2 or many outputs are ordinary cases.

    Raises:
        UsageError: not two tensors of the teacher, shapes differ, ``smallest_variance`` is not a finite number above 0,
            or a mask that is not boolean (...).

    Relations: with log v = 0 it is half of `teacher_mse`. The gradient is that of `teacher_mse` with every output
    weighted by 1 / (2 v). `variational_information` learns the variances instead of reading them.

    Example:
        >>> import torch
        >>> from potstill.losses import gaussian_nll
        >>> mean, log_variance = torch.tensor([0.0, 0.0]), torch.tensor([4.0, 0.25]).log()
        >>> values = gaussian_nll(torch.tensor([1.0, 1.0]), (mean, log_variance))
        >>> [round(value, 4) for value in values.tolist()]
        [0.8181, 1.3069]

    Paper: Alex Kendall, Yarin Gal: What Uncertainties Do We Need in Bayesian Deep Learning for Computer Vision?, 2017,
    arXiv:1703.04977.

    Deviations: in the paper a model learns mean and log variance together from targets; here both are the teacher's and
    the student's value takes the place of the target. Log v is constant, and kept so that the number is a likelihood.

    """
    positive(smallest_variance, "smallest_variance")
    given: object = teacher_values  # a tensor is a sequence too, of its samples
    if isinstance(given, Tensor) or len(teacher_values) != 2:
        raise UsageError(
            "gaussian_nll reads two signals of the teacher, its values and the logarithms of their variances: "
            "teacher_values=(values, log_variances), in a term teacher=['logits', 'log_variance']. For a teacher "
            "without uncertainty use teacher_mse."
        )
    student, mean = columns(student_values, teacher_values[0], "teacher_values", where)
    _, log_variance = columns(student_values, teacher_values[1], "the log variance in teacher_values", where)
    precision = (-log_variance.clamp(min=math.log(smallest_variance))).exp()
    return keep(0.5 * ((student - mean).square() * precision + log_variance).mean(dim=-1), where)


def teacher_bounded(
    student_values: Tensor,
    teacher_values: Tensor,
    targets: Tensor,
    *,
    margin: float = 0.0,
    where: Tensor | None = None,
) -> Tensor:
    """Squared error with the true values, counted only where the student is not better than the teacher.

    For targets with noise, and teachers whose values may point away from the truth: they are never copied, but tell
    which samples are learned well enough, so that the student spends itself on the others. Use it beside `mse` or
    `huber`: alone it teaches nothing where the teacher is bad.

    With e = (1 / k) · Σ_k (value_k − target_k)² of each side:

        e_student   if e_student + margin > e_teacher, else 0

    Args:
        student_values: (..., k) or (b,) the student's outputs, any floating type.
        teacher_values: (..., k) or (b,) the teacher's outputs; a constant, no gradient reaches it.
        targets: (..., k) or (b,) the true values; integers are converted.
        margin: at least 0, in squared units of the values: how much better than the teacher's the student's mean
            squared error has to be, to count as good enough.
        where: (...) boolean, True for positions to keep; the others give 0 and no gradient, whatever they hold.

    Returns:
        (...) squared units of the values; 0 where the student is good enough, without a gradient. float32, or float64
        for float64 values. A batch of 1 and 1, 2 or many outputs are ordinary cases.

    Raises:
        UsageError: shapes differ, ``margin`` is not a finite number of at least 0, or a mask that is not boolean (...).

    Relations: `mse` as ``margin`` → ∞, and where the teacher is perfect. A student that equals its teacher gets 0
    without a margin, and its `mse` with one.

    Example:
        >>> import torch
        >>> from potstill.losses import teacher_bounded
        >>> student, teacher, targets = torch.tensor([1.0, 3.0]), torch.tensor([2.0, 2.0]), torch.zeros(2)
        >>> teacher_bounded(student, teacher, targets).tolist()
        [0.0, 9.0]
        >>> teacher_bounded(student, teacher, targets, margin=5.0).tolist()
        [1.0, 9.0]

    Paper: Guobin Chen, Wongun Choi, Xiang Yu, Tony Han, Manmohan Chandraker: Learning Efficient Object Detection Models
    with Knowledge Distillation, 2017, NIPS (no arXiv).

    Deviations: the mean over the outputs, where the paper sums over the 4 of a box: multiply its weight of ½ by k and
    divide its margin by k. The value jumps at the bound, in the paper as here.

    """
    at_least_zero(margin, "margin")
    student, wanted = columns(student_values, targets, "targets", where)
    _, teacher = columns(student_values, teacher_values, "teacher_values", where)
    error, bound = ((values - wanted).square().mean(dim=-1) for values in (student, teacher))
    return keep(torch.where(error + margin > bound, error, 0.0), where)
