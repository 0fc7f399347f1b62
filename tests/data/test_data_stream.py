"""Batches: complete, repeatable, cut the same way for every process, the same from worker processes."""

from __future__ import annotations

import pickle
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from potstill.core import random
from potstill.core.errors import DataError, UsageError
from potstill.data import Stream, make_samples
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
    found = list(Stream(samples).epoch(2, 16, order=3))
    assert [len(batch) for batch in found] == [16, 16, 16, 2]
    assert len(found) == len(Stream(samples).sizes(16))
    ids = torch.cat([batch.ids for batch in found]).numpy()
    np.testing.assert_array_equal(ids, 1000 + random.permutation(50, 3, 2))
    assert sorted(ids) == list(range(1000, 1050))
    for batch in found:
        rows = batch.ids.numpy() - 1000
        assert batch.inputs.dtype == torch.uint8
        assert torch.equal(batch.inputs, samples.fetch(rows))
        np.testing.assert_array_equal(batch.targets, samples.targets[rows])
        assert (batch.views == 0).all()
    assert not same(found, list(Stream(samples).epoch(3, 16, order=3)))


def test_without_shuffle_rows_come_in_order():
    ids = torch.cat([batch.ids for batch in Stream(split()).epoch(0, 16, order=None)])
    np.testing.assert_array_equal(ids, np.arange(1000, 1050))


@pytest.mark.parametrize(
    ("count", "size", "order", "expected"),
    [
        (33, 16, 0, [16, 17]),
        (33, 16, None, [16, 16, 1]),
        (32, 16, 0, [16, 16]),
        (5, 16, 0, [5]),
        (1, 16, 0, [1]),
        (3, 1, 0, [1, 1, 1]),
        (0, 4, 0, []),
    ],
)
def test_sizes_of_batches(count, size, order, expected):
    assert [len(batch) for batch in Stream(split(count)).epoch(0, size, order=order)] == expected
    assert order is None or Stream(split(count)).sizes(size) == expected


def test_start_and_stop_skip_without_loading():
    samples, asked = split(), []

    def counting(rows):
        asked.append(len(rows))
        return samples.fetch(rows)

    counted = make_samples(samples.ids, samples.targets, counting, digests=samples.digests)
    whole = list(Stream(samples).epoch(0, 8, order=1))
    found = list(Stream(counted).epoch(0, 8, order=1, start=2, stop=5))
    assert same(found, whole[2:5])
    assert asked == [8, 8, 8]
    assert list(Stream(samples).epoch(0, 8, order=0, start=7)) == []
    assert list(Stream(samples).epoch(0, 8, order=0, start=9)) == []


@pytest.mark.parametrize("parts", [2, 3, 5])
def test_parts_put_together_are_the_global_batches(parts):
    stream = Stream(split(), Settings(), seed=1, num_classes=4)
    whole = list(stream.epoch(0, 16, order=1))
    slices = [list(stream.epoch(0, 16, order=1, part=(k, parts))) for k in range(parts)]
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
        return next(Stream(samples, num_classes=4, **options).epoch(epoch, 8, order=0)).views.unique().tolist()

    assert [seen(epoch, views=3, augment=Settings()) for epoch in range(5)] == [[0], [1], [2], [0], [1]]
    assert [seen(epoch, augment=Settings()) for epoch in range(3)] == [[0], [1], [2]]
    assert [seen(epoch, views=3) for epoch in range(3)] == [[0], [0], [0]]
    assert [seen(epoch, views=3, augment=OFF) for epoch in range(3)] == [[0], [0], [0]]


def test_training_sees_the_pixels_that_were_recorded():
    stream = Stream(split(), Settings(), seed=5, views=2, num_classes=4)
    recorded = {}
    for batch in stream.recording(7):
        for id_, view, pixels, target in zip(batch.ids, batch.views, batch.inputs, batch.targets, strict=True):
            recorded[int(id_), int(view)] = (pixels, target)
    assert len(recorded) == 100
    for epoch in range(4):
        for batch in stream.epoch(epoch, 16, order=5):
            for id_, view, pixels, target in zip(batch.ids, batch.views, batch.inputs, batch.targets, strict=True):
                known = recorded[int(id_), int(view)]
                assert torch.equal(pixels, known[0])
                assert torch.equal(target, known[1])


def test_recording_goes_view_by_view_in_row_order():
    stream = Stream(split(5), Settings(), views=2, num_classes=4)
    found = list(stream.recording(4))
    assert [batch.ids.tolist() for batch in found] == [[1000, 1001, 1002, 1003], [1004, 1000, 1001, 1002], [1003, 1004]]
    assert [batch.views.tolist() for batch in found] == [[0, 0, 0, 0], [0, 1, 1, 1], [1, 1]]
    merged = list(stream.recording(4, ranges=[(4, 8), (8, 9), (9, 10)]))
    assert same(merged[:1], found[1:2])
    assert [(batch.ids.tolist(), batch.views.tolist()) for batch in merged[1:]] == [([1003], [1]), ([1004], [1])]
    with pytest.raises(UsageError, match="there are 5"):
        Stream(split(5)).recording(4, ranges=[(3, 6)])


@pytest.mark.parametrize("augment", [None, Settings()])
def test_workers_give_the_same_batches_and_leave_the_random_state_alone(augment):
    stream = Stream(split(), augment, seed=2, num_classes=4)
    before = torch.get_rng_state()
    alone, together = (list(stream.epoch(1, 12, order=2, start=1, workers=workers)) for workers in (0, 2))
    assert len(together) == 4
    assert same(alone, together)
    assert torch.equal(torch.get_rng_state(), before)


def _broken(rows):
    raise DataError("cat.png cannot be read")


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_sample_has_one_clear_error(workers):
    samples = make_samples(np.arange(4), np.arange(4), _broken, digests=np.arange(4, dtype=np.uint64))
    with pytest.raises(DataError, match=r"^cat.png cannot be read$"):
        list(Stream(samples).epoch(0, 2, order=0, workers=workers))


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
        (lambda: Stream(samples).epoch(0, 0, order=0), "batch_size=0"),
        (lambda: Stream(samples).epoch(0, 4, order=0, part=(2, 2)), r"part=\(2, 2\)"),
        (lambda: Stream(samples, views=0), "views=0"),
        (lambda: Stream(samples).epoch(0, 4, order=0, workers=-1), "workers=-1"),
        (lambda: Stream(samples, views=2).recording(4), "augment is off"),
        (lambda: Stream(vectors, Settings()).epoch(0, 4, order=0), "need images"),
    ]:
        with pytest.raises(UsageError, match=text):
            call()
