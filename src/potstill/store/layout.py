"""How a store lies on disk: one file per signal, the ids, a journal of finished blocks, and the manifest.

A block is a run of rows that share a checksum. A block counts once its line is in the journal, and a line is
believed only if the bytes it speaks of have its checksum: no half-written line or block can pass for a whole one.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from potstill.core.errors import PotstillError
from potstill.core.files import atomic_path, read_json
from potstill.store.manifest import NUMPY_DTYPES, Manifest, from_json, ids_fingerprint

MANIFEST = "manifest.json"
UNFINISHED = "manifest.partial.json"
IDS = "ids.npy"
JOURNAL = "blocks.jsonl"

Array = np.ndarray[Any, Any]
Checksums = dict[int, dict[str, str]]
"""Block number to signal name to sha256."""


def read_manifest(path: Path) -> Manifest:
    """Read and check a manifest file."""
    try:
        value = read_json(path)
    except ValueError as error:
        raise PotstillError(f"{path} is damaged ({error}). Delete the folder {path.parent} to record anew.") from error
    return from_json(value, path)


def write_ids(folder: Path, ids: Array) -> None:
    """Write the sample ids in row order, atomically."""
    # Through memory: NumPy's own writing to a file forgets which error the disk gave.
    content = io.BytesIO()
    np.save(content, np.ascontiguousarray(ids, dtype="<i8"), allow_pickle=False)
    with atomic_path(folder / IDS) as temporary:
        temporary.write_bytes(content.getvalue())


def read_ids(folder: Path, manifest: Manifest) -> Array | None:
    """Return the ids, or None when the file is missing or not the one the manifest speaks of."""
    try:
        ids: Array = np.load(folder / IDS, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    whole = ids.shape == (manifest.num_samples,) and ids.dtype.kind == "i" and ids_fingerprint(ids) == manifest.ids
    return ids.astype(np.int64, copy=False) if whole else None


def map_signals(folder: Path, manifest: Manifest) -> dict[str, Array]:
    """Memory-map every signal whose file has exactly the right size, read-only, as (rows, ...) arrays."""
    maps: dict[str, Array] = {}
    for name, spec in manifest.signals.items():
        path = folder / spec.file
        if path.is_file() and path.stat().st_size == manifest.num_rows * spec.row_bytes:
            shape = (manifest.num_rows, *spec.shape)
            # A plain array over the map: indexing the memmap subclass itself costs several times more.
            maps[name] = np.asarray(np.memmap(path, NUMPY_DTYPES[spec.dtype], "r", shape=shape))
    return maps


def checksum(rows: Array) -> str:
    """Return the sha256 of the bytes of some rows."""
    return hashlib.sha256(np.ascontiguousarray(rows).reshape(-1).view(np.uint8).data).hexdigest()


def journal_line(manifest: Manifest, block: int, sums: Mapping[str, str]) -> str:
    """Return the journal's line for a finished block."""
    return json.dumps({"block": block, "rows": list(manifest.block_rows(block)), "sha256": dict(sums)}) + "\n"


def read_journal(folder: Path, manifest: Manifest) -> Checksums:
    """Return the blocks the journal claims; lines that are torn or make no sense are passed over."""
    path = folder / JOURNAL
    claimed: Checksums = {}
    for line in path.read_bytes().split(b"\n") if path.is_file() else []:
        try:
            value = json.loads(line)
            block, sums = value["block"], value["sha256"]
            if value["rows"] == list(manifest.block_rows(block)) and sums.keys() == manifest.signals.keys():
                claimed[block] = {name: str(sums[name]) for name in manifest.signals}
        except (ValueError, KeyError, TypeError, AttributeError):
            continue
    return {block: claimed[block] for block in sorted(claimed) if 0 <= block < manifest.num_blocks}


def damaged(
    manifest: Manifest, maps: Mapping[str, Array], checksums: Checksums, blocks: Iterable[int]
) -> list[tuple[int, str]]:
    """Return the (block, signal) among ``blocks`` whose bytes are missing or do not have the recorded checksum."""
    found = []
    for block in blocks:
        start, stop = manifest.block_rows(block)
        for name in manifest.signals:
            recorded = checksums.get(block, {}).get(name)
            if recorded is None or name not in maps or checksum(maps[name][start:stop]) != recorded:
                found.append((block, name))
    return found
