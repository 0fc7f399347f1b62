"""Losses on outputs: divergences between distributions, hard losses on labels."""

from __future__ import annotations

import numpy as np
from loss_row import Row, entropy, log_normaliser, softmax

from potstill import losses


def forward_kl(s, t, temperature=1.0):
    p = softmax(t / temperature)
    cross = log_normaliser(s / temperature) - (p * s / temperature).sum(1)
    return temperature**2 * (cross - entropy(p))


def reverse_kl(s, t, temperature=1.0):
    p, q = softmax(t / temperature), softmax(s / temperature)
    return temperature**2 * (q * np.log(q / p)).sum(1)


def jsd(s, t, beta=0.5, temperature=1.0):
    p, q = softmax(t / temperature), softmax(s / temperature)
    paper = entropy(beta * p + (1 - beta) * q) - beta * entropy(p) - (1 - beta) * entropy(q)
    return temperature**2 * paper / (beta * (1 - beta))


def squared(s, t):
    s, t = s.reshape(len(s), -1), t.reshape(len(t), -1)
    return ((s * s).sum(1) - 2 * (s * t).sum(1) + (t * t).sum(1)) / s.shape[1]


def labels(s, y, label_smoothing=0.0, class_weights=1.0):
    num_classes = s.shape[1]
    if y.ndim == 1:
        y = np.eye(num_classes)[y]
    smoothed = class_weights * ((1 - label_smoothing) * y + label_smoothing / num_classes)
    return smoothed.sum(1) * log_normaliser(s) - (smoothed * s).sum(1)


def soft_cross_entropy(s, t, temperature=1.0):
    p = softmax(t / temperature)
    return temperature * (temperature * log_normaliser(s / temperature) - (p * s).sum(1))


def skewed(s, t, skew=0.1, temperature=1.0, reverse=False):
    p, q = softmax(t / temperature), softmax(s / temperature)
    if reverse:
        p, q = q, p
    return temperature**2 * (p * np.log(p / (skew * p + (1 - skew) * q))).sum(1)


def misplaced(s, t, temperature=1.0):
    missing = softmax(t / temperature) - softmax(s / temperature)
    return temperature**2 * np.where(missing.real > 0, missing, 0).sum(1)


def alpha_beta(s, t, a=0.2, b=0.7, temperature=1.0):
    p, q = softmax(t / temperature), softmax(s / temperature)
    if a == b == 0:
        terms = np.log(q / p) ** 2 / 2
    elif a + b == 0:
        terms = (a * np.log(q / p) + (p / q) ** a - 1) / a**2
    elif b == 0:
        terms = (p**a * a * np.log(p / q) - p**a + q**a) / a**2
    elif a == 0:
        terms = (q**b * b * np.log(q / p) - q**b + p**b) / b**2
    else:
        terms = -(p**a * q**b - a / (a + b) * p ** (a + b) - b / (a + b) * q ** (a + b)) / (a * b)
    return temperature**2 * terms.sum(1)


def bernoulli(s, t, temperature=1.0):
    p, q = 1 / (1 + np.exp(-t / temperature)), 1 / (1 + np.exp(-s / temperature))
    return temperature**2 * (p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))).mean(1)


def yes_or_no(s, y):
    q = 1 / (1 + np.exp(-s))
    return -(y * np.log(q) + (1 - y) * np.log(1 - q)).mean(1)


def virtual(s, y, correct_probability=0.99, temperature=20.0):
    num_classes = s.shape[1]
    u = np.where(np.eye(num_classes)[y] > 0, correct_probability, (1 - correct_probability) / (num_classes - 1))
    p = u ** (1 / temperature)
    p, q = p / p.sum(1, keepdims=True), softmax(s / temperature)
    return temperature**2 * (p * np.log(p / q)).sum(1)


def class_weights(_batch, size, random):
    return {"class_weights": random.uniform(0.2, 3.0, size)}


def decoupled(s, t, y, temperature=4.0, target_weight=1.0, non_target_weight=8.0):
    p, q, true = softmax(t / temperature), softmax(s / temperature), np.eye(s.shape[1])[y]
    p_true, q_true = (p * true).sum(1), (q * true).sum(1)
    target = p_true * np.log(p_true / q_true) + (1 - p_true) * np.log((1 - p_true) / (1 - q_true))
    p_other, q_other = p / (1 - p_true)[:, None], q / (1 - q_true)[:, None]
    non_target = (p_other * (1 - true) * np.log(p_other / q_other)).sum(1)
    return temperature**2 * (target_weight * target + non_target_weight * non_target)


def normalized(s, t, y, temperature=1.0, target_weight=1.0, non_target_weight=1.5):
    true = np.eye(s.shape[1])[y]
    target = (softmax(t) * true).sum(1) * (log_normaliser(s) - (s * true).sum(1))
    p, q = softmax(t / temperature), softmax(s / temperature)
    p_other, q_other = (x / (1 - (x * true).sum(1))[:, None] for x in (p, q))
    non_target = -(p_other * (1 - true) * np.log(q_other)).sum(1)
    return target_weight * target + non_target_weight * temperature**2 * non_target


def weighted(s, t, y, temperature=2.0):
    hard, wanted = (labels(x, y) for x in (s.real, t))  # constants: complex steps do not pass .real
    p = softmax(t / temperature)
    return (
        temperature**2 * (1 - np.exp(-hard / wanted)) * (log_normaliser(s / temperature) - (p * s).sum(1) / temperature)
    )


def scores(x, axis):
    centred = x - x.mean(axis, keepdims=True)
    return centred / np.sqrt((centred**2).mean(axis, keepdims=True))


def correlations(s, t, temperature=1.0, inter_weight=1.0, intra_weight=1.0):
    p, q = softmax(t / temperature), softmax(s / temperature)
    inter = 1 - (scores(q, 1) * scores(p, 1)).mean(1)
    intra = ((scores(q, 0) - scores(p, 0)) ** 2).mean(1) / 2  # its mean is 1 - the mean correlation
    return temperature**2 * (inter_weight * inter + intra_weight * intra)


def levels(s, t, temperatures=(2.0, 3.0, 4.0, 5.0, 6.0), batch_weight=1.0, class_weight=1.0, share=1.0):
    total = 0
    confidence = softmax(t).max(1)
    counts = confidence <= np.quantile(confidence, share)
    for temperature in temperatures:
        p, q = softmax(t / temperature), softmax(s / temperature)
        samples = np.einsum("ic,jc->ij", p, p) - np.einsum("ic,jc->ij", q, q)
        classes = np.einsum("ic,id->cd", p, p) - np.einsum("ic,id->cd", q, q)
        total = total + counts * (forward_kl(s, t, temperature) + batch_weight * (samples**2).sum(1))
        total = total + class_weight * (classes**2).sum() / s.shape[1]
    return total


_DIVERGENCE = {"min_classes": 2, "shift_invariant": True}
_THREE = {"min_classes": 3, "shift_invariant": True, "refusal": "2 classes.*forward_kl"}
_DECOUPLED = {"targets": "classes", **_THREE}
_WEIGHTED = {"targets": "classes", "partly_constant": True, **_DIVERGENCE}
_RELATED = {"over_batch": True}
ROWS = [
    Row(losses.cross_entropy, labels, targets="classes", **_DIVERGENCE),
    Row(losses.cross_entropy, labels, {"label_smoothing": 0.1}, targets="classes", **_DIVERGENCE),
    Row(losses.cross_entropy, labels, {"label_smoothing": 0.3}, targets="probabilities", **_DIVERGENCE),
    Row(
        losses.cross_entropy,
        labels,
        {"label_smoothing": 0.1},
        targets="classes",
        array_options=class_weights,
        name="weighted",
        **_DIVERGENCE,
    ),
    Row(
        losses.cross_entropy,
        labels,
        targets="probabilities",
        array_options=class_weights,
        flip_invariant=False,
        name="weighted",
        **_DIVERGENCE,
    ),
    Row(losses.teacher_free, virtual, targets="classes", **_DIVERGENCE),
    Row(
        losses.teacher_free, virtual, {"temperature": 1.0, "correct_probability": 0.9}, targets="classes", **_DIVERGENCE
    ),
    Row(losses.soft_cross_entropy, soft_cross_entropy, zero_when_equal=False, **_DIVERGENCE),
    Row(losses.soft_cross_entropy, soft_cross_entropy, {"temperature": 3.0}, zero_when_equal=False, **_DIVERGENCE),
    Row(losses.skew_forward_kl, skewed, **_DIVERGENCE),
    Row(losses.skew_forward_kl, skewed, {"skew": 0.6, "temperature": 2.0}, **_DIVERGENCE),
    Row(losses.skew_forward_kl, forward_kl, {"skew": 0.0}, {}, **_DIVERGENCE),
    Row(losses.skew_reverse_kl, skewed, {}, {"reverse": True}, **_DIVERGENCE),
    Row(losses.skew_reverse_kl, skewed, {"skew": 0.6}, {"skew": 0.6, "reverse": True}, **_DIVERGENCE),
    Row(losses.total_variation, misplaced, **_DIVERGENCE),
    Row(losses.total_variation, misplaced, {"temperature": 2.0}, **_DIVERGENCE),
    *(
        Row(losses.alpha_beta, alpha_beta, {"teacher_power": a, "student_power": b}, {"a": a, "b": b}, **_DIVERGENCE)
        for a, b in ((0.2, 0.7), (1.0, 0.0), (0.0, 0.5), (0.0, 0.0), (1.0, 1.0), (2.0, 0.5), (0.5, -0.5), (-0.3, 1.0))
    ),
    Row(losses.alpha_beta, alpha_beta, {"temperature": 4.0}, **_DIVERGENCE),
    Row(losses.binary_cross_entropy, yes_or_no, targets="binary"),
    Row(losses.bernoulli_kl, bernoulli),
    Row(losses.bernoulli_kl, bernoulli, {"temperature": 3.0}),
    Row(losses.forward_kl, forward_kl, **_DIVERGENCE),
    Row(losses.forward_kl, forward_kl, {"temperature": 4.0}, **_DIVERGENCE),
    Row(losses.reverse_kl, reverse_kl, **_DIVERGENCE),
    Row(losses.reverse_kl, reverse_kl, {"temperature": 3.0}, **_DIVERGENCE),
    Row(losses.jsd, jsd, **_DIVERGENCE),
    Row(losses.jsd, jsd, {"beta": 0.1, "temperature": 2.0}, **_DIVERGENCE),
    Row(losses.jsd, jsd, {"beta": 0.9}, **_DIVERGENCE),
    Row(losses.jsd, forward_kl, {"beta": 0.0}, {}, **_DIVERGENCE),
    Row(losses.jsd, reverse_kl, {"beta": 1.0, "temperature": 2.0}, {"temperature": 2.0}, **_DIVERGENCE),
    Row(losses.logit_mse, squared),
    Row(losses.decoupled_kd, decoupled, **_DECOUPLED, zero_when_equal=True),
    Row(losses.decoupled_kd, decoupled, {"temperature": 1.0, "non_target_weight": 0.5}, **_DECOUPLED),
    Row(losses.decoupled_kd, decoupled, {"target_weight": 0.0}, **_DECOUPLED),
    Row(losses.normalized_kd, normalized, **_DECOUPLED),
    Row(losses.normalized_kd, normalized, {"temperature": 3.0, "target_weight": 0.5}, **_DECOUPLED),
    Row(losses.weighted_soft_labels, weighted, **_WEIGHTED),
    Row(losses.weighted_soft_labels, weighted, {"temperature": 1.0}, **_WEIGHTED),
    Row(losses.dist, correlations, **_RELATED, **_THREE),
    Row(
        losses.dist, correlations, {"temperature": 4.0, "inter_weight": 2.0, "intra_weight": 0.5}, **_RELATED, **_THREE
    ),
    Row(losses.dist, correlations, {"inter_weight": 0.0}, **_RELATED, **_DIVERGENCE),
    Row(losses.multi_level_kd, levels, **_RELATED, **_DIVERGENCE),
    Row(losses.multi_level_kd, levels, {"temperatures": [1.0]}, **_RELATED, **_DIVERGENCE),
    Row(
        losses.multi_level_kd,
        levels,
        {"batch_weight": 0.5, "class_weight": 0.25, "uncertain_share": 0.5},
        {"batch_weight": 0.5, "class_weight": 0.25, "share": 0.5},
        **_RELATED,
        **_DIVERGENCE,
    ),
]
