"""Looking at a store: what it holds and how much of it, and whether every byte is the one that was recorded."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from potstill.core.progress import progress
from potstill.store import layout
from potstill.store.heads import heads_problem
from potstill.store.keys import keys_problem
from potstill.store.manifest import Manifest, SignalSpec


@dataclass(frozen=True)
class Verification:
    """What `verify` found.

    Attributes:
        finished: whether the store says that everything was recorded.
        num_bytes: bytes that were compared.
        seconds: how long it took.
        damage: what is wrong, one sentence each; empty where every byte is right.

    """

    finished: bool
    num_bytes: int
    seconds: float
    damage: tuple[str, ...]

    @property
    def rate(self) -> float:
        """Bytes compared in a second."""
        return self.num_bytes / max(self.seconds, 1e-9)


def inspect(folder: Path) -> dict[str, Any]:
    """Return what a store holds, as JSON-like data, from its manifest and journals: no signal is read.

    Raises:
        TeacherError: there is no store.
        PotstillError: its manifest is damaged.

    """
    folder = Path(folder)
    manifest, finished = layout.manifest_of(folder)
    journals = [layout.read_journal(folder, manifest, shard) for shard in range(manifest.num_shards)]
    # What is claimed after a gap is recorded again, but it is on disk.
    rows = sum(
        stop - start for journal, _ in journals for start, stop in (manifest.block_rows(block) for block in journal)
    )
    signals = {
        name: _signal(spec, [journal for journal, _ in journals], rows) for name, spec in manifest.signals.items()
    }
    return {
        "folder": str(folder),
        "finished": finished,
        "rows": {"recorded": rows, "all": manifest.num_rows},
        "samples": manifest.num_samples,
        "views": manifest.views,
        "shards": {"finished": sum(whole for _, whole in journals), "all": manifest.num_shards},
        "missing_shards": [shard for shard, (_, whole) in enumerate(journals) if not whole],
        "rows_per_block": manifest.rows_per_block,
        "bytes": _size(folder, manifest, [journal for journal, _ in journals]),
        "signals": signals,
        "teacher": dict(manifest.teacher),
        "data": manifest.data,
        "augmentation": dict(manifest.augmentation),
        "sampling_seed": manifest.sampling_seed,
        "fingerprint": manifest.fingerprint,
        "format": 2,
        "potstill": manifest.potstill,
    }


def _signal(spec: SignalSpec, journals: list[layout.Journal], rows: int) -> dict[str, Any]:
    last = [journal[max(journal)].ends for journal in journals if journal]
    entries = {column.file: sum(ends[column.file] for ends in last) for column in spec.columns}
    counted = (spec.lengths or spec.records).file
    items = rows if spec.per == "sample" else entries[counted]
    size = sum(entries[column.file] * column.entry_bytes for column in spec.columns)
    return {
        "codec": spec.codec.to_json(),
        "shape": list(spec.shape),
        "per": spec.per,
        "source": spec.source,
        "bytes_per_record": spec.width,
        "bytes": size,
        "bytes_per_sample": size / rows if rows else None,
        "items": items,
        "bytes_per_item": size / items if items else None,
        "converted_from": spec.converted_from,
    }


def _size(folder: Path, manifest: Manifest, journals: list[layout.Journal]) -> int:
    """Return the bytes of a store's files, those of records as the journals tell them."""
    records = [
        column.file_bytes(journal[max(journal)].ends[column.file])
        for journal in journals
        if journal
        for column in layout.columns(manifest)
    ]
    others = [path.stat().st_size for path in _files(folder, manifest) if path.parent == folder]
    notes = [(layout.shard_folder(folder, shard) / layout.JOURNAL) for shard in range(manifest.num_shards)]
    return sum(records) + sum(others) + sum(path.stat().st_size for path in notes if path.is_file())


def _files(folder: Path, manifest: Manifest) -> list[Path]:
    names = [folder / name for name in (layout.MANIFEST, layout.UNFINISHED, *layout.beside(manifest))]
    for shard in range(manifest.num_shards):
        place = layout.shard_folder(folder, shard)
        names += [place / name for name in (layout.JOURNAL, *(column.file for column in layout.columns(manifest)))]
    return [path for path in names if path.is_file()]


def verify(folder: Path) -> Verification:
    """Compare every byte of a store with its checksums, and tell all that is wrong.

    When to use it: after copying a store, or when a disk is not to be trusted. Unfinished stores are looked at as far
    as they go. `Store.verify` does the same and stops at the first damage.

    Raises:
        TeacherError: there is no store.
        PotstillError: its manifest is damaged.

    """
    folder = Path(folder)
    manifest, finished = layout.manifest_of(folder)
    began = time.perf_counter()
    sizes = {path: path.stat().st_size for path in _files(folder, manifest)}
    found = []
    wrong = keys_problem(folder, manifest)
    if wrong is not None:
        found.append(f"{wrong} is missing or changed")
    wrong = heads_problem(folder, manifest)
    if wrong is not None:
        found.append(f"{wrong} is missing or changed")
    with progress("verifying", sum(sizes.values()), unit="bytes") as advance:
        for shard in range(manifest.num_shards):
            found += _shard_damage(folder, manifest, shard, finished=finished)
            place = layout.shard_folder(folder, shard)
            advance(sum(size for path, size in sizes.items() if path.parent == place))
    return Verification(finished, sum(sizes.values()), time.perf_counter() - began, tuple(found))


def _shard_damage(folder: Path, manifest: Manifest, shard: int, *, finished: bool) -> list[str]:
    journal, whole = layout.read_journal(folder, manifest, shard)
    place = layout.shard_folder(folder, shard).relative_to(folder)
    maps = layout.map_shard(folder, manifest, shard)
    found = []
    if finished and not whole:
        missing = len(manifest.shard_blocks(shard)) - len(journal)
        found.append(
            f"{missing} blocks of this store are not in {place / layout.JOURNAL}"
            if missing
            else f"the last line is missing from {place / layout.JOURNAL}"
        )
    for block, name in layout.damaged(manifest, journal, maps, journal):
        start, stop = manifest.block_rows(block)
        found.append(f"rows {start} to {stop - 1} of '{name}' in {place} do not have their checksum")
    if whole:
        found += [
            f"{place / file} is missing, changed or has the wrong size"
            for file in layout.wrong_files(folder, manifest, shard, journal)
        ]
    return found
