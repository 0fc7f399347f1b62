"""The manifest: what a store belongs to, and what changed, in words."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from potstill.core.errors import PotstillError, UsageError
from potstill.store import describe, differences
from potstill.store.codecs import Full
from potstill.store.manifest import from_json, to_json

BASE = {
    "ids": np.arange(10),
    "data": "ab12" * 16,
    "teacher": {"model": "Net", "weights": "3fa1bbbb" * 8, "preprocessing": {"size": 32, "mean": [0.5, 0.25]}},
    "shapes": {"logits": (3,)},
    "views": 2,
    "augmentation": {"crop": 4, "flip": False},
    "seed": 1,
}


def test_reads_back_what_was_written() -> None:
    manifest = describe(**BASE)
    assert from_json(json.loads(json.dumps(to_json(manifest))), Path("m.json")) == manifest


def test_sizes_by_hand() -> None:
    manifest = describe(**BASE | {"shapes": {"logits": (3,), "map": (4, 2, 2)}})
    assert manifest.num_rows == 20
    assert manifest.num_bytes == 20 * (3 + 16) * 2
    assert describe(**BASE | {"dtype": "float32"}).num_bytes == 20 * 3 * 4
    assert replace(manifest, rows_per_block=8).num_blocks == 3
    assert [replace(manifest, rows_per_block=8).block_rows(block) for block in range(3)] == [(0, 8), (8, 16), (16, 20)]
    assert describe(**BASE | {"shapes": {"map": (3_000_000,)}}).rows_per_block == 1


def test_ids_fingerprint_is_sha256_of_dtype_shape_and_bytes() -> None:
    expected = hashlib.sha256(b"<i8(10,)" + np.arange(10, dtype="<i8").tobytes()).hexdigest()
    assert describe(**BASE).ids == expected


SIGNAL = {"file": "x", "shape": [3], "codec": {"codec": "full", "dtype": "float16"}, "per": "sample", "source": ""}

CHANGES = [
    ({"teacher": BASE["teacher"] | {"weights": "77bcdddd" * 8}}, "teacher weights: recorded 3fa1bbbb…, now 77bcdddd…"),
    ({"teacher": BASE["teacher"] | {"model": "Other"}}, "teacher model: recorded Net, now Other"),
    (
        {"teacher": BASE["teacher"] | {"preprocessing": {"size": 28, "mean": [0.5, 0.25]}}},
        "teacher preprocessing size: recorded 32, now 28",
    ),
    (
        {"teacher": BASE["teacher"] | {"preprocessing": {"size": 32, "mean": None}}},
        "teacher preprocessing mean: recorded [0.5, 0.25], now none",
    ),
    ({"data": "cd34" * 16}, "data: recorded ab12ab12…, now cd34cd34…"),
    ({"augmentation": {"crop": 2}}, "augmentation crop: recorded 4, now 2"),
    ({"augmentation": {"crop": 4, "flip": True}}, "augmentation flip: recorded none, now true"),
    ({"seed": 2}, "augmentation seed: recorded 1, now 2"),
    ({"views": 3}, "views: recorded 2, now 3"),
    ({"dtype": "float32"}, "signal 'logits' dtype: recorded float16, now float32"),
    ({"shapes": {"logits": (4,)}}, "signal 'logits' shape: recorded [3], now [4]"),
    ({"sources": {"logits": "head"}}, "signal 'logits' source: recorded output, now head"),
    ({"shapes": {"logits": (3,), "mid": (8,)}}, "signal 'mid': not recorded, only logits"),
    ({"codecs": {"logits": Full("int8")}}, "signal 'logits' dtype: recorded float16, now int8"),
    ({"sequences": ["logits"]}, "signal 'logits' per: recorded sample, now item"),
]


@pytest.mark.parametrize(("change", "sentence"), CHANGES)
def test_one_change_is_one_sentence(change: dict, sentence: str) -> None:
    recorded, wanted = describe(**BASE), describe(**BASE | change)
    assert differences(recorded, wanted) == [sentence]
    assert recorded.fingerprint != wanted.fingerprint


def test_changes_are_complete() -> None:
    changed = {key for change, _ in CHANGES for key in change}
    assert changed == {
        "teacher",
        "data",
        "augmentation",
        "seed",
        "views",
        "dtype",
        "shapes",
        "sources",
        "codecs",
        "sequences",
    }


def test_other_ids_are_told() -> None:
    other = describe(**BASE | {"ids": np.arange(11)})
    assert [line.split(":")[0] for line in differences(describe(**BASE), other)] == ["sample ids", "number of samples"]


def test_what_does_not_matter() -> None:
    recorded = describe(**BASE)
    assert differences(recorded, replace(recorded, potstill="9.9", rows_per_block=1)) == []
    assert replace(recorded, potstill="9.9", rows_per_block=1).fingerprint == recorded.fingerprint
    off = describe(**BASE | {"augmentation": {"crop": 0, "flip": False}, "seed": 1, "views": 1})
    assert differences(off, describe(**BASE | {"augmentation": None, "seed": 2, "views": 1})) == []


def test_more_than_wanted_serves_unless_exact() -> None:
    rich = describe(**BASE | {"views": 4, "shapes": {"logits": (3,), "mid": (8,)}})
    assert differences(rich, describe(**BASE)) == []
    assert differences(rich, describe(**BASE), exact=True) == [
        "views: recorded 4, now 2",
        "signal 'mid': recorded, now none",
    ]


def test_file_names_are_safe_and_different() -> None:
    names = ["a/b", "a_b", "A_B", "..", "../../etc/passwd", "x" * 300]
    files = [spec.file for spec in describe(**BASE | {"shapes": dict.fromkeys(names, (1,))}).signals.values()]
    assert len(files) == 6
    assert len({file.lower() for file in files}) == 6
    assert all(Path(file).name == file and not file.startswith(".") and len(file) < 130 for file in files)


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"ids": np.arange(0)}, "0 samples"),
        ({"shapes": {}}, "0 signals"),
        ({"views": 0}, "0 views"),
        ({"dtype": "int8"}, "int8"),
        ({"shapes": {"logits": (0,)}}, "nothing to store"),
    ],
)
def test_impossible_stores_are_refused(change: dict, part: str) -> None:
    with pytest.raises(UsageError, match=part):
        describe(**BASE | change)


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"format": "zip"}, "does not describe a store"),
        ({"version": 1}, "format 1"),
        ({"version": 3}, "format 3"),
        ({"views": "many"}, "damaged"),
        ({"num_samples": 0}, "no rows"),
        ({"signals": {"logits": SIGNAL | {"file": "../x"}}}, "damaged"),
        ({"signals": {"logits": SIGNAL | {"codec": {"codec": "zip"}}}}, "no codec 'zip'"),
        ({"signals": {"logits": SIGNAL | {"per": "word"}}}, "damaged"),
        ({"data": "changed"}, "its checksum is wrong"),
        ({"signals": {"logits": {"file": "x"}}}, "damaged"),
    ],
)  # fmt: skip
def test_manifests_that_cannot_be_read(change: dict, part: str) -> None:
    with pytest.raises(PotstillError, match=part):
        from_json(to_json(describe(**BASE)) | change, Path("store/manifest.json"))
