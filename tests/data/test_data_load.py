"""Loading arrays, datasets, functions and the bundled digits; making splits; numbering classes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats

from potstill.core.errors import DataError, PotstillError, UsageError
from potstill.data import Samples, channel_statistics, check, load, make_samples
from potstill.data.images import Decoded
from potstill.data.samples import Rows
from potstill.data.splits import split_rows


def arrays(count=100, classes=4, seed=0):
    random = np.random.default_rng(seed)
    return random.normal(size=(count, 3)).astype(np.float32), np.arange(count) % classes


def everything(samples: Samples) -> np.ndarray:
    return samples.fetch(np.arange(len(samples))).numpy()


def codes(data) -> list[str]:
    return [finding.code for finding in data.findings]


def test_digits_are_the_published_ones():
    data = load("digits")
    assert (data.kind, data.shape, data.num_outputs) == ("image", (1, 8, 8), 10)
    assert data.classes == tuple("0123456789")
    assert [len(split) for split in (data.train, data.validation, data.test)] == [1258, 180, 359]
    from sklearn.datasets import load_digits

    published = load_digits()
    for split in data.splits.values():
        pixels = split.fetch(np.arange(len(split)))
        assert pixels.dtype == torch.uint8
        np.testing.assert_allclose(pixels.numpy()[:, 0] / 255 * 16, published.images[split.ids], atol=0.04)
        np.testing.assert_array_equal(split.targets, published.target[split.ids])
    assert data.fingerprint == load("digits").fingerprint != load("digits", seed=1).fingerprint


def test_splits_are_stratified_seeded_disjoint_and_stable_when_samples_are_added():
    x, _ = arrays(1000)
    y = np.array([0] * 700 + [1] * 250 + [2] * 50)
    data = load((x, y), seed=3)
    ids = {name: set(split.ids) for name, split in data.splits.items()}
    assert sum(map(len, ids.values())) == len(set.union(*ids.values())) == 1000
    for name, shares in {"validation": [70, 25, 5], "test": [140, 50, 10]}.items():
        np.testing.assert_array_equal(np.bincount(data.splits[name].targets), shares)
    assert ids["test"] != set(load((x, y), seed=4).test.ids)
    more = load((np.concatenate([x, x[:20] + 1]), np.concatenate([y, y[:20]])), seed=3)
    assert len(ids["test"] & set(more.test.ids)) >= 135 + 50


def test_rare_classes_keep_a_sample_in_train_and_many_rare_classes_still_fill_the_splits():
    x, _ = arrays(404)
    y = np.concatenate([np.repeat(np.arange(100), 4), [100, 101, 102, 103]])
    data = load((x, y))
    assert (np.bincount(data.train.targets, minlength=104) >= 1).all()
    assert (len(data.validation), len(data.test)) == (40, 81)


@pytest.mark.parametrize(("validation", "test"), [(0.4, 0.5), (0.5, 0.4), (0.0, 0.9), (0.9, 0.0)])
def test_no_split_takes_the_last_sample_of_a_class_from_train(validation, test):
    strata = np.repeat(np.arange(7), [1, 1, 2, 3, 5, 9, 40])
    parts = split_rows(np.arange(61) * 3, strata, validation=validation, test=test, seed=0)
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(61))
    assert (np.bincount(strata[parts[0]], minlength=7) >= 1).all()
    for rows, share in zip(parts[1:], (validation, test), strict=True):
        assert abs(len(rows) - 61 * share) <= 3


def test_changing_the_array_later_does_not_change_the_samples():
    for x in (arrays()[0], np.arange(100 * 27, dtype=np.uint8).reshape(100, 3, 3, 3)):
        data = load((x, np.arange(100) % 2))
        kept = everything(data.train).copy()
        x += 1
        np.testing.assert_array_equal(everything(data.train), kept)


def test_given_splits_keep_their_samples_and_get_ids_of_their_own():
    train, test = arrays(60), arrays(20, seed=1)
    data = load({"train": train, "test": test})
    assert [len(split) for split in data.splits.values()] == [54, 6, 20]
    np.testing.assert_array_equal(everything(data.test), test[0])
    assert not set(data.train.ids) & set(data.test.ids)
    by_argument = load(train, test=test)
    assert by_argument.fingerprint == data.fingerprint
    both = load(train, validation=arrays(10, seed=2), test=test)
    np.testing.assert_array_equal(both.train.ids, np.arange(60))
    assert len({*both.train.ids, *both.validation.ids, *both.test.ids}) == 90


class Pairs:
    classes = ["ant", "bee"]  # noqa: RUF012

    def __init__(self, count=40, bad=()):
        self.count, self.bad = count, bad

    def __len__(self):
        return self.count

    def __getitem__(self, row):
        if row in self.bad:
            raise OSError("broken disk")
        pixels = np.full((6, 5, 3), row, dtype=np.uint8)
        return Image.fromarray(pixels), row % 2


def test_in_memory_forms_agree():
    x, y = arrays()
    first = load((x, y))
    forms = [
        (torch.from_numpy(x), torch.from_numpy(y)),
        [x.astype(np.float64), y.astype(np.uint8)],
        {"inputs": x, "targets": [str(label) for label in y]},
        torch.utils.data.TensorDataset(torch.from_numpy(x), torch.from_numpy(y)),
        [(row, int(label)) for row, label in zip(x, y, strict=True)],
        {"train": (x, y)},
    ]
    for form in forms:
        assert load(form).fingerprint == first.fingerprint
    assert first.kind == "vector"


def test_a_dataset_of_pictures_is_kept_as_pixels_with_its_class_names():
    data = load(Pairs())
    assert (data.kind, data.shape, data.classes) == ("image", (3, 6, 5), ("ant", "bee"))
    for split in data.splits.values():
        assert (everything(split) == split.ids[:, None, None, None]).all()
        np.testing.assert_array_equal(split.targets, split.ids % 2)
    assert load(Pairs(), image_size=4).shape == (3, 4, 4)


def test_unreadable_items_are_refused_or_counted():
    with pytest.raises(DataError, match=r"train: 2 of 40 samples cannot be used: .*broken disk.*rows: 2, first: row 0"):
        load(Pairs(bad=(0, 7)))
    data = load(Pairs(bad=(0, 7)), on_bad="skip")
    assert [(f.code, f.count) for f in data.findings] == [("skipped-samples", 2)]
    assert {0, 7}.isdisjoint({*data.train.ids, *data.validation.ids, *data.test.ids})
    for split in data.splits.values():
        assert (everything(split) == split.ids[:, None, None, None]).all()


def test_large_datasets_are_read_when_asked_for(monkeypatch):
    kept = load(Pairs())
    monkeypatch.setattr("potstill.data.images.KEPT_BYTES", 100)
    data = load(Pairs())
    assert isinstance(data.train.fetch.fetch, Decoded)
    assert data.fingerprint == kept.fingerprint
    np.testing.assert_array_equal(everything(data.test), everything(kept.test))
    source = Pairs()
    data = load(source)
    source.bad = range(40)
    with pytest.raises(DataError, match=r"sample \d+ cannot be read: OSError: broken disk"):
        everything(data.test)


def test_shapes_of_images():
    y = np.arange(40) % 2
    pixels = np.random.default_rng(0).integers(0, 256, (40, 3, 5, 6), dtype=np.uint8)
    channels_first = load((pixels, y))
    assert channels_first.shape == (3, 5, 6)
    assert load((pixels.transpose(0, 2, 3, 1), y)).fingerprint == channels_first.fingerprint
    assert load((pixels[:, 0], y)).shape == (1, 5, 6)
    assert load((pixels[:, 0, 0], y)).kind == "vector"
    assert everything(load((pixels[:, 0, 0], y)).train).dtype == np.float32
    assert load((np.zeros((40, 7, 4), dtype=np.float64) + y[:, None, None], y)).shape == (7, 4)


def test_floats_outside_the_range_of_pixels_are_remarked():
    y = np.arange(40) % 2
    x = np.random.default_rng(0).uniform(-1, 1, (40, 3, 4, 4))
    assert codes(load((x, y))) == ["pixel-range"]
    assert codes(load((np.abs(x), y))) == []


def test_regression_targets_of_one_and_of_many_columns():
    x, _ = arrays(50)
    data = load((x, x[:, 0]), task="regression")
    assert (data.num_outputs, data.classes, data.train.targets.dtype, data.train.targets.ndim) == (1, (), np.float64, 1)
    assert load((x, x[:, :1]), task="regression").fingerprint == data.fingerprint
    wide = load((x, x[:, :2].astype(np.float64)), task="regression")
    assert (wide.num_outputs, wide.train.targets.shape) == (2, (35, 2))
    np.testing.assert_array_equal(wide.test.targets, x[wide.test.ids, :2])
    objects = x[:, :2].astype(object)
    np.testing.assert_array_equal(load((x, objects), task="regression").test.targets, wide.test.targets)
    objects[3, 1] = None
    with pytest.raises(DataError, match=r"1 of 50 samples cannot be used: the label is missing .*first: row 3"):
        load((x, objects), task="regression")


def test_label_shift_agrees_with_scipy():
    x, _ = arrays(300)
    data = load((x, x[:, 0]), test=(x + 5, x[:, 0] + 0.7), task="regression")
    expected = stats.ks_2samp(data.train.targets, data.test.targets).statistic
    assert data.label_shift["test"] == pytest.approx(expected)
    assert "label-shift" in codes(data)
    assert data.label_shift["validation"] < 0.3
    shifted = load((x, np.arange(300) % 2), test=(x + 5, np.arange(300) % 10 // 9))
    assert shifted.label_shift["test"] == pytest.approx(0.4)
    assert [f.count for f in shifted.findings if f.code == "label-shift"] == [300]
    assert "label-shift" not in codes(load((x, np.arange(300) % 2)))


def test_classes_by_name_by_position_and_by_order():
    x, y = arrays(60, 3)
    names = np.array(["cat", "dog", "ant"])[y]
    assert load((x, names)).classes == ("ant", "cat", "dog")
    ordered = load((x, names), classes=["dog", "cat", "ant"])
    np.testing.assert_array_equal(ordered.test.targets, np.array([1, 0, 2])[ordered.test.ids % 3])
    by_position = load((x, y), classes=["cat", "dog", "ant"])
    assert by_position.classes == ("cat", "dog", "ant")
    np.testing.assert_array_equal(by_position.test.targets, by_position.test.ids % 3)
    by_value = load((x, y + 9), classes=["11", "9", "10"])
    np.testing.assert_array_equal(by_value.test.targets, np.array([1, 2, 0])[by_value.test.ids % 3])
    swapped = load((x, y % 2), classes=["1", "0"])
    np.testing.assert_array_equal(swapped.test.targets, 1 - swapped.test.ids % 3 % 2)
    renumbered = load((x, y + 9))
    assert renumbered.classes == ("9", "10", "11")
    assert codes(renumbered) == ["renumbered-classes"]
    assert load((x, y.astype(float))).fingerprint == load((x, y)).fingerprint


def test_classes_that_do_not_fit_are_named():
    x, y = arrays(60, 3)
    names = np.array(["cat", "dog", "ant"])[y]
    with pytest.raises(DataError, match=r"20 samples.*does not list: dog\. Given: cat, ant\. Found: ant, cat, dog"):
        load((x, names), validation=(x[:9] + 1, names[:9]), test=(x[9:18] + 1, names[9:18]), classes=["cat", "ant"])
    with pytest.raises(DataError, match="lists a name twice"):
        load((x, names), classes=["cat", "cat"])
    with pytest.raises(DataError, match=r"test: 20 samples are of classes that train does not have: 2"):
        load((x[y < 2], y[y < 2]), test=(x + 1, y))
    listed = load((x[y < 2], y[y < 2]), test=(x + 1, y), classes=["a", "b", "c", "d"])
    assert [(f.code, f.count) for f in listed.findings if "train" in f.code] == [("class-not-in-train", 2)]
    assert "20 samples of validation and test" in listed.findings[0].message
    less = load((x, y), test=(x[y > 0] + 1, y[y > 0]))
    assert ("class-not-in-test", 1) in [(f.code, f.count) for f in less.findings]


def test_samples_in_two_splits_are_counted():
    x, y = arrays()
    test = (np.concatenate([x[:7], x[:13] + 1]), y[:20])
    found = [f for f in load((x, y), test=test).findings if f.code == "shared-samples"]
    assert sum(f.count for f in found) == 7
    assert {f.level for f in found} == {"warning"}
    assert "look better than they are" in found[0].message


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"train": (np.zeros((9, 2)), np.zeros(8))}, r"inputs have shape \(9, 2\) and targets \(8,\)"),
        ({"train": (np.zeros((0, 2)), np.zeros(0))}, "The source of train has no samples"),
        ({"train": (np.ones((9, 2)), np.zeros(9))}, "one class only, '0'"),
        ({"train": (np.ones((9, 2)), np.zeros(9)), "task": "regression"}, "one value only, 0"),
        ({"train": (np.ones((9, 2)), np.linspace(0, 1, 9))}, "set task: regression"),
        ({"train": (np.ones((9, 2)), np.eye(9))}, r"targets have shape \(9, 9\); classification expects"),
        ({"train": (np.ones((9, 2)), ["a"] * 9), "task": "regression"}, "set task: classification"),
        ({"train": (np.array([["a"]] * 9), np.arange(9))}, "Texts and categories need a table"),
        ({"train": {"inputs": np.ones((9, 2))}}, "expected inputs, targets"),
        ({"train": {"inputs": np.ones((9, 2)), "targets": np.arange(9), "ids": np.ones(9)}}, "expected an integer or"),
        ({"train": {"training": arrays()}}, "expected 'inputs' and 'targets', or 'train'"),
        ({"train": {"test": arrays()}}, "expected 'train' among them"),
        ({"validation_fraction": 0.0}, "validation split is empty"),
        ({"test": (np.ones((9, 4)), np.arange(9) % 2)}, "different shapes"),
        ({"train": "nowhere.csv"}, r"'nowhere.csv' does not exist \(looked at"),
    ],
)
def test_impossible_data_is_refused(change, text):
    with pytest.raises(DataError, match=text):
        load(**{"train": arrays(), **change})


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"task": "ranking"}, "task='ranking'"),
        ({"on_bad": "ignore"}, "on_bad='ignore'"),
        ({"test_fraction": 0.95}, "leave something for train"),
        ({"train": [1, 2, 3]}, "data.train is list, which is not a source of samples"),
        ({"train": 5}, "data.train is int, which is not a source of samples"),
        ({"train": None}, "data.train is missing"),
        ({"inputs": ["a"]}, "has no named columns"),
        ({"id_column": "a", "train": "digits"}, "data.id names columns"),
        ({"image_size": 3}, "arrays stay as they are"),
    ],
)
def test_impossible_requests_are_refused(change, text):
    with pytest.raises(UsageError, match=text):
        load(**{"train": arrays(), **change})


def test_values_that_are_not_finite():
    x, y = arrays()
    x[[4, 9], 1] = np.nan
    x[20, 0] = np.inf
    labels = y.astype(float)
    labels[50] = np.nan
    with pytest.raises(
        DataError,
        match=r"4 of 100 samples cannot be used: inputs hold NaN.*\(rows: 3, first: row 4\); "
        r"the label is missing.*\(rows: 1, first: row 50\)\. .*on_bad to skip",
    ):
        load((x, labels))
    data = load((x, labels), on_bad="skip")
    assert sum(map(len, data.splits.values())) == 96
    assert [(f.code, f.count) for f in data.findings] == [("skipped-samples", 4)]
    assert {4, 9, 20, 50}.isdisjoint({*data.train.ids, *data.validation.ids, *data.test.ids})
    with pytest.raises(DataError, match="cannot be used"):
        load((np.full((20, 2), 1e300), np.arange(20) % 2))


def test_ids_are_unique_over_all_splits():
    x, y = arrays()
    data = load({"inputs": x, "targets": y, "ids": np.arange(100) * 7 - 50})
    np.testing.assert_array_equal(everything(data.test), x[(data.test.ids + 50) // 7])
    named = load({"inputs": x, "targets": y, "ids": [f"sample {row}" for row in range(100)]})
    assert (named.train.ids >= 0).all()
    with pytest.raises(DataError, match=r"ids are not unique, for example 3"):
        load({"inputs": x, "targets": y, "ids": np.where(np.arange(100) < 90, 3, np.arange(100))})
    with pytest.raises(DataError, match=r"\d+ ids are in both train and test"):
        load({split: {"inputs": x + len(split), "targets": y, "ids": np.arange(100)} for split in ("train", "test")})


def test_check_of_data_built_by_hand():
    from dataclasses import replace

    data = load(arrays())
    assert check(data) == ()
    bad = everything(data.test).copy()
    bad[3, 0] = np.nan
    broken = make_samples(data.test.ids, data.test.targets, Rows(torch.from_numpy(bad)))
    for change, text in [
        ({"test": broken}, rf"test: inputs hold NaN or infinite values, first in id {data.test.ids[3]}"),
        ({"test": data.test.take(np.array([], dtype=np.int64))}, "The test split is empty"),
        ({"test": make_samples(data.test.ids, data.test.targets + 9, data.test.fetch)}, "outside 0 to 3"),
        ({"train": data.train.take(data.train.targets == 0)}, "one class only"),
    ]:
        with pytest.raises(DataError, match=text):
            check(replace(data, **change))


def test_statistics_of_channels_and_columns():
    pixels = np.random.default_rng(0).integers(0, 256, (60, 3, 4, 4), dtype=np.uint8)
    samples = make_samples(np.arange(60), np.zeros(60, dtype=int), Rows(torch.from_numpy(pixels)))
    mean, std = channel_statistics(samples)
    np.testing.assert_allclose(mean, (pixels / 255).mean(axis=(0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(std, (pixels / 255).std(axis=(0, 2, 3)), rtol=1e-12)
    values = (1e6 + np.random.default_rng(0).normal(size=(900, 4))).astype(np.float32)
    values[:, 2] = 7
    samples = make_samples(np.arange(900), np.zeros(900, dtype=int), Rows(torch.from_numpy(values)))
    mean, std = channel_statistics(samples)
    np.testing.assert_allclose(mean, values.astype(np.float64).mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(std, [*values.astype(np.float64).std(axis=0)[:2], 1.0, values[:, 3].std(dtype=float)])
    few, _ = channel_statistics(samples, limit=10)
    assert few[0] != mean[0]
    assert abs(few[0] - mean[0]) < 2


SOURCE = """
import numpy as np

def squares(count=40, scale=1.0):
    inputs = np.arange(count, dtype=np.float32)[:, None] * scale
    return {"train": (inputs, np.arange(count) % 2), "test": (inputs + 1000, np.arange(count) % 2)}

def broken():
    return 1 / 0
"""


def test_data_functions(tmp_path, monkeypatch):
    (tmp_path / "toys.py").write_text(SOURCE)
    data = load("toys.py:squares", args={"count": 50, "scale": 2.0}, base=tmp_path)
    assert [len(split) for split in data.splits.values()] == [45, 5, 50]
    np.testing.assert_array_equal(everything(data.train)[:, 0], data.train.ids * 2)
    (tmp_path / "potstill_toy_package.py").write_text(SOURCE)
    assert len(load("potstill_toy_package:squares", base=tmp_path).test) == 40
    for name, kind, text in [
        ("toys.py:broken", DataError, r"toys.py:broken\(\) failed: ZeroDivisionError: .*\[line 9\]"),
        ("toys.py:square", UsageError, "Did you mean 'squares'"),
        ("toy.py:squares", UsageError, "does not exist"),
        ("no_such_package_at_all:squares", UsageError, "Importing 'no_such_package_at_all' failed: ModuleNotFound"),
    ]:
        with pytest.raises(kind, match=text):
            load(name, base=tmp_path)
    with pytest.raises(DataError, match=r"squares\(sides=4\) failed: TypeError"):
        load("toys.py:squares", args={"sides": 4}, base=tmp_path)


def test_a_missing_package_names_the_extra(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(PotstillError, match=r'pip install "potstill\[demo\]"'):
        load("digits")


def test_printed_data_says_what_it_is(tmp_path):
    inputs = np.random.default_rng(0).integers(0, 256, (1500, 1, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "d.npz", x=inputs, label=np.arange(1500) % 50)
    text = str(load(tmp_path / "d.npz"))
    assert text.splitlines()[0] == "<Data: classification of images 1 x 8 x 8"
    assert "train           1,050 samples, 21 of each class" in text
    assert "classes: 50: 0, 1, 2" in text
    assert "and 38 more" in text
    values = str(load((np.arange(40.0), np.arange(40.0)), task="regression"))
    assert "targets 0 to" in values
    assert "classes" not in values
    wide = {f"c\x1b{number}{'x' * 900}": np.arange(40) + number for number in range(300)}
    np.savez(tmp_path / "w.npz", **wide, label=["y" * 900, "z"] * 20)
    text = str(load(tmp_path / "w.npz"))
    assert len(text) < 6000
    assert "\x1b" not in text
    assert "<Samples: 28 samples" in repr(load((np.arange(40.0), np.arange(40) % 2)).train)


def test_samples_are_named_by_their_row_in_their_file(tmp_path):
    random = np.random.default_rng(0)
    train, test = random.random((60, 2)), random.random((20, 2))
    test[[7, 11]] = train[:2]
    for name, inputs in [("train", train), ("test", test)]:
        np.savez(tmp_path / f"{name}.npz", x=inputs, label=np.arange(len(inputs)) % 2)
    data = load(
        tmp_path / "train.npz", test=tmp_path / "test.npz", validation=(random.random((9, 2)), np.arange(9) % 2)
    )
    text = next(finding.message for finding in data.findings if finding.code == "shared-samples")
    assert "for example rows 7, 11 of test.npz (counted from 0)" in text
    assert data.test.called(7) == "row 7 of test.npz"
    assert data.test.take(slice(7, None)).called(0) == "row 7 of test.npz"
    assert data.validation.called(3) == "row 3 of data.validation"
    own = load({"inputs": train, "targets": np.arange(60) % 2, "ids": np.arange(60) + 900})
    assert own.train.called(0) == f"id {own.train.ids[0]}"
