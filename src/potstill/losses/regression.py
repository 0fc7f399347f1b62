"""Losses between the student's numbers and the true ones, or the teacher's.

Shape legend: ... positions, (b,) where each of b samples is one; k outputs. (b,) is the same as (b, 1).
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from potstill.losses._shared import keep, positive
from potstill.losses._values import columns


def mse(student_values: Tensor, targets: Tensor, *, where: Tensor | None = None) -> Tensor:
    """Mean squared error with the true values: the hard loss of regression.

    For targets without wild outliers, scaled so that every output matters; with outliers use `huber`.

        (1 / k) · Σ_k (student_k − target_k)²

    Args:
        student_values: (..., k) or (b,) the student's outputs, any floating type.
        targets: (..., k) or (b,) the true values; integers are converted.
        where: (...) boolean, True for positions to keep; the others give 0 and no gradient, whatever they hold.

    Returns:
        (...) squared units of the values; 0 where both sides are equal. float32, or float64 for float64 values.
        A batch of 1 and 1, 2 or many outputs are ordinary cases.

    Raises:
        UsageError: shapes differ, or a mask that is not boolean (...). (b,) and (b, 1) are the same single output
            and never make a (b, b) table.

    Relations: twice `huber` where no error exceeds its ``delta``. `teacher_mse` is the same formula on the teacher's
    values.

    Example:
        >>> import torch
        >>> from potstill.losses import mse
        >>> mse(torch.tensor([[1.0], [2.0]]), torch.tensor([1.0, 5.0])).tolist()
        [0.0, 9.0]

    Paper: Adrien-Marie Legendre: Nouvelles méthodes pour la détermination des orbites des comètes, 1805 (no arXiv
    number).

    Deviations: none.

    """
    student, wanted = columns(student_values, targets, "targets", where)
    return keep((student - wanted).square().mean(dim=-1), where)


def huber(student_values: Tensor, targets: Tensor, *, delta: float = 1.0, where: Tensor | None = None) -> Tensor:
    """Huber loss with the true values: squares for small errors, straight lines for large ones.

    For targets with outliers: no error's gradient exceeds ``delta``. When all targets are clean, `mse` learns a little
    faster.

        (1 / k) · Σ_k h(student_k − target_k)        h(e) = e² / 2 if |e| ≤ delta, else delta · (|e| − delta / 2)

    Args:
        student_values: (..., k) or (b,) the student's outputs, any floating type.
        targets: (..., k) or (b,) the true values; integers are converted.
        delta: > 0, the error in units of the values where squares turn into straight lines.
        where: (...) boolean, True for positions to keep; the others give 0 and no gradient, whatever they hold.

    Returns:
        (...) squared units of the values; 0 where both sides are equal. float32, or float64 for float64 values.
        A batch of 1 and 1, 2 or many outputs are ordinary cases.

    Raises:
        UsageError: shapes differ, ``delta`` is not a finite number above 0, or a mask that is not boolean (...).
            (b,) and (b, 1) are the same single output and never make a (b, b) table.

    Relations: as ``delta`` → ∞ it becomes half of `mse`; divided by ``delta`` it becomes the absolute error as
    ``delta`` → 0. `teacher_huber` is the same formula on the teacher's values.

    Example:
        >>> import torch
        >>> from potstill.losses import huber
        >>> huber(torch.tensor([1.0, 2.0]), torch.tensor([1.5, 5.0])).tolist()
        [0.125, 2.5]

    Paper: Peter J. Huber: Robust Estimation of a Location Parameter, 1964, Annals of Mathematical Statistics 35(1)
    (no arXiv number).

    Deviations: none.

    """
    positive(delta, "delta")
    student, wanted = columns(student_values, targets, "targets", where)
    return keep(F.huber_loss(student, wanted, reduction="none", delta=delta).mean(dim=-1), where)


def teacher_mse(student_values: Tensor, teacher_values: Tensor, *, where: Tensor | None = None) -> Tensor:
    """Mean squared difference to the teacher's values: the soft loss of regression.

    The student learns the teacher's smooth function instead of noisy targets, also on samples without targets. Where
    the teacher is far off the student follows it; `mse` beside it, or `teacher_huber` instead, softens that.

        (1 / k) · Σ_k (student_k − teacher_k)²

    Args:
        student_values: (..., k) or (b,) the student's outputs, any floating type.
        teacher_values: (..., k) or (b,) the teacher's outputs; a constant, no gradient reaches it.
        where: (...) boolean, True for positions to keep; the others give 0 and no gradient, whatever they hold.

    Returns:
        (...) squared units of the values; 0 where both sides are equal. float32, or float64 for float64 values.
        A batch of 1 and 1, 2 or many outputs are ordinary cases.

    Raises:
        UsageError: shapes differ, or a mask that is not boolean (...). (b,) and (b, 1) are the same single output
            and never make a (b, b) table.

    Relations: `mse` with the teacher's values as targets; the same formula as `logit_mse`. Twice `teacher_huber` where
    no difference exceeds its ``delta``.

    Example:
        >>> import torch
        >>> from potstill.losses import teacher_mse
        >>> teacher_mse(torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 2.0]])).tolist()
        [2.0]

    Paper: Cristian Buciluă, Rich Caruana, Alexandru Niculescu-Mizil: Model Compression, 2006, KDD (no arXiv number).

    Deviations: the paper matches the averaged outputs of an ensemble; here the teacher is any model.

    """
    student, wanted = columns(student_values, teacher_values, "teacher_values", where)
    return keep((student - wanted).square().mean(dim=-1), where)


def teacher_huber(
    student_values: Tensor, teacher_values: Tensor, *, delta: float = 1.0, where: Tensor | None = None
) -> Tensor:
    """Huber loss with the teacher's values: follows the teacher, but not its wildest answers.

    For a teacher whose answers are far off on some samples; otherwise `teacher_mse` has one number less to choose.

        (1 / k) · Σ_k h(student_k − teacher_k)        h(e) = e² / 2 if |e| ≤ delta, else delta · (|e| − delta / 2)

    Args:
        student_values: (..., k) or (b,) the student's outputs, any floating type.
        teacher_values: (..., k) or (b,) the teacher's outputs; a constant, no gradient reaches it.
        delta: > 0, the error in units of the values where squares turn into straight lines.
        where: (...) boolean, True for positions to keep; the others give 0 and no gradient, whatever they hold.

    Returns:
        (...) squared units of the values; 0 where both sides are equal. float32, or float64 for float64 values.
        A batch of 1 and 1, 2 or many outputs are ordinary cases.

    Raises:
        UsageError: shapes differ, ``delta`` is not a finite number above 0, or a mask that is not boolean (...).
            (b,) and (b, 1) are the same single output and never make a (b, b) table.

    Relations: `huber` with the teacher's values as targets. As ``delta`` → ∞ it becomes half of `teacher_mse`.

    Example:
        >>> import torch
        >>> from potstill.losses import teacher_huber
        >>> teacher_huber(torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 8.0]])).tolist()
        [2.75]

    Paper: Peter J. Huber: Robust Estimation of a Location Parameter, 1964, Annals of Mathematical Statistics 35(1)
    (no arXiv number).

    Deviations: the paper estimates from observations; here the observations are the teacher's answers.

    """
    positive(delta, "delta")
    student, wanted = columns(student_values, teacher_values, "teacher_values", where)
    return keep(F.huber_loss(student, wanted, reduction="none", delta=delta).mean(dim=-1), where)
