"""Few labels: which are hidden, what a pool may be, and batches with a fixed share of labelled samples."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from potstill.core.errors import DataError, UsageError
from potstill.data import Data, Stream, load
from potstill.data.few import Joined
from potstill.data.samples import Rows, make_samples

CROP = SimpleNamespace(crop=1, flip=False, rotate=0.0, colour=0.0, erase=0.0, mixup=0.0, cutmix=0.0)


def arrays(count: int = 120, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A half of the samples is of class 0, a third of class 1, a sixth of class 2."""
    inputs = np.random.default_rng(seed).normal(size=(count, 4)).astype(np.float32)
    return inputs, np.array([0, 0, 0, 1, 1, 2])[np.arange(count) % 6]


def few(labels: int = 12, **options) -> Data:
    return load(arrays(), num_labels=labels, **options)


def test_labels_are_hidden_from_students_alone_and_every_class_keeps_its_share() -> None:
    data, whole = few(12), load(arrays())
    assert data.train.labelled is not None
    assert data.train.num_labelled == 12
    assert np.bincount(data.train.targets[data.train.labelled]).tolist() == [6, 4, 2]
    assert (data.train.targets[~data.train.labelled] == -1).all()
    np.testing.assert_array_equal(data.train.ids, whole.train.ids)
    np.testing.assert_array_equal(data.for_teacher().train.targets, whole.train.targets)
    assert data.for_teacher().fingerprint == whole.fingerprint
    assert whole.for_teacher().fingerprint == whole.fingerprint
    assert data.fingerprint not in (whole.fingerprint, few(13).fingerprint)
    only = data.with_labels()
    np.testing.assert_array_equal(only.train.ids, data.train.ids[data.train.labelled])
    assert only.train.labelled is None
    assert only.every_label is None
    for name in ("validation", "test"):
        assert data.splits[name].fingerprint == whole.splits[name].fingerprint


def test_the_choice_is_seeded_and_does_not_depend_on_the_order_of_samples() -> None:
    inputs, targets = arrays()
    samples = {"inputs": inputs, "targets": targets, "ids": np.arange(120)}
    turned = {name: values[::-1] for name, values in samples.items()}
    first, again, other = (
        load(source, num_labels=12, seed=seed) for source, seed in ((samples, 1), (turned, 1), (samples, 2))
    )
    chosen = [set(data.train.ids[data.train.labelled].tolist()) for data in (first, again, other)]
    assert chosen[0] == chosen[1] != chosen[2]


@pytest.mark.parametrize(("labels", "counts"), [(3, [1, 1, 1]), (4, [2, 1, 1]), (84, [42, 28, 14]), (83, [42, 27, 14])])
def test_every_class_has_a_label_and_none_more_than_it_has(labels: int, counts: list[int]) -> None:
    data = few(labels)
    found = np.bincount(data.train.targets[data.train.labelled])
    assert found.sum() == labels
    assert np.abs(found - counts).max() <= 1


@pytest.mark.parametrize("labels", [2, 85])
def test_more_labels_than_there_are_or_fewer_than_classes_are_refused(labels: int) -> None:
    with pytest.raises(UsageError, match=rf"data.labels={labels}: students can see the labels of 3 .* to 84"):
        few(labels)


def test_it_is_said_how_many_labels_students_the_teacher_and_validation_have() -> None:
    (remark,) = [finding for finding in few(12).findings if finding.code == "few-labels"]
    assert remark.message == (
        "students see the labels of 12 of 84 training samples (2 to 6 of a class); what they learn of the others "
        "comes from the teacher. Checkpoints are chosen with the labels of 12 validation samples beside these. A "
        "teacher that is trained here sees the labels of 84."
    )
    assert "84 samples, 12 with a label" in repr(few(12))


# a pool


def test_a_pool_stands_beside_the_labelled_samples_whatever_holds_it(tmp_path: Path) -> None:
    pool, wrong = arrays(30, seed=1)
    np.savez(tmp_path / "pool.npz", inputs=pool)
    np.savez(tmp_path / "labelled.npz", inputs=pool, label=wrong + 7)
    columns = ("train.csv", arrays(), True), ("pool.csv", (pool, wrong), False)
    for name, (inputs, targets), labelled in columns:
        header = "a,b,c,d" + (",label" if labelled else "")
        rows = [
            ",".join([*map(repr, map(float, row)), *([str(t)] if labelled else [])])
            for row, t in zip(inputs, targets, strict=True)
        ]
        (tmp_path / name).write_text("\n".join([header, *rows]))
    sources = [pool, torch.from_numpy(pool), {"inputs": pool}, {"inputs": pool, "targets": wrong}, (pool, wrong)]
    found = [load(arrays(), unlabelled=source) for source in sources]
    found += [load(arrays(), unlabelled=name, base=tmp_path) for name in ("pool.npz", "labelled.npz")]
    found += [load("train.csv", unlabelled="pool.csv", base=tmp_path)]
    for data in found:
        train = data.train
        assert (len(train), train.num_labelled) == (84 + 30, 84)
        assert data.every_label is None
        assert data.for_teacher().train.fingerprint == data.with_labels().train.fingerprint
        np.testing.assert_allclose(train.fetch(np.array([85, 3, 84])).numpy()[[0, 2]], pool[[1, 0]], rtol=1e-6)
        np.testing.assert_array_equal(train.fetch(np.array([85, 3, 84]))[1], train.fetch(np.array([3]))[0])
        assert len(set(train.ids.tolist())) == len(train)
        assert train.targets[84:].tolist() == [-1] * 30
    assert found[-1].train.called(85) == "row 1 of pool.csv"
    assert found[-1].train.called(3).endswith("of train.csv")
    both = load(arrays(), unlabelled=pool, num_labels=12)
    assert (len(both.train), both.train.num_labelled, both.every_label.num_labelled) == (114, 12, 84)
    assert both.for_teacher().train.fingerprint == found[0].with_labels().train.fingerprint


def test_train_need_not_have_labels_where_students_see_none(tmp_path: Path) -> None:
    """A dictionary of splits, or three sources; labels that train has are not read, and classes are those of others."""
    (inputs, targets), (pool, _) = arrays(), arrays(30, seed=1)
    held = {"validation": (inputs[:60], targets[:60] * 2), "test": (inputs[60:], targets[60:] * 2)}
    found = [
        load({"train": pool, **held}, num_labels=0),
        load((pool, np.full(30, 7)), num_labels=0, **held),
        load(pool, num_labels=0, classes=["0", "2", "4"], **held),
        load(pool[:20], num_labels=0, unlabelled=pool[20:], **held),
    ]
    for data in found:
        assert (data.train.num_labelled, data.train.targets.tolist()) == (0, [-1] * 30)
        assert (data.classes, data.every_label) == (("0", "2", "4"), None)
        np.testing.assert_array_equal(data.train.fetch(np.arange(30)), pool)
        (remark,) = [finding.message for finding in data.findings if finding.code == "few-labels"]
        assert remark.startswith(
            "students see no label of 30 training samples; what they learn comes from the teacher."
        )
    hidden = load(arrays(), num_labels=0)  # without validation and test, they are made of train, by its labels
    assert (len(hidden.train), hidden.train.num_labelled, hidden.for_teacher().train.num_labelled) == (84, 0, 84)
    with pytest.raises(DataError, match="test: 20 samples are of classes that validation does not have: 9"):
        load(pool, num_labels=0, **{**held, "test": (inputs[:20], np.full(20, 9))})


def test_batches_without_any_label_are_those_of_a_plain_pass() -> None:
    none = replace(samples(), labelled=np.zeros(60, dtype=bool), targets=np.full(60, -1))
    assert Stream(none).labelled_in_batch(16) == 0
    plain, without = (list(Stream(one).epoch(1, 16, order=3)) for one in (replace(samples(), labelled=None), none))
    assert [batch.ids.tolist() for batch in plain] == [batch.ids.tolist() for batch in without]
    assert not any(batch.labelled.any() for batch in without)


def test_images_of_a_pool_may_lie_at_any_depth(tmp_path: Path) -> None:
    from PIL import Image

    random = np.random.default_rng(0)
    for folder, count in (("train/cat", 8), ("train/dog", 8), ("pool/test", 3), ("pool", 2)):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            Image.fromarray(random.integers(0, 255, (6, 6, 3), dtype=np.uint8)).save(
                tmp_path / folder / f"{number}.png"
            )
    data = load("train", unlabelled="pool", base=tmp_path, validation_fraction=0.25, test_fraction=0.25)
    assert data.classes == ("cat", "dog")
    assert (len(data.train) - data.train.num_labelled, data.train.called(len(data.train) - 1)) == (5, "pool/test/2.png")
    assert data.train.fetch(np.array([0, len(data.train) - 1])).shape == (2, 3, 6, 6)


def test_samples_of_the_pool_that_are_in_another_split_are_told() -> None:
    whole = load(arrays())
    pool = np.concatenate([whole.test.fetch(np.arange(2)).numpy(), whole.train.fetch(np.arange(3)).numpy()])
    shared = [one for one in load(arrays(), unlabelled=pool).findings if one.code == "shared-samples"]
    assert [(one.level, one.count) for one in shared] == [("info", 3), ("warning", 2)]
    assert "2 of 5 samples of data.unlabelled are also in test" in shared[1].message
    with pytest.raises(DataError, match=r"ids are in both train and data\.unlabelled"):
        load(
            {"inputs": arrays()[0], "targets": arrays()[1], "ids": np.arange(120)},
            unlabelled={"inputs": pool, "ids": np.arange(5)},
        )


def test_pools_that_do_not_fit_are_refused() -> None:
    inputs, targets = arrays()
    with pytest.raises(DataError, match="different shapes"):
        load((inputs, targets), unlabelled=inputs[:, :3])
    with pytest.raises(DataError, match="unlabelled: 1 of 5 samples cannot be used"):
        load((inputs, targets), unlabelled=np.where(np.arange(20).reshape(5, 4) == 7, np.nan, 1.0))
    with pytest.raises(UsageError, match="for task: classification"):
        load((inputs, targets * 1.5), unlabelled=inputs, task="regression")


def test_rows_of_two_fetches_come_in_the_order_asked_for() -> None:
    first, second = (Rows(torch.arange(start, start + 3.0)[:, None]) for start in (0, 3))
    joined = pickle.loads(pickle.dumps(Joined(first, second, 3)))
    for rows in ([5, 0, 3, 2], [1, 0], [4, 3], []):
        assert joined(np.array(rows, dtype=np.int64)).flatten().tolist() == rows


# batches


def samples(count: int = 60, labelled: int = 7):
    known = np.arange(count) % (count // labelled) == 0
    known[np.flatnonzero(known)[labelled:]] = False
    pixels = np.random.default_rng(0).integers(0, 256, (count, 1, 6, 6), dtype=np.uint8)
    return make_samples(np.arange(count), np.where(known, 1, -1), Rows(torch.from_numpy(pixels)), labelled=known)


@pytest.mark.parametrize(("size", "share"), [(16, 2), (8, 1), (4, 1), (2, 1), (60, 7)])
def test_every_batch_has_the_same_number_of_labelled_samples(size: int, share: int) -> None:
    """An epoch is one pass over the samples without a label; the others are gone through in turn."""
    stream, drawn = Stream(samples()), []
    assert stream.labelled_in_batch(size) == share
    for epoch in range(4):
        found = list(stream.epoch(epoch, size, order=5))
        assert [len(batch) for batch in found] == stream.sizes(size)
        assert all(int(batch.labelled.sum()) == share for batch in found)
        assert all((batch.targets == -1).tolist() == (~batch.labelled).tolist() for batch in found)
        pool = torch.cat([batch.ids[~batch.labelled] for batch in found])
        assert sorted(pool.tolist()) == np.flatnonzero(~samples().labelled).tolist()
        drawn += torch.cat([batch.ids[batch.labelled] for batch in found]).tolist()
    passes = [drawn[start : start + 7] for start in range(0, len(drawn) - 6, 7)]
    assert all(sorted(one) == np.flatnonzero(samples().labelled).tolist() for one in passes)
    assert len(passes) < 3 or len(set(map(tuple, passes))) > 1


@pytest.mark.parametrize(
    "stream", [Stream(samples()), Stream(samples().with_labels(), batches=5)], ids=["pool", "alone"]
)
def test_batches_do_not_depend_on_where_an_epoch_is_entered_or_who_takes_part(stream: Stream) -> None:
    whole = list(stream.epoch(3, 16, order=5))
    later = list(stream.epoch(3, 16, order=5, start=2))
    assert [batch.ids.tolist() for batch in whole[2:]] == [batch.ids.tolist() for batch in later]
    parts = [list(stream.epoch(3, 16, order=5, part=(index, 3), workers=index)) for index in range(3)]
    for number, batch in enumerate(whole):
        assert batch.ids.tolist() == [i for part in parts for i in part[number].ids.tolist()]
    assert [b.ids.tolist() for b in stream.epoch(4, 16, order=5)] != [b.ids.tolist() for b in whole]


def test_an_order_that_keeps_some_samples_has_as_many_batches_and_goes_through_them_again() -> None:
    kept = samples().labelled | (np.arange(60) % 3 == 1)
    stream, pool = Stream(samples(), batches=4, kept=kept), np.flatnonzero(kept & ~samples().labelled)
    drawn = [batch.ids[~batch.labelled] for epoch in range(5) for batch in stream.epoch(epoch, 16, order=2)]
    assert {len(ids) for ids in drawn} == {14}
    counts = np.bincount(torch.cat(drawn), minlength=60)
    assert (counts[pool].min(), counts[pool].max()) == (5 * 4 * 14 // len(pool), -(-5 * 4 * 14 // len(pool)))
    assert counts.sum() == counts[pool].sum()
    assert stream.every().ids.tolist() == np.flatnonzero(kept).tolist()


@pytest.mark.parametrize(("count", "labelled", "batches"), [(60, 58, 9), (60, 30, 8)])
def test_a_few_samples_without_a_label_do_not_make_epochs_short(count: int, labelled: int, batches: int) -> None:
    known = np.arange(count) < labelled
    few = make_samples(np.arange(count), np.where(known, 0, -1), Rows(torch.zeros(count, 2)), labelled=known)
    stream = Stream(few)
    drawn = [batch.ids for epoch in range(2) for batch in stream.epoch(epoch, 8, order=0)]
    assert len(stream.sizes(8)) == batches
    assert np.bincount(torch.cat(drawn), minlength=count).min() >= 1


@pytest.mark.parametrize("views", [None, 2])
def test_each_pass_over_the_labelled_samples_sees_the_next_view(views: int | None) -> None:
    stream = Stream(samples(), CROP, views=views)
    seen: dict[int, list[int]] = {}
    for epoch in range(3):
        for batch in stream.epoch(epoch, 8, order=0):
            assert (batch.views[~batch.labelled] == (epoch % views if views else epoch)).all()
            for number, view in zip(
                batch.ids[batch.labelled].tolist(), batch.views[batch.labelled].tolist(), strict=True
            ):
                seen.setdefault(number, []).append(view)
    assert len(seen) == 7
    for found in seen.values():
        assert found == [turn % views if views else turn for turn in range(len(found))]
        assert len(found) in (3, 4)  # 24 were drawn of 7


def test_a_student_alone_makes_as_many_steps_on_the_labelled_samples() -> None:
    pool = Stream(samples())
    alone = Stream(samples().with_labels(), batches=len(pool.sizes(16)))
    assert alone.sizes(16) == [16] * len(pool.sizes(16))
    drawn = torch.cat([batch.ids for epoch in range(7) for batch in alone.epoch(epoch, 16, order=1)])
    assert set(np.bincount(drawn, minlength=60)[samples().labelled].tolist()) == {len(drawn) // 7}
    assert all(batch.labelled is None for batch in alone.epoch(0, 16, order=1))


def test_batches_of_one_and_mixed_samples_are_refused() -> None:
    with pytest.raises(UsageError, match="batch_size: 1 cannot hold"):
        list(Stream(samples()).epoch(0, 1, order=0))
    with pytest.raises(UsageError, match="mixup and cutmix"):
        Stream(samples(), SimpleNamespace(**{**vars(CROP), "mixup": 0.4}))


def test_a_recording_has_the_samples_without_a_label_too() -> None:
    ids = torch.cat([batch.ids for batch in Stream(samples(), CROP, views=2).recording(16)])
    assert ids.tolist() == [*range(60), *range(60)]
