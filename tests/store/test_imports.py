"""Files in which other tools keep the likeliest tokens become stores, and mistakes in them are named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as arrow
import pyarrow.parquet as parquet
import pytest
import torch

from potstill.core.errors import DataError, UsageError
from potstill.core.signals import Ragged
from potstill.store import Store
from potstill.store.codecs import Full, TopK
from potstill.store.imports import Columns, import_arrays, import_top_k

CLASSES = 50
# Two texts: three tokens (one with fewer entries, one whose chosen token is far from the likeliest), and none.
ITEMS: list[list[dict[int, float]]] = [
    [{7: -0.2, 3: -2.0, 49: -4.0}, {0: -0.001, 1: -9.0}, {5: -1.0, 6: -1.5, 20: -14.0}],
    [],
    [{2: -0.5, 4: -1.25}],
]


def lines(file: Path, rows: list[Any]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def two_columns(items: list[dict[int, float]]) -> dict[str, Any]:
    return {
        "target_token_ids": [list(item) for item in items],
        "target_logprobs": [list(item.values()) for item in items],
        "input_ids": [10 + place for place in range(len(items) + 1)],
    }


def tables(items: list[dict[int, float]]) -> dict[str, Any]:
    return {"prompt_logprobs": [None, *({str(key): value for key, value in item.items()} for item in items)]}


def nested(items: list[dict[int, float]]) -> dict[str, Any]:
    found = [{str(key): {"logprob": value, "rank": 1} for key, value in item.items()} for item in items]
    return {"prompt_logprobs": found}


def served(items: list[dict[int, float]]) -> dict[str, Any]:
    content = [
        {"top_logprobs": [{"token": f"token_id:{key}", "logprob": value} for key, value in item.items()]}
        for item in items
    ]
    return {"logprobs": {"content": content}}


def lists(items: list[dict[int, float]]) -> dict[str, Any]:
    return {
        "logprobs": [[{"token": f"token_id:{key}", "logprob": value} for key, value in item.items()] for item in items]
    }


def check(store: Store) -> None:
    store.verify()
    ids = torch.tensor(store.ids.copy())
    sparse, lengths = store.read_sparse("logits", ids, torch.zeros_like(ids))
    assert lengths is not None
    assert lengths.tolist() == [3, 0, 1]
    items = [item for row in ITEMS for item in row]
    for found, kept, known in zip(sparse.ids, sparse.probabilities, items, strict=True):
        assert {int(key) for key in found[kept > 0]} == set(known)
        reach = max(known.values()) - min(known.values())
        for key, value in zip(found[kept > 0].tolist(), kept[kept > 0].log().tolist(), strict=True):
            assert value == pytest.approx(known[key], abs=reach / 254 + 2e-3)
        assert float(kept.sum()) == pytest.approx(sum(np.exp(list(known.values()))), abs=1e-5)


@pytest.mark.parametrize("shape", [two_columns, tables, nested, served, lists], ids=lambda shape: shape.__name__)
def test_lines_of_every_shape(shape: Any, tmp_path: Path) -> None:
    file = lines(tmp_path / "top.jsonl", [shape(items) for items in ITEMS])
    store = import_top_k(file, tmp_path / "store", num_classes=CLASSES)
    assert store.manifest.signals["logits"].codec == TopK(3, 8)
    check(store)
    before = store.manifest
    assert import_top_k(file, tmp_path / "store", num_classes=CLASSES).manifest == before  # nothing to do


def test_parquet_in_several_groups(tmp_path: Path) -> None:
    rows = [{**two_columns(items), "id": 90 - number} for number, items in enumerate(ITEMS)]
    parquet.write_table(arrow.Table.from_pylist(rows), tmp_path / "top.parquet", row_group_size=2)
    store = import_top_k(tmp_path / "top.parquet", tmp_path / "store", num_classes=CLASSES)
    assert store.ids.tolist() == [90, 89, 88]
    check(store)
    tokens = store.read("tokens", torch.tensor([88, 90]), torch.tensor([0, 0]))
    assert isinstance(tokens, Ragged)
    assert tokens.values.tolist() == [10, 11, 10, 11, 12, 13]


def test_one_list_a_sample_and_probabilities(tmp_path: Path) -> None:
    rows = [{"classes": [4, 2], "p": [0.5, 0.25]}, {"classes": [1], "p": [1.0]}]
    file = lines(tmp_path / "top.jsonl", rows)
    columns = Columns("p", "classes")
    store = import_top_k(file, tmp_path / "store", num_classes=5, columns=columns, probabilities=True, bits=12)
    read = store.read("logits", torch.tensor([0, 1]), torch.tensor([0, 0]))
    assert isinstance(read, torch.Tensor)
    torch.testing.assert_close(read[0].exp(), torch.tensor([1 / 12, 1 / 12, 0.25, 1 / 12, 0.5]), atol=1e-3, rtol=0)
    assert read[1].argmax() == 1


def test_fewer_classes_are_kept(tmp_path: Path) -> None:
    file = lines(tmp_path / "top.jsonl", [two_columns(ITEMS[0])])
    store = import_top_k(file, tmp_path / "store", num_classes=CLASSES, k=1)
    sparse, _ = store.read_sparse("logits", torch.tensor([0]), torch.tensor([0]))
    assert sparse.ids.tolist() == [[7], [0], [5]]


@pytest.mark.parametrize(
    ("row", "part"),
    [
        ({"target_token_ids": [[1]], "target_logprobs": [[0.5]]},
         "row 1, column 'target_logprobs': holds 0.5 for item 0"),
        ({"target_token_ids": [[50]], "target_logprobs": [[-1]]}, "column 'target_token_ids': names class 50 of 50"),
        ({"target_token_ids": [[1, 1]], "target_logprobs": [[-1, -1]]}, "names class 1 twice for item 0"),
        ({"target_token_ids": [[1]], "target_logprobs": [["x"]]}, "holds 'x' for item 0, expected a number"),
        ({"target_token_ids": [[1, 2]], "target_logprobs": [[-1]]}, "as many values as classes for item 0"),
        ({"target_token_ids": [[1], [2]], "target_logprobs": [[-1]]}, "has 1 items, 'target_token_ids' 2"),
        ({"target_token_ids": [[1], []], "target_logprobs": [[-1], []]}, "has nothing for item 1"),
        ({"target_token_ids": [[1, 2]], "target_logprobs": [[-0.01, -0.1]]}, "item 0 has probabilities that add up"),
        ({"target_token_ids": [["the"]], "target_logprobs": [[-1]]}, "names 'the' for item 0, expected a class id"),
        ({"target_token_ids": 3, "target_logprobs": [[-1]]}, "column 'target_token_ids': holds int, expected a list"),
        ({"other": 1}, "column 'target_token_ids': holds nothing"),
        ([1], "row 1: expected a JSON object"),
    ],
)  # fmt: skip
def test_mistakes_are_named(row: Any, part: str, tmp_path: Path) -> None:
    good = {"target_token_ids": [[1]], "target_logprobs": [[-1]]}
    file = lines(tmp_path / "top.jsonl", [good, row])
    with pytest.raises(DataError, match=f"{file}, row 1.*{part.removeprefix('row 1, ').removeprefix('row 1: ')}"):
        import_top_k(file, tmp_path / "store", num_classes=CLASSES)


def test_files_that_cannot_be_used(tmp_path: Path) -> None:
    def attempt(file: Path, **options: Any) -> Any:
        return lambda: import_top_k(file, tmp_path / "store", num_classes=CLASSES, **options)

    text = tmp_path / "broken.jsonl"
    text.write_text('{"a": 1}\n{"a": \n')
    packed = tmp_path / "packed.parquet"
    parquet.write_table(arrow.table({"bytepacked_indices": [[[1]]], "compressed_logprobs": [[[1]]]}), packed)
    bad = tmp_path / "bad.parquet"
    bad.write_bytes(b"no")
    empty = lines(tmp_path / "empty.jsonl", [])
    good = lines(tmp_path / "good.jsonl", [two_columns(ITEMS[0])])
    for call, kind, part in (
        (attempt(tmp_path / "nowhere.jsonl"), UsageError, "There is no file"),
        (attempt(text, columns=Columns("a")), DataError, "row 1: no JSON"),
        (attempt(text), UsageError, "name those of the log-probabilities with --column"),
        (attempt(packed), DataError, "is packed in a way that the file does not describe"),
        (attempt(bad), DataError, "cannot be read as a Parquet file"),
        (attempt(empty, columns=Columns("a")), UsageError, "has no column 'a'"),
        (attempt(good, columns=Columns("target_logprob")), UsageError, "no column 'target_logprob'"),
        (attempt(tmp_path / "good.jsonl", columns=Columns("target_logprobs", "target_token_ids", None, "input_ids")),
         DataError, "column 'input_ids': holds .* expected an integer"),
    ):  # fmt: skip
        with pytest.raises(kind, match=part):
            call()
    other = tmp_path / "top.csv"
    other.write_text("")
    with pytest.raises(UsageError, match=r"end in \.parquet, \.jsonl or \.npz"):
        import_top_k(other, tmp_path / "store", num_classes=5)


def test_arrays(tmp_path: Path) -> None:
    logits = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
    np.savez(tmp_path / "all.npz", logits=logits, ids=np.arange(6)[::-1], labels=np.zeros(6))
    store = import_arrays(tmp_path / "all.npz", tmp_path / "store", codec=Full("float32"))
    read = store.read("logits", torch.tensor([5, 0]), torch.tensor([0, 0]))
    assert isinstance(read, torch.Tensor)
    np.testing.assert_array_equal(read.numpy(), logits[[0, 5]])
    with pytest.raises(UsageError, match="name the one to import with --column"):
        import_arrays(tmp_path / "all.npz", tmp_path / "other", signal="scores")
    np.savez(tmp_path / "text.npz", logits=np.array(["a"]))
    with pytest.raises(DataError, match="Expected numbers"):
        import_arrays(tmp_path / "text.npz", tmp_path / "other")
    np.savez(tmp_path / "objects.npz", logits=np.array([{}], dtype=object))
    with pytest.raises(DataError, match=r"cannot be read as a \.npz file of plain numbers"):
        import_arrays(tmp_path / "objects.npz", tmp_path / "other")
