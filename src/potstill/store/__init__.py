"""What a teacher said, once, on disk: numbers keyed by ``(id, view)``, checksummed, resumable, cheap to read."""

from __future__ import annotations

from potstill.store.changes import differences
from potstill.store.description import Dtype, describe
from potstill.store.manifest import Manifest, SignalSpec
from potstill.store.open import Place, is_remote, local_folder, open_store, record_part
from potstill.store.reader import Store
from potstill.store.size import check_room, estimate, free_bytes
from potstill.store.writer import record

__all__ = [
    "Dtype",
    "Manifest",
    "Place",
    "SignalSpec",
    "Store",
    "check_room",
    "describe",
    "differences",
    "estimate",
    "free_bytes",
    "is_remote",
    "local_folder",
    "open_store",
    "record",
    "record_part",
]
