"""Losses on outputs: their limits, their siblings, and numbers from elsewhere."""

from __future__ import annotations

import math

import mpmath
import numpy as np
import pytest
import scipy.spatial.distance
import scipy.special
import scipy.stats
import torch
from torch.nn import functional as F

from potstill import losses
from potstill.core.errors import UsageError
from potstill.core.signals import Batch
from potstill.losses.transforms import standardize_logits
from potstill.objective import Objective, Term


def logits(*shape, seed=0, scale=2.0, dtype=torch.float64):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def gradient(values, student):
    (found,) = torch.autograd.grad(values.sum(), student)
    return found


STUDENT, TEACHER = logits(6, 5), logits(6, 5, seed=1)
TARGETS = torch.tensor([0, 4, 2, 2, 1, 3])
LABELLED = (losses.decoupled_kd, losses.normalized_kd, losses.weighted_soft_labels)


# the true class and the others


def test_decoupled_parts_make_up_forward_kl():
    for temperature in (1.0, 4.0):
        options = {"temperature": temperature}
        target = losses.decoupled_kd(STUDENT, TEACHER, TARGETS, non_target_weight=0.0, **options)
        others = losses.decoupled_kd(STUDENT, TEACHER, TARGETS, target_weight=0.0, non_target_weight=1.0, **options)
        left = 1 - (TEACHER / temperature).softmax(1)[range(6), TARGETS]
        whole = losses.forward_kl(STUDENT, TEACHER, **options)
        torch.testing.assert_close(target + left * others, whole, rtol=1e-12, atol=1e-14)


def test_the_non_target_part_does_not_read_the_true_class():
    student = STUDENT.clone().requires_grad_()
    values = losses.decoupled_kd(student, TEACHER, TARGETS, target_weight=0.0)
    found = gradient(values, student)
    assert torch.equal(found[range(6), TARGETS], torch.zeros(6, dtype=torch.float64))
    assert (found.abs() > 0).sum() == 24


def test_decoupled_is_exact_where_probabilities_vanish():
    """Logarithms of probabilities are infinite here: a sure teacher, a student that is as sure of another class."""
    student, teacher = torch.tensor([[-300.0, 300.0, 0.0]]), torch.tensor([[300.0, 0.0, 10.0]])
    with mpmath.workdps(400):

        def parts(z):
            z = [mpmath.exp(mpmath.mpf(float(x))) for x in z]
            return [z[0] / sum(z), 1 - z[0] / sum(z)], [z[1] / (z[1] + z[2]), z[2] / (z[1] + z[2])]

        def kl(p, q):
            return sum(a * mpmath.log(a / b) for a, b in zip(p, q, strict=True))

        (p, p_others), (q, q_others) = parts(teacher[0]), parts(student[0])
        expected = float(kl(p, q) + 8 * kl(p_others, q_others))
    got = losses.decoupled_kd(student, teacher, torch.tensor([0]), temperature=1.0).item()
    assert got == pytest.approx(expected, rel=1e-6)


def test_both_non_target_parts_have_one_gradient():
    student = STUDENT.clone().requires_grad_()
    options = {"target_weight": 0.0, "non_target_weight": 1.5, "temperature": 2.0}
    values = losses.normalized_kd(student, TEACHER, TARGETS, **options)
    other = losses.decoupled_kd(student, TEACHER, TARGETS, **options)
    torch.testing.assert_close(gradient(values, student), gradient(other, student), rtol=1e-10, atol=1e-12)
    entropy = values - other
    assert (entropy > 0).all()
    matched = losses.normalized_kd(TEACHER, TEACHER, TARGETS, **options)
    torch.testing.assert_close(matched, entropy, rtol=1e-10, atol=1e-12)


def test_the_target_part_of_normalized_kd_is_a_cross_entropy_weighted_by_confidence():
    values = losses.normalized_kd(STUDENT, TEACHER, TARGETS, temperature=3.0, non_target_weight=0.0)
    confidence = TEACHER.softmax(1)[range(6), TARGETS]
    torch.testing.assert_close(values, confidence * losses.cross_entropy(STUDENT, TARGETS))


def test_weighted_soft_labels_weigh_by_who_knows_the_label_better():
    student = STUDENT.clone().requires_grad_()
    hard, wanted = losses.cross_entropy(STUDENT, TARGETS), losses.cross_entropy(TEACHER, TARGETS)
    weight = 1 - torch.exp(-hard / wanted)
    values = losses.weighted_soft_labels(student, TEACHER, TARGETS, temperature=3.0)
    soft = losses.forward_kl(student, TEACHER, temperature=3.0)
    torch.testing.assert_close(gradient(values, student), weight[:, None] * gradient(soft, student))
    alike = losses.weighted_soft_labels(TEACHER, TEACHER, TARGETS)
    torch.testing.assert_close(alike, (1 - 1 / math.e) * losses.soft_cross_entropy(TEACHER, TEACHER, temperature=2.0))


def test_a_teacher_without_any_error_gives_whole_weights_or_none():
    sure, wrong = torch.tensor([[200.0, 0.0, 0.0]]), torch.tensor([[0.0, 1.0, 0.0]])
    targets = torch.tensor([0])
    assert losses.weighted_soft_labels(sure, sure, targets).item() == 0.0
    whole = losses.soft_cross_entropy(wrong, sure, temperature=2.0)
    torch.testing.assert_close(losses.weighted_soft_labels(wrong, sure, targets), whole)


@pytest.mark.parametrize("loss", LABELLED)
def test_labelled_losses_refuse_what_is_not_a_class(loss):
    with pytest.raises(UsageError, match=r"integer classes.*forward_kl"):
        loss(STUDENT, TEACHER, TEACHER.softmax(1))
    with pytest.raises(UsageError, match="integer classes"):
        loss(STUDENT, TEACHER, TARGETS[:3])
    for wrong in (-100, 5):
        targets = torch.where(TARGETS == 4, wrong, TARGETS)
        with pytest.raises(UsageError, match="classes 0 to 4"):
            loss(STUDENT, TEACHER, targets)
        assert loss(STUDENT, TEACHER, targets, where=TARGETS != 4).isfinite().all()


@pytest.mark.parametrize("loss", [losses.decoupled_kd, losses.normalized_kd])
@pytest.mark.parametrize("option", ["target_weight", "non_target_weight"])
@pytest.mark.parametrize("bad", [-1.0, math.nan, math.inf])
def test_bad_weights_of_parts_are_refused(loss, option, bad):
    with pytest.raises(UsageError, match=f"{option}=.*at least 0"):
        loss(STUDENT, TEACHER, TARGETS, **{option: bad})


@pytest.mark.parametrize("loss", LABELLED)
def test_bad_temperatures_of_labelled_losses_are_refused(loss):
    with pytest.raises(UsageError, match="temperature"):
        loss(STUDENT, TEACHER, TARGETS, temperature=0.0)


# relations in a batch


def test_dist_is_one_minus_correlations():
    q, p = (scipy.special.softmax(side.numpy() / 2, axis=1) for side in (STUDENT, TEACHER))
    inter = np.array([1 - scipy.stats.pearsonr(a, b).statistic for a, b in zip(q, p, strict=True)])
    intra = np.mean([1 - scipy.stats.pearsonr(a, b).statistic for a, b in zip(q.T, p.T, strict=True)])
    only_inter = losses.dist(STUDENT, TEACHER, temperature=2.0, intra_weight=0.0)
    np.testing.assert_allclose(only_inter.numpy(), 4 * inter, rtol=1e-10)
    only_intra = losses.dist(STUDENT, TEACHER, temperature=2.0, inter_weight=0.0)
    assert (only_intra > 0).all()
    assert only_intra.mean().item() == pytest.approx(4 * intra, rel=1e-10)
    both = losses.dist(STUDENT, TEACHER, temperature=2.0, inter_weight=0.5, intra_weight=3.0)
    torch.testing.assert_close(both, 0.5 * only_inter + 3.0 * only_intra)


def test_dist_without_relations_between_samples_takes_one_sample():
    alone = losses.dist(STUDENT[:1], TEACHER[:1], intra_weight=0.0)
    torch.testing.assert_close(alone, losses.dist(STUDENT, TEACHER, intra_weight=0.0)[:1])
    with pytest.raises(UsageError, match=r"batch has only 1.*intra_weight=0"):
        losses.dist(STUDENT[:1], TEACHER[:1])
    assert losses.dist.over_batch


def test_dist_of_what_does_not_vary():
    """No correlation exists there; the usual code has a gradient of 1e8."""
    flat, teacher = torch.zeros(4, 3, requires_grad=True), logits(4, 3, dtype=torch.float32)
    values = losses.dist(flat, teacher, intra_weight=0.0)
    torch.testing.assert_close(values.detach(), torch.full((4,), 0.5))
    assert torch.equal(gradient(values, flat), torch.zeros(4, 3))
    assert torch.equal(losses.dist(flat, flat.detach()), torch.zeros(4))
    same = torch.tensor([[1.0, 2.0, 4.0]]).repeat(4, 1).requires_grad_()
    values = losses.dist(same, teacher, inter_weight=0.0)
    assert values.mean().item() == pytest.approx(0.5)
    assert torch.equal(gradient(values, same), torch.zeros(4, 3))


def test_multi_level_kd_is_the_sum_of_its_levels():
    temperatures = (2.0, 5.0)
    options = {"temperatures": temperatures, "instance_weight": 0.0, "batch_weight": 0.0, "class_weight": 0.0}
    expected = dict.fromkeys(("instance_weight", "batch_weight", "class_weight"), 0.0)
    for temperature in temperatures:
        q, p = (scipy.special.softmax(side.numpy() / temperature, axis=1) for side in (STUDENT, TEACHER))
        expected["instance_weight"] += temperature**2 * scipy.stats.entropy(p, q, axis=1).mean()
        expected["batch_weight"] += np.linalg.norm(p @ p.T - q @ q.T) ** 2 / 6
        expected["class_weight"] += np.linalg.norm(p.T @ p - q.T @ q) ** 2 / 5
    for name, value in expected.items():
        values = losses.multi_level_kd(STUDENT, TEACHER, **{**options, name: 2.0})
        assert values.mean().item() == pytest.approx(2 * value, rel=1e-10), name
    alone = losses.multi_level_kd(STUDENT[:1], TEACHER[:1], **{**options, "instance_weight": 1.0})
    expected_alone = sum(losses.forward_kl(STUDENT[:1], TEACHER[:1], temperature=t) for t in temperatures)
    torch.testing.assert_close(alone, expected_alone)


def test_multi_level_kd_reads_the_samples_the_teacher_is_least_sure_of():
    confidence = TEACHER.softmax(1).amax(1)
    least = confidence <= confidence.sort().values[2]
    options = {"temperatures": [3.0], "class_weight": 0.0}
    whole = losses.multi_level_kd(STUDENT, TEACHER, **options)
    half = losses.multi_level_kd(STUDENT, TEACHER, uncertain_share=0.5, **options)
    torch.testing.assert_close(half, torch.where(least, whole, 0.0))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperatures": ()}, "empty"), ({"temperatures": (2.0, 0.0)}, "temperatures=0"),
        ({"temperatures": 4}, "list"),
        ({"batch_weight": -1.0}, "batch_weight"), ({"uncertain_share": 0.0}, "uncertain_share"),
        ({"uncertain_share": 1.5}, "uncertain_share"),
    ],
)  # fmt: skip
def test_bad_options_of_multi_level_kd_are_refused(options, message):
    with pytest.raises(UsageError, match=message):
        losses.multi_level_kd(STUDENT, TEACHER, **options)


@pytest.mark.parametrize("option", ["inter_weight", "intra_weight"])
def test_bad_weights_of_dist_are_refused(option):
    with pytest.raises(UsageError, match=option):
        losses.dist(STUDENT, TEACHER, **{option: -0.1})


# divergences


def test_soft_cross_entropy_is_forward_kl_and_the_teachers_entropy():
    p = scipy.special.softmax(TEACHER.numpy() / 3, axis=1)
    extra = torch.from_numpy(9 * scipy.stats.entropy(p, axis=1))
    whole = losses.soft_cross_entropy(STUDENT, TEACHER, temperature=3.0)
    torch.testing.assert_close(whole, losses.forward_kl(STUDENT, TEACHER, temperature=3.0) + extra)
    targets = losses.cross_entropy(STUDENT, TEACHER.softmax(1))
    torch.testing.assert_close(losses.soft_cross_entropy(STUDENT, TEACHER), targets)


def test_skewed_divergences_make_up_jsd():
    for beta in (0.1, 0.5, 0.8):
        forward = losses.skew_forward_kl(STUDENT, TEACHER, skew=beta, temperature=2.0) / (1 - beta)
        reverse = losses.skew_reverse_kl(STUDENT, TEACHER, skew=1 - beta, temperature=2.0) / beta
        torch.testing.assert_close(forward + reverse, losses.jsd(STUDENT, TEACHER, beta=beta, temperature=2.0))


@pytest.mark.parametrize(
    ("skewed", "plain"),
    [(losses.skew_forward_kl, losses.forward_kl), (losses.skew_reverse_kl, losses.reverse_kl)],
)
def test_skewed_divergences_limits_and_bounds(skewed, plain):
    assert torch.equal(skewed(STUDENT, TEACHER, skew=0.0), plain(STUDENT, TEACHER))
    torch.testing.assert_close(skewed(STUDENT, TEACHER, skew=1e-9), plain(STUDENT, TEACHER), rtol=1e-6, atol=1e-9)
    opposite = 1000 * STUDENT
    assert skewed(opposite, -opposite, skew=0.1).max() <= math.log(10) + 1e-9
    half_variance = 0.5 * (STUDENT - TEACHER).var(1, correction=0)
    hot = skewed(STUDENT, TEACHER, skew=0.4, temperature=1e5)
    torch.testing.assert_close(hot, 0.36 * half_variance, rtol=1e-4, atol=0)
    for bad in (-0.1, 1.0, math.nan):
        with pytest.raises(UsageError, match="skew"):
            skewed(STUDENT, TEACHER, skew=bad)


def test_skewed_divergences_are_each_other_with_the_sides_exchanged():
    exchanged = losses.skew_reverse_kl(TEACHER, STUDENT, skew=0.3)
    torch.testing.assert_close(losses.skew_forward_kl(STUDENT, TEACHER, skew=0.3), exchanged)


def test_total_variation_is_half_the_city_block_distance():
    q, p = (scipy.special.softmax(side.numpy(), axis=1) for side in (STUDENT, TEACHER))
    expected = [scipy.spatial.distance.cityblock(a, b) / 2 for a, b in zip(q, p, strict=True)]
    values = losses.total_variation(STUDENT, TEACHER)
    np.testing.assert_allclose(values.numpy(), expected, rtol=1e-12)
    assert (2 * values**2 <= losses.forward_kl(STUDENT, TEACHER)).all()
    assert losses.total_variation(100 * STUDENT, -100 * STUDENT).max() <= 1
    near = STUDENT.float(), (STUDENT + 1e-3 * TEACHER).float()
    exact = losses.total_variation(*(side.double() for side in near))
    torch.testing.assert_close(losses.total_variation(*near).double(), exact, rtol=2e-3, atol=0)


def test_members_of_the_alpha_beta_family():
    def member(teacher_power, student_power):
        return losses.alpha_beta(STUDENT, TEACHER, teacher_power=teacher_power, student_power=student_power)

    p, q = TEACHER.softmax(1), STUDENT.softmax(1)
    torch.testing.assert_close(member(1.0, 0.0), losses.forward_kl(STUDENT, TEACHER), rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(member(0.0, 1.0), losses.reverse_kl(STUDENT, TEACHER), rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(member(1.0, 1.0), 0.5 * (p - q).square().sum(1), rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(member(0.0, 0.0), 0.5 * (p.log() - q.log()).square().sum(1), rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(member(0.5, 0.5), 4 * (1 - (p * q).sqrt().sum(1)), rtol=1e-11, atol=1e-13)
    exchanged = losses.alpha_beta(TEACHER, STUDENT, teacher_power=0.7, student_power=0.2)
    torch.testing.assert_close(member(0.2, 0.7), exchanged, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("near", [1e-3, 1e-6, 1e-12])
@pytest.mark.parametrize("powers", [(0.0, 0.0), (0.0, 1.0), (1.0, 0.0), (0.4, -0.4), (0.3, 0.6)])
def test_alpha_beta_has_no_holes(powers, near):
    """Evaluated as the papers write it, the first digits are gone at 1e-3 and nothing is left at 1e-6."""
    student = STUDENT.float().requires_grad_()

    def member(a, b):
        return losses.alpha_beta(student, TEACHER.float(), teacher_power=a, student_power=b)

    at = member(*powers)
    slope = gradient(at, student)
    for a, b in ((powers[0] + near, powers[1]), (powers[0], powers[1] + near), (powers[0] + near, powers[1] - near)):
        values = member(a, b)
        torch.testing.assert_close(values, at, rtol=20 * near + 1e-5, atol=1e-6)
        torch.testing.assert_close(gradient(values, student), slope, rtol=20 * near, atol=30 * near + 1e-5)


def test_alpha_beta_equals_fifty_digit_arithmetic():
    """Also where both sides are close, and where they are far apart."""
    for scale in (1e-4, 1.0, 40.0):
        student, teacher = logits(1, 4, scale=scale), logits(1, 4, seed=1, scale=scale)
        for a, b in ((0.2, 0.7), (1e-5, 0.5), (0.5, 1e-5), (0.3, -0.3 + 1e-5)):
            with mpmath.workdps(60):
                x, y = mpmath.mpf(a), mpmath.mpf(b)
                sides = [[mpmath.exp(mpmath.mpf(float(z))) for z in side[0]] for side in (teacher, student)]
                p, q = ([one / sum(side) for one in side] for side in sides)
                total = sum(
                    u**x * v**y - x / (x + y) * u ** (x + y) - y / (x + y) * v ** (x + y)
                    for u, v in zip(p, q, strict=True)
                )
                expected = float(-total / (x * y))
            if expected < 1e20:  # beyond, exponents are cut
                got = losses.alpha_beta(student, teacher, teacher_power=a, student_power=b).item()
                assert got == pytest.approx(expected, rel=1e-9), (scale, a, b)


def test_alpha_beta_at_high_temperature():
    for a, b in ((0.2, 0.7), (1.0, 1.0), (0.0, 0.0)):
        hot = losses.alpha_beta(STUDENT, TEACHER, teacher_power=a, student_power=b, temperature=1e5)
        expected = 5 ** (1 - a - b) * 0.5 * (STUDENT - TEACHER).var(1, correction=0)
        torch.testing.assert_close(hot, expected, rtol=1e-4, atol=0)


@pytest.mark.parametrize("option", ["teacher_power", "student_power"])
def test_bad_powers_are_refused(option):
    for bad in (math.nan, math.inf):
        with pytest.raises(UsageError, match=option):
            losses.alpha_beta(STUDENT, TEACHER, **{option: bad})


# yes or no


def test_bernoulli_kl_is_forward_kl_of_two_logits():
    student, teacher = STUDENT[:, :1], TEACHER[:, :1]
    pairs = [torch.cat([torch.zeros_like(side), side], dim=1) for side in (student, teacher)]
    expected = losses.forward_kl(*pairs, temperature=2.0)
    torch.testing.assert_close(losses.bernoulli_kl(student, teacher, temperature=2.0), expected)
    flat = losses.bernoulli_kl(student[:, 0], teacher[:, 0], temperature=2.0)
    assert torch.equal(flat, losses.bernoulli_kl(student, teacher, temperature=2.0))
    assert torch.equal(flat, losses.bernoulli_kl(student[:, 0], teacher, temperature=2.0))
    where = torch.tensor([True, False] * 3)
    assert torch.equal(losses.bernoulli_kl(student[:, 0], teacher[:, 0], temperature=2.0, where=where), flat * where)


def test_bernoulli_kl_equals_scipy():
    q, p = (scipy.special.expit(side.numpy()) for side in (STUDENT, TEACHER))
    expected = (scipy.special.rel_entr(p, q) + scipy.special.rel_entr(1 - p, 1 - q)).mean(1)
    np.testing.assert_allclose(losses.bernoulli_kl(STUDENT, TEACHER).numpy(), expected, rtol=1e-10)
    hot = losses.bernoulli_kl(STUDENT, TEACHER, temperature=1e5)
    torch.testing.assert_close(hot, losses.logit_mse(STUDENT, TEACHER) / 8, rtol=1e-4, atol=0)


def test_bernoulli_kl_refuses_other_shapes():
    with pytest.raises(UsageError, match="shape"):
        losses.bernoulli_kl(torch.zeros(4), torch.zeros(4, 4))
    with pytest.raises(UsageError, match="temperature"):
        losses.bernoulli_kl(torch.zeros(4), torch.zeros(4), temperature=-1.0)


# labels


def test_the_virtual_teacher_is_a_teacher():
    virtual = torch.full((6, 5), 0.01 / 4, dtype=torch.float64)
    virtual[range(6), TARGETS] = 0.99
    torch.testing.assert_close(
        losses.teacher_free(STUDENT, TARGETS), losses.forward_kl(STUDENT, virtual.log(), temperature=20.0)
    )
    student = STUDENT.clone().requires_grad_()
    values = losses.teacher_free(student, TARGETS, correct_probability=0.9, temperature=1.0)
    smoothed = losses.cross_entropy(student, TARGETS, label_smoothing=0.1 * 5 / 4)
    torch.testing.assert_close(gradient(values, student), gradient(smoothed, student))


def test_the_virtual_teacher_of_the_authors_code():
    """softmax(u / T) against the student at temperature 1, averaged over samples and classes."""
    u = torch.full((6, 5), 0.01 / 4, dtype=torch.float64)
    u[range(6), TARGETS] = 0.99
    theirs = F.kl_div(STUDENT.log_softmax(1), (u / 20).softmax(1), reduction="none").mean()
    probability = 1 / (1 + 4 * math.exp(-(0.99 - 0.01 / 4) / 20))
    ours = losses.teacher_free(STUDENT, TARGETS, temperature=1.0, correct_probability=probability)
    torch.testing.assert_close(ours.mean() / 5, theirs)


def test_bad_options_of_the_virtual_teacher_are_refused():
    for bad in (0.0, 1.0, math.nan):
        with pytest.raises(UsageError, match="correct_probability"):
            losses.teacher_free(STUDENT, TARGETS, correct_probability=bad)
    with pytest.raises(UsageError, match="integer classes"):
        losses.teacher_free(STUDENT, STUDENT.softmax(1))


def test_class_weights_are_those_of_the_framework():
    weights = torch.tensor([1.0, 0.0, 2.5, 0.5, 4.0], dtype=torch.float64)
    for targets in (TARGETS, TEACHER.softmax(1)):
        for smoothing in (0.0, 0.2):
            options = {"label_smoothing": smoothing}
            expected = F.cross_entropy(STUDENT, targets, weight=weights, reduction="none", **options)
            for given in (weights, weights.tolist(), weights.float()):
                values = losses.cross_entropy(STUDENT, targets, class_weights=given, **options)
                torch.testing.assert_close(values, expected)
    plain = losses.cross_entropy(STUDENT, TARGETS)
    torch.testing.assert_close(losses.cross_entropy(STUDENT, TARGETS, class_weights=weights), weights[TARGETS] * plain)
    assert torch.equal(losses.cross_entropy(STUDENT, TARGETS, class_weights=[1.0] * 5), plain)


@pytest.mark.parametrize("bad", [[1.0] * 4, [1.0, 1.0, 1.0, 1.0, -1.0], [0.0] * 5, [1.0] * 4 + [math.nan], 1.0])
def test_bad_class_weights_are_refused(bad):
    with pytest.raises(UsageError, match="class_weights"):
        losses.cross_entropy(STUDENT, TARGETS, class_weights=bad)


# standardised logits


def test_standardised_logits_are_z_scores():
    expected = scipy.stats.zscore(STUDENT.numpy(), axis=1, ddof=1)
    np.testing.assert_allclose(standardize_logits(STUDENT).numpy(), expected, rtol=1e-12)
    torch.testing.assert_close(standardize_logits(3.0 * STUDENT - 7.0), standardize_logits(STUDENT))


def test_standardised_logits_do_not_ask_for_size_or_offset():
    student = STUDENT.clone().requires_grad_()
    found = gradient(
        losses.forward_kl(standardize_logits(student), standardize_logits(TEACHER), temperature=2.0), student
    )
    torch.testing.assert_close(found.sum(1), torch.zeros(6, dtype=torch.float64))
    torch.testing.assert_close((found * STUDENT).sum(1), torch.zeros(6, dtype=torch.float64))
    assert torch.autograd.gradcheck(standardize_logits, (student,))


def test_standardised_logits_of_equal_half_and_extreme_numbers():
    flat = torch.full((2, 4), 3.0, requires_grad=True)
    assert torch.equal(standardize_logits(flat), torch.zeros(2, 4))
    assert torch.equal(gradient(standardize_logits(flat).square(), flat), torch.zeros(2, 4))
    for dtype in (torch.float16, torch.bfloat16):
        half = STUDENT.to(dtype)
        assert torch.equal(standardize_logits(half), standardize_logits(half.float()))
    big = (1e4 * STUDENT.float()).requires_grad_()
    torch.testing.assert_close(standardize_logits(big), standardize_logits(STUDENT.float()), rtol=1e-5, atol=1e-6)
    assert gradient(standardize_logits(big)[:, 0], big).isfinite().all()


@pytest.mark.parametrize("shape", [(3, 2), (3, 1), (3,), (3, 4, 2)])
def test_standardising_refuses_two_classes(shape):
    with pytest.raises(UsageError, match=r"classes\)|classes\. Standardised"):
        standardize_logits(torch.zeros(shape))


def test_a_term_standardises_both_sides():
    objective = Objective([Term(losses.forward_kl, transform=standardize_logits, temperature=2.0)])
    batch = Batch(
        ids=torch.arange(6), views=torch.zeros(6, dtype=torch.int64), inputs=torch.zeros(6, 1), targets=TARGETS
    )
    total = objective({"logits": STUDENT}, {"logits": TEACHER}, batch).total
    expected = losses.forward_kl(standardize_logits(STUDENT), standardize_logits(TEACHER), temperature=2.0)
    torch.testing.assert_close(total, expected.sum())
