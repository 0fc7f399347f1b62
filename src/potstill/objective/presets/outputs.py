"""Presets on what the models answer. Each is a function of the task that returns terms; see docs/methods/presets.md."""

from __future__ import annotations

from potstill import losses
from potstill.losses.transforms import standardize_logits
from potstill.objective.presets.base import classes_only, hard, hard_and_soft, rising, soft
from potstill.objective.term import Term


def alone(task: str) -> list[Term]:
    """Return the labels only, without a teacher: the baseline every verdict compares with."""
    return [hard(task)]


def kd(task: str, *, temperature: float = 4.0) -> list[Term]:
    """Return classic distillation: Hinton, Vinyals, Dean 2015, arXiv:1503.02531; settings of arXiv:1910.10699."""
    return hard_and_soft(task, temperature)


def label_free(task: str, *, temperature: float = 4.0) -> list[Term]:
    """Return the teacher's answers only; labels are not read."""
    return [soft(task, 1.0, temperature)]


def kd_standardised(task: str, *, temperature: float = 2.0, soft_weight: float = 9.0) -> list[Term]:
    """Return distillation of standardised logits: Sun et al. 2024, arXiv:2403.01427."""
    classes_only(task, "kd_standardised")
    term = Term(losses.forward_kl, soft_weight, transform=standardize_logits, temperature=temperature)
    return [hard(task, 0.1), term]


def reverse(task: str, *, temperature: float = 4.0) -> list[Term]:
    """Return classic distillation in the other direction: the student keeps to what the teacher finds likely."""
    classes_only(task, "reverse")
    return [hard(task, 0.1), Term(losses.reverse_kl, 0.9, temperature=temperature)]


def jsd(task: str, *, temperature: float = 4.0) -> list[Term]:
    """Return classic distillation half-way between both directions: Agarwal et al. 2023, arXiv:2306.13649."""
    classes_only(task, "jsd")
    return [hard(task, 0.1), Term(losses.jsd, 0.9, temperature=temperature)]


def dkd(
    task: str, *, temperature: float = 4.0, target_weight: float = 1.0, non_target_weight: float = 2.0
) -> list[Term]:
    """Return decoupled distillation with its warm-up: Zhao et al. 2022, arXiv:2203.08679.

    The reference takes a ``non_target_weight`` of 2 for ResNet-56 into ResNet-20, and up to 8 where the teacher is much
    wider than the student; a recipe on 1,000 classes or more gets its settings for ImageNet.
    """
    classes_only(task, "dkd")
    decoupled = Term(
        losses.decoupled_kd,
        rising(1.0),
        temperature=temperature,
        target_weight=target_weight,
        non_target_weight=non_target_weight,
    )
    return [hard(task), decoupled]


def nkd(task: str, *, temperature: float = 1.0, non_target_weight: float = 1.5) -> list[Term]:
    """Return normalised distillation: Yang et al. 2023, arXiv:2303.13005."""
    classes_only(task, "nkd")
    return [hard(task), Term(losses.normalized_kd, temperature=temperature, non_target_weight=non_target_weight)]


def dist(task: str, *, temperature: float = 4.0, soft_weight: float = 2.0) -> list[Term]:
    """Return matched relations of the answers: Huang et al. 2022, arXiv:2205.10536; temperature 1 on ImageNet."""
    classes_only(task, "dist")
    return [hard(task), Term(losses.dist, soft_weight, temperature=temperature)]


def wsld(task: str, *, temperature: float = 2.0, soft_weight: float = 2.5) -> list[Term]:
    """Return weighted soft labels: Zhou et al. 2021, arXiv:2102.00650."""
    classes_only(task, "wsld")
    return [hard(task), Term(losses.weighted_soft_labels, soft_weight, temperature=temperature)]


def mlkd(task: str, *, soft_weight: float = 0.9) -> list[Term]:
    """Return multi-level distillation at five temperatures: Jin, Wang, Lin 2023, CVPR."""
    classes_only(task, "mlkd")
    return [hard(task, 0.1), Term(losses.multi_level_kd, soft_weight)]


def label_smoothing(task: str, *, share: float = 0.1) -> list[Term]:
    """Return the labels with a share spread over all classes, without a teacher: Szegedy et al. 2015."""
    classes_only(task, "label_smoothing")
    return [Term(losses.cross_entropy, label_smoothing=share)]


def teacher_free(task: str, *, temperature: float = 20.0) -> list[Term]:
    """Return the labels and a virtual teacher that is nearly sure of them: Yuan et al. 2019, arXiv:1909.11723."""
    classes_only(task, "teacher_free")
    return [hard(task, 0.1), Term(losses.teacher_free, 0.9, temperature=temperature)]
