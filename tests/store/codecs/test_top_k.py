"""The likeliest classes and the rest."""

from __future__ import annotations

import struct
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from potstill.store.codecs import BadItem, Records, TopK

SIZES = [(2, 1), (2, 2), (3, 2), (10, 10), (129, 5), (1000, 50), (200_000, 64)]


def softmax(logits: np.ndarray) -> np.ndarray:
    exact = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
    return exact / exact.sum(axis=-1, keepdims=True)


def test_known_bytes() -> None:
    record = TopK(2, 4).encode(np.log(np.array([[0.5, 0.25, 0.125, 0.125]], np.float32))).data
    odds, reach = struct.pack("<f", np.log(0.25 / 0.75)), struct.pack("<e", 0.6934)
    # codes 15 and 1; ids 0 and 1 of 4 without low bits: marks at 0 and 1 + 1
    assert record.tobytes()[4:] == reach + bytes([0x1F, 0x05])
    assert struct.unpack("<f", record.tobytes()[:4])[0] == pytest.approx(struct.unpack("<f", odds)[0], rel=1e-6)


@pytest.mark.parametrize(("classes", "k"), SIZES)
@pytest.mark.parametrize("bits", [4, 8, 13])
def test_as_the_page_says(classes: int, k: int, bits: int, read_record: Callable) -> None:
    codec = TopK(k, bits)
    logits = (np.random.default_rng(classes).normal(size=(3, classes)) * 3).astype(np.float32)
    records = codec.encode(logits)
    assert records.data.shape == (3, codec.width((classes,)))
    sparse, p = codec.decode_sparse(records, (classes,)), softmax(logits)
    assert (sparse.tail, sparse.num_classes) == ("bucket", classes)
    for row in range(3):
        found = read_record(codec, records.data[row], classes)
        assert found == pytest.approx(
            dict(zip(sparse.ids[row].tolist(), sparse.probabilities[row].tolist(), strict=True)), rel=1e-5
        )
        likeliest = np.sort(np.argsort(-p[row])[:k])
        assert sparse.ids[row].tolist() == likeliest.tolist()
        assert sum(found.values()) == pytest.approx(p[row][likeliest].sum(), rel=1e-5)
        exact = np.log(p[row][likeliest])
        step = (exact.max() - exact.min()) / (2**bits - 2)
        assert np.abs(np.log(list(found.values())) - exact).max() <= step * 1.001 + 1e-5


def test_dense_spreads_the_rest() -> None:
    logits = np.log(np.array([[0.6, 0.2, 0.1, 0.06, 0.04]], np.float32))
    dense = TopK(2, 16).decode(TopK(2, 16).encode(logits), (5,)).exp()
    np.testing.assert_allclose(dense, [[0.6, 0.2, 0.2 / 3, 0.2 / 3, 0.2 / 3]], rtol=1e-4)
    everything = TopK(5, 16).decode(TopK(5, 16).encode(logits), (5,))
    np.testing.assert_allclose(everything, logits, atol=1e-4)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_extreme_logits(data: st.DataObject) -> None:
    classes = data.draw(st.integers(2, 300))
    k = data.draw(st.integers(1, classes))
    random = np.random.default_rng(data.draw(st.integers(0, 999)))
    logits = random.choice(np.array([1e4, -1e4, 0.0, 1.5, -np.inf], np.float32), (4, classes))
    logits[:, 0] = 3.0
    codec = TopK(k, data.draw(st.integers(2, 16)))
    sparse = codec.decode_sparse(codec.encode(logits), (classes,))
    p = softmax(logits)
    assert (sparse.probabilities >= 0).all()
    assert (sparse.ids.diff(dim=1) > 0).all()
    kept = np.take_along_axis(p, sparse.ids.numpy(), axis=1)
    np.testing.assert_allclose(sparse.probabilities.sum(1), kept.sum(1), rtol=1e-5)
    masked = np.isneginf(np.take_along_axis(logits, sparse.ids.numpy(), axis=1))
    assert (sparse.probabilities.numpy()[masked] == 0).all()
    dense = codec.decode(codec.encode(logits), (classes,))
    assert dense.isfinite().all()
    np.testing.assert_allclose(dense.exp().sum(1), 1.0, rtol=1e-5)


def test_equal_logits_take_the_lowest_ids() -> None:
    logits = np.zeros((2, 400), np.float32)
    logits[1, 300] = 1.0
    ids = TopK(3).decode_sparse(TopK(3).encode(logits), (400,)).ids
    assert ids.tolist() == [[0, 1, 2], [0, 1, 300]]


def test_tiny_and_huge_rests_keep_their_digits() -> None:
    logits = np.full((2, 100_000), 0.0, np.float32)
    logits[1, 5] = 60.0  # the rest has a probability of 9e-22
    codec = TopK(1)
    records = codec.encode(logits)
    odds = records.data[:, :4].copy().view("<f4").ravel()
    np.testing.assert_allclose(odds, [np.log(99_999), np.log(99_999) - 60], rtol=1e-6)
    np.testing.assert_allclose(codec.decode_sparse(records, (100_000,)).probabilities[0], 1e-5, rtol=1e-5)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_bad_logits_are_named(value: float) -> None:
    logits = np.zeros((30, 40_000), np.float32)  # several chunks
    logits[25, 7] = value
    with pytest.raises(BadItem, match="Item 25 has a logit that is not a number or infinite"):
        TopK(2).encode(logits)
    logits[25] = -np.inf
    with pytest.raises(BadItem, match="Item 25 has minus infinity as the logit of every class"):
        TopK(2).encode(logits)


def test_no_items() -> None:
    records = TopK(3).encode(np.zeros((0, 10), np.float32))
    assert records.data.shape == (0, TopK(3).width((10,)))
    assert TopK(3).decode(records, (10,)).shape == (0, 10)


def test_the_company_makes_no_difference() -> None:
    logits = np.random.default_rng(3).normal(size=(24, 70_001)).astype(np.float32)
    whole = TopK(20).encode(logits).data
    parts = [TopK(20).encode(part).data for part in np.split(logits, [1, 4, 15])]
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    chosen = TopK(20).decode_sparse(Records(whole[[5, 2]]), (70_001,))
    assert torch.equal(chosen.ids, TopK(20).decode_sparse(Records(whole), (70_001,)).ids[[5, 2]])
