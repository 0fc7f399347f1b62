"""Writing named tensors so that equal tensors make equal files, byte for byte."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from potstill.core.files import atomic_path


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors and texts to one safetensors file, atomically.

    Args:
        path: where to write.
        tensors: contiguous, on the CPU, no two of one storage.
        metadata: texts for the file's header; in the order of their names whatever order they are given in.

    """
    with atomic_path(path) as temporary:
        save_file(dict(tensors), temporary, metadata=dict(metadata) if metadata else None)
        if metadata:
            _order_metadata(temporary)


def _order_metadata(path: Path) -> None:
    """Sort the texts in a file's header, which the library writes in an order of its own every time."""
    with path.open("r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        content = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "backslashreplace")
        if len(content) <= size:
            file.seek(8)
            file.write(content.ljust(size))
