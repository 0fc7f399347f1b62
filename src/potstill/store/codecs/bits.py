"""Small numbers side by side in few bits, and ascending class ids in fewer.

Bits run from the lowest bit of the first byte to the highest of the last; every row begins at a byte.
Shape legend: n rows, k numbers of a row.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from potstill.store.codecs.records import Bytes, Integers

MOST_BITS = 25
"""Of a packed number: read with the 7 bits before it, it fits 32."""


def packed_width(count: int, bits: int) -> int:
    """Return the bytes that ``count`` numbers of ``bits`` bits take."""
    return -(-count * bits // 8)


def pack(numbers: Integers, bits: int) -> Bytes:
    """Return (n, width) bytes that hold (n, k) numbers from 0 to 2^bits - 1, number i in bits i * bits and up."""
    n, k = numbers.shape
    groups = -(-k // 8)
    packed = np.zeros((n, groups, bits + 4), np.uint8)  # eight numbers fill `bits` bytes
    for place in range(min(8, k)):
        first, shift = divmod(place * bits, 8)
        shifted = numbers[:, place::8].astype(np.uint32) << np.uint32(shift)
        members = shifted.shape[1]
        for byte in range(-(-(shift + bits) // 8)):
            packed[:, :members, first + byte] |= (shifted >> np.uint32(8 * byte)).astype(np.uint8)
    return packed[:, :, :bits].reshape(n, groups * bits)[:, : packed_width(k, bits)]


def unpack(data: Bytes, count: int, bits: int) -> Integers:
    """Return (n, count) numbers out of (n, width) bytes."""
    n = len(data)
    if bits == 0 or n == 0:
        return np.zeros((n, count), np.int64)
    groups = -(-count // 8)
    padded = np.zeros((n, groups * bits + 4), np.uint8)
    width = packed_width(count, bits)
    padded[:, :width] = data[:, :width]
    numbers = np.empty((n, count), np.int64)
    mask = np.uint32(2**bits - 1)
    for place in range(min(8, count)):
        first, shift = divmod(place * bits, 8)
        members = -(-(count - place) // 8)
        # every eighth number begins `bits` bytes after the one before: one strided view of the bytes reads them all
        words = np.ndarray((n, members), "<u4", padded, first, (padded.shape[1], bits))
        numbers[:, place::8] = (words >> np.uint32(shift)) & mask
    return numbers


@lru_cache
def low_bits(count: int, num_classes: int) -> int:
    """Return how many low bits of each id are stored as they are: the number that makes the record smallest."""
    return min(range(MOST_BITS), key=lambda low: (count * low + ((num_classes - 1) >> low), low))


def ids_width(count: int, num_classes: int) -> int:
    """Return the bytes that ``count`` ascending ids below ``num_classes`` take."""
    low = low_bits(count, num_classes)
    return packed_width(count, low) + packed_width(count + ((num_classes - 1) >> low), 1)


def pack_ids(ids: Integers, num_classes: int) -> Bytes:
    """Return (n, width) bytes that hold (n, k) ids, ascending in every row; an id may come more than once.

    The low bits of all ids come first, as they are. Then one bit is set for each id, at (id >> low) + its place.
    """
    n, count = ids.shape
    low = low_bits(count, num_classes)
    marks = np.zeros((n, count + ((num_classes - 1) >> low)), np.uint8)
    np.put_along_axis(marks, (ids >> low) + np.arange(count), 1, axis=1)
    lows = pack(ids & (2**low - 1), low)
    return np.concatenate((lows, np.packbits(marks, axis=1, bitorder="little")), axis=1)


def unpack_ids(data: Bytes, count: int, num_classes: int) -> Integers:
    """Return (n, count) ids out of the first bytes of (n, ...)."""
    n = len(data)
    low = low_bits(count, num_classes)
    num_marks = count + ((num_classes - 1) >> low)
    start = packed_width(count, low)
    marks = np.unpackbits(data[:, start:], axis=1, count=num_marks, bitorder="little")
    places = np.flatnonzero(marks.view(np.bool_)).reshape(n, count)
    places -= num_marks * np.arange(n)[:, None]
    places -= np.arange(count)
    return (places << low) | unpack(data, count, low)
