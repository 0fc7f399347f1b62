"""The commands of ``potstill store`` on real stores, with what a user sees and the exit codes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as parquet
import pytest
import torch

from potstill.core.signals import Batch
from potstill.store import describe, open_store, record_part
from potstill.store.codecs import Full

IDS = np.arange(4096) * 2


@pytest.fixture(autouse=True)
def somewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("POTSTILL_QUIET", "")


def recorded(folder: str, part: tuple[int, int] = (0, 1), data: str = "d" * 64) -> Path:
    manifest = describe(
        ids=IDS, data=data, teacher={"model": "Net", "precision": "float32"}, shapes={"logits": (3,)},
        codecs={"logits": Full("float32")}, shards=2,
    )  # fmt: skip

    def batches(ranges: Any) -> Any:
        for first, stop in ranges:
            ids = torch.tensor(IDS[first:stop])
            yield Batch(ids, torch.zeros_like(ids), torch.zeros(len(ids), 1))

    def teacher(batch: Batch) -> dict[str, torch.Tensor]:
        return {"logits": torch.sin(batch.ids[:, None] + torch.arange(3.0))}

    record_part(teacher, batches, Path(folder), manifest, IDS, part=part)
    return Path(folder)


def damage(folder: Path) -> None:
    path = folder / "shards/000001/logits.npy"
    content = bytearray(path.read_bytes())
    content[200] ^= 1
    path.write_bytes(bytes(content))


def test_inspect(invoke: Callable[..., Any]) -> None:
    recorded("store")
    text = invoke("store", "inspect", "store").stdout
    for part in ("store: finished", "4,096 samples", "2 of 2 shards", "full float32", "teacher model: Net"):
        assert part in text
    found = json.loads(invoke("store", "inspect", "store", "--json").stdout)
    assert found["signals"]["logits"]["bytes_per_record"] == 12
    assert found["bytes"] == sum(
        path.stat().st_size for path in Path("store").rglob("*") if path.is_file() and path.name[0] != "."
    )
    recorded("begun", (1, 2))
    text = invoke("store", "inspect", "begun").stdout
    assert "begun: unfinished" in text
    assert "1 of 2 shards; missing: 0" in text


def test_verify(invoke: Callable[..., Any]) -> None:
    folder = recorded("store")
    result = invoke("store", "verify", "store")
    assert (result.exit_code, "every byte is right" in result.stdout) == (0, True)
    damage(folder)
    result = invoke("store", "verify", "store")
    assert result.exit_code == 1
    assert "damaged: rows 2048 to 4095 of 'logits' in shards/000001 do not have their checksum" in result.stdout
    result = invoke("store", "verify", "store", "--json")
    assert (result.exit_code, len(json.loads(result.stdout)["damage"])) == (1, 1)
    assert invoke("store", "verify", "store", "--quiet").stdout == ""


def test_merge(invoke: Callable[..., Any]) -> None:
    recorded("part-1", (0, 2))
    result = invoke("store", "merge", "all", "part-1")
    assert (result.exit_code, "missing: 1" in result.stdout) == (0, True)
    recorded("part-2", (1, 2))
    result = invoke("store", "merge", "all", "part-1", "part-2", "--move", "--verify")
    assert (result.exit_code, "all is finished" in result.stdout) == (0, True)
    assert not Path("part-2/shards/000001/logits.npy").exists()
    found = json.loads(invoke("store", "merge", "all", "part-1", "--json").stdout)
    assert (found["finished"], found["present"], found["missing"]) == (True, [0, 1], [])
    recorded("other", data="e" * 64)
    result = invoke("store", "merge", "all", "other")
    assert (result.exit_code, "data: recorded" in result.stderr) == (1, True)


def test_convert_and_export(invoke: Callable[..., Any]) -> None:
    recorded("store")
    result = invoke("store", "convert", "store", "half", "--codec", "float16")
    assert (result.exit_code, "half: logits in full float16, 0.0246 MB" in result.stdout) == (0, True)
    assert open_store(Path("half")).manifest.signals["logits"].codec == Full("float16")
    result = invoke("store", "convert", "half", "top", "--codec", '{"codec": "top_k", "k": 2}')
    assert (result.exit_code, "top_k k=2 bits=8 (from full)" in result.stdout) == (0, True)
    for codec, part in (("float64", "must be one of float32"), ("{", "no JSON"), ("float32", "would pretend")):
        result = invoke("store", "convert", "half", "new", "--codec", codec)
        assert (result.exit_code, part in result.stderr) == (2, True)
    assert invoke("store", "export", "top", "top.parquet", "--quiet").stdout == ""
    assert parquet.read_metadata("top.parquet").num_rows == 4096
    assert invoke("store", "export", "top", "top.csv").exit_code == 2


def test_import(invoke: Callable[..., Any]) -> None:
    Path("top.jsonl").write_text('{"top_ids": [[1, 2]], "top_logprobs": [[-0.5, -1.5]]}\n')
    result = invoke("store", "import", "top.jsonl", "new", "--classes", "9")
    assert (result.exit_code, "top_k k=2 bits=8" in result.stdout) == (0, True)
    assert invoke("store", "import", "top.jsonl", "new").exit_code == 2
    Path("bad.jsonl").write_text('{"top_ids": [[1, 2]], "top_logprobs": [[-0.5]]}\n')
    result = invoke("store", "import", "bad.jsonl", "bad", "--classes", "9")
    assert (result.exit_code, "bad.jsonl, row 0, column 'top_logprobs'" in result.stderr) == (1, True)
    np.savez("logits.npz", logits=np.eye(3))
    assert invoke("store", "import", "logits.npz", "arrays", "--codec", "float32", "--quiet").exit_code == 0


def test_push_and_addresses(invoke: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("POTSTILL_CACHE", str(tmp_path / "cache"))
    recorded("store")
    url = f"file://{tmp_path}/remote"
    result = invoke("store", "push", "store", url)
    assert (result.exit_code, "2 shards sent, 0 were there; finished" in result.stdout) == (0, True)
    assert f"{url}: finished" in invoke("store", "inspect", url).stdout
    assert list((tmp_path / "cache").rglob("logits.npy")) == []
    assert invoke("store", "verify", url).exit_code == 0
    assert invoke("store", "push", "store", "nowhere").exit_code == 2


@pytest.mark.parametrize("command", ["inspect", "verify"])
def test_no_store(invoke: Callable[..., Any], command: str) -> None:
    result = invoke("store", command, "nowhere")
    assert (result.exit_code, "There is no store of teacher signals in nowhere" in result.stderr) == (1, True)
