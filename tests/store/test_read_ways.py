"""Every way of finding records gives the same ones: from memory, from shard to shard, and as runs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from potstill.core.signals import Batch, Ragged
from potstill.store import Store, describe, open_store, reader, record
from potstill.store.codecs import Full

SAMPLES, SHARDS = 1000, 4
OFFSETS = np.concatenate([[0], np.cumsum(np.random.default_rng(0).integers(0, 5, SAMPLES))])
LOGITS = np.arange(SAMPLES * 2, dtype=np.float32).reshape(SAMPLES, 2)
ITEMS = (np.arange(OFFSETS[-1] * 3) % 251).astype(np.uint8).reshape(-1, 3)


def answer(batch: Batch) -> dict[str, Any]:
    start, stop = int(batch.ids[0]), int(batch.ids[-1]) + 1
    items = torch.from_numpy(ITEMS[OFFSETS[start] : OFFSETS[stop]])
    return {
        "logits": torch.from_numpy(LOGITS[start:stop]),
        "tokens": Ragged(items, torch.from_numpy(np.diff(OFFSETS[start : stop + 1]))),
    }


def batches(ranges: Any) -> Iterator[Batch]:
    for start, stop in ranges:
        ids = torch.arange(start, stop)
        yield Batch(ids, torch.zeros_like(ids), ids)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("ways") / "store"
    ids = np.arange(SAMPLES)
    manifest = describe(
        ids=ids,
        data="",
        teacher={},
        shapes={"logits": (2,), "tokens": (3,)},
        codecs={"logits": Full("float32"), "tokens": Full("uint8")},
        sequences=["tokens"],
        shards=SHARDS,
    )
    assert record(answer, batches, place, manifest, ids).manifest.num_shards == SHARDS
    return place


def compare(store: Store, rows: list[int]) -> None:
    """Both signals of some rows are those that were recorded."""
    ids = torch.tensor(rows, dtype=torch.int64)
    assert np.array_equal(store.read("logits", ids, torch.zeros_like(ids)), LOGITS[rows])
    found = store.read("tokens", ids, torch.zeros_like(ids))
    assert isinstance(found, Ragged)
    assert found.lengths.tolist() == [int(OFFSETS[row + 1] - OFFSETS[row]) for row in rows]
    expected = [ITEMS[OFFSETS[row] : OFFSETS[row + 1]] for row in rows]
    assert np.array_equal(found.values, np.concatenate([ITEMS[:0], *expected]))


ROWS = {
    "one": [7],
    "any order, repeats, every shard": [999, 0, 256, 255, 512, 3, 999, 768, 0],
    "one shard": [300, 290, 300],
    "none": [],
    "all": np.random.default_rng(1).permutation(SAMPLES).tolist(),
}


@pytest.mark.parametrize("rows", ROWS.values(), ids=list(ROWS))
@pytest.mark.parametrize("checked", [False, True])
@pytest.mark.parametrize("in_memory", [False, True])
def test_the_records_are_the_same(
    folder: Path, monkeypatch: pytest.MonkeyPatch, rows: list[int], checked: bool, in_memory: bool
) -> None:
    monkeypatch.setattr(reader, "_MOST_BYTES_IN_MEMORY", LOGITS.nbytes if in_memory else LOGITS.nbytes - 1)
    store = open_store(folder)
    if checked:
        store.verify()
    for _ in range(2):
        compare(store, rows)
    whole = checked or {row // store.manifest.rows_per_block for row in rows} == set(range(store.manifest.num_blocks))
    assert (store._state.memory.get("logits") is not None) == (in_memory and whole)
