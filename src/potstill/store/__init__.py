"""What a teacher said, once, on disk: numbers keyed by ``(id, view)``, checksummed, resumable, cheap to read."""

from __future__ import annotations

from potstill.store.manifest import Dtype, Manifest, SignalSpec, describe, differences
from potstill.store.reader import Store, open_store
from potstill.store.size import check_room, estimate, free_bytes
from potstill.store.writer import record, record_part

__all__ = [
    "Dtype",
    "Manifest",
    "SignalSpec",
    "Store",
    "check_room",
    "describe",
    "differences",
    "estimate",
    "free_bytes",
    "open_store",
    "record",
    "record_part",
]
