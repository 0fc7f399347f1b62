"""Which losses stay right on average when the teacher's probabilities are sampled: by all outcomes, not by chance."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from itertools import product
from math import prod

import pytest
import torch
from torch import Tensor

from potstill import losses

TEACHER = torch.tensor([0.62, 0.28, 0.1], dtype=torch.float64)
STUDENT = torch.tensor([[0.4, -0.3, 0.1]], dtype=torch.float64)
DRAWS = 2
FROM_LOGITS = [
    name
    for name in losses.__all__
    if [*inspect.signature(getattr(losses, name)).parameters][:2] == ["student_logits", "teacher_logits"]
]


def outcomes() -> Iterator[tuple[float, Tensor]]:
    """Every pair of draws from the teacher, with its probability, as the share of draws of each class."""
    for drawn in product(range(3), repeat=DRAWS):
        counts = torch.bincount(torch.tensor(drawn), minlength=3).double()
        yield prod(float(TEACHER[index]) for index in drawn), counts / DRAWS


def gradient(loss: Callable[..., Tensor], probabilities: Tensor) -> Tensor:
    student = STUDENT.clone().requires_grad_()
    options = {"targets": torch.tensor([0])} if "targets" in inspect.signature(loss).parameters else {}
    loss(student, probabilities.clamp_min(1e-12).log()[None], **options).sum().backward()
    assert student.grad is not None
    return student.grad


def test_the_list_is_complete() -> None:
    assert len(FROM_LOGITS) >= 10
    assert abs(sum(chance for chance, _ in outcomes()) - 1) < 1e-12


@pytest.mark.parametrize("name", FROM_LOGITS)
def test_what_a_loss_says_is_what_all_outcomes_show(name: str) -> None:
    loss = getattr(losses, name)
    if getattr(loss, "over_batch", False):
        assert not hasattr(loss, "unbiased_under_sampling")
        return
    mean = sum(chance * gradient(loss, probabilities) for chance, probabilities in outcomes())
    unbiased = bool(torch.allclose(mean, gradient(loss, TEACHER), atol=1e-6))
    assert unbiased == getattr(loss, "unbiased_under_sampling", False)


def test_two_losses_are_unbiased() -> None:
    said = {name for name in losses.__all__ if hasattr(getattr(losses, name), "unbiased_under_sampling")}
    assert said == {"forward_kl", "soft_cross_entropy"}
