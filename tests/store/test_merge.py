"""Parts recorded in folders of their own, brought together without writing a byte anew."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from potstill.core.errors import PotstillError, TeacherError, UsageError
from potstill.store import open_store, record_part
from potstill.store.merge import merge


@pytest.fixture
def parts(new_work: Callable[..., Any]) -> list[Any]:
    """Three folders, each with one of the three shards."""
    works = [new_work(f"part-{index}") for index in range(3)]
    for index, work in enumerate(works):
        record_part(work.teacher, work.batches, work.folder, work.manifest, work.ids, part=(index, 3))
    return works


@pytest.fixture
def whole(new_work: Callable[..., Any]) -> Any:
    work = new_work("whole")
    work.record()
    return work


def folders(parts: list[Any]) -> list[Path]:
    return [work.folder for work in parts]


def test_the_merged_store_is_the_one_of_one_process(parts: list[Any], whole: Any, new_work: Callable[..., Any]) -> None:
    work = new_work("merged")
    merged = merge(folders(parts)[::-1], work.folder)
    assert merged.added == {index: part.folder for index, part in enumerate(parts)}
    assert (merged.present, merged.doubled, merged.missing) == ([], [], [])
    assert work.contents() == whole.contents()
    open_store(work.folder, work.manifest).verify()
    for index, part in enumerate(parts):
        assert work.path("logits", index).stat().st_ino == part.path("logits", index).stat().st_ino


def test_parts_as_they_arrive(parts: list[Any], whole: Any, new_work: Callable[..., Any]) -> None:
    work = new_work("merged")
    assert merge([parts[1].folder], work.folder).missing == [0, 2]
    with pytest.raises(TeacherError, match="interrupted"):
        open_store(work.folder)
    again = merge([parts[1].folder, parts[0].folder], work.folder)
    assert (again.present, list(again.added), again.doubled, again.missing) == ([1], [0], [], [2])
    work.record().verify()  # nobody else sends the last one: it is recorded here
    assert len(work.asked) == 12
    assert work.contents() == whole.contents()
    assert merge(folders(parts), work.folder).added == {}


def test_equal_shards_are_taken_once(parts: list[Any], whole: Any, new_work: Callable[..., Any]) -> None:
    merged = merge([*folders(parts), whole.folder], new_work("merged").folder)
    assert merged.doubled == [0, 1, 2]
    assert merged.missing == []


def test_different_numbers_for_a_shard_are_refused(parts: list[Any], new_work: Callable[..., Any]) -> None:
    other = new_work("other")

    def teacher(batch: Any) -> Any:
        return {name: values + 1 for name, values in other.teacher(batch).items()}

    record_part(teacher, other.batches, other.folder, other.manifest, other.ids, part=(1, 3))
    with pytest.raises(PotstillError, match=r"Shard 1 was recorded twice with different numbers, in .*part-1 and in"):
        merge([*folders(parts), other.folder], new_work("merged").folder)
    into = new_work("merged-first")
    merge(folders(parts), into.folder)
    with pytest.raises(PotstillError, match=r"Shard 1 was recorded twice .*merged-first and in .*other"):
        merge([other.folder], into.folder)


def test_parts_of_something_else_are_refused(parts: list[Any], new_work: Callable[..., Any]) -> None:
    other = new_work("other", data="e" * 64)
    other.record()
    with pytest.raises(TeacherError, match=r"other was recorded for something else than .*part-0:\n  data: recorded"):
        merge([parts[0].folder, other.folder], new_work("merged").folder)
    sized = new_work("sized")
    sized.manifest = replace(sized.manifest, blocks_per_shard=4)
    sized.record()
    with pytest.raises(TeacherError, match="blocks_per_shard: recorded 3, now 4"):
        merge([parts[0].folder, sized.folder], new_work("merged").folder)
    assert not new_work("merged").folder.exists()
    merge(folders(parts), new_work("merged").folder)
    with pytest.raises(TeacherError, match="data: recorded"):
        merge([other.folder], new_work("merged").folder)


def test_what_is_no_store_is_refused(parts: list[Any], tmp_path: Path) -> None:
    with pytest.raises(TeacherError, match=r"There is no store of teacher signals in .*nowhere"):
        merge([parts[0].folder, tmp_path / "nowhere"], tmp_path / "merged")
    with pytest.raises(UsageError, match="nothing to merge"):
        merge([parts[0].folder], parts[0].folder)


def test_damaged_parts_are_refused(parts: list[Any], new_work: Callable[..., Any]) -> None:
    content = parts[1].path("logits", 1).read_bytes()
    parts[1].path("logits", 1).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(PotstillError, match=r"part-1 is damaged: rows 40 to 47 of 'logits'"):
        merge(folders(parts), new_work("careful").folder, verify=True)
    merge(folders(parts), new_work("trusting").folder)
    with pytest.raises(PotstillError, match="is damaged"):
        open_store(new_work("trusting").folder).verify()
    parts[1].path("logits", 1).write_bytes(content[:-1])
    with pytest.raises(PotstillError, match=r"part-1 is damaged: shards/000001/logits\.npy is missing, changed"):
        merge(folders(parts), new_work("merged").folder)


def test_moving_empties_the_parts(parts: list[Any], whole: Any, new_work: Callable[..., Any]) -> None:
    work = new_work("merged")
    merge(folders(parts), work.folder, move=True)
    assert work.contents() == whole.contents()
    for index, part in enumerate(parts):
        assert not part.path("logits", index).exists()
        assert not part.journal(index).exists()
    again = merge(folders(parts), work.folder, move=True)
    assert (again.added, again.missing) == ({}, [])
    parts[0].record().verify()  # what is left of a part is a recording that was just begun


@pytest.mark.parametrize("number", [errno.EXDEV, errno.EPERM])
def test_copies_where_links_are_not_possible(
    number: int, parts: list[Any], whole: Any, new_work: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def link(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", link)
    work = new_work("merged")
    merge(folders(parts), work.folder)
    assert work.contents() == whole.contents()
    assert work.path("logits", 1).stat().st_ino != parts[1].path("logits", 1).stat().st_ino


@pytest.mark.parametrize("move", [False, True])
def test_a_crash_at_every_step_is_repeated(
    move: bool, parts: list[Any], whole: Any, new_work: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = [(os, "link"), (Path, "unlink"), (Path, "replace")]
    saved = new_work("saved").folder
    for part in parts:
        shutil.copytree(part.folder, saved / part.folder.name)
    crashes = 0
    for allowed in range(0, 100, 7):
        work = new_work(f"merged-{allowed}")
        for part in parts:
            shutil.rmtree(part.folder)
            shutil.copytree(saved / part.folder.name, part.folder)
        calls: list[int] = []
        with monkeypatch.context() as patch:
            for owner, name in steps:
                patch.setattr(owner, name, crash_after(getattr(owner, name), calls, allowed))
            try:
                merge(folders(parts), work.folder, move=move)
            except ZeroDivisionError:
                crashes += 1
        finished = len(calls) <= allowed
        assert merge(folders(parts), work.folder, move=move).missing == []
        assert work.contents() == whole.contents()
        if finished:
            break
    assert crashes >= 3


def crash_after(real: Any, calls: list[int], allowed: int) -> Any:
    def step(*args: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) > allowed:
            raise ZeroDivisionError
        return real(*args, **options)

    return step


def test_ids_come_from_a_part_that_has_them(parts: list[Any], whole: Any, new_work: Callable[..., Any]) -> None:
    (parts[0].folder / "ids.npy").unlink()
    work = new_work("merged")
    merge(folders(parts), work.folder)
    assert work.contents() == whole.contents()
    for part in parts:
        (part.folder / "ids.npy").unlink(missing_ok=True)
    with pytest.raises(PotstillError, match=r"ids\.npy is missing or changed"):
        merge(folders(parts), new_work("other").folder)
