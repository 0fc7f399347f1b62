"""How a store lies on disk: the manifest, the ids, and shards that each have their columns and a journal of blocks.

A block is a run of rows that share checksums. A block counts once its line is in its shard's journal, and a line is
believed only if the bytes it speaks of have its checksums: no half-written line or block can pass for a whole one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from potstill.core.errors import PotstillError, TeacherError
from potstill.core.files import read_json
from potstill.store.columns import Column
from potstill.store.heads import head_file
from potstill.store.keys import PLACES, SORTED
from potstill.store.manifest import IDS, Manifest, from_json

MANIFEST = "manifest.json"
UNFINISHED = "manifest.partial.json"
SHARDS = "shards"
JOURNAL = "blocks.jsonl"

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Block:
    """What the journal says of a finished block: for each file its last entry (exclusive) and the block's sha256."""

    ends: Mapping[str, int]
    sha256: Mapping[str, str]


Journal = dict[int, Block]


def read_manifest(path: Path) -> Manifest:
    """Read and check a manifest file."""
    try:
        value = read_json(path)
    except ValueError as error:
        raise PotstillError(f"{path} is damaged ({error}). Delete the folder {path.parent} to record anew.") from error
    return from_json(value, path)


def manifest_of(folder: Path) -> tuple[Manifest, bool]:
    """Return the manifest of a store and whether it is finished.

    Raises:
        TeacherError: there is no store.

    """
    for name, finished in ((MANIFEST, True), (UNFINISHED, False)):
        if (folder / name).is_file():
            return read_manifest(folder / name), finished
    raise TeacherError(f"There is no store of teacher signals in {folder}: it has neither {MANIFEST} nor {UNFINISHED}.")


def shard_folder(folder: Path, shard: int) -> Path:
    """Return where a shard lies."""
    return folder / SHARDS / f"{shard:06d}"


def columns(manifest: Manifest) -> tuple[Column, ...]:
    """Return every file of a shard, the journal aside."""
    return tuple(column for spec in manifest.signals.values() for column in spec.columns)


def beside(manifest: Manifest) -> tuple[str, ...]:
    """Return the files that lie beside the shards, the manifest aside."""
    ids = (IDS, SORTED, PLACES) if manifest.ids_order == "any" else (IDS,)
    return (*ids, *(head_file(spec.file) for spec in manifest.signals.values() if spec.head is not None))


def checksum(entries: Array) -> str:
    """Return the sha256 of the bytes of some entries."""
    return hashlib.sha256(np.ascontiguousarray(entries).reshape(-1).view(np.uint8).data).hexdigest()


def journal_line(manifest: Manifest, number: int, block: Block) -> str:
    """Return the journal's line for a finished block."""
    value = {
        "block": number,
        **_bound(manifest),
        "rows": list(manifest.block_rows(number)),
        "ends": dict(block.ends),
        "sha256": dict(block.sha256),
    }
    return json.dumps(value) + "\n"


def finished_line(manifest: Manifest, shard: int) -> str:
    """Return the journal's last line: the shard is whole."""
    blocks = manifest.shard_blocks(shard)
    return json.dumps({"finished": [blocks.start, blocks.stop], **_bound(manifest)}) + "\n"


def _bound(manifest: Manifest) -> dict[str, str]:
    return {"store": manifest.binding} if manifest.bound else {}


def read_journal(folder: Path, manifest: Manifest, shard: int) -> tuple[Journal, bool]:
    """Return the blocks that a shard's journal claims, and whether it says that the shard is finished.

    Lines that are torn, make no sense or belong to another store are passed over; of two for a block the later counts.
    """
    path = shard_folder(folder, shard) / JOURNAL
    files = {column.file for column in columns(manifest)}
    blocks = manifest.shard_blocks(shard)
    claimed: Journal = {}
    finished = False
    for line in path.read_bytes().split(b"\n") if path.is_file() else []:
        try:
            if line + b"\n" == finished_line(manifest, shard).encode():
                finished = True
                continue
            value = json.loads(line)
            number, ends, sums = int(value["block"]), value["ends"], value["sha256"]
            fits = number in blocks and value["rows"] == list(manifest.block_rows(number))
            fits = fits and (not manifest.bound or value.get("store") == manifest.binding)
            if fits and ends.keys() == sums.keys() == files:
                claimed[number] = Block(
                    {file: int(ends[file]) for file in ends}, {file: str(sums[file]) for file in sums}
                )
        except (ValueError, KeyError, TypeError, AttributeError):
            continue
    claimed = {number: claimed[number] for number in sorted(claimed)}
    return claimed, finished and len(claimed) == len(blocks)


def journal_text(manifest: Manifest, shard: int, journal: Journal) -> str:
    """Return the whole journal of a finished shard: the same bytes, whatever happened on the way."""
    lines = [journal_line(manifest, number, journal[number]) for number in sorted(journal)]
    return "".join([*lines, finished_line(manifest, shard)])


def begin(manifest: Manifest, journal: Journal, number: int) -> dict[str, int] | None:
    """Return the first entry of a block in each file, or None where the block before it is not known."""
    if number == manifest.shard_blocks(number // manifest.blocks_per_shard).start:
        return {column.file: 0 for column in columns(manifest)}
    return dict(journal[number - 1].ends) if number - 1 in journal else None


def damaged(
    manifest: Manifest, journal: Journal, maps: Mapping[str, Array], numbers: Iterable[int]
) -> list[tuple[int, str]]:
    """Return the (block, signal) among some blocks of one shard whose bytes are missing or not those recorded."""
    found = []
    for number in numbers:
        first = begin(manifest, journal, number)
        for name, spec in manifest.signals.items():
            if number not in journal or first is None or not _whole(spec.columns, first, journal[number], maps):
                found.append((number, name))
    return found


def _whole(columns: Iterable[Column], first: Mapping[str, int], block: Block, maps: Mapping[str, Array]) -> bool:
    for column in columns:
        start, stop = first[column.file], block.ends[column.file]
        entries = maps[column.file][start:stop]
        if len(entries) != stop - start or checksum(entries) != block.sha256[column.file]:
            return False
    return True


def map_shard(folder: Path, manifest: Manifest, shard: int) -> dict[str, Array]:
    """Memory-map every file of a shard, as far as it is there."""
    place = shard_folder(folder, shard)
    return {column.file: column.map(place) for column in columns(manifest)}


def wrong_files(folder: Path, manifest: Manifest, shard: int, journal: Journal) -> list[str]:
    """Return the files of a finished shard whose size or head is not the one its entries give."""
    place = shard_folder(folder, shard)
    last = journal[manifest.shard_blocks(shard).stop - 1]
    wrong = []
    for column in columns(manifest):
        path, entries = place / column.file, last.ends[column.file]
        if not path.is_file() or path.stat().st_size != column.file_bytes(entries):
            wrong.append(column.file)
            continue
        with path.open("rb") as file:
            if file.read(column.header_bytes) != column.header(entries):
                wrong.append(column.file)
    if (place / JOURNAL).read_bytes() != journal_text(manifest, shard, journal).encode():
        wrong.append(JOURNAL)
    return wrong
