"""A stored teacher cannot be told from the live one it recorded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from potstill.core.errors import TeacherError
from potstill.core.signals import Batch
from potstill.models.preprocess import Preprocessor
from potstill.store import Manifest, Store, open_store, record
from potstill.teachers import LiveTeacher, Model, StoredTeacher, describe_recording

IDS = np.random.default_rng(0).permutation(300)[:30]
INPUTS = torch.from_numpy(np.random.default_rng(1).normal(size=(300, 2, 6)).astype(np.float32))


def batch_of(ids: np.ndarray, views: np.ndarray) -> Batch:
    return Batch(torch.tensor(ids), torch.tensor(views), INPUTS[ids, views])


def batches(ranges: Sequence[tuple[int, int]] = ((0, 60),)) -> Iterator[Batch]:
    for first, stop in ranges:
        for low in range(first, stop, 8):
            view, place = np.divmod(np.arange(low, min(low + 8, stop)), 30)
            yield batch_of(IDS[place], view)


def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 4))


def live(model: nn.Module | None = None, **options: Any) -> LiveTeacher:
    return LiveTeacher(model or network(), preprocess=Preprocessor(), taps={"mid": "2"}, **options)


def manifest_of(teacher: LiveTeacher, **changes: Any) -> Manifest:
    options = {"ids": IDS, "data": "d" * 64, "views": 2, "augmentation": {"flip": True}, "dtype": "float32"} | changes
    return describe_recording(teacher, next(batches()), **options)


def recorded(folder: Path, **changes: Any) -> Store:
    teacher = live()
    return record(teacher, batches, folder, manifest_of(teacher, **changes), IDS)


def test_the_same_answers_as_live(tmp_path: Path) -> None:
    stored: Model = StoredTeacher(recorded(tmp_path / "store"))
    teacher = live()
    assert isinstance(stored, Model)
    assert stored.facts.signals == teacher.facts.signals == {"logits", "mid"}
    order = np.random.default_rng(2).permutation(60)[:17]
    batch = batch_of(IDS[order % 30], order // 30)
    for name, values in teacher(batch).items():
        answer = stored(batch)[name]
        assert answer.dtype == torch.float32
        assert not answer.is_inference()
        assert not answer.requires_grad
        torch.testing.assert_close(answer, values, rtol=1e-6, atol=1e-6)


def test_half_precision_is_close(tmp_path: Path) -> None:
    stored = StoredTeacher(recorded(tmp_path / "store", dtype="float16"))
    batch = batch_of(IDS, np.zeros(30, dtype=np.int64))
    torch.testing.assert_close(stored(batch)["logits"], live()(batch)["logits"], rtol=2**-11, atol=1e-6)


def test_students_train_equally_on_both(tmp_path: Path) -> None:
    weights = []
    for teacher in (live(), StoredTeacher(recorded(tmp_path / "store"))):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            student = nn.Linear(6, 4)
        optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
        for batch in batches():
            loss = (student(batch.inputs) - teacher(batch)["logits"]).square().sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        weights.append(student.weight.detach())
    torch.testing.assert_close(*weights, rtol=1e-5, atol=1e-6)


def test_only_the_signals_asked_for(tmp_path: Path) -> None:
    store = recorded(tmp_path / "store")
    stored = StoredTeacher(store, ["mid"])
    assert stored.facts.signals == {"mid"}
    assert set(stored(next(batches()))) == {"mid"}
    with pytest.raises(TeacherError, match=r"no signal 'mit'\. Did you mean 'mid'"):
        StoredTeacher(store, ["mit"])


def test_an_unknown_key_is_named(tmp_path: Path) -> None:
    stored = StoredTeacher(recorded(tmp_path / "store"))
    stranger = int(np.setdiff1d(np.arange(300), IDS)[0])
    with pytest.raises(TeacherError, match=f"id {stranger}, view 1 was not recorded"):
        stored(batch_of(np.array([IDS[0], stranger]), np.array([0, 1])))


def test_another_teacher_is_refused_in_words(tmp_path: Path) -> None:
    folder = tmp_path / "store"
    recorded(folder)
    model = network()
    with torch.no_grad():
        model[4].bias += 0.1
    changed = LiveTeacher(
        model, preprocess=Preprocessor(torch.zeros(6), torch.ones(6)), taps={"mid": "1"}, precision="bfloat16"
    )
    with pytest.raises(TeacherError) as caught:
        open_store(folder, manifest_of(changed))
    told = [line.strip() for line in str(caught.value).splitlines()[1:-1]]
    old, new = live().parts["weights"], changed.parts["weights"]
    assert told == [
        f"teacher weights: recorded {old[:8]}…, now {new[:8]}…",
        "teacher preprocessing mean: recorded none, now [0.0, 0.0, 0.0, 0.0, 0.0, 0.0]",
        "teacher preprocessing std: recorded none, now [1.0, 1.0, 1.0, 1.0, 1.0, 1.0]",
        "teacher precision: recorded float32, now bfloat16",
        "signal 'mid' source: recorded 2, now 1",
    ]


def test_the_fingerprint_is_that_of_the_recording(tmp_path: Path) -> None:
    store = recorded(tmp_path / "one")
    other = recorded(tmp_path / "two", dtype="float16")
    assert StoredTeacher(store).fingerprint == manifest_of(live()).fingerprint != StoredTeacher(other).fingerprint
