"""A store as Parquet, read back by pyarrow alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as arrow
import pyarrow.parquet as parquet
import pytest
import torch

from potstill.core.errors import PotstillError, UsageError
from potstill.core.signals import Batch, Ragged
from potstill.store import Store, describe, record
from potstill.store import export as export_module
from potstill.store.codecs import Full, TopK
from potstill.store.export import export

IDS = np.array([5, 3, 9, 4])
TEXTS = {5: "", 3: "ä🙂", 9: "abc", 4: "x"}
CODECS = {"top": TopK(2), "tops": TopK(2), "text": Full("uint8"), "tokens": Full("int32"), "grid": Full("float32")}
SHAPES = {"top": (6,), "tops": (6,), "text": (), "tokens": (), "grid": (2, 2), "value": (), "states": (3,)}


def logits_of(sample: int) -> np.ndarray:
    return np.random.default_rng(sample).normal(size=6).astype(np.float32) * 3


def stored(folder: Path, text: bytes | None = None) -> Store:
    manifest = describe(
        ids=IDS, data="d", teacher={"model": "t"}, shapes=SHAPES, codecs=CODECS,
        sequences=["tops", "text", "tokens", "states"], views=2, augmentation={"flip": True},
    )  # fmt: skip

    def teacher(batch: Batch) -> dict[str, Any]:
        ids = batch.ids.tolist()
        lengths = batch.ids % 3
        repeated = torch.repeat_interleave(batch.ids, lengths)
        texts = [TEXTS[sample].encode() if text is None else text for sample in ids]
        return {
            "top": torch.tensor(np.stack([logits_of(sample) for sample in ids])),
            "tops": Ragged(torch.tensor(np.array([logits_of(int(s)) for s in repeated]).reshape(-1, 6)), lengths),
            "text": Ragged(
                torch.tensor(list(b"".join(texts)), dtype=torch.uint8), torch.tensor([len(t) for t in texts])
            ),
            "tokens": Ragged(repeated * 1000, lengths),
            "grid": batch.ids[:, None, None] + torch.tensor([[0.0, 0.25], [0.5, 0.75]]),
            "value": batch.views * 0.5,
            "states": Ragged(repeated[:, None] * torch.tensor([1.0, 2.0, 3.0]), lengths),
        }

    def batches(ranges: Any) -> Any:
        for first, stop in ranges:
            view, place = np.divmod(np.arange(first, stop), 4)
            yield Batch(torch.tensor(IDS[place]), torch.tensor(view), torch.zeros(len(view), 1))

    return record(teacher, batches, folder, manifest, IDS)


@pytest.mark.parametrize("rows", [2048, 3, 1])
def test_every_kind_of_signal(tmp_path: Path, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export_module, "_MOST_ROWS", rows)
    store = stored(tmp_path / "store")
    assert export(store.folder, tmp_path / "all.parquet") == 8
    table = parquet.read_table(tmp_path / "all.parquet")
    assert parquet.ParquetFile(tmp_path / "all.parquet").num_row_groups == -(-8 // rows)
    assert table.column_names == ["id", "view", *sorted(SHAPES)]
    assert table["id"].to_pylist() == [*IDS, *IDS]
    assert table["view"].to_pylist() == [0] * 4 + [1] * 4
    assert table["text"].to_pylist() == [TEXTS[sample] for sample in IDS] * 2
    assert table["tokens"].to_pylist() == [[sample * 1000] * (sample % 3) for sample in IDS.tolist()] * 2
    assert table["grid"].to_pylist()[1] == [3, 3.25, 3.5, 3.75]
    assert table["value"].to_pylist() == [0.0] * 4 + [0.5] * 4
    assert table["states"].to_pylist()[0] == [[5, 10, 15]] * 2
    assert table.schema.field("grid").type == arrow.list_(arrow.float32(), 4)
    assert json.loads(table.schema.field("grid").metadata[b"shape"]) == [2, 2]
    assert json.loads(table.schema.metadata[b"potstill"])["data"] == "d"
    for sample, pairs, many in zip(IDS.tolist(), table["top"].to_pylist(), table["tops"].to_pylist(), strict=False):
        probabilities = np.exp(logits_of(sample)) / np.exp(logits_of(sample)).sum()
        assert [pair["id"] for pair in pairs] == sorted(np.argsort(-probabilities)[:2].tolist())
        for pair in pairs:
            assert pair["probability"] == pytest.approx(probabilities[pair["id"]], rel=0.02)
        assert many == [pairs] * (sample % 3)


def test_some_signals(tmp_path: Path) -> None:
    store = stored(tmp_path / "store")
    export(store.folder, tmp_path / "some.parquet", signals=["value", "top"])
    assert parquet.read_schema(tmp_path / "some.parquet").names == ["id", "view", "top", "value"]
    with pytest.raises(UsageError, match="no signal 'valu'"):
        export(store.folder, tmp_path / "some.parquet", signals=["valu"])


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    store = stored(tmp_path / "store", text=b"\xff")
    with pytest.raises(PotstillError, match="'text' of id 5 is no text"):
        export(store.folder, tmp_path / "all.parquet")
    assert not (tmp_path / "all.parquet").exists()
    assert list(tmp_path.glob(".all*")) == []
