"""What a store must not believe: sizes, ids, links, and shards that were recorded for another store."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from potstill.core.errors import DataError, PotstillError
from potstill.store import open_store, record_part
from potstill.store.export import export
from potstill.store.imports import import_arrays
from potstill.store.inspect import verify
from potstill.store.merge import merge

COUNTING = np.arange(100, 120)


def read(work: Any) -> np.ndarray:
    ids = torch.from_numpy(work.ids)
    return open_store(work.folder).read("logits", ids, torch.zeros_like(ids)).numpy()


@pytest.mark.parametrize("extra", [1, 6, 8192])
def test_bytes_behind_a_column_are_damage_and_shift_nothing(work: Any, tmp_path: Path, extra: int) -> None:
    work.record()
    with work.path("logits", 0).open("ab") as file:
        file.write(b"\1" * extra)
    store = open_store(work.folder)
    with pytest.raises(PotstillError, match=r"shards/000000/logits.npy is missing, changed or has the wrong size"):
        store.read("logits", torch.from_numpy(work.ids), torch.zeros(20, dtype=torch.int64))
    with pytest.raises(PotstillError, match="wrong size"):
        export(work.folder, tmp_path / "out.parquet")
    assert not (tmp_path / "out.parquet").exists()
    assert len(verify(work.folder).damage) == 1


def test_a_shard_of_another_teacher_is_none_of_this_store(work: Any, new_work: Callable[..., Any]) -> None:
    work.record()
    other = new_work("other", teacher={"model": "Net", "weights": "77bc" * 16})
    other.record()
    shutil.rmtree(work.folder / "shards/000001")
    shutil.copytree(other.folder / "shards/000001", work.folder / "shards/000001")
    assert verify(work.folder).damage
    with pytest.raises(PotstillError, match=r"3 blocks of this store are not in shards/000001"):
        open_store(work.folder).read("logits", torch.from_numpy(work.ids), torch.ones(20, dtype=torch.int64))
    asked = len(work.asked)
    work.record().verify()
    assert len(work.asked) == asked + 24


@pytest.mark.parametrize(
    "change", [{"data": "e" * 64}, {"seed": 2}, {"ids": np.arange(20)}, {"augmentation": {"crop": 2}}]
)
def test_all_that_a_shard_depends_on_binds_it(new_work: Callable[..., Any], change: dict) -> None:
    assert new_work("other", **change).manifest.binding != new_work().manifest.binding


def test_stores_of_before_whose_journals_name_no_store_open_and_continue(work: Any) -> None:
    store = work.record(bound=False)
    assert "bound" not in json.loads((work.folder / "manifest.json").read_text())
    assert '"store"' not in work.journal(0).read_text()
    store.verify()
    assert len(read(work)) == 20
    work.unfinish()
    work.journal(1).unlink()
    asked = len(work.asked)
    work.record().verify()  # wanted is bound; what is there keeps its way
    assert len(work.asked) == asked + 24
    assert '"store"' not in work.journal(1).read_text()


def test_a_flipped_id_is_never_handed_out(new_work: Callable[..., Any], tmp_path: Path) -> None:
    work = new_work("counting", ids=COUNTING, views=1)
    work.record()
    with (work.folder / "ids.npy").open("r+b") as file:
        file.seek(-4 * 8, os.SEEK_END)
        file.write(bytes([117]))
    assert read(work)[-1].tolist() == [19.0, 119.0, 219.0]  # ids that count up are not looked at to find a row
    for use in (lambda: open_store(work.folder).ids, lambda: export(work.folder, tmp_path / "out.parquet")):
        with pytest.raises(PotstillError, match=r"ids.npy is missing or changed"):
            use()


def test_a_repair_leaves_what_links_point_to_alone(work: Any, tmp_path: Path) -> None:
    work.record()
    outside = tmp_path / "precious.bin"
    outside.write_bytes(b"precious " * 90)
    work.path("logits", 0).unlink()
    work.path("logits", 0).symlink_to(outside)
    work.record().verify()
    assert outside.read_bytes() == b"precious " * 90
    assert not work.path("logits", 0).is_symlink()


@pytest.mark.parametrize("place", ["shards", "shards/000001"])
def test_a_folder_of_a_store_that_is_a_link_is_not_written_to(work: Any, tmp_path: Path, place: str) -> None:
    work.record()
    (work.folder / place).rename(tmp_path / "elsewhere")
    (work.folder / place).symlink_to(tmp_path / "elsewhere")
    read(work)  # reading through it is fine
    journal = next((tmp_path / "elsewhere").rglob("blocks.jsonl"))
    journal.write_text("")
    before = sorted((tmp_path / "elsewhere").rglob("*"))
    with pytest.raises(PotstillError, match=r"is a symbolic link to .*elsewhere"):
        work.record()
    assert journal.read_text() == ""
    assert sorted((tmp_path / "elsewhere").rglob("*")) == before


def test_repairing_a_merged_store_leaves_its_parts_alone(new_work: Callable[..., Any]) -> None:
    parts = [new_work(f"part-{index}") for index in range(3)]
    for index, part in enumerate(parts):
        record_part(part.teacher, part.batches, part.folder, part.manifest, part.ids, part=(index, 3))
    merged = new_work("merged")
    merge([part.folder for part in parts], merged.folder)
    before = parts[0].path("logits", 0).read_bytes()
    merged.journal(0).unlink()  # all of the shard is recorded anew, from a file that is shared with the part
    merged.unfinish()

    def interrupted(batch: Any) -> Any:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        merged.record(interrupted)
    assert parts[0].path("logits", 0).read_bytes() == before


def test_what_a_killed_writer_left_in_a_shard_that_is_whole_is_removed(work: Any) -> None:
    work.record()
    left = work.journal(0).with_name("..writer.json.x1y2z3.potstill-unfinished")
    left.write_text("{")
    work.unfinish()
    work.journal(1).unlink()  # so that the recording goes on, past the shard that is whole
    work.record().verify()
    assert not left.exists()


def test_ids_that_do_not_fit_are_refused_and_others_kept(tmp_path: Path) -> None:
    values = np.zeros((2, 3), np.float32)
    np.savez(tmp_path / "large.npz", logits=values, ids=np.array([1, 2**63], dtype=np.uint64))
    with pytest.raises(DataError, match=r"large.npz: array 'ids' holds 9223372036854775808 in row 1"):
        import_arrays(tmp_path / "large.npz", tmp_path / "large")
    np.savez(tmp_path / "fits.npz", logits=values, ids=np.array([1, 2**63 - 1], dtype=np.uint64))
    assert import_arrays(tmp_path / "fits.npz", tmp_path / "fits").ids.tolist() == [1, 2**63 - 1]


def test_parts_of_a_bound_store_equal_those_of_one_process(work: Any, new_work: Callable[..., Any]) -> None:
    assert replace(work.manifest, bound=False).fingerprint == work.manifest.fingerprint
    assert work.manifest.binding == new_work("elsewhere").manifest.binding
