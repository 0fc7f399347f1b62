"""Batches: complete, repeatable, cut the same way for every process, the same from worker processes."""

from __future__ import annotations

import pickle
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from potstill.core import random
from potstill.core.errors import DataError, UsageError
from potstill.data import batches, make_samples, num_batches, record_batches
from potstill.data.samples import Rows


@dataclass(frozen=True)
class Settings:
    crop: int = 2
    flip: bool = True
    rotate: float = 0.0
    colour: float = 0.0
    erase: float = 0.0
    mixup: float = 0.4
    cutmix: float = 0.0


OFF = Settings(crop=0, flip=False, mixup=0.0)


def split(count: int = 50):
    pixels = np.random.default_rng(0).integers(0, 256, (count, 3, 8, 8), dtype=np.uint8)
    return make_samples(1000 + np.arange(count), np.arange(count) % 4, Rows(torch.from_numpy(pixels)))


def same(first, second) -> bool:
    pairs = zip(first, second, strict=True)
    return all(
        torch.equal(getattr(a, name), getattr(b, name))
        for a, b in pairs
        for name in ("ids", "views", "inputs", "targets")
    )


def test_an_epoch_has_every_sample_once_in_a_seeded_order():
    samples = split()
    found = list(batches(samples, batch_size=16, seed=3, epoch=2))
    assert [len(batch) for batch in found] == [16, 16, 16, 2]
    assert len(found) == num_batches(50, 16)
    ids = torch.cat([batch.ids for batch in found]).numpy()
    np.testing.assert_array_equal(ids, 1000 + random.permutation(50, 3, 2))
    assert sorted(ids) == list(range(1000, 1050))
    for batch in found:
        rows = batch.ids.numpy() - 1000
        assert batch.inputs.dtype == torch.uint8
        assert torch.equal(batch.inputs, samples.fetch(rows))
        np.testing.assert_array_equal(batch.targets, samples.targets[rows])
        assert (batch.views == 0).all()
    assert not same(found, list(batches(samples, batch_size=16, seed=3, epoch=3)))


def test_without_shuffle_rows_come_in_order():
    ids = torch.cat([batch.ids for batch in batches(split(), batch_size=16, shuffle=False)])
    np.testing.assert_array_equal(ids, np.arange(1000, 1050))


@pytest.mark.parametrize(
    ("count", "size", "shuffle", "drop_last", "expected"),
    [
        (33, 16, True, False, [16, 17]),
        (33, 16, False, False, [16, 16, 1]),
        (33, 16, True, True, [16, 16]),
        (32, 16, True, True, [16, 16]),
        (5, 16, True, True, [5]),
        (1, 16, True, False, [1]),
        (3, 1, True, False, [1, 1, 1]),
        (0, 4, True, False, []),
    ],
)
def test_sizes_of_batches(count, size, shuffle, drop_last, expected):
    found = list(batches(split(count), batch_size=size, shuffle=shuffle, drop_last=drop_last))
    assert [len(batch) for batch in found] == expected
    assert num_batches(count, size, shuffle=shuffle, drop_last=drop_last) == len(expected)


def test_start_and_stop_skip_without_loading():
    samples, asked = split(), []

    def counting(rows):
        asked.append(len(rows))
        return samples.fetch(rows)

    counted = make_samples(samples.ids, samples.targets, counting, digests=samples.digests)
    whole = list(batches(samples, batch_size=8, seed=1))
    found = list(batches(counted, batch_size=8, seed=1, start=2, stop=5))
    assert same(found, whole[2:5])
    assert asked == [8, 8, 8]
    assert list(batches(samples, batch_size=8, start=7)) == []
    assert list(batches(samples, batch_size=8, start=9)) == []


@pytest.mark.parametrize("parts", [2, 3, 5])
def test_parts_put_together_are_the_global_batches(parts):
    samples = split()
    whole = list(batches(samples, batch_size=16, seed=1, augment=Settings(), num_classes=4))
    slices = [
        list(batches(samples, batch_size=16, seed=1, augment=Settings(), num_classes=4, part=(k, parts)))
        for k in range(parts)
    ]
    assert len(slices) == parts
    for number, batch in enumerate(whole):
        pieces = [part[number] for part in slices]
        assert torch.equal(torch.cat([piece.ids for piece in pieces]), batch.ids)
        assert torch.equal(torch.cat([piece.inputs for piece in pieces]), batch.inputs)
        assert torch.equal(torch.cat([piece.targets for piece in pieces]), batch.targets)
        assert max(map(len, pieces)) - min(map(len, pieces)) <= 1


def test_views_go_round():
    samples = split(8)

    def seen(epoch, **options):
        return next(iter(batches(samples, batch_size=8, epoch=epoch, num_classes=4, **options))).views.unique().tolist()

    assert [seen(epoch, views=3, augment=Settings()) for epoch in range(5)] == [[0], [1], [2], [0], [1]]
    assert [seen(epoch, augment=Settings()) for epoch in range(3)] == [[0], [1], [2]]
    assert [seen(epoch, views=3) for epoch in range(3)] == [[0], [0], [0]]
    assert [seen(epoch, views=3, augment=OFF) for epoch in range(3)] == [[0], [0], [0]]


def test_training_sees_the_pixels_that_were_recorded():
    samples, settings = split(), Settings()
    recorded = {}
    for batch in record_batches(samples, batch_size=7, views=2, augment=settings, seed=5, num_classes=4):
        for id_, view, pixels, target in zip(batch.ids, batch.views, batch.inputs, batch.targets, strict=True):
            recorded[int(id_), int(view)] = (pixels, target)
    assert len(recorded) == 100
    for epoch in range(4):
        for batch in batches(samples, batch_size=16, seed=5, epoch=epoch, views=2, augment=settings, num_classes=4):
            for id_, view, pixels, target in zip(batch.ids, batch.views, batch.inputs, batch.targets, strict=True):
                known = recorded[int(id_), int(view)]
                assert torch.equal(pixels, known[0])
                assert torch.equal(target, known[1])


def test_recording_goes_view_by_view_in_row_order():
    found = list(record_batches(split(5), batch_size=4, views=2, augment=Settings(), num_classes=4))
    assert [batch.ids.tolist() for batch in found] == [[1000, 1001, 1002, 1003], [1004, 1000, 1001, 1002], [1003, 1004]]
    assert [batch.views.tolist() for batch in found] == [[0, 0, 0, 0], [0, 1, 1, 1], [1, 1]]
    later = record_batches(
        split(5), batch_size=4, views=2, augment=Settings(), num_classes=4, ranges=[(4, 8), (8, 9), (9, 10)]
    )
    merged = list(later)
    assert same(merged[:1], found[1:2])
    assert [(batch.ids.tolist(), batch.views.tolist()) for batch in merged[1:]] == [([1003], [1]), ([1004], [1])]
    with pytest.raises(UsageError, match="there are 5"):
        record_batches(split(5), batch_size=4, ranges=[(3, 6)])


@pytest.mark.parametrize("augment", [None, Settings()])
def test_workers_give_the_same_batches_and_leave_the_random_state_alone(augment):
    samples = split()
    options = {"batch_size": 12, "seed": 2, "epoch": 1, "augment": augment, "num_classes": 4, "start": 1}
    before = torch.get_rng_state()
    alone, together = list(batches(samples, **options)), list(batches(samples, **options, workers=2))
    assert len(together) == 4
    assert same(alone, together)
    assert torch.equal(torch.get_rng_state(), before)


def _broken(rows):
    raise DataError("cat.png cannot be read")


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_sample_has_one_clear_error(workers):
    samples = make_samples(np.arange(4), np.arange(4), _broken, digests=np.arange(4, dtype=np.uint64))
    with pytest.raises(DataError, match=r"^cat.png cannot be read$"):
        list(batches(samples, batch_size=2, workers=workers))


def test_samples_can_be_pickled_and_taken_from():
    samples = split()
    part = samples.take(np.array([4, 2, 9])).take(np.array([2, 0]))
    assert part.ids.tolist() == [1009, 1004]
    copy = pickle.loads(pickle.dumps(part))
    assert torch.equal(copy.fetch(np.array([0, 1])), samples.fetch(np.array([9, 4])))
    assert copy.fingerprint == part.fingerprint != samples.fingerprint
    direct = make_samples(part.ids, part.targets, Rows(samples.fetch(np.array([9, 4]))))
    assert direct.fingerprint == part.fingerprint
    changed = samples.fetch(np.array([9, 4]))
    changed[0, 0, 0, 0] += 1
    assert make_samples(part.ids, part.targets, Rows(changed)).fingerprint != part.fingerprint


def test_impossible_requests_are_refused_before_loading():
    samples = split()
    vectors = make_samples(np.arange(4), np.arange(4), Rows(torch.rand(4, 3)))
    for call, text in [
        (lambda: batches(samples, batch_size=0), "batch_size=0"),
        (lambda: batches(samples, batch_size=4, part=(2, 2)), r"part=\(2, 2\)"),
        (lambda: batches(samples, batch_size=4, views=0), "views=0"),
        (lambda: batches(samples, batch_size=4, workers=-1), "workers=-1"),
        (lambda: record_batches(samples, batch_size=4, views=2), "augment is off"),
        (lambda: batches(vectors, batch_size=4, augment=Settings()), "need images"),
    ]:
        with pytest.raises(UsageError, match=text):
            call()
