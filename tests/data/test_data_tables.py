"""Tables: kinds of files, kinds of columns, one-hot encoding fixed by train, missing values; Hugging Face datasets."""

from __future__ import annotations

import json

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from potstill.core.errors import DataError, PotstillError, UsageError
from potstill.data import load

CITIES = ["Ulm", "Rom", "Bern"]


def rows(count=60):
    return [
        {"age": 20 + row, "city": CITIES[row % 3], "member": row % 5 == 0, "score": row / 7, "label": "ny"[row % 2]}
        for row in range(count)
    ]


def write(path, records):
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
    elif path.suffix == ".csv":
        names = list(records[0])
        lines = [",".join("" if record[name] is None else str(record[name]) for name in names) for record in records]
        path.write_text("\n".join([",".join(names), *lines]) + "\n")
    else:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), path)
    return path


def encoded(record):
    """By hand: numbers as they are, cities in the order of the alphabet."""
    city = [float(record["city"] == name) for name in ("Bern", "Rom", "Ulm")]
    return [record["age"], *city, float(record["member"]), record["score"]]


def inputs(split):
    return split.fetch(np.arange(len(split))).numpy()


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".jsonl"])
def test_files_with_named_columns(tmp_path, suffix):
    data = load(write(tmp_path / f"table{suffix}", rows()))
    assert (data.kind, data.shape, data.classes) == ("vector", (6,), ("n", "y"))
    assert [(c.name, c.categories, c.width) for c in data.columns] == [
        ("age", None, 1),
        ("city", ("Bern", "Rom", "Ulm"), 3),
        ("member", None, 1),
        ("score", None, 1),
    ]
    assert sum(map(len, data.splits.values())) == 60
    for split in data.splits.values():
        expected = np.array([encoded(rows()[id_]) for id_ in split.ids], dtype=np.float32)
        np.testing.assert_array_equal(inputs(split), expected)
        np.testing.assert_array_equal(split.targets, split.ids % 2)


def test_chosen_columns_ids_and_targets(tmp_path):
    records = [{**record, "key": f"person {row}"} for row, record in enumerate(rows())]
    path = write(tmp_path / "table.csv", records)
    data = load(path, inputs=["score", "age"], target="city", id_column="key")
    assert [column.name for column in data.columns] == ["score", "age"]
    assert data.classes == ("Bern", "Rom", "Ulm")
    moved = write(tmp_path / "moved.csv", records[::-1])
    again = load(moved, inputs=["score", "age"], target="city", id_column="key")
    assert set(again.test.ids) == set(data.test.ids)
    value = load(path, inputs=["age"], target="score", task="regression", id_column="key")
    np.testing.assert_allclose(value.test.targets, (inputs(value.test)[:, 0] - 20) / 7, rtol=1e-6)


def test_categories_come_from_train_only(tmp_path):
    train = write(tmp_path / "train.csv", rows())
    other = rows(20)
    other[3]["city"] = other[4]["city"] = "Paris"
    test = write(tmp_path / "test.csv", other)
    data = load(train, test=test)
    assert data.columns[1].categories == ("Bern", "Rom", "Ulm")
    assert not inputs(data.test)[3:5, 1:4].any()
    assert inputs(data.test)[:, 1:4].sum() == 18
    unseen = [f for f in data.findings if f.code == "unseen-category"]
    assert [(f.level, f.count) for f in unseen] == [("warning", 2)]
    assert "'city'" in unseen[0].message
    assert "'Paris'" in unseen[0].message


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".jsonl"])
def test_missing_values_name_their_column(tmp_path, suffix):
    records = rows()
    records[5]["age"] = None
    records[9]["age"] = None
    records[11]["city"] = None
    records[12]["label"] = None
    path = write(tmp_path / f"table{suffix}", records)
    with pytest.raises(DataError, match=r"4 of 60.*'age' is missing or not finite \(rows: 2, first: row 5\)") as e:
        load(path)
    assert "column 'city' is missing or not finite (rows: 1, first: row 11)" in str(e.value)
    assert "the label is missing or not finite (rows: 1, first: row 12)" in str(e.value)
    data = load(path, on_bad="skip")
    skipped = [(f.code, f.count) for f in data.findings if f.code != "id-like-column"]
    assert skipped == [("skipped-samples", 4)]
    for split in data.splits.values():
        assert {5, 9, 11, 12}.isdisjoint(split.ids)
        expected = np.array([encoded(rows()[id_]) for id_ in split.ids], dtype=np.float32)
        np.testing.assert_array_equal(inputs(split), expected)


def test_a_column_must_have_one_kind(tmp_path):
    train = write(tmp_path / "train.csv", rows())
    words = write(tmp_path / "words.csv", [{**record, "age": "old"} for record in rows(10)])
    with pytest.raises(DataError, match="column 'age' holds numbers in train and texts in test, for example 'old'"):
        load(train, test=words)
    codes = write(tmp_path / "codes.csv", [{**r, "city": row % 3} for row, r in enumerate(rows(10))])
    mixed = write(tmp_path / "mixed.csv", [{**r, "city": ["0", "1", "x"][row % 3]} for row, r in enumerate(rows())])
    data = load(mixed, test=codes)
    np.testing.assert_array_equal(inputs(data.test)[:3, 1:4], [[1, 0, 0], [0, 1, 0], [0, 0, 0]])
    fewer = write(tmp_path / "fewer.csv", [{k: v for k, v in record.items() if k != "age"} for record in rows(10)])
    with pytest.raises(DataError, match="test has no column 'age', but train has"):
        load(train, test=fewer)


def test_columns_that_cannot_be_used_are_named(tmp_path):
    many = write(tmp_path / "many.csv", [{**r, "city": f"city {row}"} for row, r in enumerate(rows(1600))])
    with pytest.raises(DataError, match=r"column 'city' has \d+ different texts.*too many"):
        load(many)
    assert load(many, inputs=["age"]).shape == (1,)
    empty = write(tmp_path / "empty.csv", [{**record, "city": None} for record in rows()])
    with pytest.raises(DataError, match="column 'city' is empty"):
        load(empty)
    path = write(tmp_path / "table.csv", rows())
    for change, text in [
        ({"target": "labels"}, r"no column 'labels' \(data.target\). Did you mean 'label'"),
        ({"inputs": ["agee"]}, r"no column 'agee' \(data.inputs\). Did you mean 'age'"),
        ({"id_column": "key"}, r"no column 'key' \(data.id\)"),
        ({"inputs": ["age", "label"]}, "names the target itself"),
        ({"id_column": "score"}, "expected an integer or a text"),
    ]:
        with pytest.raises(DataError, match=text):
            load(path, **change)
    with pytest.raises(UsageError, match=r"data\.image_size is for images"):
        load(path, image_size=4)


def test_files_that_are_not_tables(tmp_path):
    (tmp_path / "broken.parquet").write_text("nothing")
    (tmp_path / "broken.csv").write_text("a,label\n1,2\n1,2,3\n")
    (tmp_path / "broken.npz").write_text("nothing")
    (tmp_path / "broken.jsonl").write_text("{]")
    (tmp_path / "twice.csv").write_text("a,a,label\n1,2,3\n")
    (tmp_path / "table.txt").write_text("a")
    for name in ("broken.parquet", "broken.csv", "broken.npz", "broken.jsonl"):
        with pytest.raises(DataError, match=f"{name} cannot be read as"):
            load(name, base=tmp_path)
    with pytest.raises(DataError, match="two columns named 'a'"):
        load("twice.csv", base=tmp_path)
    with pytest.raises(DataError, match=r"is a .txt file, which cannot be read"):
        load("table.txt", base=tmp_path)
    write(tmp_path / "table.csv", rows())
    with pytest.raises(DataError, match=r"'tabel.csv' does not exist.*Did you mean 'table.csv'"):
        load("tabel.csv", base=tmp_path)


def test_npz_arrays_by_name(tmp_path):
    random = np.random.default_rng(0)
    arrays = {"x": random.normal(size=(40, 3)), "z": np.arange(40.0), "label": np.arange(40) % 2}
    arrays["key"] = np.arange(40) * 3
    np.savez(tmp_path / "a.npz", **arrays)
    data = load(tmp_path / "a.npz", id_column="key")
    expected = np.column_stack([arrays["x"], arrays["z"]]).astype(np.float32)
    np.testing.assert_array_equal(inputs(data.test), expected[data.test.ids // 3])
    pixels = random.integers(0, 256, (40, 6, 5, 3), dtype=np.uint8)
    np.savez(tmp_path / "b.npz", pixels=pixels, label=arrays["label"])
    images = load(tmp_path / "b.npz")
    assert (images.kind, images.shape) == ("image", (3, 6, 5))
    np.testing.assert_array_equal(inputs(images.test), pixels[images.test.ids].transpose(0, 3, 1, 2))
    np.savez(tmp_path / "c.npz", x=np.array([{}], dtype=object), label=np.zeros(1))
    with pytest.raises(DataError, match="Arrays of objects are not read"):
        load(tmp_path / "c.npz")
    np.savez(tmp_path / "d.npz", x=np.zeros(3), label=np.zeros(4))
    with pytest.raises(DataError, match="columns have different lengths"):
        load(tmp_path / "d.npz")


def test_kinds_of_parquet_columns(tmp_path):
    table = pyarrow.table(
        {
            "list": pyarrow.array([[row, row + 1.5] for row in range(40)]),
            "dictionary": pyarrow.array(["a", "b"] * 20).dictionary_encode(),
            "decimal": pyarrow.array(range(40)).cast(pyarrow.decimal128(22, 2)),
            "large": pyarrow.array(["u", "v"] * 20, pyarrow.large_string()),
            "label": pyarrow.array([True, False] * 20),
        }
    )
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    data = load(tmp_path / "a.parquet")
    assert data.classes == ("False", "True")
    odd = data.test.ids % 2
    expected = np.column_stack([data.test.ids, data.test.ids + 1.5, 1 - odd, odd, data.test.ids, 1 - odd, odd]).astype(
        np.float32
    )
    np.testing.assert_array_equal(inputs(data.test), expected)
    only = load(tmp_path / "a.parquet", inputs=["list"])
    assert only.shape == (2,)
    dates = pyarrow.table({"day": pyarrow.array([0, 1] * 9, pyarrow.date32()), "label": [0, 1] * 9})
    pyarrow.parquet.write_table(dates, tmp_path / "b.parquet")
    with pytest.raises(DataError, match="column 'day' holds date values, expected numbers or texts"):
        load(tmp_path / "b.parquet")


def test_the_missing_package_names_the_extra(tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(PotstillError, match=r'reading .csv files needs.*pip install "potstill\[tables\]"'):
        load(write(tmp_path / "table.csv", rows()))


def test_hugging_face_tables():
    datasets = pytest.importorskip("datasets")
    found = datasets.Dataset.from_list(rows())
    data = load(found)
    for split in data.splits.values():
        expected = np.array([encoded(rows()[id_]) for id_ in split.ids], dtype=np.float32)
        np.testing.assert_array_equal(inputs(split), expected)
    chosen = found.select(range(10, 50))
    assert load(chosen).train.ids.max() < 40
    np.testing.assert_array_equal(inputs(load(chosen).test)[:, 0], load(chosen).test.ids + 30)
    both = datasets.DatasetDict({"train": found, "valid": found.select([3, 4])})
    assert [len(split) for split in load(both).splits.values()] == [48, 2, 12]
    with pytest.raises(DataError, match="no column 'lable'"):
        load(found, target="lable")


def test_hugging_face_images():
    datasets = pytest.importorskip("datasets")
    pixels = np.random.default_rng(0).integers(0, 256, (40, 5, 4, 3), dtype=np.uint8)
    features = datasets.Features(
        {"img": datasets.Image(), "label": datasets.ClassLabel(names=["zebra", "ant"])}
        | {"coarse": datasets.Value("int8")}
    )
    labels = [row % 2 for row in range(40)]
    from PIL import Image

    found = datasets.Dataset.from_dict(
        {"img": [Image.fromarray(image) for image in pixels], "label": labels, "coarse": labels}, features=features
    )
    data = load(found)
    assert (data.kind, data.shape, data.classes) == ("image", (3, 5, 4), ("zebra", "ant"))
    assert [(f.level, f.code, f.count) for f in data.findings] == [("info", "ignored-columns", 1)]
    np.testing.assert_array_equal(inputs(data.test), pixels[data.test.ids].transpose(0, 3, 1, 2))
    np.testing.assert_array_equal(data.test.targets, data.test.ids % 2)
    assert load(found, inputs=["img"], image_size=8).shape == (3, 8, 8)
    with pytest.raises(DataError, match="expected one image column and nothing else"):
        load(found, inputs=["img", "coarse"])
