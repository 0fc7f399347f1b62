"""The guide's page on the store: its NumPy lines are run, its layout is the real one."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

PAGE = Path(__file__).parents[2] / "docs" / "guide" / "store.md"


def lines_of_python() -> str:
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert len(blocks) == 1
    return blocks[0]


def test_a_stranger_reads_the_store(work: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    work.record()
    monkeypatch.chdir(work.folder.parent)
    names: dict[str, Any] = {}
    exec(lines_of_python(), names)
    assert "potstill" not in lines_of_python().replace('"potstill-store"', "")
    assert names["views"].shape == (3, 20, 3)
    assert names["block"]["block"] == 7
    for view in range(3):
        expected = (work.ids[:, None] % 50) + 0.25 * view + 100.0 * np.arange(3)[None]
        np.testing.assert_array_equal(names["views"][view], expected)


def test_a_stranger_notices_damage(work: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    work.record()
    with work.path("logits").open("r+b") as file:
        file.seek(100)
        file.write(b"\xff")
    monkeypatch.chdir(work.folder.parent)
    with pytest.raises(AssertionError):
        exec(lines_of_python(), {})


def test_every_key_is_described(work: Any) -> None:
    work.record()
    manifest = json.loads((work.folder / "manifest.json").read_text())
    assert len(manifest) == 11
    described = set(re.findall(r"`(\w+)`", "".join(re.findall(r"^\| (`.*?) \|", PAGE.read_text(), flags=re.MULTILINE))))
    assert described == set(manifest)


def test_the_sum_on_the_page() -> None:
    from potstill.store import estimate

    assert estimate(50_000, 10, {"logits": (100,)}) == 100_000_000
