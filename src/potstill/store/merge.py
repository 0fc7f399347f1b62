"""One store out of parts that were recorded in folders of their own: shards move in as they are, byte for byte."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from potstill.core.errors import PotstillError, UsageError
from potstill.core.files import atomic_path, disk_errors, write_json
from potstill.core.progress import progress
from potstill.store import disk, layout
from potstill.store.keys import keys_problem
from potstill.store.manifest import Manifest, to_json
from potstill.store.refusals import damage, refuse_differences, refuse_wrong_files

# Where links are not possible: another file system, one without links, one that limits them, or no permission.
_NO_LINK = (errno.EXDEV, errno.ENOTSUP, errno.EMLINK, errno.EPERM, errno.ENOSYS)


@dataclass(frozen=True)
class Merged:
    """What `merge` did.

    Attributes:
        folder: the merged store.
        added: shards that came in now, and the part each came from.
        present: shards that were there before.
        doubled: shards that several parts hold, equal in all; taken once.
        missing: shards that no part holds. The store is finished when there are none.

    """

    folder: Path
    added: Mapping[int, Path]
    present: Sequence[int]
    doubled: Sequence[int]
    missing: Sequence[int]


@dataclass(frozen=True)
class _Part:
    folder: Path
    manifest: Manifest
    journals: Mapping[int, bytes] = field(default_factory=dict)


def merge(parts: Sequence[Path], into: Path, *, move: bool = False, verify: bool = False) -> Merged:
    """Bring the finished shards of several folders together, without writing their bytes anew.

    When to use it: after `record_part` into separate folders, such as on several machines. Files are hard-linked, so
    the merged store and the parts share their bytes; across file systems they are copied. An interrupted merge can be
    repeated, and parts may be merged as they arrive: the store is finished when the last shard is there, and until then
    `record` continues it.

    Args:
        parts: folders recorded with the same manifest, finished or not.
        into: the folder of the merged store; may hold an earlier merge.
        move: remove what was taken from the parts once it is safe in ``into``.
        verify: compare every byte that is taken with its checksum; otherwise files' sizes, heads and journals are.

    Returns:
        What was taken from where, and what is missing.

    Raises:
        UsageError: no parts.
        TeacherError: a part is no store, or was recorded for something else (spelled out).
        PotstillError: a part is damaged, two parts recorded a shard differently, or the disk is full.

    """
    into = Path(into)
    folders = [Path(part) for part in parts if Path(part).resolve() != into.resolve()]
    if not folders:
        raise UsageError(f"There is nothing to merge into {into}: name the folders of the parts.")
    known = [_part(folder, whole=True) for folder in folders]
    manifest = known[0].manifest
    for other in known[1:]:
        refuse_differences(known[0].folder, manifest, other.folder, other.manifest)
    with disk_errors(into):
        (into / layout.SHARDS).mkdir(parents=True, exist_ok=True)
    with disk.only_writer(into, patience=60.0), disk_errors(into):
        present = _begin(into, known)
        source, doubled = _sources(known, present)
        with progress("merging", len(source), unit="shards") as advance:
            for shard, part in source.items():
                _take(part, into, shard, verify=verify)
                advance(1)
        missing = [
            shard for shard in range(manifest.num_shards) if shard not in present.journals.keys() | source.keys()
        ]
        if not missing and (into / layout.UNFINISHED).is_file():
            (into / layout.UNFINISHED).replace(into / layout.MANIFEST)
        disk.sync_folder(into)
    if move:
        for part in known:
            _remove_taken(part)
    return Merged(
        into, {shard: part.folder for shard, part in source.items()}, sorted(present.journals), doubled, missing
    )


def _part(folder: Path, *, whole: bool) -> _Part:
    """Look at a folder; with ``whole``, refuse one whose finished shards lack anything."""
    manifest, _ = layout.manifest_of(folder)
    journals = {}
    for shard in range(manifest.num_shards):
        journal, finished = layout.read_journal(folder, manifest, shard)
        if not finished:
            continue
        if whole:
            refuse_wrong_files(folder, manifest, shard, journal)
        elif layout.wrong_files(folder, manifest, shard, journal):
            continue
        journals[shard] = (layout.shard_folder(folder, shard) / layout.JOURNAL).read_bytes()
    return _Part(folder, manifest, journals)


def _begin(into: Path, known: Sequence[_Part]) -> _Part:
    """Give the folder its manifest and what lies beside the shards; return what it holds."""
    manifest = known[0].manifest
    disk.refuse_link(into / layout.SHARDS)
    disk.remove_left_overs(into)
    if not (into / layout.MANIFEST).is_file() and not (into / layout.UNFINISHED).is_file():
        for journal in (into / layout.SHARDS).glob(f"*/{layout.JOURNAL}"):
            journal.unlink()  # nobody can say what it was recorded for
        write_json(into / layout.UNFINISHED, to_json(manifest))
    else:
        refuse_differences(known[0].folder, manifest, into, layout.manifest_of(into)[0])
    if keys_problem(into, manifest) is not None:
        for part in known:
            if keys_problem(part.folder, manifest) is None:
                _take_files(part.folder, into, layout.beside(manifest))
                break
        else:
            raise damage(
                known[0].folder, manifest, [], f"{keys_problem(known[0].folder, manifest)} is missing or changed"
            )
    return _part(into, whole=False)


def _sources(known: Sequence[_Part], present: _Part) -> tuple[dict[int, _Part], list[int]]:
    """Return the part that each new shard comes from, and the shards that came more than once."""
    source: dict[int, _Part] = {}
    doubled: set[int] = set()
    for part in known:
        for shard, journal in part.journals.items():
            earlier = present if shard in present.journals else source.get(shard)
            if earlier is None:
                source[shard] = part
                continue
            if earlier.journals[shard] != journal:
                raise PotstillError(
                    f"Shard {shard} was recorded twice with different numbers, in {earlier.folder} and in "
                    f"{part.folder}. Nothing tells which of them is right: leave one of the two out, or delete "
                    f"{layout.SHARDS}/{shard:06d} in one of them."
                )
            if earlier is not present:
                doubled.add(shard)
    return source, sorted(doubled)


def _take(part: _Part, into: Path, shard: int, *, verify: bool) -> None:
    manifest = part.manifest
    place = layout.shard_folder(into, shard)
    disk.refuse_link(place)
    place.mkdir(exist_ok=True)
    with disk.only_writer(place):
        if verify:
            journal, _ = layout.read_journal(part.folder, manifest, shard)
            maps = layout.map_shard(part.folder, manifest, shard)
            found = layout.damaged(manifest, journal, maps, manifest.shard_blocks(shard))
            if found:
                raise damage(part.folder, manifest, found)
        # The journal goes first and comes last: a shard without it is not there, whatever else lies in its folder.
        (place / layout.JOURNAL).unlink(missing_ok=True)
        names = [*(column.file for column in layout.columns(manifest)), layout.JOURNAL]
        _take_files(layout.shard_folder(part.folder, shard), place, names)
        disk.sync_folder(place)


def _take_files(source: Path, target: Path, names: Sequence[str]) -> None:
    """Link files, or copy them where that is not possible."""
    for name in names:
        (target / name).unlink(missing_ok=True)
        try:
            os.link(source / name, target / name)
        except OSError as error:
            if error.errno not in _NO_LINK:
                raise
            with atomic_path(target / name) as temporary:
                shutil.copyfile(source / name, temporary)


def _remove_taken(part: _Part) -> None:
    with disk_errors(part.folder):
        for shard in part.journals:
            place = layout.shard_folder(part.folder, shard)
            for name in (layout.JOURNAL, *(column.file for column in layout.columns(part.manifest))):
                (place / name).unlink(missing_ok=True)
        if (part.folder / layout.MANIFEST).is_file():
            (part.folder / layout.MANIFEST).replace(part.folder / layout.UNFINISHED)
