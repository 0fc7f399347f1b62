"""Labels are texts: nothing that differs becomes one class, whatever a reader would guess."""

from __future__ import annotations

import datetime
import json
from decimal import Decimal

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch

from potstill.core.errors import DataError, UsageError
from potstill.data import load
from potstill.tasks.labels import in_order
from potstill.tasks.texts import texts_of


def csv(path, labels, encoding="utf-8"):
    rows = [f"{row % 7}.5,{labels[row % len(labels)]}\n" for row in range(20 * len(labels))]
    path.write_bytes(("x,kind\n" + "".join(rows)).encode(encoding))
    return path


def jsonl(path, labels):
    """Labels are JSON as it is written."""
    path.write_text("".join(f'{{"x": {row % 7}, "kind": {labels[row % len(labels)]}}}\n' for row in range(60)))
    return path


def arrays(labels):
    return np.arange(60.0)[:, None] % 7, np.resize(np.asarray(labels), 60)


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        (["01", "1", "2"], ("01", "1", "2")),
        (["1e3", "1000", "5"], ("5", "1000", "1e3")),
        (["0x1", "1", "+1"], ("+1", "0x1", "1")),
        (["2020-01-02", "2020-01-02 00:00:00"], ("2020-01-02", "2020-01-02 00:00:00")),
        (["true", "1", "True", "0"], ("0", "1", "True", "true")),
        (["true", "false"], ("false", "true")),
        (["NA", "DE", "US"], ("DE", "NA", "US")),
        ([str(number) for number in range(12)], tuple(str(number) for number in range(12))),
        (["9007199254740993", "9007199254740992"], ("9007199254740992", "9007199254740993")),
        (["1.0", "2.0"], ("1", "2")),
        (["1.0", "1", "2"], ("1", "1.0", "2")),
    ],
)
def test_labels_of_csv_are_what_is_written(tmp_path, labels, classes):
    data = load(csv(tmp_path / "t.csv", labels), target="kind")
    assert data.classes == classes
    for split in data.splits.values():
        written = [labels[row % len(labels)].removesuffix(".0" if classes == ("1", "2") else "#") for row in split.ids]
        assert [data.classes[target] for target in split.targets] == written


def test_a_gap_among_numbers_is_missing(tmp_path):
    """A table tool writes 1.0 and 2.0 where one of the whole numbers is missing."""
    path = csv(tmp_path / "t.csv", ["1.0", "2.0", "2.0", "NaN", ""])
    with pytest.raises(DataError, match=r"the label is missing or not finite \(rows: 40, first: row 3\)"):
        load(path, target="kind")
    assert load(path, target="kind", on_bad="skip").classes == ("1", "2")


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        (["12345678901234567890", "12345678901234567891"], ("12345678901234567890", "12345678901234567891")),
        (['"2020-01-02"', '"2020-01-02T00:00:00"'], ("2020-01-02", "2020-01-02T00:00:00")),
        (["1e3", "1000.0"], ("1000.0", "1e3")),
        (["true", "false"], ("False", "True")),
        (["7", "10"], ("7", "10")),
    ],
)
def test_labels_of_jsonl_are_what_is_written(tmp_path, labels, classes):
    assert load(jsonl(tmp_path / "t.jsonl", labels), target="kind").classes == classes


@pytest.mark.parametrize(
    ("values", "classes"),
    [
        ([b"oak", b"\xc3\xa9lan"], ("oak", "\u00e9lan")),
        ([2**62 + 1, 2**62], (str(2**62), str(2**62 + 1))),
        ([datetime.date(2020, 1, 2), datetime.date(2020, 1, 3)], ("2020-01-02", "2020-01-03")),
        ([Decimal("1.00"), Decimal("2.00")], ("1", "2")),
        ([True, False], ("False", "True")),
        ([2.0, 10.0], ("2", "10")),
    ],
)
@pytest.mark.parametrize("gap", [False, True])
def test_labels_of_parquet_by_type(tmp_path, values, classes, gap):
    labels = [None if gap and row == 4 else values[row % 2] for row in range(60)]
    pyarrow.parquet.write_table(pyarrow.table({"x": np.arange(60.0), "kind": labels}), tmp_path / "t.parquet")
    data = load(tmp_path / "t.parquet", target="kind", on_bad="skip")
    assert data.classes == classes
    assert sum(map(len, data.splits.values())) == 60 - gap


def test_labels_of_arrays_by_type():
    assert load(arrays(np.array(["01", "1"]))).classes == ("01", "1")
    assert load(arrays(np.array([b"elm", b"oak"]))).classes == ("elm", "oak")
    assert load(arrays(np.array(["2020-01-02", "2021-01-02"], dtype="M8[D]"))).classes == ("2020-01-02", "2021-01-02")
    assert load(arrays(np.array([3.0, 12.0]))).classes == ("3", "12")
    assert load((torch.arange(60.0), [True, 2, 3] * 20)).classes == ("2", "3", "True")
    for labels, text in [
        (np.array([1e20, 2e20, 5.0]), r"labels are floats such as 2e\+20, beyond 2\*\*53"),
        (np.array([b"caf\xe9", b"eau"]), r"label of row 0 is bytes that are not UTF-8 \(b'caf\\xe9'\)"),
        (np.array([1, "1", 2], dtype=object), r"labels 1 \(number\) and '1' \(text\) would become one class, '1'"),
        (np.array([True, "True"], dtype=object), r"True \(true or false\) and 'True' \(text\)"),
        (np.array([{}, 1], dtype=object), r"the label of row 0 is dict, expected a text or a number"),
        (np.array([0.5, 1.0]), r"labels are fractional numbers such as 0\.5"),
        (np.array([1j, 2]), r"labels have dtype complex128"),
    ]:
        with pytest.raises(DataError, match=text):
            load(arrays(labels))
    assert load(arrays([0.5, 1.0]), classes=["1", "0.5"]).classes == ("1", "0.5")
    assert texts_of(np.array([None, float("nan"), np.inf, " ", "a"], dtype=object), "train").tolist() == [
        *[None] * 4,
        "a",
    ]


def test_numbers_sort_by_value_and_texts_by_the_alphabet():
    assert in_order(["10", "9", "1e3", "-1", ".5"]) == ["-1", ".5", "9", "10", "1e3"]
    assert in_order(["10", "9", "x"]) == ["10", "9", "x"]


def test_classes_that_look_alike_are_told():
    data = load(arrays(["Cat", "cat", "dog", "dog ", "\ufb01n", "fin", "owl"]))
    found = [finding for finding in data.findings if finding.code == "classes-alike"]
    assert [finding.count for finding in found] == [6]
    assert "'Cat' and 'cat'; 'dog' and 'dog '" in found[0].message
    assert "classes-alike" in [finding.code for finding in load(arrays(["01", "1", "2"])).findings]
    assert "classes-alike" not in [finding.code for finding in load(arrays(["1", "2"])).findings]


def test_files_in_other_encodings_are_named_and_read(tmp_path):
    names = ["caf\u00e9", "th\u00e9", "eau"]
    path = csv(tmp_path / "latin.csv", names, "latin-1")
    with pytest.raises(DataError, match=r"latin\.csv is not UTF-8: line 2 holds the byte 0xe9.*'0\.5,caf\xe9"):
        load(path, target="kind")
    assert set(load(path, target="kind", encoding="latin-1").classes) == set(names)
    for encoding, said in [("utf-16", "utf-16"), ("utf-16-le", "utf-16-le"), ("utf-32", "utf-32")]:
        path = csv(tmp_path / f"{encoding}.csv", names, encoding)
        with pytest.raises(DataError, match=f"is not UTF-8; it looks like UTF-.*data.encoding: {said}"):
            load(path, target="kind")
        assert set(load(path, target="kind", encoding=said).classes) == set(names)
    marked = csv(tmp_path / "marked.csv", names, "utf-8-sig")
    assert set(load(marked, target="kind").classes) == set(names)
    lines = "".join(json.dumps({"x": row, "label": names[row % 3]}, ensure_ascii=False) + "\n" for row in range(60))
    (tmp_path / "a.jsonl").write_bytes(lines.encode("cp1252"))
    assert set(load(tmp_path / "a.jsonl", encoding="cp1252").classes) == set(names)
    with pytest.raises(UsageError, match="'latin-99' is no encoding of text"):
        load(marked, encoding="latin-99")
    with pytest.raises(UsageError, match=r"data\.encoding is for CSV and JSONL files"):
        load("digits", encoding="latin-1")


def test_what_is_masked_is_missing():
    inputs, labels = np.ma.masked_less(np.arange(60.0)[:, None], 3), np.arange(60) % 3
    for masked in [(inputs, labels), (np.arange(60.0)[:, None], np.ma.array(labels, mask=np.arange(60) < 3))]:
        with pytest.raises(DataError, match=r"train: 3 of 60 samples cannot be used: .* \(rows: 3, first: row 0\)"):
            load(masked)
        assert min(load(masked, on_bad="skip").train.ids) >= 3
    whole = np.ma.array(np.arange(60), mask=np.arange(60) == 7)
    assert sum(map(len, load((whole, labels), on_bad="skip").splits.values())) == 59
    assert sum(map(len, load((np.arange(60.0), whole * 2), task="regression", on_bad="skip").splits.values())) == 59
    items = [(np.ma.masked_equal([float(row), 5.0], 4), np.ma.masked if row == 9 else row % 3) for row in range(60)]
    assert sum(map(len, load(items, on_bad="skip").splits.values())) == 58


def test_what_numpy_does_not_have_is_refused():
    from scipy import sparse

    rows, labels = np.eye(60), np.arange(60) % 3
    for inputs, text in [
        (sparse.csr_matrix(rows), r"inputs of train are a sparse matrix \(csr_matrix\). Give .toarray"),
        (torch.tensor(rows).to_sparse(), "inputs of train are a sparse tensor"),
        (torch.zeros(60, 2).to(torch.float8_e4m3fn), "a tensor of torch.float8_e4m3fn, which NumPy cannot hold"),
        (torch.zeros(60, 2, device="meta"), "inputs of train are a tensor"),
        (np.zeros((60, 2), dtype=complex), "inputs have dtype complex128"),
    ]:
        with pytest.raises(DataError, match=text):
            load((inputs, labels))


def test_targets_that_merge_are_told():
    x, y = np.arange(60.0), 1.7e9 + 10 * np.arange(60)

    def told(targets, **options):
        findings = load((x, targets), task="regression", **options).findings
        return [finding.message for finding in findings if finding.code == "merged-targets"]

    (message,) = told(y, standardise_targets=False)
    assert "Leave data.standardise_targets on" in message
    assert told(y - 1.7e9, standardise_targets=False) == told(y) == []


def test_targets_that_are_one_number_or_whose_squares_overflow_are_refused():
    x, close = np.arange(60.0), 1e9 + 1e-3 * np.arange(60)
    assert load((x, close), task="regression").scale.std[0] == pytest.approx(np.std(1e-3 * np.arange(60)), rel=0.2)
    with pytest.raises(DataError, match=r"one value only, 1e\+09, as a 32-bit float"):
        load((x, close), task="regression", standardise_targets=False)
    with pytest.raises(DataError, match=r"train: targets reach .*e\+301, and the squares of errors would overflow"):
        load((x, 1e300 * (1 + x)), task="regression")
    with pytest.raises(DataError, match=r"leave data\.standardise_targets on"):
        load((x, 1e20 * (1 + x)), task="regression", standardise_targets=False)


@pytest.mark.parametrize(("classes", "labels"), [(["02", "01", "00"], [0, 1, 2]), (["True", "False"], [0, 1])])
def test_classes_that_are_numbers_themselves_are_no_positions(classes: list[str], labels: list[int]) -> None:
    inputs = np.random.default_rng(0).normal(size=(30, 2)).astype(np.float32)
    targets = np.resize(labels, 30)
    with pytest.raises(DataError, match=r"labels that data.classes does not list: 0, 1.* Given: " + classes[0]):
        load((inputs, targets), classes=classes)
    data = load((inputs, targets), classes=[float(label) for label in labels[::-1]])
    assert data.classes == tuple(str(label) for label in labels[::-1])
    first = {int(id_): int(target) for id_, target in zip(data.train.ids, data.train.targets, strict=True)}
    assert all(target == len(labels) - 1 - id_ % len(labels) for id_, target in first.items())
