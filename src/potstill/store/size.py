"""How large a store will be, and whether the disk has room for it."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from potstill.core.errors import PotstillError
from potstill.store.codecs import Codec, numbers
from potstill.store.description import Dtype


def estimate(
    num_samples: int,
    views: int,
    shapes: Mapping[str, tuple[int, ...]],
    dtype: Dtype = "float16",
    codecs: Mapping[str, Codec] | None = None,
) -> int:
    """Return the bytes a store of these signals takes on disk, checksums aside.

    Args:
        num_samples: samples recorded.
        views: augmented views of each sample.
        shapes: shape of one record of each signal, without the batch dimension.
        dtype: number format of signals without a codec of their own.
        codecs: how a signal's numbers are kept; one whose records differ in length counts with its longest.

    """
    widths = [_width((codecs or {}).get(name, numbers(dtype)), tuple(shape)) for name, shape in shapes.items()]
    return num_samples * views * sum(widths)


def _width(codec: Codec, shape: tuple[int, ...]) -> int:
    reduced = codec.facts.reduced
    return codec.width(shape if reduced is None else (reduced,))


def bytes_on_disk(folder: Path) -> int:
    """Return the bytes of all files below ``folder``."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def free_bytes(folder: Path) -> int:
    """Return the free bytes of the disk ``folder`` lies on, or will lie on."""
    existing = Path(folder).absolute()
    while not existing.exists():
        existing = existing.parent
    return shutil.disk_usage(existing).free


def check_room(folder: Path, needed: int) -> None:
    """Refuse to begin a store the disk has no room for.

    Args:
        folder: where the store will lie; need not exist.
        needed: bytes to be written there.

    Raises:
        PotstillError: fewer bytes are free; says how many and what makes the store smaller.

    """
    free = free_bytes(folder)
    if needed > free:
        raise PotstillError(
            f"The disk is full: the store {folder} needs {in_words(needed)} and {in_words(free)} are free. Finished "
            "results are safe. Free some space, choose another store.path, or record less: fewer views, float16, "
            "fewer signals."
        )


def in_words(count: int) -> str:
    """Return a number of bytes as a short text, such as ``1.5 GB``."""
    value = float(count)
    for unit in ("bytes", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "bytes" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"
