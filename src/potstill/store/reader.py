"""Reading a finished store: rows by ``(id, view)``, straight from the memory-mapped files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from potstill.core.errors import PotstillError, TeacherError, did_you_mean
from potstill.store import layout
from potstill.store.keys import Integers, Keys, keys_of
from potstill.store.manifest import Manifest, differences


@dataclass(frozen=True)
class Store:
    """What a teacher said about every sample and view, on disk; made by `open_store` or `record`.

    Every block is compared with its checksum the first time a row of it is read, so damaged numbers never reach
    training and opening a large store costs nothing.

    Attributes:
        folder: where it lies.
        manifest: what it holds and belongs to.
        ids: (n,) int64 sample ids in row order.

    """

    folder: Path
    manifest: Manifest
    ids: Integers
    _keys: Keys
    _maps: Mapping[str, np.ndarray[Any, Any]]
    _checksums: layout.Checksums
    _unchecked: np.ndarray[Any, np.dtype[np.bool_]]

    @property
    def signals(self) -> frozenset[str]:
        """Names of the recorded signals."""
        return frozenset(self.manifest.signals)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of one row of each signal."""
        return {name: spec.shape for name, spec in self.manifest.signals.items()}

    def rows(self, ids: Tensor, views: Tensor) -> Integers:
        """Return the (b,) rows of some samples' views, for `gather`.

        Args:
            ids: (b,) int64.
            views: (b,) int64.

        Raises:
            TeacherError: one was not recorded.
            PotstillError: a block they lie in is damaged.

        """
        rows = self._keys.rows(ids.numpy(), views.numpy())
        if self._unchecked.any():
            blocks = rows // self.manifest.rows_per_block
            self._check(np.unique(blocks[self._unchecked[blocks]]))
        return rows

    def gather(self, signal: str, rows: Integers) -> Tensor:
        """Return rows of a signal as (b, ...) float32."""
        try:
            values = self._maps[signal]
        except KeyError:
            raise TeacherError(
                f"The store {self.folder} has no signal '{signal}'.{did_you_mean(signal, self.signals)}"
            ) from None
        return torch.from_numpy(values.take(rows, axis=0)).to(torch.float32)

    def read(self, signal: str, ids: Tensor, views: Tensor) -> Tensor:
        """Return a signal of some samples' views as (b, ...) float32.

        Args:
            signal: name of a recorded signal.
            ids: (b,) int64, any order, repeats allowed.
            views: (b,) int64.

        Raises:
            TeacherError: the signal, or one of the samples' views, was not recorded.
            PotstillError: a block they lie in is damaged.

        """
        return self.gather(signal, self.rows(ids, views))

    def verify(self) -> None:
        """Compare every block of every signal with its checksum.

        Raises:
            PotstillError: naming the damaged blocks.

        """
        self._unchecked[:] = True
        self._check(np.arange(self.manifest.num_blocks))

    def _check(self, blocks: Integers) -> None:
        found = layout.damaged(self.manifest, self._maps, self._checksums, (int(block) for block in blocks))
        if found:
            raise _damage(self.folder, self.manifest, found)
        self._unchecked[blocks] = False


def open_store(folder: Path, expected: Manifest | None = None) -> Store:
    """Open a finished store, refusing one that was recorded for something else.

    Args:
        folder: where it lies.
        expected: what it must have been recorded for (see `describe`); None takes whatever is there.

    Raises:
        TeacherError: the recording is missing or unfinished, or the message spells out what changed.
        PotstillError: its files are damaged.

    """
    folder = Path(folder)
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


def refuse_changes(folder: Path, recorded: Manifest, wanted: Manifest, *, exact: bool = False) -> None:
    """Raise a `TeacherError` that spells out what changed, if anything did."""
    changes = differences(recorded, wanted, exact=exact)
    if changes:
        listing = "".join(f"\n  {change}" for change in changes)
        raise TeacherError(
            f"The store {folder} was recorded for something else:{listing}\n"
            "Choose another store.path, undo the change, or delete that folder to record anew."
        )


def assemble(folder: Path, manifest: Manifest, *, checked: bool) -> Store:
    """Map the files of a finished store; ``checked`` says that every checksum was compared just now."""
    ids = layout.read_ids(folder, manifest)
    if ids is None:
        raise _damage(folder, manifest, [], f"{layout.IDS} is missing or changed")
    maps = layout.map_signals(folder, manifest)
    for name, spec in manifest.signals.items():
        if name not in maps:
            raise _damage(folder, manifest, [], f"{spec.file} is missing or has the wrong size")
    checksums = layout.read_journal(folder, manifest)
    if len(checksums) < manifest.num_blocks:
        missing = manifest.num_blocks - len(checksums)
        raise _damage(folder, manifest, [], f"{missing} of {manifest.num_blocks} blocks are not in {layout.JOURNAL}")
    unchecked = np.full(manifest.num_blocks, not checked)
    return Store(folder, manifest, ids, keys_of(ids, manifest.views), maps, checksums, unchecked)


def _damage(folder: Path, manifest: Manifest, found: list[tuple[int, str]], what: str = "") -> PotstillError:
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
