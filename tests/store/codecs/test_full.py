"""Every number, in six formats; hidden states on few directions."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from potstill.core.errors import PotstillError, UsageError
from potstill.store.codecs import (
    CODECS,
    BadItem,
    Full,
    LowRank,
    RandomSampling,
    Records,
    ThresholdSampling,
    TopK,
    fit_basis,
    from_json,
    project,
    rebuild,
)

RANDOM = np.random.default_rng(0)
NUMBERS = (RANDOM.normal(size=(5, 2, 3)) * 100).astype(np.float32)


def as_bytes(codec: Full, values: object) -> str:
    return codec.encode(np.asarray(values, np.float32)).data.tobytes().hex()


def test_known_bytes() -> None:
    assert as_bytes(Full("float32"), [[1.0, -2.0]]) == "0000803f000000c0"
    assert as_bytes(Full("float16"), [[1.0, -2.0]]) == "003c00c0"
    assert as_bytes(Full("bfloat16"), [[1.0, -2.0, 1.00390625, 1.01171875]]) == "803f00c0803f823f"  # halves to even
    assert as_bytes(Full("int8"), [[127.0, -64.0, 1.0]]) == "0000803f7fc001"
    assert as_bytes(Full("uint8"), [[0, 255]]) == "00ff"
    assert as_bytes(Full("int32"), [[-2, 50_256]]) == "feffffff50c40000"


@pytest.mark.parametrize(
    ("dtype", "error"), [("float32", 0.0), ("float16", 2**-11), ("bfloat16", 2**-8), ("int8", None)]
)
def test_numbers_come_back(dtype: str, error: float | None) -> None:
    codec = Full(dtype)
    records = codec.encode(NUMBERS)
    assert records.data.shape == (5, codec.width((2, 3)))
    decoded = codec.decode(records, (2, 3))
    assert decoded.dtype == torch.float32
    bound = np.abs(NUMBERS).max(axis=(1, 2), keepdims=True) / 254 * 1.0001 if error is None else error * np.abs(NUMBERS)
    assert (np.abs(decoded.numpy() - NUMBERS) <= bound).all()


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "int8", "uint8", "int32"])
def test_any_memory_and_any_number_of_items(dtype: str) -> None:
    codec = Full(dtype)
    values = np.arange(24, dtype=np.float32).reshape(4, 3, 2)
    whole = codec.encode(values).data
    turned = np.asfortranarray(values)
    turned.flags.writeable = False
    np.testing.assert_array_equal(codec.encode(turned).data, whole)
    np.testing.assert_array_equal(np.concatenate([codec.encode(values[:1]).data, codec.encode(values[1:]).data]), whole)
    whole.flags.writeable = False  # as a memory map's bytes are
    expected = codec.decode(Records(whole.copy()), (3, 2))
    np.testing.assert_array_equal(codec.decode(Records(whole), (3, 2)), expected)
    np.testing.assert_array_equal(codec.decode(Records(whole[::2]), (3, 2)), expected[::2])
    assert codec.encode(values[:0]).data.shape == (0, codec.width((3, 2)))
    assert codec.decode(codec.encode(values[:0]), (3, 2)).shape == (0, 3, 2)
    scalars = codec.encode(np.array([3.0, 4.0], np.float32))
    np.testing.assert_allclose(codec.decode(scalars, ()), [3.0, 4.0], rtol=1e-6)


def test_integers_stay_integers() -> None:
    ids = np.array([[2**31 - 1, -5]], np.int64)
    found = Full("int32").decode(Full("int32").encode(ids), (2,))
    assert found.dtype == torch.int32
    assert found.tolist() == ids.tolist()
    assert Full("uint8").decode(Full("uint8").encode(np.array([[7]])), (1,)).dtype == torch.uint8


@pytest.mark.parametrize(
    ("dtype", "value", "reason"),
    [
        ("float32", np.nan, "holds nan; only finite numbers"),
        ("int8", -np.inf, "holds -inf; only finite numbers"),
        ("float16", -65520.0, "reaches -65520, float16 ends at 65504; set store.dtype to float32"),
        ("bfloat16", 3.4e38, "reaches 3.4e.38, bfloat16 ends at"),
        ("uint8", 256, "holds 256; uint8 keeps integers from 0 to 255"),
        ("int32", 0.5, "holds 0.5; int32 keeps integers"),
        ("int32", np.nan, "holds nan; int32 keeps integers"),
    ],
)
def test_what_cannot_be_kept_is_named(dtype: str, value: float, reason: str) -> None:
    values = np.ones((4, 2), np.float32)
    values[2, 1] = value
    with pytest.raises(BadItem, match=reason) as caught:
        Full(dtype).encode(values)
    assert caught.value.index == 2


def test_the_last_number_that_fits() -> None:
    assert Full("float16").decode(Full("float16").encode(np.array([[65519.0]], np.float32)), (1,)) == 65504.0
    assert Full("bfloat16").decode(Full("bfloat16").encode(np.array([[3.39e38]], np.float32)), (1,)).isfinite()
    assert Full("int8").decode(Full("int8").encode(np.zeros((1, 3), np.float32)), (3,)).tolist() == [[0, 0, 0]]
    tiny = np.full((1, 2), 1e-45, np.float32)
    assert Full("int8").decode(Full("int8").encode(tiny), (2,)).isfinite().all()


def test_plain_data_and_back() -> None:
    codecs = [
        Full("int8"),
        TopK(50, 6),
        RandomSampling(12, systematic=True),
        ThresholdSampling(16),
        LowRank(8, "bfloat16"),
    ]
    assert {codec.name for codec in codecs} == set(CODECS)
    for codec in codecs:
        assert from_json(codec.to_json()) == codec
    with pytest.raises(UsageError, match=r"no codec 'topk'\. Did you mean 'top_k'"):
        from_json({"codec": "topk", "k": 5})
    with pytest.raises(UsageError, match="top_k does not take"):
        from_json({"codec": "top_k", "size": 5})


@pytest.mark.parametrize(
    "make",
    [
        lambda: Full("float64"),
        lambda: TopK(0),
        lambda: TopK(5, 17),
        lambda: RandomSampling(0),
        lambda: ThresholdSampling(0),
        lambda: ThresholdSampling(5, 3),
        lambda: LowRank(0),
        lambda: LowRank(4, "int32"),
        lambda: TopK(11).width((10,)),
        lambda: ThresholdSampling(11).width((10,)),
        lambda: RandomSampling(5).width((10, 10)),
        lambda: TopK(1).width((1,)),
        lambda: LowRank(4).width((5,)),
        lambda: fit_basis(NUMBERS[:, 0], 4),
    ],
)
def test_impossible_settings(make: object) -> None:
    with pytest.raises(UsageError):
        make()


def test_records_of_another_codec() -> None:
    records = Full("float16").encode(NUMBERS)
    with pytest.raises(PotstillError, match="have 24 bytes each here"):
        Full("float32").decode(records, (2, 3))


def test_low_rank_states_make_the_logits_again() -> None:
    random = np.random.default_rng(1)
    inner = random.normal(size=(40, 3)).astype(np.float32)
    hidden = inner @ random.normal(size=(3, 8)).astype(np.float32) + 5
    weight, bias = random.normal(size=(20, 8)).astype(np.float32), random.normal(size=20).astype(np.float32)
    basis = fit_basis(hidden, 3)
    codec = LowRank(3, "float32")
    found = codec.decode(codec.encode(project(hidden, basis)), (3,))
    logits = rebuild(found, basis, torch.tensor(weight), torch.tensor(bias))
    np.testing.assert_allclose(logits, hidden @ weight.T + bias, atol=2e-4)
    np.testing.assert_allclose(basis.mean + found.numpy() @ basis.back, hidden, atol=1e-4)


def test_directions_that_the_head_reads() -> None:
    """The states' largest direction is one that the head ignores: fitted for the logits it is not kept."""
    random = np.random.default_rng(2)
    hidden = random.normal(size=(50, 4)).astype(np.float32) * np.array([100, 3, 2, 1], np.float32)
    weight = random.normal(size=(30, 4)).astype(np.float32)
    weight[:, 0] = 7.0  # the same for all classes: no probability depends on it
    exact = hidden @ weight.T
    errors = []
    for basis in (fit_basis(hidden, 3), fit_basis(hidden, 3, weight)):
        logits = rebuild(torch.tensor(project(hidden, basis)), basis, torch.tensor(weight)).numpy()
        away = logits - exact
        errors.append(np.abs(away - away.mean(axis=1, keepdims=True)).max())
    assert errors[1] < 1e-2 < 1 < errors[0]
