"""Signals whose samples have different numbers of items: tokens, bytes of text."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from potstill.core.errors import PotstillError, TeacherError
from potstill.core.random import key
from potstill.core.signals import Batch, Ragged
from potstill.store import Manifest, Store, describe, open_store, record
from potstill.store.codecs import Full, RandomSampling, ThresholdSampling, TopK

VOCABULARY = 40
TEXTS = ["", "a", "zwölf Boxkämpfer", "日本", "x" * 300, "emoji 🙂"]


def length_of(sample: int, view: int) -> int:
    """0 for some, 1 for others, up to 9."""
    return (sample * 7 + view * 3) % 10 if sample % 4 else 0


def logits_of(sample: int, view: int) -> np.ndarray:
    generator = np.random.default_rng([sample, view])
    return (3 * generator.normal(size=(length_of(sample, view), VOCABULARY))).astype(np.float16).astype(np.float32)


def hidden_of(sample: int, view: int) -> np.ndarray:
    return logits_of(sample, view)[:, :6].reshape(-1, 2, 3)


def tokens_of(sample: int, view: int) -> np.ndarray:
    return np.arange(length_of(sample, view)) * 1_000_000 - sample


def text_of(sample: int) -> str:
    return TEXTS[sample % len(TEXTS)]


CODECS = {
    "half": Full("float16"),
    "hidden": Full("float32"),
    "top": TopK(5),
    "drawn": RandomSampling(20),
    "threshold": ThresholdSampling(6),
    "tokens": Full("int32"),
    "text": Full("uint8"),
}
SHAPES: dict[str, tuple[int, ...]] = {
    "half": (VOCABULARY,), "hidden": (2, 3), "top": (VOCABULARY,), "drawn": (VOCABULARY,), "threshold": (VOCABULARY,),
    "tokens": (), "text": (), "whole": (2,),
}  # fmt: skip


def ragged(parts: list[np.ndarray]) -> Ragged:
    return Ragged(torch.from_numpy(np.concatenate(parts)), torch.tensor([len(part) for part in parts]))


@dataclass
class Texts:
    folder: Path
    ids: np.ndarray
    manifest: Manifest
    batch_size: int = 5
    shorter: bool = False
    asked: list[int] = field(default_factory=list)

    def teacher(self, batch: Batch) -> dict[str, Any]:
        pairs = list(zip(batch.ids.tolist(), batch.views.tolist(), strict=True))
        self.asked += batch.ids.tolist()
        logits = ragged([logits_of(*pair) for pair in pairs])
        texts = [text_of(sample)[: 1 if self.shorter else None].encode() for sample, _ in pairs]
        return {
            **dict.fromkeys(("half", "top", "drawn", "threshold"), logits),
            "hidden": ragged([hidden_of(*pair) for pair in pairs]),
            "tokens": ragged([tokens_of(*pair) for pair in pairs]),
            "text": ragged([np.frombuffer(text, np.uint8).copy() for text in texts]),
            "whole": batch.ids[:, None] * torch.tensor([1.0, 0.5]),
        }

    def batches(self, ranges: Sequence[tuple[int, int]]) -> Iterator[Batch]:
        for first, stop in ranges:
            for low in range(first, stop, self.batch_size):
                view, place = np.divmod(np.arange(low, min(low + self.batch_size, stop)), len(self.ids))
                yield Batch(torch.tensor(self.ids[place]), torch.tensor(view), torch.zeros(len(view), 1))

    def record(self) -> Store:
        return record(self.teacher, self.batches, self.folder, self.manifest, self.ids)

    def contents(self) -> dict[str, bytes]:
        files = [path for path in self.folder.rglob("*") if path.is_file() and path.name[0] != "."]
        return {str(path.relative_to(self.folder)): path.read_bytes() for path in files}


def make(folder: Path, names: Sequence[str] = tuple(SHAPES), samples: int = 30) -> Texts:
    ids = np.random.default_rng(2).permutation(200)[:samples].astype(np.int64)
    manifest = describe(
        ids=ids,
        data="d" * 64,
        teacher={"model": "Texts"},
        shapes={name: SHAPES[name] for name in names},
        codecs={name: CODECS[name] for name in names if name in CODECS},
        sequences=[name for name in names if name != "whole"],
        views=2,
        augmentation={"noise": 1},
        seed=4,
    )
    return Texts(folder, ids, replace(manifest, rows_per_block=8, blocks_per_shard=3))


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Texts:
    texts = make(tmp_path_factory.mktemp("sequences") / "store")
    texts.record()
    return texts


def pairs_of(texts: Texts) -> list[tuple[int, int]]:
    return [(int(sample), view) for view in range(2) for sample in texts.ids]


def asked_for(pairs: list[tuple[int, int]]) -> tuple[torch.Tensor, torch.Tensor]:
    ids, views = np.array(pairs, np.int64).reshape(-1, 2).T
    return torch.tensor(ids), torch.tensor(views)


def test_the_example_has_every_kind_of_length(recorded: Texts) -> None:
    lengths = [length_of(*pair) for pair in pairs_of(recorded)]
    assert {0, 1, 9} <= set(lengths)
    assert recorded.manifest.num_shards == 3
    assert len(recorded.asked) == 60


@pytest.mark.parametrize("order", ["rows", "any", "repeats", "one", "none", "empty"])
def test_what_is_recorded_comes_back(recorded: Texts, order: str) -> None:
    store = open_store(recorded.folder, recorded.manifest)
    pairs = pairs_of(recorded)
    mixed = [pairs[place] for place in np.random.default_rng(1).permutation(len(pairs))]
    chosen = {
        "rows": pairs, "any": mixed, "repeats": mixed[:7] * 3, "one": mixed[:1], "none": [],
        "empty": [pair for pair in mixed if length_of(*pair) == 0],
    }[order]  # fmt: skip
    lengths = [length_of(*pair) for pair in chosen]
    ids, views = asked_for(chosen)
    for name, known in (("half", logits_of), ("hidden", hidden_of), ("tokens", tokens_of)):
        read = store.read(name, ids, views)
        assert isinstance(read, Ragged)
        assert read.lengths.tolist() == lengths
        assert read.values.dtype == (torch.int32 if name == "tokens" else torch.float32)
        assert tuple(read.values.shape) == (sum(lengths), *SHAPES[name])
        if sum(lengths):
            np.testing.assert_array_equal(read.values.numpy(), np.concatenate([known(*pair) for pair in chosen]))
    assert store.read_text("text", ids, views) == [text_of(sample) for sample, _ in chosen]
    whole = store.read("whole", ids, views)
    np.testing.assert_array_equal(whole.numpy(), ids.numpy()[:, None] * np.array([1.0, 0.5]))


@pytest.mark.parametrize("name", ["top", "drawn", "threshold"])
def test_records_of_tokens_are_those_of_the_codec(recorded: Texts, name: str) -> None:
    store = open_store(recorded.folder)
    pairs = pairs_of(recorded)[::-3]
    ids, views = asked_for(pairs)
    sparse, lengths = store.read_sparse(name, ids, views)
    assert lengths is not None
    assert lengths.tolist() == [length_of(*pair) for pair in pairs]
    logits = np.concatenate([logits_of(*pair) for pair in pairs])
    places = [(sample, view, place) for sample, view in pairs for place in range(length_of(sample, view))]
    keys = key(4, *np.array(places).T)
    records = CODECS[name].encode(logits, keys)
    expected = CODECS[name].decode_sparse(records, (VOCABULARY,))
    torch.testing.assert_close(sparse.dense(), expected.dense(), rtol=0, atol=0)
    dense = store.read(name, ids, views)
    assert isinstance(dense, Ragged)
    torch.testing.assert_close(dense.values, expected.dense(), rtol=0, atol=0)


def test_random_batches_over_shards(recorded: Texts) -> None:
    store = open_store(recorded.folder)
    pairs = pairs_of(recorded)
    generator = np.random.default_rng(3)
    for _ in range(20):
        chosen = [pairs[place] for place in generator.integers(len(pairs), size=9)]
        read = store.read("half", *asked_for(chosen))
        assert isinstance(read, Ragged)
        np.testing.assert_array_equal(read.values.numpy(), np.concatenate([logits_of(*pair) for pair in chosen]))


def test_the_same_bytes_whatever_the_batches(recorded: Texts, tmp_path: Path) -> None:
    other = make(tmp_path / "store")
    other.batch_size = 3
    other.record()
    assert len(recorded.contents()) == 58
    assert other.contents() == recorded.contents()


def test_a_store_of_empty_texts(tmp_path: Path) -> None:
    texts = make(tmp_path / "store", ["text", "half"], samples=4)
    texts.ids = np.array([0, 12, 24, 48])
    manifest = describe(
        ids=texts.ids, data="d", teacher={"model": "t"}, shapes={"text": (), "half": (VOCABULARY,)},
        codecs={"text": Full("uint8")}, sequences=["text", "half"],
    )  # fmt: skip
    texts.manifest = manifest
    store = texts.record()
    store.verify()
    ids = torch.tensor(texts.ids)
    assert store.read_text("text", ids, torch.zeros_like(ids)) == ["", "", "", ""]
    read = store.read("half", ids, torch.zeros_like(ids))
    assert isinstance(read, Ragged)
    assert read.values.shape == (0, VOCABULARY)


def test_damage_in_any_column_is_found_and_repaired(recorded: Texts, tmp_path: Path) -> None:
    texts = make(tmp_path / "store")
    shutil.copytree(recorded.folder, texts.folder)
    good = texts.contents()
    columns = [name for name in good if name.startswith("shards/000001") and name.endswith(".npy")]
    assert len(columns) == 17
    generator = np.random.default_rng(0)
    for name in columns:
        path, content = texts.folder / name, bytearray(good[name])
        content[int(generator.integers(128, len(content)))] ^= 4
        path.write_bytes(bytes(content))
        signal = Path(name).name.split(".")[0]
        with pytest.raises(PotstillError, match=rf"rows \d+ to \d+ of '{signal}' do not have the checksum"):
            open_store(texts.folder).verify()
        texts.asked.clear()
        texts.record().verify()
        assert len(texts.asked) == 8
        assert texts.contents() == good


def test_a_file_torn_at_any_byte_costs_unfinished_blocks_only(recorded: Texts, tmp_path: Path) -> None:
    texts = make(tmp_path / "store")
    shutil.copytree(recorded.folder, texts.folder)
    good = texts.contents()
    columns = [name for name in good if name.startswith("shards/000002") and name.endswith(".npy")]
    generator = np.random.default_rng(1)
    for number in range(5):
        name = columns[number % len(columns)]
        (texts.folder / "manifest.json").rename(texts.folder / "manifest.partial.json")
        (texts.folder / name).write_bytes(good[name][: int(generator.integers(len(good[name])))])
        texts.asked.clear()
        texts.record().verify()
        assert len(texts.asked) <= 12
        assert texts.contents() == good


def test_a_repaired_block_of_another_length_takes_the_rest_of_the_shard_along(tmp_path: Path) -> None:
    texts = make(tmp_path / "store", ["text", "half"])
    texts.record()
    before = texts.contents()
    path = texts.folder / "shards/000001/text.npy"
    content = bytearray(path.read_bytes())
    content[130] ^= 1
    path.write_bytes(bytes(content))
    texts.shorter = True
    texts.asked.clear()
    store = texts.record()
    store.verify()
    assert len(texts.asked) == 8 + 24  # the block again, to find that it does not fit, and then the whole shard
    after = texts.contents()
    changed = {Path(name).parts[1] for name in after if after[name] != before.get(name)}
    assert changed == {"000001"}
    pairs = pairs_of(texts)
    expected = [text_of(sample)[: 1 if 24 <= row < 48 else None] for row, (sample, _) in enumerate(pairs)]
    assert store.read_text("text", *asked_for(pairs)) == expected


@pytest.mark.parametrize(
    ("signal", "part"),
    [
        (torch.zeros(5, 40), "plain tensor of shape .* expects samples with different numbers of items"),
        (Ragged(torch.zeros(3, 40), torch.tensor([1, 1, 1, 1, 1])), r"shape \(3, 40\)"),
        (Ragged(torch.zeros(2, 40), torch.tensor([1, 1])), "for a batch of 5"),
        (Ragged(torch.full((5, 40), torch.nan), torch.ones(5, dtype=torch.int64)), "'half' of id .* holds nan"),
    ],
)
def test_sequences_that_do_not_fit(tmp_path: Path, signal: Any, part: str) -> None:
    texts = make(tmp_path / "store", ["half"])
    with pytest.raises(TeacherError, match=part):
        record(lambda _: {"half": signal}, texts.batches, texts.folder, texts.manifest, texts.ids)


def test_a_sequence_where_one_record_is_expected(tmp_path: Path) -> None:
    texts = make(tmp_path / "store", ["whole"])
    answer = {"whole": Ragged(torch.zeros(5, 2), torch.ones(5, dtype=torch.int64))}
    with pytest.raises(TeacherError, match="has items; the store expects one record a sample"):
        record(lambda _: answer, texts.batches, texts.folder, texts.manifest, texts.ids)


def test_the_token_that_cannot_be_kept_is_named_by_its_sample(tmp_path: Path) -> None:
    texts = make(tmp_path / "store", ["half", "top"])
    culprit = int(next(sample for sample in texts.ids if length_of(int(sample), 0) > 3))

    def teacher(batch: Batch) -> dict[str, Any]:
        answers = texts.teacher(batch)
        values = answers["top"].values.clone()
        start = 0
        for sample, length in zip(batch.ids.tolist(), answers["top"].lengths.tolist(), strict=True):
            if sample == culprit:
                values[start + 2] = torch.inf
            start += length
        return {**answers, "top": Ragged(values, answers["top"].lengths)}

    with pytest.raises(TeacherError, match=f"'top' of id {culprit}, view 0 has a logit"):
        record(teacher, texts.batches, texts.folder, texts.manifest, texts.ids)
