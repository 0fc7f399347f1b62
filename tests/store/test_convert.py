"""Converted stores are those that recording with the new codec would have made, or say what they went through."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from potstill.core.errors import TeacherError, UsageError
from potstill.core.signals import Ragged
from potstill.store import Store, describe, differences, open_store, record
from potstill.store.codecs import Codec, Full, RandomSampling, ThresholdSampling, TopK
from potstill.store.convert import convert

CLASSES = 30
IDS = np.arange(40, 10, -1)


INT8 = Full("int8")


def wanted(logits: Codec, hidden: Codec = INT8, **changes: Any) -> Any:
    return describe(
        ids=IDS,
        data="d",
        teacher={"model": "t"},
        shapes={"logits": (CLASSES,), "hidden": (3,)},
        codecs={"logits": logits, "hidden": hidden},
        sequences=["logits"],
        views=2,
        augmentation={"flip": True},
        **{"seed": 3, **changes},
    )


def recorded(folder: Path, manifest: Any) -> Store:
    from potstill.core.signals import Batch

    def batches(ranges: Any) -> Any:
        for first, stop in ranges:
            view, place = np.divmod(np.arange(first, stop), len(IDS))
            yield Batch(torch.tensor(IDS[place]), torch.tensor(view), torch.zeros(len(view), 1))

    def teacher(batch: Any) -> Any:
        parts = [
            np.random.default_rng([int(sample), int(view)]).normal(size=(int(sample) % 3, CLASSES)) * 4
            for sample, view in zip(batch.ids, batch.views, strict=True)
        ]
        logits = Ragged(torch.tensor(np.concatenate(parts)).float(), torch.tensor([len(part) for part in parts]))
        return {"logits": logits, "hidden": torch.sin(batch.ids[:, None] * torch.tensor([0.1, 0.2, 0.3]))}

    return record(teacher, batches, folder, manifest, IDS)


def contents(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file() and path.name[0] != "."]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.mark.parametrize(
    "codec", [Full("float16"), Full("bfloat16"), Full("int8"), TopK(4, 6), RandomSampling(9), ThresholdSampling(5)],
    ids=lambda codec: str(codec.to_json()["codec"]) + str(codec.to_json().get("dtype", "")),
)  # fmt: skip
def test_from_float32_it_is_what_recording_makes(codec: Codec, tmp_path: Path) -> None:
    recorded(tmp_path / "full", wanted(Full("float32")))
    converted = convert(tmp_path / "full", tmp_path / "converted", {"logits": codec})
    recorded(tmp_path / "direct", wanted(codec))
    assert len(contents(tmp_path / "direct")) >= 8
    assert contents(tmp_path / "converted") == contents(tmp_path / "direct")
    assert differences(converted.manifest, wanted(codec), exact=True) == []
    converted.verify()


def test_what_was_lost_before_is_told(tmp_path: Path) -> None:
    recorded(tmp_path / "half", wanted(Full("float16")))
    top = convert(tmp_path / "half", tmp_path / "top", {"logits": TopK(6, 8)})
    assert top.manifest.signals["logits"].converted_from == {"codec": "full", "dtype": "float16"}
    assert top.manifest.signals["hidden"].converted_from is None
    open_store(tmp_path / "top", wanted(TopK(6, 8)))  # the teacher's store is asked for, and this one serves
    assert differences(top.manifest, wanted(TopK(6, 8)), exact=True) == [
        'signal \'logits\' converted from: recorded {"codec": "full", "dtype": "float16"}, now none'
    ]
    assert top.manifest.fingerprint != wanted(TopK(6, 8)).fingerprint
    smaller = convert(tmp_path / "top", tmp_path / "smaller", {"logits": TopK(3, 8)})
    assert smaller.manifest.signals["logits"].converted_from == {
        "codec": "top_k", "k": 6, "bits": 8, "before": {"codec": "full", "dtype": "float16"},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("old", "new", "part"),
    [
        (Full("float16"), Full("float32"), "float32 would pretend digits"),
        (Full("bfloat16"), Full("float16"), "float16 would pretend digits"),
        (TopK(4), Full("float16"), "nothing that says more"),
        (TopK(4), TopK(5), "nothing that says more"),
        (TopK(4), ThresholdSampling(4), "nothing that says more"),
        (RandomSampling(5), TopK(3), "which are samples: nothing else can be made"),
        (ThresholdSampling(5), ThresholdSampling(4), "which are samples"),
        (Full("float16"), Full("int32"), "are no integers"),
        (Full("float16"), TopK(31), "keeps more classes than the 30"),
        (TopK(4), TopK(4), "nothing to convert"),
    ],
)
def test_nothing_pretends(old: Codec, new: Codec, part: str, tmp_path: Path) -> None:
    recorded(tmp_path / "old", wanted(old))
    with pytest.raises(UsageError, match=part):
        convert(tmp_path / "old", tmp_path / "new", {"logits": new})
    assert not (tmp_path / "new").exists()


def test_other_mistakes(tmp_path: Path) -> None:
    recorded(tmp_path / "old", wanted(Full("float16")))
    with pytest.raises(UsageError, match=r"has no signal 'logit'\. Did you mean 'logits'"):
        convert(tmp_path / "old", tmp_path / "new", {"logit": Full("int8")})
    with pytest.raises(UsageError, match="is the store itself"):
        convert(tmp_path / "old", tmp_path / "old", {"logits": Full("int8")})
    with pytest.raises(TeacherError, match="no store"):
        convert(tmp_path / "nowhere", tmp_path / "new", {"logits": Full("int8")})


def test_an_interrupted_conversion_is_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = recorded(tmp_path / "full", wanted(Full("float32")))
    real: Callable[..., Any] = Store.gather

    def gather(self: Any, *args: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Store, "gather", gather)
        with pytest.raises(KeyboardInterrupt):
            convert(store.folder, tmp_path / "half", {"logits": Full("float16")})
    assert real is Store.gather
    convert(store.folder, tmp_path / "half", {"logits": Full("float16")}).verify()
