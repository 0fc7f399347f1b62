"""Where a store lies makes no difference here: in a folder, or at an address such as ``s3://bucket/store``.

Nothing else in this room knows both. A store at an address is worked on in a folder of the local cache.
"""

from __future__ import annotations

from pathlib import Path

from potstill.core.errors import TeacherError
from potstill.store import layout, remote, writer
from potstill.store.manifest import Manifest
from potstill.store.reader import Store, assemble
from potstill.store.refusals import refuse_changes
from potstill.store.writer import Answer, Array, Batches

Place = Path | str
"""Where a store lies: a folder, or an address."""


def is_remote(place: Place) -> bool:
    """Return whether a place is an address, such as ``"s3://bucket/store"``, and no local folder."""
    return "://" in str(place)


def open_store(place: Place, expected: Manifest | None = None) -> Store:
    """Open a finished store, refusing one that was recorded for something else.

    Args:
        place: the folder where it lies, or an address such as ``"s3://bucket/store"`` (see `store.remote`).
        expected: what it must have been recorded for (see `describe`); None takes whatever is there.

    Raises:
        TeacherError: the recording is missing or unfinished, or the message spells out what changed.
        PotstillError: its files are damaged.

    """
    if is_remote(place):
        return remote.open_remote(str(place), expected)
    folder = Path(place)
    path = folder / layout.MANIFEST
    if not path.is_file():
        if (folder / layout.UNFINISHED).is_file():
            raise TeacherError(
                f"The recording in {folder} was interrupted. Run the same command again to finish it: "
                "what is already there is kept."
            )
        raise TeacherError(f"There is no store of teacher signals in {folder}. Record one first.")
    manifest = layout.read_manifest(path)
    if expected is not None:
        refuse_changes(folder, manifest, expected)
    return assemble(folder, manifest, checked=False)


def record_part(
    teacher: Answer,
    batches: Batches,
    place: Place,
    manifest: Manifest,
    ids: Array,
    *,
    part: tuple[int, int],
    description: str = "recording the teacher",
) -> Store | None:
    """Record one of several parts, which may be recorded at once by other processes or on other machines.

    Args:
        teacher: as for `record`.
        batches: as for `record`.
        place: as for `record`, or an address; processes that see one file system, or one address, share it, others
            give a folder each and merge them.
        manifest: as for `record`; the same for every part.
        ids: as for `record`.
        part: ``(i, n)``: the i-th of n parts, counted from 0.
        description: what the progress bar says.

    Returns:
        The finished store, if this was the last part that was missing.

    Raises:
        TeacherError: as for `record`.
        PotstillError: as for `record`, or the address cannot be written.
        UsageError: as for `record`, or there are more parts than shards.

    """
    if is_remote(place):
        url = str(place)
        return remote.record_remote(teacher, batches, url, manifest, ids, part=part, description=description)
    return writer.record_part(teacher, batches, Path(place), manifest, ids, part=part, description=description)


def local_folder(place: Place, manifest: Manifest) -> Path:
    """Return the folder in which a store is worked on: its own, or that of an address in the cache."""
    return remote.cache_folder(str(place), manifest) if is_remote(place) else Path(place)
