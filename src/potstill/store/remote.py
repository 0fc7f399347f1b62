"""Stores at an address that fsspec knows, such as ``s3://bucket/store``: the same files under the same names.

Reading brings shards into a local cache when they are first touched; recording happens in the cache, and finished
shards are sent. A shard is there once its journal is, and a store is finished once its manifest is: both come last.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil

from potstill.core import fingerprint
from potstill.core.errors import PotstillError, TeacherError
from potstill.core.files import atomic_path, disk_errors
from potstill.core.optional import require
from potstill.core.progress import progress
from potstill.store import disk, layout
from potstill.store.heads import heads_problem
from potstill.store.keys import keys_problem, write_keys
from potstill.store.manifest import Manifest, from_json, to_json
from potstill.store.reader import Store, assemble
from potstill.store.refusals import identity, refuse_changes, refuse_differences, refuse_wrong_files
from potstill.store.writer import Answer, Array, Batches, record_part, shards_of_part

CACHE = "POTSTILL_CACHE"
LOCK = "writer.json"


@dataclass(frozen=True)
class Sent:
    """What `push` did: the shards that were sent, those that were there already, and whether the store is finished."""

    sent: tuple[int, ...]
    present: tuple[int, ...]
    finished: bool


@dataclass(frozen=True)
class _Place:
    """An address: a file system and the store's folder in it."""

    url: str
    files: Any
    root: str

    def path(self, name: str) -> str:
        return f"{self.root}/{name}"

    def read(self, name: str) -> bytes | None:
        """Return a file's content, None where there is no such file. What was listed before is not believed."""
        self.files.invalidate_cache()
        try:
            content: bytes = self.files.cat_file(self.path(name))
        except FileNotFoundError:
            return None
        return content

    def write(self, name: str, content: bytes) -> None:
        self._make_folder(name)
        self.files.pipe_file(self.path(name), content)

    def create(self, name: str, content: bytes) -> bool:
        """Write a file that is not there yet; return False where it is."""
        self._make_folder(name)
        try:
            self.files.pipe_file(self.path(name), content, mode="create")
        except FileExistsError:
            return False
        return True

    def send(self, file: Path, name: str) -> None:
        self._make_folder(name)
        self.files.put_file(str(file), self.path(name))

    def fetch(self, name: str, file: Path) -> None:
        with atomic_path(file) as temporary:
            self.files.get_file(self.path(name), str(temporary))

    def remove(self, name: str) -> None:
        if self.read(name) is not None:
            self.files.rm_file(self.path(name))

    def _make_folder(self, name: str) -> None:
        self.files.makedirs(self.path(name).rpartition("/")[0], exist_ok=True)


def cache_folder(url: str, manifest: Manifest) -> Path:
    """Return the local folder in which the store of an address is kept, below ``POTSTILL_CACHE``."""
    base = os.environ.get(CACHE)
    root = Path(base) if base else Path.home() / ".cache" / "potstill"
    # The head of a signal is fitted in this folder, so the folder cannot depend on it.
    unfitted = {
        name: replace(spec, head=spec.head and replace(spec.head, sha256="")) for name, spec in manifest.signals.items()
    }
    value = identity(replace(manifest, signals=unfitted))
    return root / "stores" / fingerprint.of_json([url, value])[:32]


def open_remote(url: str, expected: Manifest | None = None) -> Store:
    """Open a finished store at an address; `open_store` calls this. Shards are fetched when they are first touched.

    Args:
        url: such as ``"s3://bucket/store"``.
        expected: as for `open_store`.

    Raises:
        TeacherError: there is no finished store, or the message spells out what it was recorded for.
        PotstillError: the address cannot be read, its files are damaged, or fsspec or its driver is missing.

    """
    place = _place(url)
    with _errors(url):
        manifest = _manifest(place, layout.MANIFEST)
        if manifest is None:
            if place.read(layout.UNFINISHED) is not None:
                raise TeacherError(f"The recording in {url} is unfinished. Run the same command again to finish it.")
            raise TeacherError(f"There is no store of teacher signals in {url}. Record one first.")
        if expected is not None:
            refuse_changes(Path(url), manifest, expected)
        folder = cache_folder(url, manifest)
        with disk_errors(folder):
            (folder / layout.SHARDS).mkdir(parents=True, exist_ok=True)
        with disk.only_writer(folder, patience=600.0):
            if keys_problem(folder, manifest) is not None or heads_problem(folder, manifest) is not None:
                for name in layout.beside(manifest):
                    place.fetch(name, folder / name)
    return assemble(folder, manifest, checked=False, fetch=lambda shard: _fetch(place, folder, manifest, shard))


def local_copy(url: str, into: Path | None = None) -> Path:
    """Bring a finished store here: all of it into the cache, or only what describes it into another folder.

    Args:
        url: its address.
        into: a folder for the manifest and the journals, without any records; the whole store comes when absent.

    Returns:
        The folder.

    Raises:
        TeacherError: there is no finished store.
        PotstillError: as for `open_remote`.

    """
    place = _place(url)
    store = open_remote(url)
    folder = store.folder if into is None else into
    with _errors(url), disk_errors(folder):
        for shard in range(store.manifest.num_shards):
            if into is None:
                _fetch(place, folder, store.manifest, shard)
            else:
                layout.shard_folder(folder, shard).mkdir(parents=True)
                place.fetch(_journal_name(shard), folder / _journal_name(shard))
        place.fetch(layout.MANIFEST, folder / layout.MANIFEST)
    return folder


def push(folder: Path, url: str) -> Sent:
    """Send a store's finished shards to an address, and its manifest when all of them are there.

    When to use it: to share a recording. Shards that are there with the same journal are not sent again, so an
    interrupted push is continued, and several folders of one recording can be pushed to one address.

    Raises:
        TeacherError: there is no store in ``folder``, or the address holds another recording.
        PotstillError: the address cannot be written, somebody else recorded one of the shards differently, or a file
            of a shard here has not the size that its journal says.

    """
    folder = Path(folder)
    manifest, _ = layout.manifest_of(folder)
    place = _place(url)
    with _errors(url):
        _announce(place, manifest, folder)
        here = []
        for shard in range(manifest.num_shards):
            journal, finished = layout.read_journal(folder, manifest, shard)
            if finished:
                refuse_wrong_files(folder, manifest, shard, journal)
                here.append(shard)
        sent = []
        with progress("sending", len(here), unit="shards") as advance:
            for shard in here:
                if _send(place, folder, manifest, shard):
                    sent.append(shard)
                advance(1)
        finished = _finish(place, manifest)
    return Sent(tuple(sent), tuple(shard for shard in here if shard not in sent), finished)


def record_remote(
    teacher: Answer,
    batches: Batches,
    url: str,
    manifest: Manifest,
    ids: Array,
    *,
    part: tuple[int, int] = (0, 1),
    description: str = "recording the teacher",
) -> Store | None:
    """Record a teacher into an address, or one of several parts of that: `store.record_part` for addresses.

    Every shard is recorded in the local cache and sent when it is whole; shards that are there are not recorded again.
    While a shard is recorded, ``writer.json`` beside it keeps others from doing the same work.
    """
    place = _place(url)
    with _errors(url):
        known = _manifest(place, layout.MANIFEST)
    if known is not None:
        refuse_changes(Path(url), known, manifest)
        return open_remote(url, manifest)
    folder = cache_folder(url, manifest)
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    write_keys(folder, ids)
    with _errors(url):
        manifest = _announce(place, manifest, folder)
    for shard in shards_of_part(manifest, part):
        if _journal(place, shard) is not None:
            continue
        with _errors(url), _claimed(place, shard):
            if _journal(place, shard) is None:
                one = (shard, manifest.num_shards)
                record_part(teacher, batches, folder, manifest, ids, part=one, description=description)
                _send(place, folder, manifest, shard)
    with _errors(url):
        finished = _finish(place, manifest)
    return open_remote(url, manifest) if finished else None


def _place(url: str) -> _Place:
    fsspec = require("fsspec", feature=f"The address {url}", extra="remote")
    try:
        files, root = fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise PotstillError(
            f"The address {url} cannot be used: {error}. Install the package of fsspec for addresses of that kind, "
            "such as s3fs for s3://, gcsfs for gs:// or adlfs for az://."
        ) from error
    return _Place(url.rstrip("/"), files, str(root).rstrip("/"))


@contextmanager
def _errors(url: str) -> Iterator[None]:
    """Turn what a driver raises into one clear error."""
    try:
        yield
    except PotstillError:
        raise
    except (OSError, TimeoutError) as error:
        raise PotstillError(
            f"{url} could not be used ({type(error).__name__}: {error}). What was sent before is safe: check the "
            "address, the network and your permissions, and run the same command again to continue."
        ) from error


def _manifest(place: _Place, name: str) -> Manifest | None:
    content = place.read(name)
    if content is None:
        return None
    try:
        return from_json(json.loads(content), Path(place.url) / name)
    except ValueError as error:
        raise PotstillError(f"{place.url}/{name} is damaged ({error}).") from error


def _announce(place: _Place, manifest: Manifest, folder: Path) -> Manifest:
    """Say at the address what is being recorded there, or refuse where that is something else."""
    for name in (layout.MANIFEST, layout.UNFINISHED):
        known = _manifest(place, name)
        if known is not None:
            refuse_differences(place.url, known, folder, manifest)
            return known
    for name in layout.beside(manifest):
        place.send(folder / name, name)
    place.write(layout.UNFINISHED, json.dumps(to_json(manifest), indent=2).encode())
    return manifest


def _names(manifest: Manifest, shard: int) -> list[str]:
    place = f"{layout.SHARDS}/{shard:06d}"
    return [f"{place}/{column.file}" for column in layout.columns(manifest)]


def _journal_name(shard: int) -> str:
    return f"{layout.SHARDS}/{shard:06d}/{layout.JOURNAL}"


def _journal(place: _Place, shard: int) -> bytes | None:
    return place.read(_journal_name(shard))


def _send(place: _Place, folder: Path, manifest: Manifest, shard: int) -> bool:
    """Send a shard, its journal last; return False where it was there already."""
    mine, there = (folder / _journal_name(shard)).read_bytes(), _journal(place, shard)
    if there == mine:
        return False
    if there is not None:
        raise PotstillError(
            f"Shard {shard} is in {place.url} already, recorded with different numbers than in {folder}. Nothing tells "
            f"which is right: delete {place.url}/{layout.SHARDS}/{shard:06d} to send this one, or keep that one."
        )
    for name in (*_names(manifest, shard), _journal_name(shard)):
        place.send(folder / name, name)
    return True


def _finish(place: _Place, manifest: Manifest) -> bool:
    """Write the manifest if every shard is there."""
    if _manifest(place, layout.MANIFEST) is None:
        if any(_journal(place, shard) is None for shard in range(manifest.num_shards)):
            return False
        place.write(layout.MANIFEST, json.dumps(to_json(manifest), indent=2).encode())
    place.remove(layout.UNFINISHED)
    return True


def _fetch(place: _Place, folder: Path, manifest: Manifest, shard: int) -> None:
    """Bring a shard into the cache, unless the same one lies there."""
    target = layout.shard_folder(folder, shard)
    with disk_errors(target):
        target.mkdir(parents=True, exist_ok=True)
    with _errors(place.url), disk.only_writer(target, patience=600.0), disk_errors(target):
        content = _journal(place, shard)
        if content is None:
            raise PotstillError(f"{place.url} is damaged: {_journal_name(shard)} is missing. Record or send it again.")
        local = target / layout.JOURNAL
        if local.is_file() and local.read_bytes() == content:
            journal, finished = layout.read_journal(folder, manifest, shard)
            if finished and not layout.wrong_files(folder, manifest, shard, journal):
                return
        local.unlink(missing_ok=True)
        for name in _names(manifest, shard):
            place.fetch(name, folder / name)
        disk.write_bytes(local, content)


@contextmanager
def _claimed(place: _Place, shard: int) -> Iterator[None]:
    """Hold the lock object of a shard, or refuse, naming who holds it."""
    name = f"{layout.SHARDS}/{shard:06d}/{LOCK}"
    mine = {
        "process": os.getpid(),
        "host": socket.gethostname(),
        "since": datetime.now().astimezone().isoformat(timespec="seconds"),
    }
    content = json.dumps(mine).encode()
    if not place.create(name, content):
        if not _is_dead(place.read(name)):
            raise PotstillError(
                f"Another process is recording shard {shard} of {place.url}: {_holder(place.read(name))}. Wait until "
                f"it is done, or record another part. If that process is gone, delete {place.url}/{name}."
            )
        place.remove(name)
        if not place.create(name, content):
            raise PotstillError(f"Another process has just begun to record shard {shard} of {place.url}.")
    try:
        yield
    finally:
        place.remove(name)


def _is_dead(content: bytes | None) -> bool:
    """Return whether a lock is of a process of this machine that has ended. Others may live, however old it is."""
    try:
        holder = json.loads(content or b"")
        return bool(holder["host"] == socket.gethostname() and not psutil.pid_exists(int(holder["process"])))
    except (ValueError, KeyError, TypeError):
        return False


def _holder(content: bytes | None) -> str:
    try:
        holder = json.loads(content or b"")
        return f"process {holder['process']} on {holder['host']}, since {holder['since']}"
    except (ValueError, KeyError, TypeError):
        return "a process that has not said its name"
