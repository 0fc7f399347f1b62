"""Columns: arrays on disk that only grow, as NumPy's own ``.npy`` files (format 1.0, NEP 1)."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
_MAGIC = b"\x93NUMPY\x01\x00"
_LONGEST = 10**18


@dataclass(frozen=True)
class Column:
    """One ``.npy`` file of a shard.

    Attributes:
        file: its name.
        dtype: NumPy's name of the number format, little-endian.
        shape: shape of one entry; ``()`` for single numbers.

    """

    file: str
    dtype: str
    shape: tuple[int, ...] = ()

    @property
    def entry_bytes(self) -> int:
        """Bytes of one entry."""
        return int(np.prod(self.shape, dtype=np.int64)) * np.dtype(self.dtype).itemsize

    @property
    def header_bytes(self) -> int:
        """Bytes in front of the first entry: the same for any number of entries."""
        return -(-(len(_MAGIC) + 2 + len(self._description(_LONGEST)) + 1) // 64) * 64

    def header(self, entries: int) -> bytes:
        """Return the head of a file with so many entries."""
        length = self.header_bytes - len(_MAGIC) - 2
        text = self._description(entries).ljust(length - 1) + "\n"
        return _MAGIC + struct.pack("<H", length) + text.encode("latin1")

    def file_bytes(self, entries: int) -> int:
        """Return the size of a file with so many entries."""
        return self.header_bytes + entries * self.entry_bytes

    def map(self, folder: Path) -> Array:
        """Memory-map the entries that are wholly there, read-only, whatever the head says of their number."""
        path = folder / self.file
        entries = max(0, path.stat().st_size - self.header_bytes) // self.entry_bytes if path.is_file() else 0
        if entries == 0:
            return np.empty((0, *self.shape), self.dtype)
        mapped = np.memmap(path, self.dtype, "r", offset=self.header_bytes, shape=(entries, *self.shape))
        # A plain array over the map: indexing the memmap subclass itself costs several times more.
        return np.asarray(mapped)

    def _description(self, entries: int) -> str:
        return f"{{'descr': {self.dtype!r}, 'fortran_order': False, 'shape': {(entries, *self.shape)!r}, }}"
