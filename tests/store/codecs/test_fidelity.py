"""Divergences and gradient angles against the definitions, written out densely."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from potstill.core.errors import UsageError
from potstill.store import fidelity as module
from potstill.store.codecs import Full, LowRank, RandomSampling, Sparse, ThresholdSampling, TopK
from potstill.store.fidelity import Kept, compare, fidelity, keep

RANDOM = np.random.default_rng(0)
N, V, H = 30, 23, 5
LOGITS = (RANDOM.normal(size=(N, V)) * 2).astype(np.float32)
STUDENT = (LOGITS + RANDOM.normal(size=(N, V))).astype(np.float32)
HIDDEN = RANDOM.normal(size=(N, H)).astype(np.float32)


def softmax(logits: np.ndarray) -> np.ndarray:
    exact = np.exp(logits.astype(np.float64))
    return exact / exact.sum(axis=1, keepdims=True)


P, Q = softmax(LOGITS), softmax(STUDENT)


def stored_target(codec: object, tail: str) -> np.ndarray:
    """The target (n, v) that a loss compares the student's probabilities with."""
    answer = keep(LOGITS, codec).answer
    if isinstance(answer, torch.Tensor):
        return softmax(answer.numpy())
    target, named = np.zeros((N, V)), np.zeros((N, V), bool)
    for row in range(N):
        for name, value in zip(answer.ids[row].tolist(), answer.probabilities[row].tolist(), strict=True):
            target[row, name] += value
            named[row, name] |= value > 0
        rest = 1 - target[row].sum()
        others = ~named[row]
        if answer.tail == "bucket":
            if tail == "renormalise":
                target[row] /= target[row].sum()
            elif tail == "spread":
                target[row, others] = rest / others.sum()
            else:
                target[row, others] = rest * Q[row, others] / Q[row, others].sum()
    return target


@pytest.mark.parametrize("numbers_at_once", [1, 100, 2**22])
@pytest.mark.parametrize("tail", ["bucket", "spread", "renormalise"])
def test_angles_by_the_definition(tail: str, numbers_at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_NUMBERS_AT_ONCE", numbers_at_once)
    codecs = [TopK(3), TopK(10, 5), RandomSampling(6), ThresholdSampling(5), Full("int8")]
    found = compare(LOGITS, codecs, student_logits=STUDENT, hidden=HIDDEN, tail=tail)
    full = (Q - P).T @ HIDDEN
    assert len(found) == len(codecs)
    for codec, measured in zip(codecs, found, strict=True):
        stored = (Q - stored_target(codec, tail)).T @ HIDDEN
        lengths = np.linalg.norm(full), np.linalg.norm(stored)
        angle = np.degrees(np.arccos((full * stored).sum() / np.prod(lengths)))
        assert measured.angle == pytest.approx(angle, abs=1e-4)
        assert measured.norm_ratio == pytest.approx(lengths[1] / lengths[0], rel=1e-6)


def test_divergences_by_the_definition() -> None:
    found = compare(LOGITS, [TopK(4, 6), Full("int8"), ThresholdSampling(5), RandomSampling(8)])
    assert [entry.angle for entry in found] == [None] * 4
    spread = stored_target(TopK(4, 6), "spread")
    kept = np.argsort(-P, axis=1)[:, :4]
    assert found[0].missing == pytest.approx(1 - np.take_along_axis(P, kept, 1).sum(1).mean(), rel=1e-6)
    assert found[0].kl == pytest.approx((P * np.log(P / spread)).sum(1).mean(), rel=1e-4)
    among, stored = np.take_along_axis(P, kept, 1), np.take_along_axis(spread, kept, 1)
    among, stored = among / among.sum(1, keepdims=True), stored / stored.sum(1, keepdims=True)
    assert found[0].kl_kept == pytest.approx((among * np.log(among / stored)).sum(1).mean(), rel=1e-3, abs=1e-7)
    quantised = softmax(Full("int8").decode(Full("int8").encode(LOGITS), (V,)).numpy())
    assert found[1].kl == found[1].kl_kept == pytest.approx((P * np.log(P / quantised)).sum(1).mean(), rel=1e-4)
    assert found[1].missing == 0
    assert (found[2].kl, found[2].kl_kept, found[3].kl) == (None, None, None)
    for entry, codec in zip(found[2:], (ThresholdSampling(5), RandomSampling(8)), strict=True):
        lacking = (P * (stored_target(codec, "none") == 0)).sum(1).mean()
        assert entry.missing == pytest.approx(lacking, rel=1e-6)
    assert [entry.bytes_per_item for entry in found[:3]] == [
        TopK(4, 6).width((V,)),
        Full("int8").width((V,)),
        ThresholdSampling(5).width((V,)),
    ]
    assert found[3].bytes_per_item == RandomSampling(8).encode(LOGITS, module.key(0, np.arange(N))).data.size / N


def test_everything_kept_is_the_truth() -> None:
    found = fidelity(LOGITS, Full("float32"), student_logits=STUDENT, hidden=HIDDEN)
    assert found.kl == pytest.approx(0, abs=1e-9)
    assert found.angle == pytest.approx(0, abs=1e-3)
    assert found.norm_ratio == pytest.approx(1)


def test_masked_classes() -> None:
    logits = LOGITS.copy()
    logits[:, :4] = -np.inf
    for entry in compare(logits, [TopK(3), ThresholdSampling(4)], student_logits=STUDENT, hidden=HIDDEN):
        assert np.isfinite([entry.missing, entry.angle, entry.norm_ratio]).all()
    assert np.isfinite(fidelity(logits, TopK(3)).kl)


def test_what_the_caller_decoded() -> None:
    kept = Kept(LowRank(2), 4.0, torch.tensor(STUDENT))
    assert compare(LOGITS, [kept])[0].kl == pytest.approx((P * np.log(P / Q)).sum(1).mean(), rel=1e-5)
    with pytest.raises(UsageError, match="low_rank keeps hidden states"):
        fidelity(LOGITS, LowRank(2))


def test_a_class_that_is_named_twice_counts_once() -> None:
    ids, values = torch.tensor([[3, 3, 5, 0]]).repeat(N, 1), torch.tensor([[0.25, 0.25, 0.5, 0.0]]).repeat(N, 1)
    kept = Kept(RandomSampling(4), 4.0, Sparse(ids, values, "none", V))
    found = compare(LOGITS, [kept], student_logits=STUDENT, hidden=HIDDEN)[0]
    assert found.missing == pytest.approx((1 - P[:, 3] - P[:, 5]).mean(), rel=1e-6)
    target = np.zeros((N, V))
    target[:, [3, 5]] = 0.5
    stored, full = (Q - target).T @ HIDDEN, (Q - P).T @ HIDDEN
    assert found.norm_ratio == pytest.approx(np.linalg.norm(stored) / np.linalg.norm(full), rel=1e-6)


def test_half_a_student() -> None:
    with pytest.raises(UsageError, match="needs both"):
        fidelity(LOGITS, TopK(2), hidden=HIDDEN)
    with pytest.raises(UsageError, match="same items and classes"):
        fidelity(LOGITS, TopK(2), student_logits=STUDENT[:3], hidden=HIDDEN)
