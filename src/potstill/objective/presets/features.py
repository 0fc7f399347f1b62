"""Presets on hidden layers. ``layers`` are pairs (student's, teacher's), early ones first; see docs/methods/presets.md.

Losses are means over a layer's elements. Where a paper sums them, its weight is multiplied by the elements of the
last map of a CIFAR ResNet (64 channels of 8 x 8); earlier maps have twice as many for half the weight.
"""

from __future__ import annotations

from potstill import losses
from potstill.objective.layers import Pairs
from potstill.objective.presets.base import hard, hard_and_soft, only_after, only_before, rising
from potstill.objective.term import Term

_ELEMENTS = 64 * 8 * 8
_STARTING = 1 / 9
"""Share of training that prepares the layers before the labels are read: 30 epochs before 240."""


def hidden(task: str, *, temperature: float = 4.0) -> list[Term]:
    """Return classic distillation and a hint on the signal that both sides call ``hidden``, at unit scale."""
    hint = Term(losses.hint_mse, on="hidden", normalize=True)
    return [*hard_and_soft(task, temperature), hint]


def fitnets(task: str, layers: Pairs, *, weight: float = 100.0) -> list[Term]:
    """Return a hint on the middle layer: Romero et al. 2014, arXiv:1412.6550; settings of arXiv:1910.10699."""
    student, teacher = layers[(len(layers) - 1) // 2]
    return [hard(task), Term(losses.hint_mse, weight, student=student, teacher=teacher)]


def at(task: str, layers: Pairs, *, weight: float = 1000.0) -> list[Term]:
    """Return attention transfer on every stage: Zagoruyko, Komodakis 2016, arXiv:1612.03928."""
    return [hard(task), *_each(losses.attention_transfer, weight, layers)]


def nst(task: str, layers: Pairs, *, weight: float = 25.0) -> list[Term]:
    """Return neuron selectivity transfer on the last stage: Huang, Wang 2017, arXiv:1707.01219."""
    return [hard(task), *_each(losses.neuron_selectivity, weight, layers[-1:])]


def fsp(task: str, layers: Pairs, *, weight: float = 50.0) -> list[Term]:
    """Return the flow between all stages, before the labels: Yim et al. 2017, CVPR; settings of arXiv:1910.10699."""
    student, teacher = zip(*layers, strict=True)
    flow = Term(losses.flow_of_solution, only_before(weight, _STARTING), student=student, teacher=teacher)
    return [hard(task, only_after(1.0, _STARTING)), flow]


def vid(task: str, layers: Pairs, *, weight: float = 1.0) -> list[Term]:
    """Return variational information distillation on every stage: Ahn et al. 2019, arXiv:1904.05835."""
    return [hard(task), *_each(losses.variational_information, weight, layers)]


def ab(task: str, layers: Pairs, *, weight: float = 3e-3 * _ELEMENTS) -> list[Term]:
    """Return activation boundaries of every stage, before the labels: Heo et al. 2018, arXiv:1811.03233."""
    boundaries = [
        Term(losses.activation_boundary, only_before(weight, _STARTING), student=student, teacher=teacher)
        for student, teacher in layers
    ]
    return [hard(task, only_after(1.0, _STARTING)), *boundaries]


def ofd(task: str, layers: Pairs, *, weight: float = 1e-3 * _ELEMENTS) -> list[Term]:
    """Return the overhaul of feature distillation on every stage: Heo et al. 2019, arXiv:1904.01866."""
    return [hard(task), *_each(losses.overhaul, weight, layers)]


def ft(task: str, layers: Pairs, *, weight: float = 500.0) -> list[Term]:
    """Return factor transfer on the last stage: Kim, Park, Kwak 2018, arXiv:1802.04977."""
    return [hard(task), *_each(losses.factor_transfer, weight, layers[-1:])]


def reviewkd(task: str, layers: Pairs, embedding: tuple[str, str], *, weight: float = 1.0) -> list[Term]:
    """Return knowledge review of all stages with its warm-up: Chen et al. 2021, arXiv:2104.09044."""
    levels = [*layers, *([embedding] if embedding not in layers else [])]
    student, teacher = zip(*levels, strict=True)
    return [hard(task), Term(losses.review, rising(weight), student=student, teacher=teacher)]


def cwd(task: str, layers: Pairs, *, temperature: float = 4.0, weight: float = 50.0) -> list[Term]:
    """Return channel-wise distillation of the last stage: Shu et al. 2020, arXiv:2011.13256."""
    student, teacher = layers[-1]
    term = Term(losses.channel_wise, weight, student=student, teacher=teacher, temperature=temperature)
    return [hard(task), term]


def mgd(task: str, layers: Pairs, *, weight: float = 7e-5 * 512 * 7 * 7, share: float = 0.15) -> list[Term]:
    """Return masked generation of the last stage, as for classification: Yang et al. 2022, arXiv:2205.01529."""
    student, teacher = layers[-1]
    hidden_part = {"share": share, "hide": "channels"}
    term = Term(losses.masked_generative, weight, student=student, teacher=teacher, head_options=hidden_part)
    return [hard(task), term]


def simkd(task: str, layers: Pairs) -> list[Term]:  # noqa: ARG001 (every preset is asked for its task)
    """Return what goes into the teacher's reused classifier, without labels: Chen et al. 2022, arXiv:2203.14001."""
    student, teacher = layers[-1]
    return [Term(losses.reused_classifier, student=student, teacher=teacher)]


def jacobian(task: str, *, temperature: float = 4.0, weight: float = 1.0) -> list[Term]:
    """Return classic distillation and the direction of the gradient by the inputs: Srinivas, Fleuret 2018."""
    gradients = Term(losses.jacobian_matching, weight, on="input_gradient", normalize=True)
    return [*hard_and_soft(task, temperature), gradients]


def _each(loss: object, weight: float, layers: Pairs) -> list[Term]:
    return [Term(loss, weight, student=student, teacher=teacher) for student, teacher in layers]  # type: ignore[arg-type]
