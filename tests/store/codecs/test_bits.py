"""Packed numbers and ascending ids."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from potstill.store.codecs.bits import ids_width, low_bits, pack, pack_ids, packed_width, unpack, unpack_ids


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_packed_numbers_come_back(data: st.DataObject) -> None:
    bits = data.draw(st.integers(1, 25))
    n, count = data.draw(st.integers(0, 3)), data.draw(st.integers(1, 40))
    numbers = np.random.default_rng(data.draw(st.integers(0, 99))).integers(0, 2**bits, (n, count))
    packed = pack(numbers, bits)
    assert packed.shape == (n, packed_width(count, bits))
    for row, record in zip(numbers.tolist(), packed, strict=True):
        stream = sum(number << place * bits for place, number in enumerate(row))
        assert record.tobytes() == stream.to_bytes(packed_width(count, bits), "little")
    np.testing.assert_array_equal(unpack(packed, count, bits), numbers)


def test_known_bytes() -> None:
    assert pack(np.array([[1, 2, 3, 15]]), 4).tobytes().hex() == "21f3"
    assert pack(np.array([[5, 1023]]), 10).tobytes().hex() == "05fc0f"
    # 3 and 9 of 16: no low bits would cost 2 + 15 bits, 3 low bits cost 6 + 2 + 1
    assert low_bits(2, 16) == 2
    assert pack_ids(np.array([[3, 9]]), 16).tobytes().hex() == "0709"  # lows 3, 1; marks at 0 and 2 + 1


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_ids_come_back(data: st.DataObject) -> None:
    classes = data.draw(st.sampled_from([2, 3, 10, 128, 129, 50_257, 200_000, 2**24]))
    count = data.draw(st.integers(1, min(classes, 60)))
    draws = np.random.default_rng(data.draw(st.integers(0, 99))).integers(0, classes, (3, count))
    draws[0] = classes - 1  # repeats, and the very last
    draws.sort(axis=1)
    packed = pack_ids(draws, classes)
    assert packed.shape == (3, ids_width(count, classes))
    np.testing.assert_array_equal(unpack_ids(packed, count, classes), draws)


@pytest.mark.parametrize(("count", "classes"), [(16, 50_257), (50, 50_257), (300, 50_257), (32, 200_000)])
def test_ids_are_near_the_least_possible(count: int, classes: int) -> None:
    from math import comb, log2

    assert ids_width(count, classes) * 8 < log2(comb(classes, count)) + 0.75 * count + 16
    assert ids_width(count, classes) < packed_width(count, int(np.ceil(np.log2(classes))))
