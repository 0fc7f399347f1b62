"""Stores at addresses: fsspec's memory and local file systems, and an S3 server where one is installed."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import fsspec
import pytest
import torch

from potstill.core.errors import PotstillError, TeacherError
from potstill.store import open_store, record_part
from potstill.store.inspect import verify
from potstill.store.remote import cache_folder, local_copy, push, record_remote


@pytest.fixture(params=["memory", "file", "s3"])
def url(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("POTSTILL_CACHE", str(tmp_path / "cache"))
    if request.param == "memory":
        address = f"memory://bucket/{tmp_path.name}"
        yield address
        fsspec.filesystem("memory").store.clear()
    elif request.param == "file":
        yield f"file://{tmp_path}/remote"
    else:
        yield from s3_address(tmp_path, monkeypatch)


def s3_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    s3fs = pytest.importorskip("s3fs")
    server = pytest.importorskip("moto.server").ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "name",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    bucket = f"bucket-{uuid4()}"  # all servers of a process have their buckets in common
    s3fs.S3FileSystem().mkdir(bucket)
    yield f"s3://{bucket}/store"
    s3fs.S3FileSystem.clear_instance_cache()
    server.stop()


def files_at(url: str) -> dict[str, bytes]:
    files, root = fsspec.core.url_to_fs(url)
    files.invalidate_cache()
    return {name.removeprefix(root).lstrip("/"): files.cat_file(name) for name in files.find(root)}


def check(store: Any, work: Any) -> None:
    for view in range(3):
        read = store.read("logits", torch.tensor(work.ids), torch.full((20,), view))
        expected = (work.ids[:, None] % 50) + 0.25 * view + [[0, 100, 200]]
        assert read.tolist() == expected.tolist()


def test_what_is_pushed_is_read(url: str, work: Any, tmp_path: Path) -> None:
    work.record()
    sent = push(work.folder, url)
    assert (sent.sent, sent.present, sent.finished) == ((0, 1, 2), (), True)
    again = push(work.folder, url)
    assert (again.sent, again.present, again.finished) == ((), (0, 1, 2), True)
    store = open_store(url, work.manifest)
    assert not list((tmp_path / "cache").rglob("logits.npy"))  # nothing is fetched before it is touched
    store.read("logits", torch.tensor(work.ids[:1]), torch.tensor([0]))
    assert [path.parent.name for path in (tmp_path / "cache").rglob("logits.npy")] == ["000000"]
    check(store, work)
    check(open_store(url), work)
    store.verify()
    folder = local_copy(url)
    assert verify(folder).damage == ()
    assert (folder / "ids.npy").read_bytes() == (work.folder / "ids.npy").read_bytes()


def test_a_damaged_or_older_cache_is_fetched_again(url: str, work: Any) -> None:
    work.record()
    push(work.folder, url)
    folder = local_copy(url)
    path = folder / "shards/000001/logits.npy"
    path.write_bytes(path.read_bytes()[:-3])
    (folder / "shards/000002/blocks.jsonl").write_text("{}\n")
    (folder / "ids.npy").write_bytes(b"?")
    check(open_store(url), work)
    assert verify(folder).damage == ()


def test_damage_at_the_address_is_found(url: str, work: Any) -> None:
    work.record()
    push(work.folder, url)
    files, root = fsspec.core.url_to_fs(url)
    name = f"{root}/shards/000001/logits.npy"
    content = files.cat_file(name)
    files.pipe_file(name, content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(PotstillError, match="rows 40 to 47 of 'logits' do not have the checksum"):
        open_store(url).verify()
    files.rm_file(f"{root}/shards/000002/blocks.jsonl")
    with pytest.raises(PotstillError, match=r"shards/000002/blocks\.jsonl is missing"):
        local_copy(url)


def test_two_machines_record_one_store(url: str, new_work: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    whole = new_work("whole")
    whole.record()
    first, second = new_work("first"), new_work("second")
    base = os.environ["POTSTILL_CACHE"]
    monkeypatch.setenv("POTSTILL_CACHE", base + "-1")
    assert record_remote(first.teacher, first.batches, url, first.manifest, first.ids, part=(0, 2)) is None
    with pytest.raises(TeacherError, match="is unfinished"):
        open_store(url)
    monkeypatch.setenv("POTSTILL_CACHE", base + "-2")
    store = record_remote(second.teacher, second.batches, url, second.manifest, second.ids)
    assert (len(first.asked), len(second.asked)) == (24, 36)
    check(store, whole)
    there = files_at(url)
    assert {name: content for name, content in there.items() if name != "manifest.json"} == {
        name: content for name, content in whole.contents().items() if name != "manifest.json"
    }
    assert json.loads(there["manifest.json"]) == json.loads((whole.folder / "manifest.json").read_text())
    third = new_work("third")
    check(record_remote(third.teacher, third.batches, url, third.manifest, third.ids), third)
    assert third.asked == []


def test_a_recording_that_was_interrupted_is_continued(url: str, work: Any) -> None:
    def teacher(batch: Any) -> Any:
        if len(work.asked) >= 36:
            raise KeyboardInterrupt
        return work.teacher(batch)

    with pytest.raises(KeyboardInterrupt):
        record_remote(teacher, work.batches, url, work.manifest, work.ids)
    assert not [name for name in files_at(url) if name.endswith("writer.json")]
    work.asked.clear()
    check(record_remote(work.teacher, work.batches, url, work.manifest, work.ids), work)
    assert len(work.asked) == 60 - 32


@pytest.mark.parametrize("holder", ["elsewhere", "ended", "nonsense"])
def test_two_writers_of_a_shard(url: str, work: Any, holder: str) -> None:
    files, root = fsspec.core.url_to_fs(url)
    lock = {
        "elsewhere": {"process": 7, "host": "far-away", "since": "2026-01-01T00:00:00+00:00"},
        "ended": {"process": 2**22 + 5, "host": socket.gethostname(), "since": "2026-01-01T00:00:00+00:00"},
        "nonsense": {},
    }[holder]
    files.makedirs(f"{root}/shards/000001", exist_ok=True)
    files.pipe_file(f"{root}/shards/000001/writer.json", json.dumps(lock).encode())
    if holder == "ended":
        check(record_remote(work.teacher, work.batches, url, work.manifest, work.ids), work)
        return
    who = "process 7 on far-away, since 2026-01-01" if holder == "elsewhere" else "a process that has not said its name"
    with pytest.raises(PotstillError, match=f"{who}.*delete .*/shards/000001/writer.json"):
        record_remote(work.teacher, work.batches, url, work.manifest, work.ids)
    assert record_remote(work.teacher, work.batches, url, work.manifest, work.ids, part=(2, 3)) is None


def test_another_recording_is_refused(url: str, work: Any, new_work: Callable[..., Any]) -> None:
    work.record()
    push(work.folder, url)
    other = new_work("other", data="e" * 64)
    other.record()
    for attempt in (
        lambda: push(other.folder, url),
        lambda: open_store(url, other.manifest),
        lambda: record_remote(other.teacher, other.batches, url, other.manifest, other.ids),
    ):
        with pytest.raises(TeacherError, match="data: recorded dddddddd…, now eeeeeeee…"):
            attempt()
    changed = new_work("changed")
    changed.record(lambda batch: {name: value + 1 for name, value in changed.teacher(batch).items()})
    with pytest.raises(PotstillError, match=r"Shard 0 is in .* already, recorded with different numbers"):
        push(changed.folder, url)


def test_parts_are_pushed_from_several_folders(url: str, new_work: Callable[..., Any]) -> None:
    for index in (2, 0, 1):
        part = new_work(f"part-{index}")
        record_part(part.teacher, part.batches, part.folder, part.manifest, part.ids, part=(index, 3))
        sent = push(part.folder, url)
        assert sent.sent == (index,)
    assert sent.finished
    check(open_store(url), part)
    assert "manifest.partial.json" not in files_at(url)


def test_there_is_nothing_at_the_address(url: str, tmp_path: Path) -> None:
    with pytest.raises(TeacherError, match="There is no store of teacher signals in"):
        open_store(url + "/nothing")


def test_an_unknown_kind_of_address(tmp_path: Path) -> None:
    with pytest.raises(PotstillError, match="The address nosuch://a/b cannot be used"):
        open_store("nosuch://a/b")


def test_caches_of_different_addresses_are_apart(work: Any) -> None:
    one, two = cache_folder("s3://a/b", work.manifest), cache_folder("s3://a/c", work.manifest)
    assert one != two
    assert one == cache_folder("s3://a/b", work.manifest)
