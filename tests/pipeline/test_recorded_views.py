"""What the store says of a view is what the teacher says of exactly the pixels that the student is given."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch

from potstill.core.signals import Batch
from potstill.data import Stream, load
from potstill.models import Preprocessor, build
from potstill.recipe.schema import Augment
from potstill.store import record
from potstill.teachers import LiveTeacher, StoredTeacher, describe_recording

SETTINGS = [
    Augment(crop=1, flip=True, rotate=10),
    Augment(crop=1, mixup=0.4),
    Augment(flip=True, cutmix=1.0, erase=0.5),
]


@pytest.mark.parametrize("settings", SETTINGS)
def test_recorded_logits_belong_to_the_pixels_of_every_epoch_and_order(settings: Augment, tmp_path: Path) -> None:
    train = load("digits").train.take(slice(0, 150))
    teacher = LiveTeacher(build("cnn", {"in_channels": 1, "width": 4}), preprocess=Preprocessor())

    def seen_with(seed: int) -> Stream:
        return Stream(train, settings, seed, views=3, num_classes=10)

    def recorded(ranges: Sequence[tuple[int, int]] | None = None) -> Iterator[Batch]:
        return seen_with(11).recording(64, ranges=ranges)

    manifest = describe_recording(
        teacher,
        next(recorded()),
        ids=train.ids,
        data=train.fingerprint,
        dtype="float32",
        views=3,
        augmentation=settings.model_dump(),
        seed=11,
    )
    stored = StoredTeacher(record(teacher, recorded, tmp_path / "store", manifest, train.ids))
    seen = set()
    for epoch in range(4):
        for batch in seen_with(11).epoch(epoch, 32, order=5):
            torch.testing.assert_close(stored(batch)["logits"], teacher(batch)["logits"], rtol=1e-4, atol=1e-4)
            seen |= set(zip(batch.ids.tolist(), batch.views.tolist(), strict=True))
    assert len(seen) == 150 * 3
    # Other pixels have other logits: the comparison above can fail.
    other = next(seen_with(12).epoch(0, 32, order=5))
    assert not torch.allclose(stored(other)["logits"], teacher(other)["logits"], rtol=1e-4, atol=1e-4)
