"""Random and threshold sampling: unbiased, right in every corner, the same in any company."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from potstill.core.random import key
from potstill.store.codecs import BadItem, RandomSampling, Sparse, ThresholdSampling, threshold
from potstill.store.codecs.threshold import num_kept

KEYS = key(7, np.arange(8_000))
SKEWED = np.array([0.4, 0.2, 0.13, 0.1, 0.07, 0.05, 0.03, 0.015, 0.005])
SAMPLERS = [
    RandomSampling(1),
    RandomSampling(9),
    RandomSampling(100),
    RandomSampling(1, systematic=True),
    RandomSampling(30, systematic=True),
    *(ThresholdSampling(size, bits) for size in (1, 2, 3, 5, 8, 9) for bits in (4, 8)),
]
SIZES = [(2, 1), (2, 2), (3, 2), (129, 5), (1000, 50), (200_000, 64)]


def softmax(logits: np.ndarray) -> np.ndarray:
    exact = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
    return exact / exact.sum(axis=-1, keepdims=True)


def whole(sparse: Sparse) -> np.ndarray:
    shape = (len(sparse), sparse.num_classes)
    return torch.zeros(shape, dtype=torch.float64).scatter_add_(1, sparse.ids, sparse.probabilities.double()).numpy()


@pytest.mark.parametrize("codec", SAMPLERS, ids=str)
@pytest.mark.parametrize("name", ["skewed", "even", "certain"])
def test_the_expectation_is_right(codec: RandomSampling | ThresholdSampling, name: str) -> None:
    p = {"skewed": SKEWED, "even": np.full(9, 1 / 9), "certain": np.array([1e-9, 1 - 2e-5, *[2e-5 / 7] * 7])}[name]
    logits = np.log(p).astype(np.float32)
    found = whole(codec.decode_sparse(codec.encode(np.tile(logits, (len(KEYS), 1)), KEYS), (9,)))
    assert (found >= 0).all()
    np.testing.assert_allclose(found.sum(axis=1), 1.0, atol=2e-6)
    # a class that comes once in a million times has no error that can be estimated from 8,000: bounded by chance
    chance = np.sqrt(np.maximum(found.var(axis=0), softmax(logits) / codec_parts(codec)) / len(KEYS))
    assert (np.abs(found.mean(axis=0) - softmax(logits)) < 5 * chance + 1e-6).all()


def codec_parts(codec: RandomSampling | ThresholdSampling) -> int:
    return codec.draws if isinstance(codec, RandomSampling) else codec.size


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 9])
@pytest.mark.parametrize("bits", [4, 8])
def test_the_expectation_is_exact(size: int, bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The three random numbers of an item, evenly over all their values, give the distribution to four digits."""
    count = 2**13
    place = (np.arange(count)[:, None] * np.array([0.8191725134, 0.6710436067, 0.5497004779]) + 0.5) % 1
    monkeypatch.setattr(threshold, "uniform", lambda keys, which: place[keys.astype(np.int64), which])
    codec = ThresholdSampling(size, bits)
    logits = np.tile(np.log(SKEWED).astype(np.float32), (count, 1))
    found = whole(codec.decode_sparse(codec.encode(logits, np.arange(count, dtype=np.uint64)), (9,)))
    np.testing.assert_allclose(found.mean(axis=0), SKEWED, atol=2e-4 + 1e-3 / size)


@pytest.mark.parametrize("tau", [0.9, 0.0123, 3e-9, 2.0**-33])
def test_the_stored_threshold_has_the_right_expectation(tau: float) -> None:
    rounded, stored = threshold._stored(np.full(4096, tau), (np.arange(4096) + 0.5) / 4096)
    assert len(set(stored.tolist())) == 2
    assert rounded.mean() == pytest.approx(tau, rel=1e-6 if tau > 1e-9 else 2e-3)
    np.testing.assert_array_equal(rounded, np.where(stored == 65535, 0.0, 2.0 ** (stored.astype(float) / -2048)))


def test_which_samples_have_less_noise() -> None:
    p = softmax(np.random.default_rng(0).normal(size=300) * 3)
    logits = np.tile(np.log(p).astype(np.float32), (2000, 1))
    errors = [
        (whole(codec.decode_sparse(codec.encode(logits, KEYS[:2000]), (300,))) - p).var(axis=0).sum()
        for codec in (RandomSampling(24), RandomSampling(24, systematic=True), ThresholdSampling(24))
    ]
    assert errors[2] < errors[1] < errors[0] / 2


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_the_threshold_solves_its_equation(data: st.DataObject) -> None:
    classes = data.draw(st.integers(2, 60))
    m = data.draw(st.integers(1, classes - 1))
    scale = data.draw(st.sampled_from([0.0, 0.5, 3.0, 12.0]))
    p = softmax(np.random.default_rng(data.draw(st.integers(0, 999))).normal(size=classes) * scale)
    assume(p.min() > 1e-9)  # adding less than that to 1 is lost to the bisection, which would end anywhere
    low, high = 0.0, 1.0
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if np.minimum(1, p / middle).sum() > m else (low, middle)
    ordered = np.sort(p)[::-1]
    count = int(num_kept(ordered[None, :m], np.ones(1))[0])
    tau = ordered[count:].sum() / (m - count)
    assert tau == pytest.approx(high, rel=1e-9)
    assert count == (p > tau * (1 + 1e-9)).sum() or np.isclose(p, tau, rtol=1e-9).any()


@pytest.mark.parametrize(("classes", "size"), SIZES)
@pytest.mark.parametrize("bits", [4, 8, 12])
def test_threshold_as_the_page_says(classes: int, size: int, bits: int, read_record: Callable) -> None:
    codec = ThresholdSampling(size, bits)
    logits = (np.random.default_rng(classes).normal(size=(3, classes)) * 3).astype(np.float32)
    records = codec.encode(logits, KEYS[:3])
    assert records.data.shape == (3, codec.width((classes,)))
    sparse, p = codec.decode_sparse(records, (classes,)), softmax(logits)
    assert sparse.tail == "none"
    for row in range(3):
        found = read_record(codec, records.data[row], classes)
        assert len(found) == size
        assert found == pytest.approx(
            dict(zip(sparse.ids[row].tolist(), sparse.probabilities[row].tolist(), strict=True)), rel=1e-5, abs=1e-7
        )
        assert sum(found.values()) == pytest.approx(1)
        # classes above the threshold are there, one level off at most
        tau = min(value for value in found.values() if value > 0)
        kept = np.flatnonzero(p[row] > tau * 1.01)
        growth = np.log(0.5 / min(tau, 0.25)) / (2**bits - 4)
        second = np.sort(p[row])[-2]
        for name in kept:
            bound = p[row][name] * np.expm1(growth) + second * np.expm1(growth) * (name == p[row].argmax())
            assert abs(found[int(name)] - p[row][name]) <= bound + 2e-3 * tau * size


@pytest.mark.parametrize(("classes", "draws"), [(2, 1), (2, 255), (3, 8), (129, 50), (50_257, 100), (200_000, 255)])
def test_random_as_the_page_says(classes: int, draws: int, read_record: Callable) -> None:
    codec = RandomSampling(draws)
    logits = (np.random.default_rng(classes).normal(size=(9, classes)) * 3).astype(np.float32)
    records = codec.encode(logits, KEYS[:9])
    sparse = codec.decode_sparse(records, (classes,))
    assert sparse.tail == "none"
    ends = np.cumsum(records.lengths.astype(int))
    assert ends[-1] == len(records.data)
    for row, end in enumerate(ends):
        record = records.data[end - records.lengths[row] : end]
        assert len(record) <= codec.width((classes,))
        found = read_record(codec, record, classes)
        used = sparse.probabilities[row] > 0
        assert found == pytest.approx(
            dict(zip(sparse.ids[row][used].tolist(), sparse.probabilities[row][used].tolist(), strict=True))
        )
        assert sum(found.values()) == pytest.approx(1)


def test_random_draws_are_those_of_the_key() -> None:
    """Which classes come is fixed for good: the numbers of `core.random`, in order, through the added up weights."""
    from potstill.core.random import uniform

    logits = np.log(SKEWED).astype(np.float32)
    found = whole(RandomSampling(20).decode_sparse(RandomSampling(20).encode(logits[None], KEYS[3:4]), (9,)))
    draws = np.searchsorted(SKEWED.cumsum(), uniform(KEYS[3], np.arange(20)), side="right")
    np.testing.assert_allclose(found[0], np.bincount(draws, minlength=9) / 20, atol=1e-7)


def test_systematic_draws_come_as_often_as_expected() -> None:
    logits = np.tile(np.log(SKEWED).astype(np.float32), (500, 1))
    for draws in (1, 7, 40, 200):
        codec = RandomSampling(draws, systematic=True)
        counts = whole(codec.decode_sparse(codec.encode(logits, KEYS[:500]), (9,))) * draws
        np.testing.assert_allclose(counts, np.rint(counts), atol=1e-4)
        assert (np.abs(counts - SKEWED * draws) < 1 + 1e-4).all()


def test_known_bytes() -> None:
    # 8 draws of class 1 of 4: only the last bit is set; low bit 1, then a mark at 0
    certain = np.array([[-np.inf, 0, -np.inf, -np.inf]], np.float32)
    assert RandomSampling(8).encode(certain, KEYS[:1]).data.tobytes().hex() == "800101"
    # 1/2 and 1/4 are kept, 1/4 being the threshold, and 2 or 3 is sampled: τ = 2^(-4096 / 2048), codes 15, 2 and 0,
    # marks at 0, 1 + 1 and 2 + 2 or 2 + 3
    halves = np.log(np.array([0.5, 0.25, 0.125, 0.125], np.float32))
    found = {
        record.tobytes().hex() for record in ThresholdSampling(3, 4).encode(np.tile(halves, (40, 1)), KEYS[:40]).data
    }
    assert found == {"00102f0015", "00102f0025"}


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_extreme_logits(data: st.DataObject) -> None:
    classes = data.draw(st.integers(2, 300))
    random = np.random.default_rng(data.draw(st.integers(0, 999)))
    values = np.array([1e4, -1e4, 0.0, 1.5, 9999.0, -20.0, -np.inf], np.float32)
    logits = random.choice(values, (4, classes), p=random.dirichlet(np.ones(7) * 0.5))
    logits[:, 0] = 3.0
    size = data.draw(st.integers(1, classes))
    for codec in (ThresholdSampling(size, data.draw(st.integers(4, 16))), RandomSampling(size)):
        sparse = codec.decode_sparse(codec.encode(logits, KEYS[:4]), (classes,))
        found = whole(sparse)
        assert (sparse.probabilities >= 0).all()
        np.testing.assert_allclose(found.sum(axis=1), 1.0, atol=1e-5)
        assert (found[softmax(logits) < 1e-40] == 0).all()
        assert codec.decode(codec.encode(logits, KEYS[:4]), (classes,)).isfinite().all()


def test_the_likeliest_stays_positive_on_the_coarsest_grid() -> None:
    random = np.random.default_rng(5)
    for scale in (0.05, 1.0, 8.0):
        logits = (random.normal(size=(500, 64)) * scale).astype(np.float32)
        for size in (2, 20, 63, 64):
            codec = ThresholdSampling(size, 4)
            sparse = codec.decode_sparse(codec.encode(logits, KEYS[:500]), (64,))
            assert (sparse.probabilities >= 0).all()


def test_few_classes_with_any_probability_are_all_kept() -> None:
    logits = np.full((1, 50), -np.inf, np.float32)
    logits[0, [3, 40]] = np.log([0.75, 0.25])
    sparse = ThresholdSampling(6, 16).decode_sparse(ThresholdSampling(6, 16).encode(logits, KEYS[:1]), (50,))
    np.testing.assert_allclose(whole(sparse)[0, [3, 40]], [0.75, 0.25], rtol=1e-3)
    assert len(set(sparse.ids[0].tolist())) == 6


@pytest.mark.parametrize(
    "codec", [RandomSampling(30), RandomSampling(30, systematic=True), ThresholdSampling(20)], ids=str
)
def test_the_company_makes_no_difference(codec: RandomSampling | ThresholdSampling) -> None:
    logits = np.random.default_rng(3).normal(size=(24, 70_001)).astype(np.float32)
    keys = KEYS[:24]
    alone = codec.encode(logits, keys)
    cuts = [1, 4, 15]
    parts = [codec.encode(*part) for part in zip(np.split(logits, cuts), np.split(keys, cuts), strict=True)]
    np.testing.assert_array_equal(np.concatenate([part.data for part in parts]), alone.data)
    other = codec.encode(logits, KEYS[100:124])
    assert other.data.tobytes() != alone.data.tobytes()


@pytest.mark.parametrize("codec", [RandomSampling(3), ThresholdSampling(3)], ids=str)
def test_no_items_and_bad_ones(codec: RandomSampling | ThresholdSampling) -> None:
    none = codec.encode(np.zeros((0, 10), np.float32), KEYS[:0])
    assert len(none) == 0
    assert codec.decode(none, (10,)).shape == (0, 10)
    logits = np.zeros((3, 10), np.float32)
    logits[2, 1] = np.nan
    with pytest.raises(BadItem, match="Item 2 has a logit that is not a number"):
        codec.encode(logits, KEYS[:3])


def test_classes_that_were_not_drawn() -> None:
    logits = np.log(SKEWED).astype(np.float32)[None]
    codec = ThresholdSampling(4)
    dense = codec.decode(codec.encode(logits, KEYS[:1]), (9,))
    found = whole(codec.decode_sparse(codec.encode(logits, KEYS[:1]), (9,)))
    np.testing.assert_allclose(dense.exp(), np.maximum(found, 1e-12), rtol=1e-5)
