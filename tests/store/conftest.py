"""A small recording whose every number is known."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from potstill.core.signals import Batch
from potstill.store import Manifest, Store, describe, record

CLASSES = 3


def known_logits(ids: np.ndarray, views: np.ndarray) -> np.ndarray:
    """The teacher's answers by formula; exact in float16."""
    return (ids[:, None] % 50) + 0.25 * views[:, None] + 100.0 * np.arange(CLASSES)[None]


def known_hidden(ids: np.ndarray, views: np.ndarray) -> np.ndarray:
    """A second signal of shape (2, 2)."""
    return (known_logits(ids, views)[:, :1, None] * np.array([[1.0, -1.0], [0.5, 2.0]])[None]).astype(np.float32)


@dataclass
class Work:
    """Everything `record` needs, and how often the teacher was asked."""

    folder: Path
    ids: np.ndarray
    views: int
    manifest: Manifest
    batch_size: int = 7
    asked: list[tuple[int, int]] = field(default_factory=list)
    ranges: list[list[tuple[int, int]]] = field(default_factory=list)

    def teacher(self, batch: Batch) -> dict[str, torch.Tensor]:
        ids, views = batch.ids.numpy(), batch.views.numpy()
        self.asked += list(zip(ids.tolist(), views.tolist(), strict=True))
        logits, hidden = known_logits(ids, views), known_hidden(ids, views)
        return {"logits": torch.tensor(logits), "hidden": torch.tensor(hidden), "unused": torch.zeros(len(ids))}

    def batches(self, ranges: Sequence[tuple[int, int]] | None = None) -> Iterator[Batch]:
        ranges = [(0, len(self.ids) * self.views)] if ranges is None else ranges
        self.ranges.append(list(ranges))
        for first, stop in ranges:
            for low in range(first, stop, self.batch_size):
                view, place = np.divmod(np.arange(low, min(low + self.batch_size, stop)), len(self.ids))
                yield Batch(torch.tensor(self.ids[place]), torch.tensor(view), torch.zeros(len(view), 1))

    def record(self, teacher: Callable | None = None, **changes: object) -> Store:
        manifest = replace(self.manifest, **changes)
        return record(teacher or self.teacher, self.batches, self.folder, manifest, self.ids)

    def contents(self) -> dict[str, bytes]:
        """What lies in the folder."""
        files = [path for path in self.folder.rglob("*") if path.is_file() and path.name[0] != "."]
        return {str(path.relative_to(self.folder)): path.read_bytes() for path in files}

    def path(self, signal: str, shard: int = 0) -> Path:
        return self.folder / "shards" / f"{shard:06d}" / self.manifest.signals[signal].records.file

    def journal(self, shard: int = 0) -> Path:
        return self.folder / "shards" / f"{shard:06d}" / "blocks.jsonl"

    def unfinish(self) -> None:
        (self.folder / "manifest.json").rename(self.folder / "manifest.partial.json")


@pytest.fixture
def new_work(tmp_path: Path) -> Callable[..., Work]:
    """Make a recording to be done: 20 samples with scattered ids, 3 views, blocks of 8 rows, shards of 3 blocks."""

    def make(name: str = "store", **changes: object) -> Work:
        ids = np.random.default_rng(5).permutation(1000)[:20].astype(np.int64)
        options = {
            "ids": ids,
            "data": "d" * 64,
            "teacher": {"model": "Net", "weights": "3fa1" * 16, "preprocessing": {"size": 32, "mean": [0.5]}},
            "shapes": {"logits": (CLASSES,), "hidden": (2, 2)},
            "sources": {"hidden": "layer3"},
            "views": 3,
            "augmentation": {"crop": 4, "flip": True, "erase": 0.0},
            "seed": 1,
        } | changes
        manifest = replace(describe(**options), rows_per_block=8, blocks_per_shard=3)
        return Work(tmp_path / name, options["ids"], options["views"], manifest)

    return make


@pytest.fixture
def work(new_work: Callable[..., Work]) -> Work:
    return new_work()
