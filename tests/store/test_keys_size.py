"""Finding rows, and knowing the size beforehand."""

from __future__ import annotations

import shutil
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest

from potstill.core.errors import PotstillError, TeacherError, UsageError
from potstill.store import check_room, estimate, free_bytes
from potstill.store.keys import keys_of

IDS = {
    "counting": np.arange(12),
    "counting from 100": np.arange(100, 112),
    "consecutive, shuffled": np.random.default_rng(0).permutation(12) - 3,
    "rising with gaps": np.arange(12) * 7 - 20,
    "shuffled with gaps": np.random.default_rng(1).permutation(500)[:12],
    "far apart": np.array([2**62, -(2**62), 0, 2**63 - 1]),
    "one": np.array([9]),
}


@pytest.mark.parametrize("name", IDS)
def test_rows_by_the_definition(name: str) -> None:
    ids = IDS[name]
    keys = keys_of(ids, views=3)
    table = {(int(sample), view): view * len(ids) + place for view in range(3) for place, sample in enumerate(ids)}
    assert len(table) == 3 * len(ids)
    asked = list(table)[::-1]
    rows = keys.rows(np.array([sample for sample, _ in asked]), np.array([view for _, view in asked]))
    assert rows.tolist() == [table[key] for key in asked]


@pytest.mark.parametrize("name", IDS)
@pytest.mark.parametrize(("sample", "view"), [(10**15, 0), (-(10**15), 1), (None, 3), (None, -1)])
def test_unknown_keys_are_named(name: str, sample: int | None, view: int) -> None:
    ids = IDS[name]
    sample = int(ids[0]) if sample is None else sample
    with pytest.raises(TeacherError, match=rf"id {sample}, view {view} .*views 0 to 2 of {len(ids)} samples"):
        keys_of(ids, views=3).rows(np.array([ids[-1], sample]), np.array([0, view]))


def test_one_between_is_unknown() -> None:
    with pytest.raises(TeacherError, match="id 3, view 0"):
        keys_of(np.array([2, 4, 6]), views=1).rows(np.array([3]), np.array([0]))


def test_equal_ids_are_refused() -> None:
    with pytest.raises(UsageError, match="id 4 occurs twice"):
        keys_of(np.array([4, 1, 4]), views=1)


def test_estimate_by_hand() -> None:
    assert estimate(20_000, 10, {"logits": (10,)}) == 4_000_000
    assert estimate(5, 2, {"logits": (10,), "mid": (4, 8, 8), "value": ()}, "float32") == 10 * (10 + 256 + 1) * 4


def test_no_room_is_told_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("Usage", "total used free")(10**9, 0, 1_500_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    check_room(tmp_path, 1_500_000)
    assert free_bytes(tmp_path / "not" / "there") == 1_500_000
    with pytest.raises(PotstillError, match=r"needs 3\.2 GB and 1\.5 MB are free"):
        check_room(tmp_path, 3_200_000_000)
