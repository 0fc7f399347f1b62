"""Functions applied to both sides' logits before a loss: ``Term(forward_kl, transform=standardize_logits)``.

Shape legend: ... positions, (b,) where each of b samples is one; c classes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from potstill.core.errors import UsageError
from potstill.losses._shared import finite_logits, lift

_FLAT = 1e-7


def standardize_logits(logits: Tensor) -> Tensor:
    """Return each sample's logits with mean 0 and standard deviation 1.

    A small student need not reach the size of its teacher's logits, only their order and their distances. With both
    sides standardised a temperature is the same thing for every sample, and for student and teacher. Give it to a
    term as ``transform``, with any loss on logits; usual are temperatures of 2 to 3 and a larger weight than without
    (the paper: 9 beside 0.1 of `cross_entropy`).

    With x the logits of one sample:

        (x − mean(x)) / s,        s² = Σ (x − mean(x))² / (c − 1)

    Args:
        logits: (..., c) finite scores before the softmax, any floating type, c at least 3.

    Returns:
        (..., c) float32, or float64 for float64 logits. Logits that are all but equal (s below 1e-7) become 0, without
        a gradient. A batch of 1 is an ordinary case.

    Raises:
        UsageError: logits not (..., c), or fewer than 3 classes. Two standardised logits are always ±0.7071 and say
            nothing but their order: use the loss without a transform.

    Relations: adding a number to a sample's logits or multiplying them by a positive one changes nothing, so that no
    gradient moves them in these directions.

    Example:
        >>> import torch
        >>> from potstill.losses import forward_kl
        >>> from potstill.losses.transforms import standardize_logits
        >>> standardize_logits(torch.tensor([[1.0, 2.0, 3.0], [10.0, 30.0, 20.0]])).tolist()
        [[-1.0, 0.0, 1.0], [-1.0, 1.0, 0.0]]
        >>> student, teacher = torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[10.0, 20.0, 30.0]])
        >>> forward_kl(standardize_logits(student), standardize_logits(teacher), temperature=2.0).tolist()
        [0.0]

    Paper: Shangquan Sun, Wenqi Ren, Jingzhi Li, Rui Wang, Xiaochun Cao: Logit Standardization in Knowledge
    Distillation, 2024, arXiv:2403.01427.

    Deviations: none; the division by c − 1 is that of the authors' code. It adds 1e-7 to s, here s is used as it is.

    """
    if logits.dim() < 2:
        raise UsageError(f"standardize_logits reads logits of shape (batch, ..., classes), not {tuple(logits.shape)}.")
    if logits.shape[-1] <= 2:
        raise UsageError(
            f"standardize_logits got {logits.shape[-1]} classes. Standardised, two logits are always ±0.7071 whatever "
            "the model says, and one is always 0. Use the loss without this transform."
        )
    lifted = finite_logits(lift(logits, "logits"), "logits", instead="the loss without this transform")
    centred = lifted - lifted.mean(dim=-1, keepdim=True)
    variance = centred.square().sum(dim=-1, keepdim=True) / (logits.shape[-1] - 1)
    return torch.where(variance > _FLAT**2, centred * variance.clamp_min(_FLAT**2).rsqrt(), 0.0)
