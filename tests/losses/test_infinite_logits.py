"""Classes that a side rules out (logits of −inf): values and gradients, the same in plain, fused and sparse losses."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import torch

from potstill import losses
from potstill.core.errors import UsageError
from potstill.losses import sequence, sequence_sparse
from potstill.losses.transforms import standardize_logits

CLASSES, MASKED, FAR = 6, [1, 4], -600.0
KEPT = [number for number in range(CLASSES) if number not in MASKED]
SIDES = {"both": (True, True), "teacher": (False, True), "student": (True, False)}
TARGETS = torch.tensor([0, 2, 3, 5])
PLAIN = {
    "forward_kl": losses.forward_kl,
    "reverse_kl": losses.reverse_kl,
    "jsd": partial(losses.jsd, beta=0.3),
    "jsd late": partial(losses.jsd, beta=0.8),
    "soft_cross_entropy": losses.soft_cross_entropy,
    "skew_forward_kl": losses.skew_forward_kl,
    "skew_reverse_kl": losses.skew_reverse_kl,
    "total_variation": losses.total_variation,
    "alpha_beta": losses.alpha_beta,
    "alpha_beta one": partial(losses.alpha_beta, teacher_power=1.0, student_power=0.0),
    "decoupled_kd": lambda student, teacher, **options: losses.decoupled_kd(student, teacher, TARGETS, **options),
    "normalized_kd": lambda student, teacher, **options: losses.normalized_kd(student, teacher, TARGETS, **options),
    "weighted_soft_labels": lambda s, t, **options: losses.weighted_soft_labels(s, t, TARGETS, **options),
}
FUSED = {
    "forward_kl": (sequence.linear_forward_kl, sequence_sparse.sparse_linear_forward_kl, {}),
    "reverse_kl": (sequence.linear_reverse_kl, sequence_sparse.sparse_linear_reverse_kl, {}),
    "jsd": (sequence.linear_jsd, sequence_sparse.sparse_linear_jsd, {"beta": 0.3}),
    "jsd late": (sequence.linear_jsd, sequence_sparse.sparse_linear_jsd, {"beta": 0.8}),
    "skew_forward_kl": (sequence.linear_skew_forward_kl, sequence_sparse.sparse_linear_skew_forward_kl, {}),
    "skew_reverse_kl": (sequence.linear_skew_reverse_kl, sequence_sparse.sparse_linear_skew_reverse_kl, {}),
    "total_variation": (sequence.linear_total_variation, sequence_sparse.sparse_linear_total_variation, {}),
}
UNBOUNDED = {
    "teacher": {"reverse_kl"},
    "student": {
        "forward_kl",
        "soft_cross_entropy",
        "alpha_beta one",
        "decoupled_kd",
        "normalized_kd",
        "weighted_soft_labels",
    },
}


def pair(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(4, CLASSES, generator=generator, dtype=torch.float64) for _ in range(2))


def ruled_out(logits, masked, number=-math.inf):
    logits = logits.clone()
    if masked:
        logits[:, MASKED] = number
    return logits


def value_and_gradient(loss, student, teacher, **options):
    student = student.clone().requires_grad_()
    values = loss(student, teacher, **options)
    (gradient,) = torch.autograd.grad(values.sum(), student)
    return values.detach(), gradient


def kl(p, q):
    """KL(p ‖ q) in NumPy, by its definition: 0 · anything = 0."""
    with np.errstate(divide="ignore"):
        return sum(a * (np.log(a) - np.log(b)) for a, b in zip(p, q, strict=True) if a > 0)


def by_definition(name, student, teacher, temperature):
    """The plain divergences of two rows of logits, independently written."""
    with np.errstate(over="ignore"):
        q, p = (np.exp(row / temperature - np.max(row / temperature)) for row in (student, teacher))
    q, p = q / q.sum(), p / p.sum()
    if name == "total_variation":
        return temperature**2 * 0.5 * np.abs(p - q).sum()
    if name.startswith("jsd"):
        beta = 0.8 if "late" in name else 0.3
        mixture = beta * p + (1 - beta) * q
        return temperature**2 * (kl(p, mixture) / (1 - beta) + kl(q, mixture) / beta)
    first, second = (p, q) if "forward" in name or name == "alpha_beta one" else (q, p)
    if name.startswith("skew"):
        second = 0.9 * second + 0.1 * first
    return temperature**2 * kl(first, second)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
@pytest.mark.parametrize("sides", SIDES)
@pytest.mark.parametrize("name", [*FUSED, "alpha_beta one"])
def test_values_are_those_of_the_definition(name, sides, temperature):
    student, teacher = (ruled_out(side, masked) for side, masked in zip(pair(), SIDES[sides], strict=True))
    wanted = [by_definition(name, s, t, temperature) for s, t in zip(student.numpy(), teacher.numpy(), strict=True)]
    values = PLAIN[name](student, teacher, temperature=temperature)
    np.testing.assert_allclose(values.numpy(), wanted, rtol=1e-9)
    assert (name in UNBOUNDED.get(sides, ())) == bool(values.isinf().all())


@pytest.mark.parametrize("name", [name for name in PLAIN if name not in ("alpha_beta", "alpha_beta one")])
def test_a_class_that_both_rule_out_is_as_if_it_were_not_there(name):
    student, teacher = pair()
    loss = PLAIN[name]
    global_targets = torch.tensor([KEPT.index(int(target)) for target in TARGETS])
    values, gradient = value_and_gradient(loss, ruled_out(student, True), ruled_out(teacher, True))
    if name in ("decoupled_kd", "normalized_kd", "weighted_soft_labels"):
        loss = partial(getattr(losses, name), targets=global_targets)
    wanted, wanted_gradient = value_and_gradient(loss, student[:, KEPT], teacher[:, KEPT])
    torch.testing.assert_close(values, wanted, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(gradient[:, KEPT], wanted_gradient, rtol=1e-7, atol=1e-10)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("sides", ["teacher", "student"])
@pytest.mark.parametrize("name", PLAIN)
def test_a_class_that_one_side_rules_out_is_the_limit_of_a_very_small_one(name, sides):
    masked = SIDES[sides]
    student, teacher = pair()
    got, gradient = value_and_gradient(PLAIN[name], *map(ruled_out, (student, teacher), masked))
    if name in UNBOUNDED[sides]:
        assert (got == math.inf).all()
        return
    far = [ruled_out(side, one, FAR) for side, one in zip((student, teacher), masked, strict=True)]
    wanted, wanted_gradient = value_and_gradient(PLAIN[name], *far)
    torch.testing.assert_close(got, wanted, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(gradient, wanted_gradient, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("sides", SIDES)
@pytest.mark.parametrize("name", FUSED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_fused_and_sparse_losses_agree_with_the_plain_ones(name, sides, dtype):
    dense, sparse, options = FUSED[name]
    student, teacher = (side.to(dtype) for side in pair())
    biases = [ruled_out(torch.zeros(1, CLASSES, dtype=dtype), masked)[0] for masked in SIDES[sides]]
    wanted, wanted_gradient = value_and_gradient(PLAIN[name], student + biases[0], teacher + biases[1])
    identity = torch.eye(CLASSES, dtype=dtype)
    heads = [sequence.Head(identity, bias) for bias in biases]
    calls = [lambda h: dense(h, teacher, student_head=heads[0], teacher_head=heads[1], **options)]
    if "teacher" not in sides:  # a recorded probability of 0 is the least number there is, not the limit
        p = (teacher + biases[1]).softmax(dim=1)
        ids = torch.arange(CLASSES).expand(len(p), -1)
        for tail in ("bucket", "renormalise"):
            calls.append(
                partial(lambda h, tail: sparse(h, ids, p, student_head=heads[0], tail=tail, **options), tail=tail)
            )
        assert len(calls) == 3
    tolerances = {"rtol": 1e-4, "atol": 1e-6} if dtype == torch.float32 else {"rtol": 1e-8, "atol": 1e-10}
    for call in calls:
        hidden = student.clone().requires_grad_()
        values = call(hidden)
        (gradient,) = torch.autograd.grad(values.sum(), hidden)
        torch.testing.assert_close(values, wanted, **tolerances)
        if name not in UNBOUNDED.get(sides, ()):
            torch.testing.assert_close(gradient, wanted_gradient, **tolerances)


def test_sparse_losses_survive_a_student_that_rules_out_the_rest_or_all_that_was_recorded():
    hidden, probabilities = torch.zeros(1, 1, requires_grad=True), torch.tensor([[0.5, 0.4]])
    for bias, wanted in (([0.0, 0.0, -math.inf], math.inf), ([-math.inf, -math.inf, 0.0], math.inf)):
        head = sequence.Head(torch.ones(3, 1), torch.tensor(bias))
        ids = torch.tensor([[0, 1]])
        values = sequence_sparse.sparse_linear_forward_kl(hidden, ids, probabilities, student_head=head)
        assert values.item() == wanted
        values = sequence_sparse.sparse_linear_total_variation(hidden, ids, probabilities, student_head=head)
        assert 0 < values.item() <= 1
        (gradient,) = torch.autograd.grad(values.sum(), hidden)
        assert gradient.isfinite().all()


def test_relations_of_batches_are_finite_with_ruled_out_classes():
    student, teacher = pair()
    for loss in (losses.dist, losses.multi_level_kd):
        for masked in SIDES.values():
            values, gradient = value_and_gradient(loss, *map(ruled_out, (student, teacher), masked))
            unbounded = loss is losses.multi_level_kd and masked == SIDES["student"]
            assert not values.isnan().any()
            assert unbounded or (values.isfinite().all() and gradient.isfinite().all())


def test_only_the_true_class_left_says_nothing_of_the_others():
    student, teacher = torch.zeros(1, 4, requires_grad=True), torch.tensor([[0.0, -math.inf, -math.inf, -math.inf]])
    values = losses.decoupled_kd(student, teacher, torch.tensor([0]), temperature=1.0)
    assert values.item() == pytest.approx(math.log(4))
    (gradient,) = torch.autograd.grad(values.sum(), student)
    torch.testing.assert_close(gradient, torch.tensor([[-0.75, 0.25, 0.25, 0.25]]))
    student = torch.tensor([[0.0, -math.inf, -math.inf, -math.inf]])
    assert losses.decoupled_kd(student, torch.zeros(1, 4), torch.tensor([0])).item() == math.inf


@pytest.mark.parametrize("side", [0, 1])
def test_rows_without_any_class_and_raw_comparisons_of_infinite_logits_are_refused(side):
    logits = [torch.zeros(2, 3), torch.zeros(2, 3)]
    logits[side][1] = -math.inf
    with pytest.raises(UsageError, match=r"every class is -inf"):
        losses.forward_kl(*logits)
    assert losses.forward_kl(*logits, where=torch.tensor([True, False])).tolist() == [0.0, 0.0]
    logits[side][1] = torch.tensor([0.0, 0.0, -math.inf])
    with pytest.raises(UsageError, match="compares raw logits"):
        losses.logit_mse(*logits)
    with pytest.raises(UsageError, match="compares raw logits"):
        standardize_logits(logits[side])


def test_a_probability_that_rounds_to_nothing_is_nothing():
    student, teacher = torch.tensor([[0.0, -math.inf]]), torch.tensor([[0.0, -200.0]])
    assert losses.forward_kl(student, teacher).item() == 0.0  # exp(-200) is 0 in float32
    assert losses.forward_kl(student.double(), teacher.double()).item() == math.inf


def test_hard_losses_skip_what_has_no_weight():
    logits = torch.tensor([[0.0, 0.0, -math.inf]], requires_grad=True)
    mixed = losses.cross_entropy(logits, torch.tensor([[0.5, 0.5, 0.0]]), class_weights=[1.0, 1.0, 0.0])
    assert mixed.item() == pytest.approx(math.log(2))
    (gradient,) = torch.autograd.grad(mixed.sum(), logits)
    torch.testing.assert_close(gradient, torch.zeros(1, 3))
    assert losses.cross_entropy(logits, torch.tensor([2])).item() == math.inf
