"""One recording shared by several processes, in any order, gives the bytes of one process."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from potstill.core.errors import PotstillError, TeacherError, UsageError
from potstill.store import open_store, record_part


def record_one(work: Any, part: tuple[int, int], folder: Path | None = None) -> Any:
    return record_part(work.teacher, work.batches, folder or work.folder, work.manifest, work.ids, part=part)


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 0, 1], [1, 2, 0]])
def test_parts_in_any_order(order: list[int], new_work: Callable[..., Any]) -> None:
    whole, work = new_work("whole"), new_work()
    whole.record()
    stores = [record_one(work, (index, 3)) for index in order]
    assert stores[:2] == [None, None]
    stores[2].verify()
    assert work.contents() == whole.contents()
    assert len(work.asked) == 60


def test_two_parts_of_three_shards(new_work: Callable[..., Any]) -> None:
    whole, work = new_work("whole"), new_work()
    whole.record()
    assert record_one(work, (1, 2)) is None
    assert [rows for ranges in work.ranges for rows in ranges] == [(low, min(low + 8, 60)) for low in range(24, 60, 8)]
    with pytest.raises(TeacherError, match="interrupted"):
        open_store(work.folder)
    assert record_one(work, (0, 2)) is not None
    assert work.contents() == whole.contents()


def test_a_part_that_is_done_asks_nothing(work: Any) -> None:
    record_one(work, (1, 3))
    asked = len(work.asked)
    assert record_one(work, (1, 3)) is None
    assert len(work.asked) == asked == 24


def test_one_process_finishes_what_parts_began(work: Any) -> None:
    record_one(work, (2, 3))
    work.record().verify()
    assert len(work.asked) == 60


def test_more_parts_than_shards(work: Any) -> None:
    with pytest.raises(UsageError, match=r"has 3 shards, too few for 4 parts\. Set store\.shards to 4 or more"):
        record_one(work, (0, 4))
    assert work.asked == []


@pytest.mark.parametrize("part", [(3, 3), (-1, 2)])
def test_parts_that_do_not_exist(work: Any, part: tuple[int, int]) -> None:
    with pytest.raises(UsageError, match=r"expected 1/\d to"):
        record_one(work, part)


def test_a_second_writer_of_a_shard_is_refused_and_other_shards_are_not(
    work: Any, new_work: Callable[..., Any]
) -> None:
    refused: list[str] = []
    welcome: list[Any] = []

    def teacher(batch: Any) -> Any:
        if not refused:
            with pytest.raises(PotstillError, match=r"Another process is recording into .*000000") as caught:
                record_one(new_work(), (0, 3))
            refused.append(str(caught.value))
            welcome.append(record_one(new_work(), (1, 3)))
        return work.teacher(batch)

    record_part(teacher, work.batches, work.folder, work.manifest, work.ids, part=(0, 3))
    assert "record another part" in refused[0]
    assert welcome == [None]
    record_one(work, (2, 3)).verify()


PROCESS = """
import sys
from dataclasses import replace
from pathlib import Path
import numpy as np, torch
from potstill.core.signals import Batch, Ragged
from potstill.store import describe, record_part

torch.set_num_threads(1)
folder, index, parts = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
ids = np.random.default_rng(0).permutation(500)[:90]
manifest = describe(ids=ids, data="d", teacher={"model": "t"}, shapes={"logits": (5,), "text": (3,)}, views=2,
                    sequences=["text"], augmentation={"flip": True})
manifest = replace(manifest, rows_per_block=16, blocks_per_shard=4)

def batches(ranges):
    for first, stop in ranges:
        for low in range(first, stop, 7):
            view, place = np.divmod(np.arange(low, min(low + 7, stop)), 90)
            yield Batch(torch.tensor(ids[place]), torch.tensor(view), torch.zeros(len(view), 1))

def teacher(batch):
    lengths = batch.ids % 4
    values = torch.repeat_interleave(batch.ids % 100, lengths)[:, None] + torch.arange(3)
    return {"logits": torch.sin(batch.ids.double()[:, None] + torch.arange(5)), "text": Ragged(values, lengths)}

if index == 0:
    sys.stdin.readline()  # begin together
record_part(teacher, batches, folder, manifest, ids, part=(index, parts))
"""


def contents(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file() and path.name[0] != "."]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def start(folder: Path, index: int, parts: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", PROCESS, str(folder), str(index), str(parts)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_processes_at_once_on_one_folder(tmp_path: Path) -> None:
    together = [start(tmp_path / "shared", index, 2) for index in range(2)]
    alone = start(tmp_path / "alone", 0, 1)
    for process in (*together, alone):
        _, errors = process.communicate("\n", timeout=120)
        assert process.returncode == 0, errors
    assert len(contents(tmp_path / "alone")) == 16
    assert contents(tmp_path / "shared") == contents(tmp_path / "alone")
    open_store(tmp_path / "shared").verify()
