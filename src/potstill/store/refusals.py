"""The errors of stores that were recorded for something else, or are damaged."""

from __future__ import annotations

from pathlib import Path

from potstill.core.errors import PotstillError, TeacherError
from potstill.store import layout
from potstill.store.changes import differences
from potstill.store.manifest import Manifest, to_json


def refuse_changes(folder: Path, recorded: Manifest, wanted: Manifest, *, exact: bool = False) -> None:
    """Raise a `TeacherError` that spells out what changed, if anything did."""
    changes = differences(recorded, wanted, exact=exact)
    if changes:
        listing = "".join(f"\n  {change}" for change in changes)
        before = wanted.scale is not None and recorded.scale is None
        units = "Its values are as the teacher said them: data.standardise_targets: false trains from these. "
        if all(change.startswith("teacher weights:") for change in changes):
            raise TeacherError(
                f"The teacher's weights differ from those that the store {folder} was recorded with:{listing}\nA "
                "damaged weights file is one cause: check it, and put the original back where it is. If this teacher "
                "is meant to be another one, choose another store.path."
            )
        raise TeacherError(
            f"The store {folder} was recorded for something else:{listing}\n{units if before else ''}"
            "Undo the change, choose another store.path, or delete that folder to record anew."
        )


def refuse_differences(first: Path | str, one: Manifest, second: Path | str, other: Manifest) -> None:
    """Raise a `TeacherError` that spells out why two manifests are not of parts of one recording, if they are not."""
    changes = differences(one, other, exact=True)
    if not changes:
        old, new = identity(one), identity(other)
        changes = [f"{key}: recorded {old[key]}, now {new[key]}" for key in old if old[key] != new[key]]
    if changes:
        listing = "".join(f"\n  {change}" for change in changes)
        raise TeacherError(
            f"{second} was recorded for something else than {first}:{listing}\n"
            "Parts of one recording have the same teacher, data, signals, views and store.shards."
        )


def identity(manifest: Manifest) -> dict[str, object]:
    """Return all that the parts of one recording have in common."""
    return {key: value for key, value in to_json(manifest).items() if key not in ("potstill", "checksum")}


def refuse_wrong_files(folder: Path, manifest: Manifest, shard: int, journal: layout.Journal) -> None:
    """Raise a `PotstillError` that names a file of a finished shard whose size or head its journal denies, if any."""
    wrong = layout.wrong_files(folder, manifest, shard, journal)
    if wrong:
        place = layout.shard_folder(folder, shard).relative_to(folder) / wrong[0]
        raise damage(folder, manifest, [], f"{place} is missing, changed or has the wrong size")


def damage(folder: Path, manifest: Manifest, found: list[tuple[int, str]], what: str = "") -> PotstillError:
    """Return the error that names what is damaged."""
    if found:
        block, signal = found[0]
        start, stop = manifest.block_rows(block)
        what = f"rows {start} to {stop - 1} of '{signal}' do not have the checksum they were recorded with"
        if len(found) > 1:
            what += f", and {len(found) - 1} more such blocks"
    return PotstillError(
        f"The store {folder} is damaged: {what}. Run the same command again to record the damaged part anew, "
        "or delete the folder."
    )
