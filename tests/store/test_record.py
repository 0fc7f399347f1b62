"""Recording and reading: what went in comes out, continued, repaired or refused."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from io import FileIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from potstill.core.errors import PotstillError, TeacherError, UsageError
from potstill.store import differences, disk, open_store, record


def known(name: str, ids: np.ndarray, views: np.ndarray) -> np.ndarray:
    column = (ids % 50) + 0.25 * views
    if name == "logits":
        return np.stack([column, column + 100, column + 200], axis=1)
    return np.stack([np.stack([column, -column], 1), np.stack([column / 2, column * 2], 1)], 1)


def check_all(store: Any, ids: np.ndarray, views: int) -> None:
    every = np.repeat(np.arange(views), len(ids))
    samples = np.tile(ids, views)
    order = np.random.default_rng(0).permutation(len(samples))
    for name in ("logits", "hidden"):
        read = store.read(name, torch.tensor(samples[order]), torch.tensor(every[order]))
        np.testing.assert_array_equal(read.numpy(), known(name, samples[order], every[order]))


def test_every_number_comes_back(work: Any) -> None:
    store = work.record()
    assert store.signals == {"logits", "hidden"}
    assert store.shapes == {"logits": (3,), "hidden": (2, 2)}
    check_all(store, work.ids, 3)
    check_all(open_store(work.folder, work.manifest), work.ids, 3)
    shards = [
        f"shards/{shard:06d}/{name}" for shard in range(3) for name in ("blocks.jsonl", "hidden.npy", "logits.npy")
    ]
    assert sorted(work.contents()) == ["ids.npy", "ids.places.npy", "ids.sorted.npy", "manifest.json", *shards]
    assert len(work.asked) == 60


def test_rows_lie_view_after_view(work: Any) -> None:
    work.record()
    rows = np.concatenate([np.load(work.path("logits", shard)) for shard in range(3)]).reshape(3, 20, 3)
    np.testing.assert_array_equal(rows[2], known("logits", work.ids, np.full(20, 2)))


def test_what_is_read_can_be_trained_on(work: Any) -> None:
    store = work.record()
    target = store.read("logits", torch.tensor(work.ids[:4]), torch.zeros(4, dtype=torch.int64))
    assert target.dtype == torch.float32
    assert not target.is_inference()
    student = torch.zeros(4, 3, requires_grad=True)
    (student * target).sum().backward()
    torch.testing.assert_close(student.grad, target)


def test_float32_and_single_numbers(new_work: Callable[..., Any]) -> None:
    work = new_work(dtype="float32", shapes={"value": ()}, views=1, augmentation=None, sources={})
    numbers = np.random.default_rng(0).normal(size=1000).astype(np.float32)
    store = work.record(lambda batch: {"value": torch.tensor(numbers[batch.ids.numpy()])})
    read = store.read("value", torch.tensor(work.ids), torch.zeros(20, dtype=torch.int64))
    np.testing.assert_array_equal(read.numpy(), numbers[work.ids])


def test_a_finished_store_asks_nothing(work: Any) -> None:
    work.record()
    asked, before = len(work.asked), work.contents()
    check_all(work.record(), work.ids, 3)
    assert len(work.asked) == asked
    assert work.contents() == before


def test_every_block_is_asked_for_alone(work: Any) -> None:
    work.record()
    blocks = [(low, min(low + 8, 60)) for low in range(0, 60, 8)]
    assert work.ranges == [blocks[:3], blocks[3:6], blocks[6:]]


def test_missing_rows_are_named(work: Any) -> None:
    def too_few(ranges: Any) -> Any:
        return list(work.batches(ranges))[:-1]

    with pytest.raises(UsageError, match=rf"first that is missing is id {work.ids[3]}, view 1\."):
        record(work.teacher, too_few, work.folder, work.manifest, work.ids)
    with pytest.raises(TeacherError, match="interrupted"):
        open_store(work.folder)


def test_other_rows_than_asked_for_are_refused(work: Any) -> None:
    def backwards(ranges: Any) -> Any:
        return list(work.batches(ranges))[::-1]

    def across(ranges: Any) -> Any:
        return work.batches([(ranges[0][0], ranges[-1][1])])

    for batches, row in ((backwards, 0), (across, 7)):
        with pytest.raises(UsageError, match=rf"in order: the next is id {work.ids[row]}, view 0"):
            record(work.teacher, batches, work.folder, work.manifest, work.ids)
        shutil.rmtree(work.folder)


def test_an_interruption_keeps_finished_blocks(work: Any) -> None:
    def interrupted(batch: Any) -> Any:
        if len(work.asked) >= 28:
            raise KeyboardInterrupt
        return work.teacher(batch)

    with pytest.raises(KeyboardInterrupt):
        work.record(interrupted)
    with pytest.raises(TeacherError, match="interrupted"):
        open_store(work.folder, work.manifest)
    work.asked.clear()
    check_all(work.record(), work.ids, 3)
    assert work.ranges[-2:] == [[(24, 32), (32, 40), (40, 48)], [(48, 56), (56, 60)]]
    assert len(work.asked) == 60 - 24


CRASH_POINTS = [(os, "fsync"), (Path, "replace"), (FileIO, "write")]


@pytest.mark.parametrize(("owner", "name"), CRASH_POINTS, ids=[name for _, name in CRASH_POINTS])
def test_a_crash_at_every_step_is_continued(
    owner: Any, name: str, new_work: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = new_work("reference")
    reference.record()
    work = new_work()
    crashes = 0
    for allowed in range(1000):
        with monkeypatch.context() as patch:
            calls = crash_after(patch, owner, name, allowed)
            try:
                work.record()
            except ZeroDivisionError:
                crashes += 1
            assert calls
        if (work.folder / "manifest.json").exists():
            break
        # Every attempt begins with what the one before left; now and then it begins anew to reach late steps.
        if allowed % 3 == 0:
            shutil.rmtree(work.folder)
    assert crashes >= 2
    assert work.contents() == reference.contents()


def crash_after(patch: pytest.MonkeyPatch, owner: Any, name: str, allowed: int) -> list[int]:
    calls: list[int] = []
    if owner is FileIO:
        real_write = disk.write

        def write(file: FileIO, content: bytes) -> None:
            calls.append(1)
            if len(calls) > allowed:
                file.write(content[: len(content) // 2])
                raise ZeroDivisionError
            real_write(file, content)

        patch.setattr(disk, "write", write)
        return calls
    real = getattr(owner, name)

    def step(*args: Any) -> Any:
        calls.append(1)
        if len(calls) > allowed:
            raise ZeroDivisionError
        return real(*args)

    patch.setattr(owner, name, step)
    return calls


def make_unfinished(work: Any) -> None:
    work.record()
    work.unfinish()


def test_the_journal_may_end_at_any_byte(work: Any) -> None:
    make_unfinished(work)
    journal = work.journal().read_bytes()
    assert len(journal.splitlines()) == 4
    ends = [place for place, byte in enumerate(journal) if byte == ord("\n")]
    for length in sorted({*range(0, len(journal), 83), ends[1] - 1, ends[1], ends[1] + 1, ends[3], len(journal)}):
        work.journal().write_bytes(journal[:length])
        work.asked.clear()
        check_all(work.record(), work.ids, 3)
        whole = journal[:length].count(b"\n") + journal[length:].startswith(b"\n")
        assert len(work.asked) == 8 * max(0, 3 - whole)
        assert work.journal().read_bytes() == journal
        work.unfinish()


@pytest.mark.parametrize("finished", [False, True])
@pytest.mark.parametrize("signal", ["logits", "hidden"])
def test_data_may_be_cut_or_changed_at_any_byte(work: Any, signal: str, finished: bool) -> None:
    work.record()
    good = work.path(signal).read_bytes()
    generator = np.random.default_rng(3)
    for trial in range(10):
        place = int(generator.integers(len(good)))
        bad = bytearray(good)
        bad[place] ^= 1 << int(generator.integers(8))
        work.path(signal).write_bytes(good[:place] if trial % 2 else bytes(bad))
        if finished:
            with pytest.raises(PotstillError, match="is damaged"):
                open_store(work.folder, work.manifest).verify()
        else:
            work.unfinish()
        work.asked.clear()
        check_all(work.record(), work.ids, 3)
        assert work.path(signal).read_bytes() == good
        if not trial % 2:
            assert len(work.asked) in (0, 8)  # none where the head of the file was hit


def test_a_changed_or_lost_file_is_repaired(work: Any) -> None:
    work.record()
    reference = work.contents()
    assert len(reference) == 13
    for name in (
        "shards/000001/blocks.jsonl",
        "ids.npy",
        "ids.sorted.npy",
        "ids.places.npy",
        "shards/000002/logits.npy",
    ):
        for content in (None, b"", reference[name][:-2], b"?" + reference[name][1:]):
            path = work.folder / name
            path.unlink() if content is None else path.write_bytes(content)
            with pytest.raises(PotstillError, match="is damaged"):
                open_store(work.folder, work.manifest).verify()
            check_all(work.record(), work.ids, 3)
            assert work.contents() == reference


def test_any_flipped_bit_is_found(work: Any) -> None:
    work.record()
    generator = np.random.default_rng(7)
    for name, good in work.contents().items():
        for place in {0, len(good) - 1, *generator.integers(len(good), size=12).tolist()}:
            bad = bytearray(good)
            bad[place] ^= 1 << int(generator.integers(8))
            (work.folder / name).write_bytes(bytes(bad))
            with pytest.raises(PotstillError):
                open_store(work.folder).verify()
        (work.folder / name).write_bytes(good)
    open_store(work.folder).verify()


def test_ids_in_another_order_are_not_believed(work: Any) -> None:
    work.record()
    np.save(work.folder / "ids.npy", work.ids[::-1])
    with pytest.raises(PotstillError, match=r"ids\.npy is missing or changed"):
        open_store(work.folder).read("logits", torch.tensor(work.ids[:1]), torch.zeros(1, dtype=torch.int64))
    check_all(work.record(), work.ids, 3)
    np.testing.assert_array_equal(np.load(work.folder / "ids.npy"), work.ids)


def test_damage_is_found_when_the_block_is_read(work: Any) -> None:
    work.record()
    with work.path("logits", 1).open("r+b") as file:
        file.seek(128 + 6 * 6)
        file.write(b"\xff")
    store = open_store(work.folder)
    zeros = torch.zeros(1, dtype=torch.int64)
    store.read("hidden", torch.tensor(work.ids[:1]), zeros)
    for _ in range(2):
        with pytest.raises(PotstillError, match="rows 24 to 31 of 'logits' do not have the checksum"):
            store.read("hidden", torch.tensor(work.ids[10:11]), zeros + 1)
    with pytest.raises(PotstillError, match="rows 24 to 31"):
        store.verify()


@pytest.mark.parametrize("finished", [False, True])
def test_a_change_is_refused_and_spelled_out(work: Any, finished: bool) -> None:
    work.record() if finished else make_unfinished(work)
    before = work.contents()
    other = replace(work.manifest, teacher=work.manifest.teacher | {"weights": "77bc" * 16}, data="e" * 64)
    with pytest.raises(TeacherError) as caught:
        record(work.teacher, work.batches, work.folder, other, work.ids)
    assert "teacher weights: recorded 3fa13fa1…, now 77bc77bc…\n  data: recorded dddddddd…, now eeeeeeee…" in str(
        caught.value
    )
    assert str(work.folder) in str(caught.value)
    assert "recorded for something else" in str(caught.value)
    with pytest.raises(TeacherError) as caught:
        record(work.teacher, work.batches, work.folder, replace(other, data=work.manifest.data), work.ids)
    assert "The teacher's weights differ" in str(caught.value)
    assert str(caught.value).index("A damaged weights file is one cause: check it") < str(caught.value).index("another")
    assert "anew" not in str(caught.value)
    assert work.contents() == before
    if finished:
        with pytest.raises(TeacherError, match="teacher weights: recorded 3fa13fa1…, now 77bc77bc…"):
            open_store(work.folder, other)


def test_more_than_wanted_serves_but_is_not_continued(new_work: Callable[..., Any]) -> None:
    work, wanted = new_work(), new_work(views=2).manifest
    work.record()
    assert differences(work.manifest, wanted) == []
    check_all(record(work.teacher, work.batches, work.folder, wanted, work.ids), work.ids, 2)
    work.path("logits").write_bytes(b"")
    with pytest.raises(TeacherError, match="views: recorded 3, now 2"):
        record(work.teacher, work.batches, work.folder, wanted, work.ids)


def test_ids_must_be_those_of_the_manifest(work: Any) -> None:
    with pytest.raises(UsageError, match="are not the 20 ids"):
        record(work.teacher, work.batches, work.folder, work.manifest, work.ids[::-1])
    assert not work.folder.exists()


@pytest.mark.parametrize(
    ("answer", "part"),
    [
        (lambda b: {"logits": torch.zeros(len(b), 3)}, "no signal 'hidden'"),
        (lambda b: {"logits": torch.zeros(len(b), 4), "hidden": torch.zeros(len(b), 2, 2)}, r"shape \(7, 4\)"),
        (lambda b: {"logits": torch.full((len(b), 3), 65536.0), "hidden": torch.zeros(len(b), 2, 2)},
         "of id .* reaches 65536, .*set store.dtype to float32"),
        (lambda b: {"logits": torch.full((len(b), 3), -7e4), "hidden": torch.zeros(len(b), 2, 2)}, "float16 ends at"),
        (lambda b: {"logits": torch.full((len(b), 3), torch.nan), "hidden": torch.zeros(len(b), 2, 2)}, "only finite"),
        (lambda b: {"logits": torch.full((len(b), 3), torch.inf), "hidden": torch.zeros(len(b), 2, 2)}, "only finite"),
    ],
)  # fmt: skip
def test_signals_that_cannot_be_stored(work: Any, answer: Callable, part: str) -> None:
    with pytest.raises(TeacherError, match=part):
        work.record(answer)


def test_the_bad_sample_is_named(work: Any) -> None:
    def teacher(batch: Any) -> Any:
        signals = work.teacher(batch)
        signals["hidden"][(batch.ids == int(work.ids[11])) & (batch.views == 1)] = torch.nan
        return signals

    with pytest.raises(TeacherError, match=f"'hidden' of id {work.ids[11]}, view 1 holds nan"):
        work.record(teacher)


def test_the_largest_float16_and_large_float32_are_kept(new_work: Callable[..., Any]) -> None:
    half, single = new_work("half"), new_work("single", dtype="float32")
    for work, value in ((half, 65504.0), (single, 3e38)):
        signals = {"logits": value, "hidden": -value}
        store = work.record(
            lambda b, s=signals: {
                "logits": torch.full((len(b), 3), s["logits"]),
                "hidden": torch.full((len(b), 2, 2), s["hidden"]),
            }
        )
        read = store.read("logits", torch.tensor(work.ids[:1]), torch.zeros(1, dtype=torch.int64))
        assert float(read[0, 0]) == float(np.float32(value))


def fail_with(number: int) -> Callable[..., Any]:
    def fail(*_: Any, **__: Any) -> Any:
        raise OSError(number, os.strerror(number))

    return fail


def test_too_little_room_is_told_first(work: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=work.manifest.num_bytes))
    with pytest.raises(PotstillError, match=r"The disk is full: the store .* needs"):
        work.record()
    assert work.asked == []
    assert work.contents() == {}


def test_a_disk_that_becomes_full_keeps_finished_blocks(work: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = disk.write, []

    def write(file: FileIO, content: bytes) -> None:
        calls.append(1)
        if len(calls) > 18:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(file, content)

    with monkeypatch.context() as patch:
        patch.setattr(disk, "write", write)
        with pytest.raises(PotstillError, match=r"The disk is full: .* Finished results are safe"):
            work.record()
    assert len(work.journal(1).read_text().splitlines()) == 1
    work.asked.clear()
    check_all(work.record(), work.ids, 3)
    assert len(work.asked) == 60 - 32


def test_a_folder_that_cannot_be_made(tmp_path: Path, work: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "mkdir", fail_with(errno.EACCES))
    with pytest.raises(PotstillError, match="choose another folder"):
        work.record()


LIMITED = """
import resource, sys
from pathlib import Path
import numpy as np, torch
from potstill.core.errors import PotstillError
from potstill.core.signals import Batch
from potstill.store import describe, record

folder, limit = Path(sys.argv[1]), int(sys.argv[2])
ids = np.arange(20000)
manifest = describe(ids=ids, data="d", teacher={"model": "t"}, shapes={"logits": (4,)})
def batches(ranges):
    for low, high in ranges:
        part = torch.arange(low, high)
        yield Batch(part, torch.zeros_like(part), torch.zeros(high - low, 1))
def teacher(batch):
    return {"logits": (batch.ids % 1000).float()[:, None].repeat(1, 4)}
if limit:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
try:
    store = record(teacher, batches, folder, manifest, ids)
except PotstillError as error:
    print(error)
    sys.exit(1)
store.verify()
"""


def run_limited(folder: Path, limit: int) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", LIMITED, str(folder), str(limit)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_a_limit_on_file_sizes_is_one_clear_error(tmp_path: Path) -> None:
    refused = run_limited(tmp_path / "store", 60_000)
    assert refused.returncode == 1, refused.stderr
    assert "files may not grow this large here" in refused.stdout
    assert "Traceback" not in refused.stderr
    done = run_limited(tmp_path / "store", 0)
    assert done.returncode == 0, done.stdout + done.stderr


def test_two_writers(work: Any, new_work: Callable[..., Any]) -> None:
    def teacher(batch: Any) -> Any:
        with pytest.raises(PotstillError) as caught:
            new_work().record()
        messages.append(str(caught.value))
        return work.teacher(batch)

    messages: list[str] = []
    check_all(work.record(teacher), work.ids, 3)
    assert len(messages) == 15
    assert (
        f"Another process is recording into {work.folder / 'shards/000000'}: process {os.getpid()} on " in messages[0]
    )
    assert "since 2" in messages[0]


HOLDER = """
import sys, time
from pathlib import Path
from potstill.store.disk import only_writer
with only_writer(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_writer_in_another_process_is_named_and_its_death_frees_the_folder(work: Any) -> None:
    shard = work.folder / "shards" / "000000"
    shard.mkdir(parents=True)
    other = subprocess.Popen([sys.executable, "-c", HOLDER, str(shard)], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(PotstillError, match=f"process {other.pid} on "):
            work.record()
    finally:
        other.kill()
        other.wait()
        other.stdout.close()
    check_all(work.record(), work.ids, 3)


def test_reading_needs_no_lock(work: Any) -> None:
    work.record()
    with disk.only_writer(work.folder), disk.only_writer(work.folder / "shards" / "000001"):
        check_all(work.record(), work.ids, 3)
        check_all(open_store(work.folder), work.ids, 3)


def test_there_is_nothing_to_open(tmp_path: Path) -> None:
    with pytest.raises(TeacherError, match="no store of teacher signals"):
        open_store(tmp_path / "nowhere")


def test_an_unknown_signal_and_sample(work: Any) -> None:
    store = work.record()
    one = torch.tensor(work.ids[:1])
    with pytest.raises(TeacherError, match=r"no signal 'logit'\. Did you mean 'logits'"):
        store.read("logit", one, torch.zeros(1, dtype=torch.int64))
    with pytest.raises(TeacherError, match=f"id {int(one)}, view 3 was not recorded"):
        store.read("logits", one, torch.tensor([3]))


def test_an_unreadable_manifest(work: Any) -> None:
    work.record()
    (work.folder / "manifest.json").write_text("{")
    for attempt in (work.record, lambda: open_store(work.folder)):
        with pytest.raises(PotstillError, match=r"manifest\.json is damaged .*to record anew"):
            attempt()


def test_left_over_temporary_files_are_removed(work: Any) -> None:
    (work.folder / "shards" / "000001").mkdir(parents=True)
    for name in (".manifest.partial.json.x1", ".ids.npy.x2", "shards/000001/.blocks.jsonl.x3"):
        (work.folder / name).write_text("half")
    work.record()
    assert list(work.folder.rglob(".*.x*")) == []


def test_a_journal_without_manifest_is_not_believed(work: Any) -> None:
    work.record()
    (work.folder / "manifest.json").unlink()
    work.asked.clear()
    check_all(work.record(), work.ids, 3)
    assert len(work.asked) == 60


def test_the_manifest_is_readable(work: Any) -> None:
    work.record()
    value = json.loads((work.folder / "manifest.json").read_text())
    assert value["signals"]["hidden"] == {
        "file": "hidden", "shape": [2, 2], "codec": {"codec": "full", "dtype": "float16"}, "per": "sample",
        "source": "layer3",
    }  # fmt: skip
    assert value["augmentation"] == {"crop": 4, "flip": True, "seed": 1}
