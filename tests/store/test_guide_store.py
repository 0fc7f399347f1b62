"""The guide's page on the store: its NumPy lines are run, its layout is the real one."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from potstill.core.signals import Batch, Ragged
from potstill.store import describe, record
from potstill.store.codecs import Full

PAGE = Path(__file__).parents[2] / "docs" / "guide" / "store.md"


def lines_of_python() -> str:
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert len(blocks) == 1
    assert len(blocks[0].splitlines()) <= 42
    return str(blocks[0])


def test_a_stranger_reads_the_store(work: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    work.record()
    monkeypatch.chdir(work.folder.parent)
    names: dict[str, Any] = {}
    exec(lines_of_python(), names)
    assert "potstill" not in lines_of_python()
    for view in range(3):
        for number, sample in enumerate(work.ids):
            expected = (sample % 50) + 0.25 * view + 100.0 * np.arange(3)
            np.testing.assert_array_equal(names["read"]("logits", view, number), expected)


def test_a_stranger_reads_sequences(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ids, texts = np.arange(1000), ["", "ä", "long text"]
    manifest = describe(
        ids=ids, data="d", teacher={"model": "t"}, shapes={"text": (), "states": (2,)},
        codecs={"text": Full("uint8")}, sequences=["text", "states"], shards=3,
    )  # fmt: skip

    def batches(ranges: Any) -> Any:
        for first, stop in ranges:
            yield Batch(torch.arange(first, stop), torch.zeros(stop - first, dtype=torch.int64), torch.zeros(0))

    def teacher(batch: Batch) -> dict[str, Any]:
        said = [texts[sample % 3].encode() for sample in batch.ids.tolist()]
        repeated = torch.repeat_interleave(batch.ids, batch.ids % 4)
        return {
            "text": Ragged(
                torch.tensor(list(b"".join(said)), dtype=torch.uint8), torch.tensor([len(one) for one in said])
            ),
            "states": Ragged(repeated[:, None] * torch.tensor([1.0, 0.5]), batch.ids % 4),
        }

    record(teacher, batches, tmp_path / "store", manifest, ids)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(lines_of_python(), names)
    for number in (0, 1, 2, 3, 499, 767, 768, 999):
        assert bytes(names["read"]("text", 0, number)).decode() == texts[number % 3]
        assert names["read"]("states", 0, number).tolist() == [[number, number / 2]] * (number % 4)


def test_a_stranger_notices_damage(work: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    work.record()
    with work.path("logits").open("r+b") as file:
        file.seek(150)
        file.write(b"\xff")
    monkeypatch.chdir(work.folder.parent)
    with pytest.raises(AssertionError):
        exec(lines_of_python(), {})


def test_every_key_is_described(work: Any) -> None:
    work.record()
    manifest = json.loads((work.folder / "manifest.json").read_text())
    assert len(manifest) == 17
    described = set(re.findall(r"`(\w+)`", "".join(re.findall(r"^\| (`.*?) \|", PAGE.read_text(), flags=re.MULTILINE))))
    assert described == set(manifest)
    row = next(line for line in PAGE.read_text().splitlines() if line.startswith("| `signals`"))
    assert set(manifest["signals"]["logits"]) | {"head", "converted_from"} <= set(re.findall(r"`(\w+)`", row))


def test_the_journal_on_the_page(work: Any) -> None:
    work.record()
    lines = [json.loads(line) for line in work.journal(2).read_text().splitlines()]
    shown = [json.loads(text) for text in re.findall(r"(\{\"finished\".*?\}|\{\"block\".*\})", PAGE.read_text())]
    assert [set(line) for line in (lines[-2], lines[-1])] == [set(line) for line in shown]
    assert (lines[-2]["block"], lines[-2]["rows"], lines[-1]["finished"]) == (7, [56, 60], shown[1]["finished"])


def test_the_sum_on_the_page() -> None:
    from potstill.store import estimate

    assert estimate(50_000, 10, {"logits": (100,)}) == 100_000_000
